"""A decision can always be explained, and goes out as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from governor.calls import ToolCall
from governor.decision import Action, Decision, InputValue, Reason

CALL = ToolCall("call_1", 2, "lookup", '{"city": "Oslo"}')
CERTAIN: dict[str, InputValue] = {
    "least_margin": 0.967,
    "margin_threshold": 0.9,
    "max_entropy": 0.1,
    "entropy_threshold": 0.5,
    "finished": True,
}


def decision(reason: Reason, action: Action = Action.PASS, **fields: Any) -> Decision:
    """A decision that enforces what it proposes unless told otherwise."""
    return Decision(CALL, action, fields.pop("proposed", action), reason, **fields)


@pytest.mark.parametrize("reason", list(Reason))
@pytest.mark.parametrize("inputs", [{}, CERTAIN, {"least_margin": None, "executed": "x"}])
def test_every_reason_is_a_sentence(reason: Reason, inputs: dict[str, InputValue]) -> None:
    """Whatever figures the policy gave or left out."""
    text = decision(reason, inputs=inputs).explain()
    assert text.startswith("The call of lookup passed, because ")
    assert text.endswith(".")
    assert "{" not in text


def test_the_figures_are_in_the_sentence() -> None:
    """What was measured and what it was held against."""
    text = decision(Reason.CONFIDENT_ANSWER, Action.ANSWER, inputs=CERTAIN).explain()
    assert text == (
        "The call of lookup was withheld and the model answered without it, "
        "because the forced answer was certain in every token "
        "(least margin 0.97 against 0.90, largest entropy 0.10 against 0.50 nats)."
    )


def test_an_observed_decision_says_what_enforcing_would_have_done() -> None:
    """It passed, and is no evidence that it should have."""
    text = decision(Reason.CYCLE, proposed=Action.NOTICE, inputs={"period": 2, "executed": 4}).explain()
    assert "passed, though enforcing would have withheld it" in text
    assert "(period 2, 4 calls)" in text


def test_a_decision_is_withheld_unless_it_passes() -> None:
    """The action counts, not the proposal."""
    assert decision(Reason.CYCLE, Action.NOTICE).withheld
    assert decision(Reason.CYCLE, Action.ANSWER).withheld
    assert not decision(Reason.CYCLE, Action.PASS, proposed=Action.NOTICE).withheld


def test_a_decision_goes_out_as_json() -> None:
    """Plain strings and numbers, with the call's own arguments as they were written."""
    sent = json.loads(
        json.dumps(decision(Reason.BUDGET, tier=0, policy="rules", inputs={"budget": 3}).as_dict())
    )
    explanation = sent.pop("explanation")
    assert explanation.startswith("The call of lookup passed")
    assert sent == {
        "call_id": "call_1",
        "index": 2,
        "tool": "lookup",
        "arguments": '{"city": "Oslo"}',
        "action": "pass",
        "proposed": "pass",
        "reason": "budget",
        "tier": 0,
        "policy": "rules",
        "inputs": {"budget": 3},
    }
