"""The simulated deployments, in small: the certificate keeps its word, and the simulation simulates the
product."""

from __future__ import annotations

import pytest

pytest.importorskip("sklearn")
import numpy as np

from benchmarks.certificate import MAX_HARM, TOOLS, WORLDS, calls_of, figures, live, scores
from governor.gate import CallFacts
from governor_calibration.fit import fit
from tests.calibration.traffic import traffic

BY_NAME = {world.name: world for world in WORLDS}


@pytest.mark.slow
def test_certificates_keep_their_word() -> None:
    """The true rate of harm of every gate that was certified in a few deployments is within what is
    allowed."""
    lives = [live(BY_NAME["informative"], (1, 0, number)) for number in range(2)]
    assert all(life.true_harm for life in lives)
    assert figures("informative", lives).broken == 0
    assert sum(life.removed for life in lives) > 0.1 * sum(life.avoidable for life in lives)


@pytest.mark.slow
def test_useless_signals_withhold_nothing() -> None:
    """In the whole life of the deployment, but for what a rule finds."""
    life = live(BY_NAME["useless"], (1, 1, 0))
    assert life.judged == 0


@pytest.mark.slow
def test_a_flip_is_noticed() -> None:
    """The deployment stops to withhold some time after signs turned, and says why."""
    life = live(BY_NAME["flipping"], (1, 2, 3))
    assert life.lapses


def test_the_simulation_scores_as_the_gate_does() -> None:
    """The same scores for all calls at once as one by one."""
    gate = fit(traffic(1200, strength=4.0, tools=TOOLS), model="small", max_harm=MAX_HARM)
    calls = calls_of(BY_NAME["informative"], 0.0, 50, np.random.default_rng(1))
    one_by_one = [
        gate.score(
            CallFacts(
                tool=TOOLS[calls.tool[place]],
                schema="s1",
                model="small",
                read_only=True,
                step=int(calls.step[place]),
                answered=True,
                signals={name: float(values[place]) for name, values in calls.signals.items()},
            )
        )
        for place in range(len(calls.tool))
    ]
    assert scores(gate, calls).tolist() == pytest.approx(one_by_one)


def test_the_deployments_are_the_same_again() -> None:
    """By their seed."""
    one, other = (calls_of(BY_NAME["weak"], 0.2, 20, np.random.default_rng([1, 2])) for _ in range(2))
    assert one.useful.tolist() == other.useful.tolist()
