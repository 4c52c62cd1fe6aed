"""A certificate lapses when its traffic is gone, and not by chance however often one looks."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.certificate import Certificate
from governor.crossings import ScoredCall
from governor.drift import ALPHA, calibration_error, lapse, stability_index, wealth
from governor.gate import Gate, Reference, SignalWeight, ToolWeights
from governor.probe import ProbeAnswer
from governor.records import CallRecord

MAX_HARM = 0.02
DECILES = tuple(place / 10 for place in range(1, 10))
GATE = Gate(
    model="small",
    version=1,
    created=1000.0,
    attempt=1,
    signals=(SignalWeight("probe_max_entropy", "identity", 0.0, 1.0, 1.0),),
    intercept=0.0,
    tools={"lookup": ToolWeights("s1", 100)},
    knots=((0.0, 0.0), (1.0, 1.0)),
    horizon=4,
    rules="",
    certificate=Certificate(0.1, 400, 2, 0, 300, 0.018, MAX_HARM, 0.95, 1),
    reference=Reference({"probe_max_entropy": DECILES}, 0.02),
)
BEFORE = ProbeAnswer("a", True, 0.1, 0.2, 0.9, -0.1, 3, 100)
SAME = ProbeAnswer("a", True, 0.05, 0.1, 0.95, -0.1, 3, 120)
OTHER = ProbeAnswer("b", True, 0.05, 0.1, 0.95, -0.1, 3, 120)


def record(
    number: int,
    p_useful: float,
    useful: bool | None,
    *,
    arm: str = "holdout",
    explored: bool = False,
    step: int = 0,
    created: float = 2000.0,
) -> CallRecord:
    """A call whose P(useful) at the gate is `p_useful`; `useful` None: no label."""
    return CallRecord(
        f"{number}-{step}",
        f"c{number}",
        "lookup",
        "lookup({})",
        step,
        {},
        created + number,
        probe_before=BEFORE,
        probe_after=None if useful is None else OTHER if useful else SAME,
        model="small",
        schema="s1",
        effect="read_only",
        arm=arm,
        explored=explored,
        signals={"probe_max_entropy": p_useful},
    )


def calibrated(count: int, seed: int = 1) -> list[CallRecord]:
    """Traffic as when the gate was made: P(useful) uniform, and true; below 0.1 nothing useful."""
    lots = random.Random(seed)
    values = [lots.random() for _ in range(count)]
    return [record(place, p, p > 0.1 and lots.random() < p) for place, p in enumerate(values)]


def test_the_usual_is_no_drift() -> None:
    """Much of it, with all three signs looked for."""
    assert lapse(GATE, calibrated(1500)) is None
    assert lapse(GATE, []) is None


@pytest.mark.parametrize("arm", ["holdout", "governed"])
def test_harm_that_was_let_through_ends_it(arm: str) -> None:
    """Seen in the holdout or by exploration."""
    harmful = [
        record(place, 0.05, place % 4 == 0, arm=arm, explored=arm == "governed") for place in range(60)
    ]
    reason = lapse(GATE, harmful)
    assert reason is not None
    assert "15 changed the answer" in reason


def test_only_first_crossings_are_counted_as_harm() -> None:
    """Later ones belong to conversations that went another way, useful calls above the threshold are no harm,
    and what was withheld has no label."""
    later = [
        call
        for place in range(60)
        for call in (record(place, 0.05, False), record(place, 0.05, True, step=1))
    ]
    above = [record(place, 0.5, place % 2 == 0) for place in range(60)]
    withheld = [record(place, 0.05, None, arm="governed") for place in range(60)]
    assert lapse(GATE, later) is None
    assert lapse(GATE, above) is None
    assert lapse(GATE, withheld) is None


def test_what_was_before_the_gate_is_past() -> None:
    """And what is another model's is not its own."""
    assert lapse(GATE, [record(place, 0.05, True, created=0.0) for place in range(60)]) is None


@pytest.mark.parametrize("rate", [0.0, 0.01, MAX_HARM])
def test_harm_within_bounds_rarely_ends_it_however_often_one_looks(rate: float) -> None:
    """At every single crossing of 400 deployments; 0.4 are expected at most, four or more have probability
    0.001."""
    lapsed = 0
    for seed in range(400):
        lots = random.Random(seed)
        harms = [lots.random() < rate for _ in range(400)]
        # The wealth rises only with a harmful crossing.
        looks = [place + 1 for place, harm in enumerate(harms) if harm]
        lapsed += any(wealth(harms[:look], MAX_HARM) >= 1 / ALPHA for look in looks)
    assert lapsed <= 3


@pytest.mark.parametrize("good", [0, 300, 3000])
def test_a_long_good_time_does_not_hide_a_bad_one(good: int) -> None:
    """Half harmful: a dozen or two of crossings are enough, whatever was before."""
    assert wealth([False] * good + [True, False] * 10, MAX_HARM) >= 1 / ALPHA
    assert wealth([False] * good, MAX_HARM) <= 1


@given(st.lists(st.booleans(), max_size=60), st.floats(0.001, 0.9))
def test_wealth_is_a_fair_game_at_worst(harms: list[bool], max_harm: float) -> None:
    """Whatever came before: on average over the next crossing, at the allowed rate, it does not grow."""
    now = wealth(harms, max_harm)
    then = max_harm * wealth([*harms, True], max_harm) + (1 - max_harm) * wealth([*harms, False], max_harm)
    assert then == pytest.approx(now, rel=1e-9)


def test_probabilities_gone_wrong_end_it() -> None:
    """Calls of 30 to 60 percent that are all useful."""
    wrong = [record(place, 0.3 + 0.3 * (place % 100) / 100, True) for place in range(300)]
    reason = lapse(GATE, wrong)
    assert reason is not None
    assert "P(useful) was off" in reason
    assert lapse(GATE, wrong[:150]) is None


def test_a_shifted_signal_ends_it() -> None:
    """Without any label; not with few calls, and not for a signal without ten deciles."""
    shifted = [record(place, 0.5 + 0.4 * (place % 100) / 100, None, arm="governed") for place in range(300)]
    reason = lapse(GATE, shifted)
    assert reason is not None
    assert "probe_max_entropy" in reason
    assert lapse(GATE, shifted[:150]) is None


@pytest.mark.parametrize(("moved", "index"), [(0.0, 0.0), (0.3, 1.0)])
def test_the_stability_index_tells_a_move(moved: float, index: float) -> None:
    """Nothing where nothing moved."""
    values = [place / 1000 + moved for place in range(1000)]
    assert (stability_index(DECILES, values) < 0.001) == (index == 0)
    assert stability_index(DECILES, values) >= index


def test_the_calibration_error_by_hand() -> None:
    """Four bins of it right and one off by a half."""
    pairs: Sequence[tuple[float, bool]] = [(0.0, False)] * 8 + [(0.5, True)] * 2
    scored = [ScoredCall(record(place, p, useful), p) for place, (p, useful) in enumerate(pairs)]
    assert calibration_error(scored) == pytest.approx(0.1)
    assert calibration_error([]) == 0
