"""Several upstreams."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

import pytest

from governor_server.balancer import Balancer, Member, Replica, UpstreamSettings
from governor_server.upstream import Upstream
from tests.server.bodies import answer
from tests.server.scripted_upstream import HANG, Answer, Proxied, ScriptedUpstream, proxied, scripted
from tests.server.waiting import PATIENCE_S, refusing_port
from tests.wire.generated import Generated, chat

PLAIN = answer(Generated(content="Oslo."), False)
TALKS = [f"talk {number}" for number in range(2000)]


def members(*weights: float) -> list[Member]:
    return [Member(Upstream(f"http://gpu-{number}:8000"), weight) for number, weight in enumerate(weights)]


def claimed(among: Sequence[Member]) -> dict[str, str]:
    return {talk: max(among, key=lambda one: one.claim(talk)).upstream.url for talk in TALKS}


def test_conversations_are_shared_out_by_weight() -> None:
    """Twice the weight, twice the conversations."""
    shares = Counter(claimed(members(1, 1, 2)).values())
    for number, share in enumerate((0.25, 0.25, 0.5)):
        assert abs(shares[f"http://gpu-{number}:8000"] / len(TALKS) - share) < 0.04


def test_a_server_that_goes_moves_only_its_own_conversations() -> None:
    """Those of the others keep their prefix caches."""
    before, after = claimed(members(1, 1, 1)), claimed(members(1, 1))
    gone = "http://gpu-2:8000"
    assert all(after[talk] == url for talk, url in before.items() if url != gone)


async def test_a_conversation_stays_with_one_server() -> None:
    """Whatever else runs; and both are used."""
    async with scripted(*[PLAIN] * 40) as one, scripted(*[PLAIN] * 40) as other, pair(one, other) as proxy:
        for talk in map(str, range(10)):
            before = len(one.received), len(other.received)
            for _ in range(3):
                await proxy.chat(chat(), x_governor_conversation=talk)
            asked = len(one.received) - before[0], len(other.received) - before[1]
            assert sorted(asked) == [0, 3]
    assert one.received
    assert other.received


async def test_what_belongs_to_no_conversation_goes_where_least_is_running() -> None:
    """A long answer at the one sends the next request to the other."""
    async with (
        scripted(Answer(before=[HANG]), Answer(before=[HANG])) as one,
        scripted(*[Answer([b"{}"])] * 9) as other,
        pair(one, other) as proxy,
    ):

        async def models() -> int:
            async with proxy.client.get("/v1/models") as response:
                return response.status

        hanging = asyncio.create_task(models())
        await one.asked.wait()
        assert [await models() for _ in range(3)] == [200] * 3
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)
    assert len(one.received) == 1


async def test_a_server_that_is_not_there_is_passed_over() -> None:
    """Its conversations go to the next one, which is told by a metric; nobody reads an error."""
    with refusing_port() as port:
        dead = f"http://127.0.0.1:{port}"
        async with scripted(*[PLAIN] * 20) as one, pair(one, dead) as proxy:
            talks = map(str, range(12))
            statuses = [(await proxy.chat(chat(), x_governor_conversation=talk))[0] for talk in talks]
            assert proxy.metric("governor_upstream_up", upstream=dead) == 0
            assert proxy.metric("governor_upstream_up", upstream=one.url) == 1
    assert statuses == [200] * 12


async def test_a_server_that_comes_back_is_found() -> None:
    """By its health check, and without a request that had to fail first."""
    heard: asyncio.Queue[bool] = asyncio.Queue()
    upstream = ScriptedUpstream()
    with refusing_port() as other, socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
        balancer = Balancer(
            [Member(Upstream(f"http://127.0.0.1:{number}")) for number in (port, other)],
            health_interval_s=0.05,
            on_health=lambda url, healthy: heard.put_nowait(healthy) if url.endswith(f":{port}") else None,
        )
        async with balancer, asyncio.timeout(PATIENCE_S):
            while await heard.get():
                pass
            server = await asyncio.start_server(upstream.serve, sock=door)
            while not await heard.get():
                pass
        server.close()
        await upstream.close()


def test_the_same_server_twice_is_no_second_server() -> None:
    """It would count twice, and its health too."""
    with pytest.raises(ValueError, match="twice"):
        UpstreamSettings(url="http://a:1", replicas=(Replica(url="http://a:1/v1"),))


def pair(one: ScriptedUpstream, other: ScriptedUpstream | str) -> AbstractAsyncContextManager[Proxied]:
    url = other if isinstance(other, str) else other.url
    return proxied(one, upstream={"replicas": [{"url": url}], "health_interval_s": 0.2})
