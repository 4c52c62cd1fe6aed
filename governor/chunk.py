"""Chunks of a stream that remember how they came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Chunk(dict[str, Any]):
    """A chunk of a stream. `event` is the caller's: how the chunk came, so that what is made of it can be
    sent in the same way."""

    __slots__ = ("event",)

    event: Any


class EditedChunk(Chunk):
    """A chunk that is not the one that came any more."""

    __slots__ = ()


def edited(source: Mapping[str, Any], *, without: str = "", **changes: Any) -> dict[str, Any]:
    """A copy of `source` with `changes`, and without one of its fields; of a `Chunk`, one of the same
    event."""
    if isinstance(source, Chunk):
        chunk = EditedChunk(source, **changes)
        chunk.event = source.event
        copy: dict[str, Any] = chunk
    else:
        copy = dict(source, **changes)
    copy.pop(without, None)
    return copy
