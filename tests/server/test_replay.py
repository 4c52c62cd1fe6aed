"""`governor replay` on logs in all of their shapes."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from governor.records import CallRecord
from governor_server.cli import main
from governor_server.recorded import Log, LogError
from governor_server.store import RecordStore
from tests.server import logs

TRAFFIC = logs.traffic(20)


def replayed(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What it prints when all is well."""
    code = main(["replay", *map(str, arguments)])
    output = capsys.readouterr()
    assert code == 0, output.err
    return output.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that it prints when something is wrong."""
    assert main([str(argument) for argument in arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    return output.err


def written(path: Path, shape: str, records: Sequence[CallRecord]) -> Path:
    if shape == "store":
        return logs.store(path, records)
    if shape == "lines":
        return logs.lines(path, records)
    rows = [record.as_dict() for record in records]
    path.write_text(json.dumps({"decisions": rows} if shape == "decisions" else rows, indent=2))
    return path


@pytest.mark.parametrize("shape", ["store", "lines", "decisions", "list"])
def test_every_shape_of_a_log_gives_the_same_figures(
    shape: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With texts and without."""
    log = written(tmp_path / "log", shape, TRAFFIC)
    output = replayed(capsys, log, "--policy", "cap", "--set", "calls=1", "--json")
    (found,) = json.loads(output)["policies"]
    assert (found["conversations"], found["calls"], found["withheld"]) == (20, 60, 40)
    assert (found["crossings"], found["labelled"], found["saved_least"], found["saved_most"]) == (
        20,
        20,
        20,
        40,
    )
    truth = sum(record.step == 1 and record.probe_after != logs.answer("Oslo", 0.99) for record in TRAFFIC)
    assert found["harmful"] == truth > 0


def test_policies_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each with its own parameters, in the order asked for, and a sentence each."""
    log = logs.lines(tmp_path / "log", TRAFFIC)
    asked = ("--policy", "cap", "--set", "calls=0", "--policy", "threshold", "--set", "margin=0.65")
    rows = replayed(capsys, log, *asked, "--set", "entropy=9").splitlines()
    assert rows[0].split() == [
        "policy",
        "withheld",
        "of",
        "calls",
        "first",
        "harmful",
        "at",
        "most",
        "calls",
        "saved",
    ]
    assert rows[1].startswith("cap calls=0 ")
    assert rows[2].startswith("threshold margin=0.65 entropy=9 ")
    assert "0 of " in rows[2], "this threshold tells the useful calls from the useless"
    assert rows[4].startswith("cap calls=0: in 20 of 20 conversations a call would have been withheld")


def test_without_a_policy_all_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """But the gate, which has to be given."""
    output = replayed(capsys, logs.lines(tmp_path / "log", TRAFFIC))
    for name in ("observe", "rules", "threshold", "cap", "identical", "tasr", "mean_entropy"):
        assert f"\n{name}" in output
    assert "calibrated" not in output


def test_a_log_is_read_beside_the_proxy_that_writes_it(tmp_path: Path) -> None:
    """What is not in the main file yet is read too, and nothing is left behind or changed."""
    path = tmp_path / "records.db"
    live = RecordStore(str(path), clock=lambda: 10.0)
    try:
        for record in TRAFFIC:
            live.put(record)
        while len(_rows(path)) < len(TRAFFIC):
            pass
        before = sorted(os.listdir(tmp_path))
        assert len(Log.read(path).records) == len(TRAFFIC)
        live.put(logs.call("late", 0, margin=0.5, useful=False))
        while len(_rows(path)) < len(TRAFFIC) + 1:
            pass
        assert len(Log.read(path).records) == len(TRAFFIC) + 1
        assert sorted(os.listdir(tmp_path)) == before
    finally:
        live.close()


def _rows(path: Path) -> Sequence[object]:
    try:
        return Log.read(path).records
    except LogError:
        return ()


def test_a_log_on_a_read_only_medium_is_read(tmp_path: Path) -> None:
    """A copy, on an archive say."""
    path = logs.store(tmp_path / "records.db", TRAFFIC)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    path.chmod(0o400)
    assert len(Log.read(path).records) == len(TRAFFIC)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "no such log"),
        (b"", "holds no records"),
        (b'{"decisions": []}', "holds no records"),
        (b'{"object": "chat.completion"}', "holds no records of calls: 1 rows are of another kind"),
        (b'{"a": 1}\n\nhello', "line 3 cannot be read"),
        (b"\x89PNG\r\n", "line 1 cannot be read"),
        (b"SQLite format 3\0 and then nothing", "cannot read"),
    ],
)
def test_what_is_no_log_is_told_in_one_line(
    content: bytes | None, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Never a traceback, whatever the file is."""
    path = tmp_path / "log"
    if content is not None:
        path.write_bytes(content)
    assert text in refused(capsys, "replay", path)


def test_a_foreign_database_and_a_directory_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A database is opened only to look for the table."""
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE users (name TEXT)")
    connection.commit()
    connection.close()
    assert "no store of the governor" in refused(capsys, "replay", path)
    assert "cannot read" in refused(capsys, "replay", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--policy", "tresh"), "no policy 'tresh': did you mean threshold?"),
        (("--policy", "cap", "--set", "k=3"), "cap has no parameter 'k': it has calls"),
        (("--policy", "cap", "--set", "calls"), "write it as key=value"),
        (("--set", "calls=3"), "belongs to a --policy before it"),
        (("--policy", "cap", "--set", "calls=["), "is no value"),
        (("--policy", "calibrated", "--set", "gate=none.json"), "no gates in none.json"),
    ],
)
def test_a_wrong_argument_is_told_before_the_log_is_read(
    arguments: Sequence[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log may be large; here it does not even exist."""
    assert text in refused(capsys, "replay", tmp_path / "log", *arguments)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"probe_before": None, "probe_after": None}, "no call has a probe"),
        ({"probe_after": None}, "no answer was forced after a result"),
        ({"arm": "governed"}, "All conversations were governed"),
        ({"effect": ""}, "No call is of a read-only tool"),
    ],
)
def test_what_a_log_lacks_is_told(
    fields: dict[str, object], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else zeros would look like an answer."""
    records = [replace(record, **fields) for record in TRAFFIC]  # type: ignore[arg-type]
    assert text in replayed(capsys, logs.lines(tmp_path / "log", records))


def test_rows_of_another_kind_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A record of a later version, or half a line of a disk that was full."""
    path = logs.lines(tmp_path / "log", TRAFFIC)
    with path.open("a") as file:
        file.write('{"call_id": 1}\n[]\n{"call_id": "a", "conversation": "b", "tool": "c"}\n')
    assert "2 rows are no records of calls" in replayed(capsys, path)


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """By example."""
    with pytest.raises(SystemExit):
        main(["replay", "--help"])
    assert "governor replay records.db --policy threshold --set margin=0.8" in capsys.readouterr().out
