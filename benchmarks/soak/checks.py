"""What must hold after a soak: of what the clients got, of what the proxy counted, and of what it kept."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.proxy.processes import Running, tree
from benchmarks.proxy.summary import MB, Memory
from benchmarks.soak.load import FAILURES, Load, Outcome

QUIET_S: Final = 20.0
"""How long the proxy may take to let go of what it had; idle connections to upstream are closed after 3 s."""
MOST_MEMORY_MB: Final = 100.0
REDIS_MB: Final = 25.0
"""More, for the client of Redis and what it imports."""
MOST_GROWTH_MB: Final = 5.0
"""Over the second half."""
FAIL_OPEN_BY_FAULT: Final = frozenset({"answer", "continuation", "review_queue"})
"""The parts that fail open when upstream does, or when there is too much to do; none of the others may."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold, and what was found."""

    name: str
    holds: bool
    found: str

    def __str__(self) -> str:
        return f"{'ok    ' if self.holds else 'FAILED'} {self.name}: {self.found}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a proxy holds at one time: open files by kind, threads, memory, and its metrics by name and by the
    values of their labels."""

    files: Mapping[str, int]
    threads: int
    rss_mb: float
    metrics: Mapping[str, Mapping[tuple[str, ...], float]]

    @classmethod
    def of(cls, program: Running) -> Snapshot:
        """Now. The connection that asks for the metrics is not among the files."""
        metrics: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families(program.get("/metrics").decode()):
            for sample in family.samples:
                labels = tuple(sample.labels.values())
                metrics.setdefault(sample.name, {})[labels] = sample.value
        pids = tree(program.process.pid)
        files = Counter(kind for pid in pids for kind in _files(pid))
        return cls(dict(files), sum(map(_threads, pids)), program.rss_bytes() / MB, metrics)

    def total(self, name: str, *, only: str = "", but: frozenset[str] = frozenset()) -> float:
        """The sum of a metric over its labels: `only` over those with this value, and `but` over none with
        these."""
        return sum(
            value
            for labels, value in self.metrics.get(name, {}).items()
            if (not only or only in labels) and but.isdisjoint(labels)
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with the governor's own metrics that are not 0."""
        kept = {
            name: {",".join(labels): value for labels, value in samples.items() if value}
            for name, samples in self.metrics.items()
            if name.startswith("governor_") and not name.endswith(("_bucket", "_sum", "_count"))
        }
        return {**asdict(self), "metrics": {name: samples for name, samples in kept.items() if samples}}


def quiet(program: Running, before: Snapshot | None = None) -> Snapshot:
    """The state of a proxy that nobody asks any more: once it holds no more files than `before`, or after
    `QUIET_S`; without a `before`, once it holds no fewer for two seconds."""
    deadline = time.monotonic() + QUIET_S
    last, since = Snapshot.of(program), time.monotonic()
    while time.monotonic() < deadline:
        time.sleep(0.5)
        now = Snapshot.of(program)
        if before is not None and not _more(now, before) and _idle(now):
            return now
        if now.files != last.files:
            last, since = now, time.monotonic()
        if before is None and time.monotonic() - since > 4.0:
            return now
    return Snapshot.of(program)


def checks(
    load: Load,
    before: Snapshot,
    after: Snapshot,
    memory: Memory,
    *,
    struck: int,
    unshared: int = 0,
    max_records: int,
    stored: int,
) -> Iterator[Check]:
    """All that must hold. `struck` is how often something was broken that clients feel, `unshared` how often
    Redis was; `stored` are the records in the store's file."""

    def grown(name: str, *, only: str = "", but: frozenset[str] = frozenset()) -> int:
        return round(after.total(name, only=only, but=but) - before.total(name, only=only, but=but))

    counts = load.counts
    yield Check(
        "no answer is wrong: none lost, reordered, doubled or another's",
        not counts[Outcome.WRONG] and counts[Outcome.RIGHT] > 0,
        f"{counts[Outcome.WRONG]} wrong, {counts[Outcome.RIGHT]} right",
    )
    seen, left = sum(counts[outcome] for outcome in FAILURES), counts[Outcome.LEFT]
    counted = grown("governor_upstream_failures_total") + grown("governor_refused_requests_total")
    yield Check(
        "every failure that a client saw is counted",
        seen <= counted <= seen + left,
        f"{seen} seen, {counted} counted; {left} clients had left",
    )
    yield Check(
        "the faults were felt",
        not struck or seen > 0,
        f"{struck} times something was broken, {seen} failures seen",
    )
    requests = grown("governor_requests_total", only="chat")
    yield Check(
        "every request is counted",
        load.asked - left <= requests <= load.asked,
        f"{load.asked} asked, of which {left} left; {requests} counted",
    )
    own = grown("governor_fail_open_total", but=FAIL_OPEN_BY_FAULT)
    yield Check("nothing of the governor failed", not own, f"{own} times it failed open by itself")
    errors = grown("governor_store_errors_total")
    yield Check(
        "every record was written" if not unshared else "a Redis that was gone is counted",
        bool(errors) == bool(unshared),
        f"{errors} errors of the store, {unshared} times Redis was killed",
    )
    for what in ("running", "waiting"):
        number = round(after.total(f"governor_{what}_requests"))
        yield Check(f"no request is {what} any more", not number, f"{number}")
    more = _more(after, before)
    yield Check("no connection or file is left open", not more, str(more or dict(after.files)))
    yield Check(
        "no thread is left",
        after.threads <= before.threads,
        f"{before.threads} before, {after.threads} after",
    )
    conversations = round(after.total("governor_conversations"))
    yield Check(
        "the records are bounded, in memory and on disk",
        max(conversations, stored) <= max_records,
        f"{conversations} conversations, {stored} rows, limit {max_records}",
    )
    most, allowed = max(memory.rss_mb), MOST_MEMORY_MB + (REDIS_MB if unshared else 0)
    yield Check(
        f"memory stays below {allowed:g} MB, and is flat",
        most < allowed and memory.growth_mb < MOST_GROWTH_MB,
        f"{most:.1f} MB at most, {memory.growth_mb:+.1f} MB over the second half",
    )


def rows(store: Path) -> int:
    """Records in the store's file, which nobody writes to any more."""
    with contextlib.closing(sqlite3.connect(store)) as connection:
        (number,) = connection.execute("SELECT count(*) FROM records").fetchone()
        return int(number)


def _more(now: Snapshot, before: Snapshot) -> dict[str, int]:
    """By how many of each kind there are more files than before."""
    return {
        kind: number - before.files.get(kind, 0)
        for kind, number in now.files.items()
        if number > before.files.get(kind, 0)
    }


def _idle(now: Snapshot) -> bool:
    return not now.total("governor_running_requests") and not now.total("governor_waiting_requests")


def _files(pid: int) -> Iterator[str]:
    """The kind of each open file: `socket`, `pipe`, `anon_inode`, or `file`."""
    folder = Path(f"/proc/{pid}/fd")
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            with contextlib.suppress(OSError):
                name = os.readlink(entry)
                yield "file" if name.startswith("/") else name.partition(":")[0]


def _threads(pid: int) -> int:
    with contextlib.suppress(OSError):
        return len(list(Path(f"/proc/{pid}/task").iterdir()))
    return 0
