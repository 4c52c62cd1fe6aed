"""Steps of a log as preferences."""

from __future__ import annotations

from dataclasses import replace

import pytest

from governor.labels import Label
from governor_training.environment import Message
from governor_training.finetuning.preferences import labels, pairs, steps
from governor_training.finetuning.segments import Encoder
from governor_training.finetuning.trajectory import Trajectory
from tests.training.finetuning.conversations import ANSWER, QUESTION, calling, conversation, logged

FORCED = {"role": "assistant", "content": "It is Bergen."}


def told(talk: Trajectory) -> list[tuple[int, Message | None, Message | None]]:
    return [(step.turn, step.chosen, step.rejected) for step in steps(talk)]


def test_an_idle_call_is_worse_than_what_came_next() -> None:
    """The next step that was no idle call: another one of them is no better."""
    calls = [logged("c1", 0), logged("c2", 1), logged("c3", 2, Label.USEFUL, answer_before="It is Bergen.")]
    assert told(conversation(calls)) == [
        (0, calling("c3"), calling("c1")),
        (1, calling("c3"), calling("c2")),
        (2, calling("c3"), FORCED),
        (3, ANSWER, None),
    ]


def test_a_useful_call_is_better_than_the_answer_it_replaced() -> None:
    """Where the text of that was not kept, it is only good."""
    assert told(conversation([logged("c1", 0, Label.USEFUL)]))[0] == (0, calling("c1"), None)


def test_a_guess_or_a_conflict_says_nothing() -> None:
    """Neither for nor against the call."""
    for call in (logged("c1", 0, margin=0.2), logged("c1", 0, Label.CONFLICT), logged("c1", 0, None)):
        assert told(conversation([call])) == [(1, ANSWER, None)]


def test_an_effectful_call_is_never_the_worse_one() -> None:
    """Whatever the forced answers say."""
    assert told(conversation([logged("c1", 0, read_only=False)])) == [(1, ANSWER, None)]


@pytest.mark.parametrize(("score", "right"), [(1.0, True), (0.0, False)])
def test_what_was_withheld_is_compared_with_what_took_its_place(score: float, right: bool) -> None:
    """By the outcome: a withheld call after which the task failed was the better choice."""
    talk = conversation([], proposals={0: calling("c1")}, score=score)
    good, bad = (ANSWER, calling("c1")) if right else (calling("c1"), ANSWER)
    assert told(talk) == [(0, good, bad)]


def test_a_wrong_answer_is_bad_and_says_nothing_of_the_calls() -> None:
    """And without a score nothing is judged."""
    assert told(conversation([logged("c1", 0)], score=0.0)) == [(1, None, ANSWER)]
    assert told(conversation([logged("c1", 0)], score=None)) == []


def test_given_turns_are_not_judged() -> None:
    """They are another row's."""
    assert [turn for turn, _, _ in told(conversation([logged("c1", 0)], given=1))] == [1]


def test_pairs_are_texts_that_end_as_the_model_does(encoder: Encoder) -> None:
    """TRL's trainers take them as they are."""
    talk = conversation([logged("c1", 0)])
    (pair,) = pairs([talk], encoder)
    asked = encoder.tokenizer.apply_chat_template([QUESTION], add_generation_prompt=True, tokenize=False)
    assert pair["prompt"] == asked
    assert pair["chosen"].endswith("Oslo.<|im_end|>")
    assert pair["rejected"].endswith("</tool_call><|im_end|>")
    same = replace(talk, proposals={1: ANSWER}, calls=[])
    assert list(pairs([same], encoder)) == []


def test_labels_have_good_and_bad_steps(encoder: Encoder) -> None:
    """What was said, and what might have been."""
    found = list(labels([conversation([logged("c1", 0)])], encoder))
    assert [row["label"] for row in found] == [True, False, True]
    assert found[0]["prompt"] == found[1]["prompt"] != found[2]["prompt"]
