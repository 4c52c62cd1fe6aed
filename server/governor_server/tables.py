"""What stands behind a store that lives in memory: a table of an SQLite file, so that a restart does not
forget it, and in Redis the memories of other processes.

The file is read once, at start, and written by a thread behind a bounded queue. A disk that is full,
read-only or slow costs the persistence, never a request: failures are counted through `on_error` and told
once in the log.
"""

from __future__ import annotations

import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from governor_server.shared import Shared, SharedLog

IN_MEMORY = ":memory:"
QUEUE_SIZE = 4096
BATCH_SIZE = 256
GATHER_S = 0.05
"""How long the writing waits for more: a transaction of many costs hardly more than that of one record."""
CLOSE_TIMEOUT_S = 5.0

Row = tuple[str, float, bytes]
"""Key, time in seconds, body."""
Item = TypeVar("Item")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Table(Generic[Item]):
    """A table of a store's file: the column of the key, and how an item becomes a row and comes back.

    `decode` raises KeyError, TypeError or ValueError on a body of another version. `merge` makes one of two
    items under one key; without it the later one counts.
    """

    name: str
    key: str
    encode: Callable[[Item], Row]
    decode: Callable[[bytes], Item]
    merge: Callable[[Item, Item], Item] | None = None

    @property
    def schema(self) -> tuple[str, ...]:
        return (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = NORMAL",
            f"CREATE TABLE IF NOT EXISTS {self.name}"
            f" ({self.key} TEXT PRIMARY KEY, created REAL NOT NULL, body BLOB NOT NULL)",
            f"CREATE INDEX IF NOT EXISTS {self.name}_by_age ON {self.name} (created)",
        )

    @property
    def select_alive(self) -> str:
        # A version before may have written the same item under another key: what was written last counts.
        return f"SELECT body FROM {self.name} WHERE created >= ? ORDER BY created DESC, rowid DESC LIMIT ?"

    @property
    def select_one(self) -> str:
        return f"SELECT body FROM {self.name} WHERE {self.key} = ?"

    @property
    def upsert(self) -> str:
        return f"INSERT OR REPLACE INTO {self.name} ({self.key}, created, body) VALUES (?, ?, ?)"

    @property
    def delete_expired(self) -> str:
        return f"DELETE FROM {self.name} WHERE created < ?"

    @property
    def delete_excess(self) -> str:
        return (
            f"DELETE FROM {self.name} WHERE {self.key} IN"
            f" (SELECT {self.key} FROM {self.name} ORDER BY created DESC LIMIT -1 OFFSET ?)"
        )


class Backing(Generic[Item]):
    """The file and the Redis behind a store in memory, of which there may be both, one or none.

    `path` is a file, or `:memory:` for none. What is in the file and alive at `now` goes to `restore`, oldest
    first, before this is made; what other processes put goes to `take`, at any time and from another thread.
    `current` gives what the store knows by now of an item that waits to be shared.
    """

    def __init__(
        self,
        table: Table[Item],
        path: str,
        shared: Shared | None,
        *,
        max_rows: int,
        ttl_s: float,
        now: float,
        restore: Callable[[Item], object],
        take: Callable[[Item], None],
        current: Callable[[Item], Item] = lambda item: item,
        on_error: Callable[[], None],
    ) -> None:
        self._file: TableFile[Item] | None = None
        self._log: SharedLog[Item] | None = None
        if path != IN_MEMORY:
            self._file = TableFile(Path(path), table, max_rows, ttl_s, on_error)
            for item in self._file.read(now - ttl_s):
                restore(item)
            self._file.start()
        if shared is not None:
            self._log = shared.log(table, take, max_rows=max_rows, ttl_s=ttl_s, current=current)
            self._log.start()

    @property
    def is_shared(self) -> bool:
        """Whether there are other processes."""
        return self._log is not None

    def write(self, item: Item) -> None:
        """Queue an item."""
        for part in (self._file, self._log):
            if part is not None:
                part.write(item)

    async def flush(self) -> None:
        """Returns when what was written before is where other processes find it; at once where there is none
        or Redis is down, and after a few hundredths of a second in any case."""
        if self._log is not None:
            await self._log.flush()

    async def catch_up(self) -> None:
        """The same, when what other processes have put before was taken."""
        if self._log is not None:
            await self._log.catch_up()

    def close(self) -> None:
        """Write what is queued and let go of the file and Redis. Waits a few seconds at most."""
        for part in (self._file, self._log):
            if part is not None:
                part.close()


