"""Laws of the entropy rewards, of the baselines, and of the advantages made from them."""

from __future__ import annotations

from dataclasses import replace
from math import exp, fsum, pi, sin
from statistics import stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.decision import Action
from governor.probe import ProbeAnswer
from governor.records import CallRecord
from governor.rewards import (
    PAPER,
    Against,
    CallTurn,
    Measure,
    OverCalls,
    RewardSettings,
    Unknown,
    call_turns,
    dense_rewards,
    dense_total,
    eapo_rewards,
    imitation_weights,
    judged,
    normalised,
    otc_reward,
    otc_rewards,
    pooled_advantages,
    returns_to_go,
    sparse_reward,
    token_advantages,
)

DEFAULTS = RewardSettings()
INFORMATIVE = CallTurn(1.0, 0.2)
WASTED = CallTurn(0.2, 0.2)

nats = st.floats(0.0, 5.0)
call = st.builds(
    CallTurn,
    before=st.none() | nats,
    after=st.none() | nats,
    gain=st.none() | st.floats(-5.0, 5.0),
    changed=st.none() | st.booleans(),
)
conversation = st.lists(nats, min_size=1, max_size=8)
"""The entropies of the turns of one with a call in every turn but the last."""
settings = st.builds(
    RewardSettings,
    measure=st.sampled_from(Measure),
    against=st.sampled_from(Against),
    relative=st.booleans(),
    dead_zone=st.floats(0.0, 2.0),
    ramp=st.sampled_from([0.0, 0.5]),
    spare_conflicts=st.booleans(),
    unknown=st.sampled_from(Unknown),
    no_calls=st.floats(0.0, 1.0),
    stake=st.floats(0.0, 1.0),
    alpha=st.floats(0.0, 2.0),
    over_calls=st.sampled_from(OverCalls),
)
scores = st.floats(0.0, 1.0)
steps = st.lists(st.lists(st.none() | st.floats(-10.0, 10.0), max_size=5), max_size=5)


def calls_of(entropies: list[float]) -> list[CallTurn]:
    return call_turns(entropies, [1] * (len(entropies) - 1) + [0])


def probe(text: str, entropy: float) -> ProbeAnswer:
    return ProbeAnswer(text, True, entropy, entropy, 0.5, -1.0, 2, 10)


def test_the_papers_formulas_are_reproduced() -> None:
    """Two of three calls reduced entropy: F1 * 2/3, and F1 * (1 + alpha) for each of these two."""
    calls = [CallTurn(1.0, 0.5), CallTurn(0.5, 0.6), CallTurn(0.6, 0.59)]
    paper = replace(PAPER, alpha=0.25)
    assert sparse_reward(0.9, calls, paper) == pytest.approx(0.9 * 2 / 3)
    assert dense_rewards(0.9, calls, paper) == pytest.approx([0.9 * 1.25, 0.9, 0.9 * 1.25])
    assert dense_total(0.9, calls, paper) == pytest.approx(0.9 * 3.5)


def test_a_call_is_what_its_record_says() -> None:
    """A sign that is turned here would reward every wasted call."""
    record = CallRecord(
        "call_1",
        "one",
        "search",
        "search({})",
        0,
        {"action": Action.PASS},
        0.0,
        entropy_before=1.0,
        entropy_after=0.25,
        probe_before=probe("Bern", 0.5),
        probe_after=probe("Basel", 0.125),
    )
    turn = CallTurn.of_record(record)
    assert turn == CallTurn(1.0, 0.25, gain=0.375, changed=True)
    assert turn.reduction == record.entropy_reduction == 0.75


