"""What a client or a label takes for the model's answer is never a call written out, whichever way the answer
was had: forced, generated in the place of a call, after a notice, or given by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from governor.decision import Action, Reason
from governor.exchange import Deliver, Exchange, Purpose
from governor.policies import RulesPolicy
from governor.probe import ProbeAnswer
from governor.records import CallRecord
from governor.spans import Markup
from governor.turn import Turn
from tests.governor.ordinary_answers import ANSWERS
from tests.governor.test_exchange import BOTH, ENFORCE, NORWAY, OBSERVE, QUESTION, SWEDEN, drive, start
from tests.governor.written_calls import WRITES
from tests.wire.generated import Generated, chat, made

ARGUMENTS = {"country": "Norway", "field": "capital"}
RULES = replace(ENFORCE, policy=RulesPolicy())
REPEATED = [QUESTION, *made(("c0", *SWEDEN[1:]))]
EVERY_PARSER = pytest.mark.parametrize("parser", sorted(WRITES))
THOUGHTS = ("<think>Oslo, or", "Well. <think>\nOslo", "[THINK]It is", "<seed:think>hm")


def written(parser: str) -> Iterator[str]:
    """A call of a model that may not make one: whole, without its end, indented, behind other text."""
    text = WRITES[parser]("lookup", ARGUMENTS)
    half = text[: text.index("lookup") + len("lookup") + 3]
    for call in (text, half):
        yield from (call, f"\t{call}", f" \n\n{call}", f"Let me see.\n{call}")


@EVERY_PARSER
def test_a_forced_answer_is_no_written_call(parser: str) -> None:
    """The call passes: no probe counts as the model's answer, however sure it is of it."""
    for text in written(parser):
        outcome = drive(start(False), Generated(calls=[NORWAY]), probe=Generated(content=text))
        assert outcome.message.calls == (NORWAY,)
        assert outcome.message.content == ""
        assert outcome.exchange.decisions[0].reason is Reason.PROBE_FAILED
        assert list(outcome.exchange.probe_failures) == ["call"]


@BOTH
@EVERY_PARSER
@pytest.mark.parametrize("action", ["answer", "notice"])
def test_no_call_is_written_in_the_place_of_one(stream: bool, parser: str, action: Any) -> None:
    """The withheld call passes after all; of what the model wrote instead, the client has no argument and no
    name of a tool."""
    for text in written(parser):
        exchange = start(stream, replace(RULES, action=action), *REPEATED)
        outcome = drive(exchange, Generated(calls=[SWEDEN]), Generated(content=text))
        assert outcome.message.calls == (SWEDEN,)
        assert outcome.exchange.decisions[0].reason is Reason.REPLACEMENT_FAILED
        assert not any(word in outcome.message.content for word in ("lookup", "Norway", "country"))


@EVERY_PARSER
def test_a_written_call_is_no_answer_for_a_label(parser: str) -> None:
    """Neither as the answer that the model gave by itself, nor as one that was asked for afterwards: the
    result would seem to have changed the answer."""
    before = ProbeAnswer("Oslo", True, 0.1, 0.1, 0.9, -0.1, 1, 1)
    record = CallRecord("c0", "talk", "lookup", "", 0, {}, 0.0, probe_before=before)
    for text in written(parser):
        exchange = Exchange(
            chat(*REPEATED, temperature=0), OBSERVE, records={"c0": record}, conversation="talk"
        )
        exchange.receive_response(Generated(content=text).response())
        exchange.finish()
        step = exchange.review()
        assert not isinstance(step, Deliver)
        assert step.purpose is Purpose.LABEL
        assert isinstance(exchange.probe_answered(Generated(content=text).response()), Deliver)
        (labelled,) = exchange.completed_records()
        assert labelled.probe_after is None
        assert labelled.answer_changed is None


@BOTH
@pytest.mark.parametrize("text", THOUGHTS)
def test_an_unfinished_thought_is_no_answer(stream: bool, text: str) -> None:
    """Where nothing takes thoughts out of the content, one that does not end has no answer after it."""
    forced = drive(start(stream), Generated(calls=[NORWAY]), probe=Generated(content=text))
    assert (forced.message.calls, forced.message.content) == ((NORWAY,), "")
    for action in ("answer", "notice"):
        exchange = start(stream, replace(RULES, action=action), *REPEATED)
        outcome = drive(exchange, Generated(calls=[SWEDEN]), Generated(content=text))
        assert outcome.message.calls == (SWEDEN,)
        assert "Oslo" not in outcome.message.content


@BOTH
@pytest.mark.parametrize("text", ANSWERS)
def test_an_ordinary_answer_is_delivered(stream: bool, text: str) -> None:
    """Word for word, also where it holds code, JSON, markup, or the name of the tool in prose."""
    generated = drive(start(stream, RULES, *REPEATED), Generated(calls=[SWEDEN]), Generated(content=text))
    assert generated.message.calls == ()
    assert generated.message.content.strip() == text.strip()
    forced = drive(start(stream), Generated(calls=[NORWAY]), probe=Generated(content=text))
    assert forced.exchange.action is Action.ANSWER
    assert forced.message.content.strip() == text.strip()


def test_an_answer_that_was_cut_is_measured_all_the_same() -> None:
    """It is not finished, so nobody gets it; what only might become a call is no failure of the probe."""
    cut = Generated(content='{"capital": "Os', finish_reason="length")
    outcome = drive(start(False), Generated(calls=[NORWAY]), probe=cut)
    assert outcome.message.calls == (NORWAY,)
    (record,) = outcome.exchange.new_records()
    assert record.probe_before is not None
    assert not record.probe_before.finished


def test_a_message_that_was_cut_is_no_second_answer() -> None:
    """A label needs a finished one, and asks for it."""
    before = ProbeAnswer("Oslo", True, 0.1, 0.1, 0.9, -0.1, 1, 1)
    record = CallRecord("c0", "talk", "lookup", "", 0, {}, 0.0, probe_before=before)
    body = chat(*REPEATED, temperature=0)
    for reason, asked in (("stop", False), ("length", True)):
        exchange = Exchange(body, OBSERVE, records={"c0": record}, conversation="talk")
        exchange.receive_response(Generated(content="Oslo, the", finish_reason=reason).response())
        exchange.finish()
        assert isinstance(exchange.review(), Deliver) is not asked


def test_a_thought_is_no_part_of_what_two_answers_are_compared_by() -> None:
    turn = [Turn(4096, Markup()), Turn(4096, Markup())]
    for place, text in enumerate(("<think>It is Oslo.</think>\nOslo", "<think>Surely.</think> Oslo")):
        turn[place].add_response(Generated(content=text).response())
    first, second = (part.as_answer(()) for part in turn)
    assert first is not None
    assert second is not None
    assert first.same_answer(second)


@BOTH
def test_the_same_rule_holds_for_both(stream: bool) -> None:
    """A forced answer and a generated one of the same text are both delivered, or neither is."""
    for text in ("lookup(country='Norway')", "Oslo", "<function_calls>", "{'a': 1}", "\tlookup\n", "a < b"):
        generated = drive(start(stream, RULES, *REPEATED), Generated(calls=[SWEDEN]), Generated(content=text))
        forced = drive(start(stream), Generated(calls=[NORWAY]), probe=Generated(content=text))
        assert bool(generated.message.calls) is bool(forced.message.calls), text
