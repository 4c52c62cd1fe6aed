"""Upstream's answers, parsed as far as somebody needs them.

With 20 of them a token, logprobs are nine tenths of an answer. A client that did not ask for them does not
get them, and the governor needs them for the turns that it decides on or keeps a record of. So they are
skipped over, and handed to the core as `Unread`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final, NotRequired, TypedDict

import msgspec
import orjson

from governor.chunk import Chunk, EditedChunk
from governor.request import Json
from governor.tokens import Unread
from governor_server import exact_json, sse

KEY: Final = b'"logprobs":'
BEGIN: Final = KEY + b'{"content":[{'
"""How the logprobs of at least one token begin in what vLLM writes. Others are parsed at once."""

NOTHING: Final = msgspec.Raw(b"null")


class _Choice(msgspec.Struct):
    logprobs: msgspec.Raw = NOTHING


class _Body(msgspec.Struct):
    choices: list[_Choice]


class _Alternative(TypedDict):
    logprob: float


class _Token(TypedDict):
    token: str
    logprob: float
    top_logprobs: NotRequired[list[_Alternative]]


class _Logprobs(TypedDict):
    content: list[_Token]


_body: Final = msgspec.json.Decoder(_Body)
_logprobs: Final = msgspec.json.Decoder(_Logprobs)
"""What is measured. The bytes and the texts of the alternatives are half of what there is."""


def chunk(event: sse.Event, parsed: Any) -> Chunk:
    """The chunk that came in `event`, whose data were `parsed`. Raises TypeError where they are no object."""
    if not isinstance(parsed, dict):
        raise TypeError(f"a chunk from {type(parsed).__name__}")
    found = Chunk(parsed)
    found.event = event
    return found


def written(chunk: Json) -> bytes:
    """The event that brings `chunk` to the client: to the last byte the one that it came in, where nothing
    was changed."""
    if not isinstance(chunk, Chunk):
        return sse.event(chunk)
    event: sse.Event = chunk.event
    return sse.rewritten(event, chunk) if isinstance(chunk, EditedChunk) else event.raw


def whole(body: bytes) -> Any:
    """The JSON in `body`, logprobs and all. Raises ValueError."""
    # Logprobs are hundreds of numbers, and to look at each takes longer than to write them once.
    with suppress(orjson.JSONDecodeError):
        found = orjson.loads(body)
        if orjson.dumps(found) == body:
            return found
    return exact_json.loads(body)


def parsed(body: bytes) -> Any:
    """The JSON in `body`, a chunk or a whole response, with the logprobs of its only choice `Unread`.

    Raises ValueError.
    """
    at = body.find(BEGIN)
    if at < 0:
        return exact_json.loads(body)
    try:
        (choice,) = _body.decode(body).choices
    except (msgspec.MsgspecError, ValueError):
        return exact_json.loads(body)
    at += len(KEY)
    raw = bytes(choice.logprobs)
    if not body.startswith(raw, at):
        return exact_json.loads(body)
    rest = exact_json.loads(body[:at] + b"null" + body[at + len(raw) :])
    (left,) = rest["choices"]
    # What was taken out might have been another field of the same name.
    if left["logprobs"] is not None:
        return exact_json.loads(body)
    left["logprobs"] = Unread(raw, _logprobs.decode)
    return rest
