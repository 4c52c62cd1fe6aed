"""What upstream can do wrong: passed on as it is, or failed open, and counted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
import pytest

from tests.server.bodies import answer, chunks_of
from tests.server.scripted_upstream import (
    ABORT,
    CLOSE,
    EVENTS,
    HANG,
    JSON,
    Answer,
    Piece,
    proxied,
    scripted,
)
from tests.wire.generated import Generated, chat, stream_bytes

PLAIN = Generated(content="Oslo.", top=None)
STREAM = stream_bytes(PLAIN.chunks(), done=False)
HTML = b"<html>Back soon.</html>"
BOTH = pytest.mark.parametrize("stream", [False, True])


@dataclass(frozen=True, slots=True)
class Fault:
    """What upstream does, the status that the client sees, and what is counted."""

    pieces: Sequence[Piece]
    status: int
    reason: str


BEFORE_THE_ANSWER = {
    "slow": Fault([HANG], 504, "timeout"),
    "dead": Fault([ABORT], 502, "broken"),
    "half closed": Fault([CLOSE], 502, "broken"),
    "garbage": Fault([b"secret garbage\r\n\r\n", CLOSE], 502, "broken"),
    "a head that ends too soon": Fault([b"HTTP/1.1 200 OK\r\ncontent-ty", CLOSE], 502, "broken"),
}


@BOTH
@pytest.mark.parametrize("fault", BEFORE_THE_ANSWER.values(), ids=list(BEFORE_THE_ANSWER))
async def test_an_upstream_that_gives_no_answer_is_told(fault: Fault, stream: bool) -> None:
    """In an error of the API's shape, without a word of what upstream said, once the client's own request got
    no answer either; the next request works."""
    settings = {"read_timeout_s": 2.0}
    answers = [Answer(before=fault.pieces), Answer(before=fault.pieces), answer(PLAIN, stream)]
    async with scripted(*answers) as upstream, proxied(upstream, upstream=settings) as proxy:
        status, _, body = await proxy.chat(chat(stream=stream))
        assert proxy.metric("governor_upstream_failures_total", reason=fault.reason) == 1
        assert proxy.metric("governor_requests_total", route="chat", code=str(status)) == 1
        assert (await proxy.chat(chat(stream=stream)))[0] == 200
    assert (status, json.loads(body)["error"]["type"]) == (fault.status, f"upstream_{fault.reason}")
    assert b"secret" not in body


@pytest.mark.parametrize("end", [ABORT, CLOSE])
@BOTH
async def test_an_answer_that_breaks_off_is_no_answer(end: Piece, stream: bool) -> None:
    """A response becomes an error, since nothing of it went out; a stream stays unfinished."""
    half = Answer(
        [STREAM[:-40] if stream else b'{"choices"', 0.05, end, b"}"], 200, [EVENTS if stream else JSON]
    )
    async with scripted(half) as upstream, proxied(upstream) as proxy:
        if stream:
            with pytest.raises(aiohttp.ClientPayloadError):
                await proxy.chat(chat(stream=True))
        else:
            assert (await proxy.chat(chat()))[0] == 502
        assert proxy.metric("governor_upstream_failures_total", reason="broken") == 1


GARBAGE = b"data: {\n\n"


def closed_after(events: bytes, *, length: bool) -> Answer:
    """A stream that should have gone on by its framing, which is by length or by chunks."""
    return Answer([events, 0.05, CLOSE, b": more"], 200, [EVENTS], length)


@pytest.mark.parametrize("before", [b"", GARBAGE], ids=["read", "handed on unread"])
@pytest.mark.parametrize("length", [False, True])
async def test_done_does_not_make_a_stream_whole_that_breaks_off(before: bytes, length: bool) -> None:
    """Upstream said that it was done, but not before the message had its end, and then broke off."""
    source = stream_bytes(PLAIN.chunks()[:-1], done=False) + before + stream_bytes([])
    received = b""
    async with scripted(closed_after(source, length=length)) as upstream, proxied(upstream) as proxy:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with proxy.client.post("/v1/chat/completions", json=chat(stream=True)) as response:
                while piece := await response.content.readany():
                    received += piece
        assert proxy.metric("governor_upstream_failures_total", reason="broken") == 1
    assert received.startswith(source)
    assert json.loads(received.removeprefix(source)[6:])["error"]["type"] == "upstream_broken"


@pytest.mark.parametrize("length", [False, True])
async def test_a_stream_that_breaks_off_after_its_message_is_whole(length: bool) -> None:
    """Nothing is missing, and nothing more would have been handed on."""
    source = stream_bytes(PLAIN.chunks())
    async with scripted(closed_after(source, length=length)) as upstream, proxied(upstream) as proxy:
        status, _, body = await proxy.chat(chat(stream=True))
        assert proxy.metric("governor_upstream_failures_total", reason="broken") == 0
    assert (status, body) == (200, source)


async def test_a_stream_that_ends_in_the_middle_of_an_event_is_handed_on_and_counted() -> None:
    """In good order as far as HTTP goes: to the client it looks as it would have without us."""
    source = STREAM[:-40]
    async with scripted(Answer.stream(source)) as upstream, proxied(upstream) as proxy:
        status, _, body = await proxy.chat(chat(stream=True))
        assert proxy.metric("governor_upstream_failures_total", reason="truncated") == 1
    assert (status, body) == (200, source)


@BOTH
async def test_an_answer_of_another_kind_goes_on(stream: bool) -> None:
    """The page of a proxy before the server, say, if the client's own request gets it, too."""
    page = Answer([HTML], 200, [("content-type", "text/html")])
    async with scripted(page, page) as upstream, proxied(upstream) as proxy:
        status, headers, body = await proxy.chat(chat(stream=stream))
        where = "unreadable" if stream else "response"
        assert proxy.metric("governor_fail_open_total", where=where) == 1
    assert (status, headers["content-type"], body) == (200, "text/html", HTML)


