"""The live figures: one look for all who look, none for nobody, and never more than a part of the time."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import orjson
import pytest

from governor.overview import Overview
from governor.prices import Prices
from governor.records import CallRecord
from governor_server.dashboard import live as module
from governor_server.dashboard.live import Live, figures
from tests.dashboard import traffic
from tests.server import logs


class Kept:
    """A store, and how often it was looked at."""

    def __init__(self) -> None:
        self.records: list[CallRecord] = logs.traffic(3)
        self.looks = 0
        self.asked = 0
        self.fails = False

    def look(self) -> Sequence[CallRecord]:
        self.looks += 1
        if self.fails:
            raise OSError("the disk")
        return list(self.records)

    async def ask(self) -> None:
        self.asked += 1


def made(kept: Kept, told: Callable[[Overview, float], Mapping[str, Any]] | None = None) -> Live:
    return Live(
        records=kept.look,
        turns=tuple,
        scores=dict,
        told=told or (lambda overview, now: {}),
        prices=Prices(),
        ask=kept.ask,
        clock=lambda: 10.0,
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second takes ten milliseconds."""
    monkeypatch.setattr(module, "TICK_S", 0.01)
    monkeypatch.setattr(module, "IDLE_S", 0.05)


async def test_all_who_look_get_the_same_figures_from_one_look() -> None:
    """A hundred viewers cost no more than one."""
    kept = Kept()
    live = made(kept)

    async def view() -> list[bytes]:
        return [body async for body, _ in _first(live, 3)]

    found = await asyncio.gather(*(view() for _ in range(20)))
    assert kept.looks < 8
    assert all(bodies[0] == found[0][0] for bodies in found)
    assert json.loads(found[0][0])["total"]["calls"] == len(kept.records)
    await live.close()
    assert live.viewers == 0


async def _first(live: Live, many: int) -> Any:
    bodies = live.bodies()
    for place in range(many):
        yield await anext(bodies), place
    await bodies.aclose()


async def test_nobody_looks_and_nothing_is_done() -> None:
    """A governor that nobody watches pays nothing; who comes later sees what is new."""
    kept = Kept()
    live = made(kept)
    await asyncio.sleep(0.05)
    assert kept.looks == 0
    await live.body()
    await asyncio.sleep(0.2)
    looked = kept.looks
    await asyncio.sleep(0.1)
    assert kept.looks == looked
    kept.records = logs.traffic(5)
    assert json.loads(await live.body())["total"]["calls"] == len(kept.records)
    await live.close()


async def test_a_slow_look_is_made_less_often() -> None:
    """Looking never takes more than a tenth of the time: of half a second, at most fifty milliseconds."""
    kept = Kept()

    def slow(overview: Overview, now: float) -> Mapping[str, Any]:
        time.sleep(0.03)
        return {}

    live = made(kept, slow)
    watching = asyncio.create_task(_all(live))
    await asyncio.sleep(0.5)
    assert 1 <= kept.looks <= 2
    live.end_streams()
    await live.close()
    await watching


async def test_a_look_that_fails_is_told_and_made_again(caplog: pytest.LogCaptureFixture) -> None:
    """The page shows nothing meanwhile, and the requests do not notice."""
    kept = Kept()
    kept.fails = True
    live = made(kept)
    with caplog.at_level(logging.ERROR):
        waiting = asyncio.create_task(live.body())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        kept.fails = False
        assert json.loads(await waiting)["total"]["calls"] == len(kept.records)
    assert "could not look" in caplog.text
    await live.close()


async def test_streams_end_when_the_proxy_does() -> None:
    """Else its end would wait for browsers that never leave."""
    live = made(Kept())
    ended = asyncio.create_task(_all(live))
    await asyncio.sleep(0.05)
    live.end_streams()
    await asyncio.wait_for(ended, 1.0)
    assert await live.body() == b""
    await live.close()


async def _all(live: Live) -> None:
    async for _ in live.bodies():
        pass


async def test_a_quiet_stream_says_that_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stands between would cut off what says nothing."""
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(module, "TICK_S", 60.0)
    live = made(Kept())
    bodies = live.bodies()
    assert await anext(bodies) != b""
    assert await anext(bodies) == b""
    await bodies.aclose()
    await live.close()


async def test_upstream_is_asked_beside_the_looks() -> None:
    """Once in a while, and a slow answer holds up nothing."""
    kept = Kept()
    live = made(kept)
    await live.body()
    await asyncio.sleep(0.05)
    assert kept.asked == 1
    await live.close()


def test_a_look_costs_what_has_changed() -> None:
    """With 10,000 conversations kept and 100 new ones a second, less than a tenth of a core."""
    lots = Random(4)
    kept = [record for number in range(10_000) for record in traffic.conversation(number, 1e6 + number, lots)]
    fresh = [record for number in range(100) for record in traffic.conversation(10_000 + number, 1e6, lots)]
    overview = Overview()
    overview.update(kept)
    begin = time.thread_time()
    overview.update([*kept, *fresh])
    orjson.dumps(figures(overview, 1e6))
    assert time.thread_time() - begin < 0.1
