"""Means, shares and their differences, each with an interval that the number of values can bear.

Methods. The score interval of a share: E. B. Wilson (1927), JASA 22:209-212. The interval of a difference of
two shares: method 10 of R. G. Newcombe (1998), Statistics in Medicine 17:873-890. Both hold for few values,
since a share is bounded.

What a conversation took is not bounded, and it is skewed: most take little and a few take very much. Where
few values are seen, the few large ones are mostly missing, and Student's and Welch's intervals (B. L. Welch
(1947), Biometrika 34:28-35) miss the truth two to three times as often as they say. So their t statistic is
corrected for skewness by P. Hall's transformation (1992, JRSS B 54:221-228), for two samples as X.-H. Zhou
and P. Dinh (2005), Biostatistics 6:187-200. And in a comparison neither sample is believed to vary much less
than the two do together: each borrows `BORROWED` values' worth of spread and skewness from both. The
skewness itself is a guess where values are few, so an interval reaches as far as the uncorrected one on
either side. Below `LEAST` values in a sample there is no interval. `python -m benchmarks.intervals` measures
the coverage beside Welch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import atan, cbrt, cos, exp, lgamma, pi, sqrt
from statistics import NormalDist, fmean

LEVEL = 0.95
LEAST = 10
"""Fewer values than this tell too little of their own spread for an interval of a mean."""
BORROWED = 20
"""How many values' worth of spread a sample takes from both samples together."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95% interval; the ends are None where the data allow none."""

    value: float
    low: float | None = None
    high: float | None = None

    def times(self, factor: float) -> Estimate:
        """The estimate of `factor` times the quantity; a negative factor swaps the ends."""
        if self.low is None or self.high is None:
            return Estimate(factor * self.value)
        low, high = sorted((factor * self.low, factor * self.high))
        return Estimate(factor * self.value, low, high)


@dataclass(frozen=True, slots=True)
class Moments:
    """Number, mean, variance (unbiased) and third central moment of at least one value."""

    count: int
    mean: float
    variance: float
    third: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Moments:
        """Raises `statistics.StatisticsError` without values."""
        mean, count = fmean(values), len(values)
        squares = sum((value - mean) ** 2 for value in values)
        third = sum((value - mean) ** 3 for value in values) / count
        # What remains of equal values is rounding.
        spread = squares / (count - 1) if count > 1 and squares > 1e-18 * mean * mean * count else 0.0
        return cls(count, mean, spread, third if spread else 0.0)

    @property
    def squared_error(self) -> float:
        """Variance of the mean."""
        return self.variance / self.count

    @property
    def third_of_mean(self) -> float:
        """Third central moment of the mean."""
        return self.third / self.count**2

    def borrowing_from(self, other: Moments) -> Moments:
        """With the spread and the skewness of both samples together mixed in, where that makes them
        larger."""
        free, others = self.count - 1, other.count - 1
        spread = (free * self.variance + others * other.variance) / (free + others)
        skew = (self.count * self.third + other.count * other.third) / (self.count + other.count)
        variance, third = _mixed(self.variance, free, spread), _mixed(self.third, self.count, skew)
        return replace(self, variance=max(self.variance, variance), third=max(self.third, third))


def mean(values: Sequence[float]) -> Estimate | None:
    """The mean, with a skewness-corrected t interval from `LEAST` values on. There is none where all values
    are the same, which says nothing of their spread. None without values."""
    if not values:
        return None
    found = Moments.of(values)
    if found.count < LEAST or not found.variance:
        return Estimate(found.mean)
    return _interval(found.mean, found.squared_error, found.third_of_mean, found.count - 1)


def mean_difference(first: Sequence[float], second: Sequence[float]) -> Estimate | None:
    """Mean of the first minus that of the second, with a skewness-corrected Welch interval from `LEAST`
    values in each on. There is none where neither varies. None where one is empty."""
    if not first or not second:
        return None
    one, other = Moments.of(first), Moments.of(second)
    value = one.mean - other.mean
    if min(one.count, other.count) < LEAST or not one.variance + other.variance:
        return Estimate(value)
    one, other = one.borrowing_from(other), other.borrowing_from(one)
    error = one.squared_error + other.squared_error
    # Welch's formula in parts of the whole, where the squares of tiny variances do not vanish.
    part = one.squared_error / error
    freedom = 1 / (part**2 / (one.count - 1) + (1 - part) ** 2 / (other.count - 1))
    return _interval(value, error, one.third_of_mean - other.third_of_mean, freedom)


def _mixed(own: float, count: int, borrowed: float) -> float:
    return (count * own + BORROWED * borrowed) / (count + BORROWED)


def _interval(value: float, squared_error: float, third: float, freedom: float) -> Estimate:
    error = sqrt(squared_error)
    skew = third / error**3
    t = t_quantile((1 + LEVEL) / 2, freedom)
    below, above = max(t, _uncorrected(t, skew)), max(t, -_uncorrected(-t, skew))
    return Estimate(value, value - error * below, value + error * above)


def _uncorrected(x: float, skew: float) -> float:
    """The t statistic whose skewness-corrected value is `x`: the inverse of Hall's
    `t + skew t^2 / 3 + skew^2 t^3 / 27 + skew / 6`, which rises everywhere."""
    if abs(skew) < 1e-6:
        return x
    return 3 / skew * (cbrt(1 + skew * (x - skew / 6)) - 1)


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


def _ends(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high
