"""Stop once the forced answer repeats itself with a margin."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from governor.decision import Reason
from governor.policies.policy import NEED_PROBE, Evidence, Judgement, Verdict, exemption


@dataclass(frozen=True, slots=True)
class TasrPolicy:
    """The stopping rule of TASR [1]_, the best of the 381 rules that its authors tried: stop iff the
    normalised answer equals that of the round before, and its margin is high enough.

        finished  and  not empty  and  a_t = a_(t-1)  and  c(min_i m_i) > margin

    m_i is the gap between the two most probable tokens at token i of the forced answer a_t. Two things are
    not as in the paper. The paper's c is an isotonic regression; here c is the identity unless `calibration`
    gives one, and 0.25 on the raw gap is then not the paper's 0.25. And the margin is that of the
    probabilities, after the ban on calls, not of the logits. The first call of a
    conversation never stops, as in the paper: there is no answer before it.

    Parameters
    ----------
    margin
        Must be exceeded. Raising it withholds fewer calls.
    calibration
        Points (gap, calibrated margin) of c with rising gaps; linear in between, constant outside.

    .. [1] arXiv:2606.13814

    >>> from governor.calls import ToolCall, ToolEffect
    >>> TasrPolicy().judge(Evidence(ToolCall("call_1", 0, "lookup", "{}"), ToolEffect.READ_ONLY))
    <NeedProbe.NEED_PROBE: 'need_probe'>
    """

    margin: float = 0.25
    calibration: tuple[tuple[float, float], ...] = ()
    name: str = "tasr"

    def __post_init__(self) -> None:
        if any(left[0] >= right[0] for left, right in pairwise(self.calibration)):
            raise ValueError("the gaps of calibration must rise")

    def judge(self, evidence: Evidence) -> Judgement:
        if exempt := exemption(evidence):
            return exempt
        probe, before = evidence.probe, evidence.previous_probe
        if probe is None:
            return NEED_PROBE
        answered = probe.finished and bool(probe.text.strip())
        same = before is not None and probe.same_answer(before)
        margin = self._calibrated(probe.least_margin)
        stop = answered and same and margin > self.margin
        reason = Reason.LIKELY_USELESS if stop else Reason.LIKELY_USEFUL
        inputs = {
            "least_margin": probe.least_margin,
            "calibrated_margin": margin,
            "margin_threshold": self.margin,
            "answer_unchanged": None if before is None else same,
            "finished": probe.finished,
        }
        return Verdict(stop, reason, 2, inputs)

    def _calibrated(self, gap: float) -> float:
        points = self.calibration
        if not points:
            return gap
        if gap <= points[0][0]:
            return points[0][1]
        for (x0, y0), (x1, y1) in pairwise(points):
            if gap <= x1:
                return y0 + (y1 - y0) * (gap - x0) / (x1 - x0)
        return points[-1][1]
