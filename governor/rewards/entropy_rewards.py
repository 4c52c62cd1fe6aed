"""The two rewards of arXiv 2602.02050, "Rethinking the Role of Entropy in Optimizing Tool-Use Behaviors for
LLM Agents".

With m informative calls of n, I_k = 1 for an informative one, and the score of the final answer (F1, or right
or wrong):

- sparse, one figure for the conversation: score * m / n, or less of it at stake;
- dense, one for each call: score * (1 + alpha * I_k).

Both are gated by the score: a wrong answer earns nothing by good calls. Under the defaults no conversation
earns more by its calls than the same score without any (sparse), and repeating a kind of call earns nothing
(dense, mean). What remains: a first segment that rambles makes one call look informative, and one between
two calls lets the second share in what the first brought. The measure GAIN closes both.
"""

from __future__ import annotations

from collections.abc import Sequence

from governor.rewards.judgement import CallTurn, judged
from governor.rewards.settings import OverCalls, RewardSettings


def sparse_reward(score: float, calls: Sequence[CallTurn], settings: RewardSettings) -> float:
    """score * (1 - stake * (1 - m / n)), in [0, score]; the stake is 1 in the paper. Without calls score *
    `no_calls`; the score itself where none of the calls is to be judged.

    Raises ValueError on a score outside of [0, 1].

    >>> sparse_reward(1.0, [CallTurn(1.0, 0.2), CallTurn(0.2, 0.2)], RewardSettings())
    0.5
    """
    _check(score)
    if not calls:
        return score * settings.no_calls
    known = [value for value in judged(calls, settings) if value is not None]
    share = sum(known) / len(known) if known else 1.0
    return score * (1 - settings.stake * (1 - share))


def dense_rewards(score: float, calls: Sequence[CallTurn], settings: RewardSettings) -> list[float | None]:
    """score * (1 + alpha * I_k) for each call; None for one that is not to be judged.

    Raises ValueError on a score outside of [0, 1].

    >>> dense_rewards(1.0, [CallTurn(1.0, 0.2), CallTurn(0.2, 0.2)], RewardSettings(alpha=0.5))
    [1.5, 1.0]
    """
    _check(score)
    return [
        None if value is None else score * (1 + settings.alpha * value) for value in judged(calls, settings)
    ]


def dense_total(score: float, calls: Sequence[CallTurn], settings: RewardSettings) -> float:
    """The dense rewards of a conversation as one figure: their mean or sum; the score where there is none."""
    rewards = [reward for reward in dense_rewards(score, calls, settings) if reward is not None]
    if not rewards:
        return score
    return sum(rewards) / (len(rewards) if settings.over_calls is OverCalls.MEAN else 1)


def _check(score: float) -> None:
    if not 0.0 <= score <= 1.0:
        raise ValueError(f"a score is from 0 to 1: {score}")
