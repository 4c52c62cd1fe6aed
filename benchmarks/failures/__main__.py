"""Precision and recall of the table of failures, by group, on each part of the corpus."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import eq

from benchmarks.failures.corpus import COLLECTIONS, PARTS, Entry, read
from governor.calls import ToolCatalog
from governor.conversation import executed_calls

FAILURES = frozenset({"failed", "transient"})


def outcome(entry: Entry) -> str:
    """What the governor makes of it."""
    [executed] = executed_calls((entry.message,), ToolCatalog())
    return executed.outcome.value


@dataclass(frozen=True, slots=True)
class Score:
    """How well one kind of outcome is recognised: `found` of `real` ones, and `wrong` ones beside them."""

    real: int
    found: int
    wrong: int

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, str]], is_one: Callable[[str], bool]) -> Score:
        """From the true outcomes and those that were read."""
        hits = [(is_one(true), is_one(read)) for true, read in pairs]
        return cls(sum(true for true, _ in hits), hits.count((True, True)), hits.count((False, True)))

    @property
    def recall(self) -> float:
        return self.found / self.real if self.real else 1.0

    @property
    def precision(self) -> float:
        return self.found / (self.found + self.wrong) if self.found + self.wrong else 1.0


def is_failure(outcome: str) -> bool:
    return outcome in FAILURES


def failures(entries: Iterable[Entry]) -> Score:
    """How well failures are told from all else."""
    return Score.of([(entry.outcome, outcome(entry)) for entry in entries], is_failure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.failures", description=__doc__)
    parser.add_argument(
        "--errors", action="store_true", help="show what of the development parts is judged wrongly"
    )
    if parser.parse_args().errors:
        for development, _ in COLLECTIONS:
            show_errors(read(development))
        return
    for part in PARTS:
        show(part, read(part))


def show(part: str, entries: Sequence[Entry]) -> None:
    print(f"\n{part}: {len(entries)} results")
    print(f"{'':<18}{'entries':>8}{'failures':>10}{'missed':>8}{'wrong':>7}{'recall':>9}{'precision':>11}")
    for group in sorted({entry.group for entry in entries}):
        line(group, len(of := [entry for entry in entries if entry.group == group]), failures(of))
    for how in sorted({entry.how for entry in entries}):
        line(f"[{how}]", len(of := [entry for entry in entries if entry.how == how]), failures(of))
    line("all failures", len(entries), failures(entries))
    pairs = [(entry.outcome, outcome(entry)) for entry in entries]
    for kind in ("transient", "empty", "unfinished"):
        line(f"as {kind}", len(entries), Score.of(pairs, partial(eq, kind)))


def line(name: str, entries: int, score: Score) -> None:
    recall = f"{score.recall:.1%}" if score.real else "-"
    precision = f"{score.precision:.1%}" if score.found else "-"
    missed = score.real - score.found
    print(f"{name:<18}{entries:>8}{score.real:>10}{missed:>8}{score.wrong:>7}{recall:>9}{precision:>11}")


def show_errors(entries: Iterable[Entry]) -> None:
    for entry in entries:
        if (read_as := outcome(entry)) != entry.outcome:
            text = entry.content if isinstance(entry.content, str) else json.dumps(entry.content)
            print(f"{entry.outcome} read as {read_as} [{entry.group}, {entry.source}]\n    {text[:300]!r}")


if __name__ == "__main__":
    main()
