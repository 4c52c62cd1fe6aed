"""Whatever upstream refuses of what the governor adds, in whichever way: the client's own request counts."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import pytest

from governor_server.refusals import PAUSE_S, TIMES, TRIAL_S, Addition, Key, Refusals
from tests.server.bodies import answer, assembled, chunks_of, parsed
from tests.server.scripted_upstream import (
    ABORT,
    CLOSE,
    EVENTS,
    HANG,
    JSON,
    Answer,
    Proxied,
    Received,
    ScriptedUpstream,
    proxied,
    scripted,
)
from tests.wire.generated import Generated, chat, made, stream_bytes

NORWAY = ("c1", "lookup", '{"country": "Norway"}')
CALLING = Generated(content="Let me look.", calls=[NORWAY])
OSLO = Generated(content="Oslo")
ERROR = b'{"error": {"message": "no logprobs here", "type": "BadRequestError", "code": 400}}'
ROLE = stream_bytes(CALLING.chunks()[:1], done=False)
BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
MODES = pytest.mark.parametrize("mode", ["observe", "enforce"])

STATUSES = (400, 402, 403, 404, 405, 408, 409, 413, 418, 422, 424, 425, 451, 500, 501, 502, 503, 504, 529)
REFUSED: dict[str, Answer] = {f"status {status}": Answer([ERROR], status) for status in STATUSES}
REFUSED |= {
    "a 500 that says when to come back": Answer([ERROR], 500, [JSON, ("retry-after", "7")]),
    "an error as the answer": Answer([ERROR]),
    "an error in a stream": Answer.stream(b"data: " + ERROR + b"\n\ndata: [DONE]\n\n"),
    "an error with other spaces": Answer.stream(b'data:{ "error" :{"message":"no"}}\n\n'),
    "a message that ends in an error": Answer.whole(
        {
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": None}, "finish_reason": "error"}
            ]
        }
    ),
    "a stream that ends in an error": Answer.stream(
        b'data: {"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": "error"}]}\n\n'
    ),
    "an error in a field of its own": Answer.stream(b'error: {"message": "no"}\n\n'),
    "a named error": Answer.stream(b'event: error\ndata: {"message": "no"}\n\n'),
    "no choices": Answer([b'{"id": "x", "choices": []}']),
    "choices of null": Answer([b'{"id": "x", "choices": null}']),
    "no message": Answer([b'{"choices": [{"index": 0, "finish_reason": "stop"}]}']),
    "nothing": Answer([b""]),
    "no JSON": Answer([b"{"]),
    "a page": Answer([b"<html>404</html>"], 200, [("content-type", "text/html")]),
    "a stream of nothing": Answer.stream(b"data: [DONE]\n\n"),
    "a stream that ends after the role": Answer.stream(ROLE),
    "an event that is no JSON": Answer.stream(b"data: {\n\n"),
    "a reset": Answer(before=[ABORT]),
    "an end in the head": Answer(before=[b"HTTP/1.1 200 OK\r\ncontent-ty", CLOSE]),
    "garbage": Answer(before=[b"garbage\r\n\r\n", CLOSE]),
    "a reset in the body": Answer([b'{"choices"', ABORT, b"}"]),
    "a reset after the role": Answer([ROLE, ABORT], 200, [EVENTS], length=False),
    "unknown compression": Answer([b"\x1b\x03"], 200, [JSON, ("content-encoding", "br")]),
    "broken compression": Answer([b"abc"], 200, [JSON, ("content-encoding", "gzip")]),
    "silence": Answer(before=[HANG]),
    "silence in a stream": Answer([ROLE, HANG], 200, [EVENTS], length=False),
}
WITH_HEAD = {
    "an error after a comment": Answer.stream(b": thinking\n\ndata: " + ERROR + b"\n\n"),
    "an error after the role": Answer.stream(ROLE + b"data: " + ERROR + b"\n\n"),
    "an end after a comment": Answer.stream(b": thinking\n\n"),
    "a reset after a comment": Answer([b": thinking\n\n", ABORT], 200, [EVENTS], length=False),
}


def plain(generated: Generated, stream: bool) -> Answer:
    """What upstream answers to the client's own request."""
    return answer(replace(generated, top=None), stream)


