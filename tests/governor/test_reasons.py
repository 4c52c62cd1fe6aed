"""Every reason that the documentation lists is given by some request, and means what it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from governor.calls import schemas_of
from governor.certificate import Certificate
from governor.conversation import executed_calls
from governor.decision import Action, Decision, Mode, Reason
from governor.exchange import Ask, Exchange
from governor.experiment import Arm, Experiment
from governor.gate import Gate, SignalWeight, ToolWeights, rules_of
from governor.governance import Governance
from governor.judge import NoProbe
from governor.policies import CalibratedPolicy, ObservePolicy, RulesPolicy, policy
from governor.records import CallRecord
from governor.results import Outcome
from governor.rules import RuleSettings
from tests.governor.test_exchange import (
    BOOK,
    CATALOG,
    ENFORCE,
    NORWAY,
    OBSERVE,
    OSLO,
    QUESTION,
    SWEDEN,
    UNSURE,
    Broken,
    drive,
    start,
)
from tests.wire.generated import Generated, chat, made

RULES = replace(ENFORCE, policy=RulesPolicy())
VOLATILE = replace(RULES, catalog=CATALOG.with_volatile(["lookup"]))
CALLING = Generated(calls=[NORWAY])


def decided(
    governance: Governance,
    *messages: Any,
    calls: Sequence[tuple[str, str, str]] = (NORWAY,),
    later: Sequence[Generated | None] = (),
    probe: Generated | str = OSLO,
    top: int | None = 20,
    **more: Any,
) -> Sequence[Decision]:
    """What is decided on the calls, in line or in review; `later` is what upstream generates next, `probe`
    what its probes give."""
    exchange = start(False, governance, *messages, **more)
    drive(exchange, Generated(calls=calls, top=top), *later, probe=probe)
    step = exchange.review()
    while isinstance(step, Ask):
        told = isinstance(probe, str)
        step = exchange.probe_failed(str(probe)) if told else exchange.probe_answered(probe.response())  # type: ignore[union-attr]
    return exchange.decisions


def history(*calls: tuple[str, str, str], result: str = "Oslo") -> list[Any]:
    """A question, and turns with one call each."""
    return [QUESTION, *(message for call in calls for message in made(call, results=[result]))]


def numbered(call: tuple[str, str, str], number: int) -> tuple[str, str, str]:
    return (f"h{number}", *call[1:])


def gated(threshold: float) -> Governance:
    """Under a gate that gives every call of the tool the probability 0.5."""
    gate = Gate(
        model="atlas",
        version=1,
        created=0.0,
        attempt=1,
        signals=(SignalWeight("step", "identity", 0.0, 1.0, 0.0),),
        intercept=0.0,
        tools={"lookup": ToolWeights(schemas_of(chat()["tools"])["lookup"], 50)},
        knots=((0.0, 0.5),),
        horizon=5,
        rules=rules_of(RuleSettings()),
        certificate=Certificate(threshold, 100, 0, 0, 100, 0.03, 0.05, 0.95, 1),
    )
    return replace(ENFORCE, policy=CalibratedPolicy(gate))


def circle() -> Sequence[Decision]:
    calls = [numbered(call, n) for n, call in enumerate([NORWAY, SWEDEN, NORWAY, SWEDEN])]
    return decided(RULES, *history(*calls, result="It is Oslo."), later=[Generated(content="Oslo")])


def noticed(rounds: int) -> Governance:
    return replace(RULES, action="notice", max_notices=rounds)


def failed_twice() -> Sequence[Decision]:
    calls = [numbered(NORWAY, n) for n in range(2)]
    return decided(RULES, *history(*calls, result="Error: no such field"), later=[Generated(content="Oslo")])


def refused_measuring() -> Sequence[Decision]:
    """Upstream takes the client's own request only, so that not even a repeated call is withheld."""
    exchange = start(False, RULES, *BEFORE)
    exchange.unmeasured()
    drive(exchange, replace(CALLING, top=None))
    exchange.review()
    return exchange.decisions


