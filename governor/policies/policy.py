"""What a policy sees and says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal, Protocol

from governor.calls import CallSignature, ToolCall, ToolEffect
from governor.conversation import ExecutedCall
from governor.decision import InputValue, Reason
from governor.probe import ProbeAnswer
from governor.records import CallRecord
from governor.signals import Signals


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known when one call is judged.

    `history` is `executed_calls(messages)` followed by `pending_calls` of the OTHER calls of the same
    message: a sibling with an effect makes an earlier result stale. `withheld` are the signatures that a
    notice already answered since the client's last message. `last` is the record of the conversation's last
    executed call, where it was found; `model` and `schema` say for which model and which description of the
    tool (`governor.calls.schemas_of`) all of this was measured. `volatile`: the tool may give another answer
    to the same call each time. `signals` are those that were recorded when the call was judged; None while it
    is judged for the first time.
    """

    call: ToolCall
    effect: ToolEffect
    history: tuple[ExecutedCall, ...] = ()
    withheld: frozenset[CallSignature] = frozenset()
    step: int = 0
    segment_entropy: float | None = None
    decision_entropy: float | None = None
    decision_margin: float | None = None
    argument_entropy: float | None = None
    probe: ProbeAnswer | None = None
    previous_probe: ProbeAnswer | None = None
    last: CallRecord | None = None
    model: str = ""
    schema: str = ""
    volatile: bool = False
    signals: Signals | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to withhold the call, why, and on which figures."""

    withhold: bool
    reason: Reason
    tier: int
    inputs: Mapping[str, InputValue] = field(default_factory=dict)


class NeedProbe(Enum):
    """The policy cannot say without the probe: run it and ask again with `Evidence.probe` set."""

    NEED_PROBE = "need_probe"


NEED_PROBE: Final = NeedProbe.NEED_PROBE
Judgement = Verdict | Literal[NeedProbe.NEED_PROBE]


class Policy(Protocol):
    """A policy is a value: it keeps no state between calls, and the same evidence gets the same verdict."""

    @property
    def name(self) -> str: ...

    def judge(self, evidence: Evidence) -> Judgement:
        """The verdict on one call; NEED_PROBE only while `evidence.probe` is None."""
        ...


def exemption(evidence: Evidence) -> Verdict | None:
    """The verdict on a call that no policy may withhold: its tool is not known to be read-only, or the
    model asks for it again after a notice. None for any other call."""
    if evidence.effect is ToolEffect.EFFECTFUL:
        return Verdict(False, Reason.EFFECTFUL_TOOL, 0)
    if evidence.effect is ToolEffect.UNKNOWN:
        return Verdict(False, Reason.UNKNOWN_TOOL, 0)
    if evidence.call.signature in evidence.withheld:
        return Verdict(False, Reason.ASKED_AGAIN, 0)
    return None
