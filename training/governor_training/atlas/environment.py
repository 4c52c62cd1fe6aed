"""The atlas as an environment to evaluate in."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from governor_training.atlas.local import bundled_model
from governor_training.atlas.questions import Question, held_out_sample, sample
from governor_training.atlas.tools import ANSWERING, EFFECTFUL, READ_ONLY, SAVING, FlakyToolbox, Toolbox
from governor_training.atlas.world import World, load_world
from governor_training.environment import NotEnoughTasks, Split, Task
from governor_training.environment import Toolbox as AnyToolbox
from governor_training.pretraining import chat

__all__ = ["AtlasEnvironment", "FlakyAtlas", "bundled_model", "task_of"]

_ANSWER = re.compile(r"The [a-z]+ of .+ is (.+)\.")
_MOST_DRAWS = 200
"""Draws for each task wanted, after which there are no more to find."""


class AtlasEnvironment:
    """Questions about countries. A task's `data` is its `Question`."""

    name = "atlas"
    model_name = "atlas"
    read_only = frozenset(READ_ONLY)
    effectful = frozenset(EFFECTFUL)

    def __init__(self, world: World | None = None) -> None:
        self.world = world or load_world()

    def tasks(self, count: int, seed: int, split: Split) -> Sequence[Task]:
        if split is Split.TRAIN:
            return [task_of(question) for question in self._seen(count, seed)]
        try:
            return [task_of(question) for question in held_out_sample(self.world, count, seed)]
        except ValueError as error:
            raise NotEnoughTasks(str(error)) from None

    def toolbox(self, task: Task) -> Toolbox:
        return Toolbox(self.world)

    def score(self, task: Task, answer: str, toolbox: AnyToolbox) -> float:
        """1 if the right value was answered and, where it was to be saved, saved, once and nothing else."""
        question: Question = task.data
        said = _ANSWER.fullmatch(answer.strip())
        notes = toolbox.notes if isinstance(toolbox, Toolbox) else []
        saved = notes == ([question.answer] if question.wording.saves else [])
        return float(said is not None and said[1] == question.answer and saved)

    def _seen(self, count: int, seed: int) -> list[Question]:
        rng = random.Random(seed)
        found: dict[str, Question] = {}
        for _ in range(_MOST_DRAWS * count):
            question = sample(self.world, rng)
            found.setdefault(question.text, question)
            if len(found) == count:
                return list(found.values())
        raise NotEnoughTasks(f"found {len(found)} training questions; asked for {count}", len(found))


class FlakyAtlas(AtlasEnvironment):
    """The same questions with a lookup that fails now and then: whoever gives up answers wrong."""

    def toolbox(self, task: Task) -> Toolbox:
        return FlakyToolbox(self.world, task.id)


def task_of(question: Question) -> Task:
    """The question as it is put to the agent."""
    messages = ({"role": "system", "content": chat.SYSTEM}, {"role": "user", "content": question.text})
    tools = SAVING if question.wording.saves else ANSWERING
    return Task(question.text, messages, tuple(tools), question.answer, question)
