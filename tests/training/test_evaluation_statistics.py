"""Intervals, areas and comparisons on cases whose answer is known."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from governor_training.evaluation.frontier import Standing, dominance
from governor_training.evaluation.played import Figures, Played
from governor_training.evaluation.statistics import (
    auprc,
    auroc,
    mean_interval,
    median_ratio,
    proportion,
    rank_correlation,
    share_interval,
)


def names(count: int) -> list[str]:
    return [str(place) for place in range(count)]


@given(st.integers(0, 200), st.integers(1, 200))
def test_the_ends_of_an_exact_interval_are_where_the_tails_have_their_mass(count: int, total: int) -> None:
    """Clopper and Pearson's definition, by the binomial distribution itself."""
    count = min(count, total)
    share, low, high = proportion(count, total)
    assert low is not None and high is not None
    assert 0.0 <= low <= share <= high <= 1.0
    if count:
        assert binom.sf(count - 1, total, low) == pytest.approx(0.025, rel=1e-6)
    if count < total:
        assert binom.cdf(count, total, high) == pytest.approx(0.025, rel=1e-6)


def test_none_of_none_is_anything() -> None:
    """No calls withheld is no proof of harmlessness."""
    assert proportion(0, 0)[1:] == (0.0, 1.0)
    with pytest.raises(ValueError):
        proportion(2, 1)


def test_a_mean_has_the_interval_of_the_normal_law() -> None:
    """With many independent values: 1.96 standard errors on each side."""
    values = [float(place % 10 < 3) for place in range(1000)]
    mean, low, high = mean_interval(values, names(1000))
    error = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert (mean, low, high) == pytest.approx((0.3, 0.3 - error, 0.3 + error), abs=0.002)


def test_seeds_of_one_task_are_no_new_tasks() -> None:
    """The same values three times over: the interval stays as wide as for one seed."""
    values = [float(place % 4 == 0) for place in range(200)]
    one = mean_interval(values, names(200))
    three = mean_interval(values * 3, names(200) * 3)
    assert three == pytest.approx(one)
    unclustered = mean_interval(values * 3, names(600))
    assert (unclustered.high or 0) - (unclustered.low or 0) < 0.7 * ((one.high or 0) - (one.low or 0))


def test_no_difference_seen_is_no_proof_of_none() -> None:
    """Where resampling would give an interval of no width, the exact one stands in: none of 100 is up to
    3.6 in 100."""
    assert mean_interval([0.0] * 100, names(100))[1:] == pytest.approx((-0.0362, 0.0362), abs=1e-4)
    assert share_interval([1.0] * 100, names(100))[1:] == pytest.approx((0.9638, 1.0), abs=1e-4)


def test_areas_on_known_cases() -> None:
    """Ties count half; a signal that says nothing has the base rate as its precision."""
    found = auroc([0.9, 0.8, 0.8, 0.1], [True, True, False, False], names(4))
    assert found is not None and found.value == 0.875
    assert auroc([1.0, 2.0], [True, True], names(2)) is None
    assert auprc([0.0] * 8, [True] * 2 + [False] * 6) == pytest.approx(0.25)
    assert auprc([3.0, 2.0, 1.0], [True, True, False]) == 1.0


@settings(max_examples=20)
@given(st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=4, max_size=30))
def test_the_area_of_the_opposite_signal_is_the_rest(pairs: list[tuple[float, bool]]) -> None:
    """What points the wrong way shows as an area below a half."""
    scores, truth = [score for score, _ in pairs], [right for _, right in pairs]
    there, back = (
        auroc([sign * score for score in scores], truth, names(len(pairs))) for sign in (1.0, -1.0)
    )
    assert (there is None) == (back is None)
    if there and back:
        assert there.value + back.value == pytest.approx(1.0)


