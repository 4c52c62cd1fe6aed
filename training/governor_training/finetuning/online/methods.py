"""What a group of rollouts is rewarded for, by name.

A method gives each rollout of a group a reward, from the outcomes of all; the trainer normalises these over
the group. A dense one gives each call a reward of its own besides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from governor.rewards import (
    CallTurn,
    RewardSettings,
    dense_rewards,
    eapo_rewards,
    normalised,
    otc_rewards,
    pooled_advantages,
    sparse_reward,
)
from governor_training.dataset import DatasetError, attribute
from governor_training.errors import UsageError


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one rollout came to: its score in [0, 1], its calls of read-only tools with what was measured
    around them, and whether it ended by itself and made no malformed call."""

    score: float
    calls: tuple[CallTurn, ...] = ()
    well_formed: bool = True


Shaping = Callable[[Sequence[Outcome], RewardSettings], list[float]]
"""From the outcomes of a group to their rewards."""


@dataclass(frozen=True, slots=True)
class Method:
    """`shaping` rewards whole rollouts; `per_call` adds the dense rewards of their calls.

    `entropies`: whether it needs them. `tool_free` is how many rollouts of each group are played without
    tools.
    """

    name: str
    shaping: Shaping
    per_call: bool = False
    entropies: bool = False
    tool_free: int = 0

    def rewards(self, group: Sequence[Outcome], settings: RewardSettings) -> list[float]:
        return self.shaping(group, settings)

    def call_advantages(self, group: Sequence[Outcome], settings: RewardSettings) -> list[list[float]]:
        """For each rollout the advantage of each of its calls, normalised over all calls of the group; 0 for
        a method that rewards outcomes only."""
        if not self.per_call:
            return [[0.0] * len(outcome.calls) for outcome in group]
        return pooled_advantages([dense_rewards(one.score, one.calls, settings) for one in group])


@dataclass(frozen=True, slots=True)
class Judged:
    """One rollout among its group: its reward, the advantage that all its tokens share, and those of its
    calls."""

    reward: float
    advantage: float
    calls: tuple[float, ...]


def judge(
    outcomes: Sequence[Outcome], size: int, method: Method, settings: RewardSettings, *, scaled: bool = True
) -> list[Judged]:
    """`outcomes` are groups of `size`, one after the other. Raises ValueError on a part of a group."""
    if len(outcomes) % size:
        raise ValueError(f"{len(outcomes)} rollouts are no groups of {size}")
    found = []
    for start in range(0, len(outcomes), size):
        group = outcomes[start : start + size]
        rewards = method.rewards(group, settings)
        advantages = normalised(rewards, scaled=scaled)
        of_calls = method.call_advantages(group, settings)
        found += [Judged(*one) for one in zip(rewards, advantages, map(tuple, of_calls), strict=True)]
    return found


def _accuracy(group: Sequence[Outcome], settings: RewardSettings) -> list[float]:
    return [one.score for one in group]


def _sparse(group: Sequence[Outcome], settings: RewardSettings) -> list[float]:
    return [sparse_reward(one.score, one.calls, settings) for one in group]


def _otc(group: Sequence[Outcome], settings: RewardSettings) -> list[float]:
    return otc_rewards([one.score for one in group], [len(one.calls) for one in group])


def _eapo(group: Sequence[Outcome], settings: RewardSettings) -> list[float]:
    return eapo_rewards(
        [one.score for one in group],
        [len(one.calls) for one in group],
        well_formed=[one.well_formed for one in group],
    )


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("sparse", _sparse, entropies=True),
        Method("dense", _accuracy, per_call=True, entropies=True),
        Method("accuracy", _accuracy),
        Method("otc", _otc),
        Method("eapo", _eapo, tool_free=1),
    )
}
"""The two of arXiv 2602.02050; then plain GRPO, OTC-GRPO (arXiv 2504.14870) and EAPO (arXiv 2606.02132)."""


def method(name: str) -> Method:
    """One of `METHODS`, or a `Shaping` at `module:function` or `file.py:function`. Raises `UsageError`."""
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        raise UsageError(f"no reward {name!r}: use one of {', '.join(METHODS)}, or module:function")
    try:
        return Method(name.rpartition(":")[2], attribute(name), entropies=True)
    except DatasetError as error:
        raise UsageError(str(error)) from None
