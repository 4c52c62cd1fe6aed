"""What an exchange does to learn: holding out, exploring, labelling; and what it prunes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from governor.decision import Action, Reason
from governor.exchange import Ask, Deliver, Exchange, Purpose
from governor.experiment import Arm, Experiment
from governor.governance import Governance
from governor.labels import Label
from governor.policies import ObservePolicy
from governor.pruning import PruneSettings, is_stub
from governor.records import CallRecord
from tests.governor.test_exchange import (
    ENFORCE,
    NORWAY,
    OBSERVE,
    OSLO,
    QUESTION,
    SWEDEN,
    UNSURE,
    drive,
    start,
)
from tests.wire.generated import Generated, made

ALL_HELD_OUT = replace(ENFORCE, experiment=Experiment(holdout=1.0))
ALL_EXPLORED = replace(ENFORCE, experiment=Experiment(exploration=1.0))
PRUNE = replace(ENFORCE, pruning=PruneSettings("low_value", min_tokens=10, batch_tokens=50))
LONG = "Norway is a country in the north of Europe. " * 40
BOTH = pytest.mark.parametrize("stream", [False, True])


def reviewed(exchange: Exchange, probe: Generated = OSLO) -> list[Purpose]:
    """What the review asks for; each is answered by `probe`."""
    asked = []
    step = exchange.review()
    while isinstance(step, Ask):
        asked.append(step.purpose)
        step = exchange.probe_answered(probe.response())
    assert not step.chunks
    return asked


def called(governance: Governance, probe: Generated = OSLO) -> CallRecord:
    """The record of a first call of NORWAY under `governance`."""
    exchange = start(False, governance)
    drive(exchange, Generated(calls=[NORWAY]), probe=probe)
    reviewed(exchange, probe)
    (record,) = exchange.records()
    return record


@BOTH
def test_a_conversation_that_is_held_out_keeps_its_calls(stream: bool) -> None:
    """And waits for nothing, while the record says what governing would have done."""
    exchange = start(stream, ALL_HELD_OUT)
    passed = drive(exchange, Generated(calls=[NORWAY]))
    assert passed.message.calls == (NORWAY,)
    assert not passed.asked
    assert reviewed(exchange) == [Purpose.PROBE]
    (record,) = exchange.records()
    assert (record.arm, record.explored) == (Arm.HOLDOUT, False)
    assert (record.decision["action"], record.decision["proposed"]) == (Action.PASS, Action.ANSWER)


@BOTH
def test_an_explored_call_passes_and_says_so(stream: bool) -> None:
    """It would have been withheld; who reads the record can tell it from one that nobody would touch."""
    exchange = start(stream, ALL_EXPLORED)
    passed = drive(exchange, Generated(calls=[NORWAY]))
    assert passed.message.calls == (NORWAY,)
    (decision,) = exchange.decisions
    assert (decision.action, decision.proposed) == (Action.PASS, Action.ANSWER)
    assert decision.reason is Reason.EXPLORATION
    assert [record.explored for record in exchange.records()] == [True]


def test_calls_that_would_pass_anyway_are_not_explored() -> None:
    """The exploration sample is one of would-be withheld calls only."""
    exchange = start(False, ALL_EXPLORED)
    drive(exchange, Generated(calls=[NORWAY]), probe=UNSURE)
    assert [record.explored for record in exchange.records()] == [False]


def test_of_parallel_calls_the_unexplored_are_left_out() -> None:
    """The message is then one of several calls of which some pass."""
    half = replace(ENFORCE, experiment=Experiment(exploration=0.5, salt="i"))
    exchange = start(False, half)
    drive(exchange, Generated(calls=[NORWAY, SWEDEN]))
    actions = {decision.action for decision in exchange.decisions}
    assert actions == {Action.PASS, Action.DROP}, "choose a salt that explores one of the two"


def test_the_result_of_an_explored_call_is_labelled_when_it_comes() -> None:
    """Beside the traffic, with one probe at the place of the client's next request."""
    record = called(ALL_EXPLORED)
    exchange = start(False, ALL_EXPLORED, QUESTION, *made(NORWAY), records={"c1": record})
    passed = drive(exchange, Generated(reasoning="So it is Oslo.", content="Oslo"))
    assert not passed.asked
    assert reviewed(exchange) == [Purpose.LABEL]
    assert exchange.costs["label"] == {"prompt_tokens": 100, "completion_tokens": 20}
    (done,) = exchange.records()
    assert (done.label, done.outcome) == (Label.LOW_VALUE, "ok")


def test_a_changed_answer_is_a_useful_call() -> None:
    """The label of the pair of forced answers."""
    record = called(OBSERVE, UNSURE)
    exchange = start(False, OBSERVE, QUESTION, *made(NORWAY), records={"c1": record})
    drive(exchange, Generated(reasoning="Bergen!", content="Bergen"))
    assert reviewed(exchange, Generated(content="Bergen", id="chatcmpl-probe")) == [Purpose.LABEL]
    assert exchange.records()[0].label is Label.USEFUL


