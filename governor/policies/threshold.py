"""Tier 0, then the probe against two thresholds."""

from __future__ import annotations

from dataclasses import dataclass, field

from governor.decision import InputValue, Reason
from governor.policies.policy import NEED_PROBE, Evidence, Judgement, Verdict
from governor.policies.rules import settled
from governor.probe import ProbeAnswer
from governor.rules import RuleSettings


@dataclass(frozen=True, slots=True)
class ThresholdPolicy:
    """Withholds a call if a rule speaks against it, or if the forced answer is confident in every token:

        finished  and  not empty  and  min_t m_t >= margin  and  max_t H_t <= entropy

    over the tokens t of the answer, where m_t = p_1 - p_2 is the gap between the two most probable tokens
    and H_t the token entropy in nats. The extremes count, not the means: an answer such as "The capital of
    Chad is N'Djamena" has a dozen certain tokens and one or two that carry the fact, and a mean hides
    these. The margin of a draft answer is the default signal of TARG [1]_; TASR [2]_ forces an answer between
    retrievals and stops on its margin once it repeats. Here a repeated answer is reported, not required.
    Confidence is no proof of being right: check the thresholds on the model at hand, in observe mode, before
    they are enforced.

    Parameters
    ----------
    margin
        Least gap between the first and the second token, in [0, 1]. Raising it withholds fewer calls.
    entropy
        Greatest token entropy in nats. Lowering it withholds fewer calls.
    settings
        The rules of tier 0, which come first and cost no probe.

    .. [1] arXiv:2511.09803
    .. [2] arXiv:2606.13814

    >>> from governor.calls import ToolCall, ToolEffect
    >>> evidence = Evidence(ToolCall("call_1", 0, "lookup", "{}"), ToolEffect.READ_ONLY)
    >>> ThresholdPolicy().judge(evidence)
    <NeedProbe.NEED_PROBE: 'need_probe'>
    """

    margin: float = 0.9
    entropy: float = 0.5
    settings: RuleSettings = field(default_factory=RuleSettings)
    name: str = "threshold"

    def judge(self, evidence: Evidence) -> Judgement:
        if verdict := settled(evidence, self.settings):
            return verdict
        if evidence.probe is None:
            return NEED_PROBE
        confident = self._confident(evidence.probe)
        reason = Reason.CONFIDENT_ANSWER if confident else Reason.UNCERTAIN_ANSWER
        return Verdict(confident, reason, 2, self._inputs(evidence, evidence.probe))

    def _confident(self, probe: ProbeAnswer) -> bool:
        return (
            probe.finished
            and bool(probe.text.strip())
            and probe.least_margin >= self.margin
            and probe.max_entropy <= self.entropy
        )

    def _inputs(self, evidence: Evidence, probe: ProbeAnswer) -> dict[str, InputValue]:
        previous = evidence.previous_probe
        return {
            "least_margin": probe.least_margin,
            "max_entropy": probe.max_entropy,
            "mean_entropy": probe.mean_entropy,
            "finished": probe.finished,
            "answer_unchanged": None if previous is None else probe.same_answer(previous),
            "margin_threshold": self.margin,
            "entropy_threshold": self.entropy,
        }
