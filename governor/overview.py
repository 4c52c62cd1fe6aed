"""The records of a store in figures, kept up to date as records come, change and go.

What a call adds to the sums is taken away again when its record changes or is forgotten, so that an update
costs what has changed, and not what is kept. A conversation is compared as a whole: its arm is that of its
first call, as in `governor.outcomes`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from governor.conversations import in_order, turn
from governor.decision import Action
from governor.experiment import Arm
from governor.labels import Label
from governor.outcomes import ArmSummary, Effect, Estimate, Sample, Scores
from governor.prices import Prices
from governor.records import CallRecord, Key

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


@dataclass(frozen=True, slots=True)
class Course:
    """What one conversation took, as far as its calls tell. None where nobody counted.

    `calls` reached the agent. `own_tokens` are those of the governor's probes; `tokens` those of the turns
    that proposed a call, by upstream's count, with the governor's. `seconds` go from the request whose answer
    proposed a call to the request that brought its result: the tool, the agent, and the generation. `money`
    is for tokens and calls together.
    """

    calls: float
    own_tokens: float
    tokens: float | None
    seconds: float | None
    money: float | None

    @classmethod
    def of(cls, records: Sequence[CallRecord], prices: Prices) -> Course:
        """From the records of one conversation."""
        reached = [record for record in records if record.passed]
        # All records of one turn carry the tokens of the whole turn.
        turns = {turn(record): record for record in records}.values()
        own = [_pair(record.usage) for record in turns]
        known = all(record.turn_usage for record in turns)
        spent = [*own, *(_pair(record.turn_usage) for record in turns)]
        prompt, completion = (sum(pair[place] for pair in spent) for place in (0, 1))
        waits = {turn(record): record.returned - record.created for record in reached if record.returned}
        back = all(record.returned is not None for record in reached)
        money = prices.of_tokens(prompt, completion) + sum(prices.of_call(record.tool) for record in reached)
        return cls(
            calls=float(len(reached)),
            own_tokens=float(sum(map(sum, own))),
            tokens=float(prompt + completion) if known else None,
            seconds=sum(waits.values()) if back else None,
            money=money if prices.of_anything and (known or not prices.of_any_token) else None,
        )


MEASURES: Final = ("calls", "own_tokens", "tokens", "seconds", "money")


@dataclass(slots=True)
class Sums:
    """The values of one measure in one arm."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count a value, or with -1 take it back."""
        self.count += times
        self.total += times * value
        self.squares += times * value * value

    def sample(self) -> Sample | None:
        """None without values."""
        if self.count < 1:
            return None
        mean = self.total / self.count
        left = self.squares - self.total * mean
        # What remains of equal values is rounding.
        spread = left / (self.count - 1) if self.count > 1 and left > 1e-9 * self.squares else 0.0
        return Sample(self.count, mean, spread)


@dataclass(slots=True)
class Talk:
    """A conversation: its calls, and what it adds to the sums of its arm."""

    calls: dict[Key, CallRecord] = field(default_factory=dict)
    arm: str = ""
    course: Course | None = None

    @property
    def records(self) -> Sequence[CallRecord]:
        """Oldest first."""
        return in_order(self.calls.values())


class Overview:
    """The figures of all records that are kept. Not safe to use from several threads at once."""

    def __init__(self, prices: Prices | None = None) -> None:
        self.prices = prices or Prices()
        self.total = Tally()
        self.tools: dict[str, Tally] = {}
        self.talks: dict[str, Talk] = {}
        self._records: dict[Key, CallRecord] = {}
        self._seconds: dict[int, list[int]] = {}
        self._arms: dict[str, dict[str, Sums]] = {}
        self._conversations: Counter[str] = Counter()
        self._scores: Mapping[str, float] = {}
        self._compared = Scores.of({})
        self._scored: Counter[str] = Counter()

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

    def score(self, scores: Mapping[str, float]) -> None:
        """Take in how conversations ended."""
        self._scores = scores
        by_arm: dict[str, list[float]] = {arm.value: [] for arm in Arm}
        for conversation, value in scores.items():
            if (talk := self.talks.get(conversation)) is not None:
                by_arm.setdefault(talk.arm, []).append(value)
        self._scored = Counter({arm: len(found) for arm, found in by_arm.items()})
        self._compared = Scores.of(by_arm)

    def score_of(self, conversation: str) -> float | None:
        """How a conversation ended, None where nobody told it."""
        return self._scores.get(conversation)

    def effect(self) -> Effect:
        """Governed conversations against the holdout, as `governor.outcomes.effect` has it."""

        def summary(arm: str) -> ArmSummary:
            return ArmSummary(
                conversations=self._conversations[arm],
                scored=self._scored[arm],
                score=self._compared.estimates.get(arm),
                calls=self._estimate(arm, "calls"),
                tokens=self._estimate(arm, "own_tokens"),
            )

        return Effect(
            governed=summary(Arm.GOVERNED),
            holdout=summary(Arm.HOLDOUT),
            observed=summary(Arm.OBSERVED),
            score=self._compared.difference,
            calls=self._difference("calls"),
            tokens=self._difference("own_tokens"),
            method=self._compared.method,
        )

    def saved(self) -> dict[str, dict[str, Any]]:
        """What governing saved, by measure, JSON-ready: the means of the arms, `difference` (governed minus
        holdout, a conversation), and `saved` by all governed conversations together, with their intervals.
        """
        many = self._conversations[Arm.GOVERNED]
        found = {}
        for measure in MEASURES:
            difference = self._difference(measure)
            found[measure] = {
                "governed": _plain(self._estimate(Arm.GOVERNED, measure)),
                "holdout": _plain(self._estimate(Arm.HOLDOUT, measure)),
                "observed": _plain(self._estimate(Arm.OBSERVED, measure)),
                "difference": _plain(difference),
                "saved": _plain(_times(difference, -many)),
            }
        return found

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
        """Count the conversation anew, now that its calls are others."""
        talk = self.talks[conversation]
        if talk.course is not None:
            self._weigh(talk, -1)
        if not talk.calls:
            del self.talks[conversation]
            return
        records = talk.records
        talk.arm, talk.course = records[0].arm, Course.of(records, self.prices)
        self._weigh(talk, 1)

    def _weigh(self, talk: Talk, times: int) -> None:
        self._conversations[talk.arm] += times
        sums = self._arms.setdefault(talk.arm, {measure: Sums() for measure in MEASURES})
        for measure in MEASURES:
            if (value := getattr(talk.course, measure)) is not None:
                sums[measure].add(value, times)

    def _sample(self, arm: str, measure: str) -> Sample | None:
        return self._arms[arm][measure].sample() if arm in self._arms else None

    def _estimate(self, arm: str, measure: str) -> Estimate | None:
        sample = self._sample(arm, measure)
        return None if sample is None else sample.estimate()

    def _difference(self, measure: str) -> Estimate | None:
        governed, holdout = (self._sample(arm, measure) for arm in (Arm.GOVERNED, Arm.HOLDOUT))
        return None if governed is None or holdout is None else governed.minus(holdout)


def _pair(usage: Mapping[str, int]) -> tuple[int, int]:
    return usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)


def _plain(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else asdict(estimate)


def _times(estimate: Estimate | None, factor: float) -> Estimate | None:
    """A factor below 0 turns the interval round."""
    if estimate is None:
        return None
    ends = sorted(factor * end for end in (estimate.low, estimate.high) if end is not None)
    low, high = ends if len(ends) == 2 else (None, None)
    return Estimate(factor * estimate.value, low, high)
