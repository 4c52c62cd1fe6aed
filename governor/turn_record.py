"""What one answered request of a conversation took; whole conversations are compared by these figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from governor.records import known_fields


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """One message that a client got in a conversation that had proposed a call by then.

    `created` is when the request came to be governed, `begun` the same of the first call of the conversation
    that is known, `ended` when the client had its message; all in seconds of the caller's clock. `seconds`
    is how long the client waited for it. `proposed` counts the calls that the model proposed, withheld ones
    included; `delivered` counts those that reached the agent, by tool. `usage` holds the token counts that
    upstream gave the client, empty where it gave none, and `own_usage` those of what the governor asked
    beside the client's request.
    """

    conversation: str
    arm: str
    created: float
    begun: float
    ended: float
    seconds: float
    proposed: int = 0
    delivered: Mapping[str, int] = field(default_factory=dict)
    usage: Mapping[str, int] = field(default_factory=dict)
    own_usage: Mapping[str, int] = field(default_factory=dict)

    @property
    def arrived(self) -> float:
        """When the request came, by the same clock."""
        return self.ended - self.seconds

    @property
    def expects_results(self) -> bool:
        """Whether the agent has calls to make before it comes again."""
        return bool(self.delivered)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TurnRecord:
        """The record that `as_dict` gave; unknown fields, of a later version, are left out. Raises TypeError
        on missing fields or anything else that is no record."""
        return cls(**known_fields(cls, data))
