"""`governor report`: its figures are those of the records, its page runs nothing, its mistakes are told."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from governor.outcomes import effect_of
from governor.prices import Prices
from governor.records import CallRecord
from governor_server.cli import main
from governor_server.feedback import Feedback, FeedbackStore
from governor_server.recorded import outcomes
from governor_server.report.command import moment
from governor_server.store import RecordStore
from governor_server.turns import TurnStore
from tests.server import logs

HOSTILE = "<script>alert(1)</script>$x^$"


class Page(HTMLParser):
    """A report as a reader sees it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.rows: dict[str, list[str]] = {}
        self._cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]

        if tag == "tr":
            self._cells = []

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr" and self._cells:
            self.rows[self._cells[0]] = self._cells[1:]

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tags and self.tags[-1] == "td":
            self._cells.append(data)


def governed() -> list[CallRecord]:
    """A day of traffic: of each conversation that is governed the last call was withheld."""
    now = time.time()
    records = []
    for record in logs.traffic(20):
        number = int(record.conversation.rpartition(" ")[2])
        fields: dict[str, Any] = {"created": now - 60 - 3600 * number + record.step, "arm": "holdout"}
        if number % 2:
            fields["arm"] = "governed"
            if record.step == 2:
                fields["decision"] = {**record.decision, "action": "answer", "reason": "confident_answer"}
        if record.step == 1:
            fields["tool"] = HOSTILE
        records.append(replace(record, **fields))
    return records


def kept(folder: Path, records: Sequence[CallRecord], scores: dict[str, float]) -> Path:
    """The file that a proxy leaves, with feedback in it."""
    path = folder / "records.db"
    store = RecordStore(str(path))
    for record in records:
        store.put(record)
    store.close()
    turns = TurnStore(str(path))
    for turn in logs.turns(records):
        turns.put(turn)
    turns.close()
    feedback = FeedbackStore(str(path))
    feedback.put(Feedback(name, "test", score, time.time()) for name, score in scores.items())
    feedback.close()
    return path


