"""Tier 0, then the probe against two thresholds."""

from __future__ import annotations

from dataclasses import dataclass, field

from governor.policies.policy import Evidence, Judgement
from governor.rules import RuleSettings


@dataclass(frozen=True, slots=True)
class ThresholdPolicy:
    """Withholds a call when the forced answer is confident in every token."""

    margin: float = 0.9
    entropy: float = 0.5
    settings: RuleSettings = field(default_factory=RuleSettings)
    name: str = "threshold"

    def judge(self, evidence: Evidence) -> Judgement:
        raise NotImplementedError
