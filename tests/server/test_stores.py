"""What holds for the records wherever they are kept: in memory, in SQLite, in Redis."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from governor_server.shared import Shared
from governor_server.store import IN_MEMORY, RecordStore
from governor_server.tenants import qualified
from tests.server.records import SECRET, Clock, Errors, record
from tests.server.redis_server import RedisServer, running_redis

OUTLIVING = pytest.mark.parametrize("place", ["sqlite", "redis"], indirect=True)
"""Those that a process does not take along."""


@dataclass(slots=True)
class Place:
    """Where stores are opened: each call of `open` is another process, one after the other or beside it."""

    path: str
    redis: RedisServer | None = None
    clock: Clock = field(default_factory=Clock)
    errors: Errors = field(default_factory=Errors)
    opened: list[RecordStore] = field(default_factory=list)
    shared: list[Shared] = field(default_factory=list)

    def open(self, **more: Any) -> RecordStore:
        """A store."""
        shared = Shared(self.redis.url, self.errors) if self.redis else None
        store = RecordStore(self.path, shared=shared, clock=self.clock, on_error=self.errors, **more)
        self.opened.append(store)
        if shared is not None:
            self.shared.append(shared)
        return store

    def close(self) -> None:
        """End them all."""
        for store in self.opened:
            store.close()
        for shared in self.shared:
            shared.close()
        self.opened.clear()
        self.shared.clear()

    def held(self) -> bytes:
        """All that is kept outside of the processes."""
        if self.redis is not None:
            return repr(self.redis.client.xrange("governor:records")).encode()
        return Path(self.path).read_bytes()

    def garble(self, call_id: str) -> None:
        """Put something under a call id that is no record of this version."""
        if self.redis is not None:
            self.redis.client.xadd("governor:records", {"w": "x", "k": call_id, "b": "{}"})
        else:
            with sqlite3.connect(self.path) as connection:
                connection.execute(
                    "INSERT OR REPLACE INTO records VALUES (?, ?, '{}')", (call_id, self.clock.now)
                )
            connection.close()


@pytest.fixture(params=["memory", "sqlite", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Each in turn."""
    if request.param == "redis":
        with running_redis() as server:
            found = Place(IN_MEMORY, server)
            yield found
            found.close()
        return
    found = Place(IN_MEMORY if request.param == "memory" else str(tmp_path / "deep" / "records.db"))
    yield found
    found.close()


def test_a_record_is_found_by_its_call_and_its_conversation(place: Place) -> None:
    """The client echoes call ids only; the conversation is found through any of them."""
    store = place.open()
    first, second = record("a", "x", step=0), record("b", "x", step=1)
    for each in (second, first, record("z", "y")):
        store.put(each)
    assert store.get("a") == first
    assert store.get("unknown") is None
    assert store.conversation(["unknown", "b"]) == "x"
    assert store.conversation(["unknown"]) is None
    assert store.of_conversation("x") == (first, second)
    assert store.of_conversation("unknown") == ()
    assert (len(store), store.conversations) == (3, 2)
    assert repr(store) == "<RecordStore [3 records, 2 conversations]>"


def test_a_record_is_replaced_when_its_result_is_measured(place: Place) -> None:
    """The next turn fills in what came after, under the same call id."""
    store = place.open()
    store.put(record("a"))
    store.put(replace(record("a"), entropy_after=0.1))
    found = store.get("a")
    assert found is not None
    assert found.entropy_after == 0.1
    assert len(store) == 1


def test_the_newest_records_come_last(place: Place) -> None:
    """The list of decisions shows the end of the story."""
    store = place.open()
    for number in (3, 1, 2):
        store.put(record(str(number), created=1_000_000.0 + number))
    assert [each.call_id for each in store.recent(2)] == ["2", "3"]
    assert store.recent(0) == ()


