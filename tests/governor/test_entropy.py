"""Laws of the entropy estimate, against distributions that are known in full."""

from __future__ import annotations

import random
from math import exp, fsum, inf, log, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.entropy import MASKED, EntropyEstimate, ending_law, estimate, margin, power_law

ROUNDING = 1e-9


def entropy(probabilities: list[float]) -> float:
    """The exact entropy in nats."""
    return -fsum(p * log(p) for p in probabilities if p > 0.0)


def normalised(weights: list[float]) -> list[float]:
    """The weights as probabilities, largest first."""
    total = fsum(weights)
    return sorted((w / total for w in weights), reverse=True)


def top(probabilities: list[float], k: int) -> list[float]:
    """The k largest as log-probabilities."""
    return [log(p) if p > 0.0 else -inf for p in probabilities[:k]]


def zipf(size: int, exponent: float) -> list[float]:
    """A power law over `size` ranks."""
    return normalised([(rank + 1) ** -exponent for rank in range(size)])


distributions = st.lists(
    st.one_of(st.floats(0.0, 1.0), st.floats(1e-30, 1e-3), st.just(1.0)), min_size=2, max_size=60
).filter(lambda weights: sum(weights) > 1e-3)


@given(distributions, st.data())
def test_bounds_contain_the_truth(weights: list[float], data: st.DataObject) -> None:
    """For any distribution and any k the exact entropy and the point value lie between the bounds."""
    p = normalised(weights)
    k = data.draw(st.integers(1, len(p)))
    found = estimate(top(p, k), len(p))
    assert found.lower - ROUNDING <= entropy(p) <= found.upper + ROUNDING
    assert 0.0 <= found.lower <= found.value <= found.upper <= log(len(p)) + ROUNDING


@given(distributions, st.data())
def test_bounds_contain_the_truth_with_the_sampled_token_added(
    weights: list[float], data: st.DataObject
) -> None:
    """A token from below the top k narrows the tail, and must not be taken for its most probable token."""
    p = normalised(weights)
    k = data.draw(st.integers(0, len(p) - 1))
    sampled = data.draw(st.integers(k, len(p) - 1))
    known = top(p, k) + top([p[sampled]], 1)
    found = estimate(data.draw(st.permutations(known)), len(p), top=k)
    assert found.lower - ROUNDING <= entropy(p) <= found.upper + ROUNDING
    assert found.lower <= found.value <= found.upper


@given(distributions)
def test_more_logprobs_never_widen_the_bounds(weights: list[float]) -> None:
    """Every further known token keeps or narrows the interval from both sides."""
    p = normalised(weights)
    estimates = [estimate(top(p, k), len(p)) for k in range(1, len(p) + 1)]
    for wide, narrow in zip(estimates, estimates[1:], strict=False):
        assert narrow.lower >= wide.lower - ROUNDING
        assert narrow.upper <= wide.upper + ROUNDING
        assert narrow.tail <= wide.tail + ROUNDING


@given(distributions)
def test_the_whole_vocabulary_gives_the_exact_entropy(weights: list[float]) -> None:
    """With k = V nothing is estimated."""
    p = normalised(weights)
    found = estimate(top(p, len(p)), len(p))
    assert found.lower == found.value == found.upper
    assert found.tail == 0.0
    assert found.value == pytest.approx(entropy(p), abs=ROUNDING)


@given(distributions, st.data())
def test_the_order_of_the_logprobs_does_not_matter(weights: list[float], data: st.DataObject) -> None:
    """An engine may put the sampled token first."""
    logprobs = top(normalised(weights), 20)
    assert estimate(data.draw(st.permutations(logprobs)), 100) == estimate(logprobs, 100)


