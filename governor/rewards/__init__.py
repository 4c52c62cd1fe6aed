"""The rewards that fine-tune a policy, from the same numbers that the proxy measures and decides by.

Values in, values out. Metrics, evaluation, offline and online training all compute them here; what needs
tensors converts at its edge.
"""

from governor.rewards.advantages import (
    imitation_weights,
    normalised,
    pooled_advantages,
    returns_to_go,
    token_advantages,
)
from governor.rewards.baselines import eapo_rewards, otc_reward, otc_rewards
from governor.rewards.entropy_rewards import dense_rewards, dense_total, sparse_reward
from governor.rewards.judgement import CallTurn, judged
from governor.rewards.segments import MeasuredBy, SpanChoice, Statistic, call_turns, copied, segment_entropy
from governor.rewards.settings import PAPER, Against, Measure, OverCalls, RewardSettings, Unknown

__all__ = [
    "PAPER",
    "Against",
    "CallTurn",
    "Measure",
    "MeasuredBy",
    "OverCalls",
    "RewardSettings",
    "SpanChoice",
    "Statistic",
    "Unknown",
    "call_turns",
    "copied",
    "dense_rewards",
    "dense_total",
    "eapo_rewards",
    "imitation_weights",
    "judged",
    "normalised",
    "otc_reward",
    "otc_rewards",
    "pooled_advantages",
    "returns_to_go",
    "segment_entropy",
    "sparse_reward",
    "token_advantages",
]