def refused_probe() -> CallRecord:
    """Upstream is known to refuse probes."""
    exchange = start(False, ENFORCE)
    exchange.receive_response(CALLING.response())
    assert isinstance(exchange.finish(), Ask)
    exchange.probe_refused()
    assert not exchange.probe_failures
    return exchange.new_records()[0]


DONE = [Generated(content="Oslo")]
BEFORE = history(numbered(NORWAY, 0))
TWICE = [numbered(NORWAY, 1), numbered(SWEDEN, 2)]
SCENES: Mapping[Reason, Callable[[], Sequence[Decision]]] = {
    Reason.REPEATED_CALL: lambda: decided(RULES, *BEFORE, later=DONE),
    Reason.CYCLE: circle,
    Reason.BUDGET: lambda: decided(
        replace(ENFORCE, policy=policy("rules", per_conversation=1)), *BEFORE, calls=[SWEDEN], later=DONE
    ),
    Reason.FAILING_RETRY: failed_twice,
    Reason.CONFIDENT_ANSWER: lambda: decided(ENFORCE),
    Reason.UNCERTAIN_ANSWER: lambda: decided(ENFORCE, probe=UNSURE),
    Reason.NO_RULE: lambda: decided(RULES),
    Reason.EFFECTFUL_TOOL: lambda: decided(RULES, calls=[BOOK], tools=["book"]),
    Reason.UNKNOWN_TOOL: lambda: decided(RULES, calls=[("c1", "other", "{}")], tools=["other"]),
    Reason.ASKED_AGAIN: lambda: decided(noticed(2), *BEFORE, later=[CALLING]),
    Reason.NOTICE_LIMIT: lambda: decided(noticed(1), *history(*TWICE), later=[Generated(calls=[SWEDEN])]),
    Reason.VOLATILE: lambda: decided(VOLATILE, *BEFORE),
    Reason.UNFINISHED: lambda: decided(RULES, *history(numbered(NORWAY, 0), result="pending")),
    Reason.PROBE_FAILED: lambda: decided(ENFORCE, probe="timeout"),
    Reason.CUT_MESSAGE: lambda: decided(RULES, *BEFORE, calls=[("c1", "lookup", '{"country": "Nor')]),
    Reason.NO_PROBE: lambda: decided(OBSERVE, probe_when_observing=False),
    Reason.REPLACEMENT_FAILED: lambda: decided(RULES, *BEFORE, later=[None]),
    Reason.NO_LOGPROBS: lambda: decided(ENFORCE, top=None),
    Reason.UPSTREAM_REFUSES: refused_measuring,
    Reason.POLICY_ERROR: lambda: decided(replace(ENFORCE, policy=Broken())),
    Reason.EXPLORATION: lambda: decided(replace(ENFORCE, experiment=Experiment(exploration=1.0))),
    Reason.UNCERTIFIED: lambda: decided(replace(ENFORCE, policy=CalibratedPolicy())),
    Reason.LIKELY_USELESS: lambda: decided(gated(0.9)),
    Reason.LIKELY_USEFUL: lambda: decided(gated(0.1)),
}


@pytest.mark.parametrize("reason", SCENES, ids=str)
def test_every_reason_is_given(reason: Reason) -> None:
    """By a request of its own, with a sentence that a record carries."""
    decisions = SCENES[reason]()
    assert reason in [decision.reason for decision in decisions]
    for decision in decisions:
        assert decision.explain().endswith(".")
        json.dumps(decision.as_dict())


def test_no_reason_is_without_a_request() -> None:
    """A reason that nothing gives is a line of the documentation that nobody will ever see."""
    assert {*SCENES, Reason.NOT_JUDGED} == set(Reason)


# Calls that are delivered before they are judged


def delivered(governance: Governance, **more: Any) -> Exchange:
    exchange = start(False, governance, **more)
    exchange.receive_response(CALLING.response())
    exchange.finish()
    return exchange


