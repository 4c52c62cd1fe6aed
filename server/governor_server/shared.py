"""What several workers and replicas share through Redis: records, feedback and gates.

Everything that is alive is in the memory of each process, as it is without Redis, so that no request reads
from it. What one process puts goes through a stream of Redis to all others: a thread writes behind a bounded
queue, another follows the stream. A Redis that is down, slow or full costs the sharing, never a request:
failures are counted through `on_error` and told once in the log, and both threads try again with back-off.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple

from governor_server.errors import SettingsError
from governor_server.extras import how_to_install
from governor_server.tables import CLOSE_TIMEOUT_S, QUEUE_SIZE, Item, Table, next_batch

if TYPE_CHECKING:
    import redis

CONNECT_TIMEOUT_S = 1.0
ANSWER_TIMEOUT_S = 2.0
BLOCK_MS = 200
"""How long Redis waits for something new before it answers that there is nothing; a process that ends waits
for that."""
READ_SIZE = 500
START_TIMEOUT_S = 10.0
"""Until what is in Redis is read at the start. Later parts come beside the traffic."""
CATCH_UP_S = 0.05
"""The longest that a request waits for what others have written."""
LEAST_LEASE_S = 60.0
FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 2.0

PREFIX: Final = "governor"
GATES: Final = f"{PREFIX}:gates"
LEADER: Final = f"{PREFIX}:gates:leader"

WRITER, KEY, BODY = b"w", b"k", b"b"
"""The fields of an entry of a stream."""

LEAD: Final = """
local leader = redis.call('get', KEYS[1])
if leader and leader ~= ARGV[1] then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2])
return 1
"""
WRITE_AS_LEADER: Final = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('set', KEYS[2], ARGV[2])
return 1
"""
RESIGN: Final = """
if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('del', KEYS[1]) end
"""

log = logging.getLogger(__name__)


class Unreachable(OSError):
    """Redis does not answer, or not as it should."""


class Shared:
    """The Redis at `url` for one process. `on_error` is called for each failure, from any thread.

    Raises `SettingsError` where the client is not installed or the address is none.
    """

    def __init__(self, url: str, on_error: Callable[[], None] = lambda: None) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ModuleNotFoundError:
            raise SettingsError(
                f"store.redis_url needs the client of Redis: {how_to_install('redis')}"
            ) from None
        try:
            self.client: redis.Redis = redis.Redis.from_url(
                url,
                protocol=2,
                # We try again ourselves, and know what to do meanwhile.
                retry=Retry(NoBackoff(), 0),
                socket_connect_timeout=CONNECT_TIMEOUT_S,
                socket_timeout=ANSWER_TIMEOUT_S,
            )
        except ValueError as error:
            raise SettingsError(f"store.redis_url: {error}") from None
        self.failures: Final = (redis.RedisError, OSError)
        self.name = uuid.uuid4().hex
        self.on_error = on_error
        self._lock = threading.Lock()
        self._without: set[Contact] = set()

    def log(
        self,
        table: Table[Item],
        take: Callable[[Item], None],
        *,
        max_rows: int,
        ttl_s: float,
        current: Callable[[Item], Item] = lambda item: item,
    ) -> SharedLog[Item]:
        """The items of a table of all processes; `take` is called with those of the others, by a thread of
        the log's. `current` gives what this process knows by now of an item that waits to be written, what it
        took included. It begins with `start`."""
        return SharedLog(self, table, take, current, max_rows, ttl_s)

    def gates(self, lease_s: float) -> SharedGates:
        """The gates of all processes; who leads does so for `lease_s` seconds after it last said so."""
        return SharedGates(self, lease_s)

    def went(self, contact: Contact, error: Exception | None = None) -> None:
        """How an exchange with Redis went. Trouble is told once, by whoever meets it first, and again when
        nobody has any."""
        with self._lock:
            before = bool(self._without)
            (self._without.add if error else self._without.discard)(contact)
            after = bool(self._without)
        if after and not before:
            log.warning("nothing is shared with other processes until Redis works: %s", error)
        if before and not after:
            log.info("Redis works again")

    def close(self) -> None:
        """Let go of the connections; what was made here must have been closed."""
        with suppress(*self.failures):
            self.client.close()


