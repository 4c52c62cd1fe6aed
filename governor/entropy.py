"""Token entropy from the top of a distribution, in nats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EntropyEstimate:
    """Token entropy in nats, known to lie in [lower, upper]; `tail` is the probability mass that was not
    seen."""

    lower: float
    value: float
    upper: float
    tail: float


def estimate(logprobs: Sequence[float], vocab_size: int, *, top: int | None = None) -> EntropyEstimate:
    """Entropy of a distribution over `vocab_size` tokens, of which `logprobs` are known (any order).

    The `top` largest (default: all of them) are the most probable tokens of the distribution.
    """
    raise NotImplementedError


def margin(logprobs: Sequence[float]) -> float:
    """p(first) - p(second), in [0, 1]."""
    raise NotImplementedError
