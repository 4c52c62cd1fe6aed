"""Records of calls: in memory for reading, in SQLite so that a restart does not forget them, and in Redis
where several processes share them.

Everything that is alive is in memory, so that no read ever waits for a disk on the event loop; the file is
read once, at start, and written by a thread behind a bounded queue. A disk that is full, read-only or slow
costs the persistence, never a request: failures are counted through `on_error` and told once in the log.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import orjson

from governor.conversation import AnsweredCall
from governor.hindsight import passed
from governor.records import CallRecord
from governor_server.tenants import tenant_of

if TYPE_CHECKING:
    from governor_server.shared import Shared, SharedLog

IN_MEMORY = ":memory:"
QUEUE_SIZE = 4096
BATCH_SIZE = 256
GATHER_S = 0.05
"""How long the writing waits for more: a transaction of many costs hardly more than that of one record."""
SWEEP_INTERVAL_S = 60.0
CLOSE_TIMEOUT_S = 5.0
WRITING_S = 0.01
LOOK_S = 0.001
"""How long a record that is not in Redis either is waited for: a client whose tool is quick may be back
before it is written."""

Row = tuple[str, float, bytes]
"""Key, time in seconds, body."""
Key = tuple[str, str]
"""A conversation, and the id of one of its calls."""
Sign = tuple[str, str, str]
"""What a client's history tells of a call, of whichever conversation: its tenant, its id and its origin."""
Item = TypeVar("Item")
Named = TypeVar("Named")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Table(Generic[Item]):
    """A table of a store's file: the column of the key, and how an item becomes a row and comes back.

    `decode` raises KeyError, TypeError or ValueError on a body of another version.
    """

    name: str
    key: str
    encode: Callable[[Item], Row]
    decode: Callable[[bytes], Item]

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


