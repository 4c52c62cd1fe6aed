"""Records of calls: in memory for reading, in SQLite so that a restart does not forget them, and in Redis
where several processes share them.

Everything that is alive is in memory, so that no read ever waits for a disk on the event loop; the file is
read once, at start, and written by a thread behind a bounded queue. A disk that is full, read-only or slow
costs the persistence, never a request: failures are counted through `on_error` and told once in the log.
"""

from __future__ import annotations

import logging
import os
import queue
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import orjson

from governor.conversation import AnsweredCall
from governor.conversations import in_order, recognised
from governor.records import CallRecord, Key, merge, signature_digest
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
MOST_REPLIES = 8
"""So many of the latest replies are looked at where no call is known."""
MOST_CANDIDATES = 32
"""So many of the latest calls are looked at where useless ids make many of them alike."""

Row = tuple[str, float, bytes]
"""Key, time in seconds, body."""
Sign = tuple[str, str, str]
"""What a client's history tells of a call, of whichever conversation: its tenant, its id, and its origin or
its signature."""
Item = TypeVar("Item")
Named = TypeVar("Named")

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


class RecordStore:
    """The records of recent calls. Safe to use from several threads.

    A record is put when its call is delivered, and again by whoever learns more of it; what is put is merged
    with what is here (`governor.records.merge`), so that no late or older copy takes anything away.

    No id names a call: models number calls, repeat ids, or leave them out. What a call is and what it was
    made for leads to the conversations that may have made it, and of several the whole history decides.

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
        self._conversations: dict[str, dict[Key, None]] = {}
        self._signs: dict[Sign, dict[Key, None]] = {}
        self._next_sweep = clock() + SWEEP_INTERVAL_S
        self._file: TableFile[CallRecord] | None = None
        self._log: SharedLog[CallRecord] | None = None
        table = records_table(keep_text)
        if path != IN_MEMORY:
            self._file = TableFile(Path(path), table, max_records, ttl_s, on_error)
            for record in self._file.read(clock() - ttl_s):
                self._merge(record)
            self._file.start()
        if shared is not None:
            self._log = shared.log(table, self._take, max_rows=max_records, ttl_s=ttl_s, current=self.latest)
            self._log.start()

    def __repr__(self) -> str:
        return f"<RecordStore [{len(self)} records, {self.conversations} conversations]>"

    def __len__(self) -> int:
        return len(self._records)

    @property
    def conversations(self) -> int:
        """Number of conversations that have a record."""
        return len(self._conversations)

    def find(
        self, tenant: str, calls: Sequence[AnsweredCall], conversation: str = ""
    ) -> dict[str, CallRecord]:
        """The records of the calls of a history, by their keys and in their order, all of one conversation:
        `conversation`, else the one that the history fits best."""
        with self._lock:
            return recognised(calls, self._calls(conversation or self._conversation(tenant, calls)))

    def owner(self, tenant: str, calls: Sequence[AnsweredCall], replies: Iterable[str] = ()) -> str:
        """The conversation that a history is of, "" where it is not known: by its calls, or by its `replies`
        (`governor.conversation.reply_origins`) where all calls were withheld."""
        with self._lock:
            return self._conversation(tenant, calls) or self._replying(tenant, replies)

    def began(self, conversation: str) -> float | None:
        """When the first call of a conversation that is on record was proposed; None without one."""
        with self._lock:
            keys = self._conversations.get(conversation, ())
            return min((self._records[key].created for key in keys), default=None)

    def put(self, record: CallRecord) -> None:
        """Keep what a record says, beside what is known of its call already."""
        with self._lock:
            self._sweep()
            merged = self._merge(record)
        for behind in (self._file, self._log):
            if behind is not None:
                behind.write(merged)

    def latest(self, record: CallRecord) -> CallRecord:
        """What is known by now of a record's call; the record itself where that is forgotten."""
        with self._lock:
            return self._records.get(record.key, record)

    async def shared(self) -> None:
        """Returns when what was put before is where other processes find it: a client whose tool is quick may
        come to another one next. At once where there is no other or Redis is down, and after a few
        hundredths of a second in any case."""
        if self._log is not None:
            await self._log.flush()

    async def expect(self, tenant: str, calls: Sequence[AnsweredCall], conversation: str = "") -> None:
        """Returns when what other processes have put before is here, if the record of a call whose result has
        just come is not; at once where there is no other, and after a few hundredths of a second in any case.
        The arguments are those of `find`."""
        fresh = [call for call in calls if call.fresh]
        if self._log is None or not fresh:
            return
        known = self.find(tenant, calls, conversation)
        # An equal call of another conversation may be here, and has its result, or another id.
        if any(
            (record := known.get(call.key)) is None
            or record.returned is not None
            or record.call_id not in (call.call.id, "")
            for call in fresh
        ):
            await self.caught_up()

    async def caught_up(self) -> None:
        """Returns when what other processes have put before is here; at once where there is no other, and
        after a few hundredths of a second in any case."""
        if self._log is not None:
            await self._log.catch_up()

    def of_conversation(self, conversation: str) -> tuple[CallRecord, ...]:
        """The records of a conversation, in their order."""
        with self._lock:
            return self._calls(conversation)

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

    # What other processes put

    def _take(self, record: CallRecord) -> None:
        with self._lock:
            self._sweep()
            if not self._expired(record):
                self._merge(record)

    # Whose history it is

    def _conversation(self, tenant: str, calls: Sequence[AnsweredCall]) -> str:
        """The conversation that a history is of, "" where none is known: the newest call that anything is
        known of leads to it."""
        for call in reversed(calls):
            if names := self._candidates(tenant, call):
                return names[0] if len(names) == 1 else max(names, key=partial(self._fit, calls))
        return ""

    def _replying(self, tenant: str, replies: Iterable[str]) -> str:
        """By the newest reply that anything is known of; a reply says less than a call, and is often the
        same."""
        for reply in islice(replies, MOST_REPLIES):
            if names := self._owners((tenant, "", reply)):
                return names[0] if len(names) == 1 else ""
        return ""

    def _candidates(self, tenant: str, call: AnsweredCall) -> list[str]:
        """The conversations that may have made this call, the latest ones."""
        # Where upstream gives no id, clients make one up.
        for id in dict.fromkeys((call.call.id, "")):
            if names := self._owners((tenant, id, call.origin)):
                return names
        # Clients that summarise put a text of theirs in place of the question, and earlier versions recorded
        # none. Then only a call will do that nobody else made.
        names = self._owners((tenant, call.call.id, signature_digest(call.signature))) if call.call.id else []
        return names if len(names) == 1 else self._renamed(tenant, call)

    def _renamed(self, tenant: str, call: AnsweredCall) -> list[str]:
        """Some clients write ids of their own over those they got. Then a call will do that nobody else made,
        of a conversation that waits for its result, or has had the same one."""
        keys = islice(reversed(self._signs.get(_any_id(tenant, call.origin), {})), MOST_CANDIDATES)
        records = [record for key in keys if not self._expired(record := self._records[key])]
        waiting = {record.conversation for record in records if call.fresh and record.returned is None}
        names = waiting or {record.conversation for record in records if record.result == call.result}
        return list(names) if len(names) == 1 else []

    def _owners(self, sign: Sign) -> list[str]:
        keys = islice(reversed(self._signs.get(sign, {})), MOST_CANDIDATES)
        return list(dict.fromkeys(key[0] for key in keys if not self._expired(self._records[key])))

    def _fit(self, history: Sequence[AnsweredCall], conversation: str) -> tuple[float, ...]:
        """How well a conversation fits a history, the best the greatest: by how many calls are in both, how
        many results differ, how many calls are not in the history, whether it waits for what has just come,
        and when it was last heard of."""
        calls = self._calls(conversation)
        found = recognised(history, calls)
        results = [(call, found[call.key]) for call in history if call.key in found]
        return (
            len(found),
            -sum(bool(record.result) and record.result != call.result for call, record in results),
            len(found) - sum(record.passed for record in calls),
            sum(record.returned is None for call, record in results if call.fresh),
            max(record.returned or record.created for record in calls),
        )

    def _calls(self, conversation: str) -> tuple[CallRecord, ...]:
        keys = tuple(self._conversations.get(conversation, ()))
        return in_order(record for key in keys if (record := self._get(key)) is not None)

    # What is kept

    def _get(self, key: Key) -> CallRecord | None:
        record = self._records.get(key)
        if record is None:
            return None
        if self._expired(record):
            self._remove(key)
            return None
        self._records.move_to_end(key)
        return record

    def _merge(self, record: CallRecord) -> CallRecord:
        """Keeps it, and returns all that is known of its call now."""
        key = record.key
        known = self._records.get(key)
        if known is not None:
            record = merge(known, record)
            self._remove(key)
        self._records[key] = record
        self._conversations.setdefault(record.conversation, {})[key] = None
        for sign in _signs(record):
            self._signs.setdefault(sign, {})[key] = None
        while len(self._records) > self._max_records:
            self._remove(next(iter(self._records)))
        return record

    def _remove(self, key: Key) -> None:
        record = self._records.pop(key, None)
        if record is not None:
            _take_out(self._conversations, record.conversation, key)
            for sign in _signs(record):
                _take_out(self._signs, sign, key)

    def _expired(self, record: CallRecord) -> bool:
        return self._clock() - record.created > self._ttl_s

    def _sweep(self) -> None:
        now = self._clock()
        if now < self._next_sweep:
            return
        self._next_sweep = now + SWEEP_INTERVAL_S
        for key in [key for key, record in self._records.items() if self._expired(record)]:
            self._remove(key)


