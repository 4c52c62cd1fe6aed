"""Mistakes that other gateways made with messages and streams, none of which may happen here.

Each test names the public issue in which the mistake was told.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from openai import AsyncOpenAI

from governor.exchange import Exchange
from governor.governance import Governance
from governor.spans import Markup
from governor.turn import Turn
from tests.server.bodies import answer, assembled, chunks_of, digest, parsed
from tests.server.scripted_upstream import EVENTS, Answer, Piece, proxied, scripted
from tests.wire.generated import Generated, chat, made, stream_bytes
from tests.wire.recorded import recorded

NORWAY = ("c1", "lookup", '{"country": "Norway"}')
SPAIN = ("c2", "lookup", '{"country": "Spain"}')
PERU = ("c5", "lookup", '{"country": "Peru"}')
BOOK = ("c3", "book", '{"city": "Oslo"}')
CALLING = Generated(content="Let me look.", calls=[NORWAY])
UNSURE = Answer.whole(Generated(content="Oslo", sure=0.4))
SURE = Answer.whole(Generated(content="Oslo", id="chatcmpl-2"))
BOTH = pytest.mark.parametrize("stream", [False, True])
EACH_MODE = pytest.mark.parametrize("mode", ["observe", "enforce"])


def tokens(generated: Generated) -> tuple[str, ...]:
    """The texts of all tokens, markers included."""
    content = generated.response()["choices"][0]["logprobs"]["content"]
    return tuple(token["token"] for token in content)


def served(chunks: list[dict[str, Any]]) -> Answer:
    return Answer.stream(stream_bytes(chunks))


async def test_logprobs_of_the_markers_of_a_call_reach_the_client() -> None:
    """vllm#37737: those of chunks that the tool parser swallows were lost. Streamed or not, a client that
    asks has one for each token."""
    answers = [answer(CALLING, True), UNSURE, answer(CALLING, False), UNSURE]
    async with scripted(*answers) as upstream, proxied(upstream) as proxy:
        streamed = assembled((await proxy.chat(chat(stream=True, logprobs=True, top_logprobs=20)))[2])
        whole = assembled((await proxy.chat(chat(logprobs=True, top_logprobs=20)))[2])
    assert streamed.tokens == whole.tokens == tokens(CALLING)
    assert "<tool_call>" in streamed.tokens


@EACH_MODE
async def test_a_server_that_loses_the_logprobs_of_markers_is_not_measured(mode: str) -> None:
    """vllm#37737, seen from the governor: without its marker a call's arguments look like free text. No
    number is better than a wrong one; the message arrives, and the loss is counted."""
    kept = [chunk for chunk in CALLING.chunks(usage=True) if chunk.get("usage") or _shows(chunk)]
    async with scripted(served(kept), UNSURE) as upstream, proxied(upstream, mode) as proxy:
        _, _, body = await proxy.chat(chat(stream=True))
        await proxy.until("governor_missing_logprobs_total", 1)
        (record,) = proxy.app.store.recent(9)
    assert (record.entropy_before, record.signals.get("segment_entropy")) == (None, None)
    assert assembled(body).calls == (NORWAY,)


def _shows(chunk: dict[str, Any]) -> bool:
    choice = chunk["choices"][0]
    return bool(choice["delta"] or choice["finish_reason"])


async def test_reasoning_without_logprobs_is_not_measured_by_its_content() -> None:
    """sglang#26778: `logprobs: null` on the chunks of the reasoning, values on those of the content. A mean
    over a part of the tokens would be another quantity in a stream than in a response."""
    thinking = replace(CALLING, reasoning="Hm, Norway.")
    source = thinking.chunks(usage=True)
    for chunk in source:
        for choice in chunk["choices"]:
            if choice["delta"].get("reasoning"):
                choice["logprobs"] = None
    async with scripted(served(source), UNSURE) as upstream, proxied(upstream) as proxy:
        _, _, body = await proxy.chat(chat(stream=True))
        (record,) = proxy.app.store.recent(9)
        assert proxy.metric("governor_missing_logprobs_total") == 1
    assert record.entropy_before is None
    assert (assembled(body).reasoning, assembled(body).calls) == ("Hm, Norway.", (NORWAY,))


async def test_the_logprobs_of_all_chunks_are_collected() -> None:
    """Menci/Floway#481: only those of the last chunk were kept. Also where one chunk carries several
    tokens."""
    one_by_one = Turn(4096, Markup())
    for chunk in CALLING.chunks():
        one_by_one.add_chunk(chunk)
    several = Turn(4096, Markup())
    for chunk in _in_threes(CALLING.chunks()):
        several.add_chunk(chunk)
    whole = Turn(4096, Markup())
    whole.add_response(CALLING.response())
    assert one_by_one.tokens == several.tokens == whole.tokens
    assert one_by_one.calls == several.calls == whole.calls


def _in_threes(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same stream with up to three tokens a chunk, as speculative decoding writes it."""
    merged: list[dict[str, Any]] = []
    for chunk in chunks[1:-1]:
        choice = chunk["choices"][0]
        last = merged[-1]["choices"][0] if merged else None
        same = last is not None and list(last["delta"]) == list(choice["delta"]) == ["content"]
        if last is not None and same and len(last["logprobs"]["content"]) < 3:
            last["delta"] = {"content": last["delta"]["content"] + choice["delta"]["content"]}
            last["logprobs"] = {"content": last["logprobs"]["content"] + choice["logprobs"]["content"]}
        else:
            merged.append({**chunk, "choices": [dict(choice)]})
    return [chunks[0], *merged, chunks[-1]]


