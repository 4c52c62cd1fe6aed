"""Whatever a client sends, the exchange says what to send upstream and what to deliver, and withholds nothing
that it does not understand."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from governor.calls import ToolCatalog
from governor.decision import Action, Reason
from governor.errors import TurnMalformed
from governor.exchange import Ask, Deliver, Exchange
from governor.experiment import Experiment
from governor.governance import Governance
from governor.labels import Label
from governor.policies.calibrated import CalibratedPolicy
from governor.pruning import PruneSettings
from governor.records import CallRecord
from tests.governor.test_exchange import BOTH, ENFORCE, NORWAY, OSLO, QUESTION, SWEDEN, Only, feed
from tests.wire.generated import Generated, changed, chat, made, tool

EVERYTHING = replace(
    ENFORCE, experiment=Experiment(labels=1.0), pruning=PruneSettings("low_value", min_tokens=10)
)
"""All that can be turned on."""


def played(
    messages: list[Any], generation: Generated, governance: Governance = EVERYTHING, **fields: Any
) -> Exchange:
    """The exchange over a history, driven to its end as the proxy does it."""
    known = {
        message["tool_call_id"]: record(message["tool_call_id"])
        for message in messages
        if message.get("role") == "tool" and isinstance(message.get("tool_call_id"), str)
    }
    exchange = Exchange(chat(*messages, **fields), governance, records=known, conversation="talk")
    step: Ask | Deliver = exchange.admission()
    while isinstance(step, Ask) and step.purpose.value == "probe":
        json.dumps(step.body)
        step = exchange.probe_answered(OSLO.response())
    assert isinstance(step, Ask)
    exchange.receive_response(generation.response())
    step = exchange.finish()
    while isinstance(step, Ask):
        step = exchange.probe_answered(OSLO.response())
    assert step.body is not None
    step = exchange.review()
    while isinstance(step, Ask):
        step = exchange.probe_answered(OSLO.response())
    for kept in exchange.records():
        json.dumps(kept.as_dict())
    return exchange


def record(call_id: str) -> CallRecord:
    """A record of an earlier call, with the answer that was forced before it."""
    exchange = Exchange(chat(QUESTION), ENFORCE, conversation="talk")
    exchange.receive_response(Generated(calls=[(call_id, *NORWAY[1:])]).response())
    exchange.finish()
    exchange.probe_answered(OSLO.response())
    return exchange.new_records()[0]


@pytest.mark.parametrize(
    "result",
    [
        "x" * 1_000_000,
        "",
        " \n ",
        "\x00\x01\x02 binary \x7f",
        "\ud800 half a character",
        "\ufeff\u202e\u0000",
        "[" * 50_000,
        '{"a":' * 20_000,
    ],
    ids=["1 MB", "empty", "blank", "binary", "surrogate", "marks", "brackets", "nested"],
)
def test_any_result_is_carried(result: str) -> None:
    """Long, empty, binary or half: it is sent on, or a stub stands for it."""
    exchange = played([QUESTION, *made(NORWAY, results=[result])], Generated(content="Oslo"))
    sent = exchange.request["messages"][-1]["content"]
    assert sent == result or "c1" in exchange.pruning.stubs
    assert exchange.records()[0].label is Label.LOW_VALUE


def test_a_tool_that_nobody_declared_is_observed() -> None:
    """The model invented it, or the client left it out of this request."""
    exchange = played([QUESTION], Generated(calls=[("c7", "teleport", "{}")]))
    (decision,) = exchange.decisions
    assert (decision.action, decision.reason) == (Action.PASS, Reason.UNKNOWN_TOOL)


@pytest.mark.parametrize("arguments", ["", "{", "null", "[1]", "\x00", "{}" * 5000, '{"a": NaN}'])
def test_any_arguments_are_judged(arguments: str) -> None:
    """As text, where they are no JSON."""
    exchange = played([QUESTION], Generated(calls=[("c7", "lookup", arguments)]))
    assert len(exchange.decisions) == 1


def test_a_tool_that_changed_its_description_is_another_tool() -> None:
    """What was certified held for the old one; the record tells the two apart."""
    one = played([QUESTION], Generated(calls=[NORWAY]))
    changed = {**tool("lookup"), "function": {**tool("lookup")["function"], "description": "Now live data."}}
    exchange = Exchange({**chat(QUESTION), "tools": [changed]}, EVERYTHING, conversation="talk")
    exchange.receive_response(Generated(calls=[NORWAY]).response())
    exchange.finish()
    exchange.probe_answered(OSLO.response())
    assert exchange.new_records()[0].schema != one.new_records()[0].schema


def test_without_a_gate_for_it_a_call_passes_unasked() -> None:
    """No certificate, no probe on the way of the client's message."""
    governance = replace(ENFORCE, policy=CalibratedPolicy())
    exchange = Exchange(chat(QUESTION), governance, conversation="talk")
    exchange.receive_response(Generated(calls=[NORWAY]).response())
    assert isinstance(exchange.finish(), Deliver)
    assert exchange.decisions[0].reason is Reason.UNCERTIFIED


