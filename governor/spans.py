"""The spans of a turn: reasoning, content, calls, template.

Spans are read from the texts of the generated tokens alone. An engine's parsed message (`content`,
`reasoning`, `tool_calls`) does not say which token became what, and its stream and its whole response split
differently; the token texts are the same in both. Markers are found in the concatenated text, since a
tokenizer may write `<tool_call>` in several tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import groupby
from typing import Final, TypeVar

from governor.tokens import Token

Item = TypeVar("Item")


class SpanKind(StrEnum):
    """What a run of tokens is part of."""

    REASONING = "reasoning"
    CONTENT = "content"
    CALL = "call"
    TEMPLATE = "template"


FREE_KINDS: Final = frozenset({SpanKind.REASONING, SpanKind.CONTENT})
"""The kinds whose tokens the model was free to choose: what a segment is made of by default."""

END_TOKENS: Final = frozenset(
    {
        "<|im_end|>",
        "<|endoftext|>",
        "</s>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<|end|>",
        "<end_of_turn>",
    }
)


@dataclass(frozen=True, slots=True)
class Markup:
    """How a model marks its spans.

    `reasoning` and `call` are the opening and the closing marker; an empty opening marker means that the
    model has no such marked span, an empty closing one that the span goes on to the end of the turn. `ends`
    are whole tokens that end a turn.
    """

    reasoning: tuple[str, str] = ("<think>", "</think>")
    call: tuple[str, str] = ("<tool_call>", "</tool_call>")
    ends: frozenset[str] = END_TOKENS


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens [start, stop) of one kind."""

    kind: SpanKind
    start: int
    stop: int


def spans(texts: Sequence[str], markup: Markup, *, starts_in_reasoning: bool = False) -> tuple[Span, ...]:
    """The spans of a turn, in order and without gaps: every token is in exactly one.

    A marker is a TEMPLATE span of its own, and so is an end token; a token that holds a part of a marker
    belongs to it. Whitespace at the edges of reasoning and of content is TEMPLATE too: it is the chat
    format's, not the model's choice. A call keeps its whitespace, so that the span before a CALL span is
    always the marker that opened it.

    Reasoning starts with its opening marker, or with the turn if `starts_in_reasoning` (the prompt ended
    with the marker) or if the first reasoning marker of the turn is a closing one. It ends with its closing
    marker, with the opening marker of a call (as engines parse it), or with the turn. A call ends with the
    first closing marker after its opening one, whatever stands in between, or with the turn.

    >>> texts = ["Let", " me", " look", ".", "<tool_call>", "{}", "</tool_call>"]
    >>> [str(span.kind) for span in spans(texts, Markup())]
    ['content', 'template', 'call', 'template']
    """
    if not starts_in_reasoning:
        starts_in_reasoning = _closes_first("".join(texts), markup.reasoning)
    found: list[Span] = []
    start = 0
    for stop in _turn_ends(texts, markup.ends):
        found.extend(_turn_spans(texts, start, stop, markup, starts_in_reasoning))
        if stop < len(texts):
            found.append(Span(SpanKind.TEMPLATE, stop, stop + 1))
        start, starts_in_reasoning = stop + 1, False
    return tuple(found)


def segment(
    tokens: Sequence[Item], spans: Sequence[Span], kinds: Collection[SpanKind] = FREE_KINDS
) -> tuple[Item, ...]:
    """The tokens of the spans of `kinds`, or what else there is one of for each token, in order."""
    return tuple(token for span in spans if span.kind in kinds for token in tokens[span.start : span.stop])


def mean_entropy(tokens: Sequence[Token]) -> float | None:
    """Mean point value in nats; None without tokens."""
    if not tokens:
        return None
    return sum(token.entropy.value for token in tokens) / len(tokens)


def decision_token(tokens: Sequence[Token], spans: Sequence[Span]) -> Token | None:
    """Where the model chose between calling and writing.

    That is the first token of the marker that opened the first call; in a turn without calls the first
    token of the content; None if there is neither.
    """
    for place, span in enumerate(spans):
        if span.kind is SpanKind.CALL:
            return tokens[spans[max(place - 1, 0)].start]
    return next((tokens[span.start] for span in spans if span.kind is SpanKind.CONTENT), None)


