"""Mistakes that other gateways made with connections, none of which may happen here.

Each test names the public issue in which the mistake was told.
"""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc

import pytest

from tests.server.bodies import answer, digest
from tests.server.departures import leave
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
from tests.server.waiting import PATIENCE_S
from tests.wire.generated import Generated, chat, stream_bytes

CALLING = Generated(content="Let me look.", calls=[("c1", "lookup", '{"country": "Norway"}')])
PLAIN = Generated(content="Oslo.")
HALF = Answer([stream_bytes(CALLING.chunks()[:8], done=False), HANG], 200, [EVENTS], length=False)
WHOLE = Answer([json.dumps(PLAIN.response()).encode()])
BUSY = Answer([b'{"error":{"code":429}}'], 429, [JSON, ("retry-after", "7")])


@pytest.mark.parametrize(
    ("answers", "stream", "requests"),
    [
        ([Answer(before=[HANG])], True, 1),
        ([HALF], True, 1),
        ([Answer(before=[HANG])], False, 1),
        ([Answer([b"{", HANG, b"}"])], False, 1),
        ([answer(CALLING, True), Answer(before=[HANG])], True, 2),
        ([answer(CALLING, False), Answer(before=[HANG])], False, 2),
    ],
    ids=[
        "before a stream",
        "in a stream",
        "before a response",
        "in it",
        "probe of a stream",
        "of a response",
    ],
)
async def test_a_client_that_leaves_frees_its_place_upstream(
    answers: list[Answer], stream: bool, requests: int
) -> None:
    """litellm#13774, #3341, #37140: the engine went on for nobody, for half an hour. It learns of it within a
    second, in every phase, and nothing runs on in the proxy."""
    async with scripted(*answers) as upstream, proxied(upstream) as proxy:
        await leave(proxy, upstream, chat(stream=stream), requests)
        await proxy.until("governor_running_requests", 0)


async def test_a_client_that_leaves_while_it_waits_for_its_turn_is_forgotten() -> None:
    """The same, before upstream was asked at all: it is never asked, and the place in the queue is free."""
    one = {"max_concurrent_requests": 1}
    async with scripted(Answer(before=[HANG])) as upstream, proxied(upstream, limits=one) as proxy:
        running = asyncio.create_task(proxy.chat(chat()))
        await upstream.asked.wait()
        waiting = asyncio.create_task(proxy.chat(chat()))
        await proxy.until("governor_waiting_requests", 1)
        waiting.cancel()
        await proxy.until("governor_waiting_requests", 0)
        running.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
    assert len(upstream.received) == 1


@pytest.mark.parametrize("governed", [True, False])
async def test_a_long_stream_arrives_whole_at_a_slow_reader(governed: bool) -> None:
    """production-stack#952: the connection to upstream was closed before the body was handed on. Whole, in
    order, nothing twice."""
    chunks = Generated(content="word " * 400, top=20).chunks(usage=True)
    body = stream_bytes(chunks)
    pieces: list[Piece] = [body[start : start + 9973] for start in range(0, len(body), 9973)]
    asking = chat(stream=True, logprobs=True, top_logprobs=20, tools=["lookup"] if governed else [])
    received = bytearray()
    async with (
        scripted(Answer(pieces, 200, [EVENTS], length=False)) as upstream,
        proxied(upstream, "observe") as proxy,
        proxy.client.post("/v1/chat/completions", json=asking) as response,
    ):
        await asyncio.sleep(0.2)
        while piece := await response.content.read(4096):
            received += piece
    assert digest(bytes(received)) == digest(body)


@pytest.mark.parametrize("last", [ABORT, CLOSE])
async def test_a_stale_connection_is_replaced_once(last: Piece) -> None:
    """bifrost#1305: upstream closed an idle connection just when the next request was sent on it."""
    answers = [answer(PLAIN, False), Answer(before=[last]), answer(PLAIN, False)]
    async with scripted(*answers) as upstream, proxied(upstream) as proxy:
        assert [(await proxy.chat(chat()))[0] for _ in range(2)] == [200, 200]
    assert (len(upstream.received), upstream.connections) == (3, 3)  # one for the health check


async def test_a_request_is_not_repeated_without_end() -> None:
    """The second connection is a new one: what fails there fails because of the request, or of upstream."""
    answers = [answer(PLAIN, False), Answer(before=[CLOSE]), Answer(before=[CLOSE])]
    async with scripted(*answers) as upstream, proxied(upstream) as proxy:
        assert [(await proxy.chat(chat(tools=[])))[0] for _ in range(2)] == [200, 502]
    assert len(upstream.received) == 3