@pytest.mark.parametrize(
    "tools",
    [[], [1], ["lookup"], [{}], [{"type": "function"}], [{"function": {"name": 7}}], [None, tool("lookup")]],
)
def test_any_list_of_tools_is_read(tools: list[Any]) -> None:
    """What has no name cannot be governed, and breaks nothing."""
    exchange = Exchange({**chat(QUESTION), "tools": tools}, EVERYTHING, conversation="talk")
    exchange.receive_response(Generated(calls=[NORWAY]).response())
    step = exchange.finish()
    while isinstance(step, Ask):
        step = exchange.probe_failed("timeout")
    assert step.body is not None


@pytest.fixture
def uncollected() -> Iterator[None]:
    """What the garbage collector takes depends on all tests before."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("names", [1, 40], ids=["the same call", "forty calls"])
def test_thousands_of_calls_take_no_more_than_their_share(names: int) -> None:
    """An agent that ran all night: judging one more call grows with what came before, not with its square.
    Four times the calls may take eight times as long, where the square would take sixteen; the best of
    several, for the machine has other work."""
    both = [(seconds(1000, names), seconds(4000, names)) for _ in range(5)]
    short, long = map(min, zip(*both, strict=True))
    assert long < 8 * short


def seconds(count: int, names: int) -> float:
    """Of this thread's, for a request with so many calls in its history, of so many different ones."""
    calls = [(f"c{place}", "lookup", json.dumps({"country": f"X{place % names}"})) for place in range(count)]
    history = [message for call in calls for message in made(call, results=["It is so. " * 10])]
    governance = replace(EVERYTHING, catalog=ToolCatalog(read_only=("lookup",)))
    known = {f"c{place}": record(f"c{place}") for place in range(0, count, 200)}
    began = time.thread_time()
    exchange = Exchange(chat(QUESTION, *history), governance, records=known, conversation="talk")
    exchange.admission()
    exchange.receive_response(Generated(calls=[("new", *NORWAY[1:])]).response())
    step = exchange.finish()
    while isinstance(step, Ask):
        step = exchange.probe_failed("timeout")
    exchange.records()
    assert len(exchange.decisions) == 1
    return time.thread_time() - began


@pytest.mark.parametrize("usage", ["none", [1], {"prompt_tokens": -5, "completion_tokens": "x"}, {}])
def test_a_usage_that_is_none_costs_nothing(usage: object) -> None:
    """The decision stands, and the records of the request are not lost over a count."""
    exchange = Exchange(chat(), ENFORCE)
    exchange.admission()
    exchange.receive_response({**Generated(calls=[NORWAY]).response(), "usage": usage})
    assert isinstance(exchange.finish(), Ask)
    exchange.probe_answered({**Generated(content="Oslo").response(), "usage": usage})
    (record,) = exchange.records()
    assert "completion_tokens" not in record.turn_usage
    assert exchange.costs == {"probe": {"prompt_tokens": 0, "completion_tokens": 0}}
    assert exchange.action is Action.ANSWER


THINKING = Generated(reasoning="Hm, Norway.", content="Let me look.", calls=[NORWAY])
ALL: dict[str, Any] = {"logprobs": True, "top_logprobs": 20}
"""What a client asks for that gets all that upstream sends."""
ODD = pytest.mark.parametrize("odd", [5, 2.0**70, True, ["x"], {"country": "Norway"}], ids=str)


