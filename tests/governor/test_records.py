"""A record survives a trip through JSON, with and without the texts."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.calls import ToolCall
from governor.decision import Action, Decision, Reason
from governor.probe import ProbeAnswer
from governor.records import CallRecord

CALL = ToolCall("call_1", 0, "lookup", '{"city": "Oslo"}')
DECISION = Decision(
    CALL, Action.PASS, Action.PASS, Reason.UNCERTAIN_ANSWER, 2, "threshold", {"finished": True}
)


def probe(text: str = "31 C", entropy: float = 0.5) -> ProbeAnswer:
    """A probe's answer with this mean entropy."""
    return ProbeAnswer(text, True, entropy, 1.0, 0.5, -1.0, 2, 30, 3)


RECORD = CallRecord(
    call_id="call_1",
    conversation="conversation_1",
    tool="lookup",
    signature=str(CALL.signature),
    step=1,
    decision=DECISION.as_dict(),
    created=1.5,
    entropy_before=1.25,
    probe_before=probe(),
    usage={"probe_prompt_tokens": 30},
)


def test_what_the_next_turn_adds_gives_the_differences() -> None:
    """Both are positive where the result helped, and unknown before it is there."""
    assert RECORD.entropy_reduction is None
    assert RECORD.gain is None
    assert RECORD.answer_changed is None
    complete = replace(RECORD, entropy_after=0.25, probe_after=probe("32 C", 0.2))
    assert complete.entropy_reduction == 1.0
    assert complete.gain == pytest.approx(0.3)
    assert complete.answer_changed is True
    assert replace(complete, probe_after=probe(" 31 c")).answer_changed is False


any_text = st.text(st.characters(exclude_categories=()))


@given(any_text, any_text, st.none() | st.floats(0, 10))
def test_a_record_survives_json(signature: str, text: str, entropy: float | None) -> None:
    """Whatever the model wrote, lone surrogates included."""
    record = replace(RECORD, signature=signature, entropy_after=entropy, probe_after=probe(text))
    assert CallRecord.from_dict(json.loads(json.dumps(record.as_dict()))) == record


def test_without_text_nothing_that_was_written_is_kept() -> None:
    """Neither arguments nor answers; whether the answer changed is still known."""
    record = replace(RECORD, probe_after=probe("Bergen is cold"))
    stored = record.as_dict(keep_text=False)
    for secret in ("Oslo", "31 C", "Bergen"):
        assert secret not in json.dumps(stored)
    restored = CallRecord.from_dict(stored)
    assert restored.answer_changed is True
    assert restored.gain == record.gain
    assert replace(restored, probe_after=restored.probe_before).answer_changed is False
    assert (
        CallRecord.from_dict(replace(RECORD, probe_before=None).as_dict(keep_text=False)).probe_before is None
    )


def test_without_text_equal_calls_are_still_equal() -> None:
    """The digest stands for the signature, and digesting does not change the record itself."""
    other = replace(RECORD, call_id="call_2")
    assert RECORD.as_dict(keep_text=False)["signature"] == other.as_dict(keep_text=False)["signature"]
    assert RECORD.signature == 'lookup({"city":"Oslo"})'
    for kept in (RECORD, RECORD.without_text()):
        assert kept.is_of(RECORD.signature)
        assert not kept.is_of('lookup({"city":"Bergen"})')


def test_a_later_versions_fields_are_left_out() -> None:
    """A store may be read by the version before."""
    stored = RECORD.as_dict() | {"new": 1}
    stored["probe_before"]["new"] = 1
    assert CallRecord.from_dict(stored) == RECORD


@pytest.mark.parametrize("data", [None, [], "x", {}, RECORD.as_dict() | {"probe_before": "x"}])
def test_what_is_no_record_is_refused(data: Any) -> None:
    """A store counts it, and nothing breaks."""
    with pytest.raises(TypeError):
        CallRecord.from_dict(data)
