"""Token entropy from top-k logprobs against the exact one, on a real vLLM."""

from __future__ import annotations

from benchmarks.entropy_bounds import measure
from governor_server.engine import Engine


def test_the_exact_entropy_lies_within_the_bounds(engine: Engine) -> None:
    """For every token of 50 generations, from 5 and from 20 logprobs; from 20 the point value is close
    too."""
    five, twenty = measure(engine.url, "atlas", generations=50, seed=2026)
    assert (five.k, twenty.k) == (5, 20)
    assert five.tokens > 1000
    assert five.outside == twenty.outside == 0
    assert twenty.mean_error < 0.02
    assert twenty.mean_width < five.mean_width