def body_of(source: Answer) -> bytes:
    """All that it sends."""
    return b"".join(piece for piece in source.pieces if isinstance(piece, bytes))


def own_request(stream: bool) -> bytes:
    """A client's request in bytes that no library would write again."""
    return b'{ "stream":' + json.dumps(stream).encode() + b", " + json.dumps(chat()).encode()[1:] + b"\n"


async def post(proxy: Proxied, body: bytes) -> tuple[int, bytes]:
    """Status and body of an answer to these very bytes."""
    headers = {"content-type": "application/json", "accept-encoding": "gzip"}
    async with proxy.client.post("/v1/chat/completions", data=body, headers=headers) as response:
        return response.status, await response.read()


def decided(proxy: Proxied) -> set[tuple[str, str]]:
    """What was decided on the calls so far, and why."""
    records = proxy.app.store.recent(100)
    return {(record.decision["action"], record.decision["reason"]) for record in records}


@BOTH
@MODES
@pytest.mark.parametrize("how", REFUSED)
async def test_the_clients_own_request_is_asked_instead(how: str, mode: str, stream: bool) -> None:
    """Once, byte for byte; and the client gets the answer to it, byte for byte."""
    own = own_request(stream)
    expected = plain(CALLING, stream)
    async with (
        scripted(REFUSED[how], expected) as upstream,
        proxied(upstream, mode, upstream={"read_timeout_s": 0.5}) as proxy,
    ):
        assert await post(proxy, own) == (200, body_of(expected))
        added, again = upstream.received
        assert proxy.metric("governor_fail_open_total", where="refused") == 1
        assert decided(proxy) == {("pass", "upstream_refuses")}
        assert proxy.metric("governor_missing_logprobs_total") == 0
    assert added.json["logprobs"] and again.body == own
    assert again.header("accept-encoding") == "gzip"


@MODES
@pytest.mark.parametrize("how", WITH_HEAD)
async def test_an_error_before_any_content_is_not_the_clients(how: str, mode: str) -> None:
    """Comments go on as they come; what was held back behind them is forgotten."""
    own, expected = own_request(True), body_of(plain(CALLING, True))
    async with scripted(WITH_HEAD[how], plain(CALLING, True)) as upstream, proxied(upstream, mode) as proxy:
        status, body = await post(proxy, own)
    assert (status, body.removeprefix(b": thinking\n\n")) == (200, expected)
    assert [request.body == own for request in upstream.received] == [False, True]


@MODES
@pytest.mark.parametrize("unasked", [False, True])
async def test_the_own_answer_is_not_compressed_where_the_head_is_out(mode: str, unasked: bool) -> None:
    """The head cannot say so any more; and where upstream compresses all the same, it is unpacked."""
    seen, expected = asyncio.Event(), body_of(plain(CALLING, True))
    late = Answer([b": thinking\n\n", seen, b"data: " + ERROR + b"\n\n"], 200, [EVENTS], length=False)
    packed = Answer([gzip.compress(expected)], 200, [EVENTS, ("content-encoding", "gzip")], length=False)
    body = b""
    async with (
        scripted(late, packed if unasked else plain(CALLING, True)) as upstream,
        proxied(upstream, mode) as proxy,
        proxy.client.post(
            "/v1/chat/completions", json=chat(stream=True), headers={"accept-encoding": "gzip"}
        ) as response,
    ):
        while piece := await response.content.readany():
            body += piece
            seen.set()
    assert body == b": thinking\n\n" + expected
    assert upstream.received[1].header("accept-encoding") in (None, "identity")


