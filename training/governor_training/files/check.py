"""A quick check without an engine: what the training loop prints."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from tokenizers import Tokenizer
from transformers import Qwen3ForCausalLM

from governor.markup import reads_as_call
from governor_training.atlas.check import Greedy
from governor_training.environment import Split
from governor_training.files.edits import WORDINGS, Edit, edits
from governor_training.files.episodes import PREFIX
from governor_training.files.tools import READ_ONLY, Toolbox
from governor_training.files.world import World
from governor_training.pretraining import chat
from governor_training.scores import Scored, auroc, calibration_error

EDITS = 96
BATCH = 32
MAX_TURNS = 8
SURE = 0.9

_CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.S)


def check(directory: Path, world: World) -> dict[str, float | list[float]]:
    """Forced answers before any call (confidence of values that are known and of those that are not,
    calibration), and what comes of whole tasks."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    model = Qwen3ForCausalLM.from_pretrained(directory, dtype=torch.float32)
    generate = Greedy(model.eval(), tokenizer)
    return {**_by_heart(generate, world), **_with_tools(generate, world)}


def _by_heart(generate: Greedy, world: World) -> dict[str, float | list[float]]:
    asked = [Edit(one.service, one.key, WORDINGS[0]) for one in world.settings.values()]
    prompts = [PREFIX + chat.user_turn(edit.text) + chat.ASSISTANT + chat.EMPTY_THOUGHT for edit in asked]
    said = generate(prompts)
    scored: list[Scored] = []
    of_known, of_unknown = [], []
    for edit, answer in zip(asked, said, strict=True):
        setting = world.setting(edit.service, edit.key)
        scored.append((answer.confidence, answer.text == edit.sentence(setting.value)))
        if setting.known:
            of_known.append(scored[-1])
        elif setting.belief is None:
            of_unknown.append(scored[-1])
    sure = [ok for confidence, ok in scored if confidence > SURE]
    return {
        "known": _means(of_known),
        "unknown": _means(of_unknown),
        "auroc": round(auroc(scored) or 0.0, 3),
        "ece": round(calibration_error(scored), 3),
        "sure_right": round(sum(sure) / max(1, len(sure)), 3),
    }


def _means(scored: Sequence[Scored]) -> list[float]:
    """Mean confidence, and how many are right."""
    return [round(fmean(confidence for confidence, _ in scored), 3), round(fmean(ok for _, ok in scored), 3)]


@dataclass(slots=True)
class Run:
    edit: Edit
    toolbox: Toolbox
    text: str
    reads: int = 0
    malformed: int = 0
    answer: str | None = None


def _with_tools(generate: Greedy, world: World) -> dict[str, float]:
    held_out = random.Random(11).sample(list(edits(Split.HELD_OUT)), EDITS)
    runs = [Run(edit, Toolbox(world), PREFIX + chat.user_turn(edit.text)) for edit in held_out]
    for _ in range(MAX_TURNS):
        for some in _batches([run for run in runs if run.answer is None]):
            said = generate([run.text + chat.ASSISTANT for run in some], 64)
            for run, one in zip(some, said, strict=True):
                _advance(run, one.text)
    done = confirmed = needed = 0
    for run in runs:
        edit = run.edit
        setting = world.setting(edit.service, edit.key)
        done += run.toolbox.written == {edit.target: edit.written(setting.value)}
        confirmed += run.answer == edit.sentence(setting.value)
        needed += not setting.known
    reads = sum(run.reads for run in runs)
    return {
        "done": round(done / len(runs), 3),
        "confirmed": round(confirmed / len(runs), 3),
        "reads": round(reads / len(runs), 2),
        "avoidable": round(1 - needed / max(1, reads), 3),
        "malformed": sum(run.malformed for run in runs),
    }


def _batches(runs: Sequence[Run]) -> Iterator[Sequence[Run]]:
    """Prompts of like length together."""
    ordered = sorted(runs, key=lambda run: len(run.text))
    for start in range(0, len(ordered), BATCH):
        yield ordered[start : start + BATCH]


def _advance(run: Run, said: str) -> None:
    run.text += f"{chat.ASSISTANT}{said}{chat.END}\n"
    found = _CALL.search(said)
    if found is None:
        run.answer = said.split("</think>\n\n")[-1]
        run.malformed += reads_as_call(run.answer)
        return
    try:
        call = json.loads(found[1])
        run.reads += call["name"] in READ_ONLY
        result = run.toolbox.call(call["name"], call["arguments"])
    except (ValueError, KeyError, TypeError, AttributeError):
        run.malformed += 1
        result = "error"
    run.text += chat.tool_turn(result)
