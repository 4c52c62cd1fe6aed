"""One cell of the benchmark: an arm, a workload, a number of clients, and what it took."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from time import perf_counter
from typing import Final

from benchmarks.proxy.arms import Arm
from benchmarks.proxy.client import Connection, request
from benchmarks.proxy.recordings import Workload

MARK: Final = b"0" * 16


@dataclass(slots=True)
class Cell:
    """What came of it. Times are in seconds, one for each request; `wrong` counts answers that were not what
    the client must get, `failed` those with another status than 200, or none."""

    arm: str
    workload: str
    concurrency: int
    wall_s: float = 0.0
    cpu_s: float = 0.0
    first_s: list[float] = field(default_factory=list)
    last_s: list[float] = field(default_factory=list)
    wrong: int = 0
    failed: int = 0

    @property
    def requests(self) -> int:
        return len(self.last_s)

    @property
    def cpu_s_per_request(self) -> float:
        """NaN of none."""
        return self.cpu_s / self.requests if self.requests else float("nan")


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that `share` of them do not exceed; NaN of none."""
    ranked = sorted(values)
    return ranked[max(0, ceil(share * len(ranked)) - 1)] if ranked else float("nan")


def marks_from(start: int) -> Iterator[bytes]:
    """Ids for answers, no two alike: 16 hexadecimal digits each."""
    return (b"%016x" % number for number in itertools.count(start))


class Asker:
    """Writes the requests of one workload to one arm."""

    def __init__(self, arm: Arm, workload: Workload) -> None:
        body = json.dumps({**workload.request, "user": MARK.decode()}).encode()
        self._template = request("127.0.0.1", arm.port, body, key=arm.key, headers=arm.headers)

    def request(self, mark: bytes) -> bytes:
        """As it stands on the wire; its answer bears `mark`."""
        return self._template.replace(MARK, mark)


async def measure(
    arm: Arm, workload: Workload, concurrency: int, seconds: float, marks: Iterator[bytes]
) -> Cell:
    """`concurrency` clients, each with a connection of its own, ask one request after the other for so many
    `seconds`; the first request of each is not counted."""
    cell = Cell(arm.name, workload.name, concurrency)
    asker = Asker(arm, workload)
    connections = [await Connection.to("127.0.0.1", arm.port) for _ in range(concurrency)]
    try:
        warm = (connection.ask(asker.request(next(marks))) for connection in connections)
        await asyncio.gather(*warm, return_exceptions=True)
        gc.collect()
        gc.disable()
        before = arm.program.cpu_s() if arm.program else 0.0
        start = perf_counter()
        clients = (
            _client(connection, asker, workload, cell, start + seconds, marks) for connection in connections
        )
        await asyncio.gather(*clients)
        cell.wall_s = perf_counter() - start
        cell.cpu_s = arm.program.cpu_s() - before if arm.program else 0.0
    finally:
        gc.enable()
        for connection in connections:
            connection.close()
    return cell


async def _client(
    connection: Connection,
    asker: Asker,
    workload: Workload,
    cell: Cell,
    until: float,
    marks: Iterator[bytes],
) -> None:
    # Once at least, however slow the machine is.
    while True:
        mark = next(marks)
        try:
            answer = await connection.ask(asker.request(mark))
        except (ConnectionError, TimeoutError):
            cell.failed += 1
            return
        cell.failed += answer.status != 200
        cell.wrong += answer.body != workload.visible_to(mark)
        cell.first_s.append(answer.first_s)
        cell.last_s.append(answer.last_s)
        if perf_counter() >= until:
            return
