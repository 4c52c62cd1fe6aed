"""Token entropy from the top of a distribution, in nats.

An engine reports the k largest log-probabilities of a vocabulary of V. Let p_1 >= ... >= p_k be their
probabilities, eps = 1 - sum(p_i) the mass of the tail and H_k = -sum(p_i ln p_i). The truncated sum H_k
alone is no measure of uncertainty: it *falls* when a flat distribution pushes mass into the tail. Two
bounds always hold:

- upper: the tail is flat, H <= H_k + eps ln((V - k) / eps);
- lower: the tail is as concentrated as p_k allows. No tail token exceeds p_k, so the extreme case has m =
  floor(eps / p_k) tokens of p_k and one with the rest, rho = eps - m p_k: H >= H_k - m p_k ln p_k - rho ln
  rho.

Both are attained by a distribution with this top, so neither can be improved without an assumption. The
point value is the mean of two, since distributions of language models are of both kinds:

- a power law that never ends, q(r) = p_k (r / k)^-s for ranks k < r <= V, with the s that gives the tail the
  mass eps; right where the candidates thin out evenly;
- a power law with the slope of the ranks k/2 to k, which ends where the mass eps is used up; right where the
  candidates are a class of things (countries, years) and nothing else is likely. Where eps is more than it
  can hold, it is the first one.

`benchmarks/entropy_tails.py` prints how far each is off over several families of distributions. Sums over
ranks are integrals from k + 1/2 to V + 1/2 (midpoint rule), so that the cost does not depend on V.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import exp, expm1, floor, fsum, inf, log, log1p
from operator import mul
from typing import Final, NamedTuple

MASKED: Final = -9999.0
"""What an engine that cannot write -inf in JSON sends for a token that a grammar or a ban excluded."""

_TOLERANCE: Final = 1e-9
_ROUNDING: Final = 1e-2
_NEGLIGIBLE: Final = 1e-15


class EntropyEstimate(NamedTuple):
    """Token entropy in nats, known to lie in [lower, upper]; `tail` is the probability mass that was not
    seen.

    Where the whole distribution was seen, the three are equal and `tail` is 0.
    """

    lower: float
    value: float
    upper: float
    tail: float


def estimate(logprobs: Sequence[float], vocab_size: int, *, top: int | None = None) -> EntropyEstimate:
    """Entropy of a distribution over `vocab_size` tokens of which `logprobs` (natural, any order) are known.

    The `top` largest of them (default: all) are the most probable tokens of the whole distribution. An
    engine may add the sampled token to them; that entry is a known probability like the others, but bounds
    nothing in the tail. -inf and `MASKED` are probability 0.

    >>> estimate([log(0.5), log(0.25), log(0.125)], vocab_size=4)
    EntropyEstimate(lower=1.213..., value=1.213..., upper=1.213..., tail=0.125)

    Raises ValueError on no logprobs, NaN, or a logprob above 0 by more than rounding.
    """
    known = sorted(logprobs, reverse=True)
    if not known:
        raise ValueError("no logprobs")
    if known[-1] == -inf:
        known = [max(x, MASKED) for x in known]
    probabilities = list(map(exp, known))
    # With p_1 near 1, expm1 keeps the digits of 1 - p_1 that 1 - exp would round away.
    missing = -expm1(known[0]) - fsum(probabilities[1:])
    if not -_ROUNDING * len(known) < missing <= 1.0:
        raise ValueError("logprobs are not those of a distribution")
    seen = max(0.0, -fsum(map(mul, probabilities, known)))
    unseen = vocab_size - len(known)
    ranks = len(known) if top is None else min(top, len(known))
    cap = probabilities[ranks - 1] if ranks > 0 else missing
    # No tail can hold more than `unseen` tokens at the cap; what exceeds that is rounding in the engine.
    tail = min(missing, unseen * cap)
    if unseen <= 0 or tail <= _NEGLIGIBLE:
        return EntropyEstimate(seen, seen, seen, 0.0)
    cap = min(cap, tail)
    upper = seen + tail * log(unseen / tail)
    lower = min(seen + _concentrated(tail, cap), upper)
    ranks = max(ranks, 1)
    endless = power_law(tail, cap, ranks, vocab_size)
    value = seen + (endless + ending_law(tail, known[:ranks], endless, vocab_size)) / 2
    return EntropyEstimate(lower, min(max(value, lower), upper), upper, tail)


def margin(logprobs: Sequence[float]) -> float:
    """p(most probable) - p(second), in [0, 1].

    With one logprob the second is taken to be as probable as it can be, so that the margin is never
    overstated.
    Raises ValueError on no logprobs.
    """
    if not logprobs:
        raise ValueError("no logprobs")
    ranked = sorted(logprobs, reverse=True)
    p = min(1.0, exp(ranked[0]))
    return p - (exp(ranked[1]) if len(ranked) > 1 else min(p, 1.0 - p))


def _concentrated(tail: float, cap: float) -> float:
    """Least entropy that the mass `tail` can have in tokens of at most `cap` each."""
    full = floor(tail / cap)
    rest = tail - full * cap
    return -full * cap * log(cap) - (rest * log(rest) if rest > 0.0 else 0.0)


def power_law(tail: float, cap: float, rank: int, vocab_size: int) -> float:
    """Entropy in nats of q(r) = cap (r / rank)^-s, r > rank, with the s for which q sums to `tail`.

    In u = ln(r / rank) and t = 1 - s the mass is cap * rank * G(t), where G(t) is the integral of exp(t u)
    over [near, near + width]. ln G is convex with the mean of u under q for its slope, so that Newton's
    method passes the root at most once, and then comes down to it.

    It starts where an infinite vocabulary has its root, -t exp(-t near) = 1 / G: that is Lambert's W, here in
    Winitzki's form, which is off by 2% at most.
    """
    near, width = _limits(rank, vocab_size)
    mass = tail / (cap * rank)
    goal = log(mass)
    shape = log1p(near / mass)
    t = shape * (log1p(shape) / (2.0 + shape) - 1.0) / near
    log_mass, mean = _exponential_integral(t, near, width)
    while abs(step := (log_mass - goal) / mean) > _TOLERANCE:
        t -= step
        log_mass, mean = _exponential_integral(t, near, width)
    return tail * ((1.0 - t) * mean - log(cap))


def ending_law(tail: float, top: Sequence[float], endless: float, vocab_size: int) -> float:
    """Entropy in nats of the law with the slope of the lower half of `top`, ended where it sums to `tail`.

    `top` are the logprobs of the most probable tokens, in order; `endless` is the answer where the law would
    need more than `vocab_size` tokens.
    """
    rank = len(top)
    middle = max(1, rank // 2)
    if rank == middle or top[-1] <= log(_NEGLIGIBLE):
        return endless
    slope = (top[middle - 1] - top[-1]) / log(rank / middle)
    t = 1.0 - slope
    near, most = _limits(rank, vocab_size)
    cap = min(exp(top[-1]), tail)
    mass = tail / (cap * rank)
    # The integral of exp(t u) from `near` on reaches `mass` at the width asked for here, if it ever does.
    reached = mass * t * exp(-t * near)
    if reached <= -1.0:
        return endless
    width = mass * exp(-t * near) if abs(t) < 1e-9 else log1p(reached) / t
    if width >= most:
        return endless
    _, mean = _exponential_integral(t, near, width)
    return tail * (slope * mean - log(cap))


@lru_cache(maxsize=64)
def _limits(rank: int, vocab_size: int) -> tuple[float, float]:
    """Where the tail behind `rank` begins in u = ln(r / rank), and how far it reaches."""
    return log((rank + 0.5) / rank), log((vocab_size + 0.5) / (rank + 0.5))


def _exponential_integral(t: float, near: float, width: float) -> tuple[float, float]:
    """ln of the integral of exp(t u) over [near, near + width], and the mean of u under that density."""
    x = t * width
    if abs(x) < 1e-5:
        return t * near + log(width) + x / 2, near + width * (0.5 + x / 12)
    growth = expm1(x)
    return t * near + log(growth / x) + log(width), near + width * ((growth + 1.0) / growth - 1.0 / x)
