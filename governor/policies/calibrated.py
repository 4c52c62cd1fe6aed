"""The calibrated gate, as far as its certificate goes."""

from __future__ import annotations

from dataclasses import dataclass, field

from governor.decision import InputValue, Reason
from governor.gate import CallFacts, Gate, rules_of
from governor.policies.policy import NEED_PROBE, Evidence, Judgement, Verdict, exemption
from governor.probe import ProbeAnswer
from governor.rules import RuleSettings, find


@dataclass(frozen=True, slots=True)
class CalibratedPolicy:
    """Withholds a call if its score is at most the certified threshold:

        the forced answer is finished, not empty, and P(useful) <= threshold

    for calls of the model, the tools and their descriptions, the rules and the steps that the certificate was
    found on, and for no others. What a rule of tier 0 finds is evidence here, and decides nothing alone: so a
    budget is no limit under this policy.

    Parameters
    ----------
    gate
        None, or one without certificate: nothing is withheld.
    settings
        The rules of tier 0. Other settings than the gate was fitted under need a new certificate.
    lapsed
        Why the certificate no longer holds (`governor.drift`), "" if it does.

    >>> from governor.calls import ToolCall, ToolEffect
    >>> evidence = Evidence(ToolCall("call_1", 0, "lookup", "{}"), ToolEffect.READ_ONLY)
    >>> str(CalibratedPolicy().judge(evidence).reason)
    'uncertified'
    """

    gate: Gate | None = None
    settings: RuleSettings = field(default_factory=RuleSettings)
    lapsed: str = ""
    name: str = "calibrated"

    def judge(self, evidence: Evidence) -> Judgement:
        if exempt := exemption(evidence):
            return exempt
        gate = self.gate
        if gate is None or gate.threshold is None or self.lapsed or gate.rules != rules_of(self.settings):
            return self._uncertified()
        finding = find(evidence.call, evidence.history, self.settings, volatile=evidence.volatile)
        facts = CallFacts.of_evidence(evidence, finding.reason if finding else "")
        if not gate.knows(facts):
            return self._uncertified()
        if evidence.probe is None:
            return NEED_PROBE
        withhold = gate.score(facts) <= gate.threshold
        inputs = self._inputs(evidence, evidence.probe, facts, gate)
        if withhold and finding:
            return Verdict(True, finding.reason, 3, {**finding.inputs, **inputs})
        return Verdict(withhold, Reason.LIKELY_USELESS if withhold else Reason.LIKELY_USEFUL, 3, inputs)

    def _uncertified(self) -> Verdict:
        return Verdict(False, Reason.UNCERTIFIED, 3, {"lapsed": self.lapsed} if self.lapsed else {})

    @staticmethod
    def _inputs(
        evidence: Evidence, probe: ProbeAnswer, facts: CallFacts, gate: Gate
    ) -> dict[str, InputValue]:
        previous = evidence.previous_probe
        inputs: dict[str, InputValue] = {
            "threshold": gate.threshold,
            "bound": None if gate.certificate is None else gate.certificate.bound,
            "version": gate.version,
            "least_margin": probe.least_margin,
            "max_entropy": probe.max_entropy,
            "mean_entropy": probe.mean_entropy,
            "finished": probe.finished,
            "answer_unchanged": None if previous is None else probe.same_answer(previous),
        }
        if facts.answered:
            inputs["p_useful"] = gate.probability(facts.signals, facts.tool)
        return inputs
