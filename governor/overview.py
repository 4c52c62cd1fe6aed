"""The records of a store in figures, kept up to date as records come, change and go.

What a call adds to the sums is taken away again when its record changes or is forgotten, so that an update
costs what has changed, and not what is kept. Conversations are compared by `governor.outcomes`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from governor.conversations import in_order
from governor.decision import Action
from governor.experiment import Arm
from governor.labels import Label
from governor.outcomes import effect, effect_of
from governor.prices import Prices
from governor.records import CallRecord, Key
from governor.turn_record import TurnRecord

REDUCTIONS: Final = tuple(edge / 10 for edge in range(-15, 16))
"""Edges, in nats, between the columns of a distribution of entropy reductions; one more on either side."""

MOST_TOOLS: Final = 50
OTHERS: Final = "all other tools"
STEPS_S: Final = (1, 5, 15, 60, 300, 900, 3600, 6 * 3600, 24 * 3600, 7 * 24 * 3600)
"""Lengths of a column of time that people count in."""


def withheld(records: Iterable[CallRecord]) -> int:
    """How many calls did not reach the agent."""
    return sum(not record.passed for record in records)


def would_withhold(record: CallRecord) -> bool:
    """Whether a call passed though the policy speaks against it: observed, held out or explored."""
    return record.passed and record.decision.get("proposed", Action.PASS) != Action.PASS


def step_of(first: float, last: float, most: int, steps: Sequence[int] = STEPS_S) -> int:
    """The shortest step of `steps` (seconds) that covers the time in at most `most` columns."""
    return next((step for step in steps if (last - first) / step < most), steps[-1])


@dataclass(slots=True)
class Tally:
    """Calls, counted. `spared` ones passed against the policy; `governed` ones are of governed conversations;
    `measured` ones have an entropy before them; `reductions` are counts between `REDUCTIONS`."""

    calls: int = 0
    governed: int = 0
    withheld: int = 0
    spared: int = 0
    explored: int = 0
    pruned: int = 0
    measured: int = 0
    labels: Counter[Label] = field(default_factory=Counter)
    reductions: list[int] = field(default_factory=lambda: [0] * (len(REDUCTIONS) + 1))
    reduction: float = 0.0

    @classmethod
    def of(cls, records: Iterable[CallRecord]) -> Tally:
        """All of these."""
        tally = cls()
        for record in records:
            tally.add(record)
        return tally

    def add(self, record: CallRecord, times: int = 1) -> None:
        """Count a call, or with -1 take it back."""
        self.calls += times
        self.governed += times * (record.arm == Arm.GOVERNED)
        self.withheld += times * (not record.passed)
        self.spared += times * would_withhold(record)
        self.explored += times * record.explored
        self.pruned += times * bool(record.stub)
        self.measured += times * (record.entropy_before is not None)
        if (label := record.label) is not None:
            self.labels[label] += times
        if (reduction := record.entropy_reduction) is not None:
            self.reductions[bisect_right(REDUCTIONS, reduction)] += times
            self.reduction += times * reduction

    @property
    def labelled(self) -> int:
        """Calls of which it is known what their result was worth."""
        return self.labels.total()

    @property
    def changed(self) -> int:
        """Labelled calls whose result changed the answer."""
        return sum(count for label, count in self.labels.items() if label.changed)

    @property
    def mean_reduction(self) -> float | None:
        """In nats."""
        count = sum(self.reductions)
        return self.reduction / count if count else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "calls": self.calls,
            "governed": self.governed,
            "withheld": self.withheld,
            "passed": self.calls - self.withheld,
            "spared": self.spared,
            "explored": self.explored,
            "pruned": self.pruned,
            "measured": self.measured,
            "labels": {label.value: self.labels[label] for label in Label},
            "labelled": self.labelled,
            "changed": self.changed,
            "reductions": self.reductions,
            "mean_reduction": self.mean_reduction,
        }


@dataclass(slots=True)
class Talk:
    """A conversation: its calls, and its arm."""

    calls: dict[Key, CallRecord] = field(default_factory=dict)
    arm: str = ""

    @property
    def records(self) -> Sequence[CallRecord]:
        """Oldest first."""
        return in_order(self.calls.values())


class Overview:
    """The figures of all records that are kept. Not safe to use from several threads at once."""

    def __init__(self, prices: Prices | None = None) -> None:
        self.prices = prices or Prices()
        self.effect = effect(())
        self.total = Tally()
        self.tools: dict[str, Tally] = {}
        self.talks: dict[str, Talk] = {}
        self._records: dict[Key, CallRecord] = {}
        self._seconds: dict[int, list[int]] = {}
        self._scores: Mapping[str, float] = {}

    def __len__(self) -> int:
        return len(self._records)

    @property
    def since(self) -> int | None:
        """The second of the oldest call that is kept."""
        return min(self._seconds, default=None)

    def update(self, records: Iterable[CallRecord]) -> int:
        """Take in what is kept now, all of it: how many records are new, others, or gone."""
        fresh = {record.key: record for record in records}
        known = self._records
        changed = [(key, record) for key, record in fresh.items() if known.get(key) is not record]
        gone = known.keys() - fresh.keys() if len(known) + len(changed) != len(fresh) else set()
        touched: dict[str, None] = {}
        for key in gone:
            self._forget(key)
            touched[key[0]] = None
        for key, record in changed:
            if key in known:
                self._forget(key)
            self._keep(key, record)
            touched[key[0]] = None
        for conversation in touched:
            self._settle(conversation)
        return len(changed) + len(gone)

    def compare(self, turns: Sequence[TurnRecord], scores: Mapping[str, float], now: float) -> None:
        """Take in what conversations took, and how they ended."""
        self._scores = scores
        self.effect = effect_of(turns, scores, self.prices, now)

    def score_of(self, conversation: str) -> float | None:
        """How a conversation ended, None where nobody told it."""
        return self._scores.get(conversation)

    def over_time(self, most: int = 90) -> dict[str, Any]:
        """Calls in columns of time, at most `most`, JSON-ready: the first moments (seconds), the step, and
        the calls passed and withheld in each."""
        if not self._seconds:
            return {"step": STEPS_S[0], "times": [], "passed": [], "withheld": []}
        first, last = min(self._seconds), max(self._seconds)
        step = step_of(first, last, most)
        start = first - first % step
        many = (last - start) // step + 1
        columns = [[0] * many, [0] * many]
        for second, counts in self._seconds.items():
            for column, count in zip(columns, counts, strict=True):
                column[(second - start) // step] += count
        times = [start + step * place for place in range(many)]
        return {"step": step, "times": times, "passed": columns[0], "withheld": columns[1]}

    def lately(self, now: float, seconds: int = 60) -> list[int]:
        """Calls in each of the last whole seconds, oldest first."""
        moments = range(int(now) - seconds, int(now))
        return [sum(self._seconds.get(moment, ())) for moment in moments]

    def by_tool(self) -> dict[str, Tally]:
        """The calls of the most used tools, most used first, and those of all others together."""
        ordered = sorted(self.tools.items(), key=lambda item: (-item[1].calls, item[0]))
        found = dict(ordered[:MOST_TOOLS])
        if rest := {tool for tool, _ in ordered[MOST_TOOLS:]}:
            found[OTHERS] = Tally.of(record for record in self._records.values() if record.tool in rest)
        return found

    def newest(self, wanted: Callable[[Talk], bool], start: int, many: int) -> tuple[list[str], int]:
        """The names of the conversations that are `wanted`, last changed first: `many` from `start` on, and
        how many there are."""
        names = [name for name in reversed(self.talks) if wanted(self.talks[name])]
        return names[start : start + many], len(names)

    def _keep(self, key: Key, record: CallRecord) -> None:
        self._records[key] = record
        self._count(record, 1)
        talk = self.talks.pop(key[0], None) or Talk()
        talk.calls[key] = record
        self.talks[key[0]] = talk

    def _forget(self, key: Key) -> None:
        self._count(self._records.pop(key), -1)
        del self.talks[key[0]].calls[key]

    def _count(self, record: CallRecord, times: int) -> None:
        self.total.add(record, times)
        tally = self.tools.setdefault(record.tool, Tally())
        tally.add(record, times)
        if not tally.calls:
            del self.tools[record.tool]
        second = int(record.created)
        counts = self._seconds.setdefault(second, [0, 0])
        counts[not record.passed] += times
        if not any(counts):
            del self._seconds[second]

    def _settle(self, conversation: str) -> None:
        """Put the conversation in its arm, now that its calls are others."""
        talk = self.talks[conversation]
        if talk.calls:
            talk.arm = talk.records[0].arm
        else:
            del self.talks[conversation]
