"""Tier 0 as a policy."""

from __future__ import annotations

from dataclasses import dataclass, field

from governor.policies.policy import Evidence, Judgement
from governor.rules import RuleSettings


@dataclass(frozen=True, slots=True)
class RulesPolicy:
    """Withholds what a rule speaks against."""

    settings: RuleSettings = field(default_factory=RuleSettings)
    name: str = "rules"

    def judge(self, evidence: Evidence) -> Judgement:
        raise NotImplementedError
