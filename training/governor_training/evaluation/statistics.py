"""Intervals and scores that more than one table needs. Everything random has a fixed seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, rankdata
from sklearn.metrics import average_precision_score

RESAMPLES = 2000
SLOW_RESAMPLES = 500
"""Of a statistic that has to be computed anew for each resample."""
CONFIDENCE = 0.95
_SEED = 20_260_000

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """A value with the ends of its 95% interval; the ends are None where there is no interval to be had."""

    value: float
    low: float | None
    high: float | None


def mean_interval(values: Sequence[float], clusters: Sequence[str]) -> Interval:
    """The mean with its percentile interval over resampled clusters (Efron and Tibshirani 1993, §13.3).

    `clusters[i]` names what `values[i]` belongs to: the task, so that the seeds of one task stay together.
    Differences paired by task go in as values. Where no cluster differs from another, resampling says
    nothing: the exact interval for none of as many stands in, in units of 1.
    """
    x = np.asarray(values, dtype=float)
    if len(x) == 0:
        raise ValueError("no values")
    place = _places(clusters)
    sums, sizes = np.bincount(place, weights=x), np.bincount(place)
    mean = float(x.mean())
    if np.ptp(sums / sizes) < 1e-12:
        slack = proportion(0, len(sums)).high or 0.0
        return Interval(mean, mean - slack, mean + slack)
    rng = np.random.default_rng(_SEED)
    weights = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
    means = (weights @ sums) / (weights @ sizes)
    low, high = np.quantile(means, _tails())
    return Interval(mean, float(low), float(high))


def resampled_means(columns: Floats) -> Floats:
    """The means of columns (N, K) over N tasks, then over RESAMPLES samples of these tasks, the same for all
    columns, so that what is made of them is paired by task. (1 + RESAMPLES, K)."""
    count = len(columns)
    weights = np.random.default_rng(_SEED).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return np.concatenate([columns.mean(axis=0, keepdims=True), weights @ columns / count])


def share_interval(values: Sequence[float], clusters: Sequence[str]) -> Interval:
    """As `mean_interval`, for values in [0, 1], where the ends stay too."""
    mean, low, high = mean_interval(values, clusters)
    return Interval(mean, max(0.0, low or 0.0), min(1.0, 1.0 if high is None else high))


def proportion(count: int, total: int) -> Interval:
    """The exact two-sided interval of a share (Clopper and Pearson 1934); [0, 1] for none of none.

    >>> low, high = proportion(0, 10)[1:]
    >>> low, round(high, 4)
    (0.0, 0.3085)
    """
    if not 0 <= count <= total:
        raise ValueError(f"{count} of {total}")
    low_tail, high_tail = _tails()
    low = float(beta.ppf(low_tail, count, total - count + 1)) if count else 0.0
    high = float(beta.ppf(high_tail, count + 1, total - count)) if count < total else 1.0
    return Interval(count / total if total else 0.0, low, high)


def median_ratio(values: Sequence[float], base: Sequence[float]) -> Interval:
    """The ratio of the medians of paired values, with the interval over resampled pairs."""
    a, b = np.asarray(values, dtype=float), np.asarray(base, dtype=float)
    rng = np.random.default_rng(_SEED)
    drawn = rng.integers(0, len(a), size=(SLOW_RESAMPLES, len(a)))
    ratios = np.median(a[drawn], axis=1) / np.median(b[drawn], axis=1)
    low, high = np.quantile(ratios, _tails())
    return Interval(float(np.median(a) / np.median(b)), float(low), float(high))


def auroc(scores: Sequence[float], truth: Sequence[bool], clusters: Sequence[str]) -> Interval | None:
    """Area under the ROC curve with its interval over resampled clusters; None where one kind is missing."""

    def area(s: Floats, t: Floats) -> float | None:
        # Mann and Whitney's statistic: the ranks of the true ones say how often they are above the others.
        true = int(t.sum())
        if not 0 < true < len(t):
            return None
        above = float(rankdata(s) @ t) - true * (true + 1) / 2
        return above / (true * (len(t) - true))

    return _resampled(area, scores, truth, clusters)


def auprc(scores: Sequence[float], truth: Sequence[bool]) -> float | None:
    """Average precision; that of a signal that says nothing is the share of the true ones."""
    t = np.asarray(truth)
    return float(average_precision_score(t, np.asarray(scores))) if 0 < t.sum() < len(t) else None


def rank_correlation(a: Sequence[float], b: Sequence[float], clusters: Sequence[str]) -> Interval | None:
    """Spearman's, with its interval over resampled clusters; None where one of the two does not vary."""

    def correlation(x: Floats, y: Floats) -> float | None:
        if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
            return None
        return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])

    return _resampled(correlation, a, b, clusters)


def _resampled(
    statistic: Callable[[Floats, Floats], float | None],
    a: Sequence[Any],
    b: Sequence[Any],
    clusters: Sequence[str],
) -> Interval | None:
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    value = statistic(x, y) if len(x) else None
    if value is None:
        return None
    place = _places(clusters)
    order = np.argsort(place, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(place))[:-1])
    rng = np.random.default_rng(_SEED)
    found = []
    for _ in range(SLOW_RESAMPLES):
        drawn = np.concatenate([members[one] for one in rng.integers(0, len(members), len(members))])
        if (again := statistic(x[drawn], y[drawn])) is not None:
            found.append(again)
    if len(found) < SLOW_RESAMPLES / 2:
        return Interval(value, None, None)
    low, high = np.quantile(found, _tails())
    return Interval(value, float(low), float(high))


def _places(clusters: Sequence[str]) -> NDArray[np.int64]:
    return np.unique(np.asarray(clusters), return_inverse=True)[1]


def _tails() -> tuple[float, float]:
    return (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
