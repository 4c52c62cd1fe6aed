"""Generated tokens, each with the entropy of the distribution it was drawn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, isnan, log1p
from typing import Any, NamedTuple

from governor.entropy import EntropyEstimate, estimate, margin
from governor.errors import LogprobsMalformed

MOST_EXCLUDED = 1 - 1e-9
"""Of a distribution with less than a billionth left, float32 logprobs tell nothing more."""


@dataclass(frozen=True, slots=True)
class Unread:
    """The logprobs of a choice, still as upstream wrote them: most of a body's bytes, and of no use where no
    decision and no record is made of them. Only for those that the client does not get."""

    raw: bytes
    parse: Callable[[bytes], Any]


class Token(NamedTuple):
    """One generated token. `logprob` is its own; `entropy` and `margin` are of the distribution it came
    from."""

    text: str
    logprob: float
    entropy: EntropyEstimate
    margin: float


def tokens_from_logprobs(
    content: Sequence[Mapping[str, Any]], vocab_size: int, *, banned: str | None = None
) -> tuple[Token, ...]:
    """The tokens of `choices[].logprobs.content`, of a whole response or of one chunk of a stream.

    With `banned`, the text of a token that could not be drawn, all figures are on condition of that:
    p(token | not banned) = p(token) / (1 - p(banned)). The engine's logprobs are from before the ban. A chunk
    may carry any number of tokens. Raises `LogprobsMalformed`.
    """
    try:
        return tuple(_token(entry, vocab_size, banned) for entry in content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise LogprobsMalformed("malformed", f"{type(error).__name__}: {error}") from error


def _token(entry: Mapping[str, Any], vocab_size: int, banned: str | None) -> Token:
    text, own = entry["token"], float(entry["logprob"])
    if not isinstance(text, str) or isnan(own):
        raise ValueError("a token without text or logprob")
    alternatives = entry.get("top_logprobs") or ()
    logprobs: list[float] = [one["logprob"] for one in alternatives]
    if banned is not None and text != banned:
        excluded = sum(exp(one["logprob"]) for one in alternatives if one.get("token") == banned)
        left = log1p(-min(excluded, MOST_EXCLUDED))
        own = min(0.0, own - left)
        logprobs = [min(0.0, one["logprob"] - left) for one in alternatives if one.get("token") != banned]
    top = len(logprobs)
    least = min(logprobs, default=inf)
    if own < least:
        logprobs.append(own)
    elif own == least:
        # vLLM puts the sampled token first and then cuts the list: a sampled token that is the least of the
        # list may stand in for the true rank k. It is taken for an addition, so that the bounds hold either
        # way.
        top -= 1
    return Token(text, own, estimate(logprobs, vocab_size, top=top), margin(logprobs))
