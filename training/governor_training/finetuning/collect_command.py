"""`governor train collect`: plays an environment through a governor in this process, and logs it."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

from rich.console import Console

from governor.calls import ToolCatalog
from governor.errors import GovernorError
from governor.experiment import Experiment
from governor.governance import Governance
from governor.policies.table import find_kind
from governor.probe import ProbeSettings
from governor.spans import Markup
from governor_training.environment import Environment, NotEnoughTasks, Split, available
from governor_training.errors import UsageError
from governor_training.evaluation.cache import HttpUpstream, Upstream
from governor_training.evaluation.places import Place, api_key, base_governance
from governor_training.evaluation.sweep import governed, measuring
from governor_training.finetuning import parsers
from governor_training.finetuning.collection import Collector, summary
from governor_training.finetuning.logs import Writer
from governor_training.finetuning.trajectory import Trajectory
from governor_training.inprocess import InProcess
from governor_training.pretrained import check_model


def run(arguments: Sequence[str]) -> int:
    """Raises `TrainingError`."""
    options = parsers.collect().parse_args(arguments)
    place = Place.of(
        environment=options.environment,
        dataset=options.dataset,
        tools=options.tools,
        score_by=options.scorer,
        right=options.right,
        upstream=options.upstream,
        model=options.model,
    )
    console = Console()
    try:
        there = available(place.environment, options.tasks, options.seed, Split.TRAIN)
        if not there:
            raise NotEnoughTasks(f"{place.environment.name} has no training tasks", 0)
        if there < options.tasks:
            console.print(f"{place.environment.name} has {there} training tasks: all of them are played.")
            options.tasks = there
        found = asyncio.run(_collect(options, place, console))
    except NotEnoughTasks as error:
        raise UsageError(f"{error} (use fewer --tasks)") from None
    with Writer(options.out) as out:
        for trajectory in found:
            out.put(trajectory.as_row())
    figures = summary(found)
    console.print(
        f"{figures['conversations']:.0f} conversations, {figures['score']:.1%} right,"
        f" {figures['calls']:.2f} calls each: {options.out}"
    )
    return 0


async def _collect(options: argparse.Namespace, place: Place, console: Console) -> list[Trajectory]:
    async with AsyncExitStack() as stack:
        upstream: Upstream
        if options.upstream:
            upstream = await stack.enter_async_context(
                HttpUpstream(place.served.upstream or "", api_key=api_key())
            )
            base = base_governance(place.environment, options.upstream, place.served.vocab_size)
        else:
            check_model(str(place.served.model))
            engine = InProcess.load(str(place.served.model))
            upstream, base = engine, governance(place.environment, engine)
        collector = Collector(
            place.environment,
            upstream,
            _acting(base, options.policy),
            place.served.name,
            temperature=options.temperature,
            max_turns=options.max_turns,
            max_tokens=options.max_tokens,
            concurrency=options.concurrency,
        )
        return await collector.collect(options.tasks, options.rollouts, options.seed, console)


def governance(environment: Environment, engine: InProcess) -> Governance:
    """The product's own defaults for these tools and the model in this process, observing."""
    start = Markup().call[0]
    return Governance(
        vocab_size=engine.vocab_size,
        catalog=ToolCatalog(tuple(sorted(environment.read_only)), tuple(sorted(environment.effectful))),
        probe=ProbeSettings(
            call_start_id=engine.token_id(start),
            call_start=start,
            chat_template_kwargs={"enable_thinking": False},
        ),
    )


def _acting(base: Governance, policy: str | None) -> Governance:
    if policy is None:
        return measuring(base)
    try:
        acting = governed(base, find_kind(policy).make())
    except GovernorError as error:
        raise UsageError(error.detail) from None
    return replace(acting, experiment=Experiment(labels=1.0))
