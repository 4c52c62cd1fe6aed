"""What users have today, as they have it: caps, loop detectors, thresholds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.calls import ToolCall, ToolEffect
from governor.conversation import ExecutedCall
from governor.decision import Reason
from governor.policies import (
    NEED_PROBE,
    CapPolicy,
    Evidence,
    IdenticalPolicy,
    MeanEntropyPolicy,
    Policy,
    TasrPolicy,
    Verdict,
)
from governor.probe import ProbeAnswer
from governor.results import Outcome

BASELINES: list[Policy] = [CapPolicy(0), IdenticalPolicy(1), TasrPolicy(-1.0), MeanEntropyPolicy(9.0)]
"""As aggressive as they get."""


def call(arguments: str = "{}", index: int = 0, tool: str = "lookup") -> ToolCall:
    return ToolCall(f"{tool} {arguments} {index}", index, tool, arguments)


def done(
    call: ToolCall, outcome: Outcome = Outcome.OK, effect: ToolEffect = ToolEffect.READ_ONLY
) -> ExecutedCall:
    return ExecutedCall(call, "31 C", outcome, effect)


def read_only(call: ToolCall, *history: ExecutedCall, probe: ProbeAnswer | None = None) -> Evidence:
    return Evidence(call, ToolEffect.READ_ONLY, history=history, probe=probe)


def answer(
    text: str = "Oslo", *, margin: float = 0.9, entropy: float = 0.1, finished: bool = True
) -> ProbeAnswer:
    return ProbeAnswer(text, finished, entropy, entropy, margin, -0.1, 2, 30)


def withheld(policy: Policy, evidence: Evidence) -> bool:
    """The verdict, which must be one."""
    verdict = policy.judge(evidence)
    assert isinstance(verdict, Verdict)
    return verdict.withhold


@pytest.mark.parametrize("policy", BASELINES, ids=lambda policy: policy.name)
@pytest.mark.parametrize("exempt", ["effectful", "unknown", "asked_again", "nothing"])
def test_a_baseline_passes_what_must_pass_and_nothing_else(policy: Policy, exempt: str) -> None:
    """All of them would withhold this call, but for its tool, or but for the notice before it."""
    evidence = read_only(call(), done(call()), probe=answer())
    evidence = replace(evidence, previous_probe=answer())
    if exempt == "asked_again":
        evidence = replace(evidence, withheld=frozenset({call().signature}))
    elif exempt != "nothing":
        evidence = replace(evidence, effect=ToolEffect(exempt))
    assert withheld(policy, evidence) is (exempt == "nothing")


@given(cap=st.integers(0, 6), length=st.integers(0, 9))
def test_a_cap_of_k_withholds_exactly_from_the_next_call_on(cap: int, length: int) -> None:
    """The first k read-only calls pass, whatever their arguments."""
    history: list[ExecutedCall] = []
    verdicts = []
    for number in range(length):
        now = call(str(number))
        verdicts.append(withheld(CapPolicy(cap), read_only(now, *history)))
        history.append(done(now))
    assert verdicts == [number >= cap for number in range(length)]


def test_a_cap_counts_the_calls_before_it_in_its_message_and_not_those_after() -> None:
    """Otherwise a message of three calls loses all of them at a cap of two, or none."""
    calls = [call(str(index), index) for index in range(3)]
    verdicts = []
    for now in calls:
        siblings = [done(other, Outcome.PENDING) for other in calls if other is not now]
        verdicts.append(withheld(CapPolicy(2), read_only(now, *siblings)))
    assert verdicts == [False, False, True]


def test_a_cap_does_not_count_calls_with_effects() -> None:
    """Nor those of which nobody knows."""
    others = [done(call(tool="send"), effect=effect) for effect in (ToolEffect.EFFECTFUL, ToolEffect.UNKNOWN)]
    assert not withheld(CapPolicy(1), read_only(call(), *others))


@given(times=st.integers(1, 4), before=st.integers(0, 6))
def test_a_loop_detector_withholds_once_the_call_was_made_so_often(times: int, before: int) -> None:
    """Other calls in between change nothing, and neither do spaces in the arguments."""
    history = [done(call('{"city":"Oslo"}')), done(call('{"city":"Rome"}'))] * before
    now = call('{ "city": "Oslo" }')
    assert withheld(IdenticalPolicy(times), read_only(now, *history)) is (before >= times)


def test_the_default_detector_stops_at_the_third_identical_call() -> None:
    """As opencode's does."""
    assert not withheld(IdenticalPolicy(), read_only(call(), done(call())))
    assert withheld(IdenticalPolicy(), read_only(call(), done(call()), done(call())))


