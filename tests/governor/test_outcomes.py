"""The effect of governing: whole conversations, compared as they were drawn."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.estimates import LEAST, share_difference
from governor.experiment import Arm
from governor.outcomes import (
    ABANDONED_S,
    MEANS,
    PASS_OR_FAIL,
    Conversation,
    comparable,
    effect,
    effect_of,
)
from governor.prices import Prices
from governor.turn_record import TurnRecord

GOVERNED, HOLDOUT, OBSERVED = Arm
PRICES = Prices(prompt=1.0, completion=10.0, calls={"look*": 0.5, "*": 0.25})


def turn(name: str, created: float = 0.0, *, took: float = 1.0, **fields: object) -> TurnRecord:
    """A turn that proposed and delivered one call, unless told otherwise."""
    given: dict[str, object] = {
        "conversation": name,
        "arm": GOVERNED.value,
        "created": created,
        "begun": 0.0,
        "ended": created + took,
        "seconds": took,
        "proposed": 1,
        "delivered": {"lookup": 1},
        "usage": {"prompt_tokens": 100, "completion_tokens": 10},
    }
    return TurnRecord(**{**given, **fields})  # type: ignore[arg-type]


def answer(name: str, created: float, **fields: object) -> TurnRecord:
    """A turn that calls nothing."""
    return turn(name, created, **{"proposed": 0, "delivered": {}, **fields})  # type: ignore[arg-type]


def passes(arm: str, passed: int, of: int, calls: Sequence[int] = (1,)) -> list[Conversation]:
    """`of` conversations, of which the first `passed` passed; `calls` in turn."""
    return [Conversation(arm, float(i < passed), calls[i % len(calls)]) for i in range(of)]


# Conversations


def test_a_conversation_is_all_of_its_turns() -> None:
    """The last one too, which calls nothing: in it a held-out conversation reads what its calls brought."""
    found = Conversation.of([turn("a", 0.0), turn("a", 5.0), answer("a", 7.0, took=2.0)], 0.5, Prices())
    assert (found.arm, found.score, found.calls) == (GOVERNED, 0.5, 2.0)
    assert found.tokens == 330.0
    # Its messages took 1, 1 and 2 seconds, and its tools 4 and 1.
    assert found.seconds == 9.0


def test_a_user_who_thinks_is_not_waited_for() -> None:
    """Between an answer and the next question the time is the user's own."""
    found = Conversation.of([turn("a", 0.0), answer("a", 3.0), answer("a", 900.0)], None, Prices())
    assert found.seconds == 1 + 2 + 1 + 1


def test_the_governors_own_tokens_stand_apart_and_cost_money() -> None:
    """The client's count is the client's; the bill is for both."""
    own = {"prompt_tokens": 50, "completion_tokens": 5}
    found = Conversation.of([turn("a", own_usage=own, delivered={"lookup": 1, "search": 2})], None, PRICES)
    assert (found.calls, found.tokens, found.own_tokens) == (3.0, 110.0, 55.0)
    assert found.money == pytest.approx((150 * 1.0 + 15 * 10.0) / 1e6 + 0.5 + 2 * 0.25)


def test_a_withheld_call_costs_its_tokens_and_no_call() -> None:
    """Its tool was not asked."""
    found = Conversation.of([turn("a", delivered={})], None, PRICES)
    assert (found.calls, found.tokens) == (0.0, 110.0)
    assert found.money == pytest.approx((100 + 100) / 1e6)


def test_what_nobody_counted_is_not_taken_for_nothing() -> None:
    """A stream without usage would look free."""
    found = Conversation.of([turn("a", usage={}), answer("a", 2.0)], None, PRICES)
    assert (found.tokens, found.money) == (None, None)
    only_calls = Conversation.of([turn("a", usage={})], None, Prices(calls={"lookup": 2.0}))
    assert only_calls.money == 2.0
    assert Conversation.of([turn("a")], None, Prices()).money is None