class RecordStore:
    """The records of recent calls, found by call or by conversation. Safe to use from several threads.

    A call id names a call within its conversation only: some models number their calls, from 0 on in every
    conversation. Whose call it is that a history holds, its sign tells; where that is the sign of calls of
    several conversations, nothing does, and no record is found.

    `path` is a file, or `:memory:`. At most `max_records` are kept, the least recently used go first, and
    none is given out more than `ttl_s` seconds after it was created. With `shared`, what other processes put
    is here too, a moment later. Unless `keep_text`, file and Redis hold numbers and digests only: neither
    arguments nor answers.
    """

    def __init__(
        self,
        path: str = IN_MEMORY,
        *,
        max_records: int = 20_000,
        ttl_s: float = 7 * 24 * 3600.0,
        keep_text: bool = False,
        shared: Shared | None = None,
        clock: Callable[[], float] = time.time,
        on_error: Callable[[], None] = lambda: None,
    ) -> None:
        self._max_records = max_records
        self._ttl_s = ttl_s
        self._clock = clock
        self._lock = threading.Lock()
        self._records: OrderedDict[Key, CallRecord] = OrderedDict()
        self._conversations: dict[str, dict[str, None]] = {}
        self._signs: dict[Sign, dict[str, None]] = {}
        self._next_sweep = clock() + SWEEP_INTERVAL_S
        self._file: TableFile[CallRecord] | None = None
        self._log: SharedLog[CallRecord] | None = None
        table = records_table(keep_text)
        if path != IN_MEMORY:
            self._file = TableFile(Path(path), table, max_records, ttl_s, on_error)
            for record in self._file.read(clock() - ttl_s):
                self._insert(record)
            self._file.start()
        if shared is not None:
            self._log = shared.log(table, self._take, max_rows=max_records, ttl_s=ttl_s)
            self._log.start()

    def __repr__(self) -> str:
        return f"<RecordStore [{len(self)} records, {self.conversations} conversations]>"

    def __len__(self) -> int:
        return len(self._records)

    @property
    def conversations(self) -> int:
        """Number of conversations that have a record."""
        return len(self._conversations)

    def get(self, conversation: str, call_id: str) -> CallRecord | None:
        """The record of a call, or None when it is unknown or has expired."""
        with self._lock:
            return self._get((conversation, call_id))

    def find(
        self, tenant: str, calls: Sequence[AnsweredCall], conversation: str = ""
    ) -> dict[str, CallRecord]:
        """The records of the calls of a history, by call id and in their order, all of one conversation:
        `conversation`, else the only one that the newest call of which there is only one may belong to."""
        with self._lock:
            named = (name for call in reversed(calls) if (name := self._conversation(tenant, call)))
            of = conversation or next(named, "")
            found = ((call, self._get((of, call.id))) for call in calls)
            return {call.id: record for call, record in found if record and record.is_of(call.signature)}

    def put(self, record: CallRecord) -> None:
        """Keep a record; one with the same call id of the same conversation is replaced."""
        with self._lock:
            self._sweep()
            self._insert(record)
        for behind in (self._file, self._log):
            if behind is not None:
                behind.write(record)

    async def expect(self, tenant: str, call: AnsweredCall, conversation: str = "") -> None:
        """Returns when the record of a call whose result has just come is here, which another process may be
        writing just now; after a few hundredths of a second in any case, and at once where there is no
        other. The arguments are those of `find`."""
        if self._log is None or not self._log.well or self._awaited(tenant, call, conversation):
            return
        await self._log.catch_up()
        with suppress(TimeoutError):
            async with asyncio.timeout(WRITING_S):
                while not self._awaited(tenant, call, conversation):  # noqa: ASYNC110
                    await asyncio.sleep(LOOK_S)

    def _awaited(self, tenant: str, call: AnsweredCall, conversation: str) -> bool:
        """Whether there is a record that waits for the result of this call. One that has its result may be
        that of an equal call of another conversation."""
        found = self.find(tenant, (call,), conversation)
        return any(record.returned is None for record in found.values())

    def of_conversation(self, conversation: str) -> tuple[CallRecord, ...]:
        """The records of a conversation, oldest first."""
        with self._lock:
            call_ids = tuple(self._conversations.get(conversation, ()))
            found = (self._get((conversation, call_id)) for call_id in call_ids)
            records = [record for record in found if record is not None]
        return tuple(sorted(records, key=lambda record: (record.created, record.step)))

    def recent(self, limit: int) -> tuple[CallRecord, ...]:
        """The newest `limit` records, oldest first."""
        with self._lock:
            records = sorted(self._records.values(), key=lambda record: record.created)
        return tuple(records[-limit:] if limit > 0 else ())

    def close(self) -> None:
        """Write what is queued and let go of the file and Redis. Waits a few seconds at most."""
        for behind in (self._file, self._log):
            if behind is not None:
                behind.close()

    def _take(self, record: CallRecord) -> None:
        """From another process."""
        with self._lock:
            self._sweep()
            if not self._expired(record):
                self._insert(record)

    def _conversation(self, tenant: str, call: AnsweredCall) -> str | None:
        """The only conversation that may have made a call of a history; None where there are several, or
        none. Records of earlier versions have no origin: there, only an id that nobody else has will do."""
        sign = tenant, call.id, call.origin
        names = self._signs.get(sign if sign in self._signs else (tenant, call.id, ""), ())
        records = (self._records[name, call.id] for name in names)
        alive = list(islice((record for record in records if not self._expired(record)), 2))
        return alive[0].conversation if len(alive) == 1 and alive[0].is_of(call.signature) else None

    def _get(self, key: Key) -> CallRecord | None:
        record = self._records.get(key)
        if record is None:
            return None
        if self._expired(record):
            self._remove(key)
            return None
        self._records.move_to_end(key)
        return record

    def _insert(self, record: CallRecord) -> None:
        key = (record.conversation, record.call_id)
        self._remove(key)
        self._records[key] = record
        self._conversations.setdefault(record.conversation, {})[record.call_id] = None
        # No client has a withheld call in its history.
        if passed(record):
            self._signs.setdefault(_sign(record), {})[record.conversation] = None
        while len(self._records) > self._max_records:
            self._remove(next(iter(self._records)))

    def _remove(self, key: Key) -> None:
        record = self._records.pop(key, None)
        if record is not None:
            _take_out(self._conversations, record.conversation, record.call_id)
            if passed(record):
                _take_out(self._signs, _sign(record), record.conversation)

    def _expired(self, record: CallRecord) -> bool:
        return self._clock() - record.created > self._ttl_s

    def _sweep(self) -> None:
        now = self._clock()
        if now < self._next_sweep:
            return
        self._next_sweep = now + SWEEP_INTERVAL_S
        for key in [key for key, record in self._records.items() if self._expired(record)]:
            self._remove(key)


def _sign(record: CallRecord) -> Sign:
    return tenant_of(record.conversation), record.call_id, record.origin


def _take_out(index: dict[Named, dict[str, None]], name: Named, item: str) -> None:
    """Of the items under a name; the last one takes the name along."""
    items = index[name]
    del items[item]
    if not items:
        del index[name]


def records_table(keep_text: bool) -> Table[CallRecord]:
    """The table of the calls; without text it holds numbers and digests."""

    def encode(record: CallRecord) -> Row:
        key = orjson.dumps((record.conversation, record.call_id)).decode()
        return key, record.created, orjson.dumps(record if keep_text else record.without_text())

    return Table("records", "call_id", encode, lambda body: CallRecord.from_dict(orjson.loads(body)))


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
                self._save(self._connect(), [self._table.encode(item) for item in batch])
        self._disconnect()

    def _save(self, connection: sqlite3.Connection, rows: list[Row]) -> None:
        if not rows:
            return
        newest = max(created for _, created, _ in rows)
        with connection:
            connection.executemany(self._table.upsert, rows)
            connection.execute(self._table.delete_expired, (newest - self._ttl_s,))
            connection.execute(self._table.delete_excess, (self._max_rows,))

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
