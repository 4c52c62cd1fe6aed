"""What a gate says of a call is plain arithmetic, survives a file, and never reaches beyond what it knows."""

from __future__ import annotations

import json
import math
import timeit
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.calls import ToolCall, ToolEffect
from governor.certificate import Certificate
from governor.errors import GovernorError
from governor.gate import (
    NEVER,
    TRANSFORM_OF,
    CallFacts,
    Gate,
    GateMalformed,
    Reference,
    SignalWeight,
    ToolWeights,
    rules_of,
)
from governor.policies.policy import Evidence
from governor.probe import ProbeAnswer
from governor.records import CallRecord
from governor.rules import Budgets, RuleSettings
from governor.signals import SIGNALS, signals

WEIGHTS = tuple(
    SignalWeight(name, TRANSFORM_OF.get(name, "identity"), 0.1 * place, 1.0 + place, (-1) ** place * 0.3)
    for place, name in enumerate(SIGNALS)
)
GATE = Gate(
    model="small",
    version=3,
    created=12.5,
    attempt=2,
    signals=WEIGHTS,
    intercept=-0.5,
    tools={
        "lookup": ToolWeights("s1", 120, 0.25, tuple(0.01 * place for place in range(len(SIGNALS)))),
        "find": ToolWeights("s2", 40),
    },
    knots=((-2.0, 0.0), (0.0, 0.25), (1.0, 0.75)),
    horizon=4,
    rules=rules_of(RuleSettings()),
    certificate=Certificate(0.2, 400, 2, 1, 300, 0.018, 0.02, 0.95, 2),
    reference=Reference({"segment_entropy": tuple(0.1 * place for place in range(1, 10))}, 0.03),
)
FACTS = CallFacts("lookup", "s1", "small", True, 0, True, {})
values = st.none() | st.floats()
some_signals = st.fixed_dictionaries({}, optional={name: values for name in SIGNALS})


@given(some_signals, st.sampled_from(["lookup", "find", "unseen"]))
def test_a_gate_from_a_file_gives_equal_probabilities(numbers: dict[str, float | None], tool: str) -> None:
    """To the last bit, whatever the signals: the threshold is one of its probabilities."""
    again = Gate.from_dict(json.loads(json.dumps(GATE.as_dict())))
    assert again == GATE
    probability = GATE.probability(numbers, tool)
    assert again.probability(numbers, tool) == probability
    assert 0 <= probability <= 1


def test_the_score_is_the_formula() -> None:
    """On one signal by hand: log(0.5 + 0.001), in standard deviations, times common and own weight."""
    entry = SignalWeight("probe_max_entropy", "log", -2.0, 1.5, 0.8)
    gate = replace(
        GATE, signals=(entry,), intercept=0.1, tools={"lookup": ToolWeights("s1", 20, -0.2, (0.3,))}
    )
    z = (math.log(0.501) + 2.0) / 1.5
    assert gate.linear({"probe_max_entropy": 0.5}, "lookup") == pytest.approx(0.1 - 0.2 + 1.1 * z)
    assert gate.linear({"probe_max_entropy": 0.5}, "unseen") == pytest.approx(0.1 + 0.8 * z)


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_a_missing_signal_counts_as_its_mean(missing: float | None) -> None:
    """Also one that is no number."""
    assert GATE.linear({"step": missing}, "find") == GATE.linear({}, "find") == GATE.intercept


def test_one_strange_value_does_not_decide_alone() -> None:
    """A signal is cut off five standard deviations from its mean."""
    assert GATE.linear({"step": 1e30}, "find") == GATE.linear({"step": 100.0}, "find")


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_calibration_keeps_the_order(one: float, other: float) -> None:
    """And is linear between the knots, constant outside."""
    low, high = sorted((one, other))
    assert GATE.calibrated(low) <= GATE.calibrated(high)
    assert GATE.calibrated(-1.0) == 0.125
    assert (GATE.calibrated(-9.0), GATE.calibrated(0.0), GATE.calibrated(9.0)) == (0.0, 0.25, 0.75)


@pytest.mark.parametrize("name", ["log", "surprise", "gap", "identity"])
@given(one=st.floats(-50, 50), other=st.floats(-50, 50))
def test_every_transform_rises(name: str, one: float, other: float) -> None:
    """So that the sign of a weight is the sign of its signal, also for values out of range."""
    entry = SignalWeight("step", name, 0.0, 1.0, 1.0)
    low, high = sorted((one, other))
    assert entry.standard(low) <= entry.standard(high)


