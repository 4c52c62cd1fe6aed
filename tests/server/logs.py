"""Logs of calls with known truth, as a proxy that observes would have written them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from governor.probe import ProbeAnswer
from governor.records import CallRecord
from governor.turn_record import TurnRecord
from governor_server.store import RecordStore


def answer(text: str, margin: float) -> ProbeAnswer:
    """A forced answer that is as certain as `margin` says."""
    doubt = 1 - margin
    return ProbeAnswer(text, True, doubt / 2, doubt, margin, -doubt, 3, 40)


def call(conversation: str, step: int, *, margin: float, useful: bool, **fields: Any) -> CallRecord:
    """A call that changes the answer if it is useful, proposed where the forced answer has this margin."""
    before = answer("Oslo", margin)
    given: dict[str, Any] = {
        "call_id": f"{conversation}.{step}",
        "conversation": conversation,
        "tool": "lookup",
        "signature": f'lookup({{"step":{step}}})',
        "step": step,
        "decision": {"index": 0, "action": "pass", "proposed": "pass", "reason": "not_judged"},
        "created": float(step),
        "probe_before": before,
        "probe_after": answer("Rome" if useful else "Oslo", 0.99),
        "model": "atlas",
        "schema": "1",
        "effect": "read_only",
        "outcome": "ok",
        "signals": {
            "step": float(step),
            "probe_least_margin": before.least_margin,
            "probe_mean_entropy": before.mean_entropy,
            "probe_max_entropy": before.max_entropy,
            "probe_logprob": before.logprob,
            "probe_finished": 1.0,
        },
    }
    return CallRecord(**{**given, **fields})


def traffic(conversations: int, seed: int = 1) -> list[CallRecord]:
    """Three calls a conversation: useful ones where the margin is below 0.6, useless ones where it is above
    0.7."""
    random = Random(seed)
    records = []
    for number in range(conversations):
        for step in range(3):
            useful = random.random() < 0.4
            margin = random.uniform(0.0, 0.6) if useful else random.uniform(0.7, 1.0)
            records.append(call(f"talk {number}", step, margin=margin, useful=useful))
    return records


def turns(records: Iterable[CallRecord]) -> list[TurnRecord]:
    """The turns in which these calls were proposed, and an answer at the end of each conversation: a second
    for each message, and what its records say for the tools."""
    found: list[TurnRecord] = []
    by_turn: dict[tuple[str, float], list[CallRecord]] = {}
    for record in records:
        by_turn.setdefault((record.conversation, record.created), []).append(record)
    ends: dict[str, TurnRecord] = {}
    for (name, created), calls in sorted(by_turn.items(), key=lambda item: item[0][1]):
        first = calls[0]
        begun = ends[name].begun if name in ends else created
        reached = Counter(call.tool for call in calls if call.decision["action"] == "pass")
        usage = first.turn_usage or {"prompt_tokens": 100, "completion_tokens": 10}
        turn = TurnRecord(
            name, first.arm, created, begun, created + 1, 1.0, len(calls), reached, usage, first.usage
        )
        found.append(turn)
        back = max([call.returned or created + 2 for call in calls])
        ends[name] = replace(turn, created=back, ended=back + 1, proposed=0, delivered={}, own_usage={})
    return [*found, *ends.values()]


def store(path: Path, records: Iterable[CallRecord]) -> Path:
    """The file that a proxy leaves."""
    kept = RecordStore(str(path), clock=lambda: 10.0)
    for record in records:
        kept.put(record)
    kept.close()
    return path


def lines(path: Path, records: Sequence[CallRecord]) -> Path:
    """As JSON Lines."""
    path.write_text("".join(json.dumps(record.as_dict(keep_text=False)) + "\n" for record in records))
    return path