@MODES
async def test_an_error_of_the_clients_own_request_is_told_in_a_stream_that_began(mode: str) -> None:
    """Its status went out with the first comment, so the error stands in an event, as vLLM would tell it."""
    seen = asyncio.Event()
    late = Answer([b": thinking\n\n", seen, b"data: " + ERROR + b"\n\n"], 200, [EVENTS], length=False)
    body = b""
    async with (
        scripted(late, Answer([ERROR], 400)) as upstream,
        proxied(upstream, mode) as proxy,
        proxy.client.post("/v1/chat/completions", json=chat(stream=True)) as response,
    ):
        while piece := await response.content.readany():
            body += piece
            seen.set()
    assert body.startswith(b": thinking\n\n") and chunks_of(body) == [json.loads(ERROR)]
    assert body.endswith(b"data: [DONE]\n\n")


@MODES
async def test_the_own_answer_goes_on_whatever_it_calls_itself(mode: str) -> None:
    """In a stream whose head is out: a client that reads events does not look at their type."""
    seen, expected = asyncio.Event(), body_of(plain(CALLING, True))
    late = Answer([b": thinking\n\n", seen, b"data: " + ERROR + b"\n\n"], 200, [EVENTS], length=False)
    body = b""
    async with (
        scripted(late, Answer([expected], 200, [("content-type", "text/plain")])) as upstream,
        proxied(upstream, mode) as proxy,
        proxy.client.post("/v1/chat/completions", json=chat(stream=True)) as response,
    ):
        while piece := await response.content.readany():
            body += piece
            seen.set()
    assert body == b": thinking\n\n" + expected


@BOTH
@MODES
@pytest.mark.parametrize("early", [ROLE, b"event: x\n\n", ROLE + ROLE])
async def test_an_own_error_keeps_its_status_until_something_was_told(
    early: bytes, mode: str, stream: bool
) -> None:
    """What waits for the first word has not sent the head."""
    refusing = Answer.stream(early + b"data: " + ERROR + b"\n\n")
    async with scripted(refusing, Answer([ERROR], 400)) as upstream, proxied(upstream, mode) as proxy:
        assert await post(proxy, own_request(stream)) == (400, ERROR)


@BOTH
@MODES
@pytest.mark.parametrize(
    "busy",
    [
        Answer([ERROR], 401),
        Answer([ERROR], 429, [JSON, ("retry-after", "7")]),
        Answer([ERROR], 503, [JSON, ("retry-after", "7")]),
        Answer([b""], 307, [("location", "/elsewhere")]),
    ],
    ids=lambda busy: str(busy.status),
)
async def test_what_any_request_would_get_is_not_asked_again(busy: Answer, mode: str, stream: bool) -> None:
    """A key, a limit, an overload, another place: asking twice would only add to it."""
    async with scripted(busy) as upstream, proxied(upstream, mode) as proxy:
        body = chat(stream=stream)
        async with proxy.client.post("/v1/chat/completions", json=body, allow_redirects=False) as got:
            assert (got.status, await got.read()) == (busy.status, body_of(busy))
    assert len(upstream.received) == 1


@BOTH
@MODES
async def test_an_error_that_breaks_off_is_not_continued_with_another_answer(mode: str, stream: bool) -> None:
    """The client has a part of what it would have got anyway, and only that."""
    seen = asyncio.Event()
    broken = Answer([ERROR[:9], seen, ABORT], 429, length=False)
    body = b""
    async with scripted(broken, plain(CALLING, stream)) as upstream, proxied(upstream, mode) as proxy:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with proxy.client.post("/v1/chat/completions", json=chat(stream=stream)) as response:
                while piece := await response.content.readany():
                    body += piece
                    seen.set()
    assert (response.status, body) == (429, ERROR[:9])
    assert len(upstream.received) == 1


@BOTH
async def test_an_error_that_the_client_would_have_had_is_its_own(stream: bool) -> None:
    """The answer to its own request, after two requests and no more."""
    answers = (
        Answer([b'{"error": "about what was added"}'], 400),
        Answer([ERROR], 404, [JSON, ("x-own", "1")]),
    )
    async with scripted(*answers) as upstream, proxied(upstream) as proxy:
        status, headers, body = await proxy.chat(chat(stream=stream))
        assert proxy.metric("governor_fail_open_total", where="refused") == 0
    assert (status, headers["x-own"], body) == (404, "1", ERROR)


