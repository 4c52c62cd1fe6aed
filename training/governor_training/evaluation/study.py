"""The evaluation from beginning to end: learn, play ungoverned, find the truth, sweep, and time."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rich.console import Console

from governor.gate import Gate
from governor.governance import Governance
from governor.records import CallRecord
from governor_calibration.fit import fit
from governor_training import replay
from governor_training.agent import Agent, Chat, Run
from governor_training.environment import Environment, NotEnoughTasks, Split, Task, available
from governor_training.evaluation.cache import Answers, CachingUpstream, Upstream
from governor_training.evaluation.calls import CallRow, rows
from governor_training.evaluation.driver import Direct, Driver
from governor_training.evaluation.played import Figures, Played, Timing, Truth, timing
from governor_training.evaluation.sweep import MAX_HARMS, UNGOVERNED, Point, measuring, points
from governor_training.progress import CONCURRENCY, each

WARM_UP_TASKS = 4
FRESH_SEED = 1000
"""Added to a seed, it draws training tasks in another order than that in which they are learned on."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. `learn` is the number of training tasks the gate is fitted on; `policies` None: all.
    `split` TRAIN: other training tasks are played instead of held-out ones, to choose settings by; None: all,
    where nothing is learned.
    `continuations` is how often each side of a replay is played. `timed` is how many tasks go through real
    servers, of the first seed; 0: none."""

    tasks: int = 500
    seeds: tuple[int, ...] = (1, 2, 3)
    learn: int = 2000
    policies: tuple[str, ...] | None = None
    max_harm: float = 0.02
    concurrency: int = 16
    timed: int = 500
    temperature: float = 0.0
    max_tokens: int = 128
    max_turns: int = 8
    continuations: int = 1
    model: str = ""
    split: Split | None = Split.HELD_OUT


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A point with its runs and their figures."""

    point: Point | None
    played: Sequence[Played]
    figures: Figures

    @property
    def name(self) -> str:
        return self.point.name if self.point else UNGOVERNED

    @property
    def policy(self) -> str:
        return self.point.policy if self.point else UNGOVERNED


@dataclass(frozen=True, slots=True)
class Timed:
    """An arm that was played through a real server."""

    figures: Figures
    timing: Timing


@dataclass(frozen=True, slots=True)
class Findings:
    """All that came of a study."""

    gates: Mapping[float, Gate]
    learned_calls: int
    ungoverned: Evaluated
    swept: Sequence[Evaluated]
    calls: Sequence[CallRow]
    timed: Mapping[str, Timed]
    requests_served: int
    requests_asked: int