@pytest.mark.parametrize(
    ("answers", "stale_s"),
    [
        ([Answer(before=[CLOSE])], PATIENCE_S),
        ([answer(PLAIN, False), Answer(before=[b"HTTP/1.1 200 O", CLOSE])], PATIENCE_S),
        ([answer(PLAIN, False), Answer(before=[0.1, CLOSE])], 0.05),
    ],
    ids=["a new connection", "a byte came", "upstream was at work"],
)
async def test_what_upstream_may_have_executed_is_not_repeated(
    answers: list[Answer], stale_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that upstream took and died of would end it a second time. Where it may have died of what was
    added, the client's own request is another one."""
    monkeypatch.setattr("governor_server.upstream.STALE_S", stale_s)
    async with scripted(*answers) as upstream, proxied(upstream) as proxy:
        statuses = [(await proxy.chat(chat(tools=[])))[0] for _ in answers]
    assert statuses[-1] == 502
    assert len(upstream.received) == len(answers)


async def test_a_flood_waits_for_its_turn() -> None:
    """production-stack#448: the router fell over at a thousand requests at once. So many run, the others
    wait, and upstream never has more connections than it was meant to."""
    many, limits = 60, {"max_concurrent_requests": 4}
    async with scripted(*[WHOLE] * many) as upstream, proxied(upstream, limits=limits) as proxy:
        answers = await asyncio.gather(*(proxy.chat(chat()) for _ in range(many)))
        assert {status for status, _, _ in answers} == {200}
        assert proxy.metric("governor_running_requests") == proxy.metric("governor_waiting_requests") == 0
    assert len(upstream.received) == many
    assert upstream.connections <= 5  # and one for the health check


async def test_streams_and_their_probes_share_few_connections() -> None:
    """A stream that has said its last gives its connection back before anything else is asked."""
    answers = [answer(CALLING, True), answer(Generated(content="Oslo", sure=0.4), False)] * 3
    async with scripted(*answers) as upstream, proxied(upstream, upstream={"max_connections": 1}) as proxy:
        for _ in range(3):
            status, _, _ = await proxy.chat(chat(stream=True))
            assert status == 200
        assert proxy.metric("governor_probe_failures_total", reason="connect_timeout") == 0
    assert (len(upstream.received), upstream.connections) == (6, 2)


async def test_errors_and_departures_leak_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """litellm#19549, #14895, #1360: after enough refusals the pool was empty, and every request hung. With
    two connections and eight failures of four kinds, each of what was added and of the client's own request,
    the next request is answered."""
    # No failure is taken for that of a connection that was idle.
    monkeypatch.setattr("governor_server.upstream.STALE_S", 0.0)
    failures = [BUSY, Answer(before=[ABORT]), Answer([b"{", 0.05, ABORT, b"}"]), Answer(before=[HANG])]
    few = {"max_connections": 2, "pool_timeout_s": PATIENCE_S, "read_timeout_s": 2.0}
    answers = [failure for failure in failures for _ in range(2 if failure is BUSY else 4)]
    async with scripted(*answers, WHOLE) as upstream, proxied(upstream, upstream=few) as proxy:
        # Each in its own name, since what fails for one again and again is not asked twice for long.
        models = [f"model {number}" for number in range(2 * len(failures))]
        statuses = [(await proxy.chat(chat() | {"model": model}))[0] for model in models]
        assert statuses == [429, 429, 502, 502, 502, 502, 504, 504]
        assert (await proxy.chat(chat()))[0] == 200


async def test_a_storm_of_failures_leaves_nothing_in_memory() -> None:
    """litellm#12685, #27954, #6404, #38193, #2462: queues without bound, and messages kept with each
    exception. Twenty megabytes of prompts fail here; what is left is what the last ones still hold."""
    prompt = {"role": "user", "content": "x" * 1_000_000}
    failures = [Answer([b"{}"], 503), Answer(before=[ABORT])]
    answers = [failure for _ in range(30) for failure in failures]
    async with scripted(*answers) as upstream, proxied(upstream) as proxy:

        async def fail(times: int) -> None:
            for _ in range(times):
                assert (await proxy.chat(chat(prompt)))[0] >= 500
                upstream.received.clear()

        await fail(4)
        tracemalloc.start(1)
        try:
            await fail(20)
            gc.collect()
            left, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert left < 4_000_000
