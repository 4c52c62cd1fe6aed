"""What others reward: the number of calls, without a look at what they brought.

A group is the rollouts of one question.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, exp, pi, sin

RIGHT = 0.999
"""The least score that counts as a right answer."""


def otc_reward(
    score: float, calls: int, fewest: int, *, weight: float = 1.0, smoothing: float = 1.0
) -> float:
    """weight * score * r_tool of OTC-GRPO (arXiv 2504.14870).

    With m calls, and n the `fewest` of a right rollout of the group: r_tool is 1 for m = n = 0,
    cos(m pi / (2m + c)) for n = 0, and else sin(f pi / 2n) with f = 2nm / (m + n), which is 1 at m = n and
    falls on both sides. `smoothing` is c; its value in the paper is not known to us.

    >>> [round(otc_reward(1.0, calls, 1), 3) for calls in (0, 1, 2, 4)]
    [0.0, 1.0, 0.866, 0.588]
    """
    if calls < 0 or fewest < 0:
        raise ValueError(f"a number of calls is not negative: {calls}, {fewest}")
    if fewest == 0:
        shape = cos(calls * pi / (2 * calls + smoothing)) if calls else 1.0
    else:
        shape = sin(calls / (calls + fewest) * pi)
    return weight * score * shape


def otc_rewards(
    scores: Sequence[float], calls: Sequence[int], *, weight: float = 1.0, smoothing: float = 1.0
) -> list[float]:
    """`otc_reward` for each rollout of a group. Where none is right, the fewest calls are taken as 0."""
    fewest = _fewest(scores, calls)
    return [
        otc_reward(score, made, fewest, weight=weight, smoothing=smoothing)
        for score, made in zip(scores, calls, strict=True)
    ]


def eapo_rewards(
    scores: Sequence[float],
    calls: Sequence[int],
    *,
    well_formed: Sequence[bool] | None = None,
    beta: float = 1.0,
) -> list[float]:
    """The shaped rewards of a group under EAPO (arXiv 2606.02132): (d + (1 - d) eps_i) R_i.

    d is the share of rollouts that are not right, so that nothing is shaped where the question is hard;
    eps_i = exp(-beta (c_i - c_min)), at most 1, with c_min the fewest calls of a right one (0 if none is);
    R_i is the score, or -1 for a rollout that is not `well_formed`. EAPO's forced tool-free rollouts and its
    weights of tokens are the trainer's matter.

    >>> [round(reward, 3) for reward in eapo_rewards([1.0, 1.0, 0.0, 0.0], [0, 1, 0, 2])]
    [1.0, 0.684, 0.0, 0.0]
    """
    formed = [True] * len(scores) if well_formed is None else well_formed
    fewest = _fewest(scores, calls)
    wrong = sum(score < RIGHT for score in scores) / max(1, len(scores))
    rewards = []
    for score, made, whole in zip(scores, calls, formed, strict=True):
        sparing = min(1.0, exp(-beta * (made - fewest)))
        rewards.append((wrong + (1 - wrong) * sparing) * (score if whole else -1.0))
    return rewards


def _fewest(scores: Sequence[float], calls: Sequence[int]) -> int:
    return min((made for score, made in zip(scores, calls, strict=True) if score >= RIGHT), default=0)
