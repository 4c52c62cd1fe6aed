"""Recorded conversations as a gate sees them: scored, up to the first call that it would withhold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from governor.certificate import Candidate
from governor.conversations import Calls, until_crossing
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


def scored(gate: Gate, calls: Calls) -> list[ScoredCall]:
    """Each call of a conversation with its score."""
    return [ScoredCall(call, gate.score(CallFacts.of_record(call))) for call in calls]


def candidates(gate: Gate, calls: Calls) -> list[Candidate]:
    """What a certificate needs to know of an observed conversation."""
    governed = (call for call in scored(gate, calls) if call.score != NEVER)
    return [Candidate(call.score, call.harmful, _likeness(call.record)) for call in governed]


def reached(gate: Gate, calls: Calls) -> Sequence[ScoredCall]:
    """The calls up to the first one that the gate would withhold, as `until_crossing` has them."""
    found, threshold = scored(gate, calls), gate.threshold
    withheld = [threshold is not None and call.score <= threshold for call in found]
    return found[: until_crossing(calls, withheld)]


def _likeness(record: CallRecord) -> str:
    """Equal for the same call proposed in place of the same answer."""
    answer = "" if record.probe_before is None else record.probe_before.fingerprint
    return f"{record.signature}\n{answer}"
