"""A model and a log of it, made once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoTokenizer
from transformers.utils import logging

from governor_training.atlas.environment import AtlasEnvironment, bundled_model
from governor_training.evaluation.sweep import measuring
from governor_training.finetuning.collect_command import governance
from governor_training.finetuning.collection import Collector
from governor_training.finetuning.logs import Writer
from governor_training.finetuning.segments import Encoder
from governor_training.finetuning.trajectory import Trajectory
from governor_training.inprocess import InProcess


@pytest.fixture(scope="session", autouse=True)
def quiet() -> None:
    """No bars."""
    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def engine() -> InProcess:
    return InProcess.load(bundled_model())


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    return Encoder(AutoTokenizer.from_pretrained(bundled_model()))


@pytest.fixture(scope="session")
def played(engine: InProcess) -> Sequence[Trajectory]:
    """What the bundled model does in 24 tasks of the atlas, by a governor that observes."""
    environment = AtlasEnvironment()
    collector = Collector(
        environment, engine, measuring(governance(environment, engine)), "atlas", temperature=0.0
    )
    return asyncio.run(collector.collect(24, 1, 1, Console(quiet=True)))


@pytest.fixture(scope="session")
def log(played: Sequence[Trajectory], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    with Writer(path) as out:
        for one in played:
            out.put(one.as_row())
    return path


@pytest.fixture
def settings(tmp_path: Path, log: Path) -> dict[str, Any]:
    """Of a training that takes seconds."""
    return {
        "data": str(log),
        "model_name_or_path": str(bundled_model()),
        "output_dir": str(tmp_path / "run"),
        "max_steps": "4",
        "per_device_train_batch_size": "4",
        "learning_rate": "1e-3",
        "use_cpu": "true",
        "bf16": "false",
        "gradient_checkpointing": "false",
        "dtype": "float32",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": "true",
    }
