"""What a conversation might have been without its idle calls."""

from __future__ import annotations

from dataclasses import replace

import pytest

from governor.labels import Label
from governor_training.finetuning.hindsight import shortened
from governor_training.finetuning.trajectory import LoggedCall, Trajectory
from tests.training.finetuning.conversations import ANSWER, QUESTION, calling, conversation, logged, result


def short(talk: Trajectory) -> Trajectory:
    found = shortened(talk)
    assert found is not None
    return found


def test_idle_calls_go_and_useful_ones_stay() -> None:
    """Call and result together, and what is left is numbered anew."""
    calls = [
        logged("c1", 0),
        logged("c2", 1, Label.USEFUL, before=1.0, after=0.1),
        logged("c3", 2, Label.CONFIRMATION),
    ]
    found = short(conversation(calls, proposals={3: calling("c4")}))
    assert list(found.messages) == [QUESTION, calling("c2"), result("c2"), ANSWER]
    assert [(call.id, call.turn, call.before) for call in found.calls] == [("c2", 0, None)]
    assert found.proposals == {1: calling("c4")}
    assert (found.kind, found.id, found.group, found.score) == ("shortened", "talk shortened", "norway", 1.0)


@pytest.mark.parametrize("label", [Label.USEFUL, Label.CONFLICT, None])
def test_a_call_that_may_have_mattered_is_never_left_out(label: Label | None) -> None:
    """A changed answer, or one of which nobody knows."""
    assert shortened(conversation([logged("c1", 0, label)])) is None


@pytest.mark.parametrize("score", [0.0, 0.9, None])
def test_only_a_right_conversation_is_shortened(score: float | None) -> None:
    """Of the others nobody knows what would have been right."""
    assert shortened(conversation([logged("c1", 0)], score=score)) is None


@pytest.mark.parametrize("margin", [0.5, None])
def test_a_guess_that_stayed_is_not_knowledge(margin: float | None) -> None:
    """It may have been right by luck; whoever learns from it learns to guess."""
    assert shortened(conversation([logged("c1", 0, margin=margin)])) is None
    assert shortened(conversation([logged("c1", 0, margin=0.5)]), least_margin=0.5) is not None


@pytest.mark.parametrize("read_only", [False, None])
def test_what_has_an_effect_is_never_left_out(read_only: bool | None) -> None:
    """A model that learns to skip a booking is broken."""
    call = replace(logged("c1", 0), read_only=read_only)
    assert shortened(conversation([call])) is None


def test_a_turn_is_left_out_as_a_whole_or_not_at_all() -> None:
    """Half of a parallel call is no message that the model could have said; and what it told the user stays
    told."""
    calls: list[LoggedCall] = [logged("c1", 0), logged("c2", 0, Label.USEFUL)]
    messages = [QUESTION, calling("c1", "c2"), result("c1"), result("c2"), ANSWER]
    assert shortened(replace(conversation([]), messages=messages, calls=calls)) is None
    both = [call if call.id == "c1" else replace(call, label=Label.LOW_VALUE) for call in calls]
    assert short(replace(conversation([]), messages=messages, calls=both)).messages == [QUESTION, ANSWER]
    spoken = [QUESTION, calling("c1", content="I am looking it up."), result("c1"), ANSWER]
    assert shortened(replace(conversation([]), messages=spoken, calls=calls[:1])) is None


def test_what_the_user_said_in_between_stays() -> None:
    """Only the call and its results go."""
    more = {"role": "user", "content": "And?"}
    messages = [QUESTION, calling("c1"), result("c1"), more, ANSWER]
    found = short(replace(conversation([]), messages=messages, calls=[logged("c1", 0)]))
    assert list(found.messages) == [QUESTION, more, ANSWER]
