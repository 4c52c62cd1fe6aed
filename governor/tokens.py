"""Generated tokens, each with the entropy of the distribution it was drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from governor.entropy import EntropyEstimate


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. `logprob` is its own, `entropy` and `margin` are of the distribution it was
    drawn from."""

    text: str
    logprob: float
    entropy: EntropyEstimate
    margin: float


def tokens_from_logprobs(content: Sequence[Mapping[str, Any]], vocab_size: int) -> tuple[Token, ...]:
    """The tokens of `choices[].logprobs.content` (of a whole response, or of one chunk of a stream).

    Raises `LogprobsMalformed`.
    """
    raise NotImplementedError
