"""The premise of entropy rewards is asked of the log before a reward is built on it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from governor.labels import Label
from governor.rewards import Measure, RewardSettings
from governor_server.cli import main
from governor_server.feedback import Feedback, FeedbackStore
from governor_server.store import RecordStore
from governor_training.atlas.environment import bundled_model
from governor_training.errors import UsageError
from governor_training.finetuning.diagnosis import (
    CHOICES,
    LOGGED,
    Case,
    Diagnosis,
    Recommendation,
    cases_of,
    permit_dense,
    signals_of,
)
from governor_training.finetuning.logs import Writer
from tests.training.finetuning.conversations import conversation, logged
from tests.training.finetuning.test_logs import record

World = Callable[[bool, random.Random], float]


def clear(useful: bool, rng: random.Random) -> float:
    return rng.gauss(1.0 if useful else 0.0, 0.3)


def faint(useful: bool, rng: random.Random) -> float:
    return rng.gauss(0.4 if useful else 0.0, 1.0)


def noise(useful: bool, rng: random.Random) -> float:
    return rng.gauss(0.0, 0.3)


def opposite(useful: bool, rng: random.Random) -> float:
    return -clear(useful, rng)


def cases(world: World, count: int = 400, tool: str = "search", seed: int = 1) -> list[Case]:
    """Calls of which every third is useful."""
    rng = random.Random(seed)
    return [
        Case(f"{tool} {n}", tool, n % 3 == 0, float(n % 3 == 0), {LOGGED: world(n % 3 == 0, rng)})
        for n in range(count)
    ]


def diagnosed(found: list[Case]) -> Diagnosis:
    return Diagnosis.of(found, "labels", RewardSettings())


@pytest.mark.parametrize(
    ("world", "recommendation"),
    [
        (clear, Recommendation.DENSE),
        (faint, Recommendation.SPARSE),
        (noise, Recommendation.NEITHER),
        (opposite, Recommendation.NEITHER),
    ],
)
def test_the_recommendation_follows_from_the_log(world: World, recommendation: Recommendation) -> None:
    """Dense where entropy tells calls apart, neither where it is noise or says the opposite."""
    assert diagnosed(cases(world)).recommendation is recommendation


def test_the_world_in_which_entropy_is_noise_is_named() -> None:
    """A user must read why, and of which measure."""
    told = diagnosed(cases(opposite))
    assert "as logged says the opposite for all tools" in told.why
    assert told.measure == ""


def test_a_tool_for_which_it_is_inverted_forbids_the_measure() -> None:
    """Good for one tool and inverted for another is good on the whole, and would reward the wrong calls of
    the second."""
    mixed = [*cases(clear, 600, "search"), *cases(opposite, 200, "run")]
    told = diagnosed(mixed)
    assert told.recommendation is Recommendation.NEITHER
    assert "for run" in told.why
    assert [signal.tool for signal in told.signals] == ["all", "run", "search"]


@pytest.mark.parametrize("count", [0, 9, 30])
def test_few_calls_are_no_ground(count: int) -> None:
    """With nine calls an AUROC of 1 is luck."""
    told = diagnosed(cases(clear, count))
    assert told.recommendation is Recommendation.NEITHER
    assert "too few" in told.why


def test_the_best_measure_is_recommended_with_its_settings() -> None:
    """A training that measures otherwise has no diagnosis."""
    rng = random.Random(2)
    both = [
        replace(case, measures={**case.measures, Measure.GAIN: clear(case.useful, rng)})
        for case in cases(noise)
    ]
    told = diagnosed(both)
    assert (told.measure, told.recommendation) == ("gain", Recommendation.DENSE)
    assert told.as_dict()["settings"]["measure"] == "gain"
    renamed = [replace(case, measures={"largest token": case.measures[LOGGED]}) for case in cases(clear)]
    assert diagnosed(renamed).as_dict()["choice"]["statistic"] == "max"


def test_the_cases_of_a_conversation_are_its_labelled_calls() -> None:
    """With the reductions of every choice, and a judgement that does not know the label."""
    calls = [
        logged("c1", 0, Label.USEFUL, before=0.1, after=0.1, gain=0.5, changed=True),
        logged("c2", 1, None, before=0.5, after=0.1),
        logged("c3", 2, Label.LOW_VALUE, before=0.1, after=0.5, gain=0.0, changed=False),
    ]
    turns = {"whole turn": {0: 2.0, 1: 1.5, 2: 1.0}}
    first, last = cases_of(conversation(calls), turns, RewardSettings())
    assert first.useful and not last.useful
    assert first.measures == {LOGGED: 0.0, "whole turn": 0.5, "gain": 0.5}
    assert first.informative == {LOGGED: 0.0, "whole turn": 1.0, "gain": 1.0}
    assert last.measures["whole turn"] is None


def test_the_intervals_are_over_conversations() -> None:
    """Ten calls of one conversation are not ten observations."""
    apart = cases(faint, 300)
    together = [replace(case, conversation=str(n // 30)) for n, case in enumerate(apart)]
    (wide,), (narrow,) = signals_of(together), signals_of(apart)
    assert wide.auroc is not None and narrow.auroc is not None
    assert wide.auroc.value == narrow.auroc.value
    assert wide.auroc.low != narrow.auroc.low


def test_the_dense_reward_needs_a_diagnosis(tmp_path: Path) -> None:
    """One that recommends it, or somebody who insists."""
    path = tmp_path / "diagnosis.json"
    with pytest.raises(UsageError, match="needs a diagnosis"):
        permit_dense(None)
    with pytest.raises(UsageError, match="no diagnosis"):
        permit_dense(path)
    path.write_text(json.dumps(diagnosed(cases(noise)).as_dict()))
    with pytest.raises(UsageError, match="does not recommend the dense reward but neither"):
        permit_dense(path)
    permit_dense(path, undiagnosed=True)
    path.write_text(json.dumps(diagnosed(cases(clear)).as_dict()))
    permit_dense(path)


@pytest.mark.slow
def test_diagnose_asks_a_log_of_conversations(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With exact entropies for every choice of tokens, pictures and a recommendation."""
    out = tmp_path / "out"
    command = ["train", "diagnose", str(log), "--model", str(bundled_model()), "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "Recommended reward:" in said
    assert {path.name for path in out.iterdir()} == {
        "diagnosis.json",
        "separation.png",
        "distributions.png",
    }
    told = json.loads((out / "diagnosis.json").read_text())
    assert {signal["measure"] for signal in told["signals"]} >= {*CHOICES, LOGGED, "gain"}
    assert told["truth"] == "whether the forced answer changed"


def test_diagnose_asks_a_store_of_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No text need be kept for it."""
    path = tmp_path / "records.db"
    records, feedback = RecordStore(str(path), clock=lambda: 2.0), FeedbackStore(str(path))
    for number in range(60):
        one = record(f"c{number}", f"talk {number}")
        assert one.probe_after is not None
        if number % 2:
            one = replace(one, probe_after=replace(one.probe_after, text="Bergen", fingerprint="b"))
        records.put(replace(one, entropy_after=0.0 if number % 2 else 0.5))
    feedback.put([Feedback("talk 1", "", 1.0, 2.0)])
    records.close()
    feedback.close()
    assert main(["train", "diagnose", str(path), "--out", str(tmp_path), "--no-plots"]) == 0
    assert "Recommended reward: dense" in capsys.readouterr().out


def test_diagnose_takes_the_true_values_of_an_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are better than labels."""
    path = tmp_path / "calls.jsonl"
    rows: list[dict[str, Any]] = [
        {
            "seed": 1,
            "task": str(case.conversation),
            "tool": case.tool,
            "avoidable": not case.useful,
            "value": case.value,
            "entropy_reduction": case.measures[LOGGED],
            "gain": None,
        }
        for case in cases(clear, 90)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert main(["train", "diagnose", str(path), "--out", str(tmp_path), "--no-plots"]) == 0
    said = capsys.readouterr().out
    assert "Recommended reward: dense" in said
    assert "the true value by replay" in said


def test_a_log_without_labels_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line."""
    path = tmp_path / "log.jsonl"
    with Writer(path) as out:
        out.put(conversation([logged("c1", 0, None)]).as_row())
    assert main(["train", "diagnose", str(path)]) == 2
    assert "let the governor label calls" in capsys.readouterr().err
