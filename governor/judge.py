"""From a turn to a proposal for each of its calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, Final

from governor.calls import CallSignature, ToolCall, ToolEffect, schemas_of, tool_names
from governor.conversation import ExecutedCall, executed_calls, pending_calls, step, withheld_signatures
from governor.decision import InputValue, Reason
from governor.governance import Governance
from governor.policies import NEED_PROBE, Evidence, Judgement, NeedProbe, Verdict
from governor.policies.policy import exemption
from governor.probe import ProbeAnswer
from governor.records import CallRecord
from governor.rules import find
from governor.spans import call_tokens, decision_token, mean_entropy, segment
from governor.turn import Turn
from governor.volatility import changed_tools


class NoProbe(Enum):
    """Why there is no probe to judge by: none was asked for yet, it gave no answer, none may be asked for, or
    upstream is known to refuse it."""

    NOT_ASKED = "not_asked"
    FAILED = "failed"
    NOT_ALLOWED = "not_allowed"
    REFUSED = "refused"


ProbeState = ProbeAnswer | NoProbe

_WITHOUT_PROBE: Final[Mapping[ProbeState, Reason]] = {
    NoProbe.NOT_ALLOWED: Reason.NO_PROBE,
    NoProbe.REFUSED: Reason.UPSTREAM_REFUSES,
}


@dataclass(frozen=True, slots=True)
class Proposal:
    """What is to become of one call, before it is known what a withheld call turns into.

    `rule` is the reason of the rule that speaks against the call, "" if none does, whether or not the policy
    follows it.
    """

    evidence: Evidence
    withhold: bool
    reason: Reason
    tier: int | None = None
    inputs: Mapping[str, InputValue] = field(default_factory=dict)
    rule: str = ""

    @property
    def call(self) -> ToolCall:
        return self.evidence.call


@dataclass(frozen=True, slots=True)
class Measures:
    """The figures of one turn, in nats; None where upstream did not send the logprobs of every token."""

    segment_entropy: float | None = None
    decision_entropy: float | None = None
    decision_margin: float | None = None
    arguments: tuple[float | None, ...] = ()

    @classmethod
    def of(cls, turn: Turn, governance: Governance) -> Measures:
        """The figures of `turn`."""
        calls = turn.calls
        if turn.has_gaps or not turn.measured:
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

    `known` are the records of the conversation's earlier calls, oldest first, as far as they are known by
    now; `missing` are the signatures of those whose results a stub told the model to ask for again.
    """

    def __init__(
        self, governance: Governance, body: Mapping[str, Any], known: Sequence[CallRecord] = ()
    ) -> None:
        tools = body.get("tools") or ()
        self._messages: Sequence[Any] = body["messages"]
        self._governance = governance
        self._tools = tools
        self._model = str(body.get("model") or "")
        self.known = known
        self.missing: AbstractSet[CallSignature] = frozenset()
        self.catalog = governance.catalog.with_tools(tools)
        self.errors: list[Exception] = []
        self.refused = False
        """Upstream took the client's own request only: every call passes."""

    @cached_property
    def _schemas(self) -> Mapping[str, str]:
        return schemas_of(self._tools)

    @cached_property
    def executed(self) -> tuple[ExecutedCall, ...]:
        """The calls of the client's history."""
        return executed_calls(self._messages, self.catalog)

    @cached_property
    def tool_names(self) -> tuple[str, ...]:
        """The tools that the model is offered."""
        return tool_names(self._tools)

    @cached_property
    def changed(self) -> frozenset[str]:
        """The tools that changed their answers by themselves in the client's history."""
        return changed_tools(self.executed)

    @property
    def model(self) -> str:
        """The model that the client asks for."""
        return self._model

    def schema(self, tool: str) -> str:
        """The fingerprint of a tool's description, "" if the request has none."""
        return self._schemas.get(tool, "")

    @property
    def only_read_only(self) -> bool:
        """Whether the model is offered nothing but read-only tools."""
        return all(self.governs(name) for name in self.tool_names)

    def governs(self, tool: str) -> bool:
        """Whether a call of `tool` may be withheld: of one that the model was offered. Under another name the
        client may know any of its tools, `Book` for `book`, and no pattern was written for such a name."""
        return self.catalog.effect(tool) is ToolEffect.READ_ONLY and tool in self.tool_names

    def effect_of(self, call: ToolCall) -> ToolEffect:
        """The effect of a call that the model proposes; unknown of a tool that it was not offered."""
        effect = self.catalog.effect_of(call)
        offered = effect is not ToolEffect.READ_ONLY or call.name in self.tool_names
        return effect if offered else ToolEffect.UNKNOWN

    def judge(
        self, turn: Turn, measures: Measures, added: Sequence[Any], probe: ProbeState
    ) -> tuple[Proposal, ...] | NeedProbe:
        """A proposal for each call, in order; NEED_PROBE while one of them waits for the probe. `added` are
        the calls that were withheld by a notice since the client's last message, and the notices."""
        proposals = tuple(
            self._exempt(evidence) or self._by_policy(evidence, turn, probe)
            for evidence in self._evidence(turn, measures, added, probe)
        )
        settled = tuple(proposal for proposal in proposals if isinstance(proposal, Proposal))
        return settled if len(settled) == len(proposals) else NEED_PROBE

    def let_pass(self, turn: Turn, measures: Measures, added: Sequence[Any]) -> tuple[Proposal, ...]:
        """What becomes of the calls of a message that is not whole: they pass, and nobody judges them."""
        return tuple(
            Proposal(evidence, False, Reason.CUT_MESSAGE)
            for evidence in self._evidence(turn, measures, added, NoProbe.NOT_ASKED)
        )

    def _evidence(
        self, turn: Turn, measures: Measures, added: Sequence[Any], probe: ProbeState
    ) -> Iterable[Evidence]:
        calls = turn.calls
        if not calls:
            return
        history = [done for done in self.executed if done.call.signature not in self.missing]
        # Only in what the governor itself said: a tool's result that reads like a notice unlocks nothing.
        withheld = withheld_signatures(added)
        steps = step([*self._messages, *added])
        probes = [record.probe_before for record in self.known if record.probe_before]
        for place, call in enumerate(calls):
            effect = self.effect_of(call)
            siblings = pending_calls([*calls[:place], *calls[place + 1 :]], self.catalog)
            yield Evidence(
                call=call,
                effect=effect,
                history=(*history, *siblings),
                withheld=withheld,
                step=steps,
                segment_entropy=measures.segment_entropy,
                decision_entropy=measures.decision_entropy,
                decision_margin=measures.decision_margin,
                argument_entropy=measures.arguments[place],
                probe=probe if isinstance(probe, ProbeAnswer) else None,
                previous_probe=probes[-1] if probes else None,
                last=self.known[-1] if self.known else None,
                model=self._model,
                schema=self.schema(call.name),
                volatile=self.catalog.is_volatile(call.name) or call.name in self.changed,
            )

    def _exempt(self, evidence: Evidence) -> Proposal | None:
        exempt = exemption(evidence)
        return Proposal(evidence, False, exempt.reason) if exempt else None

    def _by_policy(self, evidence: Evidence, turn: Turn, probe: ProbeState) -> Proposal | NeedProbe:
        rule = ""
        try:
            rules, volatile = self._governance.rules, evidence.volatile
            if found := find(evidence.call, evidence.history, rules, volatile=volatile):
                rule = found.reason.value
            judgement: Judgement = self._governance.policy.judge(evidence)
        except Exception as error:
            self.errors.append(error)
            return Proposal(evidence, False, Reason.POLICY_ERROR, rule=rule)
        if self.refused:
            return Proposal(evidence, False, Reason.UPSTREAM_REFUSES, rule=rule)
        if isinstance(judgement, Verdict):
            return Proposal(
                evidence, judgement.withhold, judgement.reason, judgement.tier, judgement.inputs, rule
            )
        if not turn.measured:
            return Proposal(evidence, False, Reason.NO_LOGPROBS, rule=rule)
        if probe is NoProbe.NOT_ASKED:
            return NEED_PROBE
        reason = _WITHOUT_PROBE.get(probe, Reason.PROBE_FAILED)
        return Proposal(evidence, False, reason, rule=rule)
