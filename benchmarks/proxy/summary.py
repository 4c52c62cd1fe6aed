"""From the cells of all rounds to the figures that are reported."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any, Final

from benchmarks.proxy.arms import ARMS, DIRECT, FLOOR, GOVERNED, LITELLM, PASSING
from benchmarks.proxy.cells import Cell, quantile
from benchmarks.proxy.recordings import CALL, RESPONSE, STREAM, WORKLOADS, events

MS: Final = 1e3
US: Final = 1e6
MB: Final = 1e6

Round = Sequence[Cell]


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of the rounds, and between which values the middle half of them lies."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Over the finite ones of `values`; NaN of none."""
        finite = [value for value in values if isfinite(value)]
        if len(finite) < 2:
            only = finite[0] if finite else float("nan")
            return cls(only, only, only)
        low, median, high = statistics.quantiles(finite, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True, slots=True)
class Figures:
    """One arm, workload and concurrency. Of the added times those of the direct arm in the same round are
    taken off; of what is above the floor, those of the bare relay."""

    requests: int
    wrong: int
    failed: int
    requests_per_s: Spread
    last_p50_ms: Spread
    last_p99_ms: Spread
    added_p50_ms: Spread
    added_p99_ms: Spread
    added_first_p50_ms: Spread
    added_first_p99_ms: Spread
    cpu_ms_per_request: Spread
    cpu_us_per_chunk: Spread
    cpu_ms_above_floor: Spread
    cpu_us_per_chunk_above_floor: Spread


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of one arm's processes, as it was from time to time."""

    minutes: list[float]
    rss_mb: list[float]

    @property
    def growth_mb(self) -> float:
        """From the middle of the run to its end; while it warms up a process grows anyway."""
        return self.rss_mb[-1] - self.rss_mb[len(self.rss_mb) // 2]


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that was promised. `least`: it must be at least that; at most, otherwise. `relay` and
    `passing` are what these arms take of the same, where that says something."""

    name: str
    limit: float
    measured: float
    least: bool = False
    relay: float | None = None
    passing: float | None = None

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.least else self.measured <= self.limit


@dataclass(slots=True)
class Results:
    """All that was measured: `rounds` of cells, and the memory of each arm."""

    rounds: list[Round] = field(default_factory=list)
    memory: dict[str, Memory] = field(default_factory=dict)

    @property
    def cells(self) -> Sequence[Cell]:
        return [cell for round in self.rounds for cell in round]

    def arms(self) -> Sequence[str]:
        """Their names, in the order in which they are compared."""
        present = {cell.arm for cell in self.cells}
        return [arm for arm in ARMS if arm in present]

    def concurrencies(self) -> Sequence[int]:
        return sorted({cell.concurrency for cell in self.cells})

    def figures(self, arm: str, workload: str, concurrency: int) -> Figures:
        """The figures of one arm, workload and concurrency."""
        pairs = [
            (mine, direct)
            for round in self.rounds
            if (mine := _find(round, arm, workload, concurrency))
            and (direct := _find(round, DIRECT, workload, concurrency))
        ]
        own = [cell for cell, _ in pairs]
        chunks = CHUNKS[workload]
        cpu = [cell.cpu_s_per_request for cell in own]
        above = [
            mine.cpu_s_per_request - floor.cpu_s_per_request
            for round in self.rounds
            if (mine := _find(round, arm, workload, concurrency))
            and (floor := _find(round, FLOOR, workload, concurrency))
        ]
        return Figures(
            requests=sum(cell.requests for cell in own),
            wrong=sum(cell.wrong for cell in own),
            failed=sum(cell.failed for cell in own),
            requests_per_s=Spread.of(cell.requests / cell.wall_s for cell in own),
            last_p50_ms=Spread.of(MS * quantile(cell.last_s, 0.5) for cell in own),
            last_p99_ms=Spread.of(MS * quantile(cell.last_s, 0.99) for cell in own),
            added_p50_ms=Spread.of(
                MS * (quantile(a.last_s, 0.5) - quantile(b.last_s, 0.5)) for a, b in pairs
            ),
            added_p99_ms=Spread.of(
                MS * (quantile(a.last_s, 0.99) - quantile(b.last_s, 0.99)) for a, b in pairs
            ),
            added_first_p50_ms=Spread.of(
                MS * (quantile(a.first_s, 0.5) - quantile(b.first_s, 0.5)) for a, b in pairs
            ),
            added_first_p99_ms=Spread.of(
                MS * (quantile(a.first_s, 0.99) - quantile(b.first_s, 0.99)) for a, b in pairs
            ),
            cpu_ms_per_request=Spread.of(MS * value for value in cpu),
            cpu_us_per_chunk=Spread.of(US * value / chunks for value in cpu if chunks),
            cpu_ms_above_floor=Spread.of(MS * value for value in above),
            cpu_us_per_chunk_above_floor=Spread.of(US * value / chunks for value in above if chunks),
        )

    def targets(self) -> Sequence[Target]:
        """What is promised of the governor, the worse of its two modes: the latency with one client, the CPU
        with one and with several, since each chunk of a single stream finds a processor that was asleep."""
        least = self.concurrencies()[0]
        response = self._governed(RESPONSE.name, least)
        memory = [self.memory[arm] for arm in GOVERNED if arm in self.memory]
        found = [
            self._target("added latency p50", "ms", 1.0, RESPONSE.name, least, "added_p50_ms"),
            self._target("added latency p99", "ms", 3.0, RESPONSE.name, least, "added_p99_ms"),
            *(target for clients in self._loads() for target in self._cpu(clients)),
            Target("memory at the end (MB)", 100.0, max(kept.rss_mb[-1] for kept in memory)),
            Target("growth of memory over the second half (MB)", 2.0, max(kept.growth_mb for kept in memory)),
        ]
        if LITELLM in self.arms():
            other = self.figures(LITELLM, RESPONSE.name, least).cpu_ms_per_request.median
            times = other / _worst(response, "cpu_ms_per_request")
            name = f"CPU of LiteLLM's proxy per response, {_clients(least)}, times ours"
            found.append(Target(name, 20.0, times, least=True))
        return found

    def _loads(self) -> Sequence[int]:
        """The least number of clients, and the one at which the proxy is neither asleep nor overrun."""
        found = self.concurrencies()
        return sorted({found[0], BUSY if BUSY in found else found[-1]})

    def _cpu(self, clients: int) -> Sequence[Target]:
        chunk = "CPU per chunk with 20 logprobs"
        decided = "the same where a call is decided"
        return [
            self._target("CPU per response", "ms", 0.25, RESPONSE.name, clients, "cpu_ms_per_request"),
            self._target(chunk, "µs", 50.0, STREAM.name, clients, "cpu_us_per_chunk"),
            self._target(decided, "µs", 50.0, CALL.name, clients, "cpu_us_per_chunk"),
        ]

    def _target(self, what: str, unit: str, limit: float, workload: str, clients: int, figure: str) -> Target:
        relay, passing = (
            float(getattr(self.figures(arm, workload, clients), figure).median) for arm in (FLOOR, PASSING)
        )
        measured = _worst(self._governed(workload, clients), figure)
        name = f"{what}, {_clients(clients)} ({unit})"
        return Target(name, limit, measured, relay=relay, passing=passing)

    def _governed(self, workload: str, clients: int) -> Sequence[Figures]:
        return [self.figures(arm, workload, clients) for arm in GOVERNED]

    def faithful(self) -> bool:
        """Whether every client of the governor, and every direct one, got what it must get."""
        own = [cell for cell in self.cells if cell.arm != LITELLM]
        return all(cell.requests and not cell.wrong and not cell.failed for cell in own)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "faithful": self.faithful(),
            "targets": [{**asdict(target), "met": target.met} for target in self.targets()],
            "arms": {
                arm: {
                    workload.name: {
                        str(concurrency): asdict(self.figures(arm, workload.name, concurrency))
                        for concurrency in self.concurrencies()
                    }
                    for workload in WORKLOADS
                }
                for arm in self.arms()
            },
            "memory": {
                arm: {**asdict(kept), "growth_mb": kept.growth_mb} for arm, kept in self.memory.items()
            },
        }


BUSY: Final = 16
CHUNKS: Final[Mapping[str, int]] = {
    workload.name: len(events(workload.answer)) if workload.streams else 0 for workload in WORKLOADS
}
"""Events of each workload's stream."""


def _find(round: Round, arm: str, workload: str, concurrency: int) -> Cell | None:
    wanted = (arm, workload, concurrency)
    return next((cell for cell in round if (cell.arm, cell.workload, cell.concurrency) == wanted), None)


def _clients(number: int) -> str:
    return "one client" if number == 1 else f"{number} clients"


def _worst(all_figures: Sequence[Figures], name: str) -> float:
    return max(float(getattr(figures, name).median) for figures in all_figures)
