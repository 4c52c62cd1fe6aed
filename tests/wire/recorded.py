"""Reads the recorded bodies in this directory."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Recorded:
    """One exchange with vLLM. `request` is empty and `status` 200 where only the body was kept."""

    name: str
    request: dict[str, Any]
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def response(self) -> dict[str, Any]:
        """The body of a whole response."""
        parsed: dict[str, Any] = json.loads(self.body)
        return parsed

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The chunks of a stream."""
        events = self.body.split(b"\n\n")
        return [json.loads(event[6:]) for event in events if event.startswith(b"data: {")]


def recorded(name: str) -> Recorded:
    """The recording in the file `name`.txt."""
    text = (HERE / f"{name}.txt").read_bytes()
    if not text.startswith(b"# REQUEST"):
        return Recorded(name, {}, 200, {"content-type": "application/json"}, text)
    head, body = text.split(b"\n# BODY\n", 1)
    request, rest = head.removeprefix(b"# REQUEST\n").split(b"\n# STATUS ", 1)
    status, headers = rest.split(b"\n# HEADERS ", 1)
    return Recorded(name, json.loads(request), int(status), ast.literal_eval(headers.decode()), body)
