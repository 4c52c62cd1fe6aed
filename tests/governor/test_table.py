"""Policies by name: made, refused and ordered."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.calls import ToolCall, ToolEffect
from governor.conversation import ExecutedCall
from governor.policies import POLICIES, Evidence, Policy, PolicyError, PolicyKind, Verdict, policy
from governor.probe import ProbeAnswer
from governor.results import Outcome

SWEPT = [kind for kind in POLICIES.values() if kind.sweep]


@pytest.mark.parametrize("kind", POLICIES.values(), ids=lambda kind: kind.name)
def test_the_name_in_the_table_is_the_name_of_the_policy(kind: PolicyKind) -> None:
    """Records and metrics carry the latter, settings the former."""
    assert kind.make().name == kind.name
    assert kind.description


@pytest.mark.parametrize("kind", SWEPT, ids=lambda kind: kind.name)
def test_the_default_of_a_sweep_is_the_default_of_the_policy(kind: PolicyKind) -> None:
    """And it is one of the values, so that a frontier shows it."""
    assert kind.sweep
    assert kind.make(**{kind.sweep.parameter: kind.sweep.default}) == kind.make()
    assert kind.sweep.default in kind.sweep.values


probes = st.builds(
    ProbeAnswer,
    text=st.sampled_from(["Oslo", "Rome"]),
    finished=st.booleans(),
    mean_entropy=st.floats(0, 3),
    max_entropy=st.floats(0, 1),
    least_margin=st.floats(0, 1),
    logprob=st.floats(-9, 0),
    tokens=st.integers(1, 9),
    prompt_tokens=st.just(1),
)
CALL = ToolCall("call_1", 0, "lookup", "{}")
DONE = ExecutedCall(CALL, "31 C", Outcome.OK, ToolEffect.READ_ONLY)


@pytest.mark.parametrize("kind", SWEPT, ids=lambda kind: kind.name)
@given(probe=probes, before=st.none() | probes, history=st.lists(st.just(DONE), max_size=8))
def test_a_more_aggressive_value_withholds_no_less(
    kind: PolicyKind, probe: ProbeAnswer, before: ProbeAnswer | None, history: list[ExecutedCall]
) -> None:
    """The order of the values is the order in which they are certified."""
    assert kind.sweep
    evidence = Evidence(
        CALL, ToolEffect.READ_ONLY, history=tuple(history), probe=probe, previous_probe=before
    )
    verdicts = [
        withholds(kind.make(**{kind.sweep.parameter: value}), evidence) for value in kind.sweep.values
    ]
    assert all(left <= right for left, right in pairwise(verdicts))


def withholds(policy: Policy, evidence: Evidence) -> bool:
    verdict = policy.judge(evidence)
    assert isinstance(verdict, Verdict)
    return verdict.withhold


@pytest.mark.parametrize(("given", "meant"), [("tresholds", "threshold"), ("mean-entropy", "mean_entropy")])
def test_a_misspelt_name_is_told_what_was_meant(given: str, meant: str) -> None:
    """And what else there is."""
    with pytest.raises(PolicyError, match=f"did you mean {meant}.*observe, rules") as raised:
        policy(given)
    assert raised.value.reason == "unknown_policy"


@pytest.mark.parametrize(
    ("name", "parameters", "text"),
    [
        ("cap", {"k": 3}, "cap has no parameter 'k': it has calls"),
        ("observe", {"margin": 1}, "observe has no parameter 'margin': it has none"),
        ("cap", {"calls": 2.5}, "calls must be a whole number, not 2.5"),
        ("cap", {"calls": -1}, "calls must be at least 0"),
        ("cap", {"calls": True}, "calls must be a whole number"),
        ("tasr", {"margin": "high"}, "margin must be a number, not 'high'"),
        ("tasr", {"calibration": [1]}, "tasr: "),
        ("mean_entropy", {"entropy": float("nan")}, "entropy must be a number"),
    ],
)
def test_a_wrong_parameter_is_told_in_one_sentence(name: str, parameters: dict[str, Any], text: str) -> None:
    """A value of the wrong kind must not end in a policy that fails at its first call."""
    with pytest.raises(PolicyError) as raised:
        policy(name, **parameters)
    assert text in raised.value.detail


def test_parameters_reach_the_policy() -> None:
    """Those of the rules too."""
    made = policy("threshold", margin=0.5, per_conversation=0)
    evidence = Evidence(CALL, ToolEffect.READ_ONLY)
    assert withholds(made, evidence)
    assert not withholds(policy("rules"), replace(evidence, effect=ToolEffect.READ_ONLY))


def test_a_kind_with_any_keywords_takes_them() -> None:
    """A policy of a user may be a function with `**parameters`."""
    seen: dict[str, Any] = {}

    def factory(**parameters: Any) -> Policy:
        seen.update(parameters)
        return policy("observe")

    PolicyKind("mine", "", factory).make(anything=1)
    assert seen == {"anything": 1}
