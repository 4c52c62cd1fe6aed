"""Spans are read from token texts alone, however the markers are cut into tokens."""

from __future__ import annotations

from itertools import pairwise
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.entropy import EntropyEstimate
from governor.spans import (
    Markup,
    Span,
    SpanKind,
    call_tokens,
    decision_token,
    entropy_reduction,
    mean_entropy,
    segment,
    spans,
)
from governor.tokens import Token

MARKUP = Markup()
TURN = "<think>\nOslo, then.\n</think>\n\nLet me look.\n<tool_call>\n{}\n</tool_call>"


def labelled(texts: list[str], markup: Markup = MARKUP, *, starts_in_reasoning: bool = False) -> list[str]:
    """Each span as "kind:text"."""
    found = spans(texts, markup, starts_in_reasoning=starts_in_reasoning)
    return [f"{span.kind}:{''.join(texts[span.start : span.stop])}" for span in found]


def token(text: str, entropy: float = 0.0) -> Token:
    """A token with a known entropy."""
    return Token(text, log(0.5), EntropyEstimate(entropy, entropy, entropy, 0.0), 0.5)


def test_a_turn_falls_into_reasoning_content_call_and_template() -> None:
    """Markers, end tokens and the whitespace between blocks are template."""
    texts = [
        "<think>",
        "\n",
        "Oslo",
        ".",
        "\n",
        "</think>",
        "\n\n",
        "Let",
        " me",
        "\n",
        "<tool_call>",
        "\n",
        "{}",
    ]
    assert labelled([*texts, "</tool_call>", "<|im_end|>"]) == [
        "template:<think>",
        "template:\n",
        "reasoning:Oslo.",
        "template:\n",
        "template:</think>",
        "template:\n\n",
        "content:Let me",
        "template:\n",
        "template:<tool_call>",
        "call:\n{}",
        "template:</tool_call>",
        "template:<|im_end|>",
    ]


@given(st.lists(st.integers(1, len(TURN) - 1), max_size=40))
def test_every_token_is_in_exactly_one_span(cuts: list[int]) -> None:
    """However the text is tokenized, the spans are contiguous and cover it."""
    edges = [0, *sorted(set(cuts)), len(TURN)]
    texts = [TURN[a:b] for a, b in pairwise(edges)]
    found = spans(texts, MARKUP)
    assert found[0].start == 0
    assert found[-1].stop == len(texts)
    assert all(a.stop == b.start for a, b in pairwise(found))
    assert all(span.start < span.stop for span in found)


@given(st.lists(st.integers(1, len(TURN) - 1), max_size=40))
def test_a_token_that_holds_a_part_of_a_marker_is_template(cuts: list[int]) -> None:
    """No tokenization puts a piece of a marker into a segment."""
    edges = [0, *sorted(set(cuts)), len(TURN)]
    texts = [TURN[a:b] for a, b in pairwise(edges)]
    marked = [i for m in ("<think>", "</think>", "<tool_call>", "</tool_call>") for i in at(TURN, m)]
    for span in spans(texts, MARKUP):
        if span.kind is not SpanKind.TEMPLATE:
            assert not set(range(edges[span.start], edges[span.stop])) & set(marked)


def at(text: str, marker: str) -> range:
    """The positions of the characters of the only occurrence of `marker`."""
    start = text.index(marker)
    return range(start, start + len(marker))


@pytest.mark.parametrize("pieces", [["<", "tool", "_call", ">"], ["<tool_call>"], list("<tool_call>")])
def test_a_marker_may_span_several_tokens(pieces: list[str]) -> None:
    """Only some tokenizers have the marker as one token."""
    assert labelled(["Hi", *pieces, "{", "}"]) == ["content:Hi", "template:<tool_call>", "call:{}"]


def test_several_calls_are_spans_of_their_own() -> None:
    """The i-th call span is the i-th call of the message."""
    texts = ["<tool_call>", "{1}", "</tool_call>", "\n", "<tool_call>", "{2}", "</tool_call>"]
    assert [label for label in labelled(texts) if label.startswith("call")] == ["call:{1}", "call:{2}"]
    tokens = [token(text) for text in texts]
    found = spans(texts, MARKUP)
    assert [t.text for t in call_tokens(tokens, found, 1)] == ["{2}"]
    assert call_tokens(tokens, found, 2) == ()


def test_an_unclosed_call_goes_on_to_the_end_of_the_turn() -> None:
    """Cut off by the length limit, or ended without its marker: its tokens are in no segment."""
    assert labelled(["<tool_call>", "{", '"na']) == ["template:<tool_call>", 'call:{"na']
    assert labelled(["<tool_call>", "{", "<|im_end|>"])[1:] == ["call:{", "template:<|im_end|>"]


def test_a_call_ends_at_the_first_closing_marker() -> None:
    """As the engine parses it, whatever the arguments contain."""
    texts = ["<tool_call>", '{"q": "', "<tool_call>", "<think>", '"}', "</tool_call>", "Done"]
    assert labelled(texts)[1:] == [
        'call:{"q": "<tool_call><think>"}',
        "template:</tool_call>",
        "content:Done",
    ]


