"""Reading and writing logs of conversations, one at a time: millions of rows are never in memory together.

- JSON Lines: a row a line (`trajectory`).
- parquet: a row a row, read in batches.
- the store of the governor: turns (`store.keep_conversations`), joined with the records of their calls and
  with the feedback on their conversations, both of which it always holds.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from governor.records import CallRecord
from governor.transcript import Transcript
from governor_training.environment import Message
from governor_training.errors import UsageError
from governor_training.finetuning.trajectory import (
    LoggedCall,
    RowError,
    Trajectory,
    calls_of,
    question_key,
)

SQLITE = b"SQLite format 3\0"
PARQUET = b"PAR1"
BATCH = 256
"""Rows of a parquet file that are in memory, or are written, at a time."""

OnBad = Callable[[RowError, object], None]
"""Is told of a row that cannot be used, with the row."""


def read(paths: Iterable[Path], on_bad: OnBad | None = None) -> Iterator[Trajectory]:
    """The conversations of the files in order.

    Raises `UsageError` for a file that is no log, and `RowError` for a row that cannot be used unless
    `on_bad` takes it.
    """
    for path in paths:
        for row, where in rows(path):
            try:
                yield row if isinstance(row, Trajectory) else Trajectory.from_row(row, where)
            except RowError as error:
                if on_bad is None:
                    raise
                on_bad(error, row)


def rows(path: Path) -> Iterator[tuple[object, str]]:
    """The rows of one file, each with where it stands. A line that is no JSON comes as its text."""
    try:
        with path.open("rb") as file:
            head = file.read(len(SQLITE))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    if head == SQLITE:
        yield from ((found, found.where) for found in stored(path))
    elif head.startswith(PARQUET):
        yield from _parquet(path)
    else:
        yield from _lines(path)


def _lines(path: Path) -> Iterator[tuple[object, str]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _parsed(line), f"{path}:{number}"


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line.rstrip("\n")


def _parquet(path: Path) -> Iterator[tuple[object, str]]:
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield row, f"{path}: row {number}"
    except arrow.ArrowInvalid as error:
        raise UsageError(f"cannot read {path}: {error}") from None


# The governor's store

NO_CONVERSATIONS = (
    "holds records of calls, but not what was said. Set store.keep_conversations: true in the governor's"
    " settings (and store.keep_text: true for the texts of forced answers), and let traffic pass; `governor"
    " train diagnose` works without"
)


def stored(path: Path) -> Iterator[Trajectory]:
    """The conversations of a governor's store, also beside the proxy that writes it. Raises `UsageError`."""
    try:
        with closing(_opened(path)) as store:
            if "transcripts" not in _tables(store):
                raise UsageError(f"{path} {NO_CONVERSATIONS}")
            yield from _conversations(store, path)
    except sqlite3.Error as error:
        raise UsageError(f"cannot read {path}: {error}") from None


def recorded(path: Path) -> Iterator[tuple[CallRecord, float | None]]:
    """The records of calls in a governor's store, each with the score of its conversation. They come
    conversation by conversation. Raises `UsageError`."""
    try:
        with closing(_opened(path)) as store:
            if "records" not in _tables(store):
                raise UsageError(f"{path} is a database, but no store of the governor")
            _index(store)
            found = store.execute(
                "SELECT c.body, s.score FROM calls_by c LEFT JOIN scores s USING (conversation)"
                " ORDER BY c.conversation, c.rowid"
            )
            for body, score in found:
                if (record := _record(body)) is not None:
                    yield record, score
    except sqlite3.Error as error:
        raise UsageError(f"cannot read {path}: {error}") from None


def _opened(path: Path) -> sqlite3.Connection:
    """Read-only; what is sorted goes to a temporary file. Where no proxy has it open, nothing is put beside
    it."""
    wal = path.with_name(f"{path.name}-wal")
    alone = not wal.exists() or wal.stat().st_size == 0
    address = f"file:{quote(str(path.absolute()))}?mode=ro{'&immutable=1' if alone else ''}"
    return sqlite3.connect(address, uri=True)


def _tables(store: sqlite3.Connection) -> set[str]:
    return {name for (name,) in store.execute("SELECT name FROM sqlite_master")}


def _index(store: sqlite3.Connection) -> None:
    """Temporary tables by conversation: the store's own are made for other questions."""
    store.execute("CREATE TEMP TABLE calls_by (conversation TEXT, body TEXT)")
    store.execute("CREATE TEMP TABLE scores (conversation TEXT PRIMARY KEY, score REAL)")
    tables = _tables(store)
    if "records" in tables:
        store.execute(
            "INSERT INTO calls_by SELECT json_extract(text, '$.conversation'), text"
            " FROM (SELECT CAST(body AS TEXT) AS text FROM records ORDER BY created, rowid)"
        )
    if "outcomes" in tables:
        store.execute(
            "INSERT INTO scores SELECT json_extract(CAST(body AS TEXT), '$.conversation') AS c,"
            " AVG(json_extract(CAST(body AS TEXT), '$.score')) FROM outcomes GROUP BY c"
        )
    store.execute("CREATE INDEX temp.calls_by_conversation ON calls_by (conversation)")