class Contact:
    """Whether one thread reaches Redis, and how long it waits before it tries again."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.well = True
        self._delay_s = FIRST_BACKOFF_S

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Around an exchange with Redis; a failure is counted, and raised as `Unreachable`."""
        try:
            yield
        except self._shared.failures as error:
            self.well = False
            self._shared.on_error()
            self._shared.went(self, error)
            raise Unreachable(str(error)) from error
        if not self.well:
            self._shared.went(self)
        self.well = True
        self._delay_s = FIRST_BACKOFF_S

    def backoff(self) -> float:
        """Seconds to wait before the next attempt: 0.1, 0.2, 0.4 ... up to 2."""
        delay_s, self._delay_s = self._delay_s, min(MAX_BACKOFF_S, 2 * self._delay_s)
        return delay_s


class Landmark:
    """A place in the stream that a request waits for: until what is before it was written, or also read."""

    def __init__(self, *, read: bool) -> None:
        self.read = read
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    def pass_by(self) -> None:
        """The process is there. May be called from any thread, also when nobody waits any more."""
        with suppress(RuntimeError):  # The loop has ended.
            self._loop.call_soon_threadsafe(self._event.set)

    async def passed(self) -> None:
        await self._event.wait()


class Entry(NamedTuple):
    """An entry of the stream, and whether this process wrote it."""

    id: bytes
    ours: bool