@given(st.lists(st.floats(-30.0, 0.0), min_size=1, max_size=20), st.integers(1, 200_000))
def test_logprobs_of_a_partial_distribution_never_break_the_estimate(
    logprobs: list[float], vocab_size: int
) -> None:
    """Whatever part of a distribution is reported, the estimate is ordered and finite, or it is refused."""
    if fsum(map(exp, logprobs)) > 1.0:
        logprobs = [x - log(len(logprobs)) for x in logprobs]
    found = estimate(logprobs, vocab_size)
    assert 0.0 <= found.lower <= found.value <= found.upper < inf


def test_a_flat_distribution_is_found_exactly() -> None:
    """The cap on the tail leaves only one distribution, whatever part was seen."""
    for k in (1, 5, 20):
        found = estimate([-log(1000)] * k, 1000)
        assert found.lower == pytest.approx(log(1000), abs=1e-6)
        assert found.upper == pytest.approx(log(1000), abs=1e-6)


def test_a_flatter_distribution_has_the_greater_estimate() -> None:
    """Unlike the truncated sum, all three figures grow as mass moves into the tail."""
    exponents = (3.0, 2.0, 1.5, 1.2, 0.8)
    estimates = [estimate(top(zipf(20_000, a), 20), 20_000) for a in exponents]
    truncated = [entropy(zipf(20_000, a)[:20]) for a in exponents]
    assert truncated[-1] < truncated[1] < truncated[2]
    for sharp, flat in zip(estimates, estimates[1:], strict=False):
        assert sharp.lower < flat.lower
        assert sharp.value < flat.value
        assert sharp.upper < flat.upper


@pytest.mark.parametrize("exponent", [0.8, 1.0, 1.2, 1.5, 2.0, 3.0])
def test_a_power_law_is_recovered(exponent: float) -> None:
    """Where the tail model holds, the point value is the truth, also at the exponent 1 where its integral
    changes form."""
    p = zipf(20_000, exponent)
    assert estimate(top(p, 20), 20_000).value == pytest.approx(entropy(p), abs=0.01)


def test_a_harmonic_tail_is_a_limit_like_any_other() -> None:
    """At the exponent 1 the integrals are logarithms; the figures there agree with those on both sides."""
    ranks, vocab_size = 20, 20_000
    level = 1 / (ranks * (1 + log((vocab_size + 0.5) / (ranks + 0.5))))
    tail = [level * ranks / rank for rank in range(ranks + 1, vocab_size + 1)]
    mass = sum(tail)
    expected = -sum(q * log(q) for q in tail)
    assert power_law(mass, level, ranks, vocab_size) == pytest.approx(expected, abs=1e-3)
    for other in (level * (1 - 1e-6), level * (1 + 1e-6)):
        assert power_law(mass, other, ranks, vocab_size) == pytest.approx(expected, abs=1e-3)


def test_a_class_of_things_ends_where_its_mass_is_used_up() -> None:
    """Eighty equally likely countries and nothing else: the tail that ends is exact, and the value is nearer
    to the truth than the tail that goes on through the vocabulary."""
    top, tail = [log(1 / 80)] * 20, 0.75
    seen = 0.25 * log(80)
    endless = power_law(tail, 1 / 80, 20, 150_000)
    assert seen + ending_law(tail, top, endless, 150_000) == pytest.approx(log(80))
    assert log(80) < estimate(top, 150_000).value < seen + endless


def test_a_harmonic_class_is_a_limit_like_any_other() -> None:
    """Where the slope of the top is exactly 1 the width of the tail is linear in its mass."""
    top = [log(0.01 / rank) for rank in range(1, 21)]
    near = [log(0.01 / rank ** (1 + 1e-7)) for rank in range(1, 21)]
    assert ending_law(0.002, top, 0.0, 150_000) == pytest.approx(
        ending_law(0.002, near, 0.0, 150_000), rel=1e-4
    )


