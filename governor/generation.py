"""One generation of upstream on the way to the client's message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from governor.decision import Decision
from governor.governance import Governance
from governor.hold import Held, Hold
from governor.judge import Measures, NoProbe, ProbeState, Proposal
from governor.probe import ProbeAnswer
from governor.request import Json
from governor.turn import Turn


class Purpose(StrEnum):
    """What a request to upstream is for. A probe never streams, nor does one for a label alone; the
    others do as the client does. REQUEST is the client's own."""

    REQUEST = "request"
    PROBE = "probe"
    LABEL = "label"
    ANSWER = "answer"
    CONTINUATION = "continuation"


@dataclass(slots=True)
class Generation:
    """`added` are the messages that the governor put between the client's and this generation, which is
    measured as `governance` says."""

    purpose: Purpose
    added: Sequence[Any]
    turn: Turn
    hold: Hold
    governance: Governance
    response: Json | None = None
    probe: ProbeState = NoProbe.NOT_ASKED
    probe_response: Json | None = None
    proposals: Sequence[Proposal] = ()
    decisions: tuple[Decision, ...] = ()
    held: Sequence[Held] = ()
    """What waited when its calls were withheld."""
    shown: bool = False
    """Whether the client has some of it."""
    _measures: Measures | None = None

    @property
    def measures(self) -> Measures:
        """The figures of its turn, taken when they are first asked for; none before upstream is done."""
        if self.turn.finish_reason is None:
            return Measures()
        if self._measures is None:
            self._measures = Measures.of(self.turn, self.governance)
        return self._measures

    @property
    def withheld(self) -> frozenset[int]:
        return frozenset(decision.call.index for decision in self.decisions if decision.withheld)

    @property
    def forced(self) -> ProbeAnswer | None:
        """The forced answer at this generation's place, if there is one."""
        return self.probe if isinstance(self.probe, ProbeAnswer) else None