class TableFile(Generic[Item]):
    """The SQLite file behind a store, of which it uses one table; stores may share the file. Once `start` was
    called, only its own thread touches it."""

    def __init__(
        self, path: Path, table: Table[Item], max_rows: int, ttl_s: float, on_error: Callable[[], None]
    ) -> None:
        self._path = path
        self._table = table
        self._max_rows = max_rows
        self._ttl_s = ttl_s
        self._on_error = on_error
        self._queue: queue.Queue[Item | None] = queue.Queue(QUEUE_SIZE)
        self._thread = threading.Thread(target=self._run, name=f"governor-{table.name}", daemon=True)
        self._connection: sqlite3.Connection | None = None
        self._healthy = True

    def read(self, created_after: float) -> list[Item]:
        """The items that are still alive, oldest first; empty when the file cannot be read."""
        rows: list[tuple[bytes]] = []
        with self._counted():
            statement = self._table.select_alive
            rows = self._connect().execute(statement, (created_after, self._max_rows)).fetchall()
        self._disconnect()
        return [item for (body,) in reversed(rows) if (item := self._decode(body)) is not None]

    def start(self) -> None:
        self._thread.start()

    def write(self, item: Item) -> None:
        """Queue an item; a full queue means that the disk is too slow, and drops it."""
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._on_error()

    def close(self) -> None:
        try:
            self._queue.put(None, timeout=CLOSE_TIMEOUT_S)
        except queue.Full:
            self._on_error()
        self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        batch: list[Item]
        last = False
        while not last:
            batch, last = next_batch(self._queue, GATHER_S)
            with self._counted():
                self._save(self._connect(), batch)
        self._disconnect()

    def _save(self, connection: sqlite3.Connection, batch: list[Item]) -> None:
        if not batch:
            return
        with connection:
            newest = max(self._save_one(connection, item) for item in batch)
            connection.execute(self._table.delete_expired, (newest - self._ttl_s,))
            connection.execute(self._table.delete_excess, (self._max_rows,))

    def _save_one(self, connection: sqlite3.Connection, item: Item) -> float:
        """Writes an item with what another process may have written of it; returns its time."""
        key, created, body = self._table.encode(item)
        if (merge := self._table.merge) is not None:
            found = connection.execute(self._table.select_one, (key,)).fetchone()
            known = self._decode(found[0]) if found is not None else None
            if known is not None and (merged := merge(known, item)) != item:
                key, created, body = self._table.encode(merged)
        connection.execute(self._table.upsert, (key, created, body))
        return created

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Created here and not by SQLite, so that nobody else on the machine can read it.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            connection = sqlite3.connect(self._path, timeout=CLOSE_TIMEOUT_S)
            for statement in self._table.schema:
                connection.execute(statement)
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a failure of the disk instead of raising it, and tell it once until the disk works again."""
        try:
            yield
        except (sqlite3.Error, OSError, ValueError, TypeError) as error:
            self._on_error()
            self._disconnect()
            if self._healthy:
                log.warning("%s are kept in memory only: %s: %s", self._table.name, self._path, error)
            self._healthy = False
        else:
            if not self._healthy:
                log.info("%s are written to %s again", self._table.name, self._path)
            self._healthy = True

    def _decode(self, body: bytes) -> Item | None:
        try:
            return self._table.decode(body)
        except (KeyError, TypeError, ValueError):
            self._on_error()
            return None


def next_batch(waiting: queue.Queue[Any], gather_s: float = 0.0) -> tuple[list[Any], bool]:
    """What waits in a queue, one item or more; and whether its end, None, was reached. After the first item
    others have `gather_s` seconds to come."""
    batch = []
    item = waiting.get()
    if item is not None and gather_s:
        time.sleep(gather_s)
    while item is not None:
        batch.append(item)
        if len(batch) == BATCH_SIZE or waiting.empty():
            return batch, False
        item = waiting.get()
    return batch, True
