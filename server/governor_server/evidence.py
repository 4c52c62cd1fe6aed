"""What a server answered, of whatever kind: a doctor must not fall ill of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson

from governor_server import sse


@dataclass(frozen=True)
class Answer:
    """What the server answered, of whatever kind; `seconds` until the end of the body."""

    status: int
    body: bytes
    seconds: float = 0.0

    @cached_property
    def json(self) -> Any:
        """The parsed body; None if it is no JSON."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return None

    @cached_property
    def chunks(self) -> list[Any]:
        """The parsed events of a stream; None for one that is no JSON."""
        events = [event.data for event in sse.EventReader().feed(self.body) if event.data is not None]
        return [Answer(self.status, data).json for data in events if data != sse.DONE]

    @property
    def refused(self) -> bool:
        """Whether it is an error. vLLM tells some of them in a stream."""
        return self.status != 200 or any(at(chunk, "error") for chunk in self.chunks)

    @property
    def complaint(self) -> str:
        """The error in short, or the beginning of a body that says nothing."""
        for body in (self.json, *self.chunks):
            for message in (at(body, "error", "message"), at(body, "message"), at(body, "detail")):
                if isinstance(message, str):
                    return f"status {self.status}: {excerpt(message)}"
        return f"status {self.status}: {excerpt(self.body.decode('utf-8', 'replace')) or 'no body'}"


def at(value: Any, *path: str | int) -> Any:
    """What stands at `path` in parsed JSON of any shape; None where there is nothing."""
    for step in path:
        if isinstance(step, str) and isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(step, int) and isinstance(value, list) and step < len(value):
            value = value[step]
        else:
            return None
    return value


def excerpt(text: str, length: int = 120) -> str:
    """The beginning of a text from outside, on one line and without control characters."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return plain if len(plain) <= length else plain[: length - 3] + "..."
