"""Who is governed and what is let through to learn from, drawn by lot.

The lots are hashes of a salt and of what they are drawn for. So the core needs no random numbers, a
conversation stays in its arm over restarts and replicas, and an audit can draw every lot again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b


class Arm(StrEnum):
    """GOVERNED: the policy acts. HOLDOUT: drawn to be only observed, while others are governed. OBSERVED:
    nothing is governed at all."""

    GOVERNED = "governed"
    HOLDOUT = "holdout"
    OBSERVED = "observed"


@dataclass(frozen=True, slots=True)
class Experiment:
    """Shares in [0, 1].

    Parameters
    ----------
    holdout
        Of the conversations, only observed: what governing changes is the difference to them.
    exploration
        Of the calls that would be withheld, let through, so that the gate's own mistakes are seen.
    labels
        Of the governed conversations, labelled by probes beside the traffic. Explored calls and the
        conversations that are only observed always are, as far as `max_labels` goes.
    max_labels
        Greatest number of steps of one conversation that are labelled.
    salt
        Another one draws other lots.
    """

    holdout: float = 0.0
    exploration: float = 0.0
    labels: float = 0.0
    max_labels: int = 16
    salt: str = ""

    def arm(self, conversation: str, *, enforcing: bool) -> Arm:
        """The arm of a conversation, the same in all of its requests."""
        if not enforcing:
            return Arm.OBSERVED
        return Arm.HOLDOUT if lot(self.salt, "holdout", conversation) < self.holdout else Arm.GOVERNED

    def explores(self, conversation: str, step: int, signature: str) -> bool:
        """Whether this call passes though it would be withheld."""
        return lot(self.salt, "exploration", conversation, str(step), signature) < self.exploration

    def labelled(self, conversation: str, step: int, arm: Arm) -> bool:
        """Whether the calls of this step are to be labelled, explored or not."""
        if step >= self.max_labels:
            return False
        return arm is not Arm.GOVERNED or lot(self.salt, "labels", conversation) < self.labels


def lot(*parts: str) -> float:
    """Uniform in [0, 1), and always the same for the same parts."""
    text = "\x1f".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") / 2**64
