from __future__ import annotations

import sqlite3
import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.conversation import AnsweredCall
from governor.conversations import recognised
from governor.records import CallRecord
from governor_server import store as stores
from governor_server import tables as module
from governor_server.store import RecordStore
from tests.server.records import Clock, Errors, answered, kept, record
from tests.server.waiting import never_waiting, until


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("xyz")), max_size=40), st.integers(1, 4))
def test_the_store_is_bounded_and_its_index_agrees_with_it(puts: list[tuple[str, str]], bound: int) -> None:
    """Whatever is put, also where conversations have the same call ids."""
    store = RecordStore(max_records=bound, clock=lambda: 1_000_000.0)
    for call_id, conversation in puts:
        store.put(record(call_id, conversation))
    alive = {(each.call_id, each.conversation) for each in store.recent(100)}
    assert len(alive) == len(store) == min(bound, len(set(puts)))
    assert store.conversations == len({conversation for _, conversation in alive})
    for conversation in "xyz":
        calls = {each.call_id for each in store.of_conversation(conversation)}
        assert calls == {call_id for call_id, where in alive if where == conversation}
    for call_id in "abcdef":
        found = store.find("", [answered(call_id)])
        owners = [where for each, where in alive if each == call_id]
        # Nobody has that id: the client may have changed it, where one conversation alone made such a call.
        may_own = set(owners) or {where for _, where in alive}
        assert len(found) == (1 if owners or len(may_own) == 1 else 0)
        assert {each.conversation for each in found.values()} <= may_own


def test_a_client_with_one_name_for_everything_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its conversation grows until the store is full; what is looked for in a history is bounded, and the
    latest calls are among it."""
    looked_at: list[int] = []

    def counted(history: Sequence[AnsweredCall], calls: Sequence[CallRecord]) -> dict[str, CallRecord]:
        looked_at.append(len(calls))
        return recognised(history, calls)

    monkeypatch.setattr(stores, "recognised", counted)
    monkeypatch.setattr(stores, "MOST_CALLS", 5)
    store = RecordStore(max_records=20, clock=Clock())
    for number in range(20):
        store.put(record(str(number), created=1_000_000.0 + number))
    assert list(store.find("", [answered("18"), answered("19")], "c")) == ["18", "19"]
    assert looked_at == [5]
    assert len(store.of_conversation("c")) == 20
    for number in range(20, 36):
        store.put(record(str(number), created=1_000_000.0 + number))
    assert [each.call_id for each in store.recent(20)] == [str(number) for number in range(16, 36)]


def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    """Records tell what people asked about, even without text."""
    path = tmp_path / "records.db"
    RecordStore(str(path)).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_file_is_bounded_and_expires_like_the_memory(tmp_path: Path) -> None:
    """A proxy that runs for a year does not fill the disk."""
    clock, path = Clock(), tmp_path / "records.db"
    store = RecordStore(str(path), max_records=5, ttl_s=10, clock=clock)
    for number in range(20):
        store.put(record(str(number), created=clock.now + number))
    store.close()
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT call_id FROM records ORDER BY created").fetchall()
    connection.close()
    assert [call_id for (call_id,) in rows] == [
        f'["c",{1_000_000.0 + number},0,0,"{number}"]' for number in range(15, 20)
    ]
    clock.now += 27
    again = RecordStore(str(path), max_records=5, ttl_s=10, clock=clock)
    assert [each.call_id for each in again.recent(5)] == ["17", "18", "19"]
    again.close()


@pytest.mark.parametrize("place", ["directory", "garbage", "no permission"])
def test_a_broken_disk_is_counted_and_costs_only_the_persistence(place: str, tmp_path: Path) -> None:
    """The store works from memory, and a request never sees the failure."""
    path = tmp_path / "records.db"
    if place == "directory":
        path.mkdir()
    elif place == "garbage":
        path.write_bytes(b"not a database" * 1000)
    else:
        # Also refused to the superuser, whom permissions do not stop.
        path = Path("/proc/governor/records.db")
    errors = Errors()
    store = RecordStore(str(path), clock=Clock(), on_error=errors)
    assert errors.count == 1
    store.put(record("a"))
    until(lambda: errors.count == 2)
    assert kept(store, "c", "a") is not None
    store.close()


def test_the_disk_is_used_again_once_it_works(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A full disk that is cleaned up needs no restart; the trouble is told once, not for each record."""
    path = tmp_path / "records.db"
    path.mkdir()
    errors = Errors()
    store = RecordStore(str(path), clock=Clock(), on_error=errors)
    store.put(record("lost"))
    until(lambda: errors.count == 2)
    path.rmdir()
    store.put(record("kept"))
    store.close()
    again = RecordStore(str(path), clock=Clock())
    assert [each.call_id for each in again.recent(9)] == ["kept"]
    again.close()
    assert [message for message in caplog.messages if "in memory only" in message] == caplog.messages[:1]


def test_a_row_of_another_version_is_skipped_and_counted(tmp_path: Path) -> None:
    """Going back to an older version must not stop the proxy."""
    path = tmp_path / "records.db"
    store = RecordStore(str(path), clock=Clock())
    store.put(record("a"))
    store.put(record("b"))
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE records SET body = '{}' WHERE call_id LIKE '%a%'")
    connection.close()
    errors = Errors()
    again = RecordStore(str(path), clock=Clock(), on_error=errors)
    assert [each.call_id for each in again.recent(9)] == ["b"]
    assert errors.count == 1
    again.close()


def test_a_disk_that_is_too_slow_drops_records_and_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue is bounded, and `put` never waits."""
    ready, next_batch = threading.Event(), module.next_batch

    def slow(*arguments: Any) -> Any:
        ready.wait()
        return next_batch(*arguments)

    monkeypatch.setattr(module, "next_batch", slow)
    monkeypatch.setattr(module, "QUEUE_SIZE", 2)
    path, errors = tmp_path / "records.db", Errors()
    store = RecordStore(str(path), clock=Clock(), on_error=errors)
    with never_waiting(monkeypatch):
        for number in range(10):
            store.put(record(str(number)))
    assert errors.count == 8
    assert len(store) == 10
    ready.set()
    store.close()
    again = RecordStore(str(path), clock=Clock())
    assert {each.call_id for each in again.recent(9)} == {"0", "1"}
    again.close()
