from __future__ import annotations

import sqlite3
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor.probe import ProbeAnswer
from governor.records import CallRecord
from governor_server.store import RecordStore

SECRET = "the capital of Nauru"


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Errors:
    """Counts what the store reports."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def record(call_id: str, conversation: str = "c", created: float = 1_000_000.0, step: int = 0) -> CallRecord:
    probe = ProbeAnswer(SECRET, True, 0.1, 0.2, 0.9, -1.0, 3, 10)
    return CallRecord(
        call_id=call_id,
        conversation=conversation,
        tool="search",
        signature=f'search({{"q":"{SECRET}"}})',
        step=step,
        decision={"call_id": call_id, "action": "pass", "arguments": SECRET, "inputs": {"margin": 0.5}},
        created=created,
        entropy_before=0.25,
        probe_before=probe,
    )


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for 10 s"
        time.sleep(0.01)


def test_a_record_is_found_by_its_call_and_its_conversation() -> None:
    """The client echoes call ids only; the conversation is found through any of them."""
    store = RecordStore(clock=Clock())
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


def test_a_record_is_replaced_when_its_result_is_measured() -> None:
    """The next turn fills in what came after, under the same call id."""
    store = RecordStore(clock=Clock())
    store.put(record("a"))
    store.put(replace(record("a"), entropy_after=0.1))
    found = store.get("a")
    assert found is not None
    assert found.entropy_after == 0.1
    assert len(store) == 1


def test_the_newest_records_come_last() -> None:
    """The list of decisions shows the end of the story."""
    store = RecordStore(clock=Clock())
    for number in (3, 1, 2):
        store.put(record(str(number), created=1_000_000.0 + number))
    assert [each.call_id for each in store.recent(2)] == ["2", "3"]
    assert store.recent(0) == ()


def test_the_least_recently_used_record_goes_first() -> None:
    """A conversation that goes on keeps its records."""
    store = RecordStore(max_records=2, clock=Clock())
    store.put(record("a", "x"))
    store.put(record("b", "y"))
    store.get("a")
    store.put(record("c", "z"))
    assert store.get("b") is None
    assert store.get("a") is not None
    assert store.conversations == 2


def test_an_expired_record_is_not_given_out() -> None:
    """Neither by call nor by conversation."""
    clock = Clock()
    store = RecordStore(ttl_s=10, clock=clock)
    store.put(record("a", created=clock.now))
    clock.now += 10
    assert store.get("a") is not None
    clock.now += 1
    assert store.conversation(["a"]) is None
    assert store.get("a") is None
    assert store.conversations == 0


def test_expired_records_are_removed_without_being_asked_for() -> None:
    """Abandoned conversations free their memory when others go on."""
    clock = Clock()
    store = RecordStore(ttl_s=10, clock=clock)
    store.put(record("a", "x", created=clock.now))
    clock.now += 1000
    store.put(record("b", "y", created=clock.now))
    assert len(store) == 1


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("xyz")), max_size=40), st.integers(1, 4))
def test_the_store_is_bounded_and_its_index_agrees_with_it(puts: list[tuple[str, str]], bound: int) -> None:
    """Whatever is put, also when a call moves to another conversation."""
    store = RecordStore(max_records=bound, clock=lambda: 1_000_000.0)
    for call_id, conversation in puts:
        store.put(record(call_id, conversation))
    kept = {each.call_id: each.conversation for each in store.recent(100)}
    assert len(kept) == len(store) == min(bound, len({call_id for call_id, _ in puts}))
    assert store.conversations == len(set(kept.values()))
    for conversation in set(kept.values()):
        calls = {each.call_id for each in store.of_conversation(conversation)}
        assert calls == {call_id for call_id, where in kept.items() if where == conversation}


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    """What was put before `close` is there for the next process."""
    clock, path = Clock(), str(tmp_path / "deep" / "records.db")
    store = RecordStore(path, keep_text=True, clock=clock)
    records = [record(str(number), created=clock.now + number) for number in range(300)]
    for each in records:
        store.put(each)
    store.close()
    again = RecordStore(path, keep_text=True, clock=clock)
    assert again.recent(300) == tuple(records)
    again.close()


def test_the_file_holds_no_text_unless_asked_to(tmp_path: Path) -> None:
    """Numbers always can be stored, prompts and results only if the operator turns that on."""
    for keep_text in (False, True):
        path = tmp_path / f"{keep_text}.db"
        store = RecordStore(str(path), keep_text=keep_text, clock=Clock())
        store.put(record("a"))
        store.close()
        assert (SECRET.encode() in path.read_bytes()) is keep_text
        again = RecordStore(str(path), keep_text=keep_text, clock=Clock())
        found = again.get("a")
        assert found is not None
        assert (found.entropy_before, found.tool) == (0.25, "search")
        again.close()


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
    assert rows == [("15",), ("16",), ("17",), ("18",), ("19",)]
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
    assert store.get("a") is not None
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
        connection.execute("UPDATE records SET body = '{}' WHERE call_id = 'a'")
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
    monkeypatch.setattr("governor_server.store.QUEUE_SIZE", 2)
    path = tmp_path / "records.db"
    RecordStore(str(path)).close()
    errors = Errors()
    store = RecordStore(str(path), clock=Clock(), on_error=errors)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    for number in range(10):
        store.put(record(str(number)))
    assert time.monotonic() - started < 1
    assert errors.count >= 6
    assert len(store) == 10
    blocker.execute("ROLLBACK")
    blocker.close()
    store.close()
