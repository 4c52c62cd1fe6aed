"""`governor train export`: a trained model in a form that vLLM loads."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from governor_training.environment import Split, Task
from governor_training.errors import TrainingError, UsageError
from governor_training.evaluation.places import api_key, environment_of
from governor_training.finetuning import export as exports
from governor_training.finetuning import parsers

PROMPTS = 8
"""Tasks that are checked with."""


class NotTheSame(TrainingError):
    """The served model is not the exported one."""


def run(arguments: Sequence[str]) -> int:
    """Raises `TrainingError`."""
    options = parsers.export().parse_args(list(arguments))
    if options.unload and not options.load:
        raise UsageError("--unload needs --load: it is taken out of that server")

    if (options.source / exports.MANIFEST).is_file():
        made = exports.read(options.source)
    else:
        made = exports.export(
            options.source, options.out, options.name, merge=options.merge, dtype=options.dtype
        )
        print(f"{made.name}: {made.folder} ({made.form.value}, {made.digest[:12]})")
        print(f"  {made.command()}")
    if options.load:
        exports.load(made, _bare(options.load), api_key=api_key())
        print(f"{made.name} is loaded at {options.load}")
        if options.unload:
            exports.unload(options.unload, _bare(options.load), api_key=api_key())
    if options.check:
        _check(made, options)
    return 0


def _bare(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _check(made: exports.Export, options: argparse.Namespace) -> None:
    settings = _settings(Path(made.source))
    tokenizer = AutoTokenizer.from_pretrained(made.base or made.folder)
    if options.prompts:
        prompts = [tokenizer.encode(line, add_special_tokens=False) for line in _lines(options.prompts)]
    else:
        prompts = [
            tokenizer.apply_chat_template(
                list(task.messages),
                tools=list(task.tools) or None,
                add_generation_prompt=True,
                return_dict=False,
            )
            for task in _tasks(settings)
        ]
    found = exports.check(
        made,
        _bare(options.check),
        prompts,
        base=options.base or settings.get("model_name_or_path"),
        tolerance=options.tolerance,
        api_key=api_key(),
    )
    told = f"{found.to_export:.4f} nats a token from the export over {found.tokens} tokens"
    if found.to_base is not None:
        told += f", {found.to_base:.4f} from the base"
    if not found.same:
        raise NotTheSame(f"{made.name} is not what {options.check} serves under that name: {told}")
    print(f"{options.check} serves {made.name}: {told}")
    if not found.telling:
        print("  (training has moved the model so little that the base would pass as well)")


def _settings(source: Path) -> Mapping[str, Any]:
    """What the run in `source` was told; empty where it does not say."""
    try:
        settings: Mapping[str, Any] = json.loads((source / "settings.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return settings


def _lines(path: Path) -> Sequence[str]:
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    if not lines:
        raise UsageError(f"{path} is empty: put one text a line there")
    return lines


def _tasks(settings: Mapping[str, Any]) -> Sequence[Task]:
    """Held-out tasks of the environment that was trained in."""
    if "environment" not in settings:
        raise UsageError("the run does not say what it was trained on: give texts with --prompts")
    dataset = settings.get("dataset")
    environment = environment_of(
        settings["environment"], Path(dataset) if dataset else None, settings["tools"], settings["scorer"]
    )
    return environment.tasks(PROMPTS, 1, Split.HELD_OUT)
