"""The client's message when it is made of several generations, or lacks calls that were withheld."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from governor.chunk import edited
from governor.hold import Held
from governor.request import REASONING_KEYS, Json
from governor.spans import SpanKind
from governor.tokens import Unread
from governor.turn import Turn, first_choice


def gap(before: str) -> str:
    """What stands between text that was there and text that follows it."""
    return "\n" if before and not before[-1].isspace() else ""


def joined(parts: Sequence[str], *, skip_blank: bool) -> str:
    """The parts as one text; whitespace before a withheld call is not worth a part of its own."""
    text = ""
    for part in parts:
        if part.strip() or (part and not skip_blank):
            text += gap(text) + part
    return text


@dataclass(frozen=True, slots=True)
class Keep:
    """What of one generation reaches the client.

    `calls` maps the indices of the calls that do to those they get (None: all, as they are); `dropped` are
    the tokens of those that do not. A blank text before withheld calls goes with them.
    """

    calls: Mapping[int, int] | None = None
    dropped: Sequence[range] = field(default=())

    @classmethod
    def of(cls, turn: Turn, withheld: frozenset[int]) -> Keep:
        """All but the calls at the indices `withheld`."""
        if not withheld:
            return cls()
        indices = [call.index for call in turn.calls]
        if withheld.issuperset(indices):
            return cls({}, (range(turn.first_call_token(), len(turn.tokens)),))
        kept = [index for index in indices if index not in withheld]
        return cls({old: new for new, old in enumerate(kept)}, cls._call_ranges(turn, indices, withheld))

    @staticmethod
    def _call_ranges(turn: Turn, indices: Sequence[int], withheld: frozenset[int]) -> Sequence[range]:
        spans = [span for span in turn.spans() if span.kind is SpanKind.CALL]
        if len(spans) != len(indices):
            return ()
        return [
            range(span.start, span.stop)
            for span, index in zip(spans, indices, strict=True)
            if index in withheld
        ]

    def chunk(self, held: Held) -> Json | None:
        """What is left of a stream chunk; None if nothing."""
        choice = first_choice(held.chunk)
        if self.calls is None or choice is None:
            return held.chunk
        delta = self._delta(choice.get("delta") or {}, held.places)
        logprobs = self._logprobs(choice.get("logprobs"), held.first_token)
        if not any(delta.values()) and not logprobs and not choice.get("finish_reason"):
            return None
        return edited(held.chunk, choices=[{**choice, "delta": delta, "logprobs": logprobs}])

    def _delta(self, delta: Json, places: Sequence[int]) -> dict[str, Any]:
        left = {key: value for key, value in delta.items() if key not in ("tool_calls", "content")}
        content = delta.get("content")
        calls = self._pieces(delta.get("tool_calls") or (), places)
        if content and (self.calls or content.strip()) or calls and "content" in delta:
            left["content"] = content
        return {**left, "tool_calls": calls} if calls else left

    def _pieces(self, calls: Sequence[Json], places: Sequence[int]) -> list[Json]:
        kept = self.calls or {}
        return [
            {**call, "index": kept[place]} if "index" in call else call
            for place, call in zip(places, calls, strict=True)
            if place in kept
        ]

    def choice(self, choice: Json) -> dict[str, Any]:
        """What is left of the choice of a whole response."""
        if self.calls is None:
            return dict(choice)
        message = dict(choice.get("message") or {})
        calls = message.pop("tool_calls", None) or ()
        if kept := [call for place, call in enumerate(calls) if place in self.calls]:
            message["tool_calls"] = kept
        return {**choice, "message": message, "logprobs": self._logprobs(choice.get("logprobs"), 0)}

    def _logprobs(self, logprobs: Json | Unread | None, first_token: int) -> Json | Unread | None:
        if not logprobs or isinstance(logprobs, Unread):
            return logprobs
        content = [
            token
            for place, token in enumerate(logprobs.get("content") or (), start=first_token)
            if not any(place in dropped for dropped in self.dropped)
        ]
        return {**logprobs, "content": content} if content else None


def composed(first: Json, choices: Sequence[Json]) -> Json:
    """The first response with one choice made of the `choices` of all generations.

    Its texts and logprobs follow each other; its calls and its end are those of the last one. Ids and usage
    stay those of the generation that the client asked for.
    """
    choice, last = choices[0], choices[-1]
    messages = [part.get("message") or {} for part in choices]
    message = {key: value for key, value in messages[0].items() if key != "tool_calls"}
    if content := joined([part.get("content") or "" for part in messages], skip_blank=True):
        message["content"] = content
    reasoning = joined([_reasoning(part) for part in messages], skip_blank=False)
    if reasoning:
        message[next((key for key in REASONING_KEYS if key in message), REASONING_KEYS[0])] = reasoning
    if calls := messages[-1].get("tool_calls"):
        message["tool_calls"] = calls
    ends = {key: last.get(key) for key in ("finish_reason", "stop_reason") if key in choice}
    return {**first, "choices": [{**choice, "message": message, "logprobs": _concatenated(choices), **ends}]}


def _reasoning(message: Json) -> str:
    return next((text for key in REASONING_KEYS if (text := message.get(key))), "")


def _concatenated(choices: Sequence[Json]) -> Json | None:
    found = [choice.get("logprobs") for choice in choices]
    present = [logprobs for logprobs in found if logprobs and not isinstance(logprobs, Unread)]
    if not present:
        return None
    return {**present[0], "content": [token for part in present for token in part.get("content") or ()]}
