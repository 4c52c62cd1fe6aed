"""One governed chat request, from the client's body to the client's message, without any I/O.

Theory of operation. The caller owns the sockets; the exchange says what to do with them:

1. `request` goes upstream. Stream chunks come in through `receive`, which returns what the client gets at
   once; a whole response comes in through `receive_response`.
2. When upstream is done, `finish` returns the next step. `Ask`: send this body upstream. A probe's response
   comes back through `probe_answered` or `probe_failed`, which return the next step; an answer or a
   continuation is a generation like the first one, and comes back through `receive` or `receive_response`,
   then `finish`. `Deliver`: the rest of what the client gets; the exchange is over.
3. Observing adds no wait: `finish` delivers at once, and `review` begins the judging afterwards, with the
   same steps.
4. `interrupted` says what the client gets when something broke: whatever waits, as upstream sent it.

Streamed or not, the turn is collected, judged and turned into a message by the same code, so both ways give
the same message and the same decisions for the same generation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from governor.conversation import step
from governor.decision import Action, Decision, Mode, Reason
from governor.errors import ProbeFailed
from governor.governance import Governance
from governor.hold import Held, Hold
from governor.judge import Judge, Measures, NoProbe, ProbeState, Proposal
from governor.message import Keep, composed, gap, joined
from governor.notices import notice_for
from governor.policies import NeedProbe
from governor.probe import ProbeAnswer, probe_answer, probe_request, without_calls
from governor.records import CallRecord
from governor.request import ClientView, Json, fresh_result_ids, result_ids
from governor.turn import REASONING_KEYS, Turn, first_choice


class Explain(StrEnum):
    """How much of the decision the client wants to read in the body."""

    NO = "0"
    DECISIONS = "1"
    TOKENS = "tokens"


class Purpose(StrEnum):
    """What a further request to upstream is for. A probe never streams; the others do as the client does."""

    PROBE = "probe"
    ANSWER = "answer"
    CONTINUATION = "continuation"


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


@dataclass(slots=True)
class Generation:
    """One generation of upstream on the way to the client's message."""

    purpose: Purpose | None
    messages: Sequence[Any]
    turn: Turn
    hold: Hold
    response: Json | None = None
    measures: Measures = Measures()
    probe: ProbeState = NoProbe.NOT_ASKED
    probe_response: Json | None = None
    decisions: tuple[Decision, ...] = ()
    held: Sequence[Held] = ()
    """What waited when its calls were withheld."""
    shown: bool = False
    """Whether the client has some of it."""

    @property
    def withheld(self) -> frozenset[int]:
        return frozenset(decision.call.index for decision in self.decisions if decision.withheld)


@dataclass(slots=True)
class _Costs:
    """Tokens of the requests that the governor added."""

    tokens: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, kind: str, usage: Json) -> None:
        costs = self.tokens.setdefault(kind, {"prompt_tokens": 0, "completion_tokens": 0})
        for key in costs:
            costs[key] += usage.get(key) or 0