@BOTH
@pytest.mark.parametrize("status", [429, 503])
async def test_upstreams_own_refusals_go_on_and_are_counted(status: int, stream: bool) -> None:
    """With the time after which to come back, and without a second try of ours: clients have their own."""
    busy = Answer([b'{"error":{}}'], status, [JSON, ("retry-after", "7")])
    async with scripted(busy) as upstream, proxied(upstream) as proxy:
        got, headers, body = await proxy.chat(chat(stream=stream))
        assert proxy.metric("governor_upstream_failures_total", reason=f"status_{status}") == 1
    assert (got, headers["retry-after"], body) == (status, "7", b'{"error":{}}')
    assert len(upstream.received) == 1


async def test_a_probe_that_upstream_refuses_lets_the_call_pass() -> None:
    """What the governor asks on top may be what is too much."""
    calling = Generated(calls=[("c1", "lookup", "{}")])
    busy = Answer([b"{}"], 429, [JSON, ("retry-after", "7")])
    async with scripted(answer(calling, False), busy) as upstream, proxied(upstream) as proxy:
        status, headers, _ = await proxy.chat(chat())
        assert proxy.metric("governor_probe_failures_total", reason="status_429") == 1
    assert (status, headers["x-governor-decision"]) == (200, "pass")


@pytest.mark.parametrize("choices", ([None], ["x"], [{"logprobs": "x"}], [{"logprobs": {"content": [1]}}]))
async def test_a_chunk_that_is_none_takes_nothing_of_what_waits_with_it(choices: object) -> None:
    """It is held back with the calls before it, and they are the client's whatever it is."""
    chunks = Generated(calls=[("c1", "lookup", '{"country": "Norway"}')], top=None).chunks()
    odd = {**chunks[0], "choices": choices}
    source = stream_bytes([*chunks, odd])
    async with scripted(Answer.stream(source), answer(PLAIN, False)) as upstream, proxied(upstream) as proxy:
        _, _, body = await proxy.chat(chat(stream=True, logprobs=True, top_logprobs=2))
    assert chunks_of(body) == [*chunks, odd]


async def test_a_call_at_no_place_takes_nothing_of_what_is_withheld_with_it() -> None:
    """What is to be left out of it cannot be told: so nothing is, of any of them."""
    *chunks, end = Generated(calls=[("c1", "lookup", '{"country": "Norway"}')]).chunks()
    odd = {
        **chunks[0],
        "choices": [{"delta": {"tool_calls": [{"index": "x", "function": {"arguments": ""}}]}}],
    }
    source = [*chunks, odd, end]
    async with scripted(Answer.stream(stream_bytes(source))) as upstream, proxied(upstream) as proxy:
        _, _, body = await proxy.chat(chat(stream=True, logprobs=True, top_logprobs=20))
        assert len(upstream.received) == 1
        assert proxy.metric("governor_fail_open_total", where="decision") == 1
    assert chunks_of(body) == source
    assert body.endswith(b"data: [DONE]\n\n")


async def test_half_an_event_comes_after_what_was_held_back() -> None:
    """Before it, the two would be one event that nobody can read."""
    calling = Generated(content="Let me look.", calls=[("c1", "lookup", '{"country": "Norway"}')])
    *events, last = stream_bytes(calling.chunks(), done=False).removesuffix(b"\n\n").split(b"\n\n")
    sent = b"".join(event + b"\n\n" for event in events) + last[:30]
    request = chat(stream=True, logprobs=True, top_logprobs=20)
    async with scripted(Answer.stream(sent)) as upstream, proxied(upstream) as proxy:
        _, _, body = await proxy.chat(request)
    whole = sent.removesuffix(last[:30])
    assert chunks_of(body.removesuffix(last[:30])) == chunks_of(whole)
    assert body.endswith(b"\n\n" + last[:30])


@pytest.mark.parametrize("body", [HTML, b"{}", b"[1]", b'{"choices": [{}'])
@pytest.mark.parametrize("explain", ["0", "1", "tokens"])
async def test_a_body_that_cannot_be_read_stays_as_it_is(body: bytes, explain: str) -> None:
    """Also for a client that wants to be told what was decided: nothing was, and upstream's words are not
    lost."""
    async with scripted(Answer([body]), Answer([body])) as upstream, proxied(upstream) as proxy:
        assert (await proxy.chat(chat(), x_governor_explain=explain))[2] == body
