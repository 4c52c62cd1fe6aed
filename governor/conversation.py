"""What already happened in a conversation, read from the messages that the client sends."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from governor.calls import CallSignature, ToolCall, ToolCatalog, ToolEffect, digest
from governor.notices import is_notice
from governor.results import Outcome, Patterns, outcome_of


@dataclass(frozen=True, slots=True)
class ExecutedCall:
    """A call and its result; `user_messages_after` counts the messages of the user that came after it."""

    call: ToolCall
    result: str
    outcome: Outcome
    effect: ToolEffect
    user_messages_after: int = 0

    @property
    def failed(self) -> bool:
        return self.outcome in (Outcome.FAILED, Outcome.TRANSIENT)


@dataclass(frozen=True)
class AnsweredCall:
    """A call of the history that has a result; `asked` is the `last_question` of the messages before it.

    `key` names it among the calls of the history: its id, unless that is empty or another call has it too.
    `fresh`: its result, `message`, came with this request.
    """

    call: ToolCall
    asked: str
    key: str
    message: Mapping[str, Any] = field(default_factory=dict)
    fresh: bool = True

    @cached_property
    def signature(self) -> str:
        return str(self.call.signature)

    @cached_property
    def origin(self) -> str:
        """What its record has as `CallRecord.origin`."""
        return origin(self.asked, self.signature)

    def outcome(self, failures: Patterns = ()) -> Outcome:
        """How it ended; `failures` as for `outcome_of`."""
        return outcome_of(self.message, _text(self.message.get("content")), failures)

    @cached_property
    def result(self) -> str:
        """A digest of its result."""
        return digest(_text(self.message.get("content")))[:32]


def answered_calls(messages: Sequence[Any]) -> tuple[AnsweredCall, ...]:
    """The calls of the history that have results, in the order in which they were made."""
    made, fresh_from = _calls_made(messages), _fresh_from(messages)
    users = [place for place, message in enumerate(messages) if _role(message) == "user"]
    # The digest of a long text takes its time: only of those that a call was made for, and once.
    asked: dict[int, str] = {}
    found = []
    for past, key in zip(made, _keys([past.call.id for past in made]), strict=True):
        if past.orphan or past.result is None:
            continue
        question = bisect_left(users, past.place)
        if question not in asked:
            asked[question] = last_question([messages[users[question - 1]]] if question else ())
        fresh = past.result_place >= fresh_from
        found.append(AnsweredCall(past.call, asked[question], key, past.result, fresh))
    return tuple(found)


def _fresh_from(messages: Sequence[Any]) -> int:
    """The place behind the last message of the assistant."""
    places = range(len(messages), 0, -1)
    return next((place for place in places if _role(messages[place - 1]) == "assistant"), 0)


def _keys(ids: Sequence[str]) -> list[str]:
    """A name for each id, no two the same: the id itself for the first call that has it."""
    taken, keys = set(ids), []
    seen: set[str] = set()
    for number, id in enumerate(ids):
        key = id
        if not id or id in seen:
            key = f"{id}#{number}"
            while key in taken:
                key += "#"
        seen.add(id)
        taken.add(key)
        keys.append(key)
    return keys


@dataclass(slots=True)
class _Past:
    """A call on its way to its result; `place` and `result_place` are those of their messages. An orphan is a
    result whose call is not in the history."""

    call: ToolCall
    place: int
    result: Mapping[str, Any] | None = None
    result_place: int = -1
    orphan: bool = False


def _calls_made(messages: Sequence[Any]) -> list[_Past]:
    """The calls of a history in the order they were made, each with its result where it has one.

    Ids need not be unique, and may be missing. A result belongs to the newest message that waits for one with
    its id, and there to the first such call. One without an id belongs to the first call of the last message
    that waits for a result, of those with its name where it has one.
    """
    made: list[_Past] = []
    by_id: dict[str, list[_Past]] = {}
    last: list[_Past] = []
    for place, message in enumerate(messages):
        role = _role(message)
        if role == "assistant" and (calls := _calls(message)):
            last = [_Past(call, place) for call in calls]
            made += last
            for past in last:
                by_id.setdefault(past.call.id, []).append(past)
        elif role in ("tool", "function"):
            found = _waiting_for(message, last, by_id)
            if found is None:
                found = _Past(_orphan(message), place, orphan=True)
                made.append(found)
            found.result, found.result_place = message, place
    return made


def _waiting_for(
    message: Mapping[str, Any], last: Sequence[_Past], by_id: Mapping[str, Sequence[_Past]]
) -> _Past | None:
    """The call that a result belongs to; None where it is not in the history."""
    id, name = _id(message.get("tool_call_id")), message.get("name")
    waiting = [past for past in last if past.result is None]
    if id and id in by_id:
        same = next((past for past in waiting if past.call.id == id), None)
        earlier = (past for past in reversed(by_id[id]) if past.result is None)
        # A second result replaces the first.
        return same or next(earlier, by_id[id][-1])
    if id:
        # The client made up the ids that upstream had left out.
        waiting = [past for past in waiting if not past.call.id]
    return next((past for past in waiting if not name or past.call.name == name), None)


def _orphan(message: Mapping[str, Any]) -> ToolCall:
    return ToolCall(_id(message.get("tool_call_id")), 0, str(message.get("name") or ""), "")


def _id(value: object) -> str:
    return "" if value is None else str(value)


def last_question(messages: Sequence[Any]) -> str:
    """A digest of the user's last message, "" without one.

    Clients drop old messages, clear old results and put the time into the system prompt: the user's last
    message before a call is what is still there as it was when a later request has the call in its history.
    """
    users = (message for message in reversed(messages) if _role(message) == "user")
    last = next(users, None)
    return "" if last is None else digest(_words(last.get("content")))


def origin(asked: str, signature: str) -> str:
    """A digest of what a call asks, and of the user's message that it was made for: the same for the same
    call whenever its history is read, and another one for nearly all calls that only have the same id."""
    return digest(f"{asked}\n{signature}")[:32]


def reply_origin(asked: str, text: str) -> str:
    """A digest of a reply without calls, and of the user's message that it answers."""
    return origin(asked, f"reply {' '.join(text.split())}")


