"""At most so many calls a conversation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from governor.calls import ToolEffect
from governor.conversation import ExecutedCall
from governor.decision import InputValue, Reason
from governor.policies.policy import Evidence, Verdict, exemption
from governor.results import Outcome


@dataclass(frozen=True, slots=True)
class CapPolicy:
    """Withholds every read-only call of a conversation after the first k:

        withhold  iff  executed read-only calls + those before it in its message >= k

    This is the limit that agent frameworks offer, for example LangChain's `ToolCallLimitMiddleware`, which
    by default (`exit_behavior="continue"`) refuses the calls beyond its limit and lets the model go on. Here
    calls with effects neither count nor are withheld.

    Parameters
    ----------
    calls
        k, how many read-only calls a conversation may make. Raising it withholds fewer calls.

    >>> from governor.calls import ToolCall
    >>> evidence = Evidence(ToolCall("call_1", 0, "lookup", "{}"), ToolEffect.READ_ONLY)
    >>> CapPolicy(calls=0).judge(evidence).withhold
    True
    """

    calls: int = 5
    name: str = "cap"

    def __post_init__(self) -> None:
        if self.calls < 0:
            raise ValueError("calls must be at least 0")

    def judge(self, evidence: Evidence) -> Verdict:
        if exempt := exemption(evidence):
            return exempt
        made = sum(done.effect is ToolEffect.READ_ONLY for done in calls_made(evidence))
        spent = made >= self.calls
        inputs: dict[str, InputValue] = {
            "budget": self.calls,
            "executed": made,
            "budget_of": "conversation",
        }
        return Verdict(spent, Reason.BUDGET if spent else Reason.NO_RULE, 0, inputs)


def calls_made(evidence: Evidence) -> Iterator[ExecutedCall]:
    """The calls that were made before this one: the executed ones, and those before it in its message."""
    for done in evidence.history:
        if done.outcome is not Outcome.PENDING or done.call.index < evidence.call.index:
            yield done
