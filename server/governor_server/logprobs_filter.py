"""Takes logprobs out of JSON that is not read: too large to be kept, or not quite JSON."""

from __future__ import annotations

import json
import re
from typing import Final

from governor.request import ClientView

_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"|[{}\[\],]|[^"{}\[\],]++', re.DOTALL)
_LONGEST_KEY: Final = 64
"""A key, its colon and the space around it, as far as anybody writes it."""


class LogprobsFilter:
    """Passes bytes of JSON on, but for the logprobs that the client did not ask for: all of them, or the
    alternatives beyond those that it wanted. The quotes inside of a string are escaped, so that a key can be
    told from a text that looks like one."""

    def __init__(self, view: ClientView) -> None:
        name = b"top_logprobs" if view.logprobs else b"logprobs"
        self._key = re.compile(rb'"%b"\s*:\s*' % name)
        self._keep = view.asked if view.logprobs else None
        self._buffer = b""
        self._inside = False
        self._depth = self._elements = 0

    def feed(self, data: bytes, *, end: bool = False) -> bytes:
        """What goes on of `data` and of what was kept back; `end`: nothing more belongs to it."""
        self._buffer += data
        out: list[bytes] = []
        while self._value(out) if self._inside else self._outside(out, end):
            pass
        if end:
            if self._inside:
                # The value has no end. What comes next is not to become a part of this event.
                out.append(data[len(data.rstrip(b"\r\n")) :])
            self._buffer, self._inside = b"", False
        return b"".join(out)

    def unread(self, raw: bytes, data: bytes) -> bytes:
        """What goes on of an event or body `raw` whose `data` is no JSON to us. What is none to anybody goes
        on as it came; but some clients take every line for an event, or are less strict than we are."""
        if self._buffer or self._inside or _may_be_read(data):
            return self.feed(raw, end=True)
        lines = raw.splitlines(keepends=True)
        return b"".join(
            self.feed(line, end=True) if _may_be_read(line.removeprefix(b"data:")) else line for line in lines
        )

    def _outside(self, out: list[bytes], end: bool) -> bool:
        """Up to the next key; whether there is one."""
        if found := self._key.search(self._buffer):
            out.append(self._buffer[: found.end()])
            self._buffer = self._buffer[found.end() :]
            self._inside, self._depth, self._elements = True, 0, 0
            if self._keep is None:
                out.append(b"null")
            return True
        safe = len(self._buffer) if end else max(0, len(self._buffer) - _LONGEST_KEY)
        out.append(self._buffer[:safe])
        self._buffer = self._buffer[safe:]
        return False

    def _value(self, out: list[bytes]) -> bool:
        """Through a key's value; whether its end was found."""
        place = 0
        for token in _TOKEN.finditer(self._buffer):
            if token.start() != place:
                break
            mark = token[0]
            if not self._depth and mark in b",}]":
                self._leave(place)
                return True
            place = token.end()
            if mark in b"}]":
                self._depth -= 1
            self._pass_on(mark, out)
            if mark in b"{[":
                self._depth += 1
            elif mark in b"}]" and not self._depth:
                self._leave(place)
                return True
        self._buffer = self._buffer[place:]
        return False

    def _pass_on(self, mark: bytes, out: list[bytes]) -> None:
        """The first elements of a list, and its brackets."""
        if self._keep is None:
            return
        self._elements += self._depth == 1 and mark == b","
        if not self._depth or self._elements < self._keep:
            out.append(mark)

    def _leave(self, place: int) -> None:
        self._buffer = self._buffer[place:]
        self._inside = False


def _may_be_read(text: bytes) -> bool:
    """Whether a lenient parser makes something of a text: one that takes NaN, control characters in strings
    or bytes that are no UTF-8."""
    try:
        json.loads(text.decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError):
        return False
    return True
