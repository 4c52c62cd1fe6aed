"""The clients of the soak: they ask at a steady rate, some leave, some read slowly, and each knows what it
must get."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from hashlib import sha256
from time import perf_counter
from typing import Any, Final

from benchmarks.proxy.arms import Arm
from benchmarks.proxy.cells import Asker
from benchmarks.proxy.client import Answer, Connection
from benchmarks.proxy.recordings import WORKLOADS, Workload
from tests.server.framings import ARRIVING, FRAMINGS, Framed, Request, framed

ERROR_EVENT: Final = b'data: {"error"'
ERROR_BODY: Final = b'{"error"'
UNAVAILABLE: Final = frozenset({502, 503, 504})
MOST_RUNNING: Final = 64
"""Requests at the same time; what is due beyond them is left out, and counted. A proxy's memory grows with
them, and a neighbour that takes the machine for a moment would make hundreds wait."""
PAUSE_S: Final = 0.05
"""Of a slow reader, after each piece."""
PATIENCE_S: Final = 0.03
"""Whoever leaves does so within this time: before the first byte, or in the middle."""


ODD_FRAMINGS: Final = tuple(name for name in FRAMINGS if not name.startswith("expect"))
"""Those to which there is one answer: a client that waits to go on gets two."""
ODD_ARRIVING: Final = tuple(name for name in ARRIVING if name in ODD_FRAMINGS)


class Outcome(StrEnum):
    """What came of one request."""

    RIGHT = "right"
    """The whole answer, of which the hash is that of its recording."""
    REFUSED = "refused"
    """An error in the place of the answer, which says so."""
    BROKEN = "broken"
    """The beginning of the right answer, then an error, and no end."""
    LEFT = "left"
    """The client went away by itself."""
    WRONG = "wrong"
    """Anything else: a lost, reordered or doubled piece, another's answer, silence."""


FAILURES: Final = (Outcome.REFUSED, Outcome.BROKEN)
"""What a client sees of a fault."""


class SlowReader(Connection):
    """Takes a rest after each piece that it reads."""

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        if self.usable and self._transport is not None:
            self._transport.resume_reading()


