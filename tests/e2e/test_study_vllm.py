"""The held-out questions of the study, through a real vLLM."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rich.console import Console

from governor_training.atlas.environment import bundled_model
from governor_training.finetuning.study import held_out
from governor_training.finetuning.study.held_out import Wanted
from governor_training.finetuning.study.plan import WORLDS

TASKS = 16
MODELS = (bundled_model(), Path("tests/models/atlas-other"))


def test_each_model_says_through_vllm_what_it_says_in_this_process(tmp_path: Path) -> None:
    """Another model's weights, or a part of them, once gave figures that looked right."""
    world, console = WORLDS["bundled"], Console(quiet=True)
    wanted = [
        Wanted(model, policy, tmp_path / f"{model.name}-{policy}.jsonl")
        for model in MODELS
        for policy in (None, "threshold")
    ]
    asyncio.run(held_out.through_vllm(world, wanted, TASKS, console))
    alone, governed, other, other_governed = (held_out.read(one.path) for one in wanted)
    assert alone and governed and other and other_governed
    assert alone == asyncio.run(held_out.in_process(world, MODELS[0], TASKS, console))
    assert other == asyncio.run(held_out.in_process(world, MODELS[1], TASKS, console))
    assert alone != other
    for before, after in ((alone, governed), (other, other_governed)):
        assert sum(one.calls for one in after) < sum(one.calls for one in before)
