"""Policies: what is known about a call goes in, a verdict or the wish for a probe comes out."""

from governor.policies.observe import ObservePolicy
from governor.policies.policy import NEED_PROBE, Evidence, Judgement, NeedProbe, Policy, Verdict
from governor.policies.rules import RulesPolicy
from governor.policies.threshold import ThresholdPolicy

__all__ = [
    "NEED_PROBE",
    "Evidence",
    "Judgement",
    "NeedProbe",
    "ObservePolicy",
    "Policy",
    "RulesPolicy",
    "ThresholdPolicy",
    "Verdict",
]
