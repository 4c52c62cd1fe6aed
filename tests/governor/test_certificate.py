"""The bound is the exact one, and what is certified is rarely wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governor.certificate import (
    Candidate,
    Certificate,
    Refusal,
    certify,
    crossings_needed,
    last_safe,
    level_of,
    tail,
    upper_bound,
)

MAX_HARM = 0.02
levels = st.floats(1e-6, 0.5)
samples = st.integers(1, 1_000_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def conversations(scores: Sequence[float], harm: float, seed: int) -> list[list[Candidate]]:
    """One call each, harmful with probability `harm`."""
    lots = random.Random(seed)
    return [[Candidate(score, lots.random() < harm, str(lots.random()))] for score in scores]


@given(samples, levels)
@settings(max_examples=40, deadline=None)
def test_the_bound_is_that_of_clopper_and_pearson(sample: tuple[int, int], level: float) -> None:
    """Up to a million crossings, against the quantile of the beta distribution."""
    special: Any = pytest.importorskip("scipy.special")
    harmful, crossings = sample
    whole = harmful == crossings
    expected = 1.0 if whole else special.betainccinv(harmful + 1, crossings - harmful, level)
    assert upper_bound(harmful, crossings, level) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rate", [0.005, 0.02, 0.3])
@pytest.mark.parametrize("crossings", [50, 200])
def test_the_bound_covers(rate: float, crossings: int) -> None:
    """The exact probability, over all samples, that it is below the true rate is at most the level."""
    level = 0.05
    below = [k for k in range(crossings + 1) if upper_bound(k, crossings, level) < rate]
    assert (tail(max(below), crossings, rate) if below else 0.0) <= level


@given(samples, levels, levels)
@settings(max_examples=30, deadline=None)
def test_the_bound_moves_the_right_way(sample: tuple[int, int], level: float, other: float) -> None:
    """More harm or more confidence raises it; it is never below the share that was seen."""
    harmful, crossings = sample
    bound = upper_bound(harmful, crossings, level)
    assert harmful / crossings <= bound <= 1
    assert upper_bound(min(harmful + 1, crossings), crossings, level) >= bound
    surer, less_sure = sorted((level, other))
    assert upper_bound(harmful, crossings, surer) >= upper_bound(harmful, crossings, less_sure)


@pytest.mark.parametrize(
    ("harmful", "crossings", "level"), [(2, 1, 0.1), (-1, 1, 0.1), (0, 1, 0.0), (0, 1, 1.0)]
)
def test_nonsense_has_no_bound(harmful: int, crossings: int, level: float) -> None:
    """It is a mistake of the caller."""
    with pytest.raises(ValueError, match="no bound"):
        upper_bound(harmful, crossings, level)


@given(st.floats(0.001, 0.5), levels, st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_the_crossings_needed_are_needed(max_harm: float, level: float, harmful: int) -> None:
    """That many pass, one less does not."""
    needed = crossings_needed(max_harm, level, harmful)
    assert tail(harmful, needed, max_harm) <= level
    assert harmful == needed - 1 or tail(harmful, needed - 1, max_harm) > level


def test_all_attempts_together_stay_within_the_budget() -> None:
    """The levels of a long life sum to the error that was allowed, and no more."""
    assert 0.0499 < sum(level_of(0.95, attempt) for attempt in range(1, 2000)) <= 0.05


def test_the_first_failure_ends_the_sequence() -> None:
    """A later setting that would pass by itself is not reached, one before with too few does not count."""
    counts = [(0, 10), (0, 300), (1, 500), (30, 600), (0, 900)]
    assert last_safe(counts, MAX_HARM, 0.05) == 2
    assert last_safe(counts[3:], MAX_HARM, 0.05) is None
    assert last_safe(counts[:1], MAX_HARM, 0.05) is None


def test_harmless_calls_are_certified_up_to_where_harm_begins() -> None:
    """The threshold stays below the scores of the harmful half."""
    harmless = conversations([place / 1e6 for place in range(500)], 0.0, 1)
    harmful = conversations([0.5 + place / 1000 for place in range(500)], 0.6, 2)
    certificate = certify([*harmless, *harmful], max_harm=MAX_HARM)
    assert isinstance(certificate, Certificate)
    assert 4e-4 < certificate.threshold < 0.55
    assert certificate.bound <= MAX_HARM
    assert certificate.distinct == certificate.crossings


def test_only_the_first_crossing_of_a_conversation_counts() -> None:
    """Nine harmless calls behind a harmful one do not make it better, and do not make the sample larger."""
    calls = [Candidate(0.0, True), *(Candidate(0.0, False) for _ in range(9))]
    refusal = certify([calls] * 400, max_harm=MAX_HARM)
    assert isinstance(refusal, Refusal)
    assert "400 of 400" in refusal.explain()
    few = certify([[Candidate(0.0, False)] * 10] * 100, max_harm=MAX_HARM)
    assert isinstance(few, Refusal)
    assert not few.spent


def test_the_first_crossing_is_another_one_at_another_threshold() -> None:
    """Later and lower calls count only where the earlier ones pass."""
    calls = [Candidate(0.5, True), Candidate(0.6, True), Candidate(0.001, False)]
    certificate = certify([calls] * 400, max_harm=MAX_HARM)
    assert isinstance(certificate, Certificate)
    assert (certificate.threshold, certificate.crossings, certificate.harmful) == (0.001, 400, 0)
    assert certificate.distinct == 1


def test_too_few_conversations_are_told_how_many_are_missing() -> None:
    """With as many more, harmless as before, there is a certificate."""
    some = [*conversations([0.0] * 60, 0.0, 1), *([[]] * 60)]
    refusal = certify(some, max_harm=MAX_HARM)
    assert isinstance(refusal, Refusal)
    assert refusal.more is not None
    assert not refusal.spent
    assert f"{refusal.more:,} more conversations" in refusal.explain()
    share = (120 + refusal.more) / 120
    enough = [*conversations([0.0] * round(60 * share), 0.0, 1), *([[]] * round(60 * share))]
    assert isinstance(certify(enough, max_harm=MAX_HARM), Certificate)


def test_crossings_without_a_label_are_told_and_when_many_refused() -> None:
    """A tenth may be missing; more could hide harm."""
    labelled = [[Candidate(0.0, False)]] * 360
    certificate = certify([*labelled, *([[Candidate(0.0, None)]] * 40)], max_harm=MAX_HARM)
    assert isinstance(certificate, Certificate)
    assert (certificate.unlabelled, certificate.crossings) == (40, 360)
    assert "40 more had no label" in certificate.explain()
    refusal = certify([*labelled, *([[Candidate(0.0, None)]] * 60)], max_harm=MAX_HARM)
    assert isinstance(refusal, Refusal)
    assert "60 have no label" in refusal.explain()


def test_a_later_attempt_must_show_more() -> None:
    """The same harmless sample is enough at first and not later."""
    sample = conversations([0.0] * 300, 0.0, 1)
    assert isinstance(certify(sample, max_harm=MAX_HARM, attempt=1), Certificate)
    assert isinstance(certify(sample, max_harm=MAX_HARM, attempt=3), Refusal)


def test_no_budget_is_spent_on_a_test_that_will_fail() -> None:
    """By the gate's own forecast, before a label was looked at; more conversations would not help either."""
    refusal = certify(conversations([0.3] * 1000, 0.0, 1), max_harm=MAX_HARM)
    assert isinstance(refusal, Refusal)
    assert (refusal.spent, refusal.more) == (False, None)


