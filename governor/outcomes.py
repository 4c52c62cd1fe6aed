"""What governing did to the outcomes: governed conversations against the holdout.

The holdout is a share of the conversations, drawn by lottery, that is only observed. Both arms are judged by
the conversations that proposed a call at all: nothing is governed before the first proposal, so this choice
is the same in both, and the difference between them is the effect of governing. An arm is what the lottery
said, also where no call was withheld in the end. Nothing here knows why a score is missing: where the arms
differ in their share of scored conversations, ask that first.

Methods. The score interval of a share of passes: E. B. Wilson (1927), JASA 22:209-212. The interval of a
difference of two shares: method 10 of R. G. Newcombe (1998), Statistics in Medicine 17:873-890. The interval
of a difference of two means: B. L. Welch (1947), Biometrika 34:28-35. Each holds for one look: who looks
every day, and stops on the day that pleases, is less sure than these say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import atan, ceil, cos, exp, lgamma, pi, sqrt
from statistics import NormalDist, fmean, variance
from typing import Any

from governor.conversations import turn
from governor.experiment import Arm
from governor.records import CallRecord

LEVEL = 0.95
MARGIN = 0.01
"""The loss of score that the sentence speaks of: one point of a hundred."""

PASS_OR_FAIL = "Wilson's score interval; Newcombe's method 10 for the difference"
MEANS = "Student's t interval; Welch's for the difference"


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation that proposed a call. `score` is in [0, 1], None where nobody told it; `calls` counts
    those that reached the agent, `tokens` what the governor's own probes took."""

    arm: str
    score: float | None
    calls: int
    tokens: int = 0

    @classmethod
    def of(cls, records: Sequence[CallRecord], score: float | None) -> Conversation:
        """From the records of one conversation, oldest first. Its arm is that of its first call: a change of
        mode in the middle must not move it to the side that suits its course.

        Raises ValueError without records.
        """
        if not records:
            raise ValueError("a conversation without a call is in no arm")
        # All records of one turn carry the tokens of the whole turn.
        turns = {turn(record): sum(record.usage.values()) for record in records}
        passed = sum(record.passed for record in records)
        return cls(records[0].arm, score, passed, sum(turns.values()))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95% interval; the ends are None where the data allow none."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """Values of which the number, the mean and the variance are known; at least one."""

    count: int
    mean: float
    variance: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Sample | None:
        """None without values."""
        if not values:
            return None
        return cls(len(values), fmean(values), variance(values) if len(values) > 1 else 0.0)

    def estimate(self) -> Estimate:
        """The mean, with Student's t interval. There is none where all values are the same, which says
        nothing of their spread."""
        squared_error = self.variance / self.count
        if squared_error == 0:
            return Estimate(self.mean)
        half = t_quantile((1 + LEVEL) / 2, self.count - 1) * sqrt(squared_error)
        return Estimate(self.mean, self.mean - half, self.mean + half)

    def minus(self, other: Sample) -> Estimate:
        """The difference of the means, with Welch's interval. There is none where one has a single value, or
        where neither varies."""
        value = self.mean - other.mean
        if min(self.count, other.count) < 2:
            return Estimate(value)
        one, two = self.variance / self.count, other.variance / other.count
        if one + two == 0:
            return Estimate(value)
        # Welch's formula in parts of the whole, where the squares of tiny variances do not vanish.
        part = one / (one + two)
        freedom = 1 / (part**2 / (self.count - 1) + (1 - part) ** 2 / (other.count - 1))
        half = t_quantile((1 + LEVEL) / 2, freedom) * sqrt(one + two)
        return Estimate(value, value - half, value + half)


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """An arm in figures: numbers of conversations, and means over them (None without any)."""

    conversations: int
    scored: int
    score: Estimate | None
    calls: Estimate | None
    tokens: Estimate | None


@dataclass(frozen=True, slots=True)
class Effect:
    """The arms, and governed minus holdout in score, calls and tokens a conversation. A difference is None
    where an arm has no value. `method` says how the intervals of the scores were made."""

    governed: ArmSummary
    holdout: ArmSummary
    observed: ArmSummary
    score: Estimate | None
    calls: Estimate | None
    tokens: Estimate | None
    method: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, with the sentence."""
        return {**asdict(self), "level": LEVEL, "sentence": self.sentence()}

    def sentence(self) -> str:
        """What it means, for a reader who will not look at the figures."""
        return " ".join(part for part in (self._of_scores(), self._of_calls()) if part)

    def more_needed(self) -> int | None:
        """How many more scored conversations, split over the arms as now, would exclude a loss of `MARGIN` if
        there is none; 0 where it is excluded. The width of an interval falls with the root of their number.
        """
        if self.score is None or self.score.low is None or self.score.high is None:
            return None
        if self.score.low > -MARGIN:
            return 0
        now = self.governed.scored + self.holdout.scored
        half = (self.score.high - self.score.low) / 2
        return max(1, ceil(now * ((half / MARGIN) ** 2 - 1)))

    def _of_scores(self) -> str:
        score = self.score
        if score is None:
            return (
                "There is no comparison of scores yet: it needs scored conversations in both arms, and"
                f" {self.governed.scored:,} governed and {self.holdout.scored:,} of the holdout are scored."
            )
        said = f"Governed conversations scored {_points(score.value)} the holdout"
        if score.low is None or score.high is None:
            return f"{said}; the scores are too few or too alike for an interval."
        interval = f"95% interval {100 * score.low:+.1f} to {100 * score.high:+.1f}"
        return f"{said} ({interval}): {self._verdict(score.low, score.high)}."

    def _verdict(self, low: float, high: float) -> str:
        if high < 0:
            return "harm is shown"
        if low > 0:
            return "governing helped"
        if low > -MARGIN:
            return "no harm is shown, and a loss of one point is excluded"
        more = float(f"{self.more_needed() or 0:.2g}")
        return f"no harm is shown; about {more:,.0f} more would be needed to exclude a loss of one point"

    def _of_calls(self) -> str:
        calls = self.calls
        if calls is None:
            return ""
        than = "fewer" if calls.value < 0 else "more"
        many = f"{abs(calls.value):.2f} calls {than}" if round(calls.value, 2) else "as many calls"
        said = f"A governed conversation made {many}"
        if calls.low is None or calls.high is None:
            return f"{said}."
        return f"{said} (95% interval {calls.low:+.2f} to {calls.high:+.2f})."


