"""From a turn to a proposal for each of its calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from governor.calls import CallSignature, ToolCall, ToolEffect, tool_names
from governor.conversation import executed_calls, pending_calls, step, withheld_signatures
from governor.decision import InputValue, Reason
from governor.governance import Governance
from governor.policies import NEED_PROBE, Evidence, Judgement, NeedProbe, Verdict
from governor.probe import ProbeAnswer
from governor.spans import call_tokens, decision_token, mean_entropy, segment
from governor.turn import Turn


class NoProbe(Enum):
    """Why there is no probe to judge by: none was asked for yet, or it gave no answer."""

    NOT_ASKED = "not_asked"
    FAILED = "failed"


ProbeState = ProbeAnswer | NoProbe


@dataclass(frozen=True, slots=True)
class Proposal:
    """What is to become of one call, before it is known what a withheld call turns into."""

    call: ToolCall
    withhold: bool
    reason: Reason
    tier: int | None = None
    inputs: Mapping[str, InputValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measures:
    """The figures of one turn, in nats; None where upstream sent no logprobs."""

    segment_entropy: float | None = None
    decision_entropy: float | None = None
    decision_margin: float | None = None
    arguments: tuple[float | None, ...] = ()

    @classmethod
    def of(cls, turn: Turn, governance: Governance) -> Measures:
        """The figures of `turn`."""
        calls = turn.calls
        if not turn.measured:
            return cls(arguments=(None,) * len(calls))
        spans = turn.spans()
        decision = decision_token(turn.tokens, spans)
        return cls(
            mean_entropy(segment(turn.tokens, spans, governance.segment_kinds)),
            decision.entropy.value if decision else None,
            decision.margin if decision else None,
            tuple(mean_entropy(call_tokens(turn.tokens, spans, place)) for place in range(len(calls))),
        )


class Judge:
    """Puts the evidence on each call of a turn together and asks the policy.

    What the policy is never asked about: calls of tools that are not read-only, and calls that the model
    repeats after a notice. An exception in the policy lets the call pass and is kept in `errors`.
    """

    def __init__(
        self, governance: Governance, tools: Sequence[Any], previous_probe: ProbeAnswer | None = None
    ) -> None:
        self._governance = governance
        self._tools = tools
        self._previous_probe = previous_probe
        self.catalog = governance.catalog.with_tools(tools)
        self.errors: list[Exception] = []

    @property
    def only_read_only(self) -> bool:
        """Whether the model is offered nothing but read-only tools."""
        return all(self.governs(name) for name in tool_names(self._tools))

    def governs(self, tool: str) -> bool:
        """Whether a call of `tool` may be withheld."""
        return self.catalog.effect(tool) is ToolEffect.READ_ONLY

    def judge(
        self, turn: Turn, measures: Measures, messages: Sequence[Any], probe: ProbeState
    ) -> tuple[Proposal, ...] | NeedProbe:
        """A proposal for each call, in order; NEED_PROBE while one of them waits for the probe."""
        proposals = tuple(self._proposals(turn, measures, messages, probe))
        settled = tuple(proposal for proposal in proposals if isinstance(proposal, Proposal))
        return settled if len(settled) == len(proposals) else NEED_PROBE

    def _proposals(
        self, turn: Turn, measures: Measures, messages: Sequence[Any], probe: ProbeState
    ) -> Iterable[Proposal | NeedProbe]:
        calls = turn.calls
        if not calls:
            return
        history = executed_calls(messages, self.catalog)
        withheld = withheld_signatures(messages)
        for place, call in enumerate(calls):
            effect = self.catalog.effect(call.name)
            siblings = pending_calls([*calls[:place], *calls[place + 1 :]], self.catalog)
            evidence = Evidence(
                call=call,
                effect=effect,
                history=(*history, *siblings),
                withheld=withheld,
                step=step(messages),
                segment_entropy=measures.segment_entropy,
                decision_entropy=measures.decision_entropy,
                decision_margin=measures.decision_margin,
                argument_entropy=measures.arguments[place],
                probe=probe if isinstance(probe, ProbeAnswer) else None,
                previous_probe=self._previous_probe,
            )
            yield self._exempt(call, effect, withheld) or self._by_policy(evidence, turn, probe)

    def _exempt(
        self, call: ToolCall, effect: ToolEffect, withheld: frozenset[CallSignature]
    ) -> Proposal | None:
        if effect is ToolEffect.EFFECTFUL:
            return Proposal(call, False, Reason.EFFECTFUL_TOOL)
        if effect is ToolEffect.UNKNOWN:
            return Proposal(call, False, Reason.UNKNOWN_TOOL)
        if call.signature in withheld:
            return Proposal(call, False, Reason.ASKED_AGAIN)
        return None

    def _by_policy(self, evidence: Evidence, turn: Turn, probe: ProbeState) -> Proposal | NeedProbe:
        try:
            judgement: Judgement = self._governance.policy.judge(evidence)
        except Exception as error:
            self.errors.append(error)
            return Proposal(evidence.call, False, Reason.POLICY_ERROR)
        if isinstance(judgement, Verdict):
            return Proposal(
                evidence.call, judgement.withhold, judgement.reason, judgement.tier, judgement.inputs
            )
        if not turn.measured:
            return Proposal(evidence.call, False, Reason.NO_LOGPROBS)
        if probe is not NoProbe.NOT_ASKED:
            return Proposal(evidence.call, False, Reason.PROBE_FAILED)
        return NEED_PROBE
