"""The policy that withholds nothing."""

from __future__ import annotations

from dataclasses import dataclass

from governor.decision import Reason
from governor.policies.policy import Evidence, Verdict, exemption


@dataclass(frozen=True, slots=True)
class ObservePolicy:
    """Lets every call pass and never asks for the probe.

    >>> from governor.calls import ToolCall, ToolEffect
    >>> call = ToolCall("call_1", 0, "lookup", "{}")
    >>> ObservePolicy().judge(Evidence(call, ToolEffect.READ_ONLY)).withhold
    False
    """

    name: str = "observe"

    def judge(self, evidence: Evidence) -> Verdict:
        return exemption(evidence) or Verdict(False, Reason.NO_RULE, 0)
