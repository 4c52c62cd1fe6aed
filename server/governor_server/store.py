"""Records of calls: in memory for reading, in SQLite so that a restart does not forget them, and in Redis
where several processes share them. Everything that is alive is in memory, so that no read ever waits for a
disk on the event loop.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import orjson

from governor.conversation import AnsweredCall
from governor.conversations import in_order, recognised
from governor.records import CallRecord, Key, merge, signature_digest
from governor_server.tables import IN_MEMORY, Backing, Row, Table
from governor_server.tenants import tenant_of

if TYPE_CHECKING:
    from governor_server.shared import Shared

SWEEP_INTERVAL_S = 60.0
MOST_REPLIES = 8
"""So many of the latest replies are looked at where no call is known."""
MOST_CANDIDATES = 32
"""So many of the latest calls are looked at where useless ids make many of them alike."""
MOST_CALLS = 1_000
"""So many of a conversation's latest calls are looked for in a history: more than fit into a prompt. A client
that gives all that it does one name has as many as the store keeps."""

Sign = tuple[str, str, str]
"""What a client's history tells of a call, of whichever conversation: its tenant, its id, and its origin or
its signature."""
Named = TypeVar("Named")


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
        self._behind = Backing(
            records_table(keep_text),
            path,
            shared,
            max_rows=max_records,
            ttl_s=ttl_s,
            now=clock(),
            restore=self._merge,
            take=self._take,
            current=self.latest,
            on_error=on_error,
        )

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
            conversation = conversation or self._conversation(tenant, calls)
            return recognised(calls, self._calls(conversation, MOST_CALLS))

    def owner(self, tenant: str, calls: Sequence[AnsweredCall], replies: Iterable[str] = ()) -> str:
        """The conversation that a history is of, "" where it is not known: by its calls, or by its `replies`
        (`governor.conversation.reply_origins`) where all calls were withheld."""
        with self._lock:
            return self._conversation(tenant, calls) or self._replying(tenant, replies)

    def began(self, conversation: str) -> float | None:
        """When the first call of a conversation that is on record was proposed; None without one."""
        with self._lock:
            keys = self._conversations.get(conversation, ())
            return min((created for _, created, *_ in keys), default=None)

    def put(self, record: CallRecord) -> None:
        """Keep what a record says, beside what is known of its call already."""
        with self._lock:
            self._sweep()
            merged = self._merge(record)
        self._behind.write(merged)

    def latest(self, record: CallRecord) -> CallRecord:
        """What is known by now of a record's call; the record itself where that is forgotten."""
        with self._lock:
            return self._records.get(record.key, record)

    async def shared(self) -> None:
        """Returns when what was put before is where other processes find it: a client whose tool is quick may
        come to another one next. At once where there is no other or Redis is down, and after a few
        hundredths of a second in any case."""
        await self._behind.flush()

    async def expect(self, tenant: str, calls: Sequence[AnsweredCall], conversation: str = "") -> None:
        """Returns when what other processes have put before is here, if the record of a call whose result has
        just come is not; at once where there is no other, and after a few hundredths of a second in any case.
        The arguments are those of `find`."""
        fresh = [call for call in calls if call.fresh]
        if not self._behind.is_shared or not fresh:
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
        await self._behind.catch_up()

    def of_conversation(self, conversation: str) -> tuple[CallRecord, ...]:
        """The records of a conversation, in their order."""
        with self._lock:
            return self._calls(conversation)

    def recent(self, limit: int) -> tuple[CallRecord, ...]:
        """The newest `limit` records, oldest first."""
        with self._lock:
            records = list(self._records.values())
        records.sort(key=lambda record: record.created)
        return tuple(records[-limit:] if limit > 0 else ())

    def close(self) -> None:
        """Write what is queued and let go of the file and Redis. Waits a few seconds at most."""
        self._behind.close()

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
        calls = self._calls(conversation, MOST_CALLS)
        found = recognised(history, calls)
        results = [(call, found[call.key]) for call in history if call.key in found]
        return (
            len(found),
            -sum(bool(record.result) and record.result != call.result for call, record in results),
            len(found) - sum(record.passed for record in calls),
            sum(record.returned is None for call, record in results if call.fresh),
            max(record.returned or record.created for record in calls),
        )

    def _calls(self, conversation: str, most: int | None = None) -> tuple[CallRecord, ...]:
        """The calls of a conversation, in their order; not more than the `most` that were last heard of."""
        keys = tuple(islice(reversed(self._conversations.get(conversation, {})), most))[::-1]
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