def test_rank_correlation_looks_at_order_alone() -> None:
    """Any rising function gives 1; what does not vary has none."""
    values = [float(place) for place in range(20)]
    found = rank_correlation([value**3 for value in values], values, names(20))
    assert found is not None and found.value == pytest.approx(1.0)
    assert rank_correlation([1.0] * 20, values, names(20)) is None


def test_the_ratio_of_medians_does_not_see_one_slow_task() -> None:
    """Half as long in every task but one that hung."""
    base = [1.0 + place / 100 for place in range(50)]
    ratio = median_ratio([*(value / 2 for value in base[:-1]), 1000.0], base)
    assert ratio.value == pytest.approx(0.5, abs=0.01)


def played(correct: list[bool], calls: int, needed: tuple[bool, ...] = ()) -> list[Played]:
    return [Played(1, str(n), float(right), calls, needed=needed) for n, right in enumerate(correct)]


def test_figures_count_what_they_say() -> None:
    """The first withheld call counts for safety, and every one for the share of the needed."""
    base = [Played(1, name, 1.0, 3, prompt_tokens=100) for name in "ab"]
    runs = [
        Played(1, "a", 1.0, 1, (True, False), (False, True), prompt_tokens=40, added={"probe_prompt": 10}),
        Played(1, "b", 0.0, 2, (), (True,), prompt_tokens=40, added={"answer_completion": 10}),
    ]
    figures = Figures.of(runs, base)
    assert (figures.accuracy.value, figures.difference.value, figures.calls.value) == (0.5, -0.5, 1.5)
    assert (figures.avoidable_removed.value, figures.avoidable_total) == (0.5, 2)
    assert (figures.withheld, figures.withheld_needed) == (3, 2)
    assert (figures.unsafe_first_stops.value, figures.stopped) == (0.5, 2)
    assert (figures.probe_tokens, figures.continuation_tokens, figures.total_tokens) == (5.0, 5.0, 50.0)
    assert figures.tokens_change.value == -0.5
    assert not figures.non_inferior


def test_what_long_results_cost_is_not_thinned_by_short_conversations() -> None:
    """Pruning is judged where there is something to prune, and by the agent's own prompts."""
    base = [Played(1, name, 1.0, 3, prompt_tokens=100, long=name == "a") for name in "ab"]
    runs = [Played(1, name, 1.0, 3, prompt_tokens=40 if name == "a" else 100) for name in "ab"]
    figures = Figures.of(runs, base)
    assert figures.long == 1
    assert figures.long_prompt_change is not None and figures.long_prompt_change.value == -0.6
    assert Figures.of(base[1:], base[1:]).long_prompt_change is None


def test_runs_of_other_tasks_are_not_compared() -> None:
    """A shift by one task would look like noise."""
    with pytest.raises(ValueError, match="same tasks"):
        Figures.of(played([True, True], 1), list(reversed(played([True, True], 1))))


def test_no_worse_needs_enough_tasks() -> None:
    """The same answers on 50 tasks exclude no loss of one point; on 500 they do."""
    for count, shown in ((50, False), (500, True)):
        runs = played([True] * count, 1)
        assert Figures.of(runs, runs).non_inferior is shown


def test_dominance_is_judged_at_the_budget_of_the_other() -> None:
    """The gate's best point with no more calls, better or worse, or none at all."""
    gates = {
        "gate careful": played([True] * 90 + [False] * 10, 3),
        "gate bold": played([True] * 50 + [False] * 50, 1),
    }
    baselines = {
        "more calls": played([True] * 80 + [False] * 20, 3),
        "a little better": played([True] * 91 + [False] * 9, 3),
        "much better": played([True] * 90 + [False] * 10, 2),
        "fewer calls": played([False] * 100, 0),
    }
    found = {one.baseline: (one.gate, one.standing) for one in dominance(gates, baselines)}
    assert found == {
        "more calls": ("gate careful", Standing.AT_LEAST),
        "a little better": ("gate careful", Standing.WITHIN),
        "much better": ("gate bold", Standing.BELOW),
        "fewer calls": (None, Standing.NO_POINT),
    }
