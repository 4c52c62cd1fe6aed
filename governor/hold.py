"""Which chunks of a stream go on at once, and which wait for the decision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from governor.markup import CallWatch
from governor.request import Json
from governor.turn import Turn, first_choice


class Held(NamedTuple):
    """A chunk that waits; `first_token` is the place in the turn of the first token in its logprobs, and
    `places` are those in the message of the calls that it has pieces of."""

    chunk: Json
    first_token: int = 0
    places: Sequence[int] = ()


class Hold:
    """Text goes on at once; from the first call of a governed tool on, everything waits.

    `calls` False: calls do not wait. `end` False: neither does what follows the last token. `watch`: text
    waits while it may be a call written out. `governs` says whether calls of a tool may be withheld: those of
    other tools go on at once, as long as nothing before them waits.

    Chunks that show nothing (the swallowed marker of a call, whitespace before the first word) wait for the
    next one, because they belong to what comes next: text, or a call.
    """

    def __init__(
        self, governs: Callable[[str], bool], *, calls: bool, end: bool, watch: CallWatch | None = None
    ) -> None:
        self._governs = governs
        self._watch = watch
        self._holds_calls = calls
        self._holds_end = end
        self._waiting: list[Held] = []
        self._closed = False

    def receive(self, held: Held, turn: Turn) -> Sequence[Held]:
        """What goes on now that `held` arrived; `turn` has taken it in already."""
        self._closed = self._closed or self._closes(held, turn)
        self._waiting.append(held)
        if self._closed or (self._holds_calls and self._shows_nothing(held.chunk, turn)):
            return ()
        if self._watch is not None and self._watch.holds(turn.content):
            return ()
        return self.take()

    @property
    def waiting(self) -> Sequence[Held]:
        """All that waits, in order."""
        return self._waiting

    def take(self) -> Sequence[Held]:
        """All that waits, in order; nothing waits afterwards."""
        taken, self._waiting = self._waiting, []
        return taken

    def _closes(self, held: Held, turn: Turn) -> bool:
        choice = first_choice(held.chunk)
        if choice is None:
            return False
        if self._holds_end and choice.get("finish_reason") is not None:
            return True
        return self._holds_calls and any(self._waits(turn.tool_name(place)) for place in held.places)

    def _waits(self, tool: str) -> bool:
        return not tool or self._governs(tool)

    def _shows_nothing(self, chunk: Json, turn: Turn) -> bool:
        choice = first_choice(chunk)
        if choice is None or choice.get("finish_reason") is not None:
            return False
        delta: Json = choice.get("delta") or {}
        if any(value for key, value in delta.items() if key != "content"):
            return False
        return not delta.get("content") or not turn.has_text