def test_a_call_of_another_tool_is_not_identical() -> None:
    """Even with the same arguments."""
    others = [done(call(tool="find"))] * 3
    assert not withheld(IdenticalPolicy(), read_only(call(), *others))


@pytest.mark.parametrize("policy", [TasrPolicy(), MeanEntropyPolicy()], ids=lambda policy: policy.name)
def test_thresholds_need_the_probe(policy: Policy) -> None:
    """And a first call needs it too: the answer after it is compared with this one."""
    assert policy.judge(read_only(call())) is NEED_PROBE


@given(
    same=st.booleans(),
    margin=st.floats(0, 1),
    threshold=st.floats(0, 1),
    finished=st.booleans(),
    empty=st.booleans(),
)
def test_tasr_stops_iff_the_answer_repeats_itself_with_more_than_the_margin(
    same: bool, margin: float, threshold: float, finished: bool, empty: bool
) -> None:
    """And iff it is an answer at all."""
    probe = answer(" " if empty else "Oslo", margin=margin, finished=finished)
    before = probe if same else answer("Rome")
    evidence = replace(read_only(call(), probe=probe), previous_probe=before)
    expected = same and margin > threshold and finished and not empty
    assert withheld(TasrPolicy(threshold), evidence) is expected


def test_tasr_never_stops_in_the_first_round() -> None:
    """There is no answer to compare with."""
    assert not withheld(TasrPolicy(0.0), read_only(call(), probe=answer(margin=1.0)))


@pytest.mark.parametrize(("gap", "stops"), [(0.1, False), (0.69, False), (0.71, True), (0.95, True)])
def test_a_calibration_takes_the_place_of_the_raw_gap(gap: float, stops: bool) -> None:
    """Linear between its points and constant outside: at 0.7 this one gives the margin of 0.25."""
    policy = TasrPolicy(0.25, ((0.5, 0.0), (0.9, 0.5)))
    evidence = replace(read_only(call(), probe=answer(margin=gap)), previous_probe=answer())
    assert withheld(policy, evidence) is stops


def test_a_calibration_out_of_order_is_refused() -> None:
    """Otherwise it would be read wrongly, without a word."""
    with pytest.raises(ValueError, match="must rise"):
        TasrPolicy(calibration=((0.5, 0.0), (0.5, 1.0)))


@given(entropy=st.floats(0, 3), threshold=st.floats(0, 3), finished=st.booleans(), empty=st.booleans())
def test_mean_entropy_withholds_iff_the_mean_is_low(
    entropy: float, threshold: float, finished: bool, empty: bool
) -> None:
    """And iff there is a whole answer."""
    probe = answer("" if empty else "Oslo", entropy=entropy, finished=finished)
    policy = MeanEntropyPolicy(threshold)
    assert withheld(policy, read_only(call(), probe=probe)) is (
        entropy <= threshold and finished and not empty
    )


def test_the_reason_does_not_claim_more_than_the_policy_knows() -> None:
    """`confident_answer` says that every token was certain; a mean or a repeated answer does not."""
    evidence = replace(read_only(call(), probe=answer()), previous_probe=answer())
    for policy in (TasrPolicy(), MeanEntropyPolicy()):
        verdict = policy.judge(evidence)
        assert isinstance(verdict, Verdict)
        assert verdict.reason is Reason.LIKELY_USELESS


@pytest.mark.parametrize(("kind", "value"), [(CapPolicy, -1), (IdenticalPolicy, 0)])
def test_a_limit_that_means_nothing_is_refused(kind: type, value: int) -> None:
    """A detector of calls made zero times before would withhold all."""
    with pytest.raises(ValueError, match="must be at least"):
        kind(value)