def call_tokens(tokens: Sequence[Token], spans: Sequence[Span], index: int) -> tuple[Token, ...]:
    """The tokens of the call at `index` of the turn, without its markers; empty if there is no such span."""
    calls = [span for span in spans if span.kind is SpanKind.CALL]
    return tuple(tokens[calls[index].start : calls[index].stop]) if index < len(calls) else ()


def entropy_reduction(before: float | None, after: float | None) -> float | None:
    """before - after, in nats: positive means that the result helped. None if either is."""
    return None if before is None or after is None else before - after


def _closes_first(text: str, marker: tuple[str, str]) -> bool:
    opening, closing = marker
    if not opening or not closing:
        return False
    closed, opened = text.find(closing), text.find(opening)
    return closed >= 0 and (opened < 0 or closed < opened)


def _turn_ends(texts: Sequence[str], ends: frozenset[str]) -> Iterator[int]:
    """The indices of the end tokens, then the number of tokens."""
    yield from (i for i, text in enumerate(texts) if text in ends)
    yield len(texts)


def _turn_spans(
    texts: Sequence[str], start: int, stop: int, markup: Markup, in_reasoning: bool
) -> Iterator[Span]:
    """The spans of the tokens [start, stop), which hold no end token."""
    blocks = tuple(_blocks("".join(texts[start:stop]), markup, in_reasoning))
    owners = _owners(texts[start:stop], blocks)
    for owner, members in groupby(range(start, stop), key=lambda i: owners[i - start]):
        run = list(members)
        yield from _trimmed(texts, Span(blocks[owner][0], run[0], run[-1] + 1))


def _blocks(text: str, markup: Markup, in_reasoning: bool) -> Iterator[tuple[SpanKind, int]]:
    """The blocks of a text as (kind, end), in characters, contiguous from 0; at least one."""
    exits = _exits(markup)
    kind = SpanKind.REASONING if in_reasoning else SpanKind.CONTENT
    at = 0
    while hits := [(where, m, to) for m, to in exits[kind] if (where := text.find(m, at)) >= 0]:
        where, marker, following = min(hits)
        if where > at:
            yield kind, where
        at = where + len(marker)
        yield SpanKind.TEMPLATE, at
        kind = following
    yield kind, len(text)


@lru_cache(maxsize=8)
def _exits(markup: Markup) -> dict[SpanKind, tuple[tuple[str, SpanKind], ...]]:
    """For each kind of block the markers that end it, and the kind that follows each. Stray closing markers
    end nothing, but they are template all the same."""
    think, unthink = markup.reasoning
    call, uncall = markup.call
    exits = {
        SpanKind.CONTENT: (
            (think, SpanKind.REASONING),
            (call, SpanKind.CALL),
            (unthink, SpanKind.CONTENT),
            (uncall, SpanKind.CONTENT),
        ),
        SpanKind.REASONING: ((unthink, SpanKind.CONTENT), (call, SpanKind.CALL)),
        SpanKind.CALL: ((uncall, SpanKind.CONTENT),),
    }
    return {kind: tuple((m, to) for m, to in markers if m) for kind, markers in exits.items()}


def _owners(texts: Sequence[str], blocks: Sequence[tuple[SpanKind, int]]) -> list[int]:
    """For each token the index of its block: that of its first character, or the first marker that it
    reaches into."""
    owners: list[int] = []
    block = end = 0
    last = len(blocks) - 1
    for text in texts:
        begin, end = end, end + len(text)
        while block < last and blocks[block][1] <= begin:
            block += 1
        reached = block
        while blocks[reached][0] is not SpanKind.TEMPLATE and reached < last and blocks[reached][1] < end:
            reached += 1
        owners.append(reached if blocks[reached][0] is SpanKind.TEMPLATE else block)
    return owners


def _trimmed(texts: Sequence[str], span: Span) -> Iterator[Span]:
    """The span without the whitespace tokens at its edges, which become template; calls and markers stay
    whole."""
    start, stop = span.start, span.stop
    if span.kind in FREE_KINDS:
        while start < stop and not texts[start].strip():
            start += 1
        while start < stop and not texts[stop - 1].strip():
            stop -= 1
    pieces = (
        Span(SpanKind.TEMPLATE, span.start, start),
        Span(span.kind, start, stop),
        Span(SpanKind.TEMPLATE, stop, span.stop),
    )
    yield from (piece for piece in pieces if piece.start < piece.stop)
