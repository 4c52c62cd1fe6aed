"""What was said in a turn, as it is kept for fine-tuning."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from governor.decision import Mode
from governor.exchange import Exchange
from governor.governance import Governance
from governor.policies import ThresholdPolicy
from governor.transcript import Transcript
from tests.governor.test_exchange import BOOK, CATALOG, NORWAY, OSLO, UNSURE, drive
from tests.wire.generated import Generated, chat

ENFORCE = Governance(vocab_size=4096, mode=Mode.ENFORCE, policy=ThresholdPolicy(), catalog=CATALOG)
CALLING = Generated(reasoning="Oslo?", content="Let me look.", calls=[NORWAY])
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "lookup", "arguments": '{"country": "Norway", "field": "capital"}'},
}
PROPOSED = {"role": "assistant", "content": "Let me look.", "reasoning": "Oslo?", "tool_calls": [CALL]}
BOTH = pytest.mark.parametrize("stream", [False, True])


def transcript(exchange: Exchange) -> Transcript:
    found = exchange.transcript
    assert found is not None
    return found


def begun(stream: bool, tools: list[str] | None = None, mode: Mode = Mode.ENFORCE) -> Exchange:
    body = chat(stream=stream, tools=tools or ["lookup"])
    return Exchange(body, replace(ENFORCE, mode=mode), conversation="talk", now=3.0)


@BOTH
def test_a_call_that_passed_is_told_as_it_was_generated(stream: bool) -> None:
    """Nothing was withheld, so there is no other proposal."""
    exchange = begun(stream)
    drive(exchange, CALLING, probe=UNSURE)
    found = transcript(exchange)
    assert found.reply == PROPOSED
    assert found.proposal is None
    assert (found.conversation, found.turn, found.created) == ("talk", 0, 3.0)
    assert found.messages == len(found.said) + 1


@BOTH
def test_a_withheld_call_is_told_beside_the_answer_that_took_its_place(stream: bool) -> None:
    """The pair is what a preference is learned from; the reply is the client's, word for word."""
    exchange = begun(stream)
    client = drive(exchange, CALLING, probe=OSLO).message
    found = transcript(exchange)
    assert found.reply == {"role": "assistant", "content": client.content, "reasoning": "Oslo?"}
    assert client.content.endswith("Oslo")
    assert found.proposal == PROPOSED


@BOTH
def test_what_follows_a_notice_is_one_reply(stream: bool) -> None:
    """As the client gets it: the withheld call is gone, the one behind the notice stays."""
    exchange = begun(stream, ["lookup", "book"])
    drive(exchange, CALLING, Generated(content="So I book.", calls=[BOOK]), probe=OSLO)
    found = transcript(exchange)
    assert found.reply["content"] == "Let me look.\nSo I book."
    assert [call["function"]["name"] for call in found.reply["tool_calls"]] == ["book"]
    assert found.proposal == PROPOSED


def test_an_unfinished_turn_is_not_told() -> None:
    """Half a message is nothing to learn from."""
    exchange = begun(stream=False)
    assert exchange.transcript is None


def test_it_is_the_same_after_a_trip_through_json() -> None:
    """With fields of a later version left out."""
    exchange = begun(stream=False)
    drive(exchange, CALLING, probe=OSLO)
    found = transcript(exchange)
    again = Transcript.from_dict(json.loads(json.dumps({**found.as_dict(), "later": 1})))
    assert again.as_dict() == json.loads(json.dumps(found.as_dict()))
    with pytest.raises(TypeError):
        Transcript.from_dict([])  # type: ignore[arg-type]


@pytest.mark.parametrize(("earlier", "resent"), [({"reasoning": "Hm."}, True), ({}, False)])
def test_it_says_whether_the_client_sends_reasoning_back(earlier: dict[str, Any], resent: bool) -> None:
    """Else nobody knows what the model saw when it went on."""
    said = {"role": "assistant", "content": "Yes?", **earlier}
    body = {**chat(stream=False), "messages": [{"role": "user", "content": "Hi"}, said, {"role": "user"}]}
    exchange = Exchange(body, ENFORCE)
    drive(exchange, Generated(content="Oslo."))
    found = transcript(exchange)
    assert (found.turn, found.resent) == (1, resent)
    assert found.following(2).said == [{"role": "user"}]
    assert found.following(2).messages == found.messages == 4
