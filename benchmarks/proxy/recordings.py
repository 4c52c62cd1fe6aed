"""What the benchmark asks, what the upstream replays for it, and what of that a client must get."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Final

from tests.wire.recorded import Recorded, recorded

EVENT_END: Final = b"\n\n"
DONE: Final = b"[DONE]"
ID: Final = re.compile(rb'"id":"chatcmpl-(?:tool-)?([0-9a-f]{16})"')
OURS: Final = ("logprobs", "top_logprobs")
"""What of the recorded requests the client of the benchmark does not ask for, and the governor does."""


class Kind(StrEnum):
    """Who asks: the client, the governor in its place, or the governor for itself."""

    PLAIN = "plain"
    MEASURED = "measured"
    PROBE = "probe"

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Kind:
        """Of a request that came to upstream."""
        if body.get("logit_bias"):
            return cls.PROBE
        return cls.MEASURED if body.get("logprobs") else cls.PLAIN


@dataclass(frozen=True)
class Workload:
    """A request with tools and its recorded answer with 20 logprobs a token. Every answer bears an id of its
    own, as vLLM's do: `mark`, 16 hexadecimal digits, stands in the place of the recorded one; all else is
    replayed byte for byte."""

    name: str
    answer: Recorded
    probe: Recorded | None = None

    @property
    def request(self) -> dict[str, Any]:
        """The client's: without logprobs."""
        return {key: value for key, value in self.answer.request.items() if key not in OURS}

    @property
    def streams(self) -> bool:
        return bool(self.answer.request.get("stream"))

    def visible_to(self, mark: bytes) -> bytes:
        """`visible`, of the answer that bears `mark`."""
        return marked(self.visible, self.answer, mark)

    @cached_property
    def visible(self) -> bytes:
        """What a client that asked for no logprobs must get: all but them, and without the events that
        upstream sent for their sake."""
        if not self.streams:
            return without_logprobs(self.answer.body) or b""
        return b"".join(self.visible_events)

    @property
    def measured_chunks(self) -> int:
        """How many of its chunks carry logprobs."""
        return sum(b'"top_logprobs":[{' in event for event in events(self.answer))

    @property
    def visible_events(self) -> Sequence[bytes]:
        """The events of `visible`; empty where upstream's has nothing for the client."""
        data = [event.removeprefix(b"data: ").removesuffix(EVENT_END) for event in events(self.answer)]
        kept = [part if part == DONE else without_logprobs(part) for part in data]
        return [b"data: " + part + EVENT_END if part is not None else b"" for part in kept]


def identities(answer: Recorded) -> Sequence[bytes]:
    """The digits of the ids that upstream gave an answer and its calls."""
    return sorted(set(ID.findall(answer.body)))


def marked(body: bytes, answer: Recorded, mark: bytes) -> bytes:
    """`body`, a part of `answer`, with `mark` for its ids."""
    for digits in identities(answer):
        body = body.replace(digits, mark)
    return body


def events(answer: Recorded) -> Sequence[bytes]:
    """The events of a recorded stream."""
    return [event + EVENT_END for event in answer.body.split(EVENT_END) if event]


def without_logprobs(raw: bytes) -> bytes | None:
    """A chunk or a response without logprobs; None where nothing else was in it."""
    body = json.loads(raw)
    for choice in body.get("choices", ()):
        empty = choice.get("delta") == {} and choice.get("finish_reason") is None
        if choice.get("logprobs") and empty:
            return None
        choice["logprobs"] = None
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


RESPONSE: Final = Workload("response", recorded("chat_tools_none"))
STREAM: Final = Workload("stream", recorded("chat_tools_none_stream"))
CALL: Final = Workload("call", recorded("chat_tools_auto_stream"), recorded("chat_after_tool_none"))
"""Ends in a call of a read-only tool, which the governor judges by a probe; the probe is not sure, and the
call passes."""

WORKLOADS: Final = (RESPONSE, STREAM, CALL)
MODEL: Final[str] = CALL.request["model"]
READ_ONLY: Final = ("get_weather", "get_price", "search")


def asked(request: Mapping[str, Any]) -> tuple[bool, object]:
    """What tells the workloads' requests apart."""
    return bool(request.get("stream")), request.get("tool_choice")