async def test_a_client_that_asked_for_all_of_it_is_asked_once() -> None:
    """Nothing was added to its request, so that the refusal is about its own."""
    async with scripted(Answer([ERROR], 400)) as upstream, proxied(upstream) as proxy:
        assert (await proxy.chat(chat(logprobs=True, top_logprobs=20)))[0] == 400
    assert len(upstream.received) == 1


@BOTH
async def test_content_that_was_shown_is_not_asked_for_twice(stream: bool) -> None:
    """An error after the first word is upstream's, as it was."""
    events = stream_bytes(CALLING.chunks()[:3], done=False) + b"data: " + ERROR + b"\n\n"
    async with scripted(Answer.stream(events)) as upstream, proxied(upstream) as proxy:
        _, _, body = await proxy.chat(chat(stream=True))
    assert chunks_of(body) == [*replace(CALLING, top=None).chunks()[:3], json.loads(ERROR)]


# Upstreams that refuse a kind of request every time


@dataclass(slots=True)
class Picky(ScriptedUpstream):
    """Answers what a model would, but for the additions that it `refuses`, to which it gives `refusal`."""

    refuses: frozenset[Addition] = frozenset()
    refusal: Answer = field(default_factory=lambda: Answer([ERROR], 400))
    asked_for: list[Addition | None] = field(default_factory=list)

    def answer_to(self, request: Received) -> Answer:
        body = request.json
        kind = added(body)
        self.asked_for.append(kind)
        if kind in self.refuses:
            return self.refusal
        if kind in (Addition.PROBE, Addition.ANSWER, Addition.CONTINUATION):
            return answer(OSLO, bool(body.get("stream")))
        return answer(
            CALLING if body.get("logprobs") else replace(CALLING, top=None), bool(body.get("stream"))
        )


def added(body: Mapping[str, Any]) -> Addition | None:
    """Which of the governor's requests this is; None for the client's own."""
    if body.get("tool_choice") == "none":
        return Addition.PROBE if body.get("max_tokens") == 48 else Addition.ANSWER
    if "Withheld" in str(body["messages"]):
        return Addition.CONTINUATION
    return Addition.LOGPROBS if body.get("logprobs") else None


class Clock:
    """Seconds that pass when they are told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def picky(
    *refuses: Addition, mode: str = "enforce", **sections: Any
) -> AsyncIterator[tuple[Picky, Proxied, Clock]]:
    """An upstream that refuses, a proxy in front of it, and the clock of the proxy's memory."""
    async with scripted(kind=Picky) as upstream, proxied(upstream, mode, **sections) as proxy:
        assert isinstance(upstream, Picky)
        upstream.refuses = frozenset(refuses)
        clock = proxy.app.proxy.refusals.clock = Clock()
        yield upstream, proxy, clock


QUESTION = {"role": "user", "content": "What is the capital of Norway?"}
REPEATED = [QUESTION, *made(("c0", *NORWAY[1:]))]


def asking_for(addition: Addition, stream: bool) -> dict[str, Any]:
    """A request on whose way the governor adds this."""
    if addition in (Addition.LOGPROBS, Addition.PROBE):
        return chat(stream=stream)
    # A repeated call needs no probe; beside a tool with effects no answer is forced.
    tools = ["lookup", "book"] if addition is Addition.CONTINUATION else ["lookup"]
    return chat(*REPEATED, tools=tools, stream=stream)