class SharedLog(Generic[Item]):
    """A stream of Redis with the items of a table, at most `max_rows`, none older than `ttl_s` seconds.

    An entry is deleted when its item is written again, by a process that has taken it in, so that the stream
    holds each item once, or for a moment as often as several wrote it at once. Entries of this process are
    not read back: what it put is in its memory, and with more text than the stream may hold.
    """

    def __init__(
        self,
        shared: Shared,
        table: Table[Item],
        take: Callable[[Item], None],
        current: Callable[[Item], Item],
        max_rows: int,
        ttl_s: float,
    ) -> None:
        self._shared = shared
        self._client: Any = shared.client
        self._table = table
        self._take = take
        self._current = current
        self._max_rows = max_rows
        self._ttl_s = ttl_s
        self._stream = f"{PREFIX}:{table.name}"
        self._writer = shared.name.encode()
        self._queue: queue.Queue[Item | Landmark | None] = queue.Queue(QUEUE_SIZE)
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, list[Entry]] = OrderedDict()
        self._cursor = b"0-0"
        self._landmarks: list[tuple[bytes, Landmark]] = []
        self._begun = threading.Event()
        self._closing = threading.Event()
        self._writing = Contact(shared)
        self._reading = Contact(shared)
        self._threads = [
            threading.Thread(target=run, name=f"governor-{table.name}-{run.__name__}", daemon=True)
            for run in (self._write, self._read)
        ]

    def __repr__(self) -> str:
        state = "well" if self.well else "without Redis"
        return f"<SharedLog {self._stream} [{state}, {len(self._entries)} entries known]>"

    @property
    def well(self) -> bool:
        """Whether Redis answered when it was last asked."""
        return self._writing.well and self._reading.well

    def start(self) -> None:
        """Returns when what is in the stream was taken, or Redis does not answer."""
        for thread in self._threads:
            thread.start()
        self._begun.wait(START_TIMEOUT_S)

    def write(self, item: Item) -> None:
        """Queue an item; a full queue means that Redis has been down for long or is slow, and drops it."""
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._shared.on_error()

    async def catch_up(self) -> None:
        """Returns when what others wrote before was taken; at once while Redis is down, and after
        `CATCH_UP_S` in any case. Cancelling it disturbs nothing: the threads alone speak to Redis."""
        await self._wait(Landmark(read=True))

    async def flush(self) -> None:
        """The same, when what was written here before is where others find it."""
        await self._wait(Landmark(read=False))

    async def _wait(self, landmark: Landmark) -> None:
        if not self.well:
            return
        with suppress(queue.Full, TimeoutError):
            self._queue.put_nowait(landmark)
            async with asyncio.timeout(CATCH_UP_S):
                await landmark.passed()

    def close(self) -> None:
        """Write what is queued and end. Waits a few seconds at most."""
        self._closing.set()
        try:
            # Without Redis nothing becomes free: the thread ends by itself then.
            self._queue.put(None, timeout=CLOSE_TIMEOUT_S if self._writing.well else 0.01)
        except queue.Full:
            self._shared.on_error()
        for thread in self._threads:
            thread.join(CLOSE_TIMEOUT_S)

    # The thread that writes

    def _write(self) -> None:
        batch: list[Item | Landmark]
        last = False
        while not last:
            batch, last = next_batch(self._queue)
            while not self._written(batch):
                if self._closing.wait(self._writing.backoff()):
                    last = True
                    break

    def _written(self, batch: list[Item | Landmark]) -> bool:
        """False where Redis did not take it. What was half taken may be written twice: the later counts."""
        # What is read from here on is no part of the rows, and is not theirs to replace.
        taken = _place(self._cursor)
        rows = {key: (created, body) for key, created, body in self._rows(batch)}
        landmarks = [item for item in batch if isinstance(item, Landmark)]
        with suppress(Unreachable), self._writing.attempt():
            entries, newest = self._send(rows, taken)
            with self._lock:
                for key, entry in zip(rows, entries, strict=True):
                    known = self._entries.pop(key, ())
                    others = [each for each in known if not self._replaced(each, taken)]
                    self._remember(key, *others, Entry(entry, ours=True))
                self._landmarks += [(newest, landmark) for landmark in landmarks if landmark.read]
            for landmark in landmarks:
                if not landmark.read:
                    landmark.pass_by()
            self._pass_landmarks()
            return True
        return False

    def _rows(self, batch: list[Item | Landmark]) -> Iterator[tuple[str, float, bytes]]:
        for item in batch:
            if isinstance(item, Landmark):
                continue
            try:
                yield self._table.encode(self._current(item))
            except (TypeError, ValueError):
                self._shared.on_error()

    def _send(
        self, rows: dict[str, tuple[float, bytes]], taken: tuple[int, int]
    ) -> tuple[list[bytes], bytes]:
        """The ids of the rows' entries, and that of the newest entry of all."""
        with self._lock:
            known = [entry for key in rows for entry in self._entries.get(key, ())]
        replaced = [entry.id for entry in known if self._replaced(entry, taken)]
        with self._client.pipeline(transaction=False) as pipeline:
            for key, (_, body) in rows.items():
                pipeline.xadd(self._stream, {WRITER: self._writer, KEY: key, BODY: body})
            if replaced:
                pipeline.xdel(self._stream, *replaced)
            if rows:
                oldest_ms = int((max(created for created, _ in rows.values()) - self._ttl_s) * 1000)
                pipeline.xtrim(self._stream, minid=max(oldest_ms, 0), approximate=False)
                pipeline.xtrim(self._stream, maxlen=self._max_rows, approximate=False)
                pipeline.pexpire(self._stream, max(1, int(self._ttl_s * 1000)))
            pipeline.xrevrange(self._stream, count=1)
            answers = pipeline.execute()
        return answers[: len(rows)], answers[-1][0][0] if answers[-1] else b"0-0"

    @staticmethod
    def _replaced(entry: Entry, taken: tuple[int, int]) -> bool:
        """Whether an entry is part of what is written by a process that has read up to `taken`."""
        return entry.ours or _place(entry.id) <= taken

    def _remember(self, key: str, *entries: Entry) -> None:
        self._entries.setdefault(key, []).extend(entries)
        self._entries.move_to_end(key)
        if len(self._entries) > self._max_rows:
            self._entries.popitem(last=False)

    # The thread that reads

    def _read(self) -> None:
        while not self._closing.is_set():
            with suppress(Unreachable):
                self._follow()
            self._begun.set()
            self._closing.wait(self._reading.backoff())

    def _follow(self) -> None:
        """Take what comes, until it is over or Redis fails."""
        with self._reading.attempt():
            newest = self._client.xrevrange(self._stream, count=1)
        if not newest or _place(newest[0][0]) < _place(self._cursor):
            # Another Redis, or the same from an older backup: its entries are not those that we know.
            self._cursor = b"0-0"
            with self._lock:
                self._entries.clear()
        while not self._closing.is_set():
            if not newest or _place(self._cursor) >= _place(newest[0][0]):
                self._begun.set()
            with self._reading.attempt():
                answer = self._client.xread({self._stream: self._cursor}, count=READ_SIZE, block=BLOCK_MS)
            for _, entries in answer or ():
                for entry, fields in entries:
                    self._receive(entry, fields)
            self._pass_landmarks()

    def _receive(self, entry: bytes, fields: dict[bytes, bytes]) -> None:
        if fields.get(WRITER) != self._writer:
            self._take_in(entry, fields)
        self._cursor = entry

    def _take_in(self, entry: bytes, fields: dict[bytes, bytes]) -> None:
        try:
            item = self._table.decode(fields[BODY])
            key = fields[KEY].decode()
        except (KeyError, TypeError, ValueError):
            # Of another version.
            self._shared.on_error()
            return
        self._take(item)
        with self._lock:
            self._remember(key, Entry(entry, ours=False))

    def _pass_landmarks(self) -> None:
        here = _place(self._cursor)
        with self._lock:
            passed = [landmark for entry, landmark in self._landmarks if _place(entry) <= here]
            self._landmarks = [pair for pair in self._landmarks if _place(pair[0]) > here]
        for landmark in passed:
            landmark.pass_by()


