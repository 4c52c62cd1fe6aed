"""The numbers that are known before a call is executed, under their names: what a gate learns from.

Which of them tell a call worth making differs between models and tools, and so does their sign
(arXiv 2605.06908); nothing here says what is good.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from governor.spans import entropy_reduction

if TYPE_CHECKING:
    from governor.policies.policy import Evidence

Signals = Mapping[str, float | None]
"""By name, in the order of `SIGNALS`; None where a signal was not to be had."""

SIGNALS: Final = (
    # Tier 0: where in the conversation the call stands, and whether a rule speaks against it (1, else 0).
    "step",
    "calls_of_tool",
    "rule",
    # Tier 1: what the stream says of the turn that proposes it, in nats (margins in [0, 1]).
    "segment_entropy",
    "decision_entropy",
    "decision_margin",
    "argument_entropy",
    # What the conversation's last call brought: its entropy reduction in nats.
    "last_reduction",
    # Tier 2: the forced answer; what the last call brought by it, its gain in nats, and whether it left the
    # answer as it was (1), changed it (-1), or nobody knows (0).
    "probe_logprob",
    "probe_mean_entropy",
    "probe_max_entropy",
    "probe_least_margin",
    "probe_finished",
    "last_gain",
    "answer_unchanged",
)


def signals(evidence: Evidence, rule: str) -> dict[str, float | None]:
    """The signals of `evidence`; those of the probe are None without one. `rule` is the reason of the rule
    that speaks against the call, "" if none does.

    In hindsight they are those that were recorded, so that a gate scores a call as its certificate did."""
    if evidence.signals is not None:
        return dict(evidence.signals)
    probe, before = evidence.probe, evidence.previous_probe
    last = evidence.last
    same = None if probe is None or before is None else probe.same_answer(before)
    return {
        "step": float(evidence.step),
        "calls_of_tool": float(sum(done.call.name == evidence.call.name for done in evidence.history)),
        "rule": float(bool(rule)),
        "segment_entropy": evidence.segment_entropy,
        "decision_entropy": evidence.decision_entropy,
        "decision_margin": evidence.decision_margin,
        "argument_entropy": evidence.argument_entropy,
        "last_reduction": entropy_reduction(last.entropy_before if last else None, evidence.segment_entropy),
        "probe_logprob": None if probe is None else probe.logprob,
        "probe_mean_entropy": None if probe is None else probe.mean_entropy,
        "probe_max_entropy": None if probe is None else probe.max_entropy,
        "probe_least_margin": None if probe is None else probe.least_margin,
        "probe_finished": None if probe is None else float(probe.finished),
        "last_gain": None if probe is None or before is None else before.mean_entropy - probe.mean_entropy,
        "answer_unchanged": _ternary(same),
    }


def _ternary(value: bool | None) -> float:
    return 0.0 if value is None else (1.0 if value else -1.0)