@BOTH
@ODD
@pytest.mark.parametrize("piece", ["content", "reasoning", "id", "name", "arguments"])
def test_beside_a_piece_that_is_no_text_no_call_is_withheld(piece: str, odd: object, stream: bool) -> None:
    """Nobody knows what it stands for, so the client gets it, and the call with it, as upstream sent them."""
    exchange = Exchange(chat(QUESTION, stream=stream, **ALL), ENFORCE, conversation="talk")
    response = changed(THINKING.response(), piece, odd)
    chunks = [changed(chunk, piece, odd) for chunk in THINKING.chunks(usage=True)]
    early = [sent for chunk in chunks for sent in exchange.receive(chunk)] if stream else []
    if not stream:
        exchange.receive_response(response)
    with pytest.raises(TurnMalformed):
        exchange.finish()
    released = exchange.interrupted()
    assert [*early, *released.chunks] == chunks if stream else released.body == response
    assert (exchange.action, exchange.records()) == (Action.PASS, ())


@BOTH
@ODD
def test_text_is_read_where_only_another_piece_is_none(odd: object, stream: bool) -> None:
    """A message without calls is delivered like any other; what is recorded of it is what is text."""
    exchange = Exchange(chat(QUESTION, stream=stream), ENFORCE, conversation="talk")
    spoken = Generated(reasoning="Hm.", content="Oslo")
    if stream:
        for chunk in spoken.chunks():
            exchange.receive(changed(chunk, "reasoning", odd))
    else:
        exchange.receive_response(changed(spoken.response(), "reasoning", odd))
    assert isinstance(exchange.finish(), Deliver)
    assert (exchange.turn.content, exchange.turn.reasoning) == ("Oslo", "")
    assert exchange.transcript is not None
    json.dumps(exchange.transcript.as_dict())


@pytest.mark.parametrize(("reasoning", "answers"), [(None, True), (5, False), (["x"], False)])
def test_reasoning_that_is_no_text_is_not_taken_for_none(reasoning: object, answers: bool) -> None:
    """An answer with thoughts before it says nothing about one without, and no label is made of the two."""
    history = [QUESTION, *made(NORWAY)]
    exchange = Exchange(chat(*history, temperature=0), ENFORCE, records={"c1": record("c1")})
    exchange.receive_response(
        changed(Generated(reasoning="Hm.", content="Oslo").response(), "reasoning", reasoning)
    )
    assert isinstance(exchange.finish(), Deliver)
    (done,) = exchange.completed_records()
    assert (done.probe_after is not None) is answers


@pytest.mark.parametrize("odd", ["x", 0.5, [1]])
def test_a_call_at_a_place_that_is_no_number_takes_no_other_with_it(odd: object) -> None:
    """The two have no order, and the client gets both where upstream put them."""
    exchange = Exchange(chat(QUESTION, stream=True, **ALL), ENFORCE, conversation="talk")
    chunks = Generated(calls=[NORWAY, SWEDEN]).chunks()
    for chunk in chunks:
        for call in chunk["choices"][0]["delta"].get("tool_calls", ()):
            call["index"] = call["index"] or odd
    early = [sent for chunk in chunks for sent in exchange.receive(chunk)]
    with pytest.raises(TurnMalformed):
        exchange.finish()
    assert [*early, *exchange.interrupted().chunks] == chunks


@BOTH
@ODD
@pytest.mark.parametrize("action", ["answer", "notice"])
def test_a_replacement_with_a_piece_that_is_no_text_is_none(action: Any, odd: object, stream: bool) -> None:
    """The calls pass after all: there is nothing that could stand in their place."""
    governance = replace(ENFORCE, policy=Only(frozenset({"c1"})), action=action)
    exchange = Exchange(chat(QUESTION, stream=stream), governance, conversation="talk")
    feed(exchange, Generated(calls=[NORWAY]))
    assert isinstance(exchange.finish(), Ask)
    spoken = Generated(reasoning="Hm.", content="Oslo")
    if stream:
        for chunk in spoken.chunks(usage=True):
            exchange.receive(changed(chunk, "reasoning", odd))
    else:
        exchange.receive_response(changed(spoken.response(), "reasoning", odd))
    assert isinstance(exchange.finish(), Deliver)
    (decision,) = exchange.decisions
    assert (decision.action, decision.reason) == (Action.PASS, Reason.REPLACEMENT_FAILED)
