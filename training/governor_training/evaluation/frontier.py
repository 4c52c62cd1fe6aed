"""At each budget of calls: is the calibrated gate at least as accurate as the others?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from governor_training.evaluation.played import Played
from governor_training.evaluation.statistics import Interval, mean_interval

TOLERANCE = 1e-9


class Standing(StrEnum):
    """AT_LEAST: no less accurate. WITHIN: less, but the interval holds 0. BELOW: less, by more than the
    interval allows. NO_POINT: the gate was never that sparing."""

    AT_LEAST = "at least"
    WITHIN = "within the interval"
    BELOW = "below"
    NO_POINT = "no point"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A baseline's point against the gate's most accurate one that makes no more calls (the upper envelope of
    its frontier). `difference` is the gate's accuracy minus the baseline's, paired by task."""

    baseline: str
    calls: float
    accuracy: float
    gate: str | None
    gate_calls: float | None
    gate_accuracy: float | None
    difference: Interval | None
    standing: Standing


def dominance(
    gates: Mapping[str, Sequence[Played]], baselines: Mapping[str, Sequence[Played]]
) -> list[Comparison]:
    """Each baseline's point, by falling number of calls. All runs are of the same tasks in the same order.

    The best of several points is chosen on the same tasks that it is compared on, which favours the gate a
    little; the choice is among as many points as there are.
    """
    found = [_compared(name, played, gates) for name, played in baselines.items()]
    return sorted(found, key=lambda one: -one.calls)


def _compared(name: str, played: Sequence[Played], gates: Mapping[str, Sequence[Played]]) -> Comparison:
    calls, accuracy = mean_calls(played), mean_accuracy(played)
    within = {gate: runs for gate, runs in gates.items() if mean_calls(runs) <= calls + TOLERANCE}
    if not within:
        return Comparison(name, calls, accuracy, None, None, None, None, Standing.NO_POINT)
    best = max(within, key=lambda gate: (mean_accuracy(within[gate]), -mean_calls(within[gate])))
    runs = within[best]
    difference = mean_interval(
        [float(a.correct) - b.correct for a, b in zip(runs, played, strict=True)],
        [one.task for one in played],
    )
    if difference.value >= -TOLERANCE:
        standing = Standing.AT_LEAST
    elif difference.high is not None and difference.high >= 0:
        standing = Standing.WITHIN
    else:
        standing = Standing.BELOW
    return Comparison(
        name, calls, accuracy, best, mean_calls(runs), mean_accuracy(runs), difference, standing
    )


def mean_calls(played: Sequence[Played]) -> float:
    return fmean(one.calls for one in played)


def mean_accuracy(played: Sequence[Played]) -> float:
    return fmean(one.correct for one in played)
