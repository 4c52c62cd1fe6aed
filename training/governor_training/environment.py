"""What an evaluation needs to know of the world that an agent works in.

The atlas and the files are two of them; a data set with a module of tools is a third (`dataset`). Agent,
replay, comparison and evaluation know nothing else of an environment than this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

Message = dict[str, Any]


class Split(StrEnum):
    """TRAIN tasks may have been seen by the model and are what a gate is fitted on; HELD_OUT ones were never
    seen, and every figure is taken on them."""

    TRAIN = "train"
    HELD_OUT = "held_out"


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to ask of the agent: its first `messages` and the `tools` (OpenAI's format) that it is
    offered. `expected` is what a reader would want to compare with; `data` is the environment's own."""

    id: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    expected: str = ""
    data: Any = field(default=None, compare=False)

    @property
    def text(self) -> str:
        """What the user asks."""
        return str(self.messages[-1]["content"])


class Toolbox(Protocol):
    """The tools of one task, with whatever state they change. The same calls on a new toolbox of the same
    task give the same results, so that a run can be replayed."""

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The result as text; a wrong call gives an error text, as a real tool would."""
        ...


class Environment(Protocol):
    """`read_only` and `effectful` are the names of its tools; `model_name` is how its model is served."""

    @property
    def name(self) -> str: ...

    @property
    def model_name(self) -> str: ...

    @property
    def read_only(self) -> frozenset[str]: ...

    @property
    def effectful(self) -> frozenset[str]: ...

    def tasks(self, count: int, seed: int, split: Split) -> Sequence[Task]:
        """`count` tasks, the same for the same arguments. Raises `NotEnoughTasks`."""
        ...

    def toolbox(self, task: Task) -> Toolbox: ...

    def score(self, task: Task, answer: str, toolbox: Toolbox) -> float:
        """How well the task was done, in [0, 1], from the agent's last message and the state of the tools."""
        ...


class NotEnoughTasks(Exception):
    """An environment has fewer tasks of a split than were asked for: `available`, None where it does not
    say how many."""

    def __init__(self, message: str, available: int | None = None) -> None:
        super().__init__(message)
        self.available = available


def available(environment: Environment, wanted: int, seed: int, split: Split) -> int:
    """How many tasks there are, up to `wanted`. Raises `NotEnoughTasks` where the environment is silent."""
    try:
        environment.tasks(wanted, seed, split)
    except NotEnoughTasks as error:
        if error.available is None:
            raise
        return error.available
    return wanted