def test_a_conversation_stays_in_the_arm_of_its_first_turn() -> None:
    """Whatever became of it later."""
    assert Conversation.of([turn("a", arm=HOLDOUT), turn("a", 3.0)], None, Prices()).arm == HOLDOUT


def test_a_conversation_without_turns_is_in_no_arm() -> None:
    with pytest.raises(ValueError, match="in no arm"):
        Conversation.of([], 1.0, Prices())


# Which are compared


def test_those_are_compared_that_began_before_the_longest_would_be_over() -> None:
    """To leave out just those under way would leave out the long ones, which the holdout has more of."""
    turns = [
        *(turn("early", 0.0, begun=0.0), answer("early", 2.0)),
        *(turn("long", 10.0, begun=10.0), answer("long", 29.0, begun=10.0)),
        *(turn("late", 20.0, begun=20.0), answer("late", 22.0, begun=20.0)),
    ]
    # The longest took 20 seconds.
    for now, expected in (
        (31.0, {"early", "long"}),
        (40.0, {"early", "long"}),
        (41.0, {"early", "long", "late"}),
    ):
        found = comparable(turns, now)
        assert set(found.conversations) == expected
        assert found.under_way == 3 - len(expected)


def test_one_under_way_is_the_longest_so_far() -> None:
    """However long it takes yet, what began with it or after it waits."""
    turns = [turn("open", 10.0, begun=10.0), turn("late", 20.0, begun=20.0), answer("late", 22.0, begun=20.0)]
    assert comparable(turns, 400.0).under_way == 2
    before = answer("before", 9.0, begun=9.0, proposed=1)
    assert set(comparable([before, *turns], 400.0).conversations) == {"before"}


def test_an_agent_that_never_comes_back_is_not_waited_for() -> None:
    """Nor is one that had its answer, and asks on."""
    gone = [turn("gone", 10.0, begun=10.0)]
    late = [turn("late", 20.0, begun=20.0), answer("late", 22.0, begun=20.0)]
    assert comparable([*gone, *late], now=ABANDONED_S).under_way == 2
    assert comparable([*gone, *late], now=ABANDONED_S + 12).under_way == 0
    again = [turn("chat", 0.0, begun=0.0), answer("chat", 2.0), turn("chat", 500.0)]
    assert set(comparable(again, now=501.0).conversations) == {"chat"}


def test_the_longest_of_all_holds_back_the_comparison_for_an_hour_at_most() -> None:
    """A person who was asked in between may take a day."""
    day = 24 * 3600.0
    turns = [turn("slow", 0.0, begun=0.0), answer("slow", day, begun=0.0)]
    turns += [turn("quick", day, begun=day), answer("quick", day + 5, begun=day)]
    assert set(comparable(turns, day + 3601.0).conversations) == {"slow", "quick"}


def test_one_whose_beginning_is_forgotten_is_left_out() -> None:
    """Half a conversation took half as much."""
    found = comparable([turn("old", 50.0, begun=10.0), answer("old", 52.0, begun=10.0)], now=60.0)
    assert (found.conversations, found.cut) == ({}, 1)


def test_one_that_proposed_no_call_is_in_no_arm() -> None:
    assert comparable([answer("talk", 0.0)], now=10.0).conversations == {}


def test_a_range_of_time_takes_whole_conversations() -> None:
    """By their first turn: one that goes on beyond the end is not cut in two."""
    turns = [turn("in", 10.0, begun=10.0), answer("in", 99.0, begun=10.0), turn("out", 60.0, begun=60.0)]
    found = comparable(turns, now=10_000.0, since=5.0, until=50.0)
    assert {name: len(talk) for name, talk in found.conversations.items()} == {"in": 2}


@given(st.integers(0, 10_000))
def test_the_order_of_the_turns_does_not_matter(seed: int) -> None:
    """They come from several processes."""
    lots = Random(seed)
    turns = [
        turn(f"talk {n}", float(n + step * 7), begun=float(n), proposed=step % 2)
        for n in range(6)
        for step in range(lots.randint(1, 4))
    ]
    mixed = lots.sample(turns, len(turns))
    now = lots.uniform(0, 700)
    assert comparable(mixed, now) == comparable(turns, now)


