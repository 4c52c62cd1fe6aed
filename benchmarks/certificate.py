"""Whether the certificate keeps its word: simulated deployments over their whole life.

Each deployment observes, fits a gate when there is enough to fit, enforces as far as it is certified, with a
holdout and exploration, watches for drift and refits as data grow; all of that by the product's own code. The
traffic is made up: conversations of one to six calls, of which those of one conversation are alike, and
signals that tell useful calls from others with a given strength (the distance between their means, in
standard deviations). Run: python benchmarks/certificate.py
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from governor.certificate import upper_bound
from governor.experiment import Arm, Experiment
from governor.gate import Gate, SignalWeight, rules_of
from governor.probe import ProbeAnswer
from governor.records import CallRecord
from governor.rules import RuleSettings
from governor.standing import Standing
from governor_calibration.renewal import renew

MAX_HARM: Final = 0.02
CONVERSATIONS: Final = 4000
LOOK: Final = 400
"""Conversations between two looks at whether to renew the gate."""

FRESH: Final = 10_000
"""Conversations on which the true rate of harm of a certified gate is measured."""

LONGEST: Final = 6
TOOLS: Final = ("search", "lookup", "fetch")
MODEL: Final = "simulated"
EXPERIMENT: Final = Experiment(holdout=0.05, exploration=0.05)

BEFORE: Final = ProbeAnswer("a", True, 0.1, 0.2, 0.9, -0.1, 3, 100)
SAME: Final = ProbeAnswer("a", True, 0.05, 0.1, 0.95, -0.1, 3, 120)
OTHER: Final = ProbeAnswer("b", True, 0.05, 0.1, 0.95, -0.1, 3, 120)

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
OverLife = Callable[[float], float]
"""A value by the time of life, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class World:
    """`strength` may be negative: then doubt is a sign of a useless call. `useful` is the share of useful
    calls. `flips` is the probability of a wrong label. `stationary` worlds are those that a certificate
    speaks of."""

    name: str
    strength: OverLife
    useful: OverLife = lambda life: 0.45
    flips: float = 0.0
    stationary: bool = True


WORLDS: Final = (
    World("informative", lambda life: 3.0),
    World("inverted", lambda life: -3.0),
    World("weak", lambda life: 1.0),
    World("useless", lambda life: 0.0),
    World("label noise", lambda life: 3.0, flips=0.005),
    World("harder", lambda life: 3.0, useful=lambda life: 0.3 + 0.4 * life, stationary=False),
    World("flipping", lambda life: 3.0 if life < 0.5 else -3.0, stationary=False),
)


@dataclass(frozen=True, slots=True)
class Calls:
    """The calls of some conversations, in order; all arrays have the same length. `signals` are by name."""

    conversation: NDArray[np.int64]
    step: NDArray[np.int64]
    tool: NDArray[np.int64]
    rule: Bools
    useful: Bools
    label: Bools
    signals: dict[str, Floats]


