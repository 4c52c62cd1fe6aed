"""Lots are fair, stay as they fell, and are drawn apart from each other."""

from __future__ import annotations

import pytest

from governor.experiment import Arm, Experiment

MANY = [f"conversation {number}" for number in range(20_000)]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_the_holdout_has_its_share(share: float) -> None:
    """A share of 1 is everybody and a share of 0 nobody, not nearly so."""
    held = sum(Experiment(holdout=share).arm(name, enforcing=True) is Arm.HOLDOUT for name in MANY)
    assert held / len(MANY) == pytest.approx(share, abs=0.01 if 0 < share < 1 else 0)


def test_a_conversation_stays_in_its_arm() -> None:
    """Also over a restart, which makes another value of the same settings."""
    for name in MANY[:100]:
        arms = {Experiment(holdout=0.5, salt="a").arm(name, enforcing=True) for _ in range(3)}
        assert len(arms) == 1


def test_another_salt_draws_other_lots() -> None:
    """Or the same conversations would be left out for ever."""
    first, second = (
        [Experiment(holdout=0.5, salt=salt).arm(name, enforcing=True) for name in MANY] for salt in "ab"
    )
    same = sum(a is b for a, b in zip(first, second, strict=True))
    assert same / len(MANY) == pytest.approx(0.5, abs=0.02)


def test_exploration_is_independent_of_the_holdout() -> None:
    """Else only one half of the conversations would ever be explored."""
    experiment = Experiment(holdout=0.5, exploration=0.5)
    held = [name for name in MANY if experiment.arm(name, enforcing=True) is Arm.HOLDOUT]
    explored = sum(experiment.explores(name, 0, "lookup({})") for name in held)
    assert explored / len(held) == pytest.approx(0.5, abs=0.02)


def test_each_call_draws_its_own_lot() -> None:
    """A conversation that was explored once is not explored for ever."""
    experiment = Experiment(exploration=0.5)
    drawn = [experiment.explores("one", step, "lookup({})") for step in range(200)]
    assert 70 < sum(drawn) < 130


def test_nothing_is_held_out_where_nothing_is_enforced() -> None:
    """A holdout is a comparison with the governed; without them there is none."""
    assert Experiment(holdout=1.0).arm("one", enforcing=False) is Arm.OBSERVED


def test_labels_are_bounded_in_a_conversation() -> None:
    """However long it gets."""
    experiment = Experiment(max_labels=4)
    assert [experiment.labelled("one", step, Arm.HOLDOUT) for step in range(6)] == [True] * 4 + [False] * 2


def test_governed_conversations_are_labelled_by_their_share() -> None:
    """Those only observed always are: they are what a certificate is made of."""
    experiment = Experiment(labels=0.1)
    assert all(experiment.labelled(name, 0, Arm.OBSERVED) for name in MANY[:100])
    labelled = sum(experiment.labelled(name, 0, Arm.GOVERNED) for name in MANY)
    assert labelled / len(MANY) == pytest.approx(0.1, abs=0.01)