def _signs(record: CallRecord) -> tuple[Sign, ...]:
    """No client has a withheld call in its history; what it got in place of it may lead back."""
    tenant = tenant_of(record.conversation)
    if not record.passed:
        return ((tenant, "", record.reply),) if record.reply else ()
    named = tenant, record.call_id, signature_digest(record.signature)
    if not record.origin:
        return (named,)
    return named, (tenant, record.call_id, record.origin), _any_id(tenant, record.origin)


def _any_id(tenant: str, origin: str) -> Sign:
    """For a call whatever its id is. Nothing else has a sign of that form."""
    return tenant, "", f"any id: {origin}"


def _take_out(index: dict[Named, dict[Key, None]], name: Named, item: Key) -> None:
    """Of the items under a name; the last one takes the name along."""
    items = index[name]
    del items[item]
    if not items:
        del index[name]


def records_table(keep_text: bool) -> Table[CallRecord]:
    """The table of the calls; without text it holds numbers and digests."""

    def encode(record: CallRecord) -> Row:
        body = orjson.dumps(record if keep_text else record.without_text())
        return orjson.dumps(record.key).decode(), record.created, body

    def decode(body: bytes) -> CallRecord:
        return CallRecord.from_dict(orjson.loads(body))

    return Table("records", "call_id", encode, decode, merge)


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
            if found is not None and (known := self._decode(found[0])) is not None:
                key, created, body = self._table.encode(merge(known, item))
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