class Load:
    """`counts` are the outcomes of what was asked; `wrong` says of the first few wrong ones what came."""

    def __init__(
        self, arm: Arm, marks: Iterator[bytes], seed: int, *, leaving: float, slow: float, odd: float = 0.0
    ) -> None:
        self._arm = arm
        self._marks = marks
        self._random = random.Random(seed)
        self._leaving, self._slow, self._odd = leaving, slow, odd
        self._askers = {workload.name: Asker(arm, workload) for workload in WORKLOADS}
        self._free: list[Connection] = []
        self.counts: Counter[Outcome] = Counter()
        self.slow = 0
        self.odd = 0
        self.left_out = 0
        self.wrong: list[str] = []

    @property
    def asked(self) -> int:
        return self.counts.total()

    async def capacity(self, clients: int, seconds: float) -> float:
        """Requests a second that `clients` get who ask one after the other."""
        start, before = perf_counter(), self.asked

        async def client() -> None:
            while perf_counter() < start + seconds:
                await self._ask(self._workload())

        await asyncio.gather(*(client() for _ in range(clients)))
        return (self.asked - before) / (perf_counter() - start)

    async def run(self, rate: float, seconds: float) -> None:
        """`rate` requests a second on the average, whether or not the earlier ones were answered."""
        running: set[asyncio.Task[None]] = set()
        due = start = perf_counter()
        while due < start + seconds:
            due += self._random.expovariate(rate)
            await asyncio.sleep(max(0.0, due - perf_counter()))
            if len(running) >= MOST_RUNNING:
                self.left_out += 1
                continue
            task = asyncio.create_task(self._visit())
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)

    def close(self) -> None:
        """Close the connections that are kept."""
        for connection in self._free:
            connection.close()
        self._free.clear()

    def as_dict(self) -> Mapping[str, Any]:
        """JSON-ready."""
        counts = {outcome.value: self.counts[outcome] for outcome in Outcome}
        return {**counts, "asked": self.asked, "slow": self.slow, "odd": self.odd, "left_out": self.left_out}

    def _workload(self) -> Workload:
        return self._random.choice(WORKLOADS)

    async def _visit(self) -> None:
        drawn = self._random.random()
        if drawn < self._leaving:
            await self._leave(self._workload(), self._random.uniform(0.0, PATIENCE_S))
        elif drawn < self._leaving + self._slow:
            self.slow += 1
            await self._ask(self._workload(), await SlowReader.to("127.0.0.1", self._arm.port), keep=False)
        elif drawn < self._leaving + self._slow + self._odd:
            self.odd += 1
            await self._ask_oddly(self._workload())
        else:
            await self._ask(self._workload())

    async def _ask_oddly(self, workload: Workload) -> None:
        """In another framing: of one that must be answered the answer counts, and nobody waits for those of
        the others."""
        names = ODD_ARRIVING if self._random.random() < 0.5 else ODD_FRAMINGS
        framing = self._random.choice(names)
        if framing in ARRIVING:
            own = await Connection.to("127.0.0.1", self._arm.port)
            await self._ask(workload, own, keep=False, framing=framing)
        else:
            await self._leave(workload, self._random.uniform(0.0, PATIENCE_S), framing=framing)

    async def _ask(
        self, workload: Workload, own: Connection | None = None, *, keep: bool = True, framing: str = ""
    ) -> None:
        mark = next(self._marks)
        connection = own or await self._connection()
        whole = False
        with suppress(ConnectionError, TimeoutError):
            await connection.ask(self._request(workload, mark, framing))
            whole = True
        outcome = judged(connection.answer, workload.visible_to(mark), whole=whole)
        self.counts[outcome] += 1
        if outcome is Outcome.WRONG and len(self.wrong) < 5:
            self.wrong.append(
                f"{workload.name}: {connection.answer.status} {connection.answer.body[-200:]!r}"
            )
        if keep and connection.usable and whole:
            self._free.append(connection)
        else:
            connection.close()

    def _request(self, workload: Workload, mark: bytes, framing: str = "") -> bytes:
        request = self._askers[workload.name].request(mark)
        return reframed(request, framing, self._random).raw if framing else request

    async def _leave(self, workload: Workload, patience_s: float, *, framing: str = "") -> None:
        connection = await Connection.to("127.0.0.1", self._arm.port)
        with suppress(ConnectionError, TimeoutError):
            await connection.ask(self._request(workload, next(self._marks), framing), patience_s)
        self.counts[Outcome.LEFT] += 1
        connection.close()

    async def _connection(self) -> Connection:
        while self._free:
            if (connection := self._free.pop()).usable:
                return connection
        return await Connection.to("127.0.0.1", self._arm.port)


def reframed(request: bytes, framing: str, draw: random.Random) -> Framed:
    """The same request in another framing."""
    head, _, body = request.partition(b"\r\n\r\n")
    line, *rows = head.decode("latin-1").split("\r\n")
    method, target, _ = line.split(" ")
    named = dict(row.split(": ", 1) for row in rows)
    headers = {name: value for name, value in named.items() if name not in ("host", "content-length")}
    return framed(framing, Request(method, target, headers, body), draw)


def judged(answer: Answer, must: bytes, *, whole: bool) -> Outcome:
    """What came of a request whose answer must be `must`. `whole`: HTTP says that nothing is missing."""
    body = answer.body
    if whole and answer.status == 200:
        return Outcome.RIGHT if same([body], must) else Outcome.WRONG
    if whole:
        told = answer.status in UNAVAILABLE and body.startswith(ERROR_BODY)
        return Outcome.REFUSED if told else Outcome.WRONG
    begun, error, _ = body.rpartition(ERROR_EVENT)
    return Outcome.BROKEN if error and must.startswith(begun) else Outcome.WRONG


def same(pieces: Sequence[bytes], must: bytes) -> bool:
    """Whether the pieces have the hash of what they must be."""
    return sha256(b"".join(pieces)).digest() == sha256(must).digest()
