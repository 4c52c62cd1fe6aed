"""How far the point value of the token entropy is off, over families of simulated distributions.

Prints the mean absolute error in nats of the two tails that the estimate averages, of the estimate itself,
and of the lower bound alone. Run: python benchmarks/entropy_tails.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from math import exp, fsum, log

import numpy as np
from numpy.typing import NDArray

from governor.entropy import ending_law, estimate, power_law

VOCABULARY = 50_000
Distribution = NDArray[np.float64]


def softmax(logits: Distribution) -> Distribution:
    weights: Distribution = np.exp(logits - logits.max())
    return normalised(weights)


def normalised(weights: Distribution) -> Distribution:
    return np.asarray(weights / weights.sum())


def zipf(exponent: float) -> Distribution:
    return softmax(-exponent * np.log(np.arange(1, VOCABULARY + 1)))


def families(count: int, seed: int) -> Iterator[tuple[str, list[Distribution]]]:
    rng = np.random.default_rng(seed)
    yield "Zipf, exponent 0.8 to 3", [zipf(a) for a in rng.uniform(0.8, 3, count)]
    spread = rng.uniform(1.5, 6, count)
    yield "Gaussian logits, deviation 1.5 to 6", [softmax(rng.normal(size=VOCABULARY) * s) for s in spread]
    yield "a few sure tokens and a noisy Zipf", [_mixture(rng) for _ in range(count)]
    yield "a class of 10 to 300 things", [_plateau(rng) for _ in range(count)]


def _mixture(rng: np.random.Generator) -> Distribution:
    noisy = np.log(zipf(rng.uniform(1.1, 2.5))) + rng.normal(size=VOCABULARY) * 0.7
    sure = rng.beta(4, 1)
    mixed = (1 - sure) * softmax(noisy)
    places = rng.integers(0, 200, rng.integers(1, 4))
    mixed[places] += sure / len(places)
    return normalised(mixed)


def _plateau(rng: np.random.Generator) -> Distribution:
    size = int(rng.integers(10, 300))
    whole = np.full(VOCABULARY, 0.02 / VOCABULARY)
    whole[:size] += 0.98 * softmax(rng.normal(size=size) * rng.uniform(0, 1))
    return normalised(whole)


def errors(distribution: Distribution, k: int) -> dict[str, float]:
    positive = distribution[distribution > 0]
    exact = float(-(positive * np.log(positive)).sum())
    top = [float(x) for x in np.log(np.sort(distribution)[::-1][:k])]
    found = estimate(top, VOCABULARY)
    tail = min(1 - fsum(map(exp, top)), (VOCABULARY - k) * exp(top[-1]))
    seen = -fsum(exp(x) * x for x in top)
    endless = power_law(tail, min(exp(top[-1]), tail), k, VOCABULARY) if tail > 1e-12 else 0.0
    ending = ending_law(tail, top, endless, VOCABULARY) if tail > 1e-12 else 0.0
    values = {
        "endless": seen + endless,
        "ending": seen + ending,
        "estimate": found.value,
        "lower": found.lower,
    }
    return {name: abs(value - exact) for name, value in values.items()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100, help="distributions of each family")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    columns = " ".join(f"{name:>8}" for name in ("endless", "ending", "estimate", "lower"))
    print(f"{'family':38} {'k':>3} {columns}   (mean |error|, nats)")
    for name, distributions in families(options.count, options.seed):
        for k in (5, 20):
            rows = [errors(distribution, k) for distribution in distributions]
            means = [statistics.fmean(row[key] for row in rows) for key in rows[0]]
            print(f"{name:38} {k:3d} " + " ".join(f"{mean:8.4f}" for mean in means))
    print(f"ln V = {log(VOCABULARY):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
