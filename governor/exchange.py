"""One governed chat request, from the client's body to the client's message, without any I/O.

Theory of operation. The caller owns the sockets; the exchange says what to do with them:

1. `admission` may ask for a probe that decides whether a fresh result is worth its place in the prompt.
2. `request` goes upstream. Stream chunks come in through `receive`, which returns what the client gets at
   once; a whole response comes in through `receive_response`.
3. When upstream is done, `finish` returns the next step. `Ask`: send this body upstream. A probe's response
   comes back through `probe_answered` or `probe_failed`, which return the next step; an answer or a
   continuation is a generation like the first one, and comes back through `receive` or `receive_response`,
   then `finish`. `Deliver`: the rest of what the client gets.
4. `review` does what is to be done once the client has its message, with the same steps: judging what is
   only observed, and labelling the calls whose results came with this request.
5. `interrupted` says what the client gets when something broke: whatever waits, as upstream sent it.

Streamed or not, the turn is collected, judged and turned into a message by the same code, so both ways give
the same message and the same decisions for the same generation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import Any

from governor.admission import Admission, Messages
from governor.chunk import edited
from governor.conversation import AnsweredCall, answered_calls
from governor.conversations import after
from governor.decision import Action, Decision, Mode, Reason
from governor.delivery import Delivery
from governor.errors import ProbeFailed, TurnMalformed
from governor.experiment import Arm
from governor.explanation import explanation
from governor.fields import repeated
from governor.generation import Generation, Purpose
from governor.governance import Governance
from governor.hold import Hold
from governor.judge import Judge, NoProbe, Proposal
from governor.ledger import Known, Ledger
from governor.markup import CallWatch
from governor.message import joined
from governor.notices import notice_for
from governor.policies import NeedProbe
from governor.probe import ProbeAnswer, probe_answer, probe_request, without_calls
from governor.pruning import Pruning
from governor.records import CallRecord
from governor.request import ClientView, Json
from governor.transcript import Transcript
from governor.turn import Turn
from governor.turn_record import TurnRecord


class Explain(StrEnum):
    """How much of the decision the client wants to read in the body."""

    NO = "0"
    DECISIONS = "1"
    TOKENS = "tokens"


@dataclass(frozen=True, slots=True)
class Ask:
    """Send `body` upstream."""

    purpose: Purpose
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Deliver:
    """The end: the last chunks of a stream, or the whole body of a response."""

    chunks: tuple[Json, ...] = ()
    body: Json | None = None


Step = Ask | Deliver

STRONGEST_FIRST = (Action.ANSWER, Action.NOTICE, Action.DROP)


class _Phase(Enum):
    """Where the exchange is, as far as the answer to a probe needs to know."""

    ADMISSION = "admission"
    LEAVING_OUT = "leaving_out"
    DECISION = "decision"
    REVIEW = "review"
    LABEL = "label"


class Exchange:
    """The state of one governed request.

    `body` is the client's parsed request, one that `request.untouched` has nothing against. `history` is
    `answered_calls` of its messages, where the caller has it already; `records` are those of its calls that
    were found, by `AnsweredCall.key`. `now` is the time of the request in seconds, for the records, and
    `began` that of the first call on record in this conversation, None where there is none.
    `probe_when_observing` False: nothing is asked upstream that the client did not ask for, where nothing is
    governed.
    """

    def __init__(
        self,
        body: Json,
        governance: Governance,
        *,
        records: Mapping[str, CallRecord] | None = None,
        history: Sequence[AnsweredCall] | None = None,
        conversation: str = "",
        began: float | None = None,
        now: float = 0.0,
        explain: Explain = Explain.NO,
        probe_when_observing: bool = True,
    ) -> None:
        self.history = answered_calls(body["messages"]) if history is None else history
        self._body = body
        self._governance = governance
        self.conversation = conversation
        self._explain = explain
        self._view = ClientView.of(body, governance.top_logprobs)
        known = [Known(call, record) for call in self.history if (record := (records or {}).get(call.key))]
        self._judge = Judge(governance, body, [each.record for each in known])
        enforcing = governance.mode is Mode.ENFORCE
        self.arm = governance.experiment.arm(conversation, enforcing=enforcing)
        # A client that records token ids wants the sequence that was generated, not a message of several.
        self._acts = self.arm is Arm.GOVERNED and not body.get("return_token_ids")
        self._phase = _Phase.DECISION
        self._answered: ProbeAnswer | None = None
        self._now = after(now, self._judge.known)
        self._probe_failures: list[str] = []
        self._generations = [self._generation(Purpose.REQUEST, ())]
        self._ledger = Ledger(
            body,
            known,
            self._judge,
            self._generations,
            conversation=conversation,
            arm=self.arm,
            now=self._now,
            began=began,
        )
        self._admission = Admission(body, governance, self._judge, self._ledger)
        self._labels = governance.experiment.labelled(conversation, self._ledger.step, self.arm)
        self._may_probe = self._acts or (probe_when_observing and self._labels)
        self._delivery = Delivery(self._view, self._generations)

    # What the caller reads

    @property
    def streams(self) -> bool:
        """Whether the client asked for a stream."""
        return bool(self._body.get("stream"))

    @property
    def view(self) -> ClientView:
        """What of an answer the client asked for. What comes in may have its logprobs `Unread` where it did
        not ask for them."""
        return self._view

    @property
    def model(self) -> str:
        """The model that the client asks for."""
        return str(self._body.get("model") or "")

    @property
    def changes_request(self) -> bool:
        """Whether upstream gets more or other than what the client sent; known after `admission`."""
        return not self._view.shows_all or bool(self.pruning.stubs)

    @property
    def request(self) -> dict[str, Any]:
        """What to send upstream for the client's request, after `admission`."""
        return self._view.request(self._sent(()))

    @property
    def turn(self) -> Turn:
        """The last turn that upstream generated, as far as it came in."""
        return self._generations[-1].turn

    @property
    def answered_by(self) -> str:
        """The model that upstream says it is; "" before it said so."""
        return str((self._generations[-1].response or self._delivery.head).get("model") or "")

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The decisions taken so far."""
        return tuple(decision for generation in self._generations for decision in generation.decisions)

    @property
    def action(self) -> Action:
        """What became of the message: the strongest action taken on one of its calls."""
        taken = {decision.action for decision in self.decisions}
        return next((action for action in STRONGEST_FIRST if action in taken), Action.PASS)

    @property
    def holds(self) -> bool:
        """Whether some of a stream waits for a decision."""
        return self._delivery.holds

    @property
    def mode(self) -> Mode:
        """The mode that this request is governed in."""
        return self._governance.mode

    @property
    def acts(self) -> bool:
        """Whether calls of this conversation may be withheld."""
        return self._acts

    @property
    def pruning(self) -> Pruning:
        """What the model gets to see of the client's messages."""
        return self._admission.pruning

    @property
    def changed_tools(self) -> frozenset[str]:
        """The read-only tools that gave another answer to the same call in the client's history, with nothing
        in between that could have changed it. Read from the results, and those only where a call came twice:
        a long history takes its time."""
        asked = {call.signature for call in self.history}
        return self._judge.changed if len(asked) < len(self.history) else frozenset()

    @property
    def complete(self) -> bool:
        """Whether upstream ended the client's generation as it should."""
        return self._generations[0].turn.finish_reason is not None

    @property
    def missing_logprobs(self) -> bool:
        """Whether upstream did not send the logprobs that were asked for, or not of every token."""
        first = self._generations[0]
        return not self._judge.refused and bool(first.turn.finish_reason) and first.turn.has_gaps

    @property
    def policy_errors(self) -> Sequence[Exception]:
        """What the policy raised; its calls passed."""
        return self._judge.errors

    @property
    def probe_failures(self) -> Sequence[str]:
        """Why probes gave no answer, a word each."""
        return self._probe_failures

    @property
    def costs(self) -> Mapping[str, Mapping[str, int]]:
        """Prompt and completion tokens of what was asked beyond the client's request, by `Purpose`."""
        return self._ledger.costs.tokens

    @property
    def entropy(self) -> float | None:
        """Mean token entropy in nats of the first turn's segment; None before `finish` and without
        logprobs."""
        return self._generations[0].measures.segment_entropy

    def records(self) -> tuple[CallRecord, ...]:
        """The records to store: those of the calls generated, and those whose result came with this request
        or was pruned in it. Each says what this exchange knows, and is to be merged with what is stored."""
        return (*self.new_records(), *self.completed_records(), *self._ledger.stubbed(self.pruning))

    def new_records(self) -> tuple[CallRecord, ...]:
        """A record for each call generated: to be stored before the client has the message, and again once
        it is reviewed."""
        withheld = any(generation.withheld for generation in self._generations)
        return self._ledger.new(self._said() if withheld else "")

    def _said(self) -> str:
        """The client's message where no call is in it, "" where one is."""
        last = self._generations[-1]
        if self._answered is None and len(last.turn.calls) > len(last.withheld):
            return ""
        spoken = [generation.turn.content for generation in self._generations]
        return joined([*spoken, self._answered.text if self._answered else ""], skip_blank=True)

    def returned_records(self) -> tuple[CallRecord, ...]:
        """The known records of the calls whose results came with this request, with what these say: to be
        stored at once, since from now on no other request brings them."""
        return self._ledger.returned()

    def recall(self, latest: Callable[[CallRecord], CallRecord]) -> None:
        """Takes in what has been stored since the exchange began: what is judged or labelled after the
        delivery is so by all that is known then. `latest` gives what is known of a record's call by now."""
        self._ledger.known = [Known(known.call, latest(known.record)) for known in self._ledger.known]
        self._judge.known = [known.record for known in self._ledger.known]

    def completed_records(self) -> tuple[CallRecord, ...]:
        """The known records of the calls whose results came with this request, with what they led to."""
        return self._ledger.completed(self.pruning)

    def turn_record(self, *, ended: float, seconds: float) -> TurnRecord | None:
        """What the client's message took, which it had at `ended` (seconds of the caller's clock) after
        `seconds`; None in a conversation that proposed no call so far, and where upstream did not end its
        generation."""
        return self._ledger.turn(ended=ended, seconds=seconds) if self.complete else None

    @property
    def transcript(self) -> Transcript | None:
        """What was said; None before the generation was complete."""
        if not self.complete:
            return None
        return Transcript.of(
            self._body,
            self._generations,
            answered=self._answered,
            conversation=self.conversation,
            created=self._now,
        )

    # The course of the exchange

    def admission(self) -> Ask:
        """What to send first: a probe, where a fresh result may not be worth its place in the prompt, else
        the client's request."""
        return self._admit(_Phase.ADMISSION, self._admission.begin() if self._acts else None)

    def unmeasured(self) -> None:
        """From here on upstream gets the client's own request, since it refuses what is added to it: what
        came of another one is forgotten, all of the answer is the client's, and every call passes."""
        self._acts = self._may_probe = False
        self._judge.refused, self._judge.missing = True, frozenset()
        self._view = replace(self._view, unchanged=True)
        self._admission = Admission(self._body, self._governance, self._judge, self._ledger)
        self._phase = _Phase.DECISION
        self._generations[:] = [self._generation(Purpose.REQUEST, ())]
        self._delivery = Delivery(self._view, self._generations)

    def receive(self, chunk: Json) -> tuple[Json, ...]:
        """Take in a stream chunk; returns what the client gets now."""
        return self._delivery.receive(chunk)

    def shown(self, chunk: Json) -> Json | None:
        """What the client gets of a stream chunk that passes unjudged; None if nothing."""
        return self._view.chunk(chunk)

    def receive_response(self, response: Json) -> None:
        """Take in a whole response of upstream."""
        generation = self._generations[-1]
        generation.response = response
        generation.turn.add_response(response)

    def finish(self) -> Step:
        """Upstream is done with the generation: what now. Raises `TurnMalformed`."""
        generation = self._generations[-1]
        if generation.turn.finish_reason is None:
            return self.interrupted()
        if generation.purpose is not Purpose.REQUEST:
            self._ledger.costs.add(generation.purpose, generation.turn.usage)
            if not self._replaces(generation):
                return self.interrupted()
        if generation.purpose is Purpose.ANSWER:
            return self._deliver()
        if not self._acts and self._explain is Explain.NO:
            self._phase = _Phase.REVIEW
            return self._deliver()
        return self._decide()

    def review(self) -> Step:
        """What is to be done once the client has its message: `Ask` while there is something, then an empty
        delivery. Raises `TurnMalformed`."""
        if self._phase is _Phase.REVIEW:
            return self._decide()
        return self._label()

    def probe_answered(self, response: Json) -> Step:
        """Upstream's response to the probe."""
        purpose = Purpose.LABEL if self._phase is _Phase.LABEL else Purpose.PROBE
        self._ledger.costs.add(purpose, response.get("usage") or {})
        try:
            answer = probe_answer(
                response, self._governance.vocab_size, self._governance.markup, self._judge.tool_names
            )
        except ProbeFailed as failure:
            return self.probe_failed(failure.reason)
        if self._phase is not _Phase.LEAVING_OUT:
            self._probed.probe, self._probed.probe_response = answer, response
        return self._after_probe(answer)

    def probe_failed(self, why: str) -> Step:
        """The probe gave no answer, or none in time; `why` in one word."""
        self._probe_failures.append(why)
        return self._without_probe(NoProbe.FAILED)

    def probe_refused(self) -> Step:
        """The probe was not sent, since upstream is known to refuse it."""
        return self._without_probe(NoProbe.REFUSED)

    def _without_probe(self, why: NoProbe) -> Step:
        if self._phase is not _Phase.LEAVING_OUT:
            self._probed.probe = why
        return self._after_probe(None)

    @property
    def _probed(self) -> Generation:
        return self._generations[0 if self._phase is _Phase.LABEL else -1]

    def _after_probe(self, answer: ProbeAnswer | None) -> Step:
        if self._phase is _Phase.LABEL:
            return Deliver()
        if self._phase is _Phase.ADMISSION:
            return self._admit(_Phase.LEAVING_OUT, self._admission.answered(answer))
        if self._phase is _Phase.LEAVING_OUT:
            self._admission.left_out(answer)
            return self._admit(_Phase.DECISION, None)
        return self._decide()

    def _admit(self, phase: _Phase, probed: Messages | None) -> Ask:
        """The next probe of the admission, in its phase; after the last one, the client's request."""
        if probed is None:
            self._phase = _Phase.DECISION
            return Ask(Purpose.REQUEST, self.request)
        self._phase = phase
        return Ask(Purpose.PROBE, probe_request({**self._body, "messages": probed}, self._governance.probe))

    def interrupted(self, why: Reason = Reason.REPLACEMENT_FAILED) -> Deliver:
        """Something broke: all that waits goes out as upstream sent it, and calls withheld last pass after
        all, `why` being the reason that is told."""
        self._answered = None
        current = self._generations[-1]
        current.decisions = ()
        if current.purpose is Purpose.REQUEST:
            return self._deliver()
        self._generations.pop()
        before = self._generations[-1]
        before.decisions = tuple(
            replace(decision, action=Action.PASS, reason=why) for decision in before.decisions
        )
        if not self.streams:
            return self._deliver()
        return self._chunks(self._delivery.released_chunks(before, shown=current.shown))

    # Labelling

    def _label(self) -> Step:
        """One probe at the place of the client's request is the second answer to the results in it, and the
        first one to the calls that its message makes."""
        first = self._generations[0]
        if self._wants_label(first):
            self._phase = _Phase.LABEL
            return Ask(Purpose.LABEL, probe_request(self._sent(()), self._governance.probe))
        return Deliver()

    def _wants_label(self, first: Generation) -> bool:
        if first.probe is not NoProbe.NOT_ASKED or not self._may_probe:
            return False
        unlabelled = self._ledger.maybe_unlabelled()
        if not self._labels and not any(known.record.explored for known in unlabelled):
            return False
        passed = any(
            decision.action is Action.PASS
            and decision.reason is not Reason.CUT_MESSAGE
            and self._judge.governs(decision.call.name)
            for decision in first.decisions
        )
        wanted = passed or (bool(unlabelled) and self._ledger.answer_after() is None)
        return wanted and first.turn.measured

    # Deciding

    def _decide(self) -> Step:
        generation = self._generations[-1]
        if not self._may_probe and generation.probe is NoProbe.NOT_ASKED:
            generation.probe = NoProbe.NOT_ALLOWED
        judged = self._judged(generation)
        if isinstance(judged, NeedProbe):
            return Ask(Purpose.PROBE, probe_request(self._sent(generation.added), self._governance.probe))
        generation.proposals = judged
        generation.decisions = self._decisions(judged)
        if self._phase is _Phase.REVIEW:
            return self._label()
        calls = len(generation.turn.calls)
        if not calls or len(generation.withheld) < calls:
            return self._deliver()
        return self._replace_calls(generation)

    def _judged(self, generation: Generation) -> tuple[Proposal, ...] | NeedProbe:
        """Without a call nothing is measured yet: the client has its message the sooner."""
        if not generation.turn.calls:
            return ()
        # The arguments may be what is missing, and then the call would look like another one.
        if generation.turn.malformed:
            raise TurnMalformed("no_text", "a call beside a piece of a message that is no text")
        if not self._is_whole(generation.turn):
            return self._judge.let_pass(generation.turn, generation.measures, generation.added)
        return self._judge.judge(generation.turn, generation.measures, generation.added, generation.probe)

    def _replaces(self, generation: Generation) -> bool:
        """Whether a generation may stand in the place of the calls that were withheld for it."""
        turn = generation.turn
        if turn.malformed or not self._is_whole(turn):
            return False
        if generation.purpose is Purpose.ANSWER:
            return not turn.calls and turn.is_answer(self._judge.tool_names)
        return bool(turn.calls) or not turn.content.strip() or turn.is_answer(self._judge.tool_names)

    def _is_whole(self, turn: Turn) -> bool:
        """vLLM says `tool_calls` of a whole response even where it was cut at the client's limit."""
        limit = self._body.get("max_completion_tokens") or self._body.get("max_tokens")
        drawn = turn.usage.get("completion_tokens") if isinstance(turn.usage, Mapping) else None
        cut = isinstance(limit, int) and drawn == limit
        return turn.is_whole and not (cut and turn.calls)

    def _decisions(self, proposals: Sequence[Proposal]) -> tuple[Decision, ...]:
        if not proposals:
            return ()
        chosen = self._chosen_action() if all(proposal.withhold for proposal in proposals) else Action.DROP
        explored = [proposal.withhold and self._explores(proposal) for proposal in proposals]
        action = Action.DROP if any(explored) else chosen
        rounds = sum(generation.purpose is Purpose.CONTINUATION for generation in self._generations)
        limited = self._acts and action is Action.NOTICE and rounds >= self._governance.max_notices
        limit = Reason.NOTICE_LIMIT if limited else None
        return tuple(
            self._decision(proposal, chosen, action, Reason.EXPLORATION if lucky else limit)
            for proposal, lucky in zip(proposals, explored, strict=True)
        )

    def _explores(self, proposal: Proposal) -> bool:
        signature = str(proposal.call.signature)
        return self._acts and self._governance.experiment.explores(
            self.conversation, self._ledger.step, signature
        )

    def _decision(
        self, proposal: Proposal, chosen: Action, action: Action, spared: Reason | None
    ) -> Decision:
        """`chosen` is what would become of a withheld call, and `action` what does become of it now that
        others may have been let through; `spared` is why this one is."""
        acts = self._acts and proposal.withhold and spared is None
        return Decision(
            call=proposal.call,
            action=action if acts else Action.PASS,
            proposed=chosen if proposal.withhold else Action.PASS,
            reason=spared or proposal.reason,
            tier=proposal.tier,
            policy=self._governance.policy.name,
            inputs=proposal.inputs,
        )

    def _chosen_action(self) -> Action:
        """An answer without tools would also keep the model from calls that may not be withheld; and one that
        the model is not sure of is not given in its name: after a notice it may think, or ask again."""
        if self._governance.action == "notice" or not self._judge.only_read_only:
            return Action.NOTICE
        forced = self._generations[-1].forced
        if self._governance.action == "auto" and forced and not forced.is_sure:
            return Action.NOTICE
        return Action.ANSWER

    # What a message without its calls becomes

    def _replace_calls(self, generation: Generation) -> Step:
        if generation.decisions[0].action is Action.NOTICE:
            return self._continue(generation)
        if generation.forced and generation.forced.finished and generation.forced.text:
            return self._deliver_probe(generation, generation.forced)
        request = without_calls(self._sent(generation.added), self._governance.probe)
        return self._next(Purpose.ANSWER, request, generation, generation.added)

    def _continue(self, generation: Generation) -> Ask:
        turn = generation.turn
        said: dict[str, Any] = {"role": "assistant", "content": turn.content}
        if turn.reasoning:
            said[turn.reasoning_key] = turn.reasoning
        said["tool_calls"] = [call.as_entry() for call in turn.calls]
        notices = [
            {"role": "tool", "tool_call_id": decision.call.id, "content": notice_for(decision.reason)}
            for decision in generation.decisions
        ]
        added = [*generation.added, said, *notices]
        return self._next(Purpose.CONTINUATION, self._sent(added), generation, added)

    def _next(self, purpose: Purpose, body: Json, after: Generation, added: Sequence[Any]) -> Ask:
        self._delivery.set_aside(after)
        self._generations.append(self._generation(purpose, added))
        return Ask(purpose, self._view.request(repeated(body, probe=False)))

    def _generation(self, purpose: Purpose, added: Sequence[Any]) -> Generation:
        answers = purpose is Purpose.ANSWER
        end = self._acts or self._explain is not Explain.NO
        # Where an answer is asked for, a call of any tool waits: the one that was withheld may still pass.
        governs = _any_tool if answers else self._judge.governs
        own = purpose is Purpose.REQUEST
        watch = (
            None if own else CallWatch(self._judge.tool_names, self._governance.markup, from_start=answers)
        )
        hold = Hold(governs, calls=self._acts, end=end, watch=watch)
        turn = Turn(self._governance.vocab_size, self._governance.markup)
        return Generation(purpose, added, turn, hold, self._governance)

    def _sent(self, added: Sequence[Any]) -> dict[str, Any]:
        """The client's request as the model gets to see it, and what the governor `added` to it."""
        return {**self._body, "messages": [*self.pruning.messages, *added]}

    # Delivering

    def _deliver(self) -> Deliver:
        if self.streams:
            return self._chunks(self._delivery.last_chunks())
        return self._whole(self._delivery.body())

    def _deliver_probe(self, generation: Generation, probe: ProbeAnswer) -> Deliver:
        self._answered = probe
        if self.streams:
            return self._chunks(self._delivery.answer_chunks(generation, probe))
        return self._whole(self._delivery.answer_body(generation, probe))

    def _whole(self, body: Json) -> Deliver:
        explained = self._explain is not Explain.NO
        return Deliver(body={**body, "governor": self.explanation()} if explained else body)

    def _chunks(self, chunks: tuple[Json, ...]) -> Deliver:
        if self._explain is Explain.NO or not chunks:
            return Deliver(chunks)
        return Deliver((*chunks[:-1], edited(chunks[-1], governor=self.explanation())))

    def explanation(self) -> dict[str, Any]:
        """What the client reads in the body if it asks."""
        return explanation(
            self._generations,
            mode=self.mode,
            arm=self.arm,
            conversation=self.conversation,
            costs=self.costs,
            results=self.completed_records(),
            pruning=self.pruning,
            tokens=self._explain is Explain.TOKENS,
        )


def _any_tool(name: str) -> bool:
    return True


__all__ = ["Ask", "Deliver", "Exchange", "Explain", "Purpose", "Step"]