class Exchange:
    """The state of one governed request.

    `body` is the client's parsed request, one that `request.untouched` has nothing against. `records` are
    those of the calls in its history that were found, by call id. `now` is the time of the request in
    seconds, for the records. `probe_when_observing` False: nothing is asked upstream that the client did not
    ask for.
    """

    def __init__(
        self,
        body: Json,
        governance: Governance,
        *,
        records: Mapping[str, CallRecord] | None = None,
        conversation: str = "",
        now: float = 0.0,
        explain: Explain = Explain.NO,
        probe_when_observing: bool = True,
    ) -> None:
        self._body = body
        self._governance = governance
        self._known = [known for id in result_ids(body) if (known := (records or {}).get(id))]
        self.conversation = conversation
        self._now = now
        self._explain = explain
        self._view = ClientView.of(body, governance.top_logprobs)
        probes = [known.probe_before for known in self._known if known.probe_before]
        self._judge = Judge(governance, body.get("tools") or (), probes[-1] if probes else None)
        # A client that records token ids wants the sequence that was generated, not a message of several.
        self._acts = governance.mode is Mode.ENFORCE and not body.get("return_token_ids")
        self._probes = self._acts or probe_when_observing
        self._costs = _Costs()
        self._probe_failures: list[str] = []
        self._first: Json = {}
        self._ready: list[Json] = []
        self._trailer: tuple[Json, ...] = ()
        self._generations = [self._generation(None, body["messages"])]

    # What the caller reads

    @property
    def streams(self) -> bool:
        """Whether the client asked for a stream."""
        return bool(self._body.get("stream"))

    @property
    def request(self) -> dict[str, Any]:
        """What to send upstream for the client's request."""
        return self._view.request(self._body)

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
    def observing(self) -> bool:
        """Whether `review` has to be called after the delivery."""
        return not self._acts and self._explain is Explain.NO

    @property
    def complete(self) -> bool:
        """Whether upstream ended the client's generation as it should."""
        return self._generations[0].turn.finish_reason is not None

    @property
    def missing_logprobs(self) -> bool:
        """Whether upstream did not send the logprobs that were asked for."""
        turn = self._generations[0].turn
        return bool(turn.finish_reason) and not turn.measured

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
        """Prompt and completion tokens of what was asked beyond the client's request: `probe`,
        `continuation`."""
        return self._costs.tokens

    @property
    def entropy(self) -> float | None:
        """Mean token entropy in nats of the first turn's segment; None before `finish` and without
        logprobs."""
        return self._generations[0].measures.segment_entropy

    def records(self) -> tuple[CallRecord, ...]:
        """The records to store: those of the calls decided on, and those whose result came with this
        request."""
        return (*self.new_records(), *self.updated_records())

    def new_records(self) -> tuple[CallRecord, ...]:
        """A record for each call decided on."""
        return tuple(
            self._record(generation, decision)
            for generation in self._generations
            for decision in generation.decisions
        )

    def _record(self, generation: Generation, decision: Decision) -> CallRecord:
        probe = generation.probe if isinstance(generation.probe, ProbeAnswer) else None
        return CallRecord(
            call_id=decision.call.id,
            conversation=self.conversation,
            tool=decision.call.name,
            signature=str(decision.call.signature),
            step=step(self._body["messages"]),
            decision=decision.as_dict(),
            created=self._now,
            entropy_before=generation.measures.segment_entropy,
            probe_before=probe,
            usage=dict(self._costs.tokens.get("probe", {})),
        )

    def updated_records(self) -> tuple[CallRecord, ...]:
        """The known records of the calls whose results came with this request, with what they led to."""
        fresh = fresh_result_ids(self._body)
        after, probe = self.entropy, self._probe_after()
        return tuple(
            replace(
                record,
                entropy_after=after if record.entropy_after is None else record.entropy_after,
                probe_after=probe if record.probe_after is None else record.probe_after,
            )
            for record in self._known
            if record.call_id in fresh
        )

    def _probe_after(self) -> ProbeAnswer | None:
        """The forced answer with the results in the context. A turn that answers by itself, without
        reasoning, is one too, at the same position and for nothing."""
        first = self._generations[0]
        if isinstance(first.probe, ProbeAnswer):
            return first.probe
        if first.turn.calls or first.turn.reasoning or not first.turn.measured:
            return None
        return first.turn.as_answer()

    # The course of the exchange

    def receive(self, chunk: Json) -> tuple[Json, ...]:
        """Take in a stream chunk; returns what the client gets now."""
        generation = self._generations[-1]
        first_token = len(generation.turn.tokens)
        generation.turn.add_chunk(chunk)
        if not self._first:
            self._first = chunk
        fitted = chunk if generation.purpose is None else self._fitted(chunk, generation)
        if fitted is None:
            return ()
        passed = generation.hold.receive(Held(fitted, first_token), generation.turn)
        if not passed:
            return ()
        generation.shown = True
        ready, self._ready = self._ready, []
        return self._seen([*ready, *(held.chunk for held in passed)])

    def receive_response(self, response: Json) -> None:
        """Take in a whole response of upstream."""
        generation = self._generations[-1]
        generation.response = response
        generation.turn.add_response(response)

    def finish(self) -> Step:
        """Upstream is done with the generation: what now."""
        generation = self._generations[-1]
        if generation.turn.finish_reason is None:
            return self.interrupted()
        generation.measures = Measures.of(generation.turn, self._governance)
        if generation.purpose is not None:
            self._costs.add("continuation", generation.turn.usage)
        if generation.purpose is Purpose.ANSWER:
            answered = generation.turn.content.strip() and not generation.turn.is_disguised_call
            return self._deliver() if answered else self.interrupted()
        return self._deliver() if self.observing else self._decide()

    def review(self) -> Step:
        """Judge what was only observed, after it was delivered. The delivery that ends it is empty."""
        return self._decide()

    def probe_answered(self, response: Json) -> Step:
        """Upstream's response to the probe."""
        generation = self._generations[-1]
        self._costs.add("probe", response.get("usage") or {})
        try:
            generation.probe = probe_answer(response, self._governance.vocab_size, self._governance.markup)
        except ProbeFailed as failure:
            return self.probe_failed(failure.reason)
        generation.probe_response = response
        return self._decide()

    def probe_failed(self, why: str) -> Step:
        """The probe gave no answer, or none in time; `why` in one word."""
        self._probe_failures.append(why)
        self._generations[-1].probe = NoProbe.FAILED
        return self._decide()

    def interrupted(self) -> Deliver:
        """Something broke: all that waits goes out as upstream sent it, and calls withheld last pass after
        all."""
        current = self._generations[-1]
        current.decisions = ()
        if current.purpose is None:
            return self._deliver()
        self._generations.pop()
        before = self._generations[-1]
        before.decisions = tuple(_let_pass(decision) for decision in before.decisions)
        self._ready = []
        if not self.streams:
            return self._deliver()
        held = [item for item in before.held if not current.shown or _has_call_or_end(item.chunk)]
        return Deliver(self._explained([*self._seen([item.chunk for item in held]), *self._trailer]))

    # Deciding

    def _decide(self) -> Step:
        generation = self._generations[-1]
        if not self._probes and generation.probe is NoProbe.NOT_ASKED:
            generation.probe = NoProbe.FAILED
        judged = self._judge.judge(
            generation.turn, generation.measures, generation.messages, generation.probe
        )
        if isinstance(judged, NeedProbe):
            body = {**self._body, "messages": generation.messages}
            return Ask(Purpose.PROBE, probe_request(body, self._governance.probe))
        generation.decisions = self._decisions(judged)
        calls = len(generation.turn.calls)
        if not calls or len(generation.withheld) < calls:
            return self._deliver()
        return self._replace_calls(generation)

    def _decisions(self, proposals: Sequence[Proposal]) -> tuple[Decision, ...]:
        all_withheld = all(proposal.withhold for proposal in proposals)
        action = self._chosen_action() if all_withheld else Action.DROP
        rounds = sum(generation.purpose is Purpose.CONTINUATION for generation in self._generations)
        limit = action is Action.NOTICE and rounds >= self._governance.max_notices
        return tuple(self._decision(proposal, action, limit) for proposal in proposals)

    def _decision(self, proposal: Proposal, action: Action, limit: bool) -> Decision:
        proposed = action if proposal.withhold else Action.PASS
        limited = limit and self._acts
        return Decision(
            call=proposal.call,
            action=proposed if self._acts and not limited else Action.PASS,
            proposed=proposed,
            reason=Reason.NOTICE_LIMIT if limited else proposal.reason,
            tier=proposal.tier,
            policy=self._governance.policy.name,
            inputs=proposal.inputs,
        )

    def _chosen_action(self) -> Action:
        """An answer without tools would also keep the model from calls that may not be withheld."""
        if self._governance.action == "notice" or not self._judge.only_read_only:
            return Action.NOTICE
        return Action.ANSWER

    # What a message without its calls becomes

    def _replace_calls(self, generation: Generation) -> Step:
        if generation.decisions[0].action is Action.NOTICE:
            return self._continue(generation)
        if isinstance(generation.probe, ProbeAnswer) and generation.probe.finished and generation.probe.text:
            return self._deliver_probe(generation, generation.probe)
        body = {**self._body, "messages": generation.messages}
        return self._next(Purpose.ANSWER, without_calls(body, self._governance.probe), generation)

    def _continue(self, generation: Generation) -> Ask:
        turn = generation.turn
        said: dict[str, Any] = {"role": "assistant", "content": turn.content}
        if turn.reasoning:
            said[turn.reasoning_key] = turn.reasoning
        said["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in turn.calls
        ]
        notices = [
            {"role": "tool", "tool_call_id": decision.call.id, "content": notice_for(decision.reason)}
            for decision in generation.decisions
        ]
        body = {**self._body, "messages": [*generation.messages, said, *notices]}
        return self._next(Purpose.CONTINUATION, body, generation)

    def _next(self, purpose: Purpose, body: Json, after: Generation) -> Ask:
        waiting = after.hold.take()
        after.held = [held for held in waiting if first_choice(held.chunk) is not None]
        if after.purpose is None:
            self._trailer = tuple(held.chunk for held in waiting if first_choice(held.chunk) is None)
        keep = Keep.of(after.turn, after.withheld)
        self._ready = [
            chunk
            for held in after.held
            if _before_end(held.chunk) and (chunk := keep.chunk(held.chunk, held.first_token)) is not None
        ]
        self._generations.append(self._generation(purpose, body["messages"]))
        return Ask(purpose, self._view.request(body))

    def _generation(self, purpose: Purpose | None, messages: Sequence[Any]) -> Generation:
        enforcing = self._acts and purpose is not Purpose.ANSWER
        end = self._acts or self._explain is not Explain.NO
        answers = purpose is Purpose.ANSWER
        hold = Hold(self._judge.governs, calls=enforcing, end=end, disguise=answers)
        return Generation(purpose, messages, Turn(self._governance.vocab_size, self._governance.markup), hold)

    def _fitted(self, chunk: Json, generation: Generation) -> Json | None:
        """A later generation's chunk as one of the message that the first one began; None if it adds
        nothing."""
        choice = first_choice(chunk)
        if choice is None:
            return None
        delta = {key: value for key, value in (choice.get("delta") or {}).items() if key != "role"}
        if "role" in (choice.get("delta") or {}) and not any(delta.values()):
            return None
        earlier = self._generations[:-1]
        if delta.get("content") and generation.turn.content_pieces == 1:
            before = joined([part.turn.content for part in earlier], skip_blank=True)
            delta["content"] = gap(before) + delta["content"]
        for key in REASONING_KEYS:
            if delta.get(key) and generation.turn.reasoning_pieces == 1:
                before = joined([part.turn.reasoning for part in earlier], skip_blank=False)
                delta[key] = gap(before) + delta[key]
        same = {key: self._first[key] for key in ("id", "created", "model") if key in self._first}
        fitted = {key: value for key, value in chunk.items() if key != "usage"}
        return {**fitted, **same, "choices": [{**choice, "delta": delta}]}

    # Delivering

    def _deliver(self) -> Deliver:
        if not self.streams:
            return Deliver(body=self._composed([self._kept_choice(part) for part in self._generations]))
        last = self._generations[-1]
        keep = Keep.of(last.turn, last.withheld)
        kept = (keep.chunk(held.chunk, held.first_token) for held in last.hold.take())
        chunks = [*self._ready, *(chunk for chunk in kept if chunk is not None), *self._trailer]
        self._ready, self._trailer = [], ()
        return Deliver(self._explained(self._seen(chunks)))

    def _deliver_probe(self, generation: Generation, probe: ProbeAnswer) -> Deliver:
        source: Json = first_choice(generation.probe_response or {}) or {}
        if not self.streams:
            answer = {
                "message": {"content": probe.text},
                "logprobs": source.get("logprobs"),
                "finish_reason": "stop",
                "stop_reason": None,
            }
            return Deliver(
                body=self._composed([*(self._kept_choice(part) for part in self._generations), answer])
            )
        held = generation.hold.take()
        keep = Keep.of(generation.turn, generation.withheld)
        before = joined([part.turn.content for part in self._generations], skip_blank=True)
        chunks: list[Json | None] = [*self._ready]
        for item in held:
            if first_choice(item.chunk) is None:
                chunks.append(item.chunk)
            elif _before_end(item.chunk):
                chunks.append(keep.chunk(item.chunk, item.first_token))
            else:
                chunks += _answer_chunks(item.chunk, gap(before) + probe.text, source.get("logprobs"))
        self._ready = []
        kept = [chunk for chunk in chunks if chunk is not None]
        return Deliver(self._explained(self._seen([*kept, *self._trailer])))

    def _kept_choice(self, generation: Generation) -> Json:
        choice = first_choice(generation.response or {}) or {}
        return Keep.of(generation.turn, generation.withheld).choice(choice)

    def _composed(self, choices: Sequence[Json]) -> Json:
        first = self._generations[0]
        response = first.response or {}
        if len(choices) > 1 or first.withheld:
            response = composed(response, choices)
        body = self._view.response(response)
        return body if self._explain is Explain.NO else {**body, "governor": self.explanation()}

    def _seen(self, chunks: Sequence[Json]) -> tuple[Json, ...]:
        return tuple(seen for chunk in chunks if (seen := self._view.chunk(chunk)) is not None)

    def _explained(self, chunks: Sequence[Json]) -> tuple[Json, ...]:
        if self._explain is Explain.NO or not chunks:
            return tuple(chunks)
        return (*chunks[:-1], {**chunks[-1], "governor": self.explanation()})

    def explanation(self) -> dict[str, Any]:
        """What the client reads in the body if it asks: JSON-ready, entropies in nats. `generation` counts
        upstream's generations for this message, of which there are several after a notice or an answer."""
        measures = self._generations[0].measures
        explanation: dict[str, Any] = {
            "mode": self._governance.mode.value,
            "conversation": self.conversation,
            "decisions": [
                {**decision.as_dict(), "generation": number}
                for number, generation in enumerate(self._generations)
                for decision in generation.decisions
            ],
            "usage": self._costs.tokens,
            "entropy": {
                "segment": measures.segment_entropy,
                "decision": measures.decision_entropy,
                "arguments": list(measures.arguments),
            },
            "results": [_result(record) for record in self.updated_records()],
        }
        if self._explain is Explain.TOKENS:
            explanation["tokens"] = [
                {**token, "generation": number}
                for number, generation in enumerate(self._generations)
                for token in _tokens(generation.turn)
            ]
        return explanation


