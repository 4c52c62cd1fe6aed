"""Recorded conversations as a gate sees them: in order, up to the first call that it would withhold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from governor.certificate import Candidate
from governor.experiment import Arm
from governor.gate import NEVER, CallFacts, Gate
from governor.records import CallRecord


@dataclass(frozen=True, slots=True)
class ScoredCall:
    """A recorded call and its score at a gate (`Gate.score`)."""

    record: CallRecord
    score: float

    @property
    def harmful(self) -> bool | None:
        """Whether withholding it would have changed the answer; None without a label."""
        label = self.record.label
        return None if label is None else label.changed


def conversations(records: Iterable[CallRecord]) -> dict[str, list[CallRecord]]:
    """By conversation, in the order of their names, each with its calls in the order in which they were
    proposed; whatever the order of `records`."""
    grouped: defaultdict[str, list[CallRecord]] = defaultdict(list)
    for record in records:
        grouped[record.conversation].append(record)
    return {name: sorted(grouped[name], key=_place) for name in sorted(grouped)}


def _place(record: CallRecord) -> tuple[int, int, float, str]:
    return record.step, int(record.decision.get("index", 0)), record.created, record.call_id


def observed(calls: Iterable[CallRecord]) -> bool:
    """Whether nothing was withheld in the conversation, by lot or because nothing was governed."""
    return all(call.arm != Arm.GOVERNED for call in calls)


def candidates(gate: Gate, calls: Iterable[CallRecord]) -> list[Candidate]:
    """What a certificate needs to know of an observed conversation."""
    scored = (ScoredCall(call, gate.score(CallFacts.of_record(call))) for call in calls)
    return [Candidate(s.score, s.harmful, _likeness(s.record)) for s in scored if s.score != NEVER]


def until_crossing(gate: Gate, calls: Iterable[CallRecord]) -> Sequence[ScoredCall]:
    """The calls up to the first one that `gate` would withhold, that one included.

    Up to there all conversations went the way of an ungoverned one, whatever their arm.
    """
    threshold = NEVER if gate.threshold is None else gate.threshold
    reached: list[ScoredCall] = []
    for call in calls:
        reached.append(ScoredCall(call, gate.score(CallFacts.of_record(call))))
        if reached[-1].score <= threshold:
            break
    return reached


def _likeness(record: CallRecord) -> str:
    """Equal for the same call proposed in place of the same answer."""
    answer = "" if record.probe_before is None else record.probe_before.fingerprint
    return f"{record.signature}\n{answer}"
