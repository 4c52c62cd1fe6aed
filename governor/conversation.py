"""What already happened in a conversation, read from the messages that the client sends.

Whether a call failed is nowhere said in the chat format, so it is read from the result, by three signs: the
message is flagged (`is_error`, `isError`, `status: "error"`); the result is a JSON object that says so at
its top level; or its first words do ("Error: ...", "ValueError: ...", "Request timed out"). A failure not
seen looks like a result, and repeating the call like a repeat; a result taken for a failure is only
withheld later. So the signs lean towards failure, but only at the beginning of a text: a page *about*
errors is a result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, Final

from governor.calls import CallForm, CallSignature, ToolCall, ToolCatalog, ToolEffect, digest
from governor.notices import is_notice


class Outcome(StrEnum):
    """How a call ended, as far as its result shows.

    TRANSIENT is a failure that may well go away by itself: a timeout, a 5xx or 429, a lost connection.
    PENDING means no result in the messages: a sibling in the same turn, or a call whose result the client
    left out.
    """

    OK = "ok"
    EMPTY = "empty"
    FAILED = "failed"
    TRANSIENT = "transient"
    PENDING = "pending"


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

    A result that belongs to no call of the history stands for a call of unknown effect, and a call in a form
    that is not known for an effectful one. Messages of any other shape are passed over.
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
            _settle(found, message, users)
    return tuple(found)


def withheld_signatures(messages: Sequence[Any]) -> frozenset[CallSignature]:
    """The signatures of the calls that were answered by one of our notices."""
    proposed: dict[str, ToolCall] = {}
    withheld: set[CallSignature] = set()
    for message in messages:
        if _role(message) == "assistant":
            proposed.update((call.id, call) for call in _calls(message))
        elif _role(message) == "tool" and is_notice(_text(message.get("content"))):
            call = proposed.get(_identity(message.get("tool_call_id")))
            withheld.update([call.signature] if call else ())
    return frozenset(withheld)


def pending_calls(calls: Sequence[ToolCall], catalog: ToolCatalog) -> tuple[ExecutedCall, ...]:
    """Calls proposed but not yet executed, as history: what the siblings of a parallel call are to it."""
    return tuple(ExecutedCall(call, "", Outcome.PENDING, catalog.effect_of(call)) for call in calls)


def step(messages: Sequence[Any]) -> int:
    """How many assistant messages with calls came before: 0 for the first turn."""
    return sum(_role(message) == "assistant" and any(True for _ in _calls(message)) for message in messages)


def _settle(found: list[ExecutedCall], message: Mapping[str, Any], users: int) -> None:
    """Gives the call that this message answers its result."""
    result = _text(message.get("content"))
    outcome = _outcome(message, result)
    if (place := _answered_place(found, message)) is not None:
        found[place] = replace(found[place], result=result, outcome=outcome)
        return
    orphan = ToolCall(_identity(message.get("tool_call_id")), 0, _string(message.get("name")), "")
    found.append(ExecutedCall(orphan, result, outcome, ToolEffect.UNKNOWN, users))


def _answered_place(found: Sequence[ExecutedCall], message: Mapping[str, Any]) -> int | None:
    """The place of the call that a message answers.

    By its id, of the newest message that has it: clients number the calls of each message anew. Of several in
    one message it is the first without a result, or the last. A result without an id answers the first call
    without a result, one of its name if it has one.
    """
    identity, name = _identity(message.get("tool_call_id")), _string(message.get("name"))
    match = None
    for place in range(len(found) - 1, -1, -1):
        executed = found[place]
        pending = executed.outcome is Outcome.PENDING
        same = executed.call.id == identity if identity else pending and name in ("", executed.call.name)
        if same and (match is None or pending):
            match = place
        if executed.call.index == 0 and (match is not None or not identity):
            break
    return match


def _identity(id: object) -> str:
    return "" if id is None else str(id)


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _role(message: object) -> object:
    return message.get("role") if isinstance(message, Mapping) else None


def _calls(message: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    """The calls that an assistant message makes: each entry is one, and so is the legacy `function_call`."""
    entries = message.get("tool_calls") or ()
    listed = entries if isinstance(entries, list | tuple) else (entries,)
    calls = [_read_call(entry, index) for index, entry in enumerate(listed)]
    if legacy := message.get("function_call"):
        calls.append(_read_call({"function": legacy}, len(calls)))
    return tuple(calls)


def _read_call(entry: object, index: int) -> ToolCall:
    """A call whose shape is not understood may have done anything."""
    fields: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {}
    id = _identity(fields.get("id"))
    for form, key in ((CallForm.FUNCTION, "arguments"), (CallForm.CUSTOM, "input")):
        body = fields.get(form.value)
        if isinstance(body, Mapping):
            given = body.get(key) or ""
            text = given if isinstance(given, str) else json.dumps(given, default=str)
            return ToolCall(id, index, _string(body.get("name")), text, form)
    return ToolCall(id, index, _string(fields.get("name")), "", CallForm.OTHER)


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


_EMPTY: Final = frozenset({"", "[]", "{}", "null", "None", '""'})

_LONGEST_ERROR: Final = 16_384
"""An error report is short; longer JSON is not parsed for one."""

_ERROR_FIELD: Final = re.compile('"(?:error|is_error|isError|status|status_code)"')

_HEAD: Final = 500
"""How much of a text is looked at for the words of a failure, in characters."""

_FAILURE: Final = re.compile(
    r"""
    [^\w{]*                              # "[ERROR]", but not the fields of an object
    (?: (?!(?:the|an?|no|any|\d+)\b) \w+ [^\w{]+ )?    # "Tool error", "json.JSONDecodeError", not "No errors"
    (?: \w*(?:error|exception)s? \b
      | traceback \b | fail(?:ed|ure) \b | time(?:d\ |-)?out \b
      | (?:permission|access)\ denied \b | unauthorized \b | forbidden \b
      | connection\ (?:refused|reset|aborted|closed) \b
      | (?:service|temporarily)\ unavailable \b | bad\ gateway \b | gateway\ timeout \b | internal\ server \b
      | too\ many\ requests \b | rate\ limit | overloaded \b
      | (?:http|status|code)\W+[45]\d\d \b
    )""",
    re.IGNORECASE | re.VERBOSE,
)

_TRANSIENT: Final = re.compile(
    r"""
    time(?:d\ |-)?out | temporar | unavailable | overloaded | rate.?limit | too\ many\ requests
      | (?:try|retry)\ (?:again|later) | connection | gateway | internal\ server | \b(?:408|429|5\d\d)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


def _outcome(message: Mapping[str, Any], result: str) -> Outcome:
    text = result.strip()
    if _flagged(message) or _FAILURE.match(text, 0, _HEAD) or _says_failed(text):
        return Outcome.TRANSIENT if _TRANSIENT.search(text, 0, _HEAD) else Outcome.FAILED
    return Outcome.EMPTY if text in _EMPTY else Outcome.OK


def _flagged(fields: Mapping[str, Any]) -> bool:
    return any(fields.get(key) is True for key in ("is_error", "isError")) or fields.get("status") == "error"


def _says_failed(text: str) -> bool:
    """Whether a result is a JSON object with an `error`, an error flag or an HTTP status of 400 and above."""
    if not text.startswith("{") or len(text) > _LONGEST_ERROR or not _ERROR_FIELD.search(text):
        return False
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return False
    statuses = (fields.get(key) for key in ("status", "status_code"))
    return bool(fields.get("error")) or _flagged(fields) or any(_is_http_error(status) for status in statuses)


def _is_http_error(status: object) -> bool:
    return isinstance(status, int) and 400 <= status < 600