def test_a_turn_without_markers_is_content() -> None:
    """A final answer needs no markup."""
    assert labelled(["The", " answer", "."]) == ["content:The answer."]
    assert labelled([]) == []


def test_a_turn_of_whitespace_has_no_free_tokens() -> None:
    """Nothing was said."""
    assert labelled(["\n", "", " "]) == ["template:\n "]


def test_whitespace_within_a_block_belongs_to_it() -> None:
    """Only the edges are the chat format's."""
    assert labelled(["a", "\n\n", "b"]) == ["content:a\n\nb"]


def test_reasoning_may_start_in_the_prompt() -> None:
    """Some chat templates end the prompt with the opening marker, so that only the closing one is
    generated."""
    assert labelled(["So", ".", "</think>", "Oslo"]) == ["reasoning:So.", "template:</think>", "content:Oslo"]
    assert labelled(["So", "."], starts_in_reasoning=True) == ["reasoning:So."]


def test_a_closing_marker_after_an_opening_one_does_not_reach_back() -> None:
    """Text before the opening marker is content."""
    assert labelled(["Hm", "<think>", "x", "</think>"])[0] == "content:Hm"


def test_a_call_ends_reasoning() -> None:
    """Engines take it for a call, closed reasoning or not."""
    assert labelled(["<think>", "so", "<tool_call>", "{}"])[1:] == [
        "reasoning:so",
        "template:<tool_call>",
        "call:{}",
    ]


def test_stray_closing_markers_are_template() -> None:
    """They end nothing, and the model did not choose them as words."""
    assert labelled(["a", "</tool_call>", "b"]) == ["content:a", "template:</tool_call>", "content:b"]


def test_tokens_after_an_end_token_start_afresh() -> None:
    """With `ignore_eos` generation goes on; an unclosed call does not."""
    assert labelled(["<tool_call>", "{", "<|im_end|>", "So"])[-1] == "content:So"


def test_other_models_mark_otherwise() -> None:
    """A call may have no closing marker, and a model no reasoning."""
    mistral = Markup(reasoning=("", ""), call=("[TOOL_CALLS]", ""), ends=frozenset({"</s>"}))
    texts = ["Hi", "[TOOL_CALLS]", "[{}]", "</s>"]
    assert labelled(texts, mistral) == ["content:Hi", "template:[TOOL_CALLS]", "call:[{}]", "template:</s>"]
    assert labelled(["<think>", "x"], mistral) == ["content:<think>x"]


def test_one_token_with_two_markers_is_template() -> None:
    """The call that follows is still found."""
    assert labelled(["x</think><tool_call>", "{}"]) == ["template:x</think><tool_call>", "call:{}"]


def test_a_segment_is_the_reasoning_and_the_content() -> None:
    """Calls and template are left out, unless they are asked for."""
    texts = ["<think>", "so", "</think>", "Hi", "<tool_call>", "{}", "</tool_call>"]
    tokens = [token(text) for text in texts]
    found = spans(texts, MARKUP)
    assert [t.text for t in segment(tokens, found)] == ["so", "Hi"]
    assert [t.text for t in segment(tokens, found, {SpanKind.CALL})] == ["{}"]


def test_mean_entropy_is_over_tokens() -> None:
    """Each token counts once; there is no mean of nothing."""
    assert mean_entropy([token("a", 1.0), token("b", 0.5), token("c", 0.0)]) == pytest.approx(0.5)
    assert mean_entropy([]) is None


def test_the_decision_token_opens_the_first_call() -> None:
    """It is the marker's first token, where the model chose between calling and writing."""
    texts = ["Hi", "\n", "<tool", "_call>", "{}", "</tool_call>", "<tool_call>", "{}"]
    tokens = [token(text) for text in texts]
    assert decision_token(tokens, spans(texts, MARKUP)) is tokens[2]


def test_without_a_call_the_decision_token_is_the_first_of_the_content() -> None:
    """The model chose to write."""
    texts = ["<think>", "so", "</think>", "\n", "Hi", "!"]
    tokens = [token(text) for text in texts]
    assert decision_token(tokens, spans(texts, MARKUP)) is tokens[4]
    assert decision_token(tokens[:2], spans(texts[:2], MARKUP)) is None


def test_a_call_span_without_a_marker_before_it_is_its_own_decision() -> None:
    """Spans may come from elsewhere than token texts."""
    tokens = [token("{"), token("}")]
    assert decision_token(tokens, [Span(SpanKind.CALL, 0, 2)]) is tokens[0]


def test_a_result_that_lowers_entropy_has_a_positive_reduction() -> None:
    """before - after; unknown if either is."""
    assert entropy_reduction(1.5, 0.5) == 1.0
    assert entropy_reduction(None, 0.5) is None
    assert entropy_reduction(1.5, None) is None