@BOTH
async def test_a_client_that_asks_for_logprobs_of_a_stream_gets_them(stream: bool) -> None:
    """litellm#4898, litellm#3253: the two together broke the serializer. With the SDK that most clients
    use."""
    async with (
        scripted(answer(CALLING, stream), UNSURE) as upstream,
        proxied(upstream) as proxy,
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0) as client,
    ):
        request: dict[str, Any] = {**chat(), "logprobs": True, "top_logprobs": 2}
        got: list[str] = []
        if stream:
            async for chunk in await client.chat.completions.create(**request, stream=True):
                for choice in chunk.choices:
                    for token in (choice.logprobs and choice.logprobs.content) or ():
                        got.append(token.token)
                        assert len(token.top_logprobs) == 2
        else:
            logprobs = (await client.chat.completions.create(**request)).choices[0].logprobs
            assert logprobs is not None
            got += [token.token for token in logprobs.content or ()]
    assert tuple(got) == tokens(CALLING)


@pytest.mark.parametrize("later", [{"id": None}, {"id": ""}, {"id": "c1"}, {}])
async def test_arguments_are_collected_by_index(later: dict[str, Any]) -> None:
    """litellm#20711: nine tenths of the arguments were lost, since later deltas carry no id."""
    source = CALLING.chunks(usage=True)
    pieces = [call for chunk in source for call in _calls(chunk) if "name" not in call["function"]]
    for piece in pieces:
        piece.update(later)
    assert len(pieces) > 1
    async with scripted(served(source), UNSURE) as upstream, proxied(upstream) as proxy:
        _, _, body = await proxy.chat(chat(stream=True), x_governor_conversation="talk")
        (record,) = proxy.app.store.of_conversation("talk")
    assert assembled(body).calls == (NORWAY,)
    assert record.signature == 'lookup({"country":"Norway"})'


def _calls(chunk: dict[str, Any]) -> list[dict[str, Any]]:
    return [call for choice in chunk["choices"] for call in choice["delta"].get("tool_calls") or ()]


@BOTH
@EACH_MODE
async def test_parallel_calls_keep_their_own_index(stream: bool, mode: str) -> None:
    """litellm#33678: all had index 0, so that the arguments ran together and the next turn failed."""
    both = Generated(calls=[NORWAY, SPAIN, BOOK])
    async with scripted(answer(both, stream), UNSURE) as upstream, proxied(upstream, mode) as proxy:
        _, _, body = await proxy.chat(chat(stream=stream, tools=["lookup", "book"]))
    assert assembled(body).calls == (NORWAY, SPAIN, BOOK)


@pytest.mark.parametrize("id", ["c3", ""])
async def test_calls_that_upstream_mixes_up_are_not_judged(id: str) -> None:
    """lmdeploy#3412: each call came with index 0. An effectful call must not pass for a part of one that may
    be withheld: the governor steps aside, and the client gets upstream's own bytes."""
    source = replace(CALLING, calls=[BOOK, NORWAY]).chunks(usage=True)
    for call in [call for chunk in source for call in _calls(chunk)]:
        call["index"] = 0
        if call.get("id") == NORWAY[0]:
            call["id"] = id
    async with scripted(served(source), SURE) as upstream, proxied(upstream) as proxy:
        asking = chat(stream=True, tools=["lookup", "book"], logprobs=True, top_logprobs=20)
        _, _, body = await proxy.chat(asking)
        assert proxy.metric("governor_fail_open_total", where="chunk") == 1
    assert chunks_of(body) == source