def test_scores_that_say_nothing_are_rarely_certified() -> None:
    """Whatever threshold, the true rate of harm is just too high; the error budget bounds the
    certificates."""
    lots = random.Random(7)
    given_out = 0
    for seed in range(200):
        scores = [lots.random() / 1000 for _ in range(400)]
        given_out += isinstance(certify(conversations(scores, 0.021, seed), max_harm=MAX_HARM), Certificate)
    # At level 0.025: 5 expected at most, 14 or more with probability 0.0006.
    assert given_out <= 13


@given(
    st.lists(
        st.lists(
            st.builds(
                Candidate, st.sampled_from([-1.0, 0.0, 0.1, 0.2]), st.sampled_from([False, True, None])
            ),
            max_size=4,
        ),
        max_size=30,
    )
)
def test_the_counts_are_those_of_a_plain_count(sample: list[list[Candidate]]) -> None:
    """Against the definition, one conversation at a time."""
    certificate = certify(sample, max_harm=0.6, confidence=0.6)
    if not isinstance(certificate, Certificate):
        return
    firsts = [next((c for c in calls if c.score <= certificate.threshold), None) for calls in sample]
    labels = [first.harmful for first in firsts if first is not None]
    assert certificate.unlabelled == labels.count(None)
    assert (certificate.harmful, certificate.crossings) == (
        labels.count(True),
        len(labels) - labels.count(None),
    )


def test_a_certificate_survives_the_trip_and_a_forged_one_does_not() -> None:
    """A bound above what is allowed is no certificate."""
    certificate = certify(conversations([0.0] * 400, 0.0, 1), max_harm=MAX_HARM)
    assert isinstance(certificate, Certificate)
    assert Certificate.from_dict(certificate.as_dict()) == certificate
    with pytest.raises(ValueError, match="bound"):
        Certificate.from_dict({**certificate.as_dict(), "bound": 0.5})
    with pytest.raises(TypeError):
        Certificate.from_dict({**certificate.as_dict(), "crossings": "many"})
