"""One row for each read-only call of the ungoverned runs: what was known before it, what came after it, and
what it was truly worth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from governor.gate import CallFacts, Gate
from governor.records import CallRecord
from governor_training.evaluation.played import Truth


@dataclass(frozen=True, slots=True)
class CallRow:
    """`signals` are those before the call, `rule` the reason of the rule that speaks against it, `useful` is
    the gate's P(useful), None where it knows nothing of the call. `label` is the free one, by the pair of
    forced answers, and `value` the true one: the score with the result minus that without it."""

    seed: int
    task: str
    call_id: str
    tool: str
    turn: int
    signature: str
    signals: Mapping[str, float | None]
    rule: str
    useful: float | None
    entropy_reduction: float | None
    gain: float | None
    answer_changed: bool | None
    label: str | None
    label_changed: bool | None
    with_result: float
    without: float
    value: float
    avoidable: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def rows(
    truths: Iterable[Truth], records: Mapping[str, CallRecord], gate: Gate | None, seed: int
) -> list[CallRow]:
    """The calls of `truths` in order; a call without a record (no logprobs) has no signals."""
    found = []
    for truth in truths:
        for value in truth.values:
            record = records.get(value.call.id)
            label = record.label if record else None
            found.append(
                CallRow(
                    seed=seed,
                    task=truth.run.task.id,
                    call_id=value.call.id,
                    tool=value.call.name,
                    turn=value.call.turn,
                    signature=str(value.call.signature),
                    signals=dict(record.signals) if record else {},
                    rule=record.rule if record else "",
                    useful=_useful(gate, record),
                    entropy_reduction=record.entropy_reduction if record else None,
                    gain=record.gain if record else None,
                    answer_changed=record.answer_changed if record else None,
                    label=label.value if label else None,
                    label_changed=label.changed if label else None,
                    with_result=value.with_result,
                    without=value.without,
                    value=value.gain,
                    avoidable=value.avoidable,
                )
            )
    return found


def _useful(gate: Gate | None, record: CallRecord | None) -> float | None:
    """P(useful), whether there is a certificate or not."""
    if gate is None or record is None:
        return None
    facts = CallFacts.of_record(record)
    if not gate.knows(facts):
        return None
    return gate.probability(facts.signals, facts.tool) if facts.answered else None
