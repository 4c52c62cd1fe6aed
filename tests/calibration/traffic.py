"""Recorded conversations whose truth is known."""

from __future__ import annotations

import math
import random

from governor.probe import ProbeAnswer
from governor.records import CallRecord

BEFORE = ProbeAnswer("a", True, 0.1, 0.2, 0.9, -0.1, 3, 100)
SAME = ProbeAnswer("a", True, 0.05, 0.1, 0.95, -0.1, 3, 120)
OTHER = ProbeAnswer("b", True, 0.05, 0.1, 0.95, -0.1, 3, 120)


def traffic(
    conversations: int,
    *,
    strength: float,
    seed: int = 1,
    arm: str = "observed",
    begin: float = 0.0,
    tools: tuple[str, ...] = ("search", "lookup"),
) -> list[CallRecord]:
    """One to three calls each, 45% useful; the log of `probe_max_entropy` is `strength` standard deviations
    higher where the call is useful. One conversation a second, from `begin` on."""
    lots = random.Random(seed)
    records = []
    for number in range(conversations):
        for step in range(lots.choice([1, 1, 2, 3])):
            useful = lots.random() < 0.45
            doubt = lots.gauss(strength * (useful - 0.5), 1.0)
            records.append(
                CallRecord(
                    call_id=f"{seed}-{begin}-{number}-{step}",
                    conversation=f"{seed}-{begin}-{number}",
                    tool=lots.choice(tools),
                    signature=f"{number}-{step}",
                    step=step,
                    decision={"index": 0},
                    created=begin + number,
                    probe_before=BEFORE,
                    probe_after=OTHER if useful else SAME,
                    model="small",
                    schema="s1",
                    effect="read_only",
                    arm=arm,
                    signals={
                        "step": float(step),
                        "probe_max_entropy": math.exp(doubt - 1),
                        "segment_entropy": lots.random(),
                    },
                )
            )
    return records