def test_looking_in_the_middle_favours_no_arm() -> None:
    """Held-out conversations take longer, so that more of them are under way at any moment. Looks at random
    moments: the mean difference is the true one. Counted as far as they went, it is 13% off."""
    lots = Random(5)
    differences = []
    for _ in range(400):
        turns: list[TurnRecord] = []
        for number in range(60):
            begun = number * 1.0
            arm, calls = (HOLDOUT, 8) if lots.random() < 0.5 else (GOVERNED, 2)
            # Some are quicker, whatever their arm.
            calls += lots.randint(0, 2)
            name = f"talk {number}"
            turns += [turn(name, begun + step, begun=begun, arm=arm, took=0.5) for step in range(calls)]
            turns.append(answer(name, begun + calls, begun=begun, arm=arm, took=0.5))
        now = lots.uniform(30.0, 60.0)
        found = effect_of([each for each in turns if each.ended <= now], {}, Prices(), now)
        assert found.calls is not None
        differences.append(found.calls.value)
    assert fmean(differences) == pytest.approx(-6.0, abs=0.05)


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
    """The t interval knows no bounds: of scores near 1 it goes beyond."""
    arm = [Conversation(GOVERNED, score, 1) for score in [1.0] * 9 + [0.0]]
    found = effect([*arm, *(Conversation(HOLDOUT, score, 1) for score in [0.0] * 9 + [0.9])])
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
            tokens=st.none() | st.integers(0, 10_000),
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


def test_the_sentence_tells_what_was_saved() -> None:
    """With its intervals, and with what the governor itself took."""
    turns = []
    for number in range(40):
        arm = HOLDOUT if number % 2 else GOVERNED
        own = {} if number % 2 else {"prompt_tokens": 30, "completion_tokens": 0}
        for step in range((number % 4 > 1) + 2 * (number % 2)):
            turns.append(turn(f"talk {number}", float(step * 2), arm=arm))
        last = answer(f"talk {number}", 50.0, arm=arm, proposed=1, own_usage=own)
        turns.append(last)
    said = effect_of(turns, {}, Prices(), 1000.0).sentence()
    assert "Beside one held out, a governed conversation took 1.50 calls fewer (95% interval -1.83" in said
    assert "165 tokens fewer (95% interval -201 to -129), as many seconds, and 30 tokens more" in said


def test_few_conversations_have_no_interval_and_no_claim() -> None:
    """What three of them took is luck."""
    said = effect([*passes(GOVERNED, 10, 20, calls=(0, 1)), *passes(HOLDOUT, 3, 3, (1, 3))]).sentence()
    assert f"What governing saved needs at least {LEAST} conversations in each arm" in said
    assert "fewer" not in said


def test_what_was_saved_turns_the_difference_round() -> None:
    """Fewer calls a conversation are calls saved, in all governed ones, and the ends of the interval change
    places."""
    calls = effect([*passes(GOVERNED, 20, 20, (1, 2)), *passes(HOLDOUT, 20, 20, (3, 4))]).saved()["calls"]
    assert calls["difference"]["value"] == pytest.approx(-2.0)
    assert calls["saved"]["value"] == pytest.approx(40.0)
    assert calls["saved"]["low"] == pytest.approx(-20 * calls["difference"]["high"])
    assert calls["saved"]["low"] < calls["saved"]["value"] < calls["saved"]["high"]


def test_scores_of_conversations_without_a_call_are_counted_apart() -> None:
    """Their name may be wrong."""
    found = effect_of([turn("a"), answer("a", 3.0)], {"a": 1.0, "b": 0.0}, Prices(), 10.0)
    assert (found.governed.scored, found.scored_without_calls) == (1, 1)


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