def _place(entry: bytes) -> tuple[int, int]:
    """The id of an entry as something to compare: milliseconds, and a number within them."""
    milliseconds, _, number = entry.partition(b"-")
    return int(milliseconds), int(number)


def lease_s(renew_s: float) -> float:
    """How long a leader that was lost is waited for, where it looks every `renew_s` seconds. A fit takes
    seconds."""
    return max(LEAST_LEASE_S, 4 * renew_s)


class SharedGates:
    """The gates of all processes, as bytes, and who of them makes new ones. Every method raises `Unreachable`
    where Redis does not answer; that is counted and told here."""

    def __init__(self, shared: Shared, lease_s: float) -> None:
        self._client: Any = shared.client
        self._name = shared.name
        self._lease_ms = int(lease_s * 1000)
        self._contact = Contact(shared)

    def read(self) -> bytes | None:
        """What was last written, None if nothing was."""
        with self._contact.attempt():
            body: bytes | None = self._client.get(GATES)
        return body

    def lead(self) -> bool:
        """Whether this process is the one that makes gates, from now on for the time of the lease."""
        with self._contact.attempt():
            return bool(self._client.eval(LEAD, 1, LEADER, self._name, self._lease_ms))

    def write(self, body: bytes) -> bool:
        """For all to read. False, and nothing is written, where another leads by now."""
        with self._contact.attempt():
            return bool(self._client.eval(WRITE_AS_LEADER, 2, LEADER, GATES, self._name, body))

    def resign(self) -> None:
        """Let another lead at once."""
        with self._contact.attempt():
            self._client.eval(RESIGN, 1, LEADER, self._name)
