"""Trains the arms, each by the command that a user would give, in a process of its own.

What is finished is not done again, and what was stopped goes on at its last checkpoint.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from governor_training.errors import TrainingError
from governor_training.finetuning import offline as offline_training
from governor_training.finetuning.online import run as online_training
from governor_training.finetuning.study.plan import (
    ACCURACY,
    ADVISED,
    DENSE,
    LOG_SEED,
    OFFLINE,
    OFFLINE_RECIPE,
    SPARSE,
    START,
    Plan,
    Trial,
    World,
)

LOGS = "logs.jsonl"
DIAGNOSIS = "diagnosis"


class TrialFailed(TrainingError):
    """A command of the study failed; its own message stands above."""


def train(trial: Trial, plan: Plan, out: Path) -> None:
    """Makes the model of a trial, if it is not there. Raises `TrainingError`."""
    if trial.arm == START or finished(trial, out):
        return
    if trial.arm in OFFLINE:
        _governor("offline", *offline(trial, plan, out))
        return
    # A run that fell through its floor has kept its best checkpoint, and is judged by that.
    _governor("online", *online(trial, plan, out), accepted=online_training.FloorBroken.exit_code)


def finished(trial: Trial, out: Path) -> bool:
    """Whether the model is there, and its training came to an end."""
    folder = trial.folder(out)
    written = offline_training.SUMMARY if trial.arm in OFFLINE else online_training.SUMMARY
    return (folder / written).is_file() and (folder / "model.safetensors").is_file()


def stopped(trial: Trial, out: Path) -> str:
    """What the guard said of a run that it ended; "" for one that went to its end."""
    path = trial.folder(out) / online_training.SUMMARY
    return str(_told(path)["stopped"]) if path.is_file() else ""


def online(trial: Trial, plan: Plan, out: Path) -> list[str]:
    """The arguments of `governor train online`."""
    reward = trial.arm
    if trial.arm == ADVISED:
        reward = advised(diagnosis(trial.world, plan, out))
    settings: dict[str, Any] = {
        "config": trial.world.recipe,
        "output_dir": trial.folder(out),
        "environment": trial.world.environment,
        "model_name_or_path": trial.world.start(),
        "reward": reward,
        "seed": trial.seed,
    }
    budget = {
        "max_steps": plan.steps,
        "per_device_train_batch_size": plan.batch,
        "num_generations": plan.generations,
    }
    settings |= {name: value for name, value in budget.items() if value is not None}
    if reward == DENSE:
        report = diagnosis(trial.world, plan, out)
        settings["diagnosis"] = report
        # The comparison is wanted also where one's own logs would say: better not.
        settings["undiagnosed"] = _told(report)["recommendation"] != DENSE
    return _flags(settings)


def offline(trial: Trial, plan: Plan, out: Path) -> list[str]:
    """The arguments of `governor train offline`."""
    settings: dict[str, Any] = {
        "config": OFFLINE_RECIPE,
        "data": logs(trial.world, plan, out),
        "objective": trial.arm,
        "output_dir": trial.folder(out),
        "model_name_or_path": trial.world.start(),
        "seed": trial.seed,
    }
    return _flags(settings)


def logs(world: World, plan: Plan, out: Path) -> Path:
    """What the start model did in training questions, measured by a governor that only observes. Raises
    `TrainingError`."""
    path = out / world.name / LOGS
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"part-{path.name}")
        settings = {
            "environment": world.environment,
            "model": world.start(),
            "tasks": plan.logged,
            "seed": LOG_SEED,
            "out": part,
        }
        _governor("collect", *_flags(settings))
        part.replace(path)
    return path


def diagnosis(world: World, plan: Plan, out: Path) -> Path:
    """What the logs say of entropy. Raises `TrainingError`."""
    folder = out / world.name / DIAGNOSIS
    path = folder / "diagnosis.json"
    if not path.is_file():
        _governor("diagnose", str(logs(world, plan, out)), *_flags({"out": folder}))
    return path


def advised(report: Path) -> str:
    """The reward that a diagnosis recommends: where entropy says nothing, that of the answers alone."""
    recommendation = str(_told(report)["recommendation"])
    return recommendation if recommendation in (DENSE, SPARSE) else ACCURACY


def _told(report: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(report.read_text("utf-8"))
    return found


def _flags(settings: dict[str, Any]) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def _governor(command: str, *arguments: str, accepted: int = 0) -> None:
    """`governor train COMMAND`, whose progress is seen. Raises `TrialFailed`."""
    told: Sequence[str] = [sys.executable, "-m", "governor_server.cli", "train", command, *arguments]
    code = subprocess.run(told, check=False).returncode
    if code not in (0, accepted):
        raise TrialFailed(f"`governor train {command}` ended with {code}: {' '.join(told[3:])}")
