"""Intervals: the published values, and the truth as often as they say."""

from __future__ import annotations

import random
from math import exp
from statistics import variance

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from governor.estimates import (
    LEAST,
    Estimate,
    Moments,
    _uncorrected,
    mean,
    mean_difference,
    share,
    share_difference,
    t_quantile,
)

marks = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=200)
values = st.lists(st.floats(0, 1), min_size=10, max_size=50)


def covers(estimate: Estimate | None, truth: float) -> bool:
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low <= truth <= estimate.high


@pytest.mark.parametrize(
    ("passed", "of", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_of_a_share_is_the_published_one(passed: int, of: int, low: float, high: float) -> None:
    """Table I of Newcombe (1998), Statistics in Medicine 17:857-872, method 3."""
    found = share([1.0] * passed + [0.0] * (of - passed))
    assert found is not None
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 20), 0.6791, 1.0),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_the_interval_of_a_difference_of_shares_is_the_published_one(
    first: tuple[int, int], second: tuple[int, int], low: float, high: float
) -> None:
    """Table II of Newcombe (1998), Statistics in Medicine 17:873-890, method 10."""
    one, other = ([1.0] * passed + [0.0] * (of - passed) for passed, of in (first, second))
    found = share_difference(one, other)
    assert found is not None
    assert found.low == pytest.approx(low, abs=5e-5)
    assert found.high == pytest.approx(high, abs=5e-5)


@pytest.mark.parametrize(
    ("p", "freedom", "t"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.30265),
        (0.975, 5, 2.57058),
        (0.975, 30, 2.04227),
        (0.975, 120, 1.97993),
        (0.995, 4, 4.60409),
        (0.95, 10, 1.81246),
        (0.975, 100_000, 1.95999),
    ],
)
def test_the_quantile_of_t_is_the_tabulated_one(p: float, freedom: float, t: float) -> None:
    """From the usual tables, at both ends and between."""
    assert t_quantile(p, freedom) == pytest.approx(t, abs=6e-5)


@given(st.floats(1, 1e5), st.floats(0.01, 2))
def test_more_freedom_never_widens_the_quantile(freedom: float, more: float) -> None:
    assert t_quantile(0.975, freedom * (1 + more)) < t_quantile(0.975, freedom)


def test_without_skew_and_alike_in_spread_the_interval_is_welchs() -> None:
    """Two symmetric samples with the same variance: nothing is corrected and nothing borrowed. Twelve values
    each are 22 degrees of freedom, of which the tabulated t is 2.0739."""
    first = [10.0 + step for step in (-2.5, -1.5, -0.5, 0.5, 1.5, 2.5)] * 2
    second = [20.0 + step for step in (-2.5, -1.5, -0.5, 0.5, 1.5, 2.5)] * 2
    found = mean_difference(first, second)
    assert found is not None
    assert found.value == -10
    assert found.low is not None and found.high is not None
    assert found.high - found.value == pytest.approx(found.value - found.low)
    error = ((variance(first) + variance(second)) / 12) ** 0.5
    assert (found.high + 10) / error == pytest.approx(2.0739, abs=1e-4)


def test_the_interval_of_a_skewed_sample_reaches_further_to_the_long_side() -> None:
    """The few large values are what is mostly missing from few values."""
    found = mean([1.0] * 12 + [2.0] * 5 + [3.0] * 2 + [9.0])
    assert found is not None
    assert found.low is not None and found.high is not None
    assert found.high - found.value > 1.5 * (found.value - found.low)


def test_too_few_values_have_no_interval() -> None:
    """Three held out once said "0.29 fewer, 95% interval -0.49 to -0.09"."""
    many = [float(n % 4) for n in range(200)]
    for few in range(1, LEAST):
        found = mean_difference(many, many[:few])
        assert found is not None and found.low is None and found.high is None
    enough = mean_difference(many, many[:LEAST])
    assert enough is not None and enough.low is not None


def test_a_small_sample_borrows_spread_from_the_large_one() -> None:
    """Ten held-out conversations that happen to be alike do not make the comparison sure."""
    governed = [float(1 + n % 5) for n in range(90)]
    alike, nearly = [3.0] * 10, [3.0] * 9 + [3.1]
    for few in (alike, nearly):
        found, own = mean_difference(governed, few), Moments.of(few)
        borrowing = own.borrowing_from(Moments.of(governed))
        assert found is not None and found.low is not None
        assert borrowing.variance > 10 * max(own.variance, 0.001)


@given(values, values)
def test_borrowing_never_makes_surer(first: list[float], second: list[float]) -> None:
    one, other = Moments.of(first), Moments.of(second)
    assert one.borrowing_from(other).variance >= one.variance
    assert one.borrowing_from(other).third >= one.third


@given(st.floats(-40, 40), st.floats(-3, 3))
def test_the_correction_for_skew_is_undone(t: float, skew: float) -> None:
    """`_uncorrected` is the inverse of Hall's transformation, at whatever skewness."""
    corrected = t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / 6
    assert _uncorrected(corrected, skew) == pytest.approx(t, rel=1e-6, abs=1e-4)


