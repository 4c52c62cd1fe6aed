"""The spans of a turn: reasoning, content, calls, template."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from governor.tokens import Token


class SpanKind(StrEnum):
    """What a run of tokens is part of."""

    REASONING = "reasoning"
    CONTENT = "content"
    CALL = "call"
    TEMPLATE = "template"


FREE_KINDS: frozenset[SpanKind] = frozenset({SpanKind.REASONING, SpanKind.CONTENT})

END_TOKENS: frozenset[str] = frozenset(
    {"<|im_end|>", "<|endoftext|>", "</s>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>",
"<end_of_turn>"} )


@dataclass(frozen=True, slots=True)
class Markup:
    """How a model marks its spans. An empty opening marker means none; an empty closing one: to the end of
    the turn."""

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
    """The spans of a turn, in order, without gaps; every token is in exactly one."""
    raise NotImplementedError


def segment(
    tokens: Sequence[Token], spans: Sequence[Span], kinds: Collection[SpanKind] = FREE_KINDS
) -> tuple[Token, ...]:
    """The tokens of the spans of `kinds`."""
    raise NotImplementedError


def mean_entropy(tokens: Sequence[Token]) -> float | None:
    """Mean point value in nats; None without tokens."""
    raise NotImplementedError


def decision_token(tokens: Sequence[Token], spans: Sequence[Span]) -> Token | None:
    """Where the model chose between calling and writing: the first token of the first call's opening
    marker, else the first content token, else None."""
    raise NotImplementedError


def call_tokens(tokens: Sequence[Token], spans: Sequence[Span], index: int) -> tuple[Token, ...]:
    """The tokens of the call at `index`; empty if the turn has no such call span."""
    raise NotImplementedError


def entropy_reduction(before: float | None, after: float | None) -> float | None:
    """before - after, in nats: positive means that the result helped. None if either is."""
    raise NotImplementedError