def _let_pass(decision: Decision) -> Decision:
    return replace(decision, action=Action.PASS, reason=Reason.REPLACEMENT_FAILED)


def _before_end(chunk: Json) -> bool:
    choice = first_choice(chunk)
    return choice is not None and choice.get("finish_reason") is None


def _has_call_or_end(chunk: Json) -> bool:
    choice = first_choice(chunk)
    return choice is None or bool(
        choice.get("finish_reason") or (choice.get("delta") or {}).get("tool_calls")
    )


def _answer_chunks(end: Json, text: str, logprobs: Json | None) -> tuple[Json, Json]:
    """The probe's text as a stream would have brought it: a chunk with the text, and the end, made from the
    end of the generation that it replaces."""
    choice: Json = first_choice(end) or {}
    spoken = {
        **{key: value for key, value in choice.items() if key != "stop_reason"},
        "delta": {"content": text},
        "logprobs": logprobs,
        "finish_reason": None,
    }
    ended = {**choice, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    rest = {key: value for key, value in end.items() if key != "system_fingerprint"}
    return {**rest, "choices": [spoken]}, {**end, "choices": [ended]}


def _result(record: CallRecord) -> dict[str, Any]:
    return {
        "call_id": record.call_id,
        "tool": record.tool,
        "entropy_before": record.entropy_before,
        "entropy_after": record.entropy_after,
        "entropy_reduction": record.entropy_reduction,
        "gain": record.gain,
        "answer_changed": record.answer_changed,
    }


def _tokens(turn: Turn) -> list[dict[str, Any]]:
    return [
        {"text": token.text, "entropy": token.entropy.value, "span": span.kind.value}
        for span in turn.spans()
        for token in turn.tokens[span.start : span.stop]
    ]


__all__ = ["Ask", "Deliver", "Exchange", "Explain", "Purpose", "Step"]
