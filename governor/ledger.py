"""What one exchange writes down: the records of its calls, and what it adds to those of earlier ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

from governor.calls import ToolEffect
from governor.conversation import AnsweredCall, last_question, origin, reply_origin, step
from governor.decision import Action, Decision, Reason
from governor.experiment import Arm
from governor.generation import Generation, Purpose
from governor.judge import Judge
from governor.probe import ProbeAnswer
from governor.pruning import Pruning
from governor.records import CallRecord
from governor.request import Json
from governor.signals import signals
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


@dataclass(frozen=True, slots=True)
class Known:
    """A call of the client's history, and what was recorded of it."""

    call: AnsweredCall
    record: CallRecord

    @property
    def key(self) -> str:
        return self.call.key

    @property
    def lacks_answer(self) -> bool:
        """Whether its result came with this request and nothing is missing for a label but the second
        answer."""
        return self.call.fresh and self.record.probe_before is not None and self.record.probe_after is None

    @property
    def may_lack_answer(self) -> bool:
        """The same where the first answer may still come: it is asked for beside the traffic, and a quick
        client is back before it is there."""
        open = self.call.fresh and self.record.probe_after is None and self.record.effect == READ_ONLY
        return self.lacks_answer or (open and self.record.decision.get("reason") not in _WITHOUT_PROBE)


READ_ONLY: Final = ToolEffect.READ_ONLY
_WITHOUT_PROBE: Final = frozenset({Reason.PROBE_FAILED, Reason.NO_LOGPROBS, Reason.NO_PROBE})


class Ledger:
    """`known` are the calls in the history of `body` that records were found of, oldest first; `generations`
    is what the exchange adds to; `now` and `began` are in seconds."""

    def __init__(
        self,
        body: Json,
        known: Sequence[Known],
        judge: Judge,
        generations: Sequence[Generation],
        *,
        conversation: str,
        arm: Arm,
        now: float,
        began: float | None,
    ) -> None:
        self._began = began
        self._body, self.known, self._judge, self._generations = body, known, judge, generations
        self._conversation, self._arm, self._now = conversation, arm, now
        self.step = step(body["messages"])
        self.costs = Costs()

    @cached_property
    def _asked(self) -> str:
        return last_question(self._body["messages"])

    @property
    def fresh(self) -> frozenset[str]:
        """The keys of the known calls whose results came with this request."""
        return frozenset(known.key for known in self.known if known.call.fresh)

    def new(self, said: str) -> tuple[CallRecord, ...]:
        """A record for each call that was generated: with its decision, or, where the client has it before
        it is judged, without. `said` is the client's message where no call is in it."""
        reply = reply_origin(self._asked, said) if said else ""
        return tuple(
            replace(record, reply="" if record.passed else reply)
            for number, generation in enumerate(self._generations)
            for record in (self._judged if generation.decisions else self._delivered)(number, generation)
        )

    def _judged(self, number: int, generation: Generation) -> Iterator[CallRecord]:
        for proposal, decision in zip(generation.proposals, generation.decisions, strict=False):
            evidence = proposal.evidence
            yield replace(
                self._begun(number, generation, decision),
                entropy_before=generation.measures.segment_entropy,
                probe_before=generation.forced,
                usage=dict(self.costs.tokens.get(Purpose.PROBE.value, {})),
                explored=decision.reason is Reason.EXPLORATION,
                signals={}
                if decision.reason is Reason.CUT_MESSAGE
                else signals(replace(evidence, probe=generation.forced), proposal.rule),
                rule=proposal.rule,
            )

    def _delivered(self, number: int, generation: Generation) -> Iterator[CallRecord]:
        """Nothing is measured here: the client waits for its message. Where the arguments may be
        incomplete, the call would look like another one."""
        turn = generation.turn
        if turn.finish_reason is None or turn.malformed:
            return
        reason = Reason.NOT_JUDGED if turn.is_whole else Reason.CUT_MESSAGE
        for call in turn.calls:
            yield self._begun(number, generation, Decision(call, Action.PASS, Action.PASS, reason))

    def _begun(self, number: int, generation: Generation, decision: Decision) -> CallRecord:
        call = decision.call
        return CallRecord(
            call_id=call.id,
            conversation=self._conversation,
            tool=call.name,
            signature=str(call.signature),
            step=self.step,
            decision=decision.as_dict(),
            created=self._now,
            model=self._judge.model,
            schema=self._judge.schema(call.name),
            effect=self._judge.effect_of(call).value,
            arm=self._arm.value,
            turn_usage=_counted(generation.turn.usage),
            origin=origin(self._asked, str(call.signature)),
            generation=number,
        )

    def returned(self) -> tuple[CallRecord, ...]:
        """The known records of the calls whose results came with this request, with what these say."""
        return tuple(
            replace(
                known.record,
                outcome=known.record.outcome or known.call.outcome(self._judge.catalog.failures).value,
                returned=self._now if known.record.returned is None else known.record.returned,
                result=known.record.result or known.call.result,
            )
            for known in self.known
            if known.call.fresh
        )

    def completed(self, pruning: Pruning) -> tuple[CallRecord, ...]:
        """The same, with what the results led to. Without a result nothing is measured."""
        if not self.fresh:
            return ()
        after, probe = self._generations[0].measures.segment_entropy, self.answer_after()
        keys = [known.key for known in self.known if known.call.fresh]
        return tuple(
            replace(
                record,
                entropy_after=after if record.entropy_after is None else record.entropy_after,
                probe_after=probe if record.probe_after is None else record.probe_after,
                stub=str(pruning.stubs.get(key, "")),
            )
            for key, record in zip(keys, self.returned(), strict=True)
        )

    def turn(self, *, ended: float, seconds: float) -> TurnRecord | None:
        """What the client's message took, which it had at `ended` after `seconds`; None in a conversation
        that proposed no call so far."""
        last = self._generations[-1]
        proposed = sum(len(generation.turn.calls) for generation in self._generations)
        began = [known.record.created for known in self.known]
        began += [] if self._began is None else [self._began]
        if not proposed and not began:
            return None
        delivered = (call.name for call in last.turn.calls if call.index not in last.withheld)
        own = self.costs.tokens.values()
        return TurnRecord(
            conversation=self._conversation,
            arm=self._arm.value,
            created=self._now,
            begun=min(began, default=self._now),
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
            replace(known.record, stub=str(pruning.stubs[known.key]))
            for known in self.known
            if known.key in pruning.new and not known.call.fresh
        )

    def unlabelled(self) -> Sequence[Known]:
        """The calls whose results came with this request and lack nothing for a label but the second
        answer."""
        return [known for known in self.known if known.lacks_answer]

    def maybe_unlabelled(self) -> Sequence[Known]:
        """The same, with those whose first answer may still come."""
        return [known for known in self.known if known.may_lack_answer]

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


def _counted(usage: object) -> dict[str, int]:
    """Upstream's token counts; empty where it told none."""
    given = usage if isinstance(usage, Mapping) else {}
    counts = {key: given.get(key) for key in TOKENS}
    return {key: count for key, count in counts.items() if isinstance(count, int)}