def test_with_less_at_stake_a_right_answer_is_worth_more_than_a_wrong_one() -> None:
    """Under the paper's reward both are worth nothing after useless calls, and a policy that guesses half of
    the answers does better than one that looks them all up: half of the facts it looks up it knew."""
    careful = RewardSettings(stake=0.5)

    def looks_up_all(chosen: RewardSettings) -> float:
        return (sparse_reward(1.0, [INFORMATIVE], chosen) + sparse_reward(1.0, [WASTED], chosen)) / 2

    def guesses_all(chosen: RewardSettings) -> float:
        return (sparse_reward(0.0, [], chosen) + sparse_reward(1.0, [], chosen)) / 2

    assert looks_up_all(DEFAULTS) == guesses_all(DEFAULTS) == 0.5
    assert (looks_up_all(careful), guesses_all(careful)) == (0.75, 0.5)


@given(scores, st.lists(call, max_size=8), settings)
def test_every_reward_is_bounded_by_the_score(
    score: float, calls: list[CallTurn], chosen: RewardSettings
) -> None:
    """No convention lets calls earn more than the right answer they led to allows."""
    assert 0.0 <= sparse_reward(score, calls, chosen) <= score
    for reward in dense_rewards(score, calls, chosen):
        assert reward is None or score <= reward <= score * (1 + chosen.alpha)


@given(st.lists(call, min_size=1, max_size=8), settings)
def test_a_wrong_answer_earns_nothing(calls: list[CallTurn], chosen: RewardSettings) -> None:
    """Certainty about a wrong answer is not a good."""
    assert sparse_reward(0.0, calls, chosen) == 0.0
    assert dense_total(0.0, calls, chosen) == 0.0


@given(st.lists(call, max_size=8), settings, st.floats(0.0, 3.0))
def test_a_wider_dead_zone_never_makes_a_call_more_informative(
    calls: list[CallTurn], chosen: RewardSettings, wider: float
) -> None:
    """For calls of which nobody knows whether the answer changed: conflicts are told by the dead zone too."""
    blind = [replace(one, changed=None) for one in calls]
    narrow = judged(blind, chosen)
    wide = judged(blind, replace(chosen, dead_zone=chosen.dead_zone + wider))
    for a, b in zip(narrow, wide, strict=True):
        assert (a is None) == (b is None)
        assert a is None or b is None or b <= a


@given(st.lists(call, max_size=8), settings)
def test_there_is_one_judgement_for_each_call(calls: list[CallTurn], chosen: RewardSettings) -> None:
    """In [0, 1], or None."""
    found = judged(calls, chosen)
    assert len(found) == len(calls)
    assert all(value is None or 0.0 <= value <= 1.0 for value in found)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_without_calls_the_sparse_reward_is_the_chosen_share_of_the_score(share: float) -> None:
    """The convention that decides whether the policy may answer from memory."""
    assert sparse_reward(0.8, [], RewardSettings(no_calls=share)) == pytest.approx(0.8 * share)
    assert dense_rewards(0.8, [], DEFAULTS) == []
    assert dense_total(0.8, [], DEFAULTS) == 0.8


def test_an_unmeasured_call_counts_as_a_wasted_one_unless_it_is_left_out() -> None:
    """Else a policy would end its turns so that nothing can be measured."""
    hidden = [CallTurn(1.0, None)]
    assert sparse_reward(1.0, hidden, DEFAULTS) == 0.0
    lenient = RewardSettings(unknown=Unknown.LEFT_OUT)
    assert sparse_reward(1.0, [*hidden, INFORMATIVE, WASTED], lenient) == 0.5
    assert sparse_reward(1.0, hidden, lenient) == 1.0
    assert dense_rewards(1.0, hidden, lenient) == [None]


def test_a_ramp_grades_what_the_step_only_counts() -> None:
    """Half of the ramp beyond the dead zone is half a call."""
    graded = RewardSettings(dead_zone=0.1, ramp=0.4)
    assert judged([CallTurn(1.0, 0.7)], graded) == pytest.approx([0.5])
    assert judged([CallTurn(1.0, 0.95)], graded) == [0.0]