class Study:
    """Plays `environment` through `upstream`; `base` is how a governor for it is set up, whatever its policy.
    `kept` are answers of an earlier study of the same model."""

    def __init__(
        self,
        plan: Plan,
        environment: Environment,
        upstream: Upstream,
        base: Governance,
        console: Console,
        kept: Answers | None = None,
    ) -> None:
        self._plan, self._environment, self._base, self._console = plan, environment, base, console
        self._cache = CachingUpstream(upstream, top_logprobs=base.top_logprobs, kept=kept)
        self._model = plan.model or environment.model_name
        self._truths: dict[int, Sequence[Truth]] = {}
        self._records: dict[int, Mapping[str, CallRecord]] = {}

    async def learn(self) -> tuple[Mapping[float, Gate], int]:
        """The gates by `max_harm`, all fitted on the same calls of training tasks, and how many these are;
        none where nothing is to be learned.

        Raises `NotEnoughTasks`.
        """
        if not self._plan.learn:
            return {}, 0
        tasks = self._learned()
        driver = Driver(self._cache, measuring(self._base))
        await self._each("learning", tasks, self._agent(driver, self._plan.seeds[0]).ask)
        records = list(driver.records.values())
        harms = sorted({*MAX_HARMS, self._plan.max_harm})
        gates = {
            harm: fit(records, model=self._model, max_harm=harm, settings=self._base.rules) for harm in harms
        }
        return gates, sum(record.label is not None for record in records)

    async def play_ungoverned(self) -> Evaluated:
        """Plays the tasks of every seed, and finds the true value of each call. Raises `NotEnoughTasks`."""
        for seed in self._plan.seeds:
            tasks = self._tasks(seed)
            driver = Driver(self._cache, measuring(self._base))
            runs = await self._each(f"ungoverned, seed {seed}", tasks, self._agent(driver, seed).ask)
            self._truths[seed] = await self._each(
                f"true values, seed {seed}", runs, partial(self._truth, seed=seed)
            )
            self._records[seed] = driver.records
        base = self._bare()
        return Evaluated(None, base, Figures.of(base, base))

    async def sweep(self, gates: Mapping[float, Gate]) -> list[Evaluated]:
        """Every setting of every policy of the plan, on the same tasks."""
        base = self._bare()
        found = []
        for point in points(self._base, gates, policies=self._plan.policies):
            played: list[Played] = []
            for seed, truths in self._truths.items():
                agent = self._agent(Driver(self._cache, point.governance), seed)
                # A greedy agent does the same in the same task, whatever the seed that drew it.
                done = {} if self._plan.temperature else {one.task: one for one in played}
                fresh = [truth for truth in truths if truth.run.task.id not in done]
                work = partial(self._played, agent=agent, seed=seed)
                new = await self._each(f"{point.name}, seed {seed}", fresh, work)
                done |= {one.task: one for one in new}
                played += [replace(done[truth.run.task.id], seed=seed) for truth in truths]
            found.append(Evaluated(point, played, Figures.of(played, base)))
        return found

    def calls(self, gate: Gate | None) -> list[CallRow]:
        """The calls of the ungoverned runs with all that is known of them."""
        return [
            row
            for seed, truths in self._truths.items()
            for row in rows(truths, self._records[seed], gate, seed)
        ]

    async def time(self, arms: Mapping[str, Chat]) -> Mapping[str, Timed]:
        """Plays the tasks of the first seed through real servers, one of which is `ungoverned`: each task in
        all arms, one after the other, in random order, so that every arm has the same machine."""
        seed = self._plan.seeds[0]
        truths = self._truths[seed][: self._plan.timed]
        agents = {name: self._agent(chat, seed) for name, chat in arms.items()}
        warm_up = self._warm_up(seed)
        await self._each(
            "warming up", [(agent, task) for agent in agents.values() for task in warm_up], _asked
        )

        async def in_turn(truth: Truth) -> dict[str, Played]:
            order = list(agents)
            random.Random(f"{seed} {truth.run.task.id}").shuffle(order)
            return {name: await self._played(truth, agents[name], seed) for name in order}

        rows = await self._each("through real servers", truths, in_turn, CONCURRENCY)
        base = [row[UNGOVERNED] for row in rows]
        found = {}
        for name in agents:
            played = [row[name] for row in rows]
            found[name] = Timed(Figures.of(played, base), timing(played, base))
        return found

    @property
    def requests(self) -> tuple[int, int]:
        """How many requests were served in this process, and how many of them the engine was asked."""
        return self._cache.served, self._cache.asked

    def _learned(self) -> Sequence[Task]:
        return self._environment.tasks(self._plan.learn, self._plan.seeds[0], Split.TRAIN)

    def _tasks(self, seed: int) -> Sequence[Task]:
        plan = self._plan
        if plan.split is Split.HELD_OUT:
            return self._environment.tasks(plan.tasks, seed, Split.HELD_OUT)
        if plan.split is None:
            held_out = self._environment.tasks(
                available(self._environment, plan.tasks, seed, Split.HELD_OUT), seed, Split.HELD_OUT
            )
            rest = self._environment.tasks(plan.tasks - len(held_out), seed, Split.TRAIN)
            return [*held_out, *rest]
        learned = {task.id for task in self._learned()}
        drawn = self._environment.tasks(plan.learn + plan.tasks, seed + FRESH_SEED, Split.TRAIN)
        return [task for task in drawn if task.id not in learned][: plan.tasks]

    def _warm_up(self, seed: int) -> Sequence[Task]:
        """Training tasks, where there are any: what is timed is not asked before."""
        try:
            return self._environment.tasks(WARM_UP_TASKS, seed + 1, Split.TRAIN)
        except NotEnoughTasks:
            return [truth.run.task for truth in self._truths[seed][:WARM_UP_TASKS]]

    async def _truth(self, run: Run, seed: int) -> Truth:
        agent = self._agent(Direct(self._cache), seed)
        values = await replay.values(agent, self._environment, run, continuations=self._plan.continuations)
        return Truth(run, values)

    async def _played(self, truth: Truth, agent: Agent, seed: int) -> Played:
        run = await agent.ask(truth.run.task)
        return Played.of(run, truth, self._environment.effectful, seed)

    def _bare(self) -> list[Played]:
        return [
            replace(Played.bare(truth.run, seed), removed=(False,) * sum(v.avoidable for v in truth.values))
            for seed, truths in self._truths.items()
            for truth in truths
        ]

    def _agent(self, chat: Chat, seed: int) -> Agent:
        plan = self._plan
        return Agent(
            chat,
            self._environment,
            model=self._model,
            temperature=plan.temperature,
            seed=seed,
            max_turns=plan.max_turns,
            max_tokens=plan.max_tokens,
        )

    async def _each(
        self, what: str, items: Sequence[Any], work: Callable[[Any], Any], concurrency: int | None = None
    ) -> list[Any]:
        at_once = concurrency or self._plan.concurrency
        return await each(f"{what:36}", items, work, self._console, concurrency=at_once)


async def _asked(pair: tuple[Agent, Task]) -> Run:
    agent, task = pair
    return await agent.ask(task)