@given(marks, marks)
def test_the_difference_lies_in_its_interval_and_the_interval_in_reach(
    first: list[float], second: list[float]
) -> None:
    """No difference of shares is beyond -1 and 1; swapping the arms changes the sign, nothing else."""
    found, mirrored = share_difference(first, second), share_difference(second, first)
    assert found is not None
    assert mirrored is not None
    assert found.low is not None
    assert found.high is not None
    assert -1 - 1e-9 <= found.low <= found.value <= found.high <= 1 + 1e-9
    assert mirrored.low == pytest.approx(-found.high)
    assert mirrored.high == pytest.approx(-found.low)


@given(marks, st.integers(2, 5))
def test_more_of_the_same_narrows_the_interval_of_a_share(found: list[float], times: int) -> None:
    few, many = share(found), share(found * times)
    assert few is not None
    assert many is not None
    assert few.low is not None
    assert few.high is not None
    assert many.low is not None
    assert many.high is not None
    assert many.high - many.low < few.high - few.low


@given(marks.filter(lambda found: 0.0 in found))
def test_one_more_pass_moves_the_interval_up(found: list[float]) -> None:
    """Monotone: a better result never looks worse at either end."""
    better = list(found)
    better[better.index(0.0)] = 1.0
    before, after = share(found), share(better)
    assert before is not None
    assert after is not None
    assert before.low is not None
    assert before.high is not None
    assert after.low is not None
    assert after.high is not None
    assert before.value < after.value
    assert before.low < after.low
    assert before.high < after.high


@given(values, values, st.floats(-5, 5))
def test_the_difference_of_means_moves_with_a_shift(
    first: list[float], second: list[float], by: float
) -> None:
    """And its width does not."""
    found = mean_difference(first, second)
    moved = mean_difference([value + by for value in first], second)
    assert found is not None
    assert moved is not None
    assume(
        found.low is not None and found.high is not None and moved.low is not None and moved.high is not None
    )
    assert moved.value == pytest.approx(found.value + by, abs=1e-9)
    assert found.high is not None
    assert moved.high is not None
    assert moved.high - moved.value == pytest.approx(found.high - found.value, rel=1e-3, abs=1e-9)


def test_the_intervals_of_shares_cover_the_truth_as_often_as_they_say() -> None:
    """4,000 pairs of arms of unequal size: 95%, give or take what simulation and small arms cost."""
    draw = random.Random(1)
    alone = together = 0
    runs = 4000
    for _ in range(runs):
        p, q = draw.uniform(0.05, 0.95), draw.uniform(0.05, 0.95)
        first = [float(draw.random() < p) for _ in range(90)]
        second = [float(draw.random() < q) for _ in range(20)]
        alone += covers(share(second), q)
        together += covers(share_difference(first, second), p - q)
    assert 0.94 < alone / runs < 0.965
    assert 0.94 < together / runs < 0.965


def test_the_intervals_of_means_cover_the_truth_as_often_as_they_say() -> None:
    """Of normal values with unequal spread, in arms of unequal size."""
    draw = random.Random(2)
    alone = together = 0
    runs = 2000
    for _ in range(runs):
        first = [draw.gauss(0.8, 0.1) for _ in range(40)]
        second = [draw.gauss(0.5, 0.2) for _ in range(10)]
        alone += covers(mean(second), 0.5)
        together += covers(mean_difference(first, second), 0.3)
    assert 0.93 < alone / runs < 0.965
    assert 0.93 < together / runs < 0.97


def test_the_intervals_of_skewed_means_cover_the_truth_nearly_as_often_as_they_say() -> None:
    """Calls and tokens as conversations take them, 180 governed and 20 held out; Welch's interval covers 87%
    of the tokens' differences."""
    draw = random.Random(3)
    runs, covered = 600, dict.fromkeys(("calls", "tokens"), 0)

    def conversation(kept: float) -> tuple[float, float]:
        proposed = 1
        while draw.random() < 0.5:
            proposed += 1
        calls = sum(draw.random() < kept for _ in range(proposed))
        long = draw.lognormvariate(0, 0.5)
        return float(calls), 300.0 * (calls + 1) + 100 * calls * (calls + 1) * long

    # The mean of calls (calls + 1), thinned: E[n (n - 1)] kept^2 + 2 E[n] kept, and n is geometric.
    factor = exp(0.125)
    product = {kept: kept * kept * 4 + 2 * kept * 2 for kept in (0.6, 1.0)}
    truth = {"calls": -0.8, "tokens": 300 * -0.8 + 100 * factor * (product[0.6] - product[1.0])}
    for _ in range(runs):
        governed = [conversation(0.6) for _ in range(180)]
        held_out = [conversation(1.0) for _ in range(20)]
        for place, name in enumerate(covered):
            found = mean_difference([one[place] for one in governed], [one[place] for one in held_out])
            covered[name] += covers(found, truth[name])
    assert covered["calls"] / runs > 0.95
    assert covered["tokens"] / runs > 0.94


def test_an_empty_arm_gives_no_difference() -> None:
    assert mean_difference([], [1.0]) is None
    assert share_difference([1.0], []) is None
    assert mean([]) is share([]) is None


def test_values_that_do_not_differ_give_no_interval() -> None:
    """An interval without width would claim a certainty that two equal values cannot give."""
    assert mean([0.5] * 20) == Estimate(0.5)
    assert mean_difference([0.5] * 20, [0.25] * 20) == Estimate(0.25)