def test_the_relative_reduction_is_a_share() -> None:
    """From 1.0 to 0.8 is a fifth, as is from 0.1 to 0.08."""
    fifth = RewardSettings(relative=True, dead_zone=0.19)
    assert judged([CallTurn(1.0, 0.8), CallTurn(0.1, 0.08)], fifth) == [1.0, 1.0]


def test_the_gain_is_measured_where_it_is_asked_for() -> None:
    """The two measures can say the opposite of the same call."""
    one = [CallTurn(0.1, 0.9, gain=0.5), CallTurn(0.9, 0.1, gain=0.0)]
    assert judged(one, RewardSettings(measure=Measure.GAIN)) == [1.0, 0.0]
    assert judged(one, RewardSettings(measure=Measure.REDUCTION)) == [0.0, 0.0]
    assert judged(one, RewardSettings(against=Against.PREVIOUS)) == [0.0, 1.0]


# The incentives under the defaults.


@given(scores, st.lists(call, max_size=8))
def test_no_calls_earn_more_than_the_same_score_without(score: float, calls: list[CallTurn]) -> None:
    """Under the sparse reward: so a call can only pay by a better answer."""
    assert sparse_reward(score, calls, DEFAULTS) <= sparse_reward(score, [], DEFAULTS)


@given(scores, conversation)
def test_one_more_wasted_call_never_pays(score: float, entropies: list[float]) -> None:
    """Neither sparse nor dense: a call after which the model is as certain as before."""
    calls = calls_of(entropies)
    more = [*calls, CallTurn(entropies[-1], entropies[-1])]
    assert sparse_reward(score, more, DEFAULTS) <= sparse_reward(score, calls, DEFAULTS)
    if calls:
        assert dense_total(score, more, DEFAULTS) <= dense_total(score, calls, DEFAULTS) + 1e-12


def test_more_calls_of_one_kind_do_not_add_up() -> None:
    """The dense sum grows with every call of a right answer, wasted or not; the mean does not."""
    mean, total = DEFAULTS, RewardSettings(over_calls=OverCalls.SUM)
    for one in (INFORMATIVE, WASTED):
        assert dense_total(1.0, [one] * 6, replace(mean, against=Against.PREVIOUS)) == pytest.approx(
            dense_total(1.0, [one], mean)
        )
        assert dense_total(1.0, [one] * 6, total) > dense_total(1.0, [one], total)


def test_a_hair_less_entropy_is_no_information() -> None:
    """In the paper -1e-6 counts as much as -2."""
    hair = [CallTurn(0.5, 0.5 - 1e-6)]
    assert judged(hair, PAPER) == [1.0]
    assert judged(hair, DEFAULTS) == [0.0]


@given(st.lists(nats, min_size=3, max_size=8), st.data())
def test_rambling_between_two_calls_brings_no_more_to_reduce(
    entropies: list[float], data: st.DataObject
) -> None:
    """Raising the entropy of a segment between calls, to be terse behind the next one, never raises what all
    calls reduce together. Against the segment before, as in the paper, it does."""
    place = data.draw(st.integers(1, len(entropies) - 2))
    inflated = list(entropies)
    inflated[place] += data.draw(nats)
    # So long a ramp that a call counts in proportion to its reduction.
    in_nats = replace(DEFAULTS, dead_zone=0.0, ramp=1000.0)

    def reduced(turns: list[float]) -> float:
        return fsum(value or 0.0 for value in judged(calls_of(turns), in_nats))

    assert reduced(inflated) <= reduced(entropies) + 1e-12
    assert judged(calls_of([0.2, 0.9, 0.2]), DEFAULTS) == [0.0, 0.0]
    assert judged(calls_of([0.2, 0.9, 0.2]), PAPER) == [0.0, 1.0]


def test_rambling_can_share_one_reduction_between_two_calls() -> None:
    """What is left of that trick, and the reason for the measure GAIN: a wasted call gets a part of what the
    one before it brought."""
    assert judged(calls_of([2.0, 0.0, 0.0]), DEFAULTS) == [1.0, 0.0]
    assert judged(calls_of([2.0, 1.0, 0.0]), DEFAULTS) == [1.0, 1.0]


