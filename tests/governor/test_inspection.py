"""One conversation for a reader: nothing that is not kept, and no claim that is not known."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from governor.inspection import counterfactual, inspection
from governor.records import CallRecord
from governor.transcript import Transcript
from tests.server import logs

SECRET = "the secret capital"


def call(
    step: int, *, useful: bool = True, action: str = "pass", proposed: str = "pass", **fields: object
) -> CallRecord:
    decision = {"index": 0, "action": action, "proposed": proposed, "reason": "x", "arguments": SECRET}
    return logs.call("talk", step, margin=0.5, useful=useful, decision=decision, **fields)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (call(0, useful=True), "would have been another one"),
        (call(0, useful=False), "would have been the same"),
        (call(0, useful=True, proposed="answer"), "Withholding it would have been wrong"),
        (call(0, useful=False, proposed="answer"), "Withholding it would have been right"),
        (replace(call(0, proposed="answer"), probe_after=None), "is not known: it has no label"),
        (call(0, action="answer", proposed="answer"), "is not known: it was never made"),
    ],
)
def test_the_counterfactual_says_no_more_than_the_label(record: CallRecord, says: str) -> None:
    """Of a withheld call nobody knows the result, whatever a probe after it may have said."""
    assert says in counterfactual(record)


def test_of_a_call_that_passed_by_the_policy_without_a_label_nothing_is_said() -> None:
    """A sentence would be a guess."""
    assert counterfactual(replace(call(0), probe_after=None)) == ""


def test_without_texts_there_is_none() -> None:
    """Neither arguments nor answers leave the memory where the operator does not keep them."""
    record = replace(
        call(0), signature=SECRET, probe_before=logs.answer(SECRET, 0.5), probe_after=logs.answer(SECRET, 0.9)
    )
    shown = json.dumps(inspection([record], keep_text=False))
    assert SECRET not in shown
    assert shown.count(SECRET) == 0 < json.dumps(inspection([record], keep_text=True)).count(SECRET)


def test_a_turn_has_its_calls_and_what_was_said_in_it() -> None:
    """By their time; turns without a call, like the last one, are there too."""
    spoken = [
        Transcript(
            "talk",
            turn,
            created,
            "m",
            (),
            [{"role": "user", "content": str(turn)}],
            {},
            tokens=[["a", 0.1, "content"]],
        )
        for turn, created in enumerate((0.0, 1.0, 2.0))
    ]
    turns = inspection([call(1), call(0)], spoken, keep_text=True)
    assert [(turn["step"], len(turn["calls"])) for turn in turns] == [(0, 1), (1, 1), (2, 0)]
    assert [turn["transcript"]["said"][0]["content"] for turn in turns] == ["0", "1", "2"]
    assert turns[0]["transcript"]["tokens"] == [["a", 0.1, "content"]]
    assert inspection([call(0)], keep_text=True)[0]["transcript"] is None


def test_a_notice_comes_before_what_was_generated_after_it() -> None:
    """Both have the same time."""
    noticed = call(0, action="notice", proposed="notice", call_id="first")
    passed = replace(call(0), call_id="second")
    (turn,) = inspection([passed, noticed], keep_text=True)
    assert [each["call_id"] for each in turn["calls"]] == ["first", "second"]