def test_a_call_is_on_record_before_it_is_judged() -> None:
    """The client has it, and may be back at once."""
    exchange = delivered(OBSERVE)
    (before,) = exchange.new_records()
    assert before.decision["reason"] == Reason.NOT_JUDGED
    assert (before.passed, before.judged) == (True, False)
    assert exchange.decisions == ()
    step = exchange.review()
    while isinstance(step, Ask):
        step = exchange.probe_answered(OSLO.response())
    (after,) = exchange.new_records()
    assert after.key == before.key
    assert after.decision["reason"] == Reason.CONFIDENT_ANSWER


def test_a_call_that_the_governor_could_not_judge_is_on_record_too() -> None:
    """It failed open; the conversation goes on all the same."""
    exchange = start(False, ENFORCE)
    exchange.receive_response(CALLING.response())
    exchange.interrupted()
    (record,) = exchange.records()
    assert (record.decision["reason"], record.passed) == (Reason.NOT_JUDGED, True)


# Why there is no probe

NO_PROBES: Mapping[NoProbe, Callable[[], CallRecord]] = {
    NoProbe.NOT_ASKED: lambda: _record(RULES),
    NoProbe.FAILED: lambda: _record(ENFORCE, probe="timeout"),
    NoProbe.NOT_ALLOWED: lambda: _record(replace(OBSERVE, experiment=Experiment(max_labels=0))),
    NoProbe.REFUSED: refused_probe,
}
SAID = {
    NoProbe.NOT_ASKED: Reason.NO_RULE,
    NoProbe.FAILED: Reason.PROBE_FAILED,
    NoProbe.NOT_ALLOWED: Reason.NO_PROBE,
    NoProbe.REFUSED: Reason.UPSTREAM_REFUSES,
}


def _record(governance: Governance, probe: Generated | str = OSLO) -> CallRecord:
    exchange = start(False, governance)
    drive(exchange, CALLING, probe=probe)
    exchange.review()
    return exchange.new_records()[0]


@pytest.mark.parametrize("why", NoProbe, ids=str)
def test_a_record_says_why_it_has_no_probe(why: NoProbe) -> None:
    """What was not allowed has not failed: who looks for a broken upstream would look in vain."""
    record = NO_PROBES[why]()
    assert record.probe_before is None
    assert record.decision["reason"] == SAID[why]


# What else a record names

RESULTS = {
    Outcome.OK: "31 C",
    Outcome.EMPTY: "[]",
    Outcome.FAILED: "Error: no such city",
    Outcome.TRANSIENT: "Error: timed out",
    Outcome.UNFINISHED: "pending",
    Outcome.PENDING: None,
}


@pytest.mark.parametrize("outcome", Outcome, ids=str)
def test_every_outcome_is_read_from_some_history(outcome: Outcome) -> None:
    """As far as a result shows it."""
    result = RESULTS[outcome]
    messages = made(NORWAY, results=[result or ""])[: 1 if result is None else 2]
    assert [done.outcome for done in executed_calls(messages, CATALOG)] == [outcome]


def test_every_action_and_every_arm_comes_up() -> None:
    """In the records, where they are counted."""
    beside = [NORWAY, SWEDEN]
    taken = [
        *decided(RULES),
        *decided(ENFORCE),
        *decided(noticed(2), *BEFORE, later=[CALLING]),
        *decided(RULES, *BEFORE, calls=beside),
    ]
    assert {decision.action for decision in taken} == set(Action)
    arms = {
        Exchange(chat(), governance, conversation="talk").arm
        for governance in (
            OBSERVE,
            ENFORCE,
            replace(ENFORCE, experiment=Experiment(holdout=1.0)),
        )
    }
    assert arms == set(Arm)
    modes = {Exchange(chat(), Governance(4096, mode=mode, policy=ObservePolicy())).mode for mode in Mode}
    assert modes == set(Mode)
