"""What the turns of recent conversations took: in memory, in the store's file, and in Redis where several
processes share it."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

import orjson

from governor.turn_record import TurnRecord
from governor_server.tables import IN_MEMORY, Backing, Row, Table

if TYPE_CHECKING:
    from governor_server.shared import Shared

Key = tuple[str, float]
"""A conversation, and when the request came."""


class TurnStore:
    """The newest `max_turns` turns, none older than `ttl_s` seconds by `clock`. Safe to use from several
    threads.

    `path` is a file, which may be that of the records, or `:memory:`. With `shared`, what other processes put
    is here too, a moment later. `on_error` is called for each failure of the file.
    """

    def __init__(
        self,
        path: str = IN_MEMORY,
        *,
        max_turns: int = 20_000,
        ttl_s: float = 7 * 24 * 3600.0,
        shared: Shared | None = None,
        clock: Callable[[], float] = time.time,
        on_error: Callable[[], None] = lambda: None,
    ) -> None:
        self._max_turns, self._ttl_s, self._clock = max_turns, ttl_s, clock
        self._lock = threading.Lock()
        self._turns: OrderedDict[Key, TurnRecord] = OrderedDict()
        self._behind = Backing(
            TURNS,
            path,
            shared,
            max_rows=max_turns,
            ttl_s=ttl_s,
            now=clock(),
            restore=self._insert,
            take=self._take,
            on_error=on_error,
        )

    def __repr__(self) -> str:
        return f"<TurnStore [{len(self)} turns]>"

    def __len__(self) -> int:
        return len(self._turns)

    def put(self, turn: TurnRecord) -> None:
        """Keep a turn; what was kept of the same one is replaced."""
        self._take(turn)
        self._behind.write(turn)

    def all(self) -> tuple[TurnRecord, ...]:
        """All that are alive."""
        oldest = self._clock() - self._ttl_s
        with self._lock:
            return tuple(turn for turn in self._turns.values() if turn.created >= oldest)

    def close(self) -> None:
        """Write what is queued and let go of the file and Redis. Waits a few seconds at most."""
        self._behind.close()

    def _take(self, turn: TurnRecord) -> None:
        with self._lock:
            self._insert(turn)

    def _insert(self, turn: TurnRecord) -> None:
        self._turns[turn.conversation, turn.created] = turn
        while len(self._turns) > self._max_turns:
            self._turns.popitem(last=False)


def _encode(turn: TurnRecord) -> Row:
    return orjson.dumps([turn.conversation, turn.created]).decode(), turn.created, orjson.dumps(turn)


TURNS = Table("turns", "name", _encode, lambda body: TurnRecord.from_dict(orjson.loads(body)))
