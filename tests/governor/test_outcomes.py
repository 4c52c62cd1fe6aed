from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from governor.experiment import Arm
from governor.outcomes import (
    MEANS,
    PASS_OR_FAIL,
    Conversation,
    Estimate,
    effect,
    mean,
    mean_difference,
    share,
    share_difference,
    t_quantile,
)
from governor.records import CallRecord

GOVERNED, HOLDOUT, OBSERVED = Arm

marks = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=200)
values = st.lists(st.floats(0, 1), min_size=2, max_size=50)


def record(
    call_id: str, arm: str = GOVERNED, action: str = "pass", step: int = 0, tokens: int = 0
) -> CallRecord:
    usage = {"prompt_tokens": tokens, "completion_tokens": 1} if tokens else {}
    return CallRecord(
        call_id, "talk", "search", "search({})", step, {"action": action}, 0.0, usage=usage, arm=arm
    )


def passes(arm: str, passed: int, of: int, calls: Sequence[int] = (1,)) -> list[Conversation]:
    """`of` conversations, of which the first `passed` passed; `calls` in turn."""
    return [Conversation(arm, float(i < passed), calls[i % len(calls)]) for i in range(of)]


def covers(estimate: Estimate | None, truth: float) -> bool:
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low <= truth <= estimate.high


# Conversations


def test_a_conversation_counts_the_calls_that_reached_the_agent() -> None:
    """A withheld call is what governing saved."""
    records = [record("a"), record("b", action="answer"), record("c", action="notice"), record("d")]
    assert Conversation.of(records, 0.5) == Conversation(GOVERNED, 0.5, calls=2, tokens=0)


def test_the_tokens_of_a_turn_count_once() -> None:
    """Its parallel calls share one probe, and each record carries what it took."""
    records = [record("a", tokens=10), record("b", tokens=10), record("c", step=1, tokens=20)]
    assert Conversation.of(records, None).tokens == 11 + 21


def test_a_conversation_stays_in_the_arm_of_its_first_call() -> None:
    """Whatever became of it later."""
    records = [record("a", arm=HOLDOUT), record("b", arm=GOVERNED)]
    assert Conversation.of(records, None).arm == HOLDOUT


def test_a_conversation_without_calls_is_in_no_arm() -> None:
    with pytest.raises(ValueError, match="in no arm"):
        Conversation.of([], 1.0)


# Intervals


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


def test_welch_agrees_with_a_calculation_by_hand() -> None:
    """Variances 1 and 10 over 3 and 5 values: a squared error of 7/3 and 5.158 degrees of freedom, so t is
    between the tabulated 2.571 for 5 and 2.447 for 6; with freedom added up it would be 2.447."""
    found = mean_difference([1.0, 2.0, 3.0], [2.0, 4.0, 6.0, 8.0, 10.0])
    assert found is not None
    assert found.value == -4
    assert found.high is not None
    assert 2.53 < (found.high + 4) / (7 / 3) ** 0.5 < 2.571


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
    """Of normal values with unequal spread, in arms of unequal size; the normal quantile would give 89%."""
    draw = random.Random(2)
    alone = together = 0
    runs = 2000
    for _ in range(runs):
        first = [draw.gauss(0.8, 0.1) for _ in range(40)]
        second = [draw.gauss(0.5, 0.2) for _ in range(6)]
        alone += covers(mean(second), 0.5)
        together += covers(mean_difference(first, second), 0.3)
    assert 0.935 < alone / runs < 0.965
    assert 0.935 < together / runs < 0.965


def test_an_empty_arm_gives_no_difference() -> None:
    assert effect([]).score is None
    assert mean_difference([], [1.0]) is None
    assert share_difference([1.0], []) is None
    assert mean([]) is share([]) is None


def test_values_that_do_not_differ_give_no_interval() -> None:
    """An interval without width would claim a certainty that two equal values cannot give."""
    assert mean([0.5]) == Estimate(0.5)
    assert mean([0.5, 0.5]) == Estimate(0.5)
    assert mean_difference([0.5, 0.5], [0.25, 0.25]) == Estimate(0.25)
    assert mean_difference([0.5], [0.25, 0.75]) == Estimate(0.0)


# The effect


def test_only_the_lottery_is_compared() -> None:
    """Observed conversations are shown beside it and change nothing."""
    lottery = [*passes(GOVERNED, 60, 90), *passes(HOLDOUT, 8, 10)]
    alone, crowded = effect(lottery), effect([*lottery, *passes(OBSERVED, 0, 500)])
    assert (alone.score, alone.calls, alone.governed) == (crowded.score, crowded.calls, crowded.governed)
    assert crowded.observed.conversations == 500
    assert crowded.observed.score is not None
    assert crowded.observed.score.value == 0