@EACH_MODE
@pytest.mark.parametrize("mixed", [True, False], ids=["two calls at one place", "a new id with every piece"])
async def test_what_passes_unjudged_has_no_more_than_the_client_asked_for(mixed: bool, mode: str) -> None:
    """The governor steps aside in the middle of a stream, and what it asked for stays behind: with 20
    logprobs a token the client would read fifty times as much."""
    calling = replace(CALLING, calls=[BOOK, NORWAY])
    source = calling.chunks(usage=True)
    for number, call in enumerate(call for chunk in source for call in _calls(chunk)):
        if mixed:
            call["index"] = 0
        else:
            call["id"] = f"id-{number}"
            call["function"].setdefault("name", "book" if call["index"] == 0 else "lookup")
    async with scripted(served(source), SURE) as upstream, proxied(upstream, mode) as proxy:
        _, _, body = await proxy.chat(chat(stream=True, tools=["lookup", "book"]))
        assert proxy.metric("governor_fail_open_total", where="chunk") == 1
    for chunk in source:
        for choice in chunk["choices"]:
            choice["logprobs"] = None
    assert chunks_of(body) == [chunk for chunk in source if not chunk["choices"] or _shows(chunk)]


async def test_the_indices_of_a_whole_response_do_not_matter() -> None:
    """Some servers write index 0 into each call of a whole response, too."""
    response = Generated(calls=[BOOK, NORWAY]).response()
    for call in response["choices"][0]["message"]["tool_calls"]:
        call["index"] = 0
    async with scripted(Answer.whole(response), SURE) as upstream, proxied(upstream) as proxy:
        _, _, body = await proxy.chat(chat(tools=["lookup", "book"]))
    assert assembled(body).calls == (BOOK,)


@EACH_MODE
async def test_another_apis_stream_is_not_translated(mode: str) -> None:
    """litellm#25561: tool_use with an empty input, which the client retried for ever."""
    recording = recorded("messages_stream")
    async with (
        scripted(Answer.of(recording)) as upstream,
        proxied(upstream, mode) as proxy,
        proxy.client.post("/v1/messages", data=json.dumps(recording.request)) as response,
    ):
        assert digest(await response.read()) == digest(recording.body)


@BOTH
@EACH_MODE
async def test_text_and_a_call_in_one_message_both_arrive(stream: bool, mode: str) -> None:
    """litellm#17246: the call was dropped when there was text before it."""
    async with scripted(answer(CALLING, stream), UNSURE) as upstream, proxied(upstream, mode) as proxy:
        _, _, body = await proxy.chat(chat(stream=stream))
    message = assembled(body)
    assert (message.content, message.calls, message.finish_reason) == (
        "Let me look.",
        (NORWAY,),
        "tool_calls",
    )


@pytest.mark.parametrize("probe", [UNSURE, SURE], ids=["it passes", "it is withheld"])
@pytest.mark.parametrize("tools", [("lookup",), ("lookup", "book")], ids=["answer", "notice"])
async def test_a_stream_and_a_response_are_the_same_message(probe: Answer, tools: tuple[str, ...]) -> None:
    """litellm#35711: the stream ended with `stop` and the call as text, the response did not."""
    going_on = Generated(content="It is Oslo.", reasoning="Well.")
    thinking = replace(CALLING, reasoning="Norway?")
    messages = []
    for stream in (True, False):
        answers = [answer(thinking, stream), probe, answer(going_on, stream)]
        async with scripted(*answers) as upstream, proxied(upstream) as proxy:
            _, _, body = await proxy.chat(chat(stream=stream, tools=tools))
        messages.append(assembled(body))
    assert messages[0] == messages[1]


@BOTH
@EACH_MODE
@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "content_filter", "repetition"])
async def test_every_finish_reason_arrives(stream: bool, mode: str, reason: str) -> None:
    """bifrost#1821: one was lost, and the agent went round in circles. Also one that nobody knows yet."""
    ended = Generated(content="Oslo.", finish_reason=reason)
    async with scripted(answer(ended, stream)) as upstream, proxied(upstream, mode) as proxy:
        _, _, body = await proxy.chat(chat(stream=stream))
    assert assembled(body).finish_reason == reason


@BOTH
@EACH_MODE
@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
async def test_reasoning_arrives_under_either_name(stream: bool, mode: str, key: str) -> None:
    """litellm#20246, bifrost#974, lm-proxy#69: it was dropped. So does any field that nobody knows."""
    source = parsed(b"".join(p for p in answer(_THINKING, stream).pieces if isinstance(p, bytes)))
    for body in source if stream else [source]:
        body["x_new"] = {"a": [1, None]}
        for choice in body["choices"]:
            message = choice["delta" if stream else "message"]
            if message.get("reasoning"):
                message[key] = message.pop("reasoning")
            message["x_newer"] = 1.5
            choice["x_newest"] = "ø"
    upstreams = served(source) if stream else Answer.whole(source)
    async with scripted(upstreams, UNSURE) as upstream, proxied(upstream, mode) as proxy:
        _, _, received = await proxy.chat(chat(stream=stream))
    assert parsed(received) == source


_THINKING = replace(CALLING, reasoning="Hm, Norway.", top=None)


