"""How a call ended, read from its result by the table in `governor.result_table`.

The chat format does not say whether a call failed. Looked at, in this order: the message's own flags and
those of its parts; what wraps the text (parts or an MCP result as JSON, the exit code of a command); the
fields of a JSON object; the title of an HTML page; the first and last words of a text. A failure that is
missed looks like a result, and its retry like a repeat; a result that is taken for a failure is only withheld
later. Only the ends of long texts are looked at, and long JSON is not parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

from governor import result_table as table
from governor.result_table import Place, Row


class Outcome(StrEnum):
    """How a call ended, as far as its result shows.

    TRANSIENT is a failure that may well go away by itself: a timeout, a 5xx or 429, a lost connection.
    UNFINISHED: the result says that the work goes on. PENDING means no result in the messages: a sibling in
    the same turn, or a call whose result the client left out.
    """

    OK = "ok"
    EMPTY = "empty"
    FAILED = "failed"
    TRANSIENT = "transient"
    UNFINISHED = "unfinished"
    PENDING = "pending"


Patterns = tuple[re.Pattern[str], ...]

_LONGEST_JSON: Final = 16_384
"""Characters; a report of an error is shorter, and longer JSON is not parsed for one."""
_SHORT: Final = 300
"""A text that has no more characters, in three lines at most, may be a failure by what it says anywhere."""
_HEAD: Final = 600
_TAIL: Final = 400
_DEEPEST: Final = 4
"""How often a text may be wrapped in another."""
_REMEMBERED: Final = 4096
"""Characters of a text whose outcome is worth remembering: the history is read with every request."""


def outcome_of(message: Mapping[str, Any], text: str, failures: Patterns = ()) -> Outcome:
    """How the call of this tool message ended; `text` is the text of its content, and `failures` are further
    patterns of the beginnings of failures."""
    found = (_remembered if len(text) <= _REMEMBERED else _outcome)(text, failures)
    if found in (Outcome.FAILED, Outcome.TRANSIENT):
        return found
    return _kind(text) if _flagged(message) or _has_flagged_part(message.get("content")) else found


def comparable(text: str) -> str:
    """A text without what differs each time (`took 3 ms`): two results that say the same are the same."""
    value = _parsed(text)
    if isinstance(value, dict | list):
        with suppress(RecursionError):
            return json.dumps(_without_noise(value, 0), sort_keys=True)
    return _NOISE.sub("", text) if len(text) <= _LONGEST_JSON else text


def is_cleared(text: str) -> bool:
    """Whether a client put this in the place of an old result, to save tokens."""
    return len(text) <= _SHORT and _CLEARED.match(text.strip()) is not None


def compiled(patterns: Iterable[str]) -> Patterns:
    """Patterns of an operator. Raises `re.error`."""
    return tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns)


# Texts


def _outcome(text: str, failures: Patterns) -> Outcome:
    try:
        return _of_text(text, failures, 0)
    except RecursionError:
        return Outcome.OK


_remembered = lru_cache(maxsize=1024)(_outcome)


def _of_text(text: str, failures: Patterns, depth: int) -> Outcome:
    text = text.strip()
    if not text:
        return Outcome.EMPTY
    head = text[:_HEAD]
    if any(pattern.match(head) for pattern in failures):
        return _kind(text)
    value = _parsed(text)
    if isinstance(value, str) and depth < _DEEPEST:
        return _of_text(value, failures, depth + 1)
    if isinstance(value, dict | list):
        return _of_value(value, text, failures, depth)
    if text[0] in "{[" and _LONG_FLAG.search(head + text[-_TAIL:]):
        return _kind(text)
    return _of_command(text) or _of_words(text)


def _of_command(text: str) -> Outcome | None:
    """By the exit code that stands beside what a command wrote."""
    ends = _ends(text)
    for pattern in _EXIT_LINES:
        if found := pattern.search(ends):
            if int(found[1]):
                return _kind(text)
            return Outcome.EMPTY if any(quiet.search(ends) for quiet in _QUIET) else Outcome.OK
    return None


def _of_words(text: str) -> Outcome:
    text = _COLOUR.sub("", text[:_HEAD]) + text[_HEAD:]
    if _PAGE.match(text):
        return _of_page(text[: 4 * _HEAD])
    if _begins_or_ends(_FAILURES, text):
        return _kind(text)
    if _fits(_EMPTY, text):
        return Outcome.EMPTY
    if _fits(_UNFINISHED, text):
        return Outcome.UNFINISHED
    return _kind(text) if _says_shortly(_FAILURES, text) else Outcome.OK


def _of_page(page: str) -> Outcome:
    titles = (found[1].strip() for found in _TITLE.finditer(page))
    failed = any(_FAILURES[Place.TITLE].search(title) for title in titles if title)
    return _kind(_TAG.sub(" ", page)) if failed else Outcome.OK


def _fits(rows: Mapping[Place, re.Pattern[str]], text: str) -> bool:
    return _begins_or_ends(rows, text) or _says_shortly(rows, text)


def _begins_or_ends(rows: Mapping[Place, re.Pattern[str]], text: str) -> bool:
    if Place.START in rows and rows[Place.START].match(text[:_HEAD]):
        return True
    return Place.LAST in rows and rows[Place.LAST].match(_last_line(text)) is not None


def _says_shortly(rows: Mapping[Place, re.Pattern[str]], text: str) -> bool:
    if len(text) > _SHORT or text.count("\n") > 2 or _QUOTES.match(text):
        return False
    if Place.SHORT in rows and rows[Place.SHORT].search(text):
        return True
    return Place.WHOLE in rows and rows[Place.WHOLE].fullmatch(text) is not None


def _last_line(text: str) -> str:
    return text[-_HEAD:].rstrip().rpartition("\n")[2]


def _kind(text: str) -> Outcome:
    """FAILED or TRANSIENT: of a text that tells of a failure, or is flagged as one."""
    # The lines before the last are source code, which may well name a time-out.
    ends = _last_line(text) if _TRACEBACK in text[:_HEAD] else _ends(text)
    if _PERMANENT.search(ends):
        return Outcome.FAILED
    return Outcome.TRANSIENT if _TRANSIENT.search(ends) else Outcome.FAILED


def _ends(text: str) -> str:
    return text if len(text) <= _HEAD + _TAIL else f"{text[:_HEAD]}\n{text[-_TAIL:]}"


# JSON


def _parsed(text: str) -> Any:
    """The JSON object, list or string that a text is; None if it is none, or too long."""
    if len(text) > _LONGEST_JSON or text.lstrip()[:1] not in ("{", "[", '"'):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _of_value(value: Any, text: str, failures: Patterns, depth: int) -> Outcome:
    if isinstance(value, list):
        return _of_list(value, text, failures, depth)
    if depth < _DEEPEST and (inner := _unwrapped(value)) is not None:
        found = _of_text(inner, failures, depth + 1)
        return _kind(text) if _flagged(value) and found is not Outcome.TRANSIENT else found
    return _of_exit(value, text) or _of_fields(value, text, failures, depth)


def _of_list(value: list[Any], text: str, failures: Patterns, depth: int) -> Outcome:
    if not value:
        return Outcome.EMPTY
    if _are_parts(value) and depth < _DEEPEST:
        inner = _of_text(_joined(value), failures, depth + 1)
        return _kind(text) if _has_flagged_part(value) and inner is not Outcome.TRANSIENT else inner
    if _is_invalid_input(value):
        return Outcome.FAILED
    only = value[0] if len(value) == 1 else None
    if isinstance(only, dict) and (
        isinstance(only.get("error"), dict) or {"errorCode", "message"} <= only.keys()
    ):
        return _kind(text)
    return Outcome.OK


def _unwrapped(value: Mapping[str, Any]) -> str | None:
    """The text in a result that is only wrapped: an MCP result, a part, a JSON-RPC response."""
    if isinstance(value.get("content"), list) and (_are_parts(value["content"]) or "isError" in value):
        return _joined(value["content"])
    if value.get("type") == "text" and isinstance(value.get("text"), str):
        return str(value["text"])
    if "jsonrpc" in value and isinstance(value.get("result"), dict | list):
        return json.dumps(value["result"])
    return None


def _of_exit(value: Mapping[str, Any], text: str) -> Outcome | None:
    codes = [code for path in table.EXIT_FIELDS if isinstance(code := _field(value, path), int)]
    if not codes or isinstance(codes[0], bool):
        return None
    if codes[0]:
        return _kind(text)
    wrote = [value[name] for name in table.OUTPUT_FIELDS if name in value]
    return Outcome.EMPTY if wrote and not any(map(_says, wrote)) else Outcome.OK


def _of_fields(value: Mapping[str, Any], text: str, failures: Patterns, depth: int) -> Outcome:
    if _has_word(value, table.EMPTY_WORDS):
        return Outcome.EMPTY
    words = _message(value)
    said = _of_text(words, failures, depth + 1) if words and depth < _DEEPEST else None
    if said is Outcome.EMPTY:
        return said
    if _reports_failure(value) or (said in (Outcome.FAILED, Outcome.TRANSIENT) and _is_report(value)):
        return _kind(text)
    if _is_unfinished(value):
        return Outcome.UNFINISHED
    return Outcome.EMPTY if _found_nothing(value) else Outcome.OK


def _reports_failure(value: Mapping[str, Any]) -> bool:
    lists = any(_says(value.get(name)) for name in table.ERROR_LISTS)
    return (
        _flagged(value)
        or any(_is_error(_field(value, path)) for path in table.ERROR_FIELDS)
        or (lists and not any(_says(value.get(name)) for name in table.DATA_FIELDS))
        or any(_is_http_error(value.get(name)) for name in table.STATUS_FIELDS)
        or (bool(_message(value)) and any(_is_http_error(value.get(name)) for name in table.CODE_FIELDS))
        or _has_word(value, table.ERROR_WORDS)
        or value.keys() >= table.NODE_ERROR
        or _is_invalid_input(value.get("detail"))
    )


def _message(value: Mapping[str, Any]) -> str:
    """The words of a report."""
    for name in table.MESSAGE_FIELDS:
        words = value.get(name)
        if isinstance(words, str) and words:
            return words
    return ""


def _is_report(value: Mapping[str, Any]) -> bool:
    """Whether an object has nothing but a message and what belongs to one."""
    return not value.keys() - table.REPORT_FIELDS - set(table.MESSAGE_FIELDS)


def _is_unfinished(value: Mapping[str, Any]) -> bool:
    if len(value) > table.UNFINISHED_LONGEST or any(
        isinstance(item, list) and item for item in value.values()
    ):
        return False
    if any(value.get(name) is flag for name, flag in table.UNFINISHED_FLAGS.items()):
        return True
    states = (_field(value, path) for path in table.STATE_FIELDS)
    return any(isinstance(state, str) and _word(state) in table.UNFINISHED_STATES for state in states)


def _found_nothing(value: Mapping[str, Any]) -> bool:
    """Whether there is nothing in an object, or in all that it has for what was found."""
    names = value.keys() - {*table.ERROR_FIELDS, *table.ERROR_LISTS}
    if not value or (names and all(_is_hollow(value[name]) for name in names)):
        return True
    collections = [found for path in table.COLLECTIONS if (found := _field(value, path)) is not None]
    return any(found != {} for found in collections) and all(map(_is_hollow, collections))


def _is_hollow(value: Any) -> bool:
    """Whether there is nothing in a value, however deep."""
    if isinstance(value, Mapping):
        return all(_is_hollow(item) for item in value.values())
    if isinstance(value, list):
        return all(_is_hollow(item) for item in value)
    return value is None or value == ""


def _is_error(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() not in _NO_ERROR
    return bool(value)


def _is_http_error(status: Any) -> bool:
    if isinstance(status, str) and status[:3].isdecimal() and not status[3:4].isalnum():
        status = int(status[:3])
    return isinstance(status, int) and 400 <= status < 600


def _is_invalid_input(value: Any) -> bool:
    """Whether these are pydantic's errors."""
    items = value if isinstance(value, list) else []
    valid = (isinstance(item, Mapping) and item.keys() >= table.VALIDATION for item in items)
    return bool(items) and all(valid)


