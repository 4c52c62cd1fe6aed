"""An entropy threshold on the forced answer."""

from __future__ import annotations

from dataclasses import dataclass

from governor.decision import Reason
from governor.policies.policy import NEED_PROBE, Evidence, Judgement, Verdict, exemption


@dataclass(frozen=True, slots=True)
class MeanEntropyPolicy:
    """Withholds a call iff the mean token entropy of the forced answer is low:

        finished  and  not empty  and  (1 / T) sum_t H_t <= entropy

    over its T tokens. Close relatives: the entropy variant of TARG [1]_, which takes the mean over a draft
    made without context, and UALA [2]_, which puts the threshold on the uncertainty of an answer made
    without the tool. Both choose it on a calibration set; the default here is no more than a start. A mean
    hides the one or two tokens that carry a fact: see `governor.policies.threshold`.

    Parameters
    ----------
    entropy
        Greatest mean entropy in nats. Lowering it withholds fewer calls.

    .. [1] arXiv:2511.09803
    .. [2] arXiv:2401.14016

    >>> from governor.calls import ToolCall, ToolEffect
    >>> MeanEntropyPolicy().judge(Evidence(ToolCall("call_1", 0, "lookup", "{}"), ToolEffect.READ_ONLY))
    <NeedProbe.NEED_PROBE: 'need_probe'>
    """

    entropy: float = 0.1
    name: str = "mean_entropy"

    def judge(self, evidence: Evidence) -> Judgement:
        if exempt := exemption(evidence):
            return exempt
        probe = evidence.probe
        if probe is None:
            return NEED_PROBE
        low = probe.finished and bool(probe.text.strip()) and probe.mean_entropy <= self.entropy
        reason = Reason.LIKELY_USELESS if low else Reason.LIKELY_USEFUL
        inputs = {
            "mean_entropy": probe.mean_entropy,
            "entropy_threshold": self.entropy,
            "finished": probe.finished,
        }
        return Verdict(low, reason, 2, inputs)
