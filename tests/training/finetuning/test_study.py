"""The comparison of all ways to train: its budget, its figures, and one small study from end to end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from governor_server.cli import main
from governor_training.errors import UsageError
from governor_training.finetuning.study import command, figures, held_out, training
from governor_training.finetuning.study.figures import Comparison
from governor_training.finetuning.study.held_out import Answered, Wanted
from governor_training.finetuning.study.plan import QUICK, START, WORLDS, Plan, Trial, World

Arms = dict[str, dict[int | None, Sequence[Answered]]]


def answers(right: int, calls: int, count: int = 20) -> list[Answered]:
    """`right` of them right, each after `calls` calls, of which one does something."""
    return [Answered(f"q{n}", float(n < right), calls, calls - 1, 0) for n in range(count)]


def arms(**more: Mapping[int | None, Sequence[Answered]]) -> Arms:
    """The start model and the baselines make 4, 4, 2 and 2 calls: 3 on average."""
    return {
        START: {None: answers(16, 4)},
        "accuracy": {1: answers(16, 4)},
        "otc": {1: answers(12, 2)},
        "eapo": {1: answers(12, 2)},
        **{name: dict(found) for name, found in more.items()},
    }


def test_an_arm_is_the_mean_over_its_seeds_on_the_same_questions() -> None:
    """A seed with more questions, or with others, would weigh or compare what it must not."""
    comparison = Comparison.of(arms(sparse={1: answers(20, 1), 2: answers(10, 2)}))
    assert comparison.means["sparse"].accuracy[0] == pytest.approx(0.75)
    assert comparison.means["sparse"].calls[0] == pytest.approx(1.5)
    assert comparison.means["sparse"].read_calls[0] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="same questions"):
        Comparison.of({START: {None: answers(1, 1)}, "otc": {1: answers(1, 1, count=19)}})


def test_an_arm_is_compared_with_the_mean_of_the_baselines() -> None:
    """Of those that were played; with the start model alone, 72% would be another claim."""
    comparison = Comparison.of(arms(sparse={1: answers(16, 1)}))
    change = figures.against_baselines(comparison, "sparse", "calls")
    assert change == pytest.approx((1 / 3 - 1,) * 3)
    del comparison.means["otc"]  # type: ignore[attr-defined]
    assert figures.against_baselines(comparison, "sparse", "calls").value == pytest.approx(-0.7)


@pytest.mark.parametrize(("right", "calls", "met"), [(16, 0, True), (15, 0, False), (16, 1, False)])
def test_few_calls_at_a_price_miss_the_sparse_target(right: int, calls: int, met: bool) -> None:
    """One right answer less than the start model's is a loss, however few the calls."""
    comparison = Comparison.of(arms(sparse={1: answers(right, calls)}))
    assert figures.sparse_target(comparison).met is met


def test_nothing_is_met_before_all_baselines_are_played() -> None:
    """The start model makes the most calls: few against it alone are no few against the others."""
    comparison = Comparison.of({START: {None: answers(16, 4)}, "sparse": {1: answers(16, 0)}})
    target = figures.sparse_target(comparison)
    assert not target.met
    assert "the mean of start," in target.wanted


@pytest.mark.parametrize(("right", "met"), [(18, True), (17, True), (16, False)])
def test_performance_is_relative_to_the_baselines(right: int, met: bool) -> None:
    """Their mean is 70% here: 22% above it is 85.4%, of 20 questions 17 and a bit."""
    comparison = Comparison.of(arms(dense={1: answers(right, 1)}))
    assert figures.dense_target(comparison).met is (met and right * 0.05 >= 0.7 * 1.22)


def test_intervals_are_paired_by_question() -> None:
    """Two arms that differ in nothing but one constant have a difference without doubt."""
    comparison = Comparison.of({START: {None: answers(10, 3)}, "awr": {1: answers(10, 1)}})
    assert figures.difference(comparison, "awr", START, "calls") == pytest.approx((-2.0,) * 3)
    alone = comparison.interval(lambda means: means["awr"].accuracy)
    assert alone.low is not None and alone.high is not None
    assert alone.low < alone.value < alone.high


def test_a_governor_must_beat_both_to_be_worth_it() -> None:
    """Fewer calls than the trained model alone are no gain where answers are lost."""
    names = ("sparse", "start + threshold", "sparse + threshold")
    for last, met in ((9, True), (8, False)):
        played = {names[0]: answers(9, 3), names[1]: answers(9, 2), names[2]: answers(last, 1)}
        comparison = Comparison.of({name: {1: rows} for name, rows in played.items()})
        assert figures.governed_target(comparison, *names).met is met


