"""Server-sent events, read from bytes and written to bytes.

Works on bytes throughout: a character, a line end or an event may be cut anywhere by the network, and is put
together again before anything is decoded. An event keeps the bytes it came in, so that one that is passed on
unchanged is the same to the last byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from governor_server import exact_json

MAX_EVENT_BYTES = 16 * 1024 * 1024
"""An event that grows past this is handed on in pieces, unread. One with 20 logprobs a token has about 2
KB."""

DONE = b"[DONE]"

BOM = b"\xef\xbb\xbf"

_LINE_END = rb"(?:\r\n|\n|\r)"
_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n))" + _LINE_END)
_ENDS = re.compile(_BLANK_LINE.pattern + rb"\Z")
_LINES = re.compile(_LINE_END)


class Event(NamedTuple):
    """One event: its bytes, and its data; `data` is None for what carries none, such as a comment."""

    raw: bytes
    data: bytes | None


class EventReader:
    """Cuts a stream of bytes into events."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._only_newlines = True
        self._begins = True

    def feed(self, data: bytes) -> Sequence[Event]:
        """The events that are complete with `data`."""
        if not self._buffer and (whole := _plain(data)):
            self._begins = False
            return (Event(data, whole),)
        self._buffer += data
        self._only_newlines = self._only_newlines and b"\r" not in data
        found = []
        while (end := self._event_end()) is not None:
            found.append(self._cut(end))
        if len(self._buffer) > MAX_EVENT_BYTES:
            found.append(Event(self.rest(), None))
        return found

    def rest(self) -> bytes:
        """What is left of an event that never ended."""
        left = bytes(self._buffer)
        self._buffer.clear()
        self._searched = 0
        return left

    def _event_end(self) -> int | None:
        if self._only_newlines:
            place = self._buffer.find(b"\n\n", self._searched)
            self._searched = 0 if place >= 0 else max(0, len(self._buffer) - 1)
            return place + 2 if place >= 0 else None
        found = _BLANK_LINE.search(self._buffer, self._searched)
        # A carriage return at the very end may be the first half of a line end.
        if found is None or (found.end() == len(self._buffer) and self._buffer.endswith(b"\r")):
            self._searched = max(0, len(self._buffer) - 3)
            return None
        return found.end()

    def _cut(self, end: int) -> Event:
        raw = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._searched = 0
        begins, self._begins = self._begins, False
        return Event(raw, _data(raw.removeprefix(BOM) if begins else raw))


def _plain(raw: bytes) -> bytes | None:
    """The data of what is one event with one line of data, as servers send it; None of anything else."""
    if raw.startswith(b"data: ") and raw.find(b"\n", 6) == len(raw) - 2 and raw.endswith(b"\n\n"):
        return raw[6:-2] if b"\r" not in raw else None
    return None


def _data(raw: bytes) -> bytes | None:
    if (plain := _plain(raw)) is not None:
        return plain
    fields = [line[5:].removeprefix(b" ") for line in _LINES.split(raw) if _is_data(line)]
    return b"\n".join(fields) if fields else None


def _is_data(line: bytes) -> bool:
    return line.startswith(b"data:") or line == b"data"


def event(body: Mapping[str, Any]) -> bytes:
    """An event that carries `body` as JSON."""
    return b"data: " + exact_json.dumps(body) + b"\n\n"


def rewritten(old: Event, body: Mapping[str, Any]) -> bytes:
    """The event `old` with `body` as its data; its other fields, comments and line ends are as they were."""
    raw, data = old
    # Nothing but one line of data, as most servers write them.
    if data is not None and len(raw) == len(data) + 8 and raw.startswith(b"data: ") and raw.endswith(b"\n\n"):
        return event(body)
    end = _first_line_end(raw)
    lines = [line for line in _LINES.split(raw) if line and not _is_data(line.removeprefix(BOM))]
    return end.join([*lines, b"data: " + exact_json.dumps(body), b"", b""])


def _first_line_end(raw: bytes) -> bytes:
    found = _LINES.search(raw)
    return found.group() if found else b"\n"


def is_comment(raw: bytes) -> bool:
    """Whether an event is nothing but comments, which keep a connection alive."""
    lines = [line for line in _LINES.split(raw) if line]
    return bool(lines) and all(line.startswith(b":") for line in lines)


def is_done(data: bytes) -> bool:
    """Whether an event's data says that it is the last one."""
    return data.strip() == DONE


def ends_event(raw: bytes) -> bool:
    """Whether bytes that were written to a stream end where another event may begin."""
    return _ENDS.search(raw, max(0, len(raw) - 4)) is not None