def reply_origins(messages: Sequence[Any]) -> Iterator[str]:
    """Those of the history's replies without calls, newest first."""
    for place in range(len(messages) - 1, -1, -1):
        message = messages[place]
        if _role(message) == "assistant" and not _calls(message):
            yield reply_origin(last_question(messages[:place]), _words(message.get("content")))


def _words(content: object) -> str:
    """The text of a message's content without the parts that are none: pictures are long, and clients take
    old ones out."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, Mapping))
    return "\n".join(text for text in texts if isinstance(text, str))


def executed_calls(messages: Sequence[Any], catalog: ToolCatalog) -> tuple[ExecutedCall, ...]:
    """The calls of the history in the order they were made.

    A result that belongs to no call of the history stands for a call of unknown effect. Messages of any
    other shape are passed over.
    """
    users = [place for place, message in enumerate(messages) if _role(message) == "user"]
    return tuple(
        _executed(past, catalog, len(users) - bisect_left(users, past.place))
        for past in _calls_made(messages)
    )


def _executed(past: _Past, catalog: ToolCatalog, users: int) -> ExecutedCall:
    effect = ToolEffect.UNKNOWN if past.orphan else catalog.effect(past.call.name)
    if past.result is None:
        return ExecutedCall(past.call, "", Outcome.PENDING, effect, users)
    result = _text(past.result.get("content"))
    return ExecutedCall(past.call, result, outcome_of(past.result, result, catalog.failures), effect, users)


def withheld_signatures(messages: Sequence[Any]) -> frozenset[CallSignature]:
    """The signatures of the calls that were answered by one of our notices."""
    return frozenset(
        past.call.signature
        for past in _calls_made(messages)
        if not past.orphan and past.result is not None and is_notice(_text(past.result.get("content")))
    )


def pending_calls(calls: Sequence[ToolCall], catalog: ToolCatalog) -> tuple[ExecutedCall, ...]:
    """Calls proposed but not yet executed, as history: what the siblings of a parallel call are to it."""
    return tuple(ExecutedCall(call, "", Outcome.PENDING, catalog.effect(call.name)) for call in calls)


def step(messages: Sequence[Any]) -> int:
    """How many assistant messages with calls came before: 0 for the first turn."""
    return sum(_role(message) == "assistant" and any(True for _ in _calls(message)) for message in messages)


def _role(message: object) -> object:
    return message.get("role") if isinstance(message, Mapping) else None


def _calls(message: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    return tuple(_read_calls(message.get("tool_calls")))


def _read_calls(tool_calls: object) -> Iterator[ToolCall]:
    if not isinstance(tool_calls, Sequence):
        return
    for index, entry in enumerate(tool_calls):
        function = entry.get("function") if isinstance(entry, Mapping) else None
        if isinstance(function, Mapping):
            arguments = function.get("arguments") or ""
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, default=str)
            yield ToolCall(_id(entry.get("id")), index, str(function.get("name")), text)


def _text(content: object) -> str:
    """The text of a message's content; parts that are no text are kept as JSON, since results are compared
    by it."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        return ""
    return "\n".join(_part_text(part) for part in content)


def _part_text(part: object) -> str:
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    return json.dumps(part, sort_keys=True, default=str)
