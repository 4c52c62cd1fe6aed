"""The conventions of the entropy rewards, each of them a switch.

arXiv 2602.02050 gives the two rewards; what it leaves open, or what can be gamed in it, is decided here. The
defaults are ours, chosen so that the tricks that we know of do not pay. `PAPER` is as near to the paper as is
known.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from governor.labels import DEAD_ZONE


class Measure(StrEnum):
    """What says that a call told the model something."""

    REDUCTION = "reduction"
    """Mean entropy of the segment before the call minus that of the one after its result, as in the paper.
    Free, but of two different places in a text, and the policy writes both."""
    GAIN = "gain"
    """Entropy of the forced answer before the result minus after it (IGP, arXiv 2601.17532): two answers at
    one position. It needs the probes, and cannot be talked up."""


class Against(StrEnum):
    """Which segment an entropy reduction is measured against."""

    PREVIOUS = "previous"
    """The one before the call, as in the paper."""
    LOWEST = "lowest"
    """The most certain one so far (ours): a policy that rambles between two calls, to be terse after the
    second, has no more to reduce in all."""


class Unknown(StrEnum):
    """What becomes of a call whose measure is missing: no segment after it, no probe."""

    UNINFORMATIVE = "uninformative"
    """It counts as a call that told nothing: not to be measured must not pay."""
    LEFT_OUT = "left_out"
    """It is not judged. For logs in which measures are missing by chance."""


class OverCalls(StrEnum):
    """How the dense rewards of a conversation become one figure."""

    MEAN = "mean"
    """Another call of the same kind changes nothing."""
    SUM = "sum"
    """As "rewards" are mostly read; every further call of a right conversation then pays at least its
    score."""


@dataclass(frozen=True, slots=True)
class RewardSettings:
    """All conventions. Raises ValueError on a value out of range.

    Parameters
    ----------
    measure
        Of the information that a call brought.
    against
        What a reduction is measured against; the gain has its own.
    relative
        Divide a reduction by the entropy that it is measured against (the paper's form for comparing
        questions with each other). `dead_zone` and `ramp` are then shares instead of nats.
    dead_zone
        Nats that the measure must exceed: without it -1e-6 counts as much as -2. The paper has none.
    ramp
        Nats beyond the dead zone over which a call's value grows from 0 to 1; 0: at once, as in the paper.
    spare_conflicts
        Leave out calls that changed the answer and made it less certain: good evidence against a belief does
        that. Where another answer is not less certain, the call was informative whatever the measure says.
        Both need to know whether the forced answer changed; the paper does not ask.
    unknown
        What a call without a measure counts as.
    no_calls
        What a conversation without calls gets under the sparse reward, as a share of its score. Unknown in
        the paper. 1: not calling is as good as calling well, so that calls which do not raise the score go.
        0: a conversation without calls earns nothing, which forbids answering from memory.
    stake
        Share of the score that the calls decide under the sparse reward. 1, as in the paper: a right answer
        after useless calls is worth as little as a wrong one, so that a policy which cannot tell yet what it
        knows is best off without any calls. Less: being right comes first (ours).
    alpha
        Weight of an informative call in the dense reward. Unknown in the paper.
    over_calls
        Of `dense_total`.
    """

    measure: Measure = Measure.REDUCTION
    against: Against = Against.LOWEST
    relative: bool = False
    dead_zone: float = DEAD_ZONE
    ramp: float = 0.0
    spare_conflicts: bool = True
    unknown: Unknown = Unknown.UNINFORMATIVE
    no_calls: float = 1.0
    stake: float = 1.0
    alpha: float = 0.5
    over_calls: OverCalls = OverCalls.MEAN

    def __post_init__(self) -> None:
        for name, least, most in (
            ("dead_zone", 0.0, float("inf")),
            ("ramp", 0.0, float("inf")),
            ("no_calls", 0.0, 1.0),
            ("stake", 0.0, 1.0),
            ("alpha", 0.0, float("inf")),
        ):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be from {least:g} to {most:g}: {getattr(self, name)}")


PAPER: Final = RewardSettings(
    against=Against.PREVIOUS, dead_zone=0.0, spare_conflicts=False, over_calls=OverCalls.SUM
)
"""As in arXiv 2602.02050, where it is known; alpha and the case without calls are not."""