def effect(conversations: Iterable[Conversation]) -> Effect:
    """The effect of governing. The scores are compared as shares if every one of them is 0 or 1, else as
    means."""
    by_arm: dict[str, list[Conversation]] = {Arm.GOVERNED: [], Arm.HOLDOUT: [], Arm.OBSERVED: []}
    for conversation in conversations:
        by_arm.setdefault(conversation.arm, []).append(conversation)
    scores = {arm: [each.score for each in found if each.score is not None] for arm, found in by_arm.items()}
    calls = {arm: [float(each.calls) for each in found] for arm, found in by_arm.items()}
    tokens = {arm: [float(each.tokens) for each in found] for arm, found in by_arm.items()}
    compared = Scores.of(scores)

    def summary(arm: str) -> ArmSummary:
        return ArmSummary(
            conversations=len(by_arm[arm]),
            scored=len(scores[arm]),
            score=compared.estimates[arm],
            calls=mean(calls[arm]),
            tokens=mean(tokens[arm]),
        )

    return Effect(
        governed=summary(Arm.GOVERNED),
        holdout=summary(Arm.HOLDOUT),
        observed=summary(Arm.OBSERVED),
        score=compared.difference,
        calls=mean_difference(calls[Arm.GOVERNED], calls[Arm.HOLDOUT]),
        tokens=mean_difference(tokens[Arm.GOVERNED], tokens[Arm.HOLDOUT]),
        method=compared.method,
    )


@dataclass(frozen=True, slots=True)
class Scores:
    """The mean score of each arm, and governed minus holdout; None where there are no scores. `method` says
    how the intervals were made."""

    estimates: Mapping[str, Estimate | None]
    difference: Estimate | None
    method: str

    @classmethod
    def of(cls, scores: Mapping[str, Sequence[float]]) -> Scores:
        """From the scores of each arm: as shares if every one of them is 0 or 1, else as means."""
        shares = all(score in (0.0, 1.0) for found in scores.values() for score in found)
        estimate, difference = (share, share_difference) if shares else (_mean_score, _score_difference)
        return cls(
            {arm: estimate(found) for arm, found in scores.items()},
            difference(scores.get(Arm.GOVERNED, ()), scores.get(Arm.HOLDOUT, ())),
            PASS_OR_FAIL if shares else MEANS,
        )


