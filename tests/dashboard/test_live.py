"""The live figures: one look for all who look, none for nobody, and never more than a part of the time."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from random import Random
from time import thread_time
from types import FrameType
from typing import Any

import orjson
import pytest

from governor.overview import Overview
from governor.prices import Prices
from governor.records import CallRecord
from governor_server.dashboard import live as module
from governor_server.dashboard.live import BESIDE_S, BUSY, IDLE_S, TICK_S, Live, figures
from tests.dashboard import traffic
from tests.server import logs


class Kept:
    """A store, and how often it was looked at."""

    def __init__(self) -> None:
        self.records: list[CallRecord] = logs.traffic(3)
        self.looks = 0
        self.asked = 0
        self.fails = False
        self.upstream_answers = asyncio.Event()

    def look(self) -> Sequence[CallRecord]:
        self.looks += 1
        if self.fails:
            raise OSError("the disk")
        return list(self.records)

    async def ask(self) -> None:
        self.asked += 1
        await self.upstream_answers.wait()


class ByHand:
    """Time that passes between two looks, and only when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self._pauses: asyncio.Queue[float] = asyncio.Queue()
        self._ends: asyncio.Queue[None] = asyncio.Queue()

    def timer(self) -> float:
        return self.now

    async def pause(self, seconds: float) -> None:
        self._pauses.put_nowait(seconds)
        await self._ends.get()
        self.now += seconds

    async def paused(self) -> float:
        """Once a look has been made: how long the next one waits."""
        return await self._pauses.get()

    def end_pause(self) -> None:
        self._ends.put_nowait(None)


def made(
    kept: Kept, time: ByHand, told: Callable[[Overview, float], Mapping[str, Any]] | None = None
) -> Live:
    return Live(
        records=kept.look,
        turns=tuple,
        scores=dict,
        told=told or (lambda overview, now: {}),
        prices=Prices(),
        ask=kept.ask,
        clock=lambda: 10.0,
        timer=time.timer,
        pause=time.pause,
    )


async def rest(bodies: AsyncIterator[bytes]) -> list[bytes]:
    return [body async for body in bodies]


async def test_all_who_look_get_the_same_figures_from_one_look() -> None:
    """A hundred viewers cost no more than one."""
    kept, time = Kept(), ByHand()
    live = made(kept, time)
    viewers = [live.bodies() for _ in range(100)]
    for looks in (1, 2, 3):
        found = await asyncio.gather(*(anext(viewer) for viewer in viewers))
        assert kept.looks == looks
        assert found == [found[0]] * len(viewers)
        assert json.loads(found[0])["total"]["calls"] == len(kept.records)
        await time.paused()
        kept.records = logs.traffic(3 + looks)
        time.end_pause()
    await live.close()
    await asyncio.gather(*(rest(viewer) for viewer in viewers))
    assert live.viewers == 0


async def test_nobody_looks_and_nothing_is_done() -> None:
    """A governor that nobody watches pays nothing; who comes later sees what is new."""
    kept, time = Kept(), ByHand()
    live = made(kept, time)
    assert kept.looks == 0 and others() == set()
    await live.body()
    kept.upstream_answers.set()
    for _ in range(int(IDLE_S / TICK_S)):
        assert await time.paused() == TICK_S
        time.end_pause()
    await asyncio.gather(*others())
    assert kept.looks == IDLE_S / TICK_S
    kept.records = logs.traffic(5)
    assert json.loads(await live.body())["total"]["calls"] == len(kept.records)
    await live.close()


def others() -> set[asyncio.Task[Any]]:
    """All tasks but the test's."""
    return asyncio.all_tasks() - {asyncio.current_task()}


@pytest.mark.parametrize("took", [0.0, 0.05, 0.1, 0.5, 3.0])
async def test_a_slow_look_is_made_less_often(took: float) -> None:
    """Looking never takes more than a tenth of the time, and is done once a second at most."""
    kept, time = Kept(), ByHand()

    def slow(overview: Overview, now: float) -> Mapping[str, Any]:
        time.now += took
        return {}

    live = made(kept, time, slow)
    await live.body()
    whole = took + await time.paused()
    assert whole == pytest.approx(max(TICK_S, took / BUSY))
    await live.close()


