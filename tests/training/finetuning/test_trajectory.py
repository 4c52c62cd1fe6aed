"""Rows of a log: what can be read, and what is said of what cannot."""

from __future__ import annotations

import json
from typing import Any

import pytest

from governor.calls import ToolCatalog
from governor.labels import Label
from governor.notices import NOTICE_CONFIDENT
from governor_training.finetuning.trajectory import RowError, Trajectory, question_key, with_effects
from tests.training.finetuning.conversations import ANSWER, QUESTION, calling, conversation, logged, result


def test_a_row_comes_back_as_it_was() -> None:
    """Through JSON, with all that the governor measured."""
    call = logged("c1", 0, Label.USEFUL, before=1.0, after=0.25, gain=0.5, changed=True)
    told = conversation([call], proposals={1: calling("c2")}, given=0, forgetful=True, kind="shortened")
    assert Trajectory.from_row(json.loads(json.dumps(told.as_row())), "here") == told


def test_messages_alone_are_a_row() -> None:
    """Whoever has no governor's log can still train: the calls are read from the messages."""
    messages = [
        QUESTION,
        calling("c1"),
        result("c1"),
        calling("c2"),
        result("c2", NOTICE_CONFIDENT),
        {**ANSWER, "audio": None},
    ]
    told = Trajectory.from_row({"messages": messages}, "log.jsonl:3")
    assert [(c.id, c.turn, c.withheld, c.read_only) for c in told.calls] == [
        ("c1", 0, False, None),
        ("c2", 1, True, None),
    ]
    assert (told.id, told.score, told.group) == ("log.jsonl:3", None, question_key(messages))
    assert told.turns == 3
    assert "audio" not in told.messages[-1]


def test_columns_may_hold_json_as_text() -> None:
    """As parquet does, where the shapes differ from row to row."""
    row = {"messages": json.dumps([QUESTION, ANSWER]), "tools": "[]", "calls": "[]", "score": True}
    told = Trajectory.from_row(row, "here")
    assert (list(told.messages), told.score) == ([QUESTION, ANSWER], 1.0)


def test_the_same_question_is_the_same_group() -> None:
    """However the conversations went on: the rewards of a group are compared."""
    assert question_key([QUESTION, ANSWER]) == question_key([QUESTION, calling("c1"), result("c1"), ANSWER])
    assert question_key([{**QUESTION, "content": "And of Sweden?"}]) != question_key([QUESTION])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "no JSON"),
        (None, "not null"),
        ([], "not list"),
        ({}, "messages is missing"),
        ({"messages": "x"}, "messages is text, but no JSON"),
        ({"messages": 3}, "messages must be a list"),
        ({"messages": [QUESTION]}, "no message of the assistant"),
        ({"messages": [{"content": "x"}, ANSWER]}, r"messages\[0\] is no message"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]},
            "content must be text",
        ),
        ({"messages": [QUESTION, result("c9"), ANSWER]}, "result of no call"),
        ({"messages": [QUESTION, {"role": "assistant", "tool_calls": ["x"]}]}, "a function with a name"),
        ({"messages": [QUESTION, ANSWER], "score": 2}, "from 0 to 1"),
        ({"messages": [QUESTION, ANSWER], "score": "1"}, "from 0 to 1"),
        ({"messages": [QUESTION, ANSWER], "given": 1}, "given must be"),
        ({"messages": [QUESTION, ANSWER], "calls": [{"id": "c1"}]}, r"calls\[0\] is no call"),
        ({"messages": [QUESTION, ANSWER], "calls": [{"label": "so so"}]}, r"calls\[0\] is no call"),
        ({"messages": [QUESTION, ANSWER], "proposals": [1]}, "proposals must be"),
    ],
)
def test_a_bad_row_is_told_with_its_place(row: Any, said: str) -> None:
    """Among a million rows, "invalid value" helps nobody."""
    with pytest.raises(RowError, match=rf"^log\.jsonl:7: .*{said}"):
        Trajectory.from_row(row, "log.jsonl:7")


def test_effects_are_what_the_log_says_then_the_settings_then_the_tools() -> None:
    """A tool that nobody knows is never taken for one that only reads."""
    calls = [
        logged("c1", 0),
        *Trajectory.from_row({"messages": [QUESTION, calling("c2"), result("c2"), ANSWER]}, "").calls,
    ]
    hinted = {"type": "function", "function": {"name": "lookup"}, "annotations": {"readOnlyHint": True}}

    def known(catalog: ToolCatalog, *tools: Any) -> list[bool | None]:
        told = with_effects(conversation(calls, tools=tools), catalog)
        return [call.read_only for call in told.calls]

    assert known(ToolCatalog()) == [True, None]
    assert known(ToolCatalog(read_only=("look*",))) == [True, True]
    assert known(ToolCatalog(effectful=("lookup",))) == [True, False]
    assert known(ToolCatalog(), hinted) == [True, True]