@pytest.mark.parametrize(
    "other",
    [
        {"tool": "unseen"},
        {"schema": "s2"},
        {"model": "large"},
        {"read_only": False},
        {"step": 4},
        {"answered": False},
    ],
)
@pytest.mark.parametrize("rule", [0.0, 1.0])
def test_what_was_not_learned_is_never_withheld(other: dict[str, Any], rule: float) -> None:
    """Not even where a rule speaks against it."""
    facts = replace(FACTS, signals={**FACTS.signals, "rule": rule}, **other)
    assert GATE.score(facts) == NEVER


@given(
    text=st.sampled_from(["Oslo", " \n", ""]),
    finished=st.booleans(),
    effect=st.sampled_from(list(ToolEffect)),
    entropy=st.none() | st.floats(0, 5),
    step=st.integers(0, 6),
    probed=st.booleans(),
    rule=st.sampled_from(["", "cycle"]),
    kept=st.booleans(),
)
def test_a_call_has_the_same_score_live_and_from_its_record(
    text: str,
    finished: bool,
    effect: ToolEffect,
    entropy: float | None,
    step: int,
    probed: bool,
    rule: str,
    kept: bool,
) -> None:
    """What is certified is what is withheld, also where records are kept without text."""
    call = ToolCall("call_1", 0, "lookup", "{}")
    probe = ProbeAnswer(text, finished, 0.1, 0.2, 0.9, -0.3, 3, 30) if probed else None
    evidence = Evidence(
        call, effect, step=step, segment_entropy=entropy, probe=probe, model="small", schema="s1"
    )
    record = CallRecord(
        "call_1",
        "c",
        "lookup",
        str(call.signature),
        step,
        {},
        0.0,
        probe_before=probe,
        model="small",
        schema="s1",
        effect=effect,
        signals=signals(evidence, rule),
        rule=rule,
    )
    stored = CallRecord.from_dict(json.loads(json.dumps(record.as_dict(keep_text=kept))))
    assert GATE.score(CallFacts.of_record(stored)) == GATE.score(CallFacts.of_evidence(evidence, rule))


def test_other_budgets_are_other_rules() -> None:
    """Order in the configuration is none."""
    one = RuleSettings(Budgets(3, {"a": 1, "b": 2}))
    assert rules_of(one) == rules_of(RuleSettings(Budgets(3, {"b": 2, "a": 1})))
    assert rules_of(one) != rules_of(RuleSettings(Budgets(3, {"a": 1, "b": 3})))
    assert rules_of(one) != rules_of(RuleSettings())


def broken(**changes: object) -> dict[str, Any]:
    """The dictionary of a gate, with changes."""
    return {**GATE.as_dict(), **changes}


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        "gate",
        broken(format=1),
        broken(format=3),
        broken(knots=[]),
        broken(knots=[[0.0, 0.5], [1.0, 0.4]]),
        broken(knots=[[0.0, 0.5], [0.0, 0.6]]),
        broken(knots=[[0.0, 0.5], [1.0, 1.5]]),
        broken(intercept=math.nan),
        broken(intercept="much"),
        broken(signals=[{"name": "step"}]),
        broken(signals=[{"name": "step", "transform": "cube", "mean": 0, "scale": 1, "weight": 1}], tools={}),
        broken(signals=[{"name": "step", "transform": "log", "mean": 0, "scale": 0, "weight": 1}], tools={}),
        broken(signals=[]),
        broken(tools=[]),
        broken(certificate={"threshold": 1.0}),
        {key: value for key, value in GATE.as_dict().items() if key != "horizon"},
    ],
)
def test_what_is_no_gate_is_refused(data: Any) -> None:
    """With one kind of error, which is a ValueError too; never half a gate."""
    with pytest.raises(GateMalformed) as refusal:
        Gate.from_dict(data)
    assert isinstance(refusal.value, ValueError)
    assert isinstance(refusal.value, GovernorError)


def test_without_a_certificate_there_is_no_threshold() -> None:
    """And the refusal is what it says of itself."""
    gate = replace(GATE, certificate=None, refusal="Too little was seen.")
    assert gate.threshold is None
    assert Gate.from_dict(gate.as_dict()).explain() == "Too little was seen."
    assert "400 observed conversations" in GATE.explain()


def test_a_probability_is_cheap() -> None:
    """Microseconds beside a model's milliseconds. The bound is generous: the machine may be busy."""
    numbers = dict.fromkeys(SIGNALS, 0.5)
    assert min(timeit.repeat(lambda: GATE.probability(numbers, "lookup"), number=200, repeat=20)) / 200 < 1e-4
