"""Records of calls, read back from a file: the store's own, or JSON that was saved from the proxy."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any
from urllib.parse import quote

import orjson

from governor.records import CallRecord
from governor.turn_record import TurnRecord
from governor_server.errors import ServerError

SQLITE = b"SQLite format 3\0"


class LogError(ServerError):
    """The file is not there, is no log, or holds nothing."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Log:
    """The records of a file; `unreadable` of its rows were left out."""

    path: Path
    records: tuple[CallRecord, ...]
    unreadable: int = 0

    @classmethod
    def read(cls, path: Path) -> Log:
        """A store's SQLite file, also beside the proxy that writes it, JSON Lines of records, or what
        `GET /governor/decisions` answered. Raises `LogError`."""
        with _readable(path):
            rows = list(_stored(path, "records") if _is_store(path) else _saved(path))
        records = tuple(record for row in rows if (record := _record(row)) is not None)
        if not rows:
            raise LogError(f"{path} holds no records: let some traffic pass through the proxy first")
        if not records:
            raise LogError(f"{path} holds no records of calls: {len(rows)} rows are of another kind")
        return cls(path, records, len(rows) - len(records))


def outcomes(path: Path) -> dict[str, float]:
    """The scores that feedback gave conversations: the mean over the sources in a store's file, or what saved
    decisions carry. Empty where there are none. Raises `LogError`."""
    with _readable(path):
        found: dict[str, list[float]] = {}
        for row in _stored(path, "outcomes", required=False) if _is_store(path) else _saved(path):
            if isinstance(row, Mapping) and isinstance(row.get("score"), int | float):
                found.setdefault(str(row.get("conversation")), []).append(float(row["score"]))
    return {conversation: fmean(scores) for conversation, scores in found.items()}


def turns(path: Path) -> list[TurnRecord]:
    """What the turns of conversations took: a store's file tells, saved decisions do not. Raises
    `LogError`."""
    with _readable(path):
        rows = list(_stored(path, "turns", required=False)) if _is_store(path) else []
    found = []
    for row in rows:
        with suppress(TypeError):
            found.append(TurnRecord.from_dict(row))
    return found


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Tells a file that cannot be read in one line."""
    try:
        yield
    except FileNotFoundError:
        raise LogError(f"no such log: {path} (store.path of the settings says where it is)") from None
    except OSError as error:
        raise LogError(f"cannot read {path}: {error.strerror or error}") from None
    except sqlite3.Error as error:
        raise LogError(f"cannot read {path}: {error}") from None


def _is_store(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(SQLITE)) == SQLITE


def _stored(path: Path, table: str, *, required: bool = True) -> Iterator[Any]:
    """The rows of one of the store's tables, in the order in which they were made."""
    with closing(sqlite3.connect(_address(path), uri=True)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if table in tables:
            for (body,) in connection.execute(f"SELECT body FROM {table} ORDER BY created, rowid").fetchall():
                yield _parsed(body)
        elif required:
            raise LogError(f"{path} is a database, but no store of the governor")


def _address(path: Path) -> str:
    """Read-only. Where no proxy has the file open, nothing is locked or put beside it either."""
    wal = path.with_name(f"{path.name}-wal")
    alone = not wal.exists() or wal.stat().st_size == 0
    return f"file:{quote(str(path.absolute()))}?mode=ro{'&immutable=1' if alone else ''}"


def _saved(path: Path) -> Iterator[Any]:
    content = path.read_bytes()
    whole = _parsed(content)
    if whole is not None:
        yield from _rows(whole)
        return
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        row = _parsed(line)
        if row is None:
            raise LogError(f"{path} is neither a store, JSON nor JSON Lines: line {number} cannot be read")
        yield from _rows(row)


def _rows(value: Any) -> Iterable[Any]:
    rows = value.get("decisions", value) if isinstance(value, Mapping) else value
    return rows if isinstance(rows, list) else [rows]


def _parsed(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _record(row: Any) -> CallRecord | None:
    """None for a row that is no record of a call."""
    try:
        record = CallRecord.from_dict(row)
    except (TypeError, ValueError):
        return None
    names = (record.call_id, record.conversation, record.tool, record.signature)
    figures = (record.step, record.created)
    shaped = (
        all(isinstance(name, str) for name in names)
        and all(isinstance(figure, int | float) for figure in figures)
        and isinstance(record.decision, Mapping)
        and isinstance(record.signals, Mapping)
    )
    return record if shaped else None