def _conversations(store: sqlite3.Connection, path: Path) -> Iterator[Trajectory]:
    _index(store)
    turns = store.execute(
        "SELECT CAST(body AS TEXT) FROM transcripts ORDER BY"
        " json_extract(CAST(body AS TEXT), '$.conversation'), created, rowid"
    )
    transcripts = (Transcript.from_dict(json.loads(body)) for (body,) in turns)
    for name, found in groupby(transcripts, key=lambda transcript: transcript.conversation):
        score = store.execute("SELECT score FROM scores WHERE conversation = ?", (name,)).fetchone()
        bodies = store.execute("SELECT body FROM calls_by WHERE conversation = ? ORDER BY rowid", (name,))
        records = [record for (body,) in bodies if (record := _record(body)) is not None]
        for place, piece in enumerate(pieces(list(found))):
            made = joined(piece, records, score[0] if score else None)
            part = f", part {place + 1}" if place else ""
            yield replace(made, id=f"{name}#{place}" if place else name, where=f"{path}: {name}{part}")


def _record(body: str) -> CallRecord | None:
    """None for a row of another version."""
    try:
        return CallRecord.from_dict(json.loads(body))
    except (TypeError, ValueError):
        return None


def pieces(turns: Sequence[Transcript]) -> Iterator[Sequence[Transcript]]:
    """The turns of a conversation in runs that follow each other without a gap. A turn that was written
    whole begins another one: the client had changed what was said before. One whose beginning is lost is left
    out."""
    run: list[Transcript] = []
    for turn in turns:
        if turn.since == 0:
            if run:
                yield run
            run = [turn]
        elif run and run[-1].turn == turn.turn - 1 and run[-1].messages == turn.since:
            run.append(turn)
    if run:
        yield run


def joined(turns: Sequence[Transcript], records: Sequence[CallRecord], score: float | None) -> Trajectory:
    """One conversation from its turns, of which the first is whole, and the records of its calls."""
    messages: list[Message] = []
    proposals: dict[int, Message] = {}
    for turn in turns:
        messages += [*map(dict, turn.said), dict(turn.reply)]
        if turn.proposal is not None:
            proposals[turn.turn] = dict(turn.proposal)
    given = turns[0].turn
    own = {
        call.get("id"): number
        for turn in turns
        for number, message in ((turn.turn, turn.reply), (turn.turn, turn.proposal or {}))
        for call in message.get("tool_calls") or ()
    }
    measured = {
        record.call_id: LoggedCall.of_record(record, own[record.call_id])
        for record in records
        if record.call_id in own
    }
    # A call whose record is lost is still a call.
    unmeasured = [call for call in calls_of(messages) if call.turn >= given and call.id not in measured]
    calls = sorted([*measured.values(), *unmeasured], key=lambda call: call.turn)
    resent = [turn.resent for turn in turns if turn.resent is not None]
    return Trajectory(
        id=turns[0].conversation,
        messages=messages,
        tools=list(turns[-1].tools),
        score=score,
        group=question_key(messages),
        calls=calls,
        proposals=proposals,
        given=given,
        forgetful=not any(resent) and bool(resent),
    )


# Writing


class Writer:
    """Writes rows to a file of JSON Lines, or of parquet by its name. Nothing is left of it where the work
    fails: the file gets its name at the end. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f"{path.name}.part")
        self._rows: list[Mapping[str, Any]] = []
        self._parquet: Any = None
        self.written = 0

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._part.open("wb")
        return self

    def put(self, row: Mapping[str, Any]) -> None:
        self.written += 1
        if self._path.suffix != ".parquet":
            self._file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
            return
        self._rows.append(row)
        if len(self._rows) == BATCH:
            self._flush()

    def _flush(self) -> None:
        """Columns whose shapes differ from row to row are JSON text, so that all rows have one schema."""
        import pyarrow as arrow
        from pyarrow import parquet

        text = {
            name: arrow.string()
            for name in ("id", "group", "messages", "tools", "calls", "proposals", "kind")
        }
        schema = arrow.schema(
            {**text, "score": arrow.float64(), "given": arrow.int64(), "forgetful": arrow.bool_()}
        )
        flat = [{name: _flat(row.get(name)) for name in schema.names} for row in self._rows]
        if self._parquet is None:
            self._parquet = parquet.ParquetWriter(self._file, schema)
        self._parquet.write_table(arrow.Table.from_pylist(flat, schema=schema))
        self._rows.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._path.suffix == ".parquet":
            self._flush()
        if self._parquet is not None:
            self._parquet.close()
        self._file.close()
        if kind is None:
            self._part.replace(self._path)
        else:
            self._part.unlink(missing_ok=True)


def _flat(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
