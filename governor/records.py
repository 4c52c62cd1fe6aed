"""The record of one call: what was measured around it and what was decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from governor.calls import digest
from governor.labels import Label, label
from governor.probe import ProbeAnswer
from governor.signals import Signals
from governor.spans import entropy_reduction


@dataclass(frozen=True, slots=True)
class CallRecord:
    """What is known of one call, found again by `call_id` and `origin`: an id alone may be that of several
    calls, since some models number the calls of every conversation.

    Entropies in nats; `signature` is `str(ToolCall.signature)`; `decision` is `Decision.as_dict()`;
    `created` is in seconds of the caller's clock; `usage` holds token counts of what the governor itself
    generated. `signals` are those of `governor.signals`, with the probe's where there was one, and `rule` the
    reason of the rule that speaks against the call, "" if none does. `schema` is the fingerprint of the
    tool's description. `explored`: it would have been withheld, and was let through to learn from.
    `turn_usage` holds the token counts of the turn that proposed the call, where upstream told them. `origin`
    is `governor.conversation.origin`, "" in records of earlier versions.

    `outcome`, `entropy_after`, `probe_after` and `returned` (when the request with the result came, by the
    same clock) are filled in by the next turn, once the call's result is in the context; `stub` says why a
    stub stands in its place, "" where none does.
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
    model: str = ""
    schema: str = ""
    effect: str = ""
    arm: str = "observed"
    explored: bool = False
    signals: Signals = field(default_factory=dict)
    rule: str = ""
    outcome: str = ""
    stub: str = ""
    turn_usage: Mapping[str, int] = field(default_factory=dict)
    returned: float | None = None
    origin: str = ""

    @property
    def entropy_reduction(self) -> float | None:
        """Mean entropy of the segment before the call minus that of the one after its result; positive: it
        helped."""
        return entropy_reduction(self.entropy_before, self.entropy_after)

    @property
    def gain(self) -> float | None:
        """Mean entropy of the forced answer before the result minus after it; None without both probes."""
        if self.probe_before is None or self.probe_after is None:
            return None
        return self.probe_before.mean_entropy - self.probe_after.mean_entropy

    @property
    def label(self) -> Label | None:
        """What the call was worth; None if the forced answers around it are not both known."""
        return label(self.probe_before, self.probe_after)

    @property
    def answer_changed(self) -> bool | None:
        """Whether the forced answer is another one after the result; None without both probes."""
        if self.probe_before is None or self.probe_after is None:
            return None
        return not self.probe_before.same_answer(self.probe_after)

    def is_of(self, signature: str) -> bool:
        """Whether it is of a call with this signature; also where a digest is all that was kept of it."""
        return self.signature == signature or self.signature == digest(signature)

    def as_dict(self, *, keep_text: bool = True) -> dict[str, Any]:
        """JSON-ready, with or without text."""
        return asdict(self if keep_text else self.without_text())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CallRecord:
        """The record that `as_dict` gave, also after a trip through JSON.

        Unknown fields, of a later version, are left out. Raises TypeError on missing fields or anything
        else that is no record.
        """
        known = _known(cls, data)
        for name in ("probe_before", "probe_after"):
            if known.get(name) is not None:
                known[name] = ProbeAnswer(**_known(ProbeAnswer, known[name]))
        return cls(**known)

    def without_text(self) -> CallRecord:
        """Without arguments and answers, and with a digest in the place of the signature."""
        decision = {key: value for key, value in self.decision.items() if key != "arguments"}
        return replace(
            self,
            signature=digest(self.signature),
            decision=decision,
            probe_before=_silent(self.probe_before),
            probe_after=_silent(self.probe_after),
        )


def _silent(probe: ProbeAnswer | None) -> ProbeAnswer | None:
    return None if probe is None else replace(probe, text="")


def _known(cls: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise TypeError(f"{cls.__name__} from {type(data).__name__}")
    names = {entry.name for entry in fields(cls)}
    return {key: value for key, value in data.items() if key in names}