def made(folder: Path, *arguments: str | Path) -> Page:
    """The page that the command writes."""
    out = folder / "report.html"
    assert main(["report", *map(str, arguments), "--out", str(out)]) == 0
    return Page(out.read_text("utf-8"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The last line that it prints when something is wrong."""
    assert main(["report", *map(str, arguments)]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_the_figures_are_those_of_the_records(tmp_path: Path) -> None:
    """Of 60 calls in 20 conversations 10 were withheld, and governing changed what /governor/effect says."""
    records = governed()
    scores = {f"talk {number}": float(number % 4 != 1) for number in range(20)}
    store = kept(tmp_path, records, scores)
    page = made(tmp_path, store)
    assert "withheld 10 of 60 tool calls (16.7%)" in page.text
    assert "60 tool calls in 20 conversations" in page.text
    compared = effect_of(logs.turns(records), scores, Prices(), time.time())
    assert compared.calls is not None and compared.calls.value == -1
    assert compared.sentence() in page.text
    assert page.rows["lookup"][:2] == ["40", "10"]
    assert page.rows[HOSTILE][:2] == ["20", "0"]


def test_scores_are_read_as_they_were_told(tmp_path: Path) -> None:
    """From a store, the mean over the sources; from saved decisions, what they carry; else none."""
    store = kept(tmp_path, governed(), {"talk 1": 0.25})
    feedback = FeedbackStore(str(store))
    feedback.put([Feedback("talk 1", "another", 0.75, time.time())])
    feedback.close()
    assert outcomes(store) == {"talk 1": 0.5}
    saved = tmp_path / "saved.json"
    saved.write_text(json.dumps({"decisions": [{"conversation": "talk 2", "score": 1.0}, {"score": None}]}))
    assert outcomes(saved) == {"talk 2": 1.0}


def test_the_range_takes_whole_conversations(tmp_path: Path) -> None:
    """Those that began in it: of one an hour, the last five and a half hours have six."""
    store = kept(tmp_path, governed(), {})
    assert "18 tool calls in 6 conversations" in made(tmp_path, store, "--since", "5.5h").text


def test_a_hostile_name_is_text(tmp_path: Path) -> None:
    """In the page, where it could run, and in a chart, where a dollar sign begins a formula."""
    store = kept(tmp_path, governed(), {})
    page = made(tmp_path, store, "--png", tmp_path / "png")
    assert HOSTILE in page.text
    assert "script" not in page.tags
    for address in page.addresses:
        assert address.startswith("data:image/svg+xml;base64,")
        assert b"<script" not in base64.b64decode(address.partition(",")[2])
    assert len(page.addresses) == len(list((tmp_path / "png").glob("*.png"))) >= 3


def test_observing_withholds_nothing_and_says_so(tmp_path: Path) -> None:
    """A manager must not read what would have been as what was."""
    records = [
        replace(record, created=time.time(), decision={**record.decision, "proposed": "answer"})
        for record in logs.traffic(5)
    ]
    page = made(tmp_path, kept(tmp_path, records, {}))
    assert "only observed: nothing was withheld, and it would have withheld 15 of 15" in page.text
    assert "Nobody told how conversations ended" in page.text


def test_an_empty_range_says_where_the_calls_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever mistyped a date sees which would do."""
    records = governed()
    store = kept(tmp_path, records, {})
    today = time.strftime("%Y-%m-%d", time.localtime(max(record.created for record in records)))
    said = refused(capsys, store, "--since", "2020-01-01", "--until", "2020-01-02")
    assert "no conversation of" in said and today in said
    assert "not before --until" in refused(capsys, store, "--since", "1h", "--until", "2h")
    assert "no such log" in refused(capsys, tmp_path / "none.db")
    assert "is no time" in refused(capsys, store, "--since", "yesterday")


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m", 1800), ("1.5h", 5400), ("7d", 604800), ("2w", 1209600)]
)
def test_times_are_counted_back_from_now(text: str, seconds: float) -> None:
    """In the units that people write."""
    before = time.time()
    assert before <= moment(text) + seconds <= time.time()


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def row(policy: str, setting: str, withheld: int, calls: float) -> dict[str, Any]:
    return {
        "policy": policy, "setting": setting, "tasks": 100, "accuracy": interval(0.95),
        "difference": interval(-0.004), "calls": interval(calls), "avoidable_removed": interval(0.9),
        "avoidable_total": 120, "withheld": withheld, "withheld_needed": 2, "effectful": 9,
        "effectful_withheld": 0, "prompt_tokens": 100.0, "completion_tokens": 20.0, "probe_tokens": 5.0,
        "continuation_tokens": 1.0, "tokens_change": interval(-0.15),
    }  # fmt: skip


def summary(**fields: Any) -> dict[str, Any]:
    """As `governor eval` writes it."""
    settings = {
        "environment": "atlas", "model": HOSTILE, "upstream": None, "dataset": None, "tasks": 100,
        "seeds": [1], "max_harm": 0.02, "processor": "a processor", "versions": {"vllm": "0"},
    }  # fmt: skip
    return {
        "settings": settings,
        "calls": {},
        "learning": {"gates": {"0.02": {"told": "It is certified."}}},
        "policies": [row("ungoverned", "", 0, 2.0), row("calibrated", "max_harm=0.02", 110, 1.0)],
        "real_servers": {},
        "calibration": [],
        **fields,
    }


def test_an_evaluation_is_told_with_its_harm(tmp_path: Path) -> None:
    """What was withheld, how much of it was needed, and what it did to accuracy, in the first sentence."""
    source = tmp_path / "summary.json"
    source.write_text(json.dumps(summary()))
    page = made(tmp_path, source)
    assert "withheld 110 calls in 100 tasks, 2 of them needed; -50% tool calls" in page.text
    assert "(change -0.4 [-1.4, +0.6] points)" in page.text
    assert "It is certified." in page.text
    assert HOSTILE in page.text and "script" not in page.tags


def test_an_evaluation_that_cannot_be_told_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, whatever is missing from it."""
    source = tmp_path / "summary.json"
    source.write_text(json.dumps(summary(policies=[row("ungoverned", "", 0, 2.0)])))
    assert "no policy besides" in refused(capsys, source)
    source.write_text(json.dumps(summary(policies=[])))
    assert "no ungoverned runs" in refused(capsys, source)
    source.write_text(json.dumps(summary(real_servers={"threshold": {}})))
    assert "another version" in refused(capsys, source)
    source.write_text(json.dumps(summary()))
    assert "no --since" in refused(capsys, source, "--since", "7d")