def _flagged(fields: Mapping[str, Any]) -> bool:
    """By a flag of its own, or by the word that messages and objects have for it."""
    return (
        any(fields.get(key) is value for key, value in table.FLAGS.items()) or fields.get("status") == "error"
    )


def _has_flagged_part(content: Any) -> bool:
    return isinstance(content, list) and any(isinstance(part, Mapping) and _flagged(part) for part in content)


def _are_parts(value: list[Any]) -> bool:
    return all(isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in value) and any(
        isinstance(part.get("text"), str) or "content" in part for part in value
    )


def _joined(parts: Iterable[Any]) -> str:
    texts = (part.get("text", part.get("content")) for part in parts if isinstance(part, Mapping))
    return "\n".join(text for text in texts if isinstance(text, str))


def _has_word(value: Mapping[str, Any], words: Mapping[str, Sequence[str]]) -> bool:
    found = ((value.get(name), known) for name, known in words.items())
    return any(isinstance(word, str) and word.lower() in known for word, known in found)


def _field(value: Mapping[str, Any], path: str) -> Any:
    """What stands at a path, None where nothing does."""
    here: Any = value
    for name in path.split("."):
        here = here.get(name) if isinstance(here, Mapping) else None
    return here


def _says(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else bool(value)


def _word(state: str) -> str:
    return state.strip().lower().replace(" ", "_").replace("-", "_")


def _without_noise(value: Any, depth: int) -> Any:
    if depth > _DEEPEST:
        return value
    if isinstance(value, dict):
        left = {key: item for key, item in value.items() if key not in table.NOISE_FIELDS}
        return {key: _without_noise(item, depth + 1) for key, item in left.items()}
    return [_without_noise(item, depth + 1) for item in value] if isinstance(value, list) else value


# The table, compiled: one expression a place

_FLAGS: Final = re.IGNORECASE | re.VERBOSE


def _by_place(rows: Sequence[Row]) -> dict[Place, re.Pattern[str]]:
    found: dict[Place, list[str]] = {}
    for row in rows:
        found.setdefault(row.place, []).append(row.pattern)
    flags = {Place.SHORT: _FLAGS | re.MULTILINE}
    return {place: re.compile(_any(patterns), flags.get(place, _FLAGS)) for place, patterns in found.items()}


def _any(patterns: Iterable[str]) -> str:
    return "|".join(f"(?:{pattern}\n)" for pattern in patterns)


_FAILURES: Final = _by_place(table.FAILURES)
_EMPTY: Final = _by_place(table.EMPTY)
_UNFINISHED: Final = _by_place(table.UNFINISHED)
_TRANSIENT: Final = re.compile(_any(table.TRANSIENT), _FLAGS)
_PERMANENT: Final = re.compile(_any(table.PERMANENT), _FLAGS)
_EXIT_LINES: Final = tuple(re.compile(pattern, _FLAGS) for pattern in table.EXIT_LINES)
_QUIET: Final = tuple(re.compile(pattern, _FLAGS) for pattern in table.QUIET)
_QUOTES: Final = re.compile(_any(table.QUOTES), _FLAGS)
_CLEARED: Final = re.compile(_any(table.CLEARED), _FLAGS)
_NOISE: Final = re.compile(_any(table.NOISE), _FLAGS)
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_PAGE: Final = re.compile(r"(?:<!doctype\s+html|<html|<head|<title)\b", re.IGNORECASE)
_TITLE: Final = re.compile(r"<(?:title|h1|h2|span)\b[^>]{0,200}>([^<]{0,200})", re.IGNORECASE)
_TAG: Final = re.compile(r"<[^<>]{0,300}>")
_TRACEBACK: Final = "Traceback (most recent call last)"
_LONG_FLAG: Final = re.compile(
    r"""
        \A\s*\{\s*"(?:is_error|isError)"\s*:\s*true
        | "(?:is_error|isError)"\s*:\s*true\s*\}\s*\Z
        | "(?:exit_?code|return_?code)"\s*:\s*-?[1-9]\d*\s*\}{1,2}\s*\Z
    """,
    re.VERBOSE | re.IGNORECASE,
)
_NO_ERROR: Final = frozenset({"", "none", "null", "no", "false", "no error", "ok", "0"})

__all__ = ["Outcome", "Patterns", "comparable", "compiled", "is_cleared", "outcome_of"]