@BOTH
@pytest.mark.parametrize(
    ("addition", "mode"),
    [
        (Addition.LOGPROBS, "observe"),
        (Addition.LOGPROBS, "enforce"),
        (Addition.PROBE, "observe"),
        (Addition.PROBE, "enforce"),
        (Addition.CONTINUATION, "enforce"),
        (Addition.ANSWER, "enforce"),
    ],
)
async def test_what_is_refused_again_and_again_is_left_out_for_a_while(
    addition: Addition, mode: str, stream: bool
) -> None:
    """The client always gets its call; after some refusals in a row upstream is asked no more for what it
    refuses, then tried once, and governed again when it takes it."""
    async with picky(addition, mode=mode) as (upstream, proxy, clock):
        expected = parsed(body_of(plain(CALLING, stream)))

        async def asked() -> int:
            """How often the addition was asked for on the way of one more request."""
            before = upstream.asked_for.count(addition)
            status, _, body = await proxy.chat(asking_for(addition, stream))
            assert status == 200
            if addition in upstream.refuses:
                assert parsed(body) == expected
            await reviewed(proxy)
            return upstream.asked_for.count(addition) - before

        assert [await asked() for _ in range(TIMES + 2)] == [1] * TIMES + [0, 0]
        (told,) = proxy.app.proxy.refusals.report()
        assert (told["addition"], told["reason"], told["left_out"]) == (addition, "status_400", True)
        assert proxy.metric("governor_paused_additions") == 1
        labels = {"addition": addition, "reason": "status_400", "model": "atlas"}
        assert proxy.metric("governor_refused_additions_total", **labels) == TIMES
        clock.now += PAUSE_S
        assert [await asked(), await asked()] == [1, 0]
        clock.now += 2 * PAUSE_S
        upstream.refuses = frozenset()
        assert [await asked(), await asked()] == [1, 1]
        assert proxy.metric("governor_paused_additions") == 0


async def reviewed(proxy: Proxied) -> None:
    """Returns once nothing runs beside the requests."""
    while reviews := proxy.app.proxy.reviews:
        await next(iter(reviews))


@BOTH
async def test_what_is_remembered_costs_one_request(stream: bool) -> None:
    """The client's own, byte for byte, with the answer to it; its calls pass for a reason of their own."""
    async with picky(Addition.LOGPROBS) as (upstream, proxy, _):
        for _ in range(TIMES):
            await proxy.chat(chat())
        before = len(upstream.received)
        own = own_request(stream)
        assert await post(proxy, own) == (200, body_of(plain(CALLING, stream)))
        assert [request.body for request in upstream.received[before:]] == [own]
        assert decided(proxy) == {("pass", "upstream_refuses")}


async def test_an_operator_reads_what_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """In one warning, and in the JSON of the governor's own route."""
    with caplog.at_level(logging.WARNING, "governor_server.refusals"):
        async with picky(Addition.LOGPROBS) as (upstream, proxy, _):
            for _ in range(TIMES + 3):
                await proxy.chat(chat())
            async with proxy.client.get("/governor/refusals") as response:
                (told,) = (await response.json())["refusals"]
    assert told == {
        "tenant": "",
        "model": "atlas",
        "upstream": upstream.url,
        "addition": "logprobs",
        "reason": "status_400",
        "left_out": True,
        "tried_again_in_s": PAUSE_S,
    }
    (line,) = [record.getMessage() for record in caplog.records if record.name == "governor_server.refusals"]
    assert upstream.url in line and "atlas" in line and "doctor" in line


@pytest.mark.parametrize("status", [400, 404, 413])
async def test_bad_requests_of_a_client_switch_nothing_off(status: int) -> None:
    """Upstream refuses them with and without what was added, or for their size."""
    plainly = Answer([ERROR], status) if status != 413 else plain(CALLING, False)
    answers = [Answer([ERROR], status), plainly] * (TIMES + 1)
    async with scripted(*answers) as upstream, proxied(upstream) as proxy:
        for _ in range(TIMES + 1):
            await proxy.chat(chat())
        assert proxy.metric("governor_paused_additions") == 0
    assert len(upstream.received) == 2 * (TIMES + 1)


async def test_an_upstream_that_fails_anyway_is_not_asked_twice_for_long() -> None:
    """What a request costs it is bounded: after some in vain, one is one again."""
    answers = [Answer([ERROR], 500)] * (2 * TIMES + 2)
    async with scripted(*answers) as upstream, proxied(upstream) as proxy:
        assert {(await proxy.chat(chat()))[0] for _ in range(TIMES + 2)} == {500}
    assert len(upstream.received) == 2 * TIMES + 2


