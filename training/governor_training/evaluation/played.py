"""What is kept of a run once it is judged, and the figures of many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import median
from typing import Any

from governor.decision import Reason
from governor.pruning import estimated_tokens
from governor_training.agent import RIGHT, Run
from governor_training.compare import effectful_withheld, removals, withheld_needed
from governor_training.evaluation.statistics import (
    Interval,
    mean_interval,
    median_ratio,
    proportion,
    share_interval,
)
from governor_training.replay import Value

MARGIN = 0.01
"""The loss of accuracy, one point, that non-inferiority must exclude."""

LONG_RESULT = 256
"""Estimated tokens of a result that is worth pruning."""


@dataclass(frozen=True, slots=True)
class Truth:
    """The ungoverned run of a task, with the true value of each of its read-only calls."""

    run: Run
    values: Sequence[Value]


@dataclass(frozen=True, slots=True)
class Played:
    """One run, judged. `removed` has an entry for each avoidable call of the ungoverned run, `needed` one for
    each call withheld for good, in order. Tokens: what the agent's own requests cost, and what the governor
    added. `saved_tokens`: by how much pruning made the prompts shorter. `long`: ungoverned, the conversation
    has a long result."""

    seed: int
    task: str
    score: float
    calls: int
    removed: tuple[bool, ...] = ()
    needed: tuple[bool, ...] = ()
    delayed: int = 0
    effectful: int = 0
    effectful_withheld: int = 0
    malformed: int = 0
    requests: int = 0
    seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    added: Mapping[str, int] = field(default_factory=dict)
    saved_tokens: int = 0
    long: bool = False

    @classmethod
    def of(cls, run: Run, truth: Truth, effectful: Collection[str], seed: int) -> Played:
        """`run` is of the same task as `truth`."""
        withheld = effectful_withheld([run], effectful)
        own = run.own_tokens
        return cls(
            seed=seed,
            task=run.task.id,
            score=run.score,
            calls=len(run.calls),
            removed=tuple(removals(run, truth.values)),
            needed=tuple(withheld_needed(truth.run, run, truth.values)),
            delayed=sum(decision["reason"] == Reason.ASKED_AGAIN for decision in run.decisions),
            effectful=withheld.total,
            effectful_withheld=withheld.count,
            malformed=run.malformed,
            requests=run.requests,
            seconds=run.seconds,
            prompt_tokens=run.tokens["prompt"] - _of_kind(own, "prompt"),
            completion_tokens=run.tokens["completion"] - _of_kind(own, "completion"),
            added=dict(own),
            saved_tokens=sum((said.get("pruning") or {}).get("saved_tokens", 0) for said in run.explanations),
            long=_is_long(truth.run),
        )

    @classmethod
    def bare(cls, run: Run, seed: int) -> Played:
        """An ungoverned run; what was asked beside it to measure is left out."""
        own = run.own_tokens
        return cls(
            seed=seed,
            task=run.task.id,
            score=run.score,
            calls=len(run.calls),
            malformed=run.malformed,
            requests=run.requests,
            seconds=run.seconds,
            prompt_tokens=run.tokens["prompt"] - _of_kind(own, "prompt"),
            completion_tokens=run.tokens["completion"] - _of_kind(own, "completion"),
            long=_is_long(run),
        )

    @property
    def correct(self) -> bool:
        return self.score >= RIGHT

    @property
    def added_tokens(self) -> int:
        return sum(self.added.values())

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens + self.added_tokens


def _is_long(run: Run) -> bool:
    return any(estimated_tokens(call.result) >= LONG_RESULT for call in run.calls)


def _of_kind(tokens: Counter[str], kind: str) -> int:
    return sum(number for name, number in tokens.items() if name.endswith(f"_{kind}"))


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one setting over all tasks and seeds. Intervals are 95%; those over tasks resample
    tasks, the seeds of one together. Tokens are means a task. `long_prompt_change` is that of the agent's
    prompt tokens in the `long` conversations, `long_difference` that of their accuracy; None without any."""

    tasks: int
    accuracy: Interval
    score: Interval
    difference: Interval
    non_inferior: bool
    calls: Interval
    avoidable_removed: Interval
    avoidable_total: int
    withheld: int
    withheld_needed: int
    needed_share: Interval
    unsafe_first_stops: Interval
    stopped: int
    delayed: int
    effectful: int
    effectful_withheld: int
    malformed: int
    prompt_tokens: float
    completion_tokens: float
    probe_tokens: float
    continuation_tokens: float
    total_tokens: float
    tokens_change: Interval
    saved_tokens: float
    long: int
    long_prompt_change: Interval | None
    long_difference: Interval | None

    @classmethod
    def of(cls, played: Sequence[Played], base: Sequence[Played]) -> Figures:
        """`base[i]` is the ungoverned run of the task of `played[i]`."""
        if [(one.seed, one.task) for one in played] != [(one.seed, one.task) for one in base]:
            raise ValueError("the runs are not of the same tasks in the same order")
        tasks = [one.task for one in played]
        difference = _difference(played, base)
        pairs = [(a, b) for a, b in zip(played, base, strict=True) if b.long]
        long, long_base = [a for a, _ in pairs], [b for _, b in pairs]
        removed = [gone for one in played for gone in one.removed]
        needed = [bad for one in played for bad in one.needed]
        first = [one.needed[0] for one in played if one.needed]
        added = [Counter(one.added) for one in played]
        continuation = [_starting(one, ("continuation", "answer")) for one in added]
        return cls(
            tasks=len(played),
            accuracy=share_interval([one.correct for one in played], tasks),
            score=share_interval([one.score for one in played], tasks),
            difference=difference,
            non_inferior=difference.low is not None and difference.low > -MARGIN,
            calls=mean_interval([one.calls for one in played], tasks),
            avoidable_removed=proportion(sum(removed), len(removed)),
            avoidable_total=len(removed),
            withheld=len(needed),
            withheld_needed=sum(needed),
            needed_share=proportion(sum(needed), len(needed)),
            unsafe_first_stops=proportion(sum(first), len(played)),
            stopped=len(first),
            delayed=sum(one.delayed for one in played),
            effectful=sum(one.effectful for one in played),
            effectful_withheld=sum(one.effectful_withheld for one in played),
            malformed=sum(one.malformed for one in played),
            prompt_tokens=_mean([one.prompt_tokens for one in played]),
            completion_tokens=_mean([one.completion_tokens for one in played]),
            probe_tokens=_mean([_starting(one, ("probe", "label")) for one in added]),
            continuation_tokens=_mean(continuation),
            total_tokens=_mean([one.total_tokens for one in played]),
            tokens_change=_relative_change(played, base, lambda one: one.total_tokens),
            saved_tokens=_mean([one.saved_tokens for one in played]),
            long=len(long),
            long_prompt_change=_relative_change(long, long_base, lambda one: one.prompt_tokens)
            if long
            else None,
            long_difference=_difference(long, long_base) if long else None,
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; an interval is an object with `value`, `low` and `high`."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {n: v._asdict() if isinstance(v, Interval) else v for n, v in values.items()}


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds a task in the arms that were played through real servers, task by task in random order."""

    median_seconds: float
    ratio: Interval


def timing(played: Sequence[Played], base: Sequence[Played]) -> Timing:
    """`ratio` is that of the medians, to the ungoverned arm."""
    seconds, before = [one.seconds for one in played], [one.seconds for one in base]
    return Timing(median(seconds), median_ratio(seconds, before))


def _starting(tokens: Mapping[str, int], purposes: tuple[str, ...]) -> int:
    return sum(number for name, number in tokens.items() if name.startswith(purposes))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _difference(played: Sequence[Played], base: Sequence[Played]) -> Interval:
    """Of the accuracy, paired by task."""
    changes = [float(a.correct) - b.correct for a, b in zip(played, base, strict=True)]
    return mean_interval(changes, [one.task for one in played])


def _relative_change(
    played: Sequence[Played], base: Sequence[Played], tokens: Callable[[Played], int]
) -> Interval:
    """The change of `tokens` as a share of the ungoverned ones, with the interval of the mean paired
    difference."""
    before = _mean([tokens(one) for one in base]) or 1.0
    changes = [(tokens(a) - tokens(b)) / before for a, b in zip(played, base, strict=True)]
    return mean_interval(changes, [one.task for one in played])
