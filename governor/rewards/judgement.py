"""Whether a call told the model something, by the entropies around it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from governor.records import CallRecord
from governor.rewards.settings import Against, Measure, RewardSettings, Unknown
from governor.spans import entropy_reduction

SMALL = 1e-8
"""Keeps a relative reduction finite; the paper's own."""


@dataclass(frozen=True, slots=True)
class CallTurn:
    """One executed call of a read-only tool, by what was measured around it. Effectful calls are no matter
    of information, and are not given to the rewards.

    `before` and `after` are the mean entropies, in nats, of the segment that ends with the call and of the
    one that begins behind its result; calls of one turn share both. `gain` is the forced answer's, in nats,
    and `changed` whether it became another one. None: not known.
    """

    before: float | None
    after: float | None
    gain: float | None = None
    changed: bool | None = None

    @classmethod
    def of_record(cls, record: CallRecord) -> CallTurn:
        """What the governor measured."""
        return cls(record.entropy_before, record.entropy_after, record.gain, record.answer_changed)

    @property
    def reduction(self) -> float | None:
        """In nats; positive: the result helped. The paper writes the opposite sign."""
        return entropy_reduction(self.before, self.after)


def judged(calls: Sequence[CallTurn], settings: RewardSettings) -> list[float | None]:
    """For each call of a conversation, in order, how informative it was: 0 to 1, or None where it is not to
    be judged at all.

    >>> calls = [CallTurn(1.0, 0.2), CallTurn(0.2, 0.19), CallTurn(0.19, 0.9, changed=True)]
    >>> judged(calls, RewardSettings())
    [1.0, 0.0, None]
    """
    measures = _measures(calls, settings)
    return [_judgement(call, value, settings) for call, value in zip(calls, measures, strict=True)]


def _measures(calls: Iterable[CallTurn], settings: RewardSettings) -> Iterator[float | None]:
    lowest: float | None = None
    for call in calls:
        if settings.measure is Measure.GAIN:
            yield call.gain
            continue
        if call.before is not None:
            lowest = call.before if lowest is None else min(lowest, call.before)
        base = lowest if settings.against is Against.LOWEST and call.before is not None else call.before
        value = entropy_reduction(base, call.after)
        if settings.relative and value is not None and base is not None:
            value /= base + SMALL
        yield value


def _judgement(call: CallTurn, value: float | None, settings: RewardSettings) -> float | None:
    if value is None:
        return 0.0 if settings.unknown is Unknown.UNINFORMATIVE else None
    beyond = value - settings.dead_zone
    if beyond <= 0 and settings.spare_conflicts and call.changed:
        return 1.0 if value >= -settings.dead_zone else None
    if settings.ramp > 0:
        return min(1.0, max(0.0, beyond / settings.ramp))
    return float(beyond > 0)
