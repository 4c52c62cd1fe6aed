"""What one exchange writes down: the records of its calls, and what it adds to those of earlier ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

from governor.conversation import last_question, origin, step
from governor.decision import Decision, Reason
from governor.experiment import Arm
from governor.generation import Generation, Purpose
from governor.judge import Judge, Proposal
from governor.probe import ProbeAnswer
from governor.pruning import Pruning
from governor.records import CallRecord
from governor.request import Json, fresh_result_ids
from governor.signals import Signals, signals
from governor.turn_record import TurnRecord

TOKENS: Final = ("prompt_tokens", "completion_tokens")


@dataclass(slots=True)
class Costs:
    """Tokens of the requests that the governor added, by `Purpose`."""

    tokens: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, purpose: Purpose, usage: object) -> None:
        """`usage` is what upstream says of it; what is no number of tokens counts as none."""
        costs = self.tokens.setdefault(purpose.value, dict.fromkeys(TOKENS, 0))
        for key in costs:
            tokens = usage.get(key) if isinstance(usage, Mapping) else None
            costs[key] += tokens if isinstance(tokens, int) and tokens > 0 else 0


class Ledger:
    """`known` are the records of the calls in the history of `body` that were found, oldest first, and
    `fresh` the ids of the calls whose results came with it; `generations` is what the exchange adds to; `now`
    is in seconds."""

    def __init__(
        self,
        body: Json,
        known: Sequence[CallRecord],
        judge: Judge,
        generations: Sequence[Generation],
        *,
        conversation: str,
        arm: Arm,
        now: float,
    ) -> None:
        self._body, self.known, self._judge, self._generations = body, known, judge, generations
        self._conversation, self._arm, self._now = conversation, arm, now
        self.fresh = fresh_result_ids(body)
        self.step = step(body["messages"])
        self.costs = Costs()

    @cached_property
    def _asked(self) -> str:
        return last_question(self._body["messages"])

    def new(self) -> tuple[CallRecord, ...]:
        """A record for each call decided on."""
        return tuple(
            self._record(generation, proposal, decision)
            for generation in self._generations
            for proposal, decision in zip(generation.proposals, generation.decisions, strict=False)
        )

    def _record(self, generation: Generation, proposal: Proposal, decision: Decision) -> CallRecord:
        return CallRecord(
            call_id=decision.call.id,
            conversation=self._conversation,
            tool=decision.call.name,
            signature=str(decision.call.signature),
            step=self.step,
            decision=decision.as_dict(),
            created=self._now,
            entropy_before=generation.measures.segment_entropy,
            probe_before=generation.forced,
            usage=dict(self.costs.tokens.get(Purpose.PROBE.value, {})),
            model=proposal.evidence.model,
            schema=proposal.evidence.schema,
            effect=proposal.evidence.effect.value,
            arm=self._arm.value,
            explored=decision.reason is Reason.EXPLORATION,
            signals={} if decision.reason is Reason.UNFINISHED else _signals(generation, proposal),
            rule=proposal.rule,
            turn_usage=_counted(generation.turn.usage),
            origin=origin(self._asked, str(decision.call.signature)),
        )

    def completed(self, pruning: Pruning) -> tuple[CallRecord, ...]:
        """The known records of the calls whose results came with this request, with what they led to."""
        if not self.known:
            return ()
        outcomes = {done.call.id: done.outcome.value for done in self._judge.executed}
        after, probe = self._generations[0].measures.segment_entropy, self.answer_after()
        return tuple(
            replace(
                record,
                outcome=record.outcome or outcomes.get(record.call_id, ""),
                entropy_after=after if record.entropy_after is None else record.entropy_after,
                probe_after=probe if record.probe_after is None else record.probe_after,
                stub=str(pruning.stubs.get(record.call_id, "")),
                returned=self._now if record.returned is None else record.returned,
            )
            for record in self.known
            if record.call_id in self.fresh
        )

    def turn(self, *, ended: float, seconds: float) -> TurnRecord | None:
        """What the client's message took, which it had at `ended` after `seconds`; None in a conversation
        that proposed no call so far."""
        last = self._generations[-1]
        proposed = sum(len(generation.turn.calls) for generation in self._generations)
        if not proposed and not self.known:
            return None
        delivered = (call.name for call in last.turn.calls if call.index not in last.withheld)
        own = self.costs.tokens.values()
        return TurnRecord(
            conversation=self._conversation,
            arm=self._arm.value,
            created=self._now,
            begun=min([record.created for record in self.known], default=self._now),
            ended=ended,
            seconds=seconds,
            proposed=proposed,
            delivered=Counter(delivered),
            usage=_counted(self._generations[0].turn.usage),
            own_usage={key: sum(cost[key] for cost in own) for key in TOKENS} if own else {},
        )

    def stubbed(self, pruning: Pruning) -> tuple[CallRecord, ...]:
        """The records of earlier results that a stub stands for from now on."""
        return tuple(
            replace(record, stub=str(pruning.stubs[record.call_id]))
            for record in self.known
            if record.call_id in pruning.new - self.fresh
        )

    def unlabelled(self) -> Sequence[CallRecord]:
        """The records of the calls whose results came with this request and lack nothing for a label but
        the second answer."""
        return [
            record
            for record in self.known
            if record.call_id in self.fresh and record.probe_before and record.probe_after is None
        ]

    def answer_after(self) -> ProbeAnswer | None:
        """The forced answer with the results in the context. A turn that answers by itself, greedily and
        without reasoning, is one too, at the same position and for nothing."""
        first = self._generations[0]
        if first.forced:
            return first.forced
        if first.turn.calls or first.turn.reasoning or first.turn.malformed or not first.turn.measured:
            return None
        if self._body.get("temperature") != 0 or not first.turn.is_whole:
            return None
        return first.turn.as_answer(self._judge.tool_names)


def _signals(generation: Generation, proposal: Proposal) -> Signals:
    return signals(replace(proposal.evidence, probe=generation.forced), proposal.rule)


def _counted(usage: object) -> dict[str, int]:
    """Upstream's token counts; empty where it told none."""
    given = usage if isinstance(usage, Mapping) else {}
    counts = {key: given.get(key) for key in TOKENS}
    return {key: count for key, count in counts.items() if isinstance(count, int)}