def test_a_greedy_answer_without_reasoning_is_its_own_probe() -> None:
    """It stands at the same position and costs nothing; a sampled one may have been another."""
    record = called(OBSERVE)
    again = [QUESTION, *made(NORWAY)]
    greedy = start(False, OBSERVE, *again, records={"c1": record}, temperature=0)
    drive(greedy, Generated(content="Oslo"))
    assert reviewed(greedy) == []
    assert greedy.records()[0].label is Label.LOW_VALUE
    sampled = start(False, OBSERVE, *again, records={"c1": record}, temperature=0.7)
    drive(sampled, Generated(content="Oslo"))
    assert reviewed(sampled) == [Purpose.LABEL]


def test_labels_need_no_policy_that_probes() -> None:
    """Observing alone learns what a gate needs: an answer before each call and one after."""
    governance = replace(OBSERVE, policy=ObservePolicy())
    record = called(governance)
    assert record.probe_before is not None
    assert record.signals["probe_least_margin"] is not None
    exchange = start(False, governance, QUESTION, *made(NORWAY), records={"c1": record})
    drive(exchange, Generated(calls=[SWEDEN]))
    assert reviewed(exchange) == [Purpose.LABEL]
    new, old = exchange.records()
    assert (new.call_id, old.call_id) == ("c2", "c1")
    assert old.label is Label.LOW_VALUE
    assert new.probe_before == old.probe_after


def test_past_the_limit_nothing_is_labelled() -> None:
    """However long a conversation gets, the probes it costs are bounded."""
    governance = replace(OBSERVE, policy=ObservePolicy(), experiment=Experiment(max_labels=1))
    record = called(governance)
    exchange = start(False, governance, QUESTION, *made(NORWAY), records={"c1": record})
    drive(exchange, Generated(calls=[SWEDEN]))
    assert reviewed(exchange) == []


def test_governed_conversations_are_not_labelled_unless_drawn() -> None:
    """A probe costs; where nothing is explored there is nothing to learn that the holdout does not tell."""
    record = called(ENFORCE, UNSURE)
    again = [QUESTION, *made(NORWAY)]
    exchange = start(False, ENFORCE, *again, records={"c1": record})
    drive(exchange, Generated(reasoning="Oslo!", content="Oslo"))
    assert reviewed(exchange) == []
    drawn = replace(ENFORCE, experiment=Experiment(labels=1.0))
    exchange = start(False, drawn, *again, records={"c1": record})
    drive(exchange, Generated(reasoning="Oslo!", content="Oslo"))
    assert reviewed(exchange) == [Purpose.LABEL]


def test_a_failed_label_costs_nothing_but_the_label() -> None:
    """The client has its message already."""
    record = called(OBSERVE)
    exchange = start(False, OBSERVE, QUESTION, *made(NORWAY), records={"c1": record})
    drive(exchange, Generated(reasoning="Oslo!", content="Oslo"))
    assert isinstance(exchange.review(), Ask)
    assert exchange.probe_failed("timeout") == Deliver()
    assert exchange.records()[0].label is None


# Pruning


def admitted(exchange: Exchange, probe: Generated | None) -> dict[str, Any]:
    """The client's request as it goes upstream."""
    step = exchange.admission()
    if probe is not None:
        assert step.purpose is Purpose.PROBE
        after = exchange.probe_answered(probe.response())
        assert isinstance(after, Ask)
        step = after
    assert step.purpose is Purpose.REQUEST
    return step.body


def test_a_fresh_result_that_changed_nothing_is_a_stub_at_once() -> None:
    """One probe with the result in place tells; the answer is then generated without it."""
    record = called(PRUNE, UNSURE)
    sure = replace(record, probe_before=called(PRUNE, OSLO).probe_before)
    exchange = start(False, PRUNE, QUESTION, *made(NORWAY, results=[LONG]), records={"c1": sure})
    body = admitted(exchange, OSLO)
    assert is_stub(body["messages"][-1]["content"])
    assert exchange.pruning.saved_tokens > 400
    drive(exchange, Generated(content="Oslo"))
    (done,) = exchange.records()
    assert (done.label, done.stub) == (Label.LOW_VALUE, "low_value")


def test_a_useful_result_stays() -> None:
    """The answer changed: the model needs to see why."""
    record = called(PRUNE, UNSURE)
    exchange = start(False, PRUNE, QUESTION, *made(NORWAY, results=[LONG]), records={"c1": record})
    body = admitted(exchange, Generated(content="Bergen", id="chatcmpl-probe"))
    assert body["messages"][-1]["content"] == LONG


def test_a_short_result_is_not_worth_a_probe() -> None:
    """The probe is on the way of the first token."""
    record = called(PRUNE, UNSURE)
    exchange = start(False, PRUNE, QUESTION, *made(NORWAY), records={"c1": record})
    assert admitted(exchange, None)["messages"][-1]["content"] == "Oslo"