def test_the_least_recently_used_record_goes_first(place: Place) -> None:
    """A conversation that goes on keeps its records."""
    store = place.open(max_records=2)
    store.put(record("a", "x"))
    store.put(record("b", "y"))
    store.get("a")
    store.put(record("c", "z"))
    assert store.get("b") is None
    assert store.get("a") is not None
    assert store.conversations == 2


def test_an_expired_record_is_not_given_out(place: Place) -> None:
    """Neither by call nor by conversation."""
    store = place.open(ttl_s=10)
    store.put(record("a", created=place.clock.now))
    place.clock.now += 10
    assert store.get("a") is not None
    place.clock.now += 1
    assert store.conversation(["a"]) is None
    assert store.get("a") is None
    assert store.conversations == 0


def test_expired_records_are_removed_without_being_asked_for(place: Place) -> None:
    """Abandoned conversations free their memory when others go on."""
    store = place.open(ttl_s=10)
    store.put(record("a", "x", created=place.clock.now))
    place.clock.now += 1000
    store.put(record("b", "y", created=place.clock.now))
    assert len(store) == 1


@OUTLIVING
def test_a_restart_forgets_nothing(place: Place) -> None:
    """What was put before the end is there for the next process."""
    store = place.open(keep_text=True)
    records = [record(str(number), created=place.clock.now + number) for number in range(1200)]
    for each in records:
        store.put(each)
    place.close()
    assert place.open(keep_text=True).recent(1200) == tuple(records)
    assert place.errors.count == 0


@OUTLIVING
def test_no_text_leaves_the_process_unless_asked_to(place: Place) -> None:
    """Numbers always can be stored, prompts and results only if the operator turns that on."""
    for keep_text in (False, True):
        place.open(keep_text=keep_text).put(record("a"))
        place.close()
        assert (SECRET.encode() in place.held()) is keep_text
        found = place.open().get("a")
        assert found is not None
        assert (found.entropy_before, found.tool) == (0.25, "search")


@OUTLIVING
def test_what_is_kept_is_bounded_as_the_memory_is(place: Place) -> None:
    """A deployment that runs for a year fills neither disk nor Redis; a call that is measured later takes no
    second place."""
    store = place.open(max_records=5)
    for number in range(20):
        store.put(record(str(number), created=place.clock.now + number))
        store.put(replace(record(str(number), created=place.clock.now + number), entropy_after=0.5))
    place.close()
    kept = place.open(max_records=100).recent(100)
    assert [(each.call_id, each.entropy_after) for each in kept] == [(str(n), 0.5) for n in range(15, 20)]


@OUTLIVING
def test_what_has_expired_does_not_come_back(place: Place) -> None:
    """A process that begins later does not read it."""
    store = place.open(ttl_s=10)
    for number in range(4):
        store.put(record(str(number), created=place.clock.now + number))
    place.close()
    place.clock.now += 12
    assert [each.call_id for each in place.open(ttl_s=10).recent(9)] == ["2", "3"]


@OUTLIVING
def test_what_another_version_wrote_is_skipped_and_counted(place: Place) -> None:
    """Going back to an older version must not stop the proxy."""
    store = place.open()
    store.put(record("a"))
    place.close()
    place.garble("b")
    assert [each.call_id for each in place.open().recent(9)] == ["a"]
    assert place.errors.count == 1


def test_two_tenants_may_use_the_same_call_ids(place: Place) -> None:
    """Models choose them, and many begin at 1: each finds its own."""
    store = place.open()
    mine, theirs = (record("1", qualified(tenant, "talk"), step=step) for step, tenant in enumerate("ab"))
    store.put(mine)
    store.put(theirs)
    assert store.get(qualified("a", "1")) == mine
    assert store.get(qualified("b", "1")) == theirs
    assert store.get("1") is None
    if place.path != IN_MEMORY or place.redis:
        place.close()
        steps = [(each.conversation, each.step) for each in place.open().recent(9)]
        assert sorted(steps) == [("a/talk", 0), ("b/talk", 1)]
