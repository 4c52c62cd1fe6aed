"""Policies: what is known about a call goes in, a verdict or the wish for a probe comes out."""

from governor.policies.calibrated import CalibratedPolicy
from governor.policies.cap import CapPolicy
from governor.policies.identical import IdenticalPolicy
from governor.policies.mean_entropy import MeanEntropyPolicy
from governor.policies.observe import ObservePolicy
from governor.policies.policy import NEED_PROBE, Evidence, Judgement, NeedProbe, Policy, Verdict
from governor.policies.rules import RulesPolicy
from governor.policies.table import POLICIES, PolicyError, PolicyKind, Sweep, policy
from governor.policies.tasr import TasrPolicy
from governor.policies.threshold import ThresholdPolicy

__all__ = [
    "NEED_PROBE",
    "POLICIES",
    "CalibratedPolicy",
    "CapPolicy",
    "Evidence",
    "IdenticalPolicy",
    "Judgement",
    "MeanEntropyPolicy",
    "NeedProbe",
    "ObservePolicy",
    "Policy",
    "PolicyError",
    "PolicyKind",
    "RulesPolicy",
    "Sweep",
    "TasrPolicy",
    "ThresholdPolicy",
    "Verdict",
    "policy",
]
