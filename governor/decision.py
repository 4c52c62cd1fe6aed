"""The decision on one tool call, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from governor.calls import ToolCall

InputValue = float | int | str | bool | None


class Mode(StrEnum):
    """OBSERVE measures and records only; ENFORCE acts."""

    OBSERVE = "observe"
    ENFORCE = "enforce"


class Action(StrEnum):
    """What becomes of a call: it passes, or the model answers without tools, or it reads a notice and goes
    on."""

    PASS = "pass"
    ANSWER = "answer"
    NOTICE = "notice"


class Reason(StrEnum):
    """Why a call was withheld, or why it passed."""

    REPEATED_CALL = "repeated_call"
    CYCLE = "cycle"
    BUDGET = "budget"
    FAILING_RETRY = "failing_retry"
    CONFIDENT_ANSWER = "confident_answer"
    UNCERTAIN_ANSWER = "uncertain_answer"
    NO_RULE = "no_rule"
    EFFECTFUL_TOOL = "effectful_tool"
    UNKNOWN_TOOL = "unknown_tool"
    ASKED_AGAIN = "asked_again"
    NOTICE_LIMIT = "notice_limit"
    PROBE_FAILED = "probe_failed"
    NO_LOGPROBS = "no_logprobs"
    OBSERVE_MODE = "observe_mode"
    POLICY_ERROR = "policy_error"


@dataclass(frozen=True, slots=True)
class Decision:
    """What was done with one call.

    `proposed` is what enforcing would have done, so it differs from `action` in observe mode. `tier` is the
    tier of the decision procedure that decided (0 rules, 1 stream, 2 probe), None where none was reached.
    `inputs` are the numbers that the policy looked at, JSON scalars only.
    """

    call: ToolCall
    action: Action
    proposed: Action
    reason: Reason
    tier: int | None = None
    policy: str = ""
    inputs: Mapping[str, InputValue] = field(default_factory=dict)

    @property
    def withheld(self) -> bool:
        return self.action is not Action.PASS

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; the arguments are included, since they are the client's own."""
        return {
            "call_id": self.call.id,
            "index": self.call.index,
            "tool": self.call.name,
            "arguments": self.call.arguments,
            "action": self.action.value,
            "proposed": self.proposed.value,
            "reason": self.reason.value,
            "tier": self.tier,
            "policy": self.policy,
            "inputs": dict(self.inputs),
            "explanation": self.explain(),
        }

    def explain(self) -> str:
        """One plain sentence with the figures in it."""
        return f"{self.call.name} {self.action.value}: {self.reason.value}"
