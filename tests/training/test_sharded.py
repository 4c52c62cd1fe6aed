"""Two processes, with each of the configurations in `training/recipes/accelerate`, do what two processes with
a whole model each do. Without GPUs, by gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.sharded import NONE

ROOT = Path(__file__).parents[2]
CONFIGURATIONS = ROOT / "training" / "recipes" / "accelerate"
RECIPE = """\
tasks: 16
max_steps: 2
per_device_train_batch_size: 4
num_generations: 8
learning_rate: 3.0e-4
max_completion_length: 256
bf16: false
gradient_checkpointing: false
use_cpu: true
threads: 1
report_to: none
disable_tqdm: true
save_strategy: "no"
log_completions: false
seed: 4
"""


def figures(configuration: str, folder: Path) -> Mapping[str, Mapping[str, float]]:
    """Trains with two processes; a group of eight rollouts is spread over both."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE, "utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    told = ["--config", str(folder / "recipe.yaml"), "--output_dir", str(folder / "out")]
    done = subprocess.run(
        [*launch, str(ROOT / "tests/training/sharded.py"), configuration, *told],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: Mapping[str, Mapping[str, float]] = json.loads((folder / "out" / "run.json").read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mapping[str, Mapping[str, float]], Path]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    return figures(NONE, folder), folder / "out"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["fsdp2", "zero3"])
def test_a_sharded_model_trains_like_a_whole_one(
    name: str, whole: tuple[Mapping[str, Mapping[str, float]], Path], tmp_path: Path
) -> None:
    """The same rollouts, rewards and weights: a reference that was not loaded everywhere, a process that
    waits for another, or gradients of one half of a group would show here."""
    if name == "zero3" and find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    expected, before = whole
    found = figures(str(CONFIGURATIONS / f"{name}.yaml"), tmp_path / "run")
    for key, value in expected["last"].items():
        assert found["last"][key] == pytest.approx(value, abs=1e-4), key
    mine, theirs = (load_file(one / "model.safetensors") for one in (tmp_path / "run" / "out", before))
    # FSDP writes the head that is the embedding once more.
    head = mine.pop("lm_head.weight", mine["model.embed_tokens.weight"])
    assert torch.equal(head, mine["model.embed_tokens.weight"])
    assert mine.keys() == theirs.keys()
    assert all((mine[key].float() - theirs[key].float()).abs().max() < 5e-3 for key in theirs)
