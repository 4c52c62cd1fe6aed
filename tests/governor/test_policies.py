"""What every policy keeps to, and what each withholds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.calls import ToolCall, ToolEffect
from governor.conversation import ExecutedCall
from governor.decision import Reason
from governor.governance import Governance
from governor.policies import (
    NEED_PROBE,
    Evidence,
    ObservePolicy,
    Policy,
    RulesPolicy,
    ThresholdPolicy,
    Verdict,
)
from governor.probe import ProbeAnswer
from governor.results import Outcome
from governor.rules import Budgets, RuleSettings

CALL = ToolCall("call_1", 0, "lookup", "{}")
REPEAT = (ExecutedCall(CALL, "31 C", Outcome.OK, ToolEffect.READ_ONLY),)
EVIDENCE = Evidence(CALL, ToolEffect.READ_ONLY)
POLICIES: list[Policy] = [ObservePolicy(), RulesPolicy(), ThresholdPolicy()]
CERTAIN = ProbeAnswer("Oslo", True, 0.1, 0.2, 0.95, -0.1, 2, 30)


def judged(policy: Policy, evidence: Evidence) -> Verdict:
    """The verdict, which must be one."""
    verdict = policy.judge(evidence)
    assert isinstance(verdict, Verdict)
    return verdict


probes = st.builds(
    ProbeAnswer,
    text=st.sampled_from(["Oslo", " "]),
    finished=st.booleans(),
    mean_entropy=st.floats(0, 3),
    max_entropy=st.floats(0, 3),
    least_margin=st.floats(0, 1),
    logprob=st.floats(-9, 0),
    tokens=st.integers(1, 9),
    prompt_tokens=st.just(1),
)
evidences = st.builds(
    Evidence,
    call=st.just(CALL),
    effect=st.sampled_from(list(ToolEffect)),
    history=st.sampled_from([(), REPEAT]),
    withheld=st.sampled_from([frozenset(), frozenset({CALL.signature})]),
    probe=probes,
    previous_probe=st.none() | probes,
)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@given(evidence=evidences)
def test_no_policy_withholds_what_must_pass(policy: Policy, evidence: Evidence) -> None:
    """Tools not known to be read-only, and calls asked for again after a notice, whatever else speaks
    against them."""
    verdict = judged(policy, evidence)
    if evidence.effect is not ToolEffect.READ_ONLY or evidence.withheld:
        assert not verdict.withhold
        assert verdict.reason in (Reason.EFFECTFUL_TOOL, Reason.UNKNOWN_TOOL, Reason.ASKED_AGAIN)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@given(evidence=evidences)
def test_a_policy_is_a_function_of_the_evidence(policy: Policy, evidence: Evidence) -> None:
    """It keeps no state, and with the probe at hand it decides."""
    assert judged(policy, evidence) == judged(replace(policy), evidence)  # type: ignore[type-var]


def test_observing_withholds_nothing() -> None:
    """Not even a plain repeat, and it asks for nothing."""
    assert judged(ObservePolicy(), replace(EVIDENCE, history=REPEAT)) == Verdict(False, Reason.NO_RULE, 0)


def test_the_rules_need_no_probe() -> None:
    """They see the history alone."""
    assert judged(RulesPolicy(), EVIDENCE) == Verdict(False, Reason.NO_RULE, 0)
    repeat = judged(RulesPolicy(), replace(EVIDENCE, history=REPEAT))
    assert repeat == Verdict(True, Reason.REPEATED_CALL, 0, {"executed": 1})


def test_rules_decide_before_the_probe_is_paid_for() -> None:
    """A repeat is withheld, an exempt call passes, without a single token generated."""
    assert judged(ThresholdPolicy(), replace(EVIDENCE, history=REPEAT)).reason is Reason.REPEATED_CALL
    unknown = replace(EVIDENCE, effect=ToolEffect.UNKNOWN)
    assert judged(ThresholdPolicy(), unknown).reason is Reason.UNKNOWN_TOOL
    assert ThresholdPolicy().judge(EVIDENCE) is NEED_PROBE


def test_settings_reach_the_rules_of_both_policies() -> None:
    """Budgets are configuration."""
    settings = RuleSettings(Budgets(per_conversation=0))
    for policy in (RulesPolicy(settings), ThresholdPolicy(settings=settings)):
        assert judged(policy, EVIDENCE).reason is Reason.BUDGET


def test_a_confident_answer_withholds_the_call() -> None:
    """With the figures and the thresholds it was held against."""
    verdict = judged(ThresholdPolicy(), replace(EVIDENCE, probe=CERTAIN))
    assert (verdict.withhold, verdict.reason, verdict.tier) == (True, Reason.CONFIDENT_ANSWER, 2)
    assert verdict.inputs["least_margin"] == 0.95
    assert verdict.inputs["margin_threshold"] == 0.9
    assert verdict.inputs["answer_unchanged"] is None


@pytest.mark.parametrize(
    "doubt", [{"finished": False}, {"text": " "}, {"least_margin": 0.89}, {"max_entropy": 0.51}]
)
def test_any_doubt_lets_the_call_pass(doubt: dict[str, float]) -> None:
    """Unfinished, empty, one close second or one uncertain token is enough."""
    verdict = judged(ThresholdPolicy(), replace(EVIDENCE, probe=replace(CERTAIN, **doubt)))  # type: ignore[arg-type]
    assert (verdict.withhold, verdict.reason) == (False, Reason.UNCERTAIN_ANSWER)


@given(probes, st.floats(0, 1), st.floats(0, 1), st.floats(0, 3), st.floats(0, 3))
def test_stricter_thresholds_never_withhold_more(
    probe: ProbeAnswer, margin: float, more: float, entropy: float, less: float
) -> None:
    """Each knob moves one way."""
    evidence = replace(EVIDENCE, probe=probe)
    strict = ThresholdPolicy(max(margin, more), min(entropy, less))
    if judged(strict, evidence).withhold:
        assert judged(ThresholdPolicy(margin, entropy), evidence).withhold


def test_whether_the_answer_changed_is_reported() -> None:
    """It is a figure of the decision, not a condition."""
    same = replace(EVIDENCE, probe=CERTAIN, previous_probe=replace(CERTAIN, text="oslo", fingerprint=""))
    assert judged(ThresholdPolicy(), same).inputs["answer_unchanged"] is True


def test_governing_observes_unless_told_otherwise() -> None:
    """The defaults withhold nothing."""
    governance = Governance(vocab_size=100)
    assert (governance.mode, governance.policy.name) == ("observe", "observe")