@pytest.mark.parametrize(
    ("tail", "top"),
    [
        (0.5, [log(0.5)]),
        (0.5, [log(0.5), -200.0]),
        (0.5, [log(0.4), log(0.09), log(0.009), log(0.001)]),
        (0.9, [log(0.04), log(0.03), log(0.02), log(0.01)]),
    ],
)
def test_without_a_slope_that_can_hold_the_tail_it_is_endless(tail: float, top: list[float]) -> None:
    """One rank has no slope, and a steep one never gathers the mass, or needs more tokens than there are."""
    assert ending_law(tail, top, 1.25, 100) == 1.25


def language_like(rng: random.Random, vocab_size: int) -> list[float]:
    """A few likely tokens over a long, uneven Zipf-like rest that holds between 0.001% and 30% of the
    mass."""
    head = normalised([rng.expovariate(1.0) ** 2 for _ in range(rng.randint(1, 6))])
    exponent, shift = rng.uniform(1.1, 1.8), rng.uniform(0.0, 10.0)
    rest = normalised([(rank + shift) ** -exponent * exp(rng.gauss(0, 0.5)) for rank in range(1, vocab_size)])
    mass = 10 ** rng.uniform(-5.0, -0.5)
    return normalised([*(p * (1 - mass) for p in head), *(p * mass for p in rest)])


def test_the_point_value_is_close_on_language_like_distributions() -> None:
    """Mean error at k = 20 below 0.02 nats, where the bounds are several times further apart."""
    rng = random.Random(20)
    errors, widths = [], []
    for _ in range(60):
        p = language_like(rng, 5_000)
        found = estimate(top(p, 20), len(p))
        errors.append(abs(found.value - entropy(p)))
        widths.append(found.upper - found.lower)
    assert sum(errors) / len(errors) < 0.02
    assert sum(widths) > 5 * sum(errors)


def test_masked_tokens_have_no_probability() -> None:
    """A grammar leaves two tokens: the entropy is theirs, whichever way the engine writes the others."""
    expected = EntropyEstimate(log(2), log(2), log(2), 0.0)
    for masked in (MASKED, -inf):
        found = estimate([log(0.5), log(0.5), masked, masked], 150_000)
        assert found.lower == found.upper == pytest.approx(expected.value)
        assert found.tail == 0.0


def test_probabilities_that_sum_to_more_than_one_have_no_tail() -> None:
    """Rounding in the engine gives a tiny negative tail, which is none."""
    found = estimate([1e-7, -20.0], 150_000)
    assert found.tail == 0.0
    assert found.lower == found.upper >= 0.0


def test_a_tail_below_the_engines_rounding_is_capped() -> None:
    """The last known token bounds the tail, so that an error in the sum is not taken for mass."""
    found = estimate([log1m(1e-6), -100.0], 1_000)
    assert found.tail <= 1_000 * exp(-100.0)


def log1m(eps: float) -> float:
    """ln(1 - eps)."""
    return log(1.0 - eps)


@pytest.mark.parametrize("logprobs", [[], [nan], [0.0, nan], [1.0], [-0.1, -0.1], [inf]])
def test_what_is_no_distribution_is_refused(logprobs: list[float]) -> None:
    """Nonsense raises ValueError and nothing else, so that the caller can count it and let the call pass."""
    with pytest.raises(ValueError, match="logprobs"):
        estimate(logprobs, 100)


@given(distributions, st.data())
def test_the_margin_is_never_overstated(weights: list[float], data: st.DataObject) -> None:
    """The margin of the top k is the true one for k >= 2 and at most that for k = 1, in any order."""
    p = normalised(weights)
    k = data.draw(st.integers(1, len(p)))
    found = margin(data.draw(st.permutations(top(p, k))))
    assert 0.0 <= found <= p[0] - p[1] + ROUNDING
    if k > 1:
        assert found == pytest.approx(p[0] - p[1], abs=ROUNDING)


def test_the_margin_of_nothing_is_refused() -> None:
    """There is no honest default."""
    with pytest.raises(ValueError, match="no logprobs"):
        margin([])
