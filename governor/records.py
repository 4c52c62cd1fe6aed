"""The record of one call: what was measured around it and what was decided."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import Any

from governor.calls import digest
from governor.decision import Reason
from governor.labels import Label, label
from governor.probe import ProbeAnswer
from governor.signals import Signals
from governor.spans import entropy_reduction

Key = tuple[str, float, int, int, str]
"""Names one call: its conversation, the time of the request it was proposed in, the generation and the place
in its message, and its id. An id alone does not: models number calls, repeat ids, or leave them out."""


@dataclass(frozen=True, slots=True)
class CallRecord:
    """What is known of one call. It is written when the call is delivered, and completed by the probe, by the
    request that brings its result and by the label, in whatever order these come: see `merge`.

    Entropies in nats; `signature` is `str(ToolCall.signature)`; `decision` is `Decision.as_dict()`;
    `created` is in seconds of the caller's clock; `usage` holds token counts of what the governor itself
    generated. `signals` are those of `governor.signals`, with the probe's where there was one, and `rule` the
    reason of the rule that speaks against the call, "" if none does. `schema` is the fingerprint of the
    tool's description. `explored`: it would have been withheld, and was let through to learn from.
    `turn_usage` holds the token counts of the turn that proposed the call, where upstream told them. `origin`
    is `governor.conversation.origin`, "" in records of earlier versions. `generation` counts what upstream
    generated for one request: a call that was withheld by a notice is of an earlier generation than the calls
    that came after the notice.

    `reply` is `governor.conversation.reply_origin` of the message that the client got without this call, ""
    where it passed or others did: no history has a withheld call, and that message leads back to it.

    `outcome`, `entropy_after`, `probe_after`, `returned` (when the request with the result came, by the same
    clock) and `result` (a digest of it) are filled in by the next turn, once the call's result is in the
    context; `stub` says why a stub stands in its place, "" where none does.
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
    generation: int = 0
    result: str = ""
    reply: str = ""

    @property
    def key(self) -> Key:
        """The same for all records of one call, and another one for every other call."""
        return self.conversation, self.created, self.generation, self.index, self.call_id

    @property
    def index(self) -> int:
        """The place of the call in its message."""
        return int(self.decision.get("index", 0))

    @property
    def passed(self) -> bool:
        """Whether the call reached the agent."""
        return bool(self.decision.get("action", "pass") == "pass")

    @property
    def noticed(self) -> bool:
        """Whether the model read a notice in place of the call's result."""
        return bool(self.decision.get("action") == "notice")

    @property
    def judged(self) -> bool:
        """Whether a policy had its say. What is only observed is judged after its delivery."""
        return bool(self.decision.get("reason") != Reason.NOT_JUDGED)

    @property
    def evidence_step(self) -> int:
        """The step that the call was judged at: `step`, and one more for each notice before it."""
        step = self.signals.get("step")
        return self.step if step is None else int(step)

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
        known = known_fields(cls, data)
        for name in ("probe_before", "probe_after"):
            if known.get(name) is not None:
                known[name] = ProbeAnswer(**known_fields(ProbeAnswer, known[name]))
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


def signature_digest(signature: str) -> str:
    """The digest of a signature, also of one that is a digest already."""
    return digest(signature) if signature.endswith(")") else signature


def merge(one: CallRecord, other: CallRecord) -> CallRecord:
    """All that two records of one call know of it.

    Commutative, associative and idempotent, so that several writers can complete a record in any order and
    through any number of copies. What is known wins over what is not, text over its digest, and a judgement
    over none. Where two requests brought the same result, the earlier time counts; of their two measurements
    one is kept, the same whatever the order.
    """
    if one == other:
        return one
    return replace(
        _better_judged(one, other),
        signature=max(one.signature, other.signature, key=_plainness),
        entropy_before=_most(one.entropy_before, other.entropy_before),
        entropy_after=_most(one.entropy_after, other.entropy_after),
        probe_before=_fuller(one.probe_before, other.probe_before),
        probe_after=_fuller(one.probe_after, other.probe_after),
        usage=_counts(one.usage, other.usage),
        turn_usage=_counts(one.turn_usage, other.turn_usage),
        returned=_least(one.returned, other.returned),
        origin=max(one.origin, other.origin),
        outcome=max(one.outcome, other.outcome),
        result=max(one.result, other.result),
        stub=max(one.stub, other.stub),
        reply=max(one.reply, other.reply),
    )


def _better_judged(one: CallRecord, other: CallRecord) -> CallRecord:
    """The one that says more of the judgement. What is judged together is kept together."""
    first, second = _fullness(one), _fullness(other)
    if first != second:
        return one if first > second else other
    if _judgement(one) == _judgement(other):
        return one
    # Written out, any two can be compared; it takes longer than all the rest.
    return max(one, other, key=lambda record: json.dumps(_judgement(record), sort_keys=True, default=str))


def _fullness(record: CallRecord) -> tuple[bool, bool]:
    return record.judged, "arguments" in record.decision


def _judgement(record: CallRecord) -> tuple[Any, ...]:
    return (
        record.decision,
        record.signals,
        record.rule,
        record.explored,
        record.tool,
        record.effect,
        record.schema,
        record.model,
        record.arm,
        record.step,
    )


def _plainness(signature: str) -> tuple[bool, str]:
    """A signature ends with a bracket, its digest does not."""
    return signature.endswith(")"), signature


def _most(one: float | None, other: float | None) -> float | None:
    return max((value for value in (one, other) if value is not None), default=None)


def _least(one: float | None, other: float | None) -> float | None:
    return min((value for value in (one, other) if value is not None), default=None)


def _fuller(one: ProbeAnswer | None, other: ProbeAnswer | None) -> ProbeAnswer | None:
    if one is None or other is None or one == other:
        return other if one is None else one
    return max(one, other, key=lambda probe: (bool(probe.text), astuple(probe)))


def _counts(one: Mapping[str, int], other: Mapping[str, int]) -> Mapping[str, int]:
    return {key: max(one.get(key, 0), other.get(key, 0)) for key in {**one, **other}}


def _silent(probe: ProbeAnswer | None) -> ProbeAnswer | None:
    return None if probe is None else replace(probe, text="")


def known_fields(cls: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """What `data` has of the fields of a dataclass; the others are of a later version. Raises TypeError where
    it is no object."""
    if not isinstance(data, Mapping):
        raise TypeError(f"{cls.__name__} from {type(data).__name__}")
    # What `dataclasses.fields` gives it makes anew each time, which takes as long as all the rest.
    return {key: value for key, value in data.items() if key in cls.__dataclass_fields__}