def calls_of(world: World, life: float, conversations: int, lots: np.random.Generator) -> Calls:
    """At a time of life from 0 to 1."""
    lengths = np.minimum(lots.geometric(0.45, conversations), LONGEST)
    of = np.repeat(np.arange(conversations), lengths)
    step = np.arange(len(of)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    share = world.useful(life)
    rule = (lots.random(len(of)) < 0.1) & (step > 0)
    # Calls of one conversation are alike: its own share of useful ones is spread around the world's.
    inclination = lots.beta(2 * share, 2 * (1 - share), conversations)[of]
    useful = lots.random(len(of)) < np.where(rule, 0.005, inclination)
    tool = lots.integers(len(TOOLS), size=len(of))
    mood = 0.4 * lots.normal(size=conversations)[of]
    doubt = world.strength(life) * (useful - 0.5) + mood + 0.3 * tool + lots.normal(size=len(of)) * 0.9
    vague = 0.3 * doubt + lots.normal(size=len(of))
    return Calls(
        of,
        step,
        tool,
        rule,
        useful,
        useful ^ (lots.random(len(of)) < world.flips),
        {
            "step": step.astype(np.float64),
            "rule": rule.astype(np.float64),
            "segment_entropy": np.exp(vague - 1),
            "decision_margin": 1 / (1 + np.exp(lots.normal(size=len(of)))),
            "probe_mean_entropy": np.exp(doubt - 2 + 0.3 * lots.normal(size=len(of))),
            "probe_max_entropy": np.exp(doubt - 1),
            "probe_least_margin": 1 / (1 + np.exp(doubt + 0.3 * lots.normal(size=len(of)))),
        },
    )


TRANSFORMS: Final[dict[str, Callable[[Floats], Floats]]] = {
    "identity": lambda x: x,
    "log": lambda x: np.log(np.maximum(x, 0.0) + 0.001),
    "gap": lambda x: -np.log(1 - np.minimum(x, 1.0) + 0.0001),
}


def scores(gate: Gate, calls: Calls) -> Floats:
    """`Gate.score` of all calls at once, for traffic that is not fitted or certified on; NEVER is inf."""
    standard = [_standard(entry, calls.signals[entry.name]) for entry in gate.signals]
    linear = np.full(len(calls.tool), gate.intercept)
    for entry, z in zip(gate.signals, standard, strict=True):
        linear += entry.weight * z
    known = np.zeros(len(calls.tool), dtype=bool)
    for place, name in enumerate(TOOLS):
        if (tool := gate.tools.get(name)) is not None:
            mine = calls.tool == place
            known |= mine
            own = sum((w * z for w, z in zip(tool.weights, standard, strict=False)), np.zeros(len(linear)))
            linear += np.where(mine, tool.intercept + own, 0.0)
    at, values = (np.array(column) for column in zip(*gate.knots, strict=True))
    judged = np.interp(linear, at, values)
    return np.where(known & (calls.step < gate.horizon), judged, np.inf)


def _standard(entry: SignalWeight, values: Floats) -> Floats:
    return np.clip((TRANSFORMS[entry.transform](values) - entry.mean) / entry.scale, -5.0, 5.0)


def firsts(conversation: NDArray[np.int64], crosses: Bools) -> NDArray[np.int64]:
    """The places of the first crossing of each conversation that has one."""
    places = np.flatnonzero(crosses)
    return places[np.unique(conversation[places], return_index=True)[1]]


@dataclass(slots=True)
class Life:
    """What became of one deployment. `true_harm` has for each certified gate its rate of harm among first
    crossings, in the world as it was then; the counts are over all that was enforced, `avoidable` over all
    calls."""

    true_harm: list[float] = field(default_factory=list)
    crossings: int = 0
    harmful_crossings: int = 0
    withheld: int = 0
    judged: int = 0
    harmful: int = 0
    avoidable: int = 0
    removed: int = 0
    harmed_conversations: int = 0
    lapses: list[str] = field(default_factory=list)
    attempts: int = 0


def live(world: World, seed: Sequence[int]) -> Life:
    """One deployment from its first conversation to its last."""
    lots = np.random.default_rng(list(seed))
    name = "-".join(map(str, seed))
    life, standing, records = Life(), Standing(rules=rules_of(RuleSettings())), list[CallRecord]()
    for begin in range(0, CONVERSATIONS, LOOK):
        age = begin / CONVERSATIONS
        calls = calls_of(world, age, LOOK, lots)
        records.extend(_served(calls, standing, begin, name, life))
        before = standing
        standing = renew(records, standing, model=MODEL, max_harm=MAX_HARM, now=float(begin + LOOK))
        if standing.lapsed and not before.lapsed:
            life.lapses.append(standing.lapsed)
        gate = standing.gate
        if standing.enforces and gate is not None and gate is not before.gate:
            life.true_harm.append(_true_harm(gate, calls_of(world, age, FRESH, lots)))
    life.attempts = standing.attempts
    return life


def _true_harm(gate: Gate, calls: Calls) -> float:
    first = firsts(calls.conversation, scores(gate, calls) <= (gate.threshold or 0.0))
    return float(calls.useful[first].mean()) if len(first) else 0.0


def _served(calls: Calls, standing: Standing, begin: int, name: str, life: Life) -> Iterator[CallRecord]:
    """The records of some conversations, after what was withheld of them was counted."""
    gate = standing.gate
    acts = standing.enforces and gate is not None
    crosses = (
        scores(gate, calls) <= (gate.threshold or 0.0) if acts and gate else np.zeros(len(calls.tool), bool)
    )
    named = [f"{name}-{begin + number}" for number in range(LOOK)]
    arms = [EXPERIMENT.arm(conversation, enforcing=acts) for conversation in named]
    governed = np.array([arm is Arm.GOVERNED for arm in arms])[calls.conversation]
    explored = np.array(
        [
            crossing and EXPERIMENT.explores(named[of], int(step), "")
            for of, step, crossing in zip(calls.conversation, calls.step, crosses & governed, strict=True)
        ],
        dtype=bool,
    )
    withheld = crosses & governed & ~explored
    first = firsts(calls.conversation, withheld)
    life.crossings += len(first)
    life.harmful_crossings += int(calls.useful[first].sum())
    life.withheld += int(withheld.sum())
    life.judged += int((withheld & ~calls.rule).sum())
    life.harmful += int((withheld & calls.useful).sum())
    life.avoidable += int((~calls.useful).sum())
    life.removed += int((withheld & ~calls.useful).sum())
    life.harmed_conversations += len(np.unique(calls.conversation[withheld & calls.useful]))
    names, columns = list(calls.signals), [column.tolist() for column in calls.signals.values()]
    for place, values in enumerate(zip(*columns, strict=True)):
        of, step = int(calls.conversation[place]), int(calls.step[place])
        yield CallRecord(
            call_id=f"{named[of]}-{step}",
            conversation=named[of],
            tool=TOOLS[calls.tool[place]],
            signature=f"{of}-{step}",
            step=step,
            decision={},
            created=float(begin + of),
            probe_before=BEFORE,
            probe_after=None if withheld[place] else OTHER if calls.label[place] else SAME,
            model=MODEL,
            effect="read_only",
            arm=arms[of],
            explored=bool(explored[place]),
            signals=dict(zip(names, values, strict=True)),
            rule="repeated_call" if calls.rule[place] else "",
        )


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one world, or of all stationary ones together. Shares of deployments: that ever enforced; with a
    certified gate whose true rate of harm is above what is allowed, with its 95% interval; whose rate over
    the life was, among first crossings and among all withheld calls; that lapsed. Then means over
    deployments."""

    world: str
    deployments: int
    enforced: float
    judged: float
    broken: float
    broken_low: float
    broken_high: float
    over_first: float
    over_all: float
    lapsed: float
    avoidable_removed: float
    points_lost: float
    attempts: float


def figures(world: str, lives: Sequence[Life]) -> Figures:
    """Over all deployments, those that never enforced included."""
    n = len(lives)
    broken = sum(any(rate > MAX_HARM for rate in life.true_harm) for life in lives)
    return Figures(
        world=world,
        deployments=n,
        enforced=sum(bool(life.true_harm) for life in lives) / n,
        judged=sum(life.judged > 0 for life in lives) / n,
        broken=broken / n,
        broken_low=1 - upper_bound(n - broken, n, 0.025),
        broken_high=upper_bound(broken, n, 0.025),
        over_first=sum(life.harmful_crossings > MAX_HARM * life.crossings for life in lives) / n,
        over_all=sum(life.harmful > MAX_HARM * life.withheld for life in lives) / n,
        lapsed=sum(bool(life.lapses) for life in lives) / n,
        avoidable_removed=float(np.mean([life.removed / life.avoidable for life in lives])),
        points_lost=float(np.mean([100 * life.harmed_conversations / CONVERSATIONS for life in lives])),
        attempts=float(np.mean([life.attempts for life in lives])),
    )


def main() -> int:
    """Print the figures of every world; fail if a certificate is broken more often than promised."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--deployments", type=int, default=210, help="in all worlds together (210)")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--worlds", nargs="*", default=[world.name for world in WORLDS])
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures there")
    arguments = parser.parse_args()
    started = time.perf_counter()
    print(f"{CONVERSATIONS} conversations a life, harm allowed: {MAX_HARM:.1%} with 95% confidence")
    print(
        f"{'world':<12}{'n':>4}{'enforced':>9}{'judged':>8}{'broken (95% interval)':>24}{'over, first':>12}"
        f"{'over, all':>10}{'lapsed':>8}{'avoidable removed':>19}{'points lost':>12}{'attempts':>9}"
    )
    rows, promised = [], list[Life]()
    each = ceil(arguments.deployments / len(arguments.worlds))
    for place, world in enumerate(WORLDS):
        if world.name not in arguments.worlds:
            continue
        lives = [live(world, (arguments.seed, place, number)) for number in range(each)]
        rows.append(figures(world.name, lives))
        promised += lives if world.stationary else []
        print(_line(rows[-1]), flush=True)
    if promised:
        rows.append(figures("stationary", promised))
        print(_line(rows[-1]))
    seconds = time.perf_counter() - started
    print(f"{seconds:.0f} s; broken: the true rate of harm of a certified gate is above that")
    if arguments.json:
        written = {"seed": arguments.seed, "seconds": seconds, "worlds": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(written, indent=1) + "\n")
    # Shown to be above 5%, not merely seen above it.
    return int(bool(promised) and rows[-1].broken_low > 0.05)


def _line(row: Figures) -> str:
    interval = f"{row.broken:.1%} ({row.broken_low:.1%} to {row.broken_high:.1%})"
    return (
        f"{row.world:<12}{row.deployments:>4}{row.enforced:>9.1%}{row.judged:>8.1%}{interval:>24}{row.over_first:>12.1%}"
        f"{row.over_all:>10.1%}{row.lapsed:>8.1%}{row.avoidable_removed:>19.1%}{row.points_lost:>12.2f}"
        f"{row.attempts:>9.1f}"
    )


if __name__ == "__main__":
    sys.exit(main())
