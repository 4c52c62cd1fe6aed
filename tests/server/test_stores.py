"""What holds for the records wherever they are kept: in memory, in SQLite, in Redis."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from governor.records import CallRecord
from governor_server.shared import Shared
from governor_server.store import RecordStore
from governor_server.tables import IN_MEMORY
from governor_server.tenants import qualified
from tests.server.records import SECRET, Clock, Errors, answered, kept, record
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
    """The client echoes its calls only; the conversation is found through any of them."""
    store = place.open()
    first, second = record("a", "x", step=0), record("b", "x", step=1)
    for each in (second, first, record("z", "y")):
        store.put(each)
    assert kept(store, "x", "a") == first
    assert kept(store, "y", "a") is None
    assert store.find("", [answered("a"), answered("unknown"), answered("b")]) == {"a": first, "b": second}
    assert store.find("", [answered("unknown")]) == {}
    assert store.of_conversation("x") == (first, second)
    assert store.of_conversation("unknown") == ()
    assert (len(store), store.conversations) == (3, 2)
    assert repr(store) == "<RecordStore [3 records, 2 conversations]>"


def test_a_record_is_replaced_when_its_result_is_measured(place: Place) -> None:
    """The next turn fills in what came after, under the same call id."""
    store = place.open()
    store.put(record("a"))
    store.put(replace(record("a"), entropy_after=0.1))
    found = kept(store, "c", "a")
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
    kept(store, "x", "a")
    store.put(record("c", "z"))
    assert kept(store, "y", "b") is None
    assert kept(store, "x", "a") is not None
    assert store.conversations == 2


def test_an_expired_record_is_not_given_out(place: Place) -> None:
    """Neither by call nor by conversation."""
    store = place.open(ttl_s=10)
    store.put(record("a", created=place.clock.now))
    place.clock.now += 10
    assert kept(store, "c", "a") is not None
    place.clock.now += 1
    assert store.find("", [answered("a")]) == {}
    assert kept(store, "c", "a") is None
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
        found = kept(place.open(), "c", "a")
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
    assert store.find("a", [answered("1")]) == {"1": mine}
    assert store.find("b", [answered("1")]) == {"1": theirs}
    assert store.find("", [answered("1")]) == {}
    if place.path != IN_MEMORY or place.redis:
        place.close()
        steps = [(each.conversation, each.step) for each in place.open().recent(9)]
        assert sorted(steps) == [("a/talk", 0), ("b/talk", 1)]


# The same ids in several conversations


def again(place: Place, store: RecordStore) -> RecordStore:
    """What a later process knows; the same one where nothing outlives it."""
    if place.path == IN_MEMORY and place.redis is None:
        return store
    place.close()
    return place.open()


def figures(found: dict[str, CallRecord]) -> dict[str, tuple[str, int]]:
    """Conversation and step of each record."""
    return {call_id: (each.conversation, each.step) for call_id, each in found.items()}


def test_conversations_with_the_same_ids_do_not_see_each_others_records(place: Place) -> None:
    """Some models number the calls of every conversation from 0 on. The one that goes on later finds its own,
    which the other's did not overwrite."""
    store = place.open()
    for step, call_id in enumerate(["lookup:0", "lookup:1"]):
        store.put(record(call_id, "x", step=step, asked="Norway?"))
        store.put(record(call_id, "y", step=step, asked="Peru?"))
    store = again(place, store)
    for asked, name in (("Norway?", "x"), ("Peru?", "y")):
        calls = [answered("lookup:0", asked), answered("lookup:1", asked)]
        assert figures(store.find("", calls)) == {"lookup:0": (name, 0), "lookup:1": (name, 1)}
    assert store.find("", [answered("lookup:0", "Chile?")]) == {}
    assert store.find("", [answered("lookup:0", "Peru?", '{"q":"Lima"}')]) == {}


def test_of_several_conversations_the_history_decides(place: Place) -> None:
    """The same question, call and id: a later call that is of one of them alone, the name that the client
    gives, or that one of them is not as far yet."""
    store = place.open()
    for name in "xy":
        store.put(record("lookup:0", name, step=ord(name), asked="Norway?"))
    store.put(record("lookup:1", "y", step=1, asked="And Peru?", created=1_000_001.0))
    store = again(place, store)
    first, second = answered("lookup:0", "Norway?"), answered("lookup:1", "And Peru?")
    assert figures(store.find("", [first])) == {"lookup:0": ("x", ord("x"))}
    assert figures(store.find("", [first], "y")) == {"lookup:0": ("y", ord("y"))}
    assert figures(store.find("", [first], "x")) == {"lookup:0": ("x", ord("x"))}
    assert figures(store.find("", [first, second])) == {"lookup:0": ("y", ord("y")), "lookup:1": ("y", 1)}


