"""What is broken on purpose while the clients ask, and how it is mended.

A fault is one object with two methods; `inject` takes any number of them, one at a time.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from benchmarks.proxy.processes import Running, start, stop, wait_ready


class Fault(Protocol):
    """Something that fails and comes back. `times` is how often it failed."""

    name: str
    times: int

    async def strike(self) -> None: ...

    async def mend(self) -> None: ...


@dataclass(slots=True)
class Dies:
    """A server that is killed, and started again at the same port. `running` is the present process."""

    name: str
    command: Sequence[str]
    port: int
    log: Path
    core: int
    times: int = 0
    running: Running = field(init=False)

    def __post_init__(self) -> None:
        self.running = self._start()

    async def strike(self) -> None:
        """Kill it: what it was writing stops in the middle."""
        self.times += 1
        os.killpg(self.running.process.pid, signal.SIGKILL)
        await asyncio.to_thread(self.running.process.wait)

    async def mend(self) -> None:
        """Start it again. Raises `ProcessFailed`."""
        self.running = self._start()
        await asyncio.to_thread(wait_ready, self.running, "/health")

    def close(self) -> None:
        """End it."""
        stop(self.running)

    def _start(self) -> Running:
        return start(self.name, self.command, self.port, self.log, core=self.core)


async def inject(faults: Sequence[Fault], seconds: float, every_s: float, down_s: float) -> None:
    """Over so many `seconds`: each of the faults in turn, every `every_s` seconds, for `down_s`."""
    for number in range(int(seconds / every_s)):
        fault = faults[number % len(faults)]
        await asyncio.sleep(every_s - down_s)
        await fault.strike()
        await asyncio.sleep(down_s)
        await fault.mend()
