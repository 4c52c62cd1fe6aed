"""Logs to train on, made by playing an environment's tasks through a governor in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from governor.governance import Governance
from governor_training.agent import Agent, Run
from governor_training.environment import Environment, Split, Task
from governor_training.evaluation.cache import Upstream
from governor_training.evaluation.driver import Driver
from governor_training.finetuning.logs import joined
from governor_training.finetuning.trajectory import Trajectory
from governor_training.progress import each


@dataclass(frozen=True, slots=True)
class Collector:
    """Plays tasks as `governance` has it: observing gives what the model does by itself, with a label for
    each call; enforcing gives what it does with calls withheld."""

    environment: Environment
    upstream: Upstream
    governance: Governance
    model: str
    temperature: float = 1.0
    max_turns: int = 8
    max_tokens: int = 128
    concurrency: int = 128

    async def collect(
        self, tasks: int, rollouts: int, seed: int, console: Console, split: Split = Split.TRAIN
    ) -> list[Trajectory]:
        """`rollouts` conversations for each of `tasks` tasks. Raises `NotEnoughTasks`."""
        plays = [
            (task, number)
            for task in self.environment.tasks(tasks, seed, split)
            for number in range(rollouts)
        ]
        return await each("playing", plays, self._play, console, concurrency=self.concurrency)

    async def _play(self, play: tuple[Task, int]) -> Trajectory:
        task, number = play
        driver = Driver(self.upstream, self.governance, keep_transcripts=True)
        name = f"{task.id}#{number}"

        async def chat(body: dict[str, Any], conversation: str) -> Mapping[str, Any]:
            return await driver(body, name)

        agent = Agent(
            chat,
            self.environment,
            model=self.model,
            temperature=self.temperature,
            max_turns=self.max_turns,
            max_tokens=self.max_tokens,
        )
        run = await agent.ask(task)
        return trajectory_of(run, driver, name)


def trajectory_of(run: Run, driver: Driver, conversation: str) -> Trajectory:
    """What the governor in `driver` knows of a run that it governed, with the run's score."""
    turns = driver.transcripts[conversation]
    whole = [turns[0]]
    for turn in turns[1:]:
        whole.append(turn.following(whole[-1].messages))
    records = [record for record in driver.records.values() if record.conversation == conversation]
    found = joined(whole, records, run.score)
    return replace(found, id=conversation, where=conversation)


def summary(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """The mean score, and executed calls a conversation, effectful ones too."""
    count = max(1, len(trajectories))
    calls = sum(not call.withheld for one in trajectories for call in one.calls)
    return {
        "conversations": len(trajectories),
        "score": sum(one.score or 0.0 for one in trajectories) / count,
        "calls": calls / count,
    }
