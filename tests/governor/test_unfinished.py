"""Only whole messages are judged. What upstream did not finish reaches the client as it came: never withheld,
never replaced, never taken for a repeat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.decision import Action, Reason
from governor.exchange import Ask, Deliver, Exchange, Explain, Purpose
from governor.policies import RulesPolicy
from governor.turn import WHOLE
from tests.governor.test_exchange import BOTH, ENFORCE, NORWAY, OBSERVE, QUESTION, SWEDEN, drive, message_of
from tests.wire.generated import USAGE, Generated, chat, made

RULES = replace(ENFORCE, policy=RulesPolicy())
NOT_WHOLE = ("length", "abort", "content_filter", "repetition", "error", "a_word_of_next_year")
NO_OBJECTS = ('{"country": "Swe', '{"country"', "{", "[1]", '"Sweden"', "null", "3", "Sweden", "{}}")
CUT = ("c2", "lookup", '{"country": "Swe')


def asking(stream: bool, governance: Any = RULES, **fields: Any) -> Exchange:
    """An exchange in which the call of SWEDEN is a repeat, and one without arguments too."""
    history = [*made(("c0", *SWEDEN[1:])), *made(("c1", "lookup", "{}"), results=["all"])]
    return Exchange(chat(QUESTION, *history, stream=stream, **fields), governance, conversation="talk")


def unfinished() -> Iterator[Generated]:
    for reason in NOT_WHOLE:
        yield Generated(content="Again.", calls=[SWEDEN], finish_reason=reason)
        yield Generated(calls=[("c2", "lookup", "")], finish_reason=reason)
    for arguments in NO_OBJECTS:
        yield Generated(calls=[("c2", "lookup", arguments)])
        yield Generated(calls=[SWEDEN, ("c3", "lookup", arguments)])


@BOTH
@pytest.mark.parametrize("governance", [RULES, ENFORCE, replace(RULES, action="notice")])
def test_an_unfinished_message_is_delivered_as_it_came(stream: bool, governance: Any) -> None:
    """Nothing is asked upstream for it, and its calls are recorded with a reason of their own."""
    for generation in unfinished():
        outcome = drive(asking(stream, governance), generation)
        message = replace(outcome.message, tokens=())
        assert message == message_of(generation)
        assert outcome.asked == []
        kept = [(d.action, d.proposed, d.reason, d.tier) for d in outcome.exchange.decisions]
        assert kept == [(Action.PASS, Action.PASS, Reason.CUT_MESSAGE, None)] * len(generation.calls)
        records = outcome.exchange.new_records()
        assert [record.decision["reason"] for record in records] == ["cut_message"] * len(generation.calls)
        assert all((record.rule, record.signals) == ("", {}) for record in records)


@BOTH
def test_nor_is_it_judged_while_observing(stream: bool) -> None:
    """Neither a probe nor a label is asked for it; and the client reads of it if it wants."""
    for explain in (Explain.NO, Explain.DECISIONS):
        body = chat(QUESTION, stream=stream)
        exchange = Exchange(body, OBSERVE, conversation="talk", explain=explain)
        drive(exchange, Generated(calls=[NORWAY], finish_reason="length"))
        assert isinstance(exchange.review(), Deliver)
        assert [decision.reason for decision in exchange.decisions] == [Reason.CUT_MESSAGE]


@BOTH
def test_a_message_without_an_end_is_delivered_and_not_recorded(stream: bool) -> None:
    """The stream ended, or the response has no reason: nobody knows what was to come."""
    exchange = asking(stream)
    generation = Generated(content="Again.", calls=[SWEDEN])
    if stream:
        sent = [part for chunk in generation.chunks()[:-1] for part in exchange.receive(chunk)]
    else:
        response = generation.response()
        response["choices"][0]["finish_reason"] = None
        exchange.receive_response(response)
        sent = []
    end = exchange.finish()
    assert isinstance(end, Deliver)
    assert exchange.decisions == ()
    assert exchange.new_records() == ()
    calls = [c for part in (*sent, *end.chunks) for c in part["choices"][0]["delta"].get("tool_calls") or ()]
    if stream:
        assert "".join(call["function"].get("arguments") or "" for call in calls) == SWEDEN[2]
    else:
        assert end.body is not None
        assert end.body["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == SWEDEN[2]


@BOTH
@pytest.mark.parametrize("reason", sorted(WHOLE))
@pytest.mark.parametrize("arguments", [SWEDEN[2], "{}", "", " "])
def test_a_whole_message_is_judged(stream: bool, reason: str, arguments: str) -> None:
    """Where a client names the function vLLM says `stop`; a call without arguments may have no text."""
    generation = Generated(calls=[("c2", "lookup", arguments)], finish_reason=reason)
    outcome = drive(asking(stream), generation, Generated(content="Stockholm."))
    assert [decision.reason for decision in outcome.exchange.decisions] == [Reason.REPEATED_CALL]
    assert outcome.message.calls == ()


@BOTH
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_call_that_ends_at_the_clients_limit_was_cut(stream: bool, field: str) -> None:
    """vLLM says `tool_calls` of a whole response even then, whatever its parser made of the rest."""
    outcome = drive(asking(stream, **{field: USAGE["completion_tokens"]}), Generated(calls=[SWEDEN]))
    assert [decision.reason for decision in outcome.exchange.decisions] == [Reason.CUT_MESSAGE]
    assert outcome.message.calls == (SWEDEN,)


@BOTH
@pytest.mark.parametrize("action", ["answer", "notice"])
@pytest.mark.parametrize(
    "instead",
    [
        *(Generated(content="Stockholm, as", finish_reason=reason) for reason in NOT_WHOLE),
        Generated(content="Well.", calls=[NORWAY], finish_reason="length"),
        Generated(calls=[CUT]),
    ],
)
def test_what_was_not_finished_takes_no_calls_place(stream: bool, action: Any, instead: Generated) -> None:
    """The withheld call passes after all, once, and the client can go on with it."""
    outcome = drive(asking(stream, replace(RULES, action=action)), Generated(calls=[SWEDEN]), instead)
    assert outcome.message.calls == (SWEDEN,)
    assert outcome.message.finish_reason == "tool_calls"
    assert [decision.reason for decision in outcome.exchange.decisions] == [Reason.REPLACEMENT_FAILED]


@BOTH
def test_a_call_in_the_place_of_an_answer_lets_the_first_one_pass(stream: bool) -> None:
    """Upstream calls in spite of "none": the client gets the call that the model made first, once."""
    instead = Generated(content="Hm.", calls=[NORWAY])
    outcome = drive(asking(stream, replace(RULES, action="answer")), Generated(calls=[SWEDEN]), instead)
    assert outcome.message.calls == (SWEDEN,)
    assert outcome.exchange.action is Action.PASS


@given(st.text(), st.booleans(), st.sampled_from([SWEDEN, NORWAY, CUT]))
def test_no_other_word_means_whole(reason: str, stream: bool, call: tuple[str, str, str]) -> None:
    """A list of what is whole, so that a word nobody has heard of withholds nothing."""
    outcome = drive_any(asking(stream), Generated(calls=[call], finish_reason=reason))
    judged = (reason or "tool_calls") in WHOLE and call is not CUT
    assert outcome == judged


def drive_any(exchange: Exchange, generation: Generated) -> bool:
    """Whether the calls were judged."""
    if exchange.streams:
        for chunk in generation.chunks():
            exchange.receive(chunk)
    else:
        exchange.receive_response(generation.response())
    step = exchange.finish()
    assert not isinstance(step, Ask) or step.purpose is Purpose.ANSWER
    return any(decision.reason is not Reason.CUT_MESSAGE for decision in exchange.decisions)