async def test_a_stream_is_neither_compressed_nor_collected() -> None:
    """dstack#4269, c8s#140, sub2api#4691, starlette#2753: a buffer on the way turned a stream into a lump.
    Each chunk is with the client before upstream has sent the next, and the headers ask the others on the way
    to do the same."""
    events = [stream_bytes([chunk], done=False) for chunk in CALLING.chunks()[:6]]
    next_one = [asyncio.Event() for _ in events]
    # The role, and the head with it, wait for the first content.
    next_one[0].set()
    pieces: list[Piece] = [piece for pair in zip(events, next_one, strict=True) for piece in pair]
    source = Answer([*pieces, b"data: [DONE]\n\n"], 200, [EVENTS], length=False)
    texts = [chunk["choices"][0]["delta"].get("content") for chunk in CALLING.chunks()[:6]]
    async with (
        scripted(source) as upstream,
        proxied(upstream) as proxy,
        proxy.client.post(
            "/v1/chat/completions", json=chat(stream=True), headers={"accept-encoding": "gzip, br"}
        ) as response,
    ):
        assert response.headers["x-accel-buffering"] == "no"
        assert "no-transform" in response.headers["cache-control"]
        assert "content-encoding" not in response.headers
        for text, released in zip(texts, next_one, strict=True):
            seen = ""
            while text and text.strip() and text not in seen:
                seen += (await response.content.readany()).decode()
            released.set()
        assert b"[DONE]" in await response.content.read()
    assert upstream.received[0].header("accept-encoding") is None


async def test_reasoning_and_content_do_not_wait_for_the_end() -> None:
    """claude-code-local#39, SRouter#104: to parse calls the whole response was held back. Here only the calls
    are."""
    chunks = replace(CALLING, reasoning="Hm, Norway.").chunks()
    begin = next(place for place, chunk in enumerate(chunks) if _calls(chunk))
    call = asyncio.Event()
    pieces: list[Piece] = [
        stream_bytes(chunks[: begin - 3], done=False),
        call,
        stream_bytes(chunks[begin - 3 :]),
    ]
    async with (
        scripted(Answer(pieces, 200, [EVENTS], length=False), UNSURE) as upstream,
        proxied(upstream) as proxy,
        proxy.client.post("/v1/chat/completions", json=chat(stream=True)) as response,
    ):
        early = b""
        while b"look." not in early:
            early += await response.content.readany()
        assert assembled(early).reasoning == "Hm, Norway."
        assert not upstream.received[1:]
        call.set()
        assert b"tool_calls" in await response.content.read()


@BOTH
async def test_a_call_and_its_result_stay_a_pair(stream: bool) -> None:
    """openclaw#10700, langchain#34159, gptme#3293: pruning or blocking left a result without its call, or the
    reverse, and the next request was refused. After a notice, a dropped call and a stub, every id that goes
    upstream is there twice."""
    mixed = Generated(calls=[PERU, BOOK])
    question = {"role": "user", "content": "What is the capital of Norway?"}
    history = [question, *made(SPAIN, results=["Madrid. " * 200]), *made(("c4", "lookup", "{}"))]
    # A notice, and the model goes on; a dropped call beside one that goes out.
    ended = answer(Generated(content="Ok."), stream)
    answers = [answer(CALLING, stream), SURE, answer(mixed, stream), SURE, ended]
    pruning = {"policy": "age", "min_tokens": 8, "batch_tokens": 0, "keep_last": 0}
    async with scripted(*answers) as upstream, proxied(upstream, pruning=pruning) as proxy:
        body = chat(*history, stream=stream, tools=["lookup", "book"])
        first = assembled((await proxy.chat(body))[2])
        assert first.calls == (BOOK,)
        await proxy.chat(chat(*history, *made(*first.calls), stream=stream, tools=["lookup", "book"]))
    assert len(upstream.received) == 5
    stubs = 0
    for request in upstream.received:
        messages = request.json["messages"]
        asked = [call["id"] for message in messages for call in message.get("tool_calls") or ()]
        told = [message["tool_call_id"] for message in messages if message["role"] == "tool"]
        assert asked == told
        stubs += sum("Madrid" not in message["content"] for message in messages if message["role"] == "tool")
    assert stubs


def test_an_exchange_that_breaks_half_way_returns_what_it_held() -> None:
    """All of the above rest on it: nothing that came in is lost when the governor steps aside."""
    body = chat(stream=True, logprobs=True, top_logprobs=20)
    for place in range(len(CALLING.chunks())):
        exchange = Exchange(body, Governance(vocab_size=4096))
        source = CALLING.chunks()[:place]
        out = [sent for chunk in source for sent in exchange.receive(chunk)]
        assert [*out, *exchange.interrupted().chunks] == source
