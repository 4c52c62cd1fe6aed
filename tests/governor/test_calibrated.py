"""The calibrated policy withholds what its certificate is about, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.calls import ToolCall, ToolEffect
from governor.certificate import Certificate
from governor.conversation import ExecutedCall
from governor.decision import Action, Decision, Reason
from governor.gate import CallFacts, Gate, SignalWeight, ToolWeights, rules_of
from governor.policies.calibrated import CalibratedPolicy
from governor.policies.policy import NEED_PROBE, Evidence, Verdict
from governor.probe import ProbeAnswer
from governor.results import Outcome
from governor.rules import Budgets, RuleSettings

CERTIFICATE = Certificate(0.05, 400, 2, 0, 300, 0.018, 0.02, 0.95, 1)
GATE = Gate(
    model="small",
    version=3,
    created=0.0,
    attempt=1,
    signals=(SignalWeight("probe_max_entropy", "identity", 0.0, 1.0, 1.0),),
    intercept=0.0,
    tools={"lookup": ToolWeights("s1", 100)},
    knots=((0.0, 0.0), (1.0, 0.5)),
    horizon=4,
    rules=rules_of(RuleSettings()),
    certificate=CERTIFICATE,
)
CALL = ToolCall("call_1", 0, "lookup", "{}")
REPEAT = (ExecutedCall(CALL, "31 C", Outcome.OK, ToolEffect.READ_ONLY),)
EVIDENCE = Evidence(CALL, ToolEffect.READ_ONLY, model="small", schema="s1")
CERTAIN = ProbeAnswer("Oslo", True, 0.01, 0.05, 0.95, -0.1, 2, 30)
POLICY = CalibratedPolicy(GATE)


def judged(policy: CalibratedPolicy, evidence: Evidence) -> Verdict:
    """The verdict, which must be one."""
    verdict = policy.judge(evidence)
    assert isinstance(verdict, Verdict)
    return verdict


UNCERTIFIED = [
    (CalibratedPolicy(), EVIDENCE),
    (CalibratedPolicy(replace(GATE, certificate=None)), EVIDENCE),
    (CalibratedPolicy(GATE, lapsed="Harm was seen."), EVIDENCE),
    (CalibratedPolicy(GATE, RuleSettings(Budgets(per_conversation=1))), EVIDENCE),
    (POLICY, replace(EVIDENCE, call=replace(CALL, name="unseen"))),
    (POLICY, replace(EVIDENCE, schema="s2")),
    (POLICY, replace(EVIDENCE, model="large")),
    (POLICY, replace(EVIDENCE, step=4)),
]


@pytest.mark.parametrize("history", [(), REPEAT])
@pytest.mark.parametrize("probe", [None, CERTAIN])
@pytest.mark.parametrize(("policy", "evidence"), UNCERTIFIED)
def test_without_a_certificate_nothing_is_withheld_and_nothing_asked(
    policy: CalibratedPolicy,
    evidence: Evidence,
    history: tuple[ExecutedCall, ...],
    probe: ProbeAnswer | None,
) -> None:
    """Neither on what a rule finds nor on a certain answer; and no probe is paid for."""
    verdict = judged(policy, replace(evidence, history=history, probe=probe))
    assert (verdict.withhold, verdict.reason) == (False, Reason.UNCERTIFIED)


def test_a_lapse_is_told() -> None:
    """Somebody will ask why it stopped."""
    assert judged(CalibratedPolicy(GATE, lapsed="Harm."), EVIDENCE).inputs == {"lapsed": "Harm."}


def test_what_a_rule_finds_is_evidence() -> None:
    """It decides nothing alone, and names the reason where the gate agrees: a notice then tells the truth."""
    repeat = replace(EVIDENCE, history=REPEAT)
    assert POLICY.judge(repeat) is NEED_PROBE
    verdict = judged(POLICY, replace(repeat, probe=CERTAIN))
    assert (verdict.withhold, verdict.reason, verdict.tier) == (True, Reason.REPEATED_CALL, 3)
    assert verdict.inputs["executed"] == 1
    assert verdict.inputs["p_useful"] == pytest.approx(0.025)
    doubtful = replace(repeat, probe=replace(CERTAIN, max_entropy=0.3))
    assert judged(POLICY, doubtful).reason is Reason.LIKELY_USEFUL


def test_a_call_below_the_threshold_is_withheld_with_its_figures() -> None:
    """P(useful) = 0.025 against 0.05."""
    verdict = judged(POLICY, replace(EVIDENCE, probe=CERTAIN, previous_probe=CERTAIN))
    assert (verdict.withhold, verdict.reason, verdict.tier) == (True, Reason.LIKELY_USELESS, 3)
    assert verdict.inputs["p_useful"] == pytest.approx(0.025)
    assert (verdict.inputs["threshold"], verdict.inputs["bound"], verdict.inputs["version"]) == (
        0.05,
        0.018,
        3,
    )
    assert verdict.inputs["answer_unchanged"] is True
    told = Decision(CALL, Action.ANSWER, Action.ANSWER, verdict.reason, inputs=verdict.inputs).explain()
    assert "0.025 against 0.050" in told


@pytest.mark.parametrize(
    "doubt", [{"finished": False}, {"text": " ", "fingerprint": ""}, {"max_entropy": 0.11}]
)
def test_doubt_lets_the_call_pass(doubt: dict[str, object]) -> None:
    """No answer to fall back on, or one that is not sure enough."""
    verdict = judged(POLICY, replace(EVIDENCE, probe=replace(CERTAIN, **doubt)))  # type: ignore[arg-type]
    assert (verdict.withhold, verdict.reason) == (False, Reason.LIKELY_USEFUL)


@given(
    evidence=st.builds(
        Evidence,
        call=st.sampled_from([CALL, replace(CALL, name="unseen")]),
        effect=st.sampled_from(list(ToolEffect)),
        history=st.sampled_from([(), REPEAT]),
        withheld=st.sampled_from([frozenset(), frozenset({CALL.signature})]),
        step=st.integers(0, 5),
        probe=st.builds(
            ProbeAnswer,
            text=st.sampled_from(["Oslo", " "]),
            finished=st.booleans(),
            mean_entropy=st.just(0.0),
            max_entropy=st.floats(0, 0.3),
            least_margin=st.just(0.9),
            logprob=st.just(-0.1),
            tokens=st.just(1),
            prompt_tokens=st.just(1),
        ),
        model=st.sampled_from(["small", "large"]),
        schema=st.sampled_from(["s1", "s2"]),
    )
)
def test_a_call_is_withheld_if_and_only_if_it_is_in_the_certified_set(evidence: Evidence) -> None:
    """Exactly the first crossings of the certificate: `Gate.score` at most the threshold."""
    rule = "repeated_call" if evidence.history and evidence.call.name == "lookup" else ""
    certified = GATE.score(CallFacts.of_evidence(evidence, rule)) <= CERTIFICATE.threshold
    asked_again = evidence.call.signature in evidence.withheld
    verdict = judged(POLICY, evidence)
    assert verdict.withhold == (certified and not asked_again)
    if evidence.effect is not ToolEffect.READ_ONLY or asked_again:
        assert verdict.reason in (Reason.EFFECTFUL_TOOL, Reason.UNKNOWN_TOOL, Reason.ASKED_AGAIN)