def share(values: Sequence[float]) -> Estimate | None:
    """The share of ones among zeros and ones, with Wilson's score interval; None without values.

    >>> share([1.0] * 81 + [0.0] * 182)
    Estimate(value=0.307..., low=0.255..., high=0.366...)
    """
    if not values:
        return None
    count, value, z = len(values), fmean(values), NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle = value + z * z / (2 * count)
    half = z * sqrt(value * (1 - value) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    # Rounding must not put the end of an interval beyond the value itself, at 0 and at 1.
    return Estimate(value, min(value, (middle - half) / scale), max(value, (middle + half) / scale))


def share_difference(first: Sequence[float], second: Sequence[float]) -> Estimate | None:
    """Share of ones in the first minus that in the second, with Newcombe's interval; None where one is empty.

    Newcombe's own example, 56 of 70 against 48 of 80:

    >>> share_difference([1.0] * 56 + [0.0] * 14, [1.0] * 48 + [0.0] * 32)
    Estimate(value=0.2..., low=0.052..., high=0.333...)
    """
    one, other = share(first), share(second)
    if one is None or other is None:
        return None
    below_one, above_one = _ends(one)
    below_other, above_other = _ends(other)
    value = one.value - other.value
    low = value - sqrt((one.value - below_one) ** 2 + (above_other - other.value) ** 2)
    high = value + sqrt((above_one - one.value) ** 2 + (other.value - below_other) ** 2)
    return Estimate(value, low, high)


def mean(values: Sequence[float]) -> Estimate | None:
    """The mean, with its interval by `Sample.estimate`; None without values."""
    sample = Sample.of(values)
    return None if sample is None else sample.estimate()


def mean_difference(first: Sequence[float], second: Sequence[float]) -> Estimate | None:
    """Mean of the first minus that of the second, with its interval by `Sample.minus`; None where one is
    empty."""
    one, other = Sample.of(first), Sample.of(second)
    return None if one is None or other is None else one.minus(other)


def t_quantile(p: float, freedom: float) -> float:
    """The quantile of Student's t, for p in (0.5, 1) and `freedom` of at least 1, good to six figures.

    By bisection of its distribution function, which is integrated with Simpson's rule after the substitution
    t = sqrt(freedom) tan(angle), which makes the density a power of a cosine.

    >>> round(t_quantile(0.975, 1), 3), round(t_quantile(0.975, 10), 3), round(t_quantile(0.975, 1e6), 3)
    (12.706, 2.228, 1.96)
    """
    low = NormalDist().inv_cdf(p)
    high = 2 * low
    while _t_between(high, freedom) < p - 0.5:
        low, high = high, 2 * high
    while high - low > 1e-8 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_between(middle, freedom) < p - 0.5 else (low, middle)
    return (low + high) / 2


def _t_between(t: float, freedom: float, intervals: int = 32) -> float:
    """The probability of (0, t)."""
    width = atan(t / sqrt(freedom)) / intervals
    heights: list[float] = [cos(i * width) ** (freedom - 1) for i in range(intervals + 1)]
    area = width / 3 * (heights[0] + 4 * sum(heights[1::2]) + 2 * sum(heights[2:-1:2]) + heights[-1])
    factor = exp(lgamma((freedom + 1) / 2) - lgamma(freedom / 2)) / sqrt(pi)
    return area * factor


def _mean_score(values: Sequence[float]) -> Estimate | None:
    return _clipped(mean(values), 0.0)


def _score_difference(first: Sequence[float], second: Sequence[float]) -> Estimate | None:
    return _clipped(mean_difference(first, second), -1.0)


def _clipped(estimate: Estimate | None, least: float) -> Estimate | None:
    """A score is at most 1, which the t interval does not know."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return estimate
    return Estimate(estimate.value, max(least, estimate.low), min(1.0, estimate.high))


def _ends(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


def _points(difference: float) -> str:
    if round(100 * difference, 1) == 0:
        return "the same as"
    return f"{abs(100 * difference):.1f} points {'lower' if difference < 0 else 'higher'} than"
