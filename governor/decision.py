"""The decision on one tool call, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from governor.calls import ToolCall

InputValue = float | int | str | bool | None


class Mode(StrEnum):
    """OBSERVE measures and records only; ENFORCE acts."""

    OBSERVE = "observe"
    ENFORCE = "enforce"


class Action(StrEnum):
    """What becomes of a call: it passes; or the model answers without tools, or reads a notice and goes on,
    where all calls of the message are withheld; or it is left out, and the message's other calls pass."""

    PASS = "pass"
    ANSWER = "answer"
    NOTICE = "notice"
    DROP = "drop"


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
    VOLATILE = "volatile"
    UNFINISHED = "unfinished"
    PROBE_FAILED = "probe_failed"
    NO_PROBE = "no_probe"
    REPLACEMENT_FAILED = "replacement_failed"
    NO_LOGPROBS = "no_logprobs"
    UPSTREAM_REFUSES = "upstream_refuses"
    NOT_JUDGED = "not_judged"
    POLICY_ERROR = "policy_error"
    CUT_MESSAGE = "cut_message"
    EXPLORATION = "exploration"
    UNCERTIFIED = "uncertified"
    LIKELY_USELESS = "likely_useless"
    LIKELY_USEFUL = "likely_useful"


@dataclass(frozen=True, slots=True)
class Decision:
    """What was done with one call.

    `proposed` is what enforcing would have done, so it differs from `action` in observe mode. `tier` is the
    tier of the decision procedure that decided (0 rules, 1 stream, 2 probe, 3 gate), None where none was
    reached. `inputs` are the numbers that the policy looked at, JSON scalars only.
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
        """One plain sentence with the figures in it.

        >>> call = ToolCall("call_1", 0, "lookup", "{}")
        >>> notice = Action.NOTICE
        >>> Decision(call, notice, notice, Reason.REPEATED_CALL, inputs={"executed": 2}).explain()
        'The call of lookup was withheld with a notice, because the same call was made before (times: 2).'
        """
        texts = (_figure(template, self.inputs) for template in _FIGURES.get(self.reason, ()))
        figures = ", ".join(text for text in texts if text)
        shown = f" ({figures})" if figures else ""
        return f"The call of {self.call.name} {self._fate()}, because {BECAUSE[self.reason]}{shown}."

    def _fate(self) -> str:
        if self.action is Action.PASS and self.proposed is not Action.PASS:
            return "passed, though enforcing would have withheld it"
        return _FATE[self.action]


_FATE: Final = {
    Action.PASS: "passed",
    Action.ANSWER: "was withheld and the model answered without it",
    Action.NOTICE: "was withheld with a notice",
    Action.DROP: "was left out of the message, whose other calls passed",
}

BECAUSE: Final = {
    Reason.REPEATED_CALL: "the same call was made before",
    Reason.CYCLE: "the last calls went round in a circle with the same results",
    Reason.BUDGET: "its budget is used up",
    Reason.FAILING_RETRY: "the same call kept failing",
    Reason.CONFIDENT_ANSWER: "the forced answer was certain in every token",
    Reason.UNCERTAIN_ANSWER: "the forced answer was not certain enough",
    Reason.NO_RULE: "no rule speaks against it",
    Reason.EFFECTFUL_TOOL: "its tool has effects",
    Reason.UNKNOWN_TOOL: "its tool is not known to be read-only",
    Reason.ASKED_AGAIN: "the model asked for it again after a notice",
    Reason.NOTICE_LIMIT: "the limit of notices was reached",
    Reason.VOLATILE: "its tool may give another answer each time",
    Reason.UNFINISHED: "the same call last said that the work was not finished",
    Reason.PROBE_FAILED: "the probe gave no answer",
    Reason.NO_PROBE: "it needs a probe, and the settings allow none here",
    Reason.REPLACEMENT_FAILED: "what was to take its place could not be generated",
    Reason.NO_LOGPROBS: "upstream sent no logprobs",
    Reason.CUT_MESSAGE: "the message was not whole",
    Reason.UPSTREAM_REFUSES: "upstream refuses what the governor adds to requests",
    Reason.NOT_JUDGED: "no policy was asked before it was delivered",
    Reason.POLICY_ERROR: "the policy failed",
    Reason.EXPLORATION: "it was drawn to be let through, to see whether withholding it would be right",
    Reason.UNCERTIFIED: "no certificate allows acting on calls of this tool yet",
    Reason.LIKELY_USELESS: "its result is unlikely to change the answer",
    Reason.LIKELY_USEFUL: "its result may well change the answer",
}
"""What each reason means; the end of a sentence."""

_CERTAINTY: Final = (
    "least margin {least_margin:.2f} against {margin_threshold:.2f}",
    "largest entropy {max_entropy:.2f} against {entropy_threshold:.2f} nats",
)

_FORECAST: Final = (
    "probability {p_useful:.3f} against {threshold:.3f}",
    "least margin {least_margin:.2f} against {margin_threshold:.2f}",
    "mean entropy {mean_entropy:.2f} against {entropy_threshold:.2f} nats",
)

_FIGURES: Final = {
    Reason.REPEATED_CALL: ("times: {executed}",),
    Reason.CYCLE: ("period {period}", "{executed} calls"),
    Reason.VOLATILE: ("times: {executed}",),
    Reason.UNFINISHED: ("times: {executed}",),
    Reason.BUDGET: ("{executed} of {budget} calls of the {budget_of}",),
    Reason.FAILING_RETRY: ("times: {attempts}",),
    Reason.CONFIDENT_ANSWER: _CERTAINTY,
    Reason.UNCERTAIN_ANSWER: (*_CERTAINTY, "finished: {finished}"),
    Reason.LIKELY_USELESS: _FORECAST,
    Reason.LIKELY_USEFUL: _FORECAST,
}


def _figure(template: str, inputs: Mapping[str, InputValue]) -> str | None:
    """The figure in words; None where the policy did not give it."""
    try:
        return template.format_map(inputs)
    except (KeyError, TypeError, ValueError):
        return None
