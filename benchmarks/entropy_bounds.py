"""How good the entropy from top-k logprobs is, on a real vLLM that also gives the whole distribution.

Each question is generated three times, greedily, with the 5 and the 20 most probable tokens and with the
whole vocabulary; the last one gives the exact entropy of every token. Run: python
benchmarks/entropy_bounds.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from governor.entropy import EntropyEstimate
from governor.tokens import Token, tokens_from_logprobs
from governor_server.engine import Engine
from governor_server.settings import EngineSettings
from governor_training.atlas.local import bundled_model
from governor_training.atlas.questions import held_out_sample
from governor_training.atlas.tools import ANSWERING
from governor_training.atlas.world import load_world
from governor_training.pretraining import chat
from governor_training.pretraining.tokenizer import VOCABULARY

KS = (5, 20)
SLACK = 1e-4
"""Nats that a bound may be off: logprobs come as float32, and a repeated generation differs in the last
digits."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Over all tokens, for one k: how many exact entropies lie outside the bounds, and the point value's
    error."""

    k: int
    generations: int
    tokens: int
    outside: int
    mean_error: float
    largest_error: float
    mean_width: float
    mean_exact: float


def measure(url: str, model: str, *, generations: int, seed: int) -> list[Figures]:
    """`url` is the engine's, without `/v1`; it must allow logprobs of the whole vocabulary."""
    questions = held_out_sample(load_world(), generations, seed)
    exact = [_generate(url, model, question.text, VOCABULARY) for question in questions]
    figures = []
    for k in KS:
        estimated = [_generate(url, model, question.text, k) for question in questions]
        figures.append(_figures(k, exact, estimated))
    return figures


def _generate(url: str, model: str, text: str, k: int) -> Sequence[Token]:
    body = {
        "model": model,
        "messages": [{"role": "system", "content": chat.SYSTEM}, {"role": "user", "content": text}],
        "tools": list(ANSWERING),
        "temperature": 0,
        "max_tokens": 64,
        "logprobs": True,
        "top_logprobs": k,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        answer: Mapping[str, Any] = json.load(response)
    return tokens_from_logprobs(answer["choices"][0]["logprobs"]["content"], VOCABULARY)


def _figures(k: int, exact: Sequence[Sequence[Token]], estimated: Sequence[Sequence[Token]]) -> Figures:
    pairs: list[tuple[float, EntropyEstimate]] = []
    for whole, part in zip(exact, estimated, strict=True):
        if [token.text for token in whole] != [token.text for token in part]:
            raise RuntimeError("the engine did not repeat a greedy generation: nothing to compare")
        pairs += [(a.entropy.value, b.entropy) for a, b in zip(whole, part, strict=True)]
    errors = [abs(estimate.value - value) for value, estimate in pairs]
    outside = sum(not e.lower - SLACK <= value <= e.upper + SLACK for value, e in pairs)
    return Figures(
        k=k,
        generations=len(exact),
        tokens=len(pairs),
        outside=outside,
        mean_error=statistics.fmean(errors),
        largest_error=max(errors),
        mean_width=statistics.fmean(e.upper - e.lower for _, e in pairs),
        mean_exact=statistics.fmean(value for value, _ in pairs),
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generations", type=int, default=50)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--out", type=Path, default=Path("build/bench/entropy.json"))
    options = parser.parse_args()
    settings = EngineSettings(
        model=str(bundled_model()), served_model_name="atlas", reasoning_parser="qwen3", max_logprobs=-1
    )
    with Engine(settings, print) as engine:
        engine.wait_ready()
        figures = measure(engine.url, "atlas", generations=options.generations, seed=options.seed)
    print("    k  tokens  outside  mean error  largest  width of bounds  mean exact   (nats)")
    for row in figures:
        print(
            f"{row.k:5d} {row.tokens:7d} {row.outside:8d} {row.mean_error:11.4f} {row.largest_error:8.4f}"
            f" {row.mean_width:16.4f} {row.mean_exact:11.4f}"
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps([asdict(row) for row in figures], indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
