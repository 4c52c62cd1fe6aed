"""What is broken on purpose while the clients ask, and how it is mended.

A fault is one object with two methods; `inject` takes any number of them, one at a time.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from benchmarks.proxy.processes import Running, start, stop, wait_ready
from governor_server.engine import free_port
from tests.binaries import environment, found

REDIS: Final = "Redis"


class Fault(Protocol):
    """Something that fails and comes back. `times` is how often it failed."""

    name: str
    times: int

    async def strike(self) -> None: ...

    async def mend(self) -> None: ...


@dataclass(slots=True)
class Dies:
    """A server that is killed, and started again at the same port. `ready` is the path that answers then,
    None where it speaks no HTTP; `running` is the present process."""

    name: str
    command: Sequence[str]
    port: int
    log: Path
    core: int
    ready: str | None = "/health"
    environment: Mapping[str, str] = field(default_factory=dict)
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
        await asyncio.to_thread(self.wait_ready)

    def wait_ready(self) -> None:
        """Return when it serves. Raises `ProcessFailed`."""
        wait_ready(self.running, self.ready)

    def close(self) -> None:
        """End it."""
        stop(self.running)

    def _start(self) -> Running:
        return start(
            self.name, self.command, self.port, self.log, core=self.core, environment=self.environment
        )


def redis(at: Path, core: int) -> Dies | None:
    """A Redis that keeps nothing when it is killed; None where none is installed."""
    program = found("redis-server")
    if program is None:
        return None
    port = free_port("127.0.0.1", 0)
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(at)]
    return Dies(REDIS, command, port, at / "redis.log", core, None, environment(program))


async def inject(faults: Sequence[Fault], seconds: float, every_s: float, down_s: float) -> None:
    """Over so many `seconds`: each of the faults in turn, every `every_s` seconds, for `down_s`."""
    for number in range(int(seconds / every_s)):
        fault = faults[number % len(faults)]
        await asyncio.sleep(every_s - down_s)
        await fault.strike()
        await asyncio.sleep(down_s)
        await fault.mend()
