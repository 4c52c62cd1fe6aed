"""What an evaluation will do, from what the environment has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.governance import Governance
from governor_training.environment import NotEnoughTasks, Split, Task, available
from governor_training.evaluation.extent import extent, least_to_learn, requests
from governor_training.evaluation.study import Plan
from governor_training.evaluation.sweep import CALIBRATED, FORECAST, PRUNED, points, setting_count
from tests.training.toy import Toy

PLAN = Plan()


class Few(Toy):
    """So many tasks of each split."""

    def __init__(self, train: int, held_out: int) -> None:
        super().__init__(most=train + held_out)
        self.most_of = {Split.TRAIN: train, Split.HELD_OUT: held_out}

    def tasks(self, count: int, seed: int, split: Split) -> Sequence[Task]:
        if count > self.most_of[split]:
            raise NotEnoughTasks("too few", self.most_of[split])
        return super().tasks(count, seed, split)


@given(st.integers(0, 700), st.integers(0, 700), st.integers(1, 600), st.integers(1, 2500))
def test_it_never_asks_for_more_than_there_is(train: int, held_out: int, tasks: int, learn: int) -> None:
    """Whatever was wanted; and what is learned from is not played."""
    found = extent(replace(PLAN, tasks=tasks, learn=learn), Few(train, held_out), chosen_split=False).plan
    assert found.learn <= min(learn, train)
    if found.split is None:
        assert not found.learn and found.tasks == min(tasks, train + held_out)
    else:
        assert found.split is Split.HELD_OUT and found.tasks == min(tasks, held_out)
    if found.policies is not None:
        assert not found.learn and not {CALIBRATED, FORECAST} & set(found.policies)


def test_with_enough_tasks_the_plan_is_as_it_was() -> None:
    """The bundled environments are played as ever."""
    assert extent(PLAN, Few(5000, 5000), chosen_split=False).plan == PLAN


def test_who_asks_for_few_tasks_to_learn_from_gets_them_with_a_word() -> None:
    """A quick look has a gate, and knows that it withholds nothing."""
    found = extent(replace(PLAN, learn=120), Few(5000, 5000), chosen_split=False)
    assert found.plan.learn == 120 and found.plan.policies is None
    assert any("withholds nothing" in line for line in found.says)


def test_who_asks_for_a_policy_gets_it_with_a_word() -> None:
    """From as many training tasks as there are."""
    wanted = replace(PLAN, policies=(CALIBRATED,))
    found = extent(wanted, Few(8, 7), chosen_split=False)
    assert (found.plan.policies, found.plan.learn, found.plan.tasks) == ((CALIBRATED,), 8, 7)
    assert any("8 training tasks are too few" in line for line in found.says)


def test_a_chosen_split_is_kept() -> None:
    """A model that was trained on the training rows is judged on the others."""
    found = extent(PLAN, Few(8, 7), chosen_split=True).plan
    assert (found.tasks, found.split) == (7, Split.HELD_OUT)


def test_fewer_than_least_to_learn_cannot_be_certified() -> None:
    """Less harm needs more tasks."""
    assert least_to_learn(0.02) > least_to_learn(0.1) >= 60


def test_an_environment_that_does_not_say_how_many_it_has_is_not_guessed_at() -> None:
    """Its own message says it then."""
    with pytest.raises(NotEnoughTasks, match="there are 3"):
        available(Toy(most=3), 4, 1, Split.TRAIN)


def test_the_settings_are_counted_as_they_are_played() -> None:
    """What is said in advance is what the sweep does."""
    base = Governance(vocab_size=100)
    for names in (["threshold"], ["cap", "rules", PRUNED], ["observe", "observe"]):
        assert setting_count(names) == len(list(points(base, {}, policies=names)))


@given(st.integers(1, 500), st.integers(0, 6))
def test_more_calls_are_more_requests(tasks: int, calls: int) -> None:
    """The estimate is a range from few calls to many."""
    plan = replace(PLAN, tasks=tasks)
    for new in (False, True):
        assert 0 < requests(plan, calls, new=new) < requests(plan, calls + 1, new=new)
    assert requests(plan, calls, new=False) <= requests(plan, calls, new=True)
