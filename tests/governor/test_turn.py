"""A turn is the same whether its logprobs came parsed, or are read when somebody wants them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.calls import ToolCatalog
from governor.decision import Mode
from governor.exchange import Exchange
from governor.governance import Governance
from governor.spans import Markup
from governor.tokens import Unread
from governor.turn import MOST_UNREAD, Turn
from tests.wire.generated import Generated, chat

VOCABULARY = 4096
NORWAY = ("c1", "lookup", '{"country": "Norway", "field": "capital"}')
GOVERNANCE = Governance(vocab_size=VOCABULARY, mode=Mode.ENFORCE, catalog=ToolCatalog(read_only=("lookup",)))


class Parser:
    """Counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, raw: bytes) -> Any:
        self.asked += 1
        return json.loads(raw)


def unread(body: Mapping[str, Any], parser: Parser) -> dict[str, Any]:
    """`body` with its logprobs as they come from a client that asked for none."""
    choices = [
        choice | {"logprobs": Unread(json.dumps(choice["logprobs"]).encode(), parser)}
        if choice.get("logprobs")
        else choice
        for choice in body["choices"]
    ]
    return {**body, "choices": choices}


def streamed(generation: Generated, parser: Parser | None = None) -> Turn:
    turn = Turn(VOCABULARY, Markup())
    for chunk in generation.chunks():
        turn.add_chunk(chunk if parser is None else unread(chunk, parser))
    return turn


@given(st.integers(0, 3 * MOST_UNREAD), st.booleans())
def test_no_token_is_lost_or_out_of_order(words: int, calls: bool) -> None:
    generation = Generated(content=" word" * words, calls=[NORWAY] if calls else ())
    late, early = streamed(generation, Parser()), streamed(generation)
    assert late.tokens == early.tokens
    assert late.spans() == early.spans()
    assert (late.measured, late.has_gaps) == (early.measured, early.has_gaps)


def test_of_a_long_answer_no_more_is_kept_unread_than_that() -> None:
    parser = Parser()
    turn = streamed(Generated(content=" word" * (3 * MOST_UNREAD)), parser)
    assert parser.asked >= 2 * MOST_UNREAD
    assert len(turn.tokens) == parser.asked


def asked(generation: Generated, *, stream: bool) -> Iterator[int]:
    """How often the logprobs of an answer were parsed: when the client had its message, and in the end."""
    parser = Parser()
    exchange = Exchange(chat(stream=stream), GOVERNANCE, probe_when_observing=False)
    if stream:
        for chunk in generation.chunks():
            exchange.receive(unread(chunk, parser))
    else:
        exchange.receive_response(unread(generation.response(), parser))
    exchange.finish()
    yield parser.asked
    exchange.review()
    exchange.records()
    assert not exchange.missing_logprobs
    yield parser.asked


@pytest.mark.parametrize("stream", [False, True])
def test_the_logprobs_of_a_turn_without_a_call_are_not_read(stream: bool) -> None:
    assert list(asked(Generated(content="Oslo it is."), stream=stream)) == [0, 0]


@pytest.mark.parametrize("stream", [False, True])
def test_the_logprobs_of_a_turn_with_a_call_are(stream: bool) -> None:
    assert next(asked(Generated(calls=[NORWAY]), stream=stream)) > 0


@pytest.mark.parametrize("raw", [b"{", b"[]", b'{"content": 1}', b'{"content": [1]}'])
def test_what_turns_out_to_be_malformed_is_a_gap(raw: bytes) -> None:
    turn = Turn(VOCABULARY, Markup())
    turn.add_chunk({"choices": [{"delta": {"content": "x"}, "logprobs": Unread(raw, json.loads)}]})
    assert not turn.measured
    assert turn.has_gaps
