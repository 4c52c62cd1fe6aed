"""The held-out questions of the study, through a real vLLM that takes one model after the other."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from governor_training.atlas.environment import bundled_model
from governor_training.finetuning.study import held_out
from governor_training.finetuning.study.held_out import Wanted
from governor_training.finetuning.study.plan import WORLDS

TASKS = 16


def other_model(folder: Path) -> Path:
    """The bundled model with weights that say something else."""
    shutil.copytree(bundled_model(), folder)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name, value in weights.items():
        if name.endswith("down_proj.weight"):
            noise = torch.randn(value.shape, generator=generator)
            weights[name] = value + 0.05 * noise.to(value.dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_each_model_answers_with_its_own_weights(tmp_path: Path) -> None:
    """Weights that were not taken, or what was computed with others and kept, would give one model the
    answers of another. In this process a model says the same as through vLLM."""
    world, console = WORLDS["bundled"], Console(quiet=True)
    bundled, other = bundled_model(), other_model(tmp_path / "other")
    wanted = [
        Wanted(bundled, None, tmp_path / "first.jsonl"),
        Wanted(bundled, "threshold", tmp_path / "governed.jsonl"),
        Wanted(other, None, tmp_path / "other.jsonl"),
        Wanted(bundled, None, tmp_path / "again.jsonl"),
    ]
    asyncio.run(held_out.through_vllm(world, wanted, TASKS, console))
    first, governed, strange, again = (held_out.read(one.path) for one in wanted)
    assert first and governed and strange
    assert first == again == asyncio.run(held_out.in_process(world, bundled, TASKS, console))
    assert strange != first
    assert strange == asyncio.run(held_out.in_process(world, other, TASKS, console))
    assert sum(one.calls for one in governed) < sum(one.calls for one in first)
