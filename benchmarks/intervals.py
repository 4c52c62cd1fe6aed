"""How often the intervals of `/governor/effect` cover the truth, beside Welch's, for arms of several sizes.

    python -m benchmarks.intervals

Conversations are drawn from made-up distributions, skewed as calls, tokens and seconds are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from math import sqrt
from random import Random
from statistics import fmean, variance
from typing import Final

from governor.estimates import Estimate, mean_difference, t_quantile

SIZES: Final = ((10, 10), (40, 10), (90, 10), (80, 20), (180, 20), (270, 30), (50, 50), (450, 50))
"""Governed and held-out conversations."""
TRUTH_RUNS: Final = 400_000

Draw = Callable[[Random, bool], float]
"""What one conversation takes, governed or not."""


def calls(lots: Random, governed: bool) -> float:
    """Geometric, mean 2; of a governed one each call is withheld with probability 0.4."""
    proposed = 1
    while lots.random() < 0.5:
        proposed += 1
    return float(sum(lots.random() < 0.6 for _ in range(proposed)) if governed else proposed)


def tokens(lots: Random, governed: bool) -> float:
    """A prompt that grows with each result, by log-normal lengths."""
    made = calls(lots, governed)
    return 300 * (made + 1) + 100 * made * (made + 1) * lots.lognormvariate(0, 0.5)


def seconds(lots: Random, governed: bool) -> float:
    """Log-normal with a standard deviation of 1 on the log scale; governed ones take 0.6 of it."""
    return (0.6 if governed else 1.0) * lots.lognormvariate(0, 1)


def loops(lots: Random, governed: bool) -> float:
    """One call, but 20 in three conversations of a hundred, which governing cuts to 10."""
    return (10.0 if governed else 20.0) if lots.random() < 0.03 else 1.0


WORLDS: Final[dict[str, Draw]] = {"calls": calls, "tokens": tokens, "seconds": seconds, "loops": loops}


def welch(first: Sequence[float], second: Sequence[float]) -> Estimate | None:
    """The usual interval, for comparison."""
    value = fmean(first) - fmean(second)
    one, other = variance(first) / len(first), variance(second) / len(second)
    if not one + other:
        return None
    freedom = (one + other) ** 2 / (one**2 / (len(first) - 1) + other**2 / (len(second) - 1))
    half = t_quantile(0.975, freedom) * sqrt(one + other)
    return Estimate(value, value - half, value + half)


def covers(found: Estimate | None, truth: float) -> bool:
    """An interval that is not given covers nothing."""
    return (
        found is not None
        and found.low is not None
        and found.high is not None
        and found.low <= truth <= found.high
    )


def width(found: Estimate | None) -> float:
    """0 without an interval."""
    return (found.high or 0.0) - (found.low or 0.0) if found is not None else 0.0


def main() -> int:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.intervals", description=(__doc__ or "").split("\n\n", 1)[0]
    )
    parser.add_argument("--runs", type=int, default=1000, help="pairs of arms for each row (default: 1000)")
    parser.add_argument("--seed", type=int, default=1, help="of all lots (default: 1)")
    arguments = parser.parse_args()
    print("| what | governed, held out | covered | mean width | Welch covers | its mean width |")
    print("|---|---|---|---|---|---|")
    for name, draw in WORLDS.items():
        lots = Random(f"{arguments.seed}/{name}")
        means = [fmean(draw(lots, governed) for _ in range(TRUTH_RUNS)) for governed in (True, False)]
        truth = means[0] - means[1]
        for many, few in SIZES:
            hits, widths = [0, 0], [0.0, 0.0]
            for _ in range(arguments.runs):
                arms = [draw(lots, True) for _ in range(many)], [draw(lots, False) for _ in range(few)]
                for place, method in enumerate((mean_difference, welch)):
                    found = method(*arms)
                    hits[place] += covers(found, truth)
                    widths[place] += width(found)
            ours, theirs = (f"{hit / arguments.runs:.1%}" for hit in hits)
            wide = [f"{total / arguments.runs:.3g}" for total in widths]
            print(f"| {name} | {many}, {few} | {ours} | {wide[0]} | {theirs} | {wide[1]} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
