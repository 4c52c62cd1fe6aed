"""What already happened in a conversation, read from the messages that the client sends."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
    """A call of the history that has a result; `asked` is the `last_question` of the messages before it."""

    call: ToolCall
    asked: str

    @property
    def id(self) -> str:
        return self.call.id

    @cached_property
    def signature(self) -> str:
        return str(self.call.signature)

    @cached_property
    def origin(self) -> str:
        """What its record has as `CallRecord.origin`."""
        return origin(self.asked, self.signature)


def answered_calls(messages: Sequence[Any]) -> tuple[AnsweredCall, ...]:
    """The calls of the history that have results, in the order of these; of several with one id the last."""
    proposed: dict[str, AnsweredCall] = {}
    answered: dict[str, AnsweredCall] = {}
    asked: str | None = None
    for place, message in enumerate(messages):
        role = _role(message)
        if role == "user":
            # The digest of a long text takes its time: only of those that a call was made for.
            asked = None
        elif role == "assistant":
            for call in _calls(message):
                asked = last_question(messages[:place]) if asked is None else asked
                proposed[call.id] = AnsweredCall(call, asked)
        elif role == "tool":
            identity = message.get("tool_call_id")
            if isinstance(identity, str) and identity in proposed:
                answered.pop(identity, None)
                answered[identity] = proposed[identity]
    return tuple(answered.values())


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
    users = sum(_role(message) == "user" for message in messages)
    found: list[ExecutedCall] = []
    for message in messages:
        role = _role(message)
        if role == "user":
            users -= 1
        elif role == "assistant":
            proposed = pending_calls(_calls(message), catalog)
            found.extend(replace(executed, user_messages_after=users) for executed in proposed)
        elif role in ("tool", "function"):
            _settle(found, message, users, catalog.failures)
    return tuple(found)


def withheld_signatures(messages: Sequence[Any]) -> frozenset[CallSignature]:
    """The signatures of the calls that were answered by one of our notices."""
    proposed: dict[str, ToolCall] = {}
    withheld: set[CallSignature] = set()
    for message in messages:
        if _role(message) == "assistant":
            proposed.update((call.id, call) for call in _calls(message))
        elif _role(message) == "tool" and is_notice(_text(message.get("content"))):
            call = proposed.get(str(message.get("tool_call_id")))
            withheld.update([call.signature] if call else ())
    return frozenset(withheld)


def pending_calls(calls: Sequence[ToolCall], catalog: ToolCatalog) -> tuple[ExecutedCall, ...]:
    """Calls proposed but not yet executed, as history: what the siblings of a parallel call are to it."""
    return tuple(ExecutedCall(call, "", Outcome.PENDING, catalog.effect(call.name)) for call in calls)


def step(messages: Sequence[Any]) -> int:
    """How many assistant messages with calls came before: 0 for the first turn."""
    return sum(_role(message) == "assistant" and any(True for _ in _calls(message)) for message in messages)


def _settle(found: list[ExecutedCall], message: Mapping[str, Any], users: int, failures: Patterns) -> None:
    """Gives the newest call with this message's id its result."""
    identity = str(message.get("tool_call_id"))
    result = _text(message.get("content"))
    outcome = outcome_of(message, result, failures)
    for place in range(len(found) - 1, -1, -1):
        if found[place].call.id == identity:
            found[place] = replace(found[place], result=result, outcome=outcome)
            return
    orphan = ToolCall(identity, 0, str(message.get("name") or ""), "")
    found.append(ExecutedCall(orphan, result, outcome, ToolEffect.UNKNOWN, users))


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
            yield ToolCall(str(entry.get("id")), index, str(function.get("name")), text)


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
