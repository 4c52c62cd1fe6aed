"""The fit learns the sign, depends on nothing but the records, and certifies on conversations it did not
see."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from governor.certificate import Certificate
from governor.conversations import conversations
from governor.gate import NEVER, CallFacts, Gate, rules_of
from governor.probe import ProbeAnswer
from governor.records import CallRecord
from governor.rules import Budgets, RuleSettings
from tests.calibration.traffic import BEFORE, OTHER, SAME, traffic

pytest.importorskip("sklearn")
from governor_calibration.fit import ENOUGH, fit, learned_from

MAX_HARM = 0.02


def fitted(records: list[CallRecord]) -> Gate:
    """With what is allowed by default."""
    return fit(records, model="small", max_harm=MAX_HARM)


@pytest.fixture(scope="module")
def telling() -> list[CallRecord]:
    """Traffic with a signal that tells useless calls from useful ones."""
    return traffic(1200, strength=4.0)


def weight(gate: Gate, name: str) -> float:
    """Of a signal over all tools."""
    return next(entry.weight for entry in gate.signals if entry.name == name)


def test_a_telling_signal_is_certified(telling: list[CallRecord]) -> None:
    """And what is withheld then is mostly useless, also in traffic that nothing was fitted on."""
    gate = fitted(telling)
    assert gate.certificate is not None
    assert gate.attempt == 1
    fresh = traffic(3000, strength=4.0, seed=2)
    scored = [(gate.score(CallFacts.of_record(call)), call.label) for call in fresh]
    withheld = [
        label.changed for score, label in scored if score <= gate.certificate.threshold and label is not None
    ]
    assert len(withheld) > 0.25 * len(fresh)
    assert sum(withheld) / len(withheld) < MAX_HARM


def test_signs_are_learned() -> None:
    """Where doubt is a sign of a useless call, the weight is negative and the gate works as well."""
    upright, inverted = (fitted(traffic(1200, strength=strength)) for strength in (4.0, -4.0))
    assert weight(upright, "probe_max_entropy") > 0.5
    assert weight(inverted, "probe_max_entropy") < -0.5
    assert inverted.certificate is not None


def test_a_useless_signal_is_not_even_tested() -> None:
    """The forecast says so, and the budget of errors is kept for a better day."""
    gate = fitted(traffic(1200, strength=0.0))
    assert gate.certificate is None
    assert gate.attempt == 0
    assert "do not tell useless from useful" in gate.explain()


def test_the_order_of_the_records_is_nothing(telling: list[CallRecord]) -> None:
    """Not in a single bit: a store may give them in any order."""
    shuffled = list(telling)
    random.Random(3).shuffle(shuffled)
    assert fitted(shuffled) == fitted(telling)


def test_p_useful_is_a_probability(telling: list[CallRecord]) -> None:
    """On conversations that it was not learned from: of those called 10 to 40 percent, about a quarter."""
    gate = fitted(telling)
    fresh = traffic(4000, strength=4.0, seed=4)
    pairs = [(gate.probability(call.signals, call.tool), call.probe_after is OTHER) for call in fresh]
    between = [(p, useful) for p, useful in pairs if 0.1 < p < 0.4]
    assert len(between) > 100
    stated, true = (sum(column) / len(between) for column in zip(*between, strict=True))
    assert stated == pytest.approx(true, abs=0.12)


def test_the_certificate_counts_only_conversations_that_taught_nothing(telling: list[CallRecord]) -> None:
    """By a plain count over the other side of the split."""
    gate = fitted(telling)
    assert isinstance(gate.certificate, Certificate)
    firsts = []
    for name, calls in conversations(telling).items():
        scored = [(gate.score(CallFacts.of_record(call)), call) for call in calls]
        crossing = next((call for score, call in scored if score <= gate.certificate.threshold), None)
        if crossing is not None and not learned_from(name):
            firsts.append(crossing.probe_after is OTHER)
    assert (gate.certificate.harmful, gate.certificate.crossings) == (sum(firsts), len(firsts))


def test_a_third_is_learned_from() -> None:
    """And a conversation stays on its side."""
    sides = [learned_from(f"conversation {number}") for number in range(6000)]
    assert sum(sides) / len(sides) == pytest.approx(1 / 3, abs=0.02)
    assert sides[:9] == [learned_from(f"conversation {number}") for number in range(9)]


def test_governed_conversations_never_certify(telling: list[CallRecord]) -> None:
    """What was not explored in them does not even teach; explored calls do, whichever side they are on."""
    governed = [
        replace(call, conversation=f"governed {call.conversation}", arm="governed", probe_after=OTHER)
        for call in telling
    ]
    assert replace(fitted(telling + governed)) == fitted(telling)
    explored = fitted(telling + [replace(call, explored=True) for call in governed])
    labels = sum(tool.labels for tool in explored.tools.values())
    assert labels == len(telling) + sum(tool.labels for tool in fitted(telling).tools.values())


def test_only_what_was_seen_enough_is_known(telling: list[CallRecord]) -> None:
    """A rare tool, a description that was replaced, effects and other models stay out."""
    rare = [replace(call, call_id=f"rare {call.call_id}", tool="rare") for call in telling[:15]]
    effects = [
        replace(call, call_id=f"e {call.call_id}", tool="send", effect="effectful") for call in telling
    ]
    foreign = [replace(call, conversation=f"f {call.conversation}", model="large") for call in telling]
    gate = fitted(telling + rare + effects + foreign)
    assert set(gate.tools) == {"search", "lookup"}
    renewed = [replace(call, schema="s2") if call.created > 1000 else call for call in telling]
    assert {tool.schema for tool in fitted(renewed).tools.values()} == {"s2"}


def test_nothing_is_withheld_later_than_anything_was_measured(telling: list[CallRecord]) -> None:
    """Labels end at a step; the certificate says nothing of what comes behind it."""
    gate = fitted(telling)
    assert gate.horizon == 3
    assert gate.score(replace(CallFacts.of_record(telling[0]), step=3)) == NEVER


def test_few_calls_of_a_tool_are_judged_like_the_average_tool() -> None:
    """Its own line stays close to the common one, far closer than that of a tool with many calls and another
    sign."""
    many = traffic(1500, strength=4.0, tools=("search",))
    few = traffic(180, strength=-4.0, seed=5, tools=("lookup",))
    more = traffic(1500, strength=-4.0, seed=5, tools=("lookup",))

    def slope(records: list[CallRecord]) -> float:
        gate = fitted(records)
        numbers = {"step": 0.0, "segment_entropy": 0.5}
        doubt, none = ({**numbers, "probe_max_entropy": value} for value in (2.0, 0.05))
        return gate.linear(doubt, "lookup") - gate.linear(none, "lookup")

    assert slope(many + more) < slope(many + few) < slope(many + traffic(180, strength=4.0, seed=5))


@pytest.mark.parametrize("worth", [SAME, OTHER])
def test_what_a_rule_means_is_learned(telling: list[CallRecord], worth: ProbeAnswer) -> None:
    """Of most models a repeat is useless; there are some that read a result only the second time."""
    mixed = [
        replace(call, signals={**call.signals, "rule": 1.0}, rule="repeated_call", probe_after=worth)
        if place % 3 == 0
        else replace(call, signals={**call.signals, "rule": 0.0})
        for place, call in enumerate(telling)
    ]
    gate = fitted(mixed)
    plain = mixed[1].signals
    with_rule, without = (gate.linear({**plain, "rule": value}, mixed[1].tool) for value in (1.0, 0.0))
    assert (with_rule < without) is (worth is SAME)


def test_harm_that_was_not_foreseen_fails_the_test(telling: list[CallRecord]) -> None:
    """The conversations that certify are others than those learned from, and have the last word."""
    harmful = [
        call if learned_from(call.conversation) else replace(call, probe_after=OTHER) for call in telling
    ]
    refused = fitted(harmful)
    assert refused.certificate is None
    assert refused.attempt == 1


def test_the_gate_carries_what_it_holds_for(telling: list[CallRecord]) -> None:
    """Model, rules, and the name it was given."""
    settings = RuleSettings(Budgets(per_conversation=5))
    gate = fit(telling, model="small", max_harm=0.05, version=7, now=99.0, attempt=2, settings=settings)
    assert (gate.model, gate.version, gate.created, gate.attempt) == ("small", 7, 99.0, 2)
    assert gate.rules == rules_of(settings)
    assert gate.certificate is not None
    assert (gate.certificate.max_harm, gate.certificate.attempt) == (0.05, 2)
    assert Gate.from_dict(gate.as_dict()) == gate


@pytest.mark.parametrize("conversations", [0, 1, 30])
def test_little_is_refused_in_a_sentence(conversations: int) -> None:
    """Down to nothing at all, without an error and without spending an attempt."""
    gate = fitted(traffic(conversations, strength=4.0))
    assert (gate.certificate, gate.attempt) == (None, 0)
    assert f"{ENOUGH} are the least" in gate.explain()


def test_labels_all_alike_are_no_error() -> None:
    """There is nothing to tell apart; where every call is useless, that is what is certified."""
    gate = fitted([replace(call, probe_after=SAME) for call in traffic(1500, strength=4.0)])
    assert gate.certificate is not None
    useful = fitted([replace(call, probe_after=OTHER) for call in traffic(1500, strength=4.0)])
    assert useful.certificate is None


def test_a_call_without_a_probe_crosses_nothing() -> None:
    """As it would pass when it is judged."""
    gate = fitted(traffic(1200, strength=4.0))
    record = replace(traffic(1, strength=4.0)[0], probe_before=None)
    assert gate.score(CallFacts.of_record(record)) == NEVER
    assert gate.score(CallFacts.of_record(replace(record, probe_before=BEFORE))) != NEVER