def test_a_stub_stays_a_stub() -> None:
    """The client sends the full text again, and the prompt must be the same as last time."""
    record = replace(called(PRUNE), stub="low_value", probe_after=called(PRUNE).probe_before)
    history = [QUESTION, *made(NORWAY, results=[LONG])]
    first = start(False, PRUNE, *history, records={"c1": record})
    second = start(False, PRUNE, *history, *made(SWEDEN), records={"c1": record})
    one, two = admitted(first, None)["messages"], admitted(second, None)["messages"]
    assert is_stub(one[-1]["content"])
    assert two[: len(one)] == one


def test_a_failed_admission_keeps_the_result() -> None:
    """Failing open."""
    record = called(PRUNE, UNSURE)
    exchange = start(False, PRUNE, QUESTION, *made(NORWAY, results=[LONG]), records={"c1": record})
    assert exchange.admission().purpose is Purpose.PROBE
    after = exchange.probe_failed("timeout")
    assert isinstance(after, Ask)
    assert after.body["messages"][-1]["content"] == LONG


def test_the_holdout_is_not_pruned() -> None:
    """What pruning changes is measured against it, too."""
    held = replace(PRUNE, experiment=Experiment(holdout=1.0))
    record = replace(called(PRUNE), stub="low_value")
    exchange = start(False, held, QUESTION, *made(NORWAY, results=[LONG]), records={"c1": record})
    assert admitted(exchange, None)["messages"][-1]["content"] == LONG


def test_asking_again_for_a_pruned_result_is_no_repeat() -> None:
    """The stub told the model to."""
    record = replace(called(PRUNE), stub="low_value", probe_after=called(PRUNE).probe_before)
    history = [QUESTION, *made(NORWAY, results=[LONG])]
    exchange = start(False, PRUNE, *history, records={"c1": record})
    admitted(exchange, None)
    again = drive(exchange, Generated(calls=[("c9", *NORWAY[1:])]), probe=UNSURE)
    assert again.message.calls == (("c9", *NORWAY[1:]),)


# Leaving out what was read before the answer settled

ATLAS_PAGE = ("c0", "lookup", '{"country": "Europe"}')
"""A call whose long result is read while the model still guesses."""


def settling(*, before: Generated = UNSURE) -> Exchange:
    """A request with a long result from before, and a short fresh one; `before` is the forced answer before
    that."""
    guessed = replace(called(PRUNE, UNSURE), call_id="c0")
    guessed = replace(guessed, probe_after=called(PRUNE, Generated(content="Bergen")).probe_before)
    assert guessed.label is Label.USEFUL
    fresh = called(PRUNE, before)
    history = [QUESTION, *made(ATLAS_PAGE, results=[LONG]), *made(NORWAY)]
    return start(False, PRUNE, *history, records={"c0": guessed, "c1": fresh})


def test_once_the_answer_has_settled_what_it_does_not_need_is_left_out() -> None:
    """From one guess to another the long result counted as useful; the answer is the same without it."""
    exchange = settling()
    step = exchange.admission()
    assert (step.purpose, step.body["messages"][2]["content"]) == (Purpose.PROBE, LONG)
    without = exchange.probe_answered(OSLO.response())
    assert isinstance(without, Ask)
    assert (without.purpose, is_stub(without.body["messages"][2]["content"])) == (Purpose.PROBE, True)
    request = exchange.probe_answered(OSLO.response())
    assert isinstance(request, Ask)
    assert request.purpose is Purpose.REQUEST
    assert request.body["messages"] == without.body["messages"], (
        "the probe has warmed the prefix cache for it"
    )
    drive(exchange, Generated(content="Oslo"))
    stubs = {record.call_id: record.stub for record in exchange.records()}
    assert stubs == {"c0": "low_value", "c1": ""}


@pytest.mark.parametrize("answer", [UNSURE, Generated(content="Bergen", id="chatcmpl-probe"), None])
def test_what_the_settled_answer_needs_stays(answer: Generated | None) -> None:
    """Another answer without it, a less certain one, or none."""
    exchange = settling()
    exchange.admission()
    exchange.probe_answered(OSLO.response())
    request = exchange.probe_answered(answer.response()) if answer else exchange.probe_failed("timeout")
    assert isinstance(request, Ask)
    assert (request.purpose, request.body["messages"][2]["content"]) == (Purpose.REQUEST, LONG)


def test_while_the_model_guesses_nothing_is_left_out() -> None:
    """The long result may be a piece of what it will find in the end."""
    exchange = settling(before=Generated(content="Bergen", sure=0.3, id="chatcmpl-probe"))
    exchange.admission()
    request = exchange.probe_answered(UNSURE.response())
    assert isinstance(request, Ask)
    assert (request.purpose, request.body["messages"][2]["content"]) == (Purpose.REQUEST, LONG)


def test_an_answer_that_was_settled_before_is_not_probed_again() -> None:
    """One attempt each time an open answer settles bounds the probes."""
    assert settling(before=OSLO).admission().purpose is Purpose.REQUEST
