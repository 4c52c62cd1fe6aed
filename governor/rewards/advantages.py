"""From rewards to what a trainer multiplies its tokens with."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, fsum, sqrt

EPSILON = 1e-4
"""Added to a standard deviation, as TRL does."""

Step = float | None
"""The reward of a step; None where it is not to be judged."""


def normalised(rewards: Sequence[float], *, scaled: bool = True) -> list[float]:
    """The group-relative advantages of GRPO (arXiv 2402.03300): (r - mean) / (std + eps), std with n - 1 as
    in TRL and verl; `scaled` False leaves out the division (Dr. GRPO, arXiv 2503.20783). A single reward has
    nothing to be compared with: 0.

    >>> normalised([1.0, 0.0], scaled=False)
    [0.5, -0.5]
    """
    return [0.0 if value is None else value for value in _centred(rewards, scaled)]


def pooled_advantages(
    steps: Sequence[Sequence[Step]], *, scaled: bool = True, centred: bool = True
) -> list[list[float]]:
    """The advantage of every step of a group of rollouts, normalised over all steps of the group together.

    Never for each turn index by itself: the policy decides how many turns there are, and a mean for each
    index would pay it for one more turn by the mean reward that is subtracted there (verl, RFC 7244). The
    place of a step has no influence. A step that is not to be judged gets 0. `centred` False only divides by
    the standard deviation, so that the sign of a reward stays: right for measures in which 0 means something.

    >>> pooled_advantages([[1.0, None], [], [0.0]], scaled=False)
    [[0.5, 0.0], [], [-0.5]]
    """
    flat = [step for rollout in steps for step in rollout]
    advantages = iter(_centred(flat, scaled, centred))
    return [[value if (value := next(advantages)) is not None else 0.0 for _ in rollout] for rollout in steps]


def returns_to_go(rewards: Sequence[float], discount: float = 1.0) -> list[float]:
    """For each step its reward and, discounted, all that come behind it.

    >>> returns_to_go([1.0, 0.0, 2.0], 0.5)
    [1.5, 1.0, 2.0]
    """
    found: list[float] = []
    for reward in reversed(rewards):
        found.append(reward + discount * (found[-1] if found else 0.0))
    return found[::-1]


def token_advantages(
    spans: Sequence[tuple[int, int]], call_advantages: Sequence[float], outcome: float, length: int
) -> list[float]:
    """The advantage of each of `length` tokens: the outcome's, and in [start, stop) of `spans[k]` that of
    call k on top. A call's span is that of the turn that proposed it, reasoning included: "tool-level
    advantages" are propagated to what led to the call. Calls of one turn have the same span, and add up.

    Raises ValueError on a span outside of the tokens.

    >>> token_advantages([(1, 3)], [0.5], 1.0, 4)
    [1.0, 1.5, 1.5, 1.0]
    """
    found = [outcome] * length
    for (start, stop), advantage in zip(spans, call_advantages, strict=True):
        if not 0 <= start <= stop <= length:
            raise ValueError(f"span [{start}, {stop}) of {length} tokens")
        for place in range(start, stop):
            found[place] += advantage
    return found


def imitation_weights(advantages: Sequence[float], *, temperature: float, most: float = 20.0) -> list[float]:
    """exp(advantage / temperature), at most `most`: advantage-weighted regression (arXiv 1910.00177). The
    clip keeps one lucky conversation from being the whole batch.

    >>> imitation_weights([0.0, 100.0], temperature=1.0)
    [1.0, 20.0]
    """
    if temperature <= 0:
        raise ValueError(f"a temperature is above 0: {temperature}")
    # The exponent is cut before exp, which overflows beyond 709.
    return [min(most, exp(min(advantage / temperature, 700.0))) for advantage in advantages]


def _centred(rewards: Sequence[Step], scaled: bool, centred: bool = True) -> list[Step]:
    known = [reward for reward in rewards if reward is not None]
    if len(known) < 2:
        return [None] * len(rewards)
    mean = fsum(known) / len(known)
    deviation = sqrt(fsum((reward - mean) ** 2 for reward in known) / (len(known) - 1))
    scale = deviation + EPSILON if scaled else 1.0
    base = mean if centred else 0.0
    return [None if reward is None else (reward - base) / scale for reward in rewards]