def test_conversations_without_a_score_count_for_calls_only() -> None:
    found = effect([*passes(GOVERNED, 1, 2), Conversation(GOVERNED, None, 7), *passes(HOLDOUT, 1, 2)])
    assert (found.governed.conversations, found.governed.scored) == (3, 2)
    assert found.governed.calls is not None
    assert found.governed.calls.value == 3
    assert found.score is not None
    assert found.score.value == 0


def test_passes_are_compared_as_shares_and_scores_as_means() -> None:
    """One score between 0 and 1 makes all of them scores."""
    marked = [*passes(GOVERNED, 6, 10), *passes(HOLDOUT, 7, 10)]
    scored = [*marked, Conversation(GOVERNED, 0.25, 1)]
    assert effect(marked).method == PASS_OR_FAIL
    assert effect(marked).score == share_difference([1.0] * 6 + [0.0] * 4, [1.0] * 7 + [0.0] * 3)
    assert effect(scored).method == MEANS
    found = effect(scored).score
    assert found is not None
    assert found.value == pytest.approx(6.25 / 11 - 0.7)


def test_an_interval_of_scores_stays_among_scores() -> None:
    """The t interval knows no bounds: of three scores near 1 it goes beyond."""
    arm = [Conversation(GOVERNED, score, 1) for score in (1.0, 1.0, 0.9)]
    found = effect([*arm, Conversation(HOLDOUT, 0.0, 1), Conversation(HOLDOUT, 0.1, 1)])
    assert found.governed.score is not None
    assert found.governed.score.high == 1
    assert found.holdout.score is not None
    assert found.holdout.score.low == 0
    assert found.score is not None
    assert found.score.high == 1


@given(
    st.lists(
        st.builds(
            Conversation,
            arm=st.sampled_from([GOVERNED, HOLDOUT, OBSERVED]),
            score=st.none() | st.floats(0, 1),
            calls=st.integers(0, 30),
            tokens=st.integers(0, 10_000),
        ),
        max_size=30,
    )
)
def test_every_conversation_is_in_one_arm_and_every_effect_has_a_sentence(found: list[Conversation]) -> None:
    """Whatever was scored."""
    result = effect(found)
    arms = (result.governed, result.holdout, result.observed)
    assert sum(arm.conversations for arm in arms) == len(found)
    assert sum(arm.scored for arm in arms) == sum(each.score is not None for each in found)
    governed = [each.score for each in found if each.arm == GOVERNED and each.score is not None]
    assert (result.governed.score is None) == (not governed)
    if result.governed.score is not None:
        assert result.governed.score.value == pytest.approx(fmean(governed))
    assert "." in result.as_dict()["sentence"]


# The sentence


def test_the_sentence_says_what_is_missing() -> None:
    assert effect(passes(GOVERNED, 3, 5)).sentence() == (
        "There is no comparison of scores yet: it needs scored conversations in both arms, and"
        " 5 governed and 0 of the holdout are scored."
    )


def test_the_sentence_says_harm_help_or_neither() -> None:
    """By the interval, never by the value alone."""
    worse = effect([*passes(GOVERNED, 500, 1000), *passes(HOLDOUT, 900, 1000)]).sentence()
    better = effect([*passes(GOVERNED, 900, 1000), *passes(HOLDOUT, 500, 1000)]).sentence()
    few = effect([*passes(GOVERNED, 5, 10), *passes(HOLDOUT, 9, 10)]).sentence()
    assert "scored 40.0 points lower than the holdout" in worse
    assert "harm is shown" in worse
    assert "no harm is shown" not in worse
    assert "governing helped" in better
    assert "scored 40.0 points lower" in few
    assert "no harm is shown; about" in few


def test_the_sentence_tells_the_calls_that_were_saved() -> None:
    governed = passes(GOVERNED, 10, 20, calls=(0, 1))
    assert (
        "made 1.50 calls fewer (95% interval -2.03 to -0.97)"
        in effect([*governed, *passes(HOLDOUT, 10, 20, (1, 3))]).sentence()
    )


def test_the_number_that_is_needed_is_enough() -> None:
    """With as many more conversations of the same kind, a loss of one point is excluded, and with half of
    them it is not."""
    found = effect([*passes(GOVERNED, 81, 90), *passes(HOLDOUT, 9, 10)])
    more = found.more_needed()
    assert more is not None
    assert "about 44,000 more" in found.sentence()

    def grown(to: float) -> list[Conversation]:
        tens = round(to / 100)
        return [*passes(GOVERNED, 81 * tens, 90 * tens), *passes(HOLDOUT, 9 * tens, 10 * tens)]

    enough = effect(grown(100 + more))
    assert enough.more_needed() == 0
    assert "a loss of one point is excluded" in enough.sentence()
    assert effect(grown((100 + more) / 2)).more_needed() != 0


def test_equal_scores_are_called_the_same() -> None:
    """And 0.0 points lower, or 0.00 calls more, is said of nobody."""
    assert (
        "scored the same as the holdout"
        in effect([*passes(GOVERNED, 5, 10), *passes(HOLDOUT, 5, 10)]).sentence()
    )