def test_a_call_that_was_withheld_is_nobodys_history(place: Place) -> None:
    """The client never saw it, so that it is not the one that has come back."""
    store = place.open()
    store.put(replace(record("lookup:0", "x"), decision={"action": "answer"}))
    assert store.find("", [answered("lookup:0")]) == {}
    store.put(record("lookup:0", "y"))
    assert figures(store.find("", [answered("lookup:0")])) == {"lookup:0": ("y", 0)}


def test_a_name_does_not_make_another_call_of_the_id(place: Place) -> None:
    """Some servers begin anew with their ids at each turn."""
    store = place.open()
    store.put(record("call_1", "x"))
    assert store.find("", [answered("call_1", arguments="{}")], "x") == {}


@OUTLIVING
def test_records_of_the_version_before_are_found_where_nothing_else_has_their_id(place: Place) -> None:
    """They have no origin; and with text not kept, their signature is a digest."""
    store = place.open()
    for call_id, name in (("a", "x"), ("lookup:0", "y"), ("lookup:0", "z")):
        store.put(replace(record(call_id, name), origin=""))
    store = again(place, store)
    assert figures(store.find("", [answered("a", "Norway?")])) == {"a": ("x", 0)}
    assert store.find("", [answered("a", arguments="{}")]) == {}
    assert store.find("", [answered("lookup:0")]) == {}


def test_an_older_copy_takes_nothing_away(place: Place) -> None:
    """The next request may bring the result before the probe has answered; each writes what it knows."""
    store = place.open()
    begun = replace(record("a"), probe_before=None, entropy_before=None)
    result = replace(begun, returned=1_000_001.0, outcome="ok", result="9" * 32)
    label = replace(begun, probe_after=record("a").probe_before, entropy_after=0.5)
    for copy in (begun, result, label, record("a"), begun):
        store.put(copy)
    store = again(place, store)
    found = kept(store, "c", "a")
    assert found is not None
    assert (found.outcome, found.returned, found.entropy_before) == ("ok", 1_000_001.0, 0.25)
    assert found.label is not None and found.entropy_reduction == -0.25
    assert len(store) == 1


def test_calls_with_one_id_are_several(place: Place) -> None:
    """Equal within a message, in two notices and what followed, in the next message: all are kept."""
    store = place.open()
    first = record("", "x")
    for generation in range(3):
        for index in range(2):
            store.put(replace(first, generation=generation, decision={**first.decision, "index": index}))
    store.put(replace(first, created=1_000_001.0))
    store = again(place, store)
    assert len(store.of_conversation("x")) == 7


def test_of_two_that_are_alike_the_one_that_waits_is_found(place: Place) -> None:
    """Two users ask the same thing, and the model numbers its calls: who brings a result is the one whose
    call has none yet, so that neither gets the other's second call."""
    store = place.open()
    call = answered("lookup:0")
    store.put(record("lookup:0", "x"))
    store.put(record("lookup:0", "y"))
    taken = []
    for _ in range(2):
        (found,) = store.find("", [call]).values()
        taken.append(found.conversation)
        store.put(replace(found, returned=1_000_001.0))
    assert sorted(taken) == ["x", "y"]


def test_results_tell_conversations_apart(place: Place) -> None:
    """Where all calls are the same, and nothing is waited for any more."""
    store = place.open()
    for name, result in (("x", "Oslo"), ("y", "Lima")):
        call = replace(answered("lookup:0"), message={"content": result}, fresh=False)
        store.put(replace(record("lookup:0", name), returned=1_000_001.0, result=call.result))
    assert {each.conversation for each in store.find("", [call]).values()} == {"y"}


def test_a_client_that_summarises_keeps_its_conversation(place: Place) -> None:
    """A text of its own stands in place of the question; an id that nobody else has says enough."""
    store = place.open()
    store.put(record("call_9f3", "x", asked="Norway?"))
    assert list(store.find("", [answered("call_9f3", "The user wants to know ...")])) == ["call_9f3"]


def test_ids_that_the_client_made_up_are_no_hindrance(place: Place) -> None:
    """Upstream left them out, and the chat format asks for one."""
    store = place.open()
    store.put(record("", "x", asked="Norway?"))
    assert list(store.find("", [answered("made_up", "Norway?")])) == ["made_up"]


def test_a_row_of_the_version_before_does_not_hide_what_came_later(tmp_path: Path) -> None:
    """It stands under the call id alone, and beside the row that the same call has now."""
    path = str(tmp_path / "records.db")
    with closing(RecordStore(path, clock=Clock())) as store:
        store.put(record("a"))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE records SET call_id = 'a'")
    with closing(RecordStore(path, clock=Clock())) as store:
        store.put(replace(record("a"), entropy_after=0.5))
    with closing(RecordStore(path, clock=Clock())) as store:
        assert [each.entropy_after for each in store.recent(9)] == [0.5]
