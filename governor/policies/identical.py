"""The loop detectors of agents: the same call, again."""

from __future__ import annotations

from dataclasses import dataclass

from governor.decision import Reason
from governor.policies.cap import calls_made
from governor.policies.policy import Evidence, Verdict, exemption


@dataclass(frozen=True, slots=True)
class IdenticalPolicy:
    """Withholds a call that the conversation made n times before, with the same arguments:

        withhold  iff  #{earlier calls with the same name and canonical arguments} >= n

    Where detectors differ: opencode stops at the third identical call in a row (`DOOM_LOOP_THRESHOLD = 3`),
    as the default of many libraries has it (`tool-loop-break`, `llm-stack-core`), Gemini CLI at the fifth
    (`TOOL_CALL_LOOP_THRESHOLD = 5`). The default here is the third. Some ask that the calls follow each
    other, others count within a window; here they count wherever they stand, which withholds the most. Unlike
    the rules of `governor.rules` it looks neither at results nor at what happened in between: a job that is
    polled is a loop to it, and so is reading again what was just written.

    Parameters
    ----------
    times
        n, at least 1. Raising it withholds fewer calls.

    >>> from governor.calls import ToolCall, ToolEffect
    >>> evidence = Evidence(ToolCall("call_1", 0, "lookup", "{}"), ToolEffect.READ_ONLY)
    >>> IdenticalPolicy().judge(evidence).withhold
    False
    """

    times: int = 2
    name: str = "identical"

    def __post_init__(self) -> None:
        if self.times < 1:
            raise ValueError("times must be at least 1")

    def judge(self, evidence: Evidence) -> Verdict:
        if exempt := exemption(evidence):
            return exempt
        signature = evidence.call.signature
        made = sum(done.call.signature == signature for done in calls_made(evidence))
        again = made >= self.times
        return Verdict(again, Reason.REPEATED_CALL if again else Reason.NO_RULE, 0, {"executed": made})
