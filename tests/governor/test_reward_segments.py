"""What a segment's entropy is taken over."""

from __future__ import annotations

from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.entropy import EntropyEstimate
from governor.rewards import CallTurn, SpanChoice, Statistic, call_turns, copied, segment_entropy
from governor.spans import Markup, SpanKind, mean_entropy, segment, spans
from governor.tokens import Token

TEXTS = ["<think>", "\n", "Bern", "?", "\n", "</think>", "\n\n", "<tool_call>", "{}", "</tool_call>"]
ENTROPIES = [0.0, 0.1, 2.0, 1.0, 0.1, 0.0, 0.0, 0.5, 0.25, 0.0]
SPANS = spans(TEXTS, Markup())


def test_it_is_what_the_governor_measures() -> None:
    """By default the same figure as the governor's records have, or logs and training would not agree."""
    tokens = [
        Token(text, log(0.5), EntropyEstimate(value, value, value, 0.0), 0.5)
        for text, value in zip(TEXTS, ENTROPIES, strict=True)
    ]
    assert segment_entropy(ENTROPIES, TEXTS, SPANS, SpanChoice()) == mean_entropy(segment(tokens, SPANS))


@pytest.mark.parametrize(
    ("choice", "value"),
    [
        (SpanChoice(), 1.5),
        (SpanChoice(kinds=frozenset({SpanKind.CALL})), 0.25),
        (SpanChoice(kinds=frozenset(SpanKind)), sum(ENTROPIES) / len(ENTROPIES)),
        (SpanChoice(statistic=Statistic.MAX), 2.0),
        (SpanChoice(statistic=Statistic.TOP_FIFTH), 2.0),
        (SpanChoice(skip=1), 1.0),
        (SpanChoice(last=1), 1.0),
        (SpanChoice(least=3), None),
        (SpanChoice(skip=9), None),
        (SpanChoice(kinds=frozenset({SpanKind.CONTENT})), None),
    ],
)
def test_each_choice_takes_its_tokens(choice: SpanChoice, value: float | None) -> None:
    """Too few tokens are no entropy, not an entropy of 0."""
    assert segment_entropy(ENTROPIES, TEXTS, SPANS, choice) == pytest.approx(value)


def test_a_quotation_of_the_result_does_not_count() -> None:
    """Copying is certain, and says nothing of what the model knows; a short answer that is found in the
    result stays."""
    quote = [" a", " b", " c", " d", " e", " f", " g", " h"]
    texts = ["So", ":", *quote, " hm"]
    entropies = [1.0, 1.0, *([0.0] * 8), 1.0]
    found = spans(texts, Markup())
    result = ["x a b c d e f g h y"]
    assert segment_entropy(entropies, texts, found, SpanChoice(), result) == 1.0
    assert segment_entropy(entropies, texts, found, SpanChoice(quote=0), result) == pytest.approx(3 / 11)
    assert segment_entropy(entropies, texts, found, SpanChoice(), ["a b c"]) == pytest.approx(3 / 11)


@given(st.lists(st.sampled_from([" a", " b", " c"]), max_size=12), st.text("abc ", max_size=12))
def test_what_is_marked_as_copied_stands_in_the_result(texts: list[str], result: str) -> None:
    """Every marked token is part of a run of the asked length that the result has, every other one is not."""
    found = copied(texts, [result], 2)
    for place in range(len(texts)):
        windows = [texts[s : s + 2] for s in (place - 1, place) if 0 <= s <= len(texts) - 2]
        assert found[place] == any("".join(window).strip() in result for window in windows)


def test_the_calls_of_one_turn_share_what_is_around_it() -> None:
    """And behind the last turn nothing is known: a rollout that was cut off has no entropy after."""
    assert call_turns([1.0, 0.5, 0.25], [2, 0, 1]) == [
        CallTurn(1.0, 0.5),
        CallTurn(1.0, 0.5),
        CallTurn(0.25, None),
    ]


@pytest.mark.parametrize("bad", [{"quote": -1}, {"skip": -1}, {"last": -1}, {"least": 0}])
def test_an_impossible_choice_is_refused(bad: dict[str, int]) -> None:
    """A negative `last` would silently take all tokens but some."""
    with pytest.raises(ValueError, match="not negative"):
        SpanChoice(**bad)  # type: ignore[arg-type]
