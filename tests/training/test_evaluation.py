"""A whole study on the toy environment, and what is written of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from governor.calls import ToolCatalog
from governor.governance import Governance
from governor_server.cli import main
from governor_training.environment import NotEnoughTasks, Split
from governor_training.evaluation import study
from governor_training.evaluation.report import Report
from governor_training.evaluation.run import write
from governor_training.evaluation.study import Findings, Plan, Study
from tests.training.toy import Toy, ToyModel

BASE = Governance(vocab_size=128, catalog=ToolCatalog(("fetch",), ("save",)))
POLICIES = ("observe", "threshold", "cap", "calibrated")
PLAN = Plan(tasks=12, seeds=(1, 2), learn=300, policies=POLICIES, max_harm=0.1, timed=6)


async def studied(toy: Toy, plan: Plan = PLAN) -> Findings:
    model = ToyModel()
    one = Study(plan, toy, model, BASE, Console(quiet=True))
    gates, learned = await one.learn()
    ungoverned = await one.play_ungoverned()
    calls = one.calls(gates[plan.max_harm])
    swept = await one.sweep(gates)
    timed = await one.time({"ungoverned": model, "again": model})
    return Findings(gates, learned, ungoverned, swept, calls, timed, *one.requests)


@pytest.fixture(scope="module")
def report() -> Report:
    return Report.of(asyncio.run(studied(Toy(saves=True))))


def test_the_study_finds_what_is_known_of_the_toy(report: Report) -> None:
    """Even numbers are known, so their fetches are avoidable, and so is every repeat of one."""
    base = report.findings.ungoverned.figures
    assert base.accuracy.value == 1.0
    numbers = [n for seed in PLAN.seeds for n in range(seed, seed + PLAN.tasks)]
    avoidable = sum((n % 2 == 0) + (n % 3 == 0) for n in numbers)
    assert sum(row.avoidable for row in report.findings.calls) == avoidable
    found = {one.name: one.figures for one in report.findings.swept}
    assert found["threshold margin=0.9"].avoidable_removed.value == 1.0
    assert found["threshold margin=0.9"].withheld_needed == 0
    assert found["calibrated max_harm=0.1"].withheld > found["calibrated max_harm=0.1"].withheld_needed == 0
    assert found["cap calls=0"].accuracy.value == pytest.approx(0.5)
    assert found["cap calls=0"].needed_share.value > 0.3
    assert found["observe"].calls == base.calls


def test_no_setting_withholds_what_has_an_effect(report: Report) -> None:
    """In none of the many runs of a sweep."""
    for one in report.findings.swept:
        assert one.figures.effectful_withheld == 0 < one.figures.effectful, one.name


def test_most_of_a_sweep_is_remembered(report: Report) -> None:
    """That is what makes it affordable. The learning before it, on tasks of its own, is most of the rest."""
    assert report.findings.requests_asked < 0.7 * report.findings.requests_served


def test_signals_and_labels_are_judged_against_the_truth(report: Report) -> None:
    """The toy's doubt is honest: its margin tells avoidable calls, and the free label is right."""
    areas = {one.signal: one.auroc for one in report.signals}
    margin = areas["probe_least_margin"]
    assert margin is not None and margin.value > 0.95
    assert report.labels.agreement == 1.0
    assert report.labels.changed_needed == report.labels.labelled - report.labels.unchanged_avoidable > 0
    gain = next(one for one in report.pilot if (one.measure, one.tool) == ("gain of the probe", "fetch"))
    assert gain.correlation is not None and gain.correlation.value > 0.9


def test_everything_is_written(report: Report, tmp_path: Path) -> None:
    """JSON that other programs can read, the tables, and the pictures."""
    write(report, {"seeds": [1, 2]}, tmp_path, plots=True)
    summary = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    assert {one["policy"] for one in summary["policies"]} >= {"ungoverned", "calibrated", "cap"}
    assert summary["real_servers"]["again"]["ratio"]["value"] > 0
    assert "threshold margin=0.9" in (tmp_path / "tables.md").read_text("utf-8")
    for name in ("frontier", "signals", "calibration", "pilot"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_not_learned_has_no_table(report: Report) -> None:
    """An empty one reads like a result."""
    unlearned = replace(report, findings=replace(report.findings, gates={}, learned_calls=0))
    without = {str(table.title) for table in unlearned.tables()}
    (gates,) = {str(table.title) for table in report.tables()} - without
    assert gates.startswith("The gates")


async def test_too_few_tasks_are_told() -> None:
    """Before anything is played."""
    with pytest.raises(NotEnoughTasks):
        await studied(Toy(most=20))


def data(tmp_path: Path) -> Callable[[str], list[str]]:
    (tmp_path / "data.jsonl").write_text('{"question": "a", "answer": "b"}\n', "utf-8")
    return lambda text: ["eval", *(word.replace("TMP", str(tmp_path)) for word in text.split())]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--environment atlsa", "no environment 'atlsa'"),
        ("--environment no.such.module:make", "cannot import no.such.module"),
        ("--dataset TMP/data.jsonl", "--tools"),
        ("--dataset TMP/none.jsonl --tools json", "none.jsonl: No such file or directory"),
        ("--environment tests.training.toy:Toy", "no model is bundled"),
        ("--policies cup --model TMP --out TMP", "did you mean cap"),
        ("--max-harm 2", "between 0 and 1"),
        ("--environment tests.training.toy:Toy --upstream http://127.0.0.1:9 --learn 5000 --out TMP", ""),
    ],
)
def test_a_wrong_option_is_told_in_one_line(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before an engine is started."""
    assert main(data(tmp_path)(words)) in (1, 2)
    told: Any = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told


def test_settings_are_chosen_on_tasks_that_were_neither_learned_nor_held_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the figures on the held-out tasks would flatter what was chosen by them."""
    monkeypatch.setattr(study, "FRESH_SEED", 5)  # the toy then draws mostly what was learned
    plan = replace(PLAN, split=Split.TRAIN)
    one = Study(plan, Toy(saves=True), ToyModel(), BASE, Console(quiet=True))
    played = asyncio.run(one.play_ungoverned()).played
    learned = {task.id for task in Toy().tasks(plan.learn, plan.seeds[0], Split.TRAIN)}
    held_out = {task.id for seed in plan.seeds for task in Toy().tasks(plan.tasks, seed, Split.HELD_OUT)}
    assert len(played) == plan.tasks * len(plan.seeds)
    assert not {one.task for one in played} & (learned | held_out)
