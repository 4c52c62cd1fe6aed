"""What the answers of the arms come to, with intervals, and what was aimed at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from governor_training.evaluation.statistics import Floats, Interval, resampled_means
from governor_training.finetuning.study.held_out import Answered
from governor_training.finetuning.study.plan import AWR, BASELINES, DENSE, SPARSE, START

FEWER_SPARSE = 0.72
BETTER_DENSE = 0.22
FEWER_OFFLINE = 0.60
"""What is aimed at: shares of the mean of the baselines, and of the start model's calls."""


class Means(NamedTuple):
    """Of one arm over the questions: the values first, then those of each resample. (1 + R,) each."""

    accuracy: Floats
    calls: Floats
    read_calls: Floats


Statistic = Callable[[Mapping[str, Means]], Floats]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The arms of one world on the same questions. `seeds` are those that each arm was trained with; an
    arm's figure is the mean over them. Intervals are 95%, over questions that are drawn anew: they tell of
    these models on other questions, and nothing of other seeds."""

    questions: int
    seeds: Mapping[str, Sequence[int]]
    means: Mapping[str, Means]
    malformed: Mapping[str, int]

    @classmethod
    def of(cls, arms: Mapping[str, Mapping[int | None, Sequence[Answered]]]) -> Comparison:
        """From the answers of each arm by seed. Raises ValueError where arms were asked other questions."""
        tasks = {tuple(one.task for one in rows) for seeds in arms.values() for rows in seeds.values()}
        if len(tasks) != 1:
            raise ValueError("the arms were not asked the same questions in the same order")
        questions = len(tasks.pop())
        columns = [
            np.mean([[measure(one) for one in rows] for rows in seeds.values()], axis=0)
            for seeds in arms.values()
            for measure in (_correct, _calls, _read_calls)
        ]
        means = iter(resampled_means(np.stack(columns, axis=1)).T)
        return cls(
            questions,
            {name: [seed for seed in seeds if seed is not None] for name, seeds in arms.items()},
            {name: Means(next(means), next(means), next(means)) for name in arms},
            {
                name: sum(one.malformed for rows in seeds.values() for one in rows)
                for name, seeds in arms.items()
            },
        )

    def interval(self, statistic: Statistic) -> Interval:
        """Of a figure that is made of the arms' means."""
        found = statistic(self.means)
        low, high = np.quantile(found[1:], (0.025, 0.975))
        return Interval(float(found[0]), float(low), float(high))

    def has(self, *arms: str) -> bool:
        return all(arm in self.means for arm in arms)


def _correct(one: Answered) -> float:
    return float(one.correct)


def _calls(one: Answered) -> float:
    return float(one.calls)


def _read_calls(one: Answered) -> float:
    return float(one.read_calls)


@dataclass(frozen=True, slots=True)
class Target:
    """Something that was aimed at, and what came of it. `met` goes by the values, not by the intervals."""

    name: str
    wanted: str
    reached: Mapping[str, Interval]
    met: bool

    def as_dict(self) -> dict[str, Any]:
        reached = {name: interval._asdict() for name, interval in self.reached.items()}
        return {"name": self.name, "wanted": self.wanted, "reached": reached, "met": self.met}


def baselines(comparison: Comparison) -> list[str]:
    """Those that were played."""
    return [name for name in BASELINES if comparison.has(name)]


def against_baselines(comparison: Comparison, arm: str, measure: str) -> Interval:
    """The change of `measure` of an arm, as a share of the mean of the baselines."""
    names = baselines(comparison)

    def change(means: Mapping[str, Means]) -> Floats:
        base = sum(getattr(means[name], measure) for name in names) / len(names)
        return np.asarray(getattr(means[arm], measure) / np.maximum(base, 1e-9) - 1)

    return comparison.interval(change)


def difference(comparison: Comparison, arm: str, other: str, measure: str = "accuracy") -> Interval:
    """Of a measure, an arm's less another's, on the same questions."""
    return comparison.interval(
        lambda means: np.asarray(getattr(means[arm], measure) - getattr(means[other], measure))
    )


def change(comparison: Comparison, arm: str, other: str, measure: str) -> Interval:
    """The same as a share of the other's."""

    def share(means: Mapping[str, Means]) -> Floats:
        return np.asarray(getattr(means[arm], measure) / np.maximum(getattr(means[other], measure), 1e-9) - 1)

    return comparison.interval(share)


def sparse_target(comparison: Comparison) -> Target:
    """Far fewer calls than the baselines make, and nothing lost by it."""
    reached = {
        "calls": against_baselines(comparison, SPARSE, "calls"),
        "read_calls": against_baselines(comparison, SPARSE, "read_calls"),
        "accuracy": difference(comparison, SPARSE, START),
    }
    met = reached["calls"].value <= -FEWER_SPARSE and reached["accuracy"].value >= 0
    met = met and comparison.has(*BASELINES)
    wanted = f"{FEWER_SPARSE:.0%} fewer calls than {_mean_of(comparison)}, accuracy not below the start's"
    return Target("sparse", wanted, reached, met)


def dense_target(comparison: Comparison) -> Target:
    """Better answers than the baselines give."""
    reached = {
        "performance": against_baselines(comparison, DENSE, "accuracy"),
        **{f"accuracy, less {name}'s": difference(comparison, DENSE, name) for name in baselines(comparison)},
    }
    wanted = f"performance {BETTER_DENSE:.0%} above {_mean_of(comparison)}"
    met = reached["performance"].value >= BETTER_DENSE and comparison.has(*BASELINES)
    return Target("dense", wanted, reached, met)


def _mean_of(comparison: Comparison) -> str:
    """Some may not have been played yet: then nothing is met."""
    return f"the mean of {', '.join(baselines(comparison))}"


def offline_target(comparison: Comparison) -> Target:
    """Fewer calls from logs alone, and nothing lost by it."""
    reached = {
        "calls": change(comparison, AWR, START, "calls"),
        "read_calls": change(comparison, AWR, START, "read_calls"),
        "accuracy": difference(comparison, AWR, START),
    }
    met = reached["calls"].value <= -FEWER_OFFLINE and reached["accuracy"].value >= 0
    wanted = f"{FEWER_OFFLINE:.0%} fewer calls than the start model, accuracy not lower"
    return Target("offline", wanted, reached, met)


def governed_target(comparison: Comparison, trained: str, governed: str, both: str) -> Target:
    """A governor before the trained model, against either alone."""
    reached = {
        f"{measure}, less that of {other}": difference(comparison, both, other, measure)
        for measure in ("calls", "accuracy")
        for other in (trained, governed)
    }
    met = all(
        interval.value < 0 if name.startswith("calls") else interval.value >= 0
        for name, interval in reached.items()
    )
    return Target("governed", "fewer calls than either alone, accuracy not lower than either's", reached, met)


def unharmed_target(comparison: Comparison, arm: str, recommendation: str) -> Target:
    """Training as the diagnosis advises loses nothing."""
    reached = {
        "accuracy": difference(comparison, arm, START),
        "calls": change(comparison, arm, START, "calls"),
    }
    met = recommendation != DENSE and reached["accuracy"].value >= 0
    return Target(
        "noise",
        f"the diagnosis warns (it says: {recommendation}), and its advice loses nothing",
        reached,
        met,
    )
