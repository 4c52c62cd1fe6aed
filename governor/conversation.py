"""What already happened in a conversation, read from the messages that the client sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from governor.calls import CallSignature, ToolCall, ToolCatalog, ToolEffect


class Outcome(StrEnum):
    """How an executed call ended, as far as its result shows."""

    OK = "ok"
    EMPTY = "empty"
    FAILED = "failed"
    TRANSIENT = "transient"
    PENDING = "pending"


@dataclass(frozen=True, slots=True)
class ExecutedCall:
    """A call with its result. A PENDING one has none (yet): a sibling in the same message, or a result not
    sent back.

    `user_messages_after`: how many messages of the user came after it.
    """

    call: ToolCall
    result: str
    outcome: Outcome
    effect: ToolEffect
    user_messages_after: int = 0

    @property
    def failed(self) -> bool:
        return self.outcome in (Outcome.FAILED, Outcome.TRANSIENT)


def executed_calls(messages: Sequence[Any], catalog: ToolCatalog) -> tuple[ExecutedCall, ...]:
    """The calls of the history in the order they were made, without those that were answered by our
    notices."""
    raise NotImplementedError


def withheld_signatures(messages: Sequence[Any]) -> frozenset[CallSignature]:
    """The signatures of the calls that were answered by one of our notices."""
    raise NotImplementedError


def pending_calls(calls: Sequence[ToolCall], catalog: ToolCatalog) -> tuple[ExecutedCall, ...]:
    """Calls proposed but not yet executed, as history entries: what the siblings of a parallel call are to
    it."""
    raise NotImplementedError


def step(messages: Sequence[Any]) -> int:
    """How many assistant messages with calls came before: 0 for the first turn."""
    raise NotImplementedError
