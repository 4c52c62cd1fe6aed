"""The files as an environment to evaluate in."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from governor_training.environment import NotEnoughTasks, Split, Task
from governor_training.environment import Toolbox as AnyToolbox
from governor_training.files.edits import Edit, edits
from governor_training.files.tools import EFFECTFUL, READ_ONLY, SYSTEM, TOOLS, Toolbox
from governor_training.files.world import load_world


class FilesEnvironment:
    """Edits in the tree of configuration files. A task's `data` is its `Edit`."""

    name = "files"
    model_name = "files"
    read_only = READ_ONLY
    effectful = EFFECTFUL

    def tasks(self, count: int, seed: int, split: Split) -> Sequence[Task]:
        pool = list(edits(split))
        if count > len(pool):
            message = f"the files have {len(pool)} tasks of the split {split}, not {count}"
            raise NotEnoughTasks(message, len(pool))
        return [_task(edit) for edit in random.Random(seed).sample(pool, count)]

    def toolbox(self, task: Task) -> Toolbox:
        return Toolbox(load_world())

    def score(self, task: Task, answer: str, toolbox: AnyToolbox) -> float:
        """1 if the tree has the wanted write in it and no other, else 0, whatever the agent says of it."""
        edit: Edit = task.data
        value = load_world().setting(edit.service, edit.key).value
        written = toolbox.written if isinstance(toolbox, Toolbox) else {}
        return float(written == {edit.target: edit.written(value)})


def bundled_model() -> Path:
    """The folder of the model that comes with the package."""
    return Path(__file__).with_name("model")


def _task(edit: Edit) -> Task:
    value = load_world().setting(edit.service, edit.key).value
    messages = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": edit.text})
    return Task(edit.text, messages, TOOLS, edit.sentence(value), edit)
