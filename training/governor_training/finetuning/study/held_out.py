"""Held-out questions, put to a model through a real vLLM, and to its checkpoints in this process."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console

from governor.governance import Governance
from governor.policies.table import find_kind
from governor_training.agent import RIGHT, Agent, Chat, Run
from governor_training.environment import Environment, Split, Task
from governor_training.evaluation.cache import CachingUpstream, HttpUpstream, Upstream
from governor_training.evaluation.driver import Direct, Driver
from governor_training.evaluation.places import base_governance, environment_of
from governor_training.evaluation.sweep import governed
from governor_training.finetuning.study.plan import HELD_OUT_SEED, World
from governor_training.inprocess import InProcess
from governor_training.local import Served, Stack
from governor_training.progress import each

CONCURRENCY = 16
IN_PROCESS = 64


@dataclass(frozen=True, slots=True)
class Answered:
    """One held-out question, answered greedily. `calls` are all that were executed, `read_calls` those that
    only asked for information: the others do what the user wanted done."""

    task: str
    score: float
    calls: int
    read_calls: int
    malformed: int

    @classmethod
    def of(cls, run: Run) -> Answered:
        read = sum(call.read_only for call in run.calls)
        return cls(run.task.id, run.score, len(run.calls), read, run.malformed)

    @property
    def correct(self) -> bool:
        return self.score >= RIGHT


def environment(world: World) -> Environment:
    """Where the questions of a world are played."""
    return environment_of(world.environment, None, None, "exact")


@dataclass(frozen=True, slots=True)
class Wanted:
    """The answers of the model in a folder, by itself (None) or under a policy of the governor, and the file
    that they go to."""

    model: Path
    policy: str | None
    path: Path


async def through_vllm(world: World, wanted: Sequence[Wanted], tasks: int, console: Console) -> None:
    """Answers what is wanted, and writes it as it comes. Each model gets a vLLM of its own: on a CPU, a
    running one takes other weights (`reload_weights`) only in part, and says nothing. Raises
    `StartFailed`."""
    played = environment(world)
    questions = played.tasks(tasks, HELD_OUT_SEED, Split.HELD_OUT)
    for model, asked in groupby(wanted, key=lambda one: one.model):
        with Stack(Served(played.model_name, model), played) as stack:
            base = base_governance(played, stack.engine, stack.vocab_size)
            async with HttpUpstream(stack.engine) as upstream:
                # What the governor asks besides is new; the model's own turns are remembered.
                cache = CachingUpstream(upstream, top_logprobs=base.top_logprobs)
                for one in asked:
                    chat = _chat(cache, base, one.policy)
                    what = f"{model.name} {one.policy or 'alone'}"
                    write(one.path, await _answers(chat, played, questions, what, console, CONCURRENCY))


async def in_process(world: World, model: Path, tasks: int, console: Console) -> list[Answered]:
    """The same questions without an engine: seconds instead of the time that vLLM needs to start."""
    played = environment(world)
    questions = played.tasks(tasks, HELD_OUT_SEED, Split.HELD_OUT)
    chat = Direct(InProcess.load(model))
    return await _answers(chat, played, questions, f"checkpoint {model.name}", console, IN_PROCESS)


def _chat(upstream: Upstream, base: Governance, policy: str | None) -> Chat:
    if policy is None:
        return Direct(upstream)
    return Driver(upstream, governed(base, find_kind(policy).make()))


async def _answers(
    chat: Chat, played: Environment, questions: Sequence[Task], what: str, console: Console, at_once: int
) -> list[Answered]:
    runs = await each(what, questions, Agent(chat, played).ask, console, concurrency=at_once)
    return [Answered.of(run) for run in runs]


def write(path: Path, answers: Iterable[Answered]) -> None:
    """As JSON Lines, whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(asdict(one)) + "\n" for one in answers), "utf-8")
    part.replace(path)


def read(path: Path) -> list[Answered] | None:
    """None where there is nothing yet."""
    if not path.is_file():
        return None
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [Answered(**row) for row in rows]