async def test_a_look_that_fails_is_told_and_made_again(caplog: pytest.LogCaptureFixture) -> None:
    """The page shows nothing meanwhile, and the requests do not notice."""
    kept, time = Kept(), ByHand()
    kept.fails = True
    live = made(kept, time)
    with caplog.at_level(logging.ERROR):
        waiting = asyncio.create_task(live.body())
        await time.paused()
        assert not waiting.done() and kept.looks == 1
        kept.fails = False
        time.end_pause()
        assert json.loads(await waiting)["total"]["calls"] == len(kept.records)
    assert "could not look" in caplog.text
    await live.close()


async def test_streams_end_when_the_proxy_does() -> None:
    """Else its end would wait for browsers that never leave, or for the pause after a look."""
    time = ByHand()
    live = made(Kept(), time)
    bodies = live.bodies()
    assert await anext(bodies) != b""
    ended = asyncio.create_task(rest(bodies))
    await time.paused()
    live.end_streams()
    assert await ended == []
    assert await live.body() == b""
    await live.close()


async def test_streams_end_though_a_look_is_being_made() -> None:
    """The look may take long, and what it finds nobody waits for."""
    time, begun, ended = ByHand(), threading.Event(), threading.Event()

    def held(overview: Overview, now: float) -> Mapping[str, Any]:
        begun.set()
        ended.wait()
        return {}

    live = made(Kept(), time, held)
    streams = asyncio.create_task(rest(live.bodies()))
    await asyncio.to_thread(begun.wait)
    live.end_streams()
    assert await streams == [b""]
    ended.set()
    await time.paused()
    assert await live.body() == b""
    await live.close()


async def test_a_quiet_stream_says_that_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stands between would cut off what says nothing."""
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.01)
    live = made(Kept(), ByHand())
    bodies = live.bodies()
    assert await anext(bodies) != b""
    assert await anext(bodies) == b""
    await bodies.aclose()
    await live.close()


async def test_upstream_is_asked_beside_the_looks() -> None:
    """Once in a while, and a slow answer holds up nothing."""
    kept, time = Kept(), ByHand()
    live = made(kept, time)
    await live.body()
    await time.paused()
    while time.now < 3 * BESIDE_S:
        await look_again(time)
    assert kept.asked == 1
    kept.upstream_answers.set()
    asked = []
    for _ in range(2 * int(BESIDE_S / TICK_S)):
        await look_again(time)
        asked.append(kept.asked)
    assert asked == [2] * int(BESIDE_S / TICK_S) + [3] * int(BESIDE_S / TICK_S)
    await live.close()


async def look_again(time: ByHand) -> None:
    """Go through the pause after one look, and up to the end of the next."""
    time.end_pause()
    await time.paused()


def test_a_look_costs_what_has_changed() -> None:
    """With ten times as many conversations kept, a hundred new ones take not one call more; and they take a
    small part of the time that all of them do."""
    lots = Random(4)
    kept = [record for number in range(10_000) for record in traffic.conversation(number, 1e6 + number, lots)]
    fresh = [record for number in range(100) for record in traffic.conversation(10_000 + number, 1e6, lots)]
    few, many = Overview(), Overview()
    few.update(kept[: len(kept) // 10])
    whole = spent(lambda: many.update(kept))
    calls = [calls_made(lambda: few.update([*kept[: len(kept) // 10], *fresh]))]
    calls.append(calls_made(lambda: many.update([*kept, *fresh])))
    assert calls[0] == calls[1] > 0
    newest = [
        [record for number in range(100) for record in traffic.conversation(again + number, 1e6, lots)]
        for again in (20_000, 30_000, 40_000)
    ]
    looks = [spent(lambda found=found: look(many, [*kept, *fresh, *found])) for found in newest]  # type: ignore[misc]
    assert min(looks) < whole / 4


def look(overview: Overview, records: Sequence[CallRecord]) -> bytes:
    overview.update(records)
    return orjson.dumps(figures(overview, 1e6))


def spent(work: Callable[[], object]) -> float:
    """Seconds of the processor."""
    begin = thread_time()
    work()
    return thread_time() - begin


def calls_made(work: Callable[[], object]) -> int:
    """Calls of Python functions; what the garbage collector calls is not of this work."""
    made = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal made
        made += event == "call"

    gc.disable()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return made