async def test_silence_is_not_waited_for_twice() -> None:
    """It takes the whole time-out each time, so once is enough."""
    answers = [Answer(before=[HANG]), *[plain(CALLING, False)] * 2]
    async with scripted(*answers) as upstream, proxied(upstream, upstream={"read_timeout_s": 0.5}) as proxy:
        assert [(await proxy.chat(chat()))[0] for _ in range(2)] == [200, 200]
    assert len(upstream.received) == 3


# The memory


def key(tenant: str = "", model: str = "atlas", upstream: str = "a") -> Key:
    return Key(tenant, model, upstream, Addition.LOGPROBS)


@pytest.mark.parametrize("other", [key(tenant="b"), key(model="b"), key(upstream="b")])
def test_tenants_models_and_servers_are_apart(other: Key) -> None:
    """What one of them is refused says nothing of the next."""
    refusals = Refusals(Clock())
    for _ in range(TIMES):
        refusals.refused(key(), "status_400")
    assert not refusals.allows(key())
    assert refusals.allows(other)


def test_one_acceptance_outweighs_the_refusals_before_it() -> None:
    """Odd requests among good ones switch nothing off."""
    refusals = Refusals(Clock())
    for _ in range(10):
        for _ in range(TIMES - 1):
            refusals.refused(key(), "status_400")
        refusals.accepted(key())
    assert refusals.allows(key())


def test_after_a_pause_one_request_tries_it_again() -> None:
    """The others wait for what comes of it, but not for one that never tells; the pauses grow."""
    clock = Clock()
    refusals = Refusals(clock)
    for _ in range(TIMES):
        refusals.refused(key(), "status_400")
    clock.now += PAUSE_S
    assert [refusals.allows(key()) for _ in range(3)] == [True, False, False]
    clock.now += TRIAL_S
    assert [refusals.allows(key()) for _ in range(3)] == [True, False, False]
    refusals.refused(key(), "status_400")
    clock.now += PAUSE_S
    assert not refusals.allows(key())
    clock.now += PAUSE_S
    assert refusals.allows(key())
    refusals.accepted(key())
    assert [refusals.allows(key()) for _ in range(3)] == [True, True, True]


def test_the_memory_is_bounded() -> None:
    """A client that makes up names of models fills nothing."""
    refusals = Refusals(Clock(), most=10)
    for number in range(100):
        refusals.refused(key(model=str(number)), "status_500")
    assert len(refusals.report()) == 10


# What comes compressed though nobody asked


def deflated(body: bytes) -> bytes:
    """Without the header that `deflate` should have."""
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


@BOTH
@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", deflated),
        ("GZip", gzip.compress),
        ("gzip", bytes),
    ],
)
async def test_what_comes_compressed_unasked_is_read(
    name: str, pack: Callable[[bytes], bytes], stream: bool
) -> None:
    """And reaches the client without what was added, and unpacked; also where it only says that it is."""
    source = answer(CALLING, stream)
    packed = pack(body_of(source))
    halves = [packed[:50], packed[50:]]
    reply = Answer(halves, 200, [*source.headers, ("content-encoding", name)], length=source.length)
    async with scripted(reply) as upstream, proxied(upstream, "observe", observe={"probe": False}) as proxy:
        status, headers, body = await proxy.chat(chat(stream=stream))
    assert status == 200 and "content-encoding" not in headers
    assert parsed(body) == parsed(body_of(plain(CALLING, stream)))


@BOTH
async def test_a_body_that_unpacks_to_a_huge_one_meets_the_limits(stream: bool) -> None:
    """It goes on as it comes, in pieces, and is never held as a whole."""
    huge = Generated(content="a" * 20_000)
    source = answer(huge, stream)
    packed = Answer(
        [gzip.compress(body_of(source))], 200, [*source.headers, ("content-encoding", "gzip")], length=False
    )
    limits = {"max_held_bytes": 100_000}
    async with scripted(packed) as upstream, proxied(upstream, limits=limits) as proxy:
        _, _, body = await proxy.chat(chat(stream=stream))
        assert proxy.metric("governor_fail_open_total", where="held_bytes") == (not stream)
    assert assembled(body).content == huge.content
    assert b'"logprobs":{' not in body.replace(b" ", b"")
