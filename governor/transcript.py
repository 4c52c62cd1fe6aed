"""What was said in one turn, for the logs that a policy is fine-tuned on. Kept only where the operator wants
texts kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from governor.generation import Generation
from governor.message import joined
from governor.probe import ProbeAnswer
from governor.request import REASONING_KEYS, Json
from governor.turn import Turn

Message = Mapping[str, Any]
Measured = Sequence[Any]
"""Text, entropy in nats to three decimals, and the `SpanKind` of one token."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """One turn of a conversation.

    `turn` is the number of the model's messages in the request before this one, `said` the request's
    messages from the place `since` on, and `reply` what the client got. `proposal` is what the model had
    generated where that was something else, since calls were withheld. `resent` says whether the client sends
    the model's earlier reasoning back; None where there is none yet. `tokens` are those that were generated,
    of all generations one after the other, each with its entropy in nats and the kind of its span; empty
    without logprobs. `created` is in seconds of the caller's clock.
    """

    conversation: str
    turn: int
    created: float
    model: str
    tools: Sequence[Any]
    said: Sequence[Any]
    reply: Message
    since: int = 0
    proposal: Message | None = None
    resent: bool | None = None
    tokens: Sequence[Measured] = ()

    @classmethod
    def of(
        cls,
        body: Json,
        generations: Sequence[Generation],
        *,
        answered: ProbeAnswer | None,
        conversation: str,
        created: float,
    ) -> Transcript:
        """Of a request and what was generated for it. `answered` is the forced answer that was delivered in
        the place of the last generation's calls, None where none was."""
        first, last = generations[0], generations[-1]
        spoken = [part.turn.content for part in generations] + ([answered.text] if answered else [])
        thought = joined([part.turn.reasoning for part in generations], skip_blank=False)
        kept = [] if answered else [c for c in _calls(last.turn) if c["index"] not in last.withheld]
        proposal = _message(first.turn.content, first.turn.reasoning, _calls(first.turn), first.turn)
        reply = _message(joined(spoken, skip_blank=True), thought, kept, first.turn)
        own = [message for message in body["messages"] if message.get("role") == "assistant"]
        return cls(
            conversation,
            len(own),
            created,
            str(body.get("model") or ""),
            body.get("tools") or (),
            body["messages"],
            reply,
            proposal=None if proposal == reply else proposal,
            resent=any(own[-1].get(key) for key in REASONING_KEYS) if own else None,
            tokens=[token for part in generations for token in _measured(part.turn)],
        )

    @property
    def messages(self) -> int:
        """How many messages the conversation has with this turn's reply."""
        return self.since + len(self.said) + 1

    def following(self, messages: int) -> Transcript:
        """Without the first `messages`, where an earlier transcript of the conversation ended with them."""
        return replace(self, said=self.said[messages - self.since :], since=messages)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Transcript:
        """What `as_dict` gave, also after a trip through JSON. Raises TypeError on anything else."""
        if not isinstance(data, Mapping):
            raise TypeError(f"a transcript from {type(data).__name__}")
        names = {entry.name for entry in fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in names})


def _measured(turn: Turn) -> list[Measured]:
    return [
        [token.text, round(token.entropy.value, 3), span.kind.value]
        for span in turn.spans()
        for token in turn.tokens[span.start : span.stop]
    ]


def _message(content: str, reasoning: str, calls: Sequence[Mapping[str, Any]], turn: Turn) -> dict[str, Any]:
    said: dict[str, Any] = {"role": "assistant", "content": content}
    if reasoning:
        said[turn.reasoning_key] = reasoning
    if calls:
        said["tool_calls"] = [{key: call[key] for key in ("id", "type", "function")} for call in calls]
    return said


def _calls(turn: Turn) -> list[dict[str, Any]]:
    return [
        {
            "index": call.index,
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in turn.calls
    ]
