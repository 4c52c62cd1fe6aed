"""Generated tokens, each with the entropy of the distribution it was drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from governor.entropy import EntropyEstimate, estimate, margin
from governor.errors import LogprobsMalformed


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. `logprob` is its own; `entropy` and `margin` are of the distribution it came
    from."""

    text: str
    logprob: float
    entropy: EntropyEstimate
    margin: float


def tokens_from_logprobs(content: Sequence[Mapping[str, Any]], vocab_size: int) -> tuple[Token, ...]:
    """The tokens of `choices[].logprobs.content`, of a whole response or of one chunk of a stream.

    A chunk may carry any number of tokens. Raises `LogprobsMalformed`.
    """
    try:
        return tuple(_token(entry, vocab_size) for entry in content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise LogprobsMalformed("malformed", f"{type(error).__name__}: {error}") from error


def _token(entry: Mapping[str, Any], vocab_size: int) -> Token:
    text, own = entry["token"], float(entry["logprob"])
    if not isinstance(text, str) or isnan(own):
        raise ValueError("a token without text or logprob")
    logprobs: list[float] = [alternative["logprob"] for alternative in entry.get("top_logprobs") or ()]
    top = len(logprobs)
    if not logprobs or own < min(logprobs):
        logprobs.append(own)
    elif own == min(logprobs):
        # vLLM puts the sampled token first and then cuts the list: a sampled token that is the least of the
        # list may stand in for the true rank k. It is taken for an addition, so that the bounds hold either
        # way.
        top -= 1
    return Token(text, own, estimate(logprobs, vocab_size, top=top), margin(logprobs))
