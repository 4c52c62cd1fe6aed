"""`governor train online` from its arguments to the files that it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from governor_training.errors import UsageError
from governor_training.finetuning.online import run as online
from governor_training.finetuning.online.guard import Floor, Guard
from governor_training.finetuning.online_command import run

TINY = """\
environment: atlas
tasks: 8
max_steps: 1
per_device_train_batch_size: 4
num_generations: 4
max_completion_length: 200
bf16: false
gradient_checkpointing: false
use_cpu: true
threads: 1
report_to: none
disable_tqdm: true
accuracy_window: 1
"""


def recipe(tmp_path: Path, more: str = "") -> list[str]:
    path = tmp_path / "recipe.yaml"
    path.write_text(TINY + more, "utf-8")
    return ["--config", str(path), "--output_dir", str(tmp_path / "out")]


def test_the_file_says_what_and_the_command_line_overrides_it(tmp_path: Path) -> None:
    """As TRL's users know it; a setting that reaches nobody would be worse than an error."""
    arguments = [*recipe(tmp_path, "reward: otc\nalpha: 0.25\n"), "--alpha", "0.75", "--beta", "0.1"]
    options, config, _ = online.parse(arguments)
    assert (options.reward, config.reward_settings().alpha, config.beta) == ("otc", 0.75, 0.1)
    assert config.max_completion_length == 200


def test_a_setting_that_there_is_not_is_an_error(tmp_path: Path) -> None:
    """`alhpa: 0.7` must not train with the default in silence."""
    with pytest.raises(UsageError, match="alhpa"):
        online.parse(recipe(tmp_path, "alhpa: 0.7\n"))


def test_the_kl_term_is_on_unless_it_is_turned_off(tmp_path: Path) -> None:
    """TRL's default is 0: a policy that nothing holds collapsed in our trials."""
    assert online.parse(recipe(tmp_path))[1].beta > 0


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (None, "--diagnosis"),
        ({"recommendation": "neither", "why": "chance"}, "does not recommend .* but neither"),
        ({"something": "else"}, "no diagnosis"),
    ],
)
def test_the_dense_reward_wants_a_diagnosis_that_recommends_it(
    tmp_path: Path, report: dict[str, Any] | None, said: str
) -> None:
    """Where entropy is noise, dense rewards are noise: one's own logs must have shown that it is not."""
    arguments = [*recipe(tmp_path), "--reward", "dense"]
    if report is not None:
        path = tmp_path / "report.json"
        path.write_text(json.dumps(report), "utf-8")
        arguments += ["--diagnosis", str(path)]
    with pytest.raises(UsageError, match=said):
        run(arguments)


def test_the_measure_that_needs_probes_is_refused(tmp_path: Path) -> None:
    """No probe is asked while training: every call would count as one that told nothing."""
    with pytest.raises(UsageError, match="forced answers"):
        run([*recipe(tmp_path), "--measure", "gain"])


@pytest.mark.slow
def test_a_run_leaves_a_model_its_figures_and_what_was_said(tmp_path: Path) -> None:
    """And when it is asked for again with other settings, it is not continued as if it were the same."""
    out = tmp_path / "out"
    assert run([*recipe(tmp_path), "--save_steps", "1"]) == 0
    assert (out / "model.safetensors").is_file() and (out / "tokenizer.json").is_file()
    assert json.loads((out / "run.json").read_text("utf-8"))["steps"] == 1
    assert list((out / "completions").glob("*.parquet"))
    with pytest.raises(UsageError, match="learning_rate was 1e-06"):
        run([*recipe(tmp_path), "--learning_rate", "1e-4"])


@pytest.mark.slow
def test_a_run_that_falls_through_the_floor_says_so_and_has_its_own_exit_code(tmp_path: Path) -> None:
    """A script must be able to tell it from a run that went well."""
    with pytest.raises(online.FloorBroken, match=r"below the floor of 1\.100.*no checkpoint") as error:
        run([*recipe(tmp_path), "--accuracy_floor", "1.1", "--max_steps", "2", "--save_strategy", "no"])
    assert error.value.exit_code == 3
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))["model_of"] is None


def test_the_guard_wants_a_whole_window_before_it_stops_anything() -> None:
    """One unlucky batch is no collapse."""
    guard = Guard(Floor(0.9, window=3))
    for accuracy in (0.5, 0.5):
        guard.observe(accuracy, 0.0)
        assert not guard.broken
    guard.observe(0.5, 0.0)
    assert guard.broken


def test_the_floor_of_a_run_is_where_it_began(tmp_path: Path) -> None:
    """Less what may be lost; and a resumed run must not take the place where it resumed for it."""
    guard = Guard(Floor(drop=0.1, window=2))
    for accuracy in (1.0, 0.8, 0.85):
        guard.observe(accuracy, 0.0)
    assert guard.least == pytest.approx(0.8)
    guard.checkpoint(tmp_path)
    again = Guard(Floor(drop=0.1, window=2))
    again.resume(tmp_path)
    assert again.least == pytest.approx(0.8)
    again.observe(0.7, 0.0)
    assert again.broken


def test_the_best_checkpoint_is_the_best_rewarded_that_stood(tmp_path: Path) -> None:
    """Not the last one, and none below the floor, however well it was rewarded."""
    guard = Guard(Floor(0.9, window=1))
    for name, accuracy, reward in (("a", 1.0, 0.2), ("b", 0.95, 0.6), ("c", 0.95, 0.5), ("d", 0.2, 0.9)):
        guard.observe(accuracy, reward)
        guard.checkpoint(tmp_path / name)
    assert Path(guard.standing.best).name == "b"


def test_a_floor_out_of_range_is_refused() -> None:
    """A window of nothing would never stop a run."""
    with pytest.raises(ValueError, match="window"):
        Floor(window=0)
