"""The figures of the page: made once a second for all who look, while anybody does.

A look compares the records that are kept with those of the last look, in a thread, so that it costs what has
changed. It never takes more than a tenth of the time: where it is slow, it is made less often.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final

import orjson

from governor.overview import Overview
from governor.prices import Prices
from governor.records import CallRecord
from governor.turn_record import TurnRecord

TICK_S: Final = 1.0
IDLE_S: Final = 30.0
"""Nobody looked for so long: the looking ends."""
COMPARE_S: Final = 5.0
"""Between comparisons of whole conversations."""
BESIDE_S: Final = 5.0
"""Between questions to upstream whether it is there."""
BUSY: Final = 0.1
"""Of all time, the share that looking may take."""
HEARTBEAT_S: Final = 15.0
MOST_VIEWERS: Final = 100

log = logging.getLogger(__name__)


class Live:
    """`records`, `turns` and `scores` give what is kept now, and `told` adds what is not in them; all are
    called in a thread. `ask` is started every few seconds. `clock` gives seconds since the epoch; `timer`
    counts the seconds between looks, and `pause` waits for some."""

    def __init__(
        self,
        *,
        records: Callable[[], Sequence[CallRecord]],
        turns: Callable[[], Sequence[TurnRecord]],
        scores: Callable[[], Mapping[str, float]],
        told: Callable[[Overview, float], Mapping[str, Any]],
        prices: Prices,
        ask: Callable[[], Coroutine[Any, Any, None]],
        clock: Callable[[], float],
        timer: Callable[[], float] = monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._records, self._turns, self._scores = records, turns, scores
        self._told, self._clock = told, clock
        self._ask, self._timer, self._pause = ask, timer, pause
        self._asked = -BESIDE_S
        self._aside: asyncio.Task[None] | None = None
        self._overview = Overview(prices)
        self._lock = threading.Lock()
        self._task: asyncio.Task[None] | None = None
        self._wanted = 0.0
        self._compared = 0.0
        self._body = b""
        self._ticked = asyncio.Event()
        self.viewers = 0
        self.closed = False

    @contextmanager
    def overview(self) -> Iterator[Overview]:
        """The figures, which do not change meanwhile. Blocks for as long as a look takes: for threads."""
        with self._lock:
            yield self._overview

    async def body(self) -> bytes:
        """The newest figures, as JSON; empty once streams have ended."""
        self.wake()
        while not self._body and not self.closed:
            self.wake()
            await self._ticked.wait()
        return b"" if self.closed else self._body

    async def bodies(self) -> AsyncGenerator[bytes, None]:
        """The figures of each look, as JSON, until streams end; empty while there are no new ones."""
        self.viewers += 1
        try:
            yield await self.body()
            while not self.closed:
                ticked = self._ticked
                try:
                    async with asyncio.timeout(HEARTBEAT_S):
                        await ticked.wait()
                except TimeoutError:
                    yield b""
                else:
                    if not self.closed:
                        yield self._body
                self.wake()
        finally:
            self.viewers -= 1

    def wake(self) -> None:
        """Somebody looks."""
        self._wanted = self._timer()
        if (self._task is None or self._task.done()) and not self.closed:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Nobody looks any more."""
        self.closed = True
        tasks = [task for task in (self._task, self._aside) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tick()

    def end_streams(self) -> None:
        """Let go of those who look, at once; may be called from a signal handler."""
        self.closed = True
        if self._task is not None and not self._task.done():
            self._task.get_loop().call_soon_threadsafe(self._tick)

    async def _run(self) -> None:
        try:
            while not self.closed and (self.viewers or self._timer() - self._wanted < IDLE_S):
                began = self._timer()
                self._beside()
                try:
                    self._body = await asyncio.to_thread(self._look)
                except Exception:
                    log.exception("the dashboard could not look at the records")
                self._tick()
                took = self._timer() - began
                await self._pause(max(TICK_S - took, took * (1 - BUSY) / BUSY))
        finally:
            # What is old by the time somebody looks again is not shown.
            self._body = b""
            self._tick()

    def _tick(self) -> None:
        """Those who wait go on, and wait for another one next time."""
        ticked, self._ticked = self._ticked, asyncio.Event()
        ticked.set()

    def _beside(self) -> None:
        """Start what is asked for beside the looks, unless it still runs."""
        now = self._timer()
        if now - self._asked >= BESIDE_S and (self._aside is None or self._aside.done()):
            self._asked = now
            self._aside = asyncio.create_task(self._ask())

    def _look(self) -> bytes:
        records = self._records()
        now, moment = self._timer(), self._clock()
        due = not self._compared or now - self._compared >= COMPARE_S
        turns, scores = (self._turns(), self._scores()) if due else ((), {})
        with self._lock:
            self._overview.update(records)
            if due:
                self._compared = now
                self._overview.compare(turns, scores, moment)
            return orjson.dumps({**figures(self._overview, moment), **self._told(self._overview, moment)})


def figures(overview: Overview, now: float) -> dict[str, Any]:
    """What the records tell, JSON-ready."""
    times = overview.over_time()
    return {
        "as_of": now,
        "since": overview.since,
        "conversations": len(overview.talks),
        "total": overview.total.as_dict(),
        "effect": overview.effect.as_dict(),
        "saved": overview.effect.saved(),
        "priced": overview.prices.of_anything,
        "timeline": times,
        "lately": overview.lately(now),
    }
