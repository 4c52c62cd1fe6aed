"""What clients read out of bodies."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

from tests.server.scripted_upstream import Answer
from tests.wire.assembled import Assembled
from tests.wire.generated import Generated


def answer(generated: Generated, stream: bool) -> Answer:
    """The generation as upstream answers with it."""
    return Answer.stream(generated, usage=True) if stream else Answer.whole(generated)


def chunks_of(body: bytes) -> list[dict[str, Any]]:
    """The chunks of a stream."""
    return [json.loads(event[6:]) for event in body.split(b"\n\n") if event.startswith(b"data: {")]


def parsed(body: bytes) -> Any:
    """A response, or the chunks of a stream."""
    return json.loads(body) if body.startswith(b"{") else chunks_of(body)


def assembled(body: bytes) -> Assembled:
    """The message that a client makes of a body."""
    if body.startswith(b"{"):
        return Assembled.of_response(json.loads(body))
    return Assembled.of_chunks(chunks_of(body))


def digest(body: bytes) -> str:
    """Of every byte."""
    return sha256(body).hexdigest()