def test_a_study_is_not_continued_with_another_budget(tmp_path: Path) -> None:
    """Arms of 80 steps beside arms of 160 would be no comparison. Seeds may come later."""
    command._keep(Plan(), tmp_path)
    command._keep(replace(Plan(), seeds=(7,)), tmp_path)
    with pytest.raises(UsageError, match="steps was"):
        command._keep(replace(Plan(), steps=7), tmp_path)


def test_the_first_seed_of_every_arm_comes_before_the_second_of_any() -> None:
    """So that there is a comparison whenever it is stopped."""
    worlds = [WORLDS["bundled"], WORLDS["weak"]]
    trials = list(command._trials(replace(Plan(), seeds=(1, 2)), worlds, ["start", "otc", "dense"]))
    assert [trial.seed for trial in trials] == [None] * 2 + [1] * 4 + [2] * 4
    with pytest.raises(UsageError, match="no arm sprase"):
        list(command._trials(Plan(), worlds, ["sprase"]))


def test_all_arms_of_a_world_are_trained_alike(tmp_path: Path) -> None:
    """But for the reward, the seed and where it goes."""
    world = WORLDS["bundled"]
    own = {"reward", "output_dir", "seed"}
    settings = []
    for arm in ("accuracy", "otc", "eapo", "sparse"):
        flags = training.online(Trial(world, arm, 1), Plan(), tmp_path)
        told = dict(zip(flags[::2], flags[1::2], strict=True))
        settings.append({name: value for name, value in told.items() if name[2:] not in own})
    assert all(one == settings[0] for one in settings)


@pytest.mark.parametrize(
    ("recommendation", "reward"), [("dense", "dense"), ("sparse", "sparse"), ("neither", "accuracy")]
)
def test_advice_is_followed(tmp_path: Path, recommendation: str, reward: str) -> None:
    """Where entropy says nothing, nothing is rewarded for it."""
    path = tmp_path / "diagnosis.json"
    path.write_text(json.dumps({"recommendation": recommendation, "why": "so"}), "utf-8")
    assert training.advised(path) == reward


def test_every_start_model_is_there() -> None:
    """The study is no use where one of its worlds cannot begin."""
    assert all((world.start() / "model.safetensors").is_file() for world in WORLDS.values())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_study_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs, one model trained online, one from the logs, each played, in a table; and when the same is asked
    again, nothing is done twice. The model answers in this process in the place of vLLM."""
    played: list[str] = []

    async def here(world: World, wanted: Sequence[Wanted], tasks: int, console: Console) -> None:
        for one in wanted:
            played.append(f"{one.model.name} {one.policy}")
            held_out.write(one.path, await held_out.in_process(world, one.model, tasks, console))

    monkeypatch.setattr(held_out, "through_vllm", here)
    asked = ["--quick", "--worlds", "bundled", "--arms", "start", "sparse", "awr", "--out", str(tmp_path)]
    assert main(["train", "study", *asked]) == 0
    names = ("model", "sparse-1", "awr-1")
    assert played == [f"{name} {policy}" for name in names for policy in (None, "threshold")]
    summary: dict[str, Any] = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    found = summary["worlds"]["bundled"]
    assert found["questions"] == QUICK.tasks
    assert set(found["arms"]) == {
        *("start", "sparse", "awr"),
        *("start + threshold", "sparse + threshold", "awr + threshold"),
    }
    assert found["arms"]["start"]["calls"]["value"] > 1
    assert found["in_process"]["asked"] == found["in_process"]["same"] == 3 * QUICK.curve
    assert len(found["curves"]["sparse"][0]) == 4
    assert [target["name"] for target in summary["targets"]] == ["sparse", "offline", "governed"]
    assert (tmp_path / "bundled.png").read_bytes().startswith(b"\x89PNG")
    assert "sparse" in (tmp_path / "tables.md").read_text("utf-8")
    before = (tmp_path / "bundled" / "sparse-1" / "model.safetensors").stat().st_mtime_ns
    assert main(["train", "study", *asked]) == 0
    assert len(played) == 6
    assert (tmp_path / "bundled" / "sparse-1" / "model.safetensors").stat().st_mtime_ns == before
