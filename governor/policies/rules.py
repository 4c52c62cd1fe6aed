"""Tier 0 as a policy."""

from __future__ import annotations

from dataclasses import dataclass, field

from governor.decision import Reason
from governor.policies.policy import Evidence, Verdict, exemption
from governor.rules import RuleSettings, awaited, find


@dataclass(frozen=True, slots=True)
class RulesPolicy:
    """Withholds what a rule of `governor.rules` speaks against. Needs no logprobs.

    Parameters
    ----------
    settings
        The budgets, and how many failures of the same call are enough.

    >>> from governor.calls import ToolCall, ToolEffect
    >>> from governor.rules import Budgets
    >>> policy = RulesPolicy(RuleSettings(Budgets(per_conversation=0)))
    >>> verdict = policy.judge(Evidence(ToolCall("call_1", 0, "lookup", "{}"), ToolEffect.READ_ONLY))
    >>> verdict.withhold, str(verdict.reason)
    (True, 'budget')
    """

    settings: RuleSettings = field(default_factory=RuleSettings)
    name: str = "rules"

    def judge(self, evidence: Evidence) -> Verdict:
        return settled(evidence, self.settings) or Verdict(False, Reason.NO_RULE, 0)


def settled(evidence: Evidence, settings: RuleSettings) -> Verdict | None:
    """The verdict where the exemptions or the rules give one, else None. A call whose answer may have changed
    since it was last made passes: whoever is certain of the answer without it knows the old one."""
    if exempt := exemption(evidence):
        return exempt
    call, history, volatile = evidence.call, evidence.history, evidence.volatile
    if finding := find(call, history, settings, volatile=volatile):
        return Verdict(True, finding.reason, 0, finding.inputs)
    waits = awaited(call, history, volatile=volatile)
    return Verdict(False, waits.reason, 0, waits.inputs) if waits else None
