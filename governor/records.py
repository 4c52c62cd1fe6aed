"""The record of one call: what was measured around it and what was decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from governor.probe import ProbeAnswer


@dataclass(frozen=True, slots=True)
class CallRecord:
    """Entropies in nats; `created` in seconds of the caller's clock; `decision` is `Decision.as_dict()`.

    `entropy_after` and `probe_after` are filled in by the next turn, once the call's result is in the
    context.
    """

    call_id: str
    conversation: str
    tool: str
    signature: str
    step: int
    decision: Mapping[str, Any]
    created: float
    entropy_before: float | None = None
    entropy_after: float | None = None
    probe_before: ProbeAnswer | None = None
    probe_after: ProbeAnswer | None = None
    usage: Mapping[str, int] = field(default_factory=dict)

    @property
    def entropy_reduction(self) -> float | None:
        """Positive: the segment after the result is more certain than the one before it."""
        raise NotImplementedError

    @property
    def gain(self) -> float | None:
        """Mean entropy of the forced answer before the result minus after it."""
        raise NotImplementedError

    @property
    def answer_changed(self) -> bool | None:
        """Whether the forced answer is another one after the result; None without both probes."""
        raise NotImplementedError

    def as_dict(self, *, keep_text: bool = True) -> dict[str, Any]:
        """JSON-ready. Without text: no arguments, no answers, and a digest in place of the signature."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CallRecord:
        """The record that `as_dict` gave. Raises KeyError, TypeError or ValueError on anything else."""
        raise NotImplementedError
