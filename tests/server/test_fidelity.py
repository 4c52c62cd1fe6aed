"""What the client sees does not depend on how the network cut the bytes."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governor.calls import ToolCatalog
from governor.decision import Mode
from governor.exchange import Ask, Exchange
from governor.governance import Governance
from governor.policies import ThresholdPolicy
from governor.request import ClientView
from governor_server import sse
from tests.server.bodies import chunks_of, digest
from tests.server.scripted_upstream import EVENTS, Answer, Piece, proxied, scripted
from tests.wire.assembled import Assembled
from tests.wire.generated import Generated, chat, stream_bytes
from tests.wire.recorded import recorded

UNICODE = Generated(
    content="Ærø → 東京 🎈 naïve", calls=[("c1", "lookup", '{"city": "København 🎈"}')], sure=0.5, top=2
)
STREAMS = ("chat_tools_auto_stream", "reason_auto_stream", "chat_tools_none_stream")
GOVERNANCE = {
    mode: Governance(
        vocab_size=4096,
        mode=mode,
        policy=ThresholdPolicy(),
        catalog=ToolCatalog(read_only=("get_*", "lookup")),
    )
    for mode in Mode
}


@cache
def source(name: str) -> bytes:
    """The bytes of a stream: recorded ones, or one full of characters of several bytes."""
    if name == "unicode":
        return b": hello\n\n" + stream_bytes(UNICODE.chunks(usage=True))
    body = recorded(name).body
    return body + b"\n" if not body.endswith(b"\n\n") else body


def through(pieces: Sequence[bytes], mode: Mode) -> bytes:
    """What the client receives in all for what upstream sends in `pieces`; the probe fails."""
    reader = sse.EventReader()
    exchange = Exchange(chat(stream=True), GOVERNANCE[mode])
    out, done = b"", b""
    for event in (event for piece in pieces for event in reader.feed(piece)):
        if event.data is None:
            out += event.raw
        elif event.data == sse.DONE:
            done = event.raw
        else:
            out += b"".join(sse.event(sent) for sent in exchange.receive(json.loads(event.data)))
    assert reader.rest() == b""
    step = exchange.finish()
    while isinstance(step, Ask):
        step = exchange.probe_failed("timeout")
    return out + b"".join(map(sse.event, step.chunks)) + done


def cut(body: bytes, places: Sequence[int]) -> list[bytes]:
    """The body in pieces that end at `places`."""
    ends = sorted({place % (len(body) + 1) for place in places} | {0, len(body)})
    return [body[start:end] for start, end in zip(ends, ends[1:], strict=False)]


@given(
    name=st.sampled_from([*STREAMS, "unicode"]),
    mode=st.sampled_from(Mode),
    places=st.lists(st.integers(0, 60_000), max_size=40),
)
@settings(deadline=None, max_examples=60)
def test_the_cuts_of_the_network_are_invisible(name: str, mode: Mode, places: list[int]) -> None:
    """In the middle of a character, a line end, an event or a call."""
    body = source(name)
    assert through(cut(body, places), mode) == through([body], mode)


@pytest.mark.parametrize("mode", Mode)
def test_one_byte_at_a_time_is_the_same_stream(mode: Mode) -> None:
    """The finest cut there is."""
    body = source("unicode")
    assert through([body[i : i + 1] for i in range(len(body))], mode) == through([body], mode)


@given(
    st.lists(st.sampled_from([b"data: a", b"data:b", b"data: ", b": c", b"event: d", b"id: 1"]), min_size=1)
)
def test_events_are_found_whatever_ends_their_lines(lines: list[bytes]) -> None:
    """LF, CRLF and CR are line ends; data of several lines belongs together."""
    found = []
    for end in (b"\n", b"\r\n", b"\r"):
        reader = sse.EventReader()
        raw = end.join(lines) + end * 2
        events = [event for i in range(len(raw)) for event in reader.feed(raw[i : i + 1])]
        events += reader.feed(b"data: next\n\n")
        assert b"".join(event.raw for event in events) == raw + b"data: next\n\n"
        found.append([event.data for event in events])
    assert found[0] == found[1] == found[2]


def test_an_event_without_end_does_not_fill_the_memory() -> None:
    """It goes on unread once it is larger than any event can be."""
    reader = sse.EventReader()
    piece = b"x" * (1 << 20)
    out = [event for _ in range(20) for event in reader.feed(piece)]
    assert [event.data for event in out] == [None]
    assert len(out[0].raw) > sse.MAX_EVENT_BYTES


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("mode", ["observe", "enforce"])
async def test_a_recorded_stream_arrives_with_every_field(name: str, mode: str) -> None:
    """Through sockets on both sides, in pieces that end anywhere."""
    body = source(name)
    pieces = [body[i : i + 997] for i in range(0, len(body), 997)]
    answer = Answer(pieces, 200, [EVENTS], length=False)
    # The probe that the calls give rise to finds no answer.
    failure = Answer([b"{}"], 500)
    async with scripted(answer, failure) as upstream, proxied(upstream, mode) as proxy:
        status, headers, received = await proxy.chat(chat(stream=True))
    chunks = [json.loads(event[6:]) for event in body.split(b"\n\n") if event.startswith(b"data: {")]
    view = ClientView.of(chat(), 20)
    assert chunks_of(received) == [seen for chunk in chunks if (seen := view.chunk(chunk)) is not None]
    assert received.endswith(b"data: [DONE]\n\n")
    assert (status, headers["content-type"]) == (200, EVENTS[1])


@pytest.mark.parametrize("name", ["chat_tools_auto", "chat_after_tool", "chat_tools_none", "reason_auto"])
@pytest.mark.parametrize("mode", ["observe", "enforce"])
async def test_a_recorded_response_arrives_with_every_field(name: str, mode: str) -> None:
    """All but the logprobs that were asked for on top, and null where vLLM writes null."""
    response = recorded(name).response
    async with (
        scripted(Answer.whole(response), Answer([b"{}"], 500)) as upstream,
        proxied(upstream, mode) as proxy,
    ):
        _, _, received = await proxy.chat(chat())
    assert json.loads(received) == {**response, "choices": [{**response["choices"][0], "logprobs": None}]}


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_client_asked_for_in_full_is_byte_for_byte(stream: bool) -> None:
    """Nothing is parsed and written again where nothing has to change."""
    generated = Generated(content="Ærø.", reasoning="Hm.")
    body = stream_bytes(generated.chunks(usage=True)) if stream else b"{ " + _dumped(generated)[1:]
    answer = Answer([body], 200, [EVENTS] if stream else [("content-type", "application/json")], length=False)
    asking = chat(stream=stream, logprobs=True, top_logprobs=20)
    async with scripted(answer) as upstream, proxied(upstream, "observe") as proxy:
        _, _, received = await proxy.chat(asking)
    assert received == body


async def test_comments_keep_a_connection_alive() -> None:
    """vLLM can be told to send them while a prompt is long; they go through at once."""
    body = b": ping\n\n" + stream_bytes(Generated(content="Oslo.").chunks())
    answer = Answer.stream(body)
    async with scripted(answer) as upstream, proxied(upstream) as proxy:
        _, _, received = await proxy.chat(chat(stream=True))
    assert received.startswith(b": ping\n\n")
    assert Assembled.of_chunks(chunks_of(received)).content == "Oslo."


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("mode", ["observe", "enforce"])
async def test_the_clients_stream_is_upstreams_without_what_was_added(name: str, mode: str) -> None:
    """By the hash of all bytes. The logprobs are cut out of the recording as text here, not by the code under
    test."""
    body = source(name)
    answers = [Answer.stream(body), Answer([b"{}"], 500)]
    async with scripted(*answers) as upstream, proxied(upstream, mode) as proxy:
        _, _, received = await proxy.chat(chat(stream=True))
    assert digest(received) == digest(unmeasured(body)) != digest(body)


def unmeasured(body: bytes) -> bytes:
    """The recorded stream as upstream would have sent it without logprobs."""
    kept = []
    for event in body.split(b"\n\n"):
        bare = re.sub(rb'"logprobs":\{.*\},"finish_reason":', b'"logprobs":null,"finish_reason":', event)
        swallowed = bare != event and b'"delta":{},' in bare and b'"finish_reason":null' in bare
        kept += [] if swallowed else [bare]
    return b"\n\n".join(kept)


async def test_several_choices_go_through_to_the_byte() -> None:
    """A recorded response with n = 2: which of the two the agent will take, nobody knows."""
    recording = recorded("n2")
    async with scripted(Answer.of(recording)) as upstream, proxied(upstream) as proxy:
        _, _, received = await proxy.chat(recording.request)
    assert digest(received) == digest(recording.body)
    assert upstream.received[0].json == recording.request


@pytest.mark.parametrize("options", [{"include_usage": True}, {"include_usage": False}, None])
async def test_usage_comes_as_it_was_asked_for(options: dict[str, bool] | None) -> None:
    """`stream_options` is the client's, and so is the chunk without a choice that it asks for."""
    usage = bool(options and options["include_usage"])
    generated = Generated(content="Oslo.", calls=[("c1", "lookup", "{}")])
    answers = [Answer.stream(generated, usage=usage), Answer([b"{}"], 500)]
    async with scripted(*answers) as upstream, proxied(upstream) as proxy:
        _, _, received = await proxy.chat(chat(stream=True, stream_options=options))
    assert upstream.received[0].json["stream_options"] == options
    assert chunks_of(received) == replace(generated, top=None).chunks(usage=usage)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_arrives_at_once(stream: bool) -> None:
    """It is text, in a field of its own, and does not wait for a call that never comes."""
    told: dict[str, Any] = {"role": "assistant", "content": None, "refusal": "I may not say."}
    choice = {"index": 0, "logprobs": None, "finish_reason": None}
    chunk = {"id": "1", "choices": [{**choice, "delta": told}]}
    end = {"id": "1", "choices": [{**choice, "delta": {}, "finish_reason": "stop"}]}
    more = asyncio.Event()
    events: list[Piece] = [stream_bytes([chunk], done=False), more, stream_bytes([end])]
    whole = {"id": "1", "choices": [{**choice, "message": told, "finish_reason": "stop"}]}
    answer = Answer(events, 200, [EVENTS], length=False) if stream else Answer.whole(whole)
    async with (
        scripted(answer) as upstream,
        proxied(upstream) as proxy,
        proxy.client.post("/v1/chat/completions", json=chat(stream=stream)) as response,
    ):
        first = await response.content.readany()
        more.set()
        rest = await response.content.read()
    assert b"I may not say." in first
    assert (chunks_of(first + rest) == [chunk, end]) if stream else (json.loads(first + rest) == whole)


async def test_a_prompt_of_ten_megabytes_with_images_is_governed_like_any_other() -> None:
    """Pictures are long strings in the messages; upstream gets them as they are."""
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A/+=' * 2_500_000}"}}
    prompt = {"role": "user", "content": [{"type": "text", "text": "Where was this?"}, image]}
    asking = chat(prompt)
    calling = Answer.whole(Generated(calls=[("c1", "lookup", "{}")]))
    known = Answer.whole(Generated(content="Oslo"))
    async with (
        scripted(calling, known) as upstream,
        proxied(upstream) as proxy,
        proxy.client.post("/v1/chat/completions", data=BytesIO(json.dumps(asking).encode())) as reply,
    ):
        status, headers, received = reply.status, reply.headers, await reply.read()
    assert (status, headers["x-governor-decision"]) == (200, "answer")
    assert Assembled.of_response(json.loads(received)).content == "Oslo"
    assert upstream.received[0].json["messages"] == asking["messages"]


def _dumped(generated: Generated) -> bytes:
    return json.dumps(generated.response(), indent=1).encode()
