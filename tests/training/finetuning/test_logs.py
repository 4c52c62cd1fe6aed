"""Logs are read row by row, from whatever they were written to."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from governor.decision import Action
from governor.probe import ProbeAnswer
from governor.records import CallRecord
from governor.transcript import Transcript
from governor_server.feedback import Feedback, FeedbackStore
from governor_server.store import RecordStore
from governor_server.transcripts import TranscriptStore
from governor_training.errors import UsageError
from governor_training.finetuning.logs import Writer, read, recorded
from governor_training.finetuning.trajectory import RowError, Trajectory
from tests.training.finetuning.conversations import ANSWER, QUESTION, calling, conversation, logged, result

TALKS = [conversation([logged("c1", 0, before=0.5, after=0.25)], id=f"talk {n}") for n in range(3)]


def record(call_id: str, conversation: str = "talk", action: Action = Action.PASS) -> CallRecord:
    probe = ProbeAnswer("Oslo", True, 0.5, 0.5, 0.5, -1.0, 2, 10)
    return CallRecord(
        call_id,
        conversation,
        "lookup",
        "lookup({})",
        0,
        {"action": action.value, "reason": "no_rule", "arguments": "{}"},
        1.0,
        entropy_before=0.5,
        entropy_after=0.25,
        probe_before=probe,
        probe_after=replace(probe, mean_entropy=0.1),
        effect="read_only",
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """What a governor wrote: one conversation of two turns and one of one, and feedback on the first."""
    path = tmp_path / "records.db"
    records, feedback = RecordStore(str(path), keep_text=True, clock=lambda: 2.0), FeedbackStore(str(path))
    turns = TranscriptStore(str(path))
    calls = calling("c1")
    turns.put(Transcript("talk", 0, 1.0, "m", [], [QUESTION], calls, resent=None))
    turns.put(
        Transcript(
            "talk",
            1,
            2.0,
            "m",
            [],
            [QUESTION, calls, result("c1")],
            ANSWER,
            resent=False,
            proposal=calling("c2"),
        )
    )
    turns.put(Transcript("other", 0, 1.5, "m", [], [QUESTION], calling("c9")))
    records.put(record("c2", action=Action.ANSWER))
    records.put(record("c1"))
    feedback.put([Feedback("talk", "user", 1.0, 2.0), Feedback("talk", "test", 0.0, 2.0)])
    for each in (records, feedback, turns):
        each.close()
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    """Every field, in both formats."""
    path = tmp_path / name
    talks = [*TALKS, replace(TALKS[0], calls=[], proposals={0: calling("x")}, score=None, kind="shortened")]
    with Writer(path) as out:
        for talk in talks:
            out.put(talk.as_row())
    assert list(read([path])) == talks
    assert [path] == list(tmp_path.iterdir())


def test_a_file_that_was_not_finished_is_not_left_behind(tmp_path: Path) -> None:
    """Half a log looks like a whole one."""
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path / "rows.parquet") as out:
        out.put(TALKS[0].as_row())
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_bad_line_ends_it_or_is_put_aside(tmp_path: Path) -> None:
    """With its file and line, and none of the others lost."""
    path = tmp_path / "log.jsonl"
    lines = [json.dumps(TALKS[0].as_row()), "", '{"messages": [', json.dumps(TALKS[1].as_row())]
    path.write_text("\n".join(lines))
    with pytest.raises(RowError, match=r"log\.jsonl:3: the line is no JSON"):
        list(read([path]))
    bad: list[tuple[str, object]] = []
    found = list(read([path], lambda error, row: bad.append((str(error), row))))
    assert found == TALKS[:2]
    assert bad == [(f"{path}:3: the line is no JSON", '{"messages": [')]


def test_the_governors_store_is_read_with_calls_and_scores(store: Path) -> None:
    """The texts of the turns, the numbers of the records, and the mean of the feedback."""
    other, talk = read([store])
    assert list(talk.messages) == [QUESTION, calling("c1"), result("c1"), ANSWER]
    assert (talk.id, talk.score, talk.proposals, talk.forgetful) == ("talk", 0.5, {1: calling("c2")}, True)
    assert [(call.id, call.turn, call.withheld, call.read_only) for call in talk.calls] == [
        ("c1", 0, False, True),
        ("c2", 1, True, True),
    ]
    assert talk.calls[0].measured.reduction == 0.25
    assert talk.calls[0].answer_before == "Oslo"
    assert [(call.id, call.before, call.read_only) for call in other.calls] == [("c9", None, None)]


def test_a_conversation_that_its_client_rewrote_becomes_two(store: Path) -> None:
    """The messages of the model that stand in a new beginning are context, and learned from once."""
    turns = TranscriptStore(str(store))
    history = [{"role": "user", "content": "Summary."}, ANSWER, {"role": "user", "content": "And now?"}]
    turns.put(Transcript("talk", 1, 3.0, "m", [], history, ANSWER))
    turns.close()
    _, first, second = read([store])
    assert (first.turns, first.given, first.id) == (2, 0, "talk")
    assert list(second.messages) == [*history, ANSWER]
    assert (second.given, second.id) == (1, "talk#1")


def test_a_store_without_texts_says_what_to_turn_on(tmp_path: Path) -> None:
    """And its numbers are still good for a diagnosis."""
    path = tmp_path / "records.db"
    records, feedback = RecordStore(str(path), clock=lambda: 2.0), FeedbackStore(str(path))
    for name in ("b", "a"):
        records.put(record(f"c{name}", name))
    feedback.put([Feedback("a", "", 1.0, 2.0)])
    records.close()
    feedback.close()
    with pytest.raises(UsageError, match=r"store\.keep_conversations: true"):
        list(read([path]))
    assert [(r.conversation, score) for r, score in recorded(path)] == [("a", 1.0), ("b", None)]


@pytest.mark.parametrize("content", [None, b"PAR1 but no more", b"SQLite format 3\0 but no more"])
def test_a_file_that_is_no_log_is_told(tmp_path: Path, content: bytes | None) -> None:
    """In one line with its name, not as a traceback of a library."""
    path = tmp_path / "log"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=str(path)):
        list(read([path]))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_large_log_is_never_in_memory(tmp_path: Path, name: str) -> None:
    """A thousand rows are read in the memory of a few hundred."""
    path = tmp_path / name
    long = replace(TALKS[0], messages=[{**QUESTION, "content": "x" * 10_000}, ANSWER], calls=[])
    with Writer(path) as out:
        for number in range(2000):
            out.put(replace(long, id=str(number)).as_row())

    def ids() -> Iterator[Trajectory]:
        yield from read([path])

    list(islice(ids(), 1))
    tracemalloc.start()
    assert sum(1 for _ in ids()) == 2000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6
