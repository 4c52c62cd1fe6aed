"""The gate's forecast against a threshold that nobody certified."""

from __future__ import annotations

from dataclasses import dataclass, field

from governor.decision import Reason
from governor.gate import CallFacts, Gate
from governor.policies.policy import NEED_PROBE, Evidence, Judgement, Verdict, exemption
from governor.rules import RuleSettings, find


@dataclass(frozen=True, slots=True)
class ForecastPolicy:
    """Withholds a call if the forced answer is finished, not empty, and P(useful) <= threshold.

    It is what `CalibratedPolicy` is at one threshold, without anybody having looked how much harm it does
    there: for a comparison with policies whose thresholds are as free, and not for traffic.

    Parameters
    ----------
    gate
        Its certificate, if it has one, does not matter.
    threshold
        In [0, 1]. Raising it withholds more calls.
    settings
        The rules whose findings are one of the signals.
    """

    gate: Gate
    threshold: float
    settings: RuleSettings = field(default_factory=RuleSettings)
    name: str = "forecast"

    def judge(self, evidence: Evidence) -> Judgement:
        if exempt := exemption(evidence):
            return exempt
        finding = find(evidence.call, evidence.history, self.settings, volatile=evidence.volatile)
        facts = CallFacts.of_evidence(evidence, finding.reason if finding else "")
        if not self.gate.knows(facts):
            return Verdict(False, Reason.UNCERTIFIED, 3)
        if evidence.probe is None:
            return NEED_PROBE
        score = self.gate.score(facts)
        withhold = score <= self.threshold
        reason = Reason.LIKELY_USELESS if withhold else Reason.LIKELY_USEFUL
        inputs = {"p_useful": score, "threshold": self.threshold} if facts.answered else {}
        return Verdict(withhold, reason, 3, inputs)
