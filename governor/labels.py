"""What an executed call was worth, read from the pair of forced answers before and after its result.

Both answers are forced at the same position, so that the difference is the result's doing and not the
position's. The quadrants are those of design: changed or not, more certain or not. IGP (arXiv 2601.17532)
prunes by the same paired difference of uncertainty.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from governor.probe import ProbeAnswer

DEAD_ZONE: Final = 0.02
"""Nats of mean entropy that a certain answer may move by without having become more certain."""


class Label(StrEnum):
    """USEFUL: another answer, and no less certain. CONFIRMATION: the same answer, more certain. LOW_VALUE:
    the same answer and no gain. CONFLICT: another answer and less certain; such a result is kept, and its
    call is never held against the model."""

    USEFUL = "useful"
    CONFIRMATION = "confirmation"
    LOW_VALUE = "low_value"
    CONFLICT = "conflict"

    @property
    def changed(self) -> bool:
        """Whether the call changed the answer: withholding it would have."""
        return self in (Label.USEFUL, Label.CONFLICT)


def label(before: ProbeAnswer | None, after: ProbeAnswer | None) -> Label | None:
    """The label of a call; None where one of the answers is missing or was not finished."""
    if before is None or after is None or not (before.finished and after.finished):
        return None
    gain = before.mean_entropy - after.mean_entropy
    if before.same_answer(after):
        return Label.CONFIRMATION if gain > DEAD_ZONE else Label.LOW_VALUE
    return Label.USEFUL if gain >= -DEAD_ZONE else Label.CONFLICT
