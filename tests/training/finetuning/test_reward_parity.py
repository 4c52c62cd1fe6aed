"""The reward core computes with lists of floats; numpy and torch, at a trainer's edge, must find the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from governor.entropy import estimate
from governor.rewards import (
    CallTurn,
    RewardSettings,
    dense_rewards,
    imitation_weights,
    normalised,
    pooled_advantages,
    returns_to_go,
    sparse_reward,
    token_advantages,
)
from governor.rewards.advantages import EPSILON

floats = st.floats(-10.0, 10.0)
groups = st.lists(st.lists(floats, min_size=4, max_size=4), min_size=1, max_size=5)


@given(groups)
def test_group_advantages_are_trls(rewards: list[list[float]]) -> None:
    """As `GRPOTrainer` computes them from a flat tensor, and as numpy does."""
    flat = torch.tensor(rewards, dtype=torch.float64)
    mean, deviation = flat.mean(1, keepdim=True), flat.std(1, keepdim=True)
    by_torch = ((flat - mean) / (deviation + EPSILON)).tolist()
    array = np.asarray(rewards)
    by_numpy = (array - array.mean(1, keepdims=True)) / (array.std(1, ddof=1, keepdims=True) + EPSILON)
    for own, torched, numpied in zip(rewards, by_torch, by_numpy, strict=True):
        assert normalised(own) == pytest.approx(torched, abs=1e-6)
        assert normalised(own) == pytest.approx(numpied, abs=1e-6)


@given(st.lists(st.lists(floats, max_size=4), min_size=1, max_size=4))
def test_pooled_advantages_are_those_of_the_masked_batch(steps: list[list[float]]) -> None:
    """A trainer pads steps to a rectangle; the mean and the deviation are over what is no padding."""
    width = max(map(len, steps)) or 1
    padded = torch.zeros(len(steps), width, dtype=torch.float64)
    mask = torch.zeros(len(steps), width, dtype=torch.bool)
    for row, own in enumerate(steps):
        padded[row, : len(own)], mask[row, : len(own)] = torch.tensor(own, dtype=torch.float64), True
    values = padded[mask]
    if len(values) > 1:
        padded = (padded - values.mean()) / (values.std() + EPSILON)
    else:
        padded = torch.zeros_like(padded)
    for row, own in enumerate(pooled_advantages(steps)):
        assert own == pytest.approx(padded[row][mask[row]].tolist(), abs=1e-6)


@given(st.lists(floats, max_size=8), st.floats(0.0, 1.0))
def test_returns_to_go_are_a_reversed_discounted_sum(rewards: list[float], discount: float) -> None:
    """By the matrix of discounts."""
    count = len(rewards)
    places = torch.arange(count)
    powers = (places[None, :] - places[:, None]).double()
    matrix = torch.where(powers >= 0, discount ** powers.clamp(min=0), 0.0)
    expected = (matrix @ torch.tensor(rewards, dtype=torch.float64)).tolist() if count else []
    assert returns_to_go(rewards, discount) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.floats(-50.0, 50.0), min_size=1, max_size=8), st.floats(0.05, 5.0))
def test_imitation_weights_are_a_clipped_exponential(advantages: list[float], temperature: float) -> None:
    """As torch has it."""
    scaled = torch.tensor(advantages, dtype=torch.float64) / temperature
    expected = scaled.exp().clamp(max=20.0).tolist()
    assert imitation_weights(advantages, temperature=temperature) == pytest.approx(expected, rel=1e-9)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), floats), max_size=4), floats)
def test_token_advantages_are_a_sum_over_spans(calls: list[tuple[int, int, float]], outcome: float) -> None:
    """On a tensor, span by span."""
    spans = [(min(a, b), max(a, b)) for a, b, _ in calls]
    expected = torch.full((5,), outcome, dtype=torch.float64)
    for (start, stop), (_, _, advantage) in zip(spans, calls, strict=True):
        expected[start:stop] += advantage
    found = token_advantages(spans, [advantage for _, _, advantage in calls], outcome, 5)
    assert found == pytest.approx(expected.tolist())


@given(st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.0, 3.0)), min_size=1, max_size=6), st.floats(0, 1))
def test_sparse_and_dense_rewards_are_those_of_arrays(
    around: Sequence[tuple[float, float]], score: float
) -> None:
    """With the default conventions, on the arrays that a trainer has of a batch."""
    settings = RewardSettings()
    before, after = np.asarray(around).T
    reduction = np.minimum.accumulate(before) - after
    informative = (reduction > settings.dead_zone).astype(float)
    calls = [CallTurn(b, a) for b, a in around]
    assert sparse_reward(score, calls, settings) == pytest.approx(score * informative.mean())
    assert dense_rewards(score, calls, settings) == pytest.approx(score * (1 + settings.alpha * informative))


@settings(deadline=None)
@given(st.lists(st.floats(-8.0, 8.0), min_size=2, max_size=50))
def test_the_entropy_of_a_whole_distribution_is_torchs(logits: list[float]) -> None:
    """The governor's estimate from all logprobs, and a tensor's."""
    distribution = torch.distributions.Categorical(logits=torch.tensor(logits, dtype=torch.float64))
    found = estimate(distribution.logits.tolist(), len(logits))
    expected = -(distribution.probs * distribution.logits).sum()
    assert found.value == pytest.approx(expected.item(), abs=1e-9)