def test_evidence_against_a_belief_is_not_punished() -> None:
    """The answer changed and is less certain: the call counts for nothing, and against nobody."""
    conflict = CallTurn(0.1, 0.9, gain=-0.8, changed=True)
    assert sparse_reward(1.0, [INFORMATIVE, conflict], DEFAULTS) == 1.0
    assert dense_rewards(1.0, [conflict], DEFAULTS) == [None]
    assert sparse_reward(1.0, [INFORMATIVE, conflict], PAPER) == 0.5


def test_another_answer_of_the_same_certainty_was_worth_the_call() -> None:
    """From one sure answer to another: no entropy fell, and everything was learned."""
    corrected = CallTurn(0.1, 0.1, gain=0.0, changed=True)
    for measure in Measure:
        assert judged([corrected], RewardSettings(measure=measure)) == [1.0]
    assert judged([corrected], PAPER) == [0.0]


@pytest.mark.parametrize("bad", [{"dead_zone": -0.1}, {"no_calls": 1.5}, {"alpha": -1.0}, {"ramp": -1.0}])
def test_a_setting_out_of_range_is_refused(bad: dict[str, float]) -> None:
    """A negative dead zone would pay for growing uncertain."""
    with pytest.raises(ValueError, match=next(iter(bad))):
        RewardSettings(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("score", [-1.0, 1.5, float("nan")])
def test_a_score_out_of_range_is_refused(score: float) -> None:
    """With a negative score, fewer informative calls would be the better ones."""
    with pytest.raises(ValueError, match="score"):
        sparse_reward(score, [WASTED], DEFAULTS)
    with pytest.raises(ValueError, match="score"):
        dense_rewards(score, [WASTED], DEFAULTS)


# The baselines.


@given(st.integers(0, 30), st.integers(0, 30))
def test_otc_is_best_at_the_fewest_calls_of_a_right_answer(calls: int, fewest: int) -> None:
    """1 there, less elsewhere, by the formula as it is printed."""
    assert otc_reward(1.0, fewest, fewest) == pytest.approx(1.0)
    assert otc_reward(1.0, calls, fewest) <= 1.0
    if fewest:
        f = 2 * fewest * calls / (calls + fewest)
        assert otc_reward(0.5, calls, fewest, weight=2.0) == pytest.approx(sin(f * pi / (2 * fewest)))


def test_otc_takes_the_fewest_calls_from_the_right_answers_of_the_group() -> None:
    """A wrong answer without calls is no example to follow."""
    assert otc_rewards([1.0, 1.0, 0.0], [3, 2, 0]) == pytest.approx([sin(3 / 5 * pi), 1.0, 0.0])
    assert otc_rewards([0.0, 0.0], [3, 2]) == [0.0, 0.0]


def test_eapo_spares_calls_only_where_the_question_is_easy() -> None:
    """Where one of four is right, three quarters of its reward do not depend on its calls."""
    easy = eapo_rewards([1.0, 1.0, 1.0, 1.0], [0, 1, 2, 3])
    assert easy == pytest.approx([1.0, exp(-1), exp(-2), exp(-3)])
    hard = eapo_rewards([1.0, 0.0, 0.0, 0.0], [3, 0, 1, 2])
    assert hard == pytest.approx([1.0, 0.0, 0.0, 0.0])
    assert eapo_rewards([1.0, 0.0], [1, 0], well_formed=[True, False]) == pytest.approx([1.0, -1.0])


# Advantages.


@given(st.lists(st.floats(-10.0, 10.0), min_size=2, max_size=12))
def test_group_advantages_have_mean_zero_and_deviation_one(rewards: list[float]) -> None:
    """Unless all rewards are the same: then there is nothing to learn from."""
    found = normalised(rewards)
    assert fsum(found) == pytest.approx(0.0, abs=1e-6)
    if stdev(rewards) > 0.1:
        assert stdev(found) == pytest.approx(1.0, abs=2e-3)
    assert all(abs(value) <= len(rewards) for value in found)


def test_one_rollout_has_no_advantage() -> None:
    """A trainer must not divide by a deviation of one value."""
    assert normalised([3.0]) == [0.0]
    assert pooled_advantages([[3.0], []]) == [[0.0], []]


@given(steps)
def test_pooled_advantages_have_mean_zero_over_the_group(rollouts: list[list[float | None]]) -> None:
    """Over all steps together, and the shape is kept; a step without judgement is neither."""
    found = pooled_advantages(rollouts)
    assert [len(one) for one in found] == [len(one) for one in rollouts]
    assert fsum(value for one in found for value in one) == pytest.approx(0.0, abs=1e-6)
    for rewards, advantages in zip(rollouts, found, strict=True):
        assert all(a == 0.0 for r, a in zip(rewards, advantages, strict=True) if r is None)


@given(steps, st.randoms(use_true_random=False))
def test_the_place_of_a_step_does_not_matter(rollouts: list[list[float | None]], random: object) -> None:
    """The same rewards at other turns, or in other rollouts, have the same advantages: nothing pays for one
    more turn by where it stands."""
    flat = [step for one in rollouts for step in one]
    order = list(range(len(flat)))
    random.shuffle(order)  # type: ignore[attr-defined]
    straight = [value for one in pooled_advantages(rollouts) for value in one]
    moved = pooled_advantages([[flat[place]] for place in order])
    for place, (value,) in zip(order, moved, strict=True):
        assert value == pytest.approx(straight[place], abs=1e-9)


def test_advantages_by_turn_index_would_pay_for_one_more_turn() -> None:
    """The bias that pooling avoids: long rollouts are the worse ones at every turn, and yet by index the only
    second turn there is gets 0 instead of less."""
    rollouts: list[list[float | None]] = [[1.0], [0.0, 0.0]]
    (first,), (second, third) = pooled_advantages(rollouts)
    assert first > 0 > second == third
    assert normalised([0.0]) == [0.0]


def test_uncentred_advantages_keep_their_sign() -> None:
    """Where 0 means "told nothing", half of the good calls must not be punished for being below the mean."""
    assert min(pooled_advantages([[0.1], [0.2, 0.9]], centred=False)[0]) > 0


def test_returns_to_go_count_what_comes_behind() -> None:
    """The sum of the rest, and with discount 0 the step alone."""
    assert returns_to_go([1.0, 2.0, 3.0]) == [6.0, 5.0, 3.0]
    assert returns_to_go([1.0, 2.0, 3.0], 0.0) == [1.0, 2.0, 3.0]
    assert returns_to_go([]) == []


def test_a_calls_advantage_lands_on_the_turn_that_proposed_it_and_nowhere_else() -> None:
    """Off by one, and the tool's result is trained on."""
    assert token_advantages([(0, 2), (3, 4)], [1.0, -1.0], 0.5, 5) == [1.5, 1.5, 0.5, -0.5, 0.5]
    with pytest.raises(ValueError, match="span"):
        token_advantages([(3, 6)], [1.0], 0.0, 5)


@given(st.lists(st.floats(-1e6, 1e6), max_size=8), st.floats(0.01, 10.0))
def test_imitation_weights_are_positive_bounded_and_in_order(
    advantages: list[float], temperature: float
) -> None:
    """However large an advantage: no overflow, no weight above the cap."""
    found = imitation_weights(advantages, temperature=temperature, most=20.0)
    assert all(0.0 <= weight <= 20.0 for weight in found)
    for (a, u), (b, v) in zip(
        zip(advantages, found, strict=True), list(zip(advantages, found, strict=True))[1:], strict=False
    ):
        assert (a <= b) <= (u <= v)
    assert imitation_weights([0.0], temperature=temperature) == [1.0]
