"""`governor train study`: all ways to train on the atlas, side by side."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from governor_training.errors import UsageError
from governor_training.evaluation.report import markdown
from governor_training.finetuning import parsers
from governor_training.finetuning.study import figures, held_out, picture, report, training
from governor_training.finetuning.study.figures import Comparison, Target
from governor_training.finetuning.study.held_out import Answered, Wanted
from governor_training.finetuning.study.plan import (
    ADVISED,
    AWR,
    DENSE,
    QUICK,
    SPARSE,
    START,
    WORLDS,
    Plan,
    Trial,
    World,
)
from governor_training.machine import machine, versions

THRESHOLD = "threshold"
GOVERNED = (START, SPARSE, AWR)
"""Arms that are also played behind a governor."""
SUMMARY = "summary.json"
PLAN = "plan.json"


def run(arguments: Sequence[str]) -> int:
    """Raises `TrainingError`."""
    options = parsers.study().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console()
    console = console if console.is_terminal else Console(width=170)
    plan, worlds = _plan(options), [WORLDS[name] for name in options.worlds]
    out: Path = options.out
    _keep(plan, out)
    for _, found in groupby(_trials(plan, worlds, options.arms), key=partial(_round, plan)):
        trials = [] if options.report else list(found)
        for trial in trials:
            training.train(trial, plan, out)
        for world in worlds:
            own = [trial for trial in trials if trial.world == world]
            asyncio.run(_play(world, own, plan, out, console))
        if not options.no_curves:
            for trial in trials:
                asyncio.run(_play_on_the_way(trial, plan, out, console))
    _report(plan, out, console)
    return 0


def _plan(options: argparse.Namespace) -> Plan:
    plan = QUICK if options.quick else Plan()
    changes = {
        "seeds": tuple(options.seeds) if options.seeds else None,
        "steps": options.steps,
        "tasks": options.tasks,
        "logged": options.logged,
    }
    return replace(plan, **{name: value for name, value in changes.items() if value is not None})


def _keep(plan: Plan, out: Path) -> None:
    """Raises `UsageError` where another budget was begun with."""
    path = out / PLAN
    if path.is_file():
        before = json.loads(path.read_text("utf-8"))
        changed = [
            f"{name} was {before.get(name)}" for name, now in plan.kept().items() if before.get(name) != now
        ]
        if changed:
            raise UsageError(
                f"{out} has a study with another budget ({', '.join(changed)}): choose another --out"
            )
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plan.kept(), indent=2) + "\n", "utf-8")


def _trials(plan: Plan, worlds: Sequence[World], arms: Sequence[str] | None) -> Iterator[Trial]:
    """The first seed of everything before the second of anything: what is there can be compared at any
    time. Raises `UsageError` for an arm that no world has."""
    known = {arm for world in worlds for arm in world.arms}
    if unknown := set(arms or ()) - known:
        raise UsageError(f"no arm {', '.join(sorted(unknown))}: use {', '.join(sorted(known))}")
    wanted = [(world, arm) for world in worlds for arm in world.arms if arms is None or arm in arms]
    for world, arm in wanted:
        if arm == START:
            yield Trial(world, arm)
    for seed in plan.seeds:
        yield from (Trial(world, arm, seed) for world, arm in wanted if arm != START)


def _round(plan: Plan, trial: Trial) -> int:
    """The start models are played with the first seed's."""
    return plan.seeds[0] if trial.seed is None else trial.seed


async def _play(world: World, trials: Sequence[Trial], plan: Plan, out: Path, console: Console) -> None:
    """The held-out questions, by each model alone and, where that is asked, behind a governor."""
    wanted = [
        Wanted(trial.model(out), policy, path)
        for trial in trials
        for policy in _policies(trial)
        if not (path := _answers_of(trial, policy, out)).is_file()
    ]
    if wanted:
        await held_out.through_vllm(world, wanted, plan.tasks, console)


async def _play_on_the_way(trial: Trial, plan: Plan, out: Path, console: Console) -> None:
    """Some of them, by the checkpoints of a model and by itself."""
    for name, model in _on_the_way(trial, out):
        path = trial.folder(out) / f"curve-{name}.jsonl"
        if not path.is_file():
            held_out.write(path, await held_out.in_process(trial.world, model, plan.curve, console))


def _policies(trial: Trial) -> list[str | None]:
    governed = trial.arm in GOVERNED and trial.world.name == "bundled"
    return [None, THRESHOLD] if governed else [None]


def _answers_of(trial: Trial, policy: str | None, out: Path) -> Path:
    return trial.folder(out) / f"held_out{f'-{policy}' if policy else ''}.jsonl"


def _on_the_way(trial: Trial, out: Path) -> list[tuple[str, Path]]:
    """The checkpoints by step, then the model itself, which is asked in this process too, so that both ways
    can be compared."""
    folders = sorted(trial.folder(out).glob("checkpoint-*"), key=_step)
    return [*((f"{_step(one):06d}", one) for one in folders), ("last", trial.model(out))]


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _report(plan: Plan, out: Path, console: Console) -> None:
    """Of all worlds that there is something of, from the files alone."""
    tables: list[Table] = []
    targets: list[Target] = []
    found: dict[str, Any] = {}
    for world in WORLDS.values():
        arms = _arms(world, out)
        if not arms:
            continue
        comparison = Comparison.of(arms)
        tables.append(report.arms_table(world.name, comparison))
        targets += _targets(world, comparison, out)
        curves = _curves(world, out)
        picture.draw(
            out / f"{world.name}.png", f"{world.name}: {world.about}", comparison, curves, plan.curve
        )
        found[world.name] = {
            "about": world.about,
            **report.world_summary(comparison),
            "stopped": {one.name: why for one in _there(world, out) if (why := training.stopped(one, out))},
            "curves": curves,
            "in_process": _agreement(world, out),
        }
    tables.append(report.targets_table(targets))
    summary = {
        "settings": {**plan.kept(), **machine(), "versions": versions()},
        "targets": [target.as_dict() for target in targets],
        "worlds": found,
    }
    (out / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    (out / "tables.md").write_text(markdown(tables), "utf-8")
    for table in tables:
        console.print(table)
    console.print(f"All figures: {out / SUMMARY}")


def _there(world: World, out: Path) -> Iterator[Trial]:
    """The trials of a world of which there are answers, by arm, then seed."""
    for arm in world.arms:
        if arm == START:
            yield Trial(world, arm)
        seeds = [_step(folder) for folder in (out / world.name).glob(f"{arm}-*")]
        yield from (Trial(world, arm, seed) for seed in sorted(seeds))


def _arms(world: World, out: Path) -> dict[str, dict[int | None, list[Answered]]]:
    found: dict[str, dict[int | None, list[Answered]]] = {}
    for policy in (None, THRESHOLD):
        for trial in _there(world, out):
            answers = held_out.read(_answers_of(trial, policy, out))
            if answers is not None:
                name = f"{trial.arm} + {policy}" if policy else trial.arm
                found.setdefault(name, {})[trial.seed] = answers
    return found


def _curves(world: World, out: Path) -> dict[str, list[list[tuple[float, float]]]]:
    """Calls and accuracy from the start model on, for each arm one curve a seed."""
    begun = _point(held_out.read(out / world.name / START / "curve-last.jsonl"))
    found: dict[str, list[list[tuple[float, float]]]] = {}
    for trial in _there(world, out):
        if trial.arm == START:
            continue
        paths = sorted(trial.folder(out).glob("curve-*.jsonl"))
        points = [*begun, *(point for path in paths for point in _point(held_out.read(path)))]
        if points:
            found.setdefault(trial.arm, []).append(points)
    return found


def _point(answers: Sequence[Answered] | None) -> list[tuple[float, float]]:
    if not answers:
        return []
    count = len(answers)
    return [(sum(one.calls for one in answers) / count, sum(one.correct for one in answers) / count)]


def _agreement(world: World, out: Path) -> dict[str, Any]:
    """In how many questions a model did the same in this process as through vLLM: score and calls."""
    same = asked = 0
    for trial in _there(world, out):
        here = held_out.read(trial.folder(out) / "curve-last.jsonl") or []
        served = {one.task: one for one in held_out.read(_answers_of(trial, None, out)) or []}
        pairs = [(one, served[one.task]) for one in here if one.task in served]
        asked += len(pairs)
        same += sum((a.score, a.calls) == (b.score, b.calls) for a, b in pairs)
    return {"asked": asked, "same": same}


def _targets(world: World, comparison: Comparison, out: Path) -> Iterator[Target]:
    """Of what was played so far."""
    if world.name == "bundled" and comparison.has(SPARSE, START):
        yield figures.sparse_target(comparison)
    if world.name == "bundled" and comparison.has(AWR, START):
        yield figures.offline_target(comparison)
    alone, both = f"{START} + {THRESHOLD}", f"{SPARSE} + {THRESHOLD}"
    if comparison.has(SPARSE, alone, both):
        yield figures.governed_target(comparison, SPARSE, alone, both)
    if world.name == "weak" and comparison.has(DENSE, START):
        yield figures.dense_target(comparison)
    path = out / world.name / training.DIAGNOSIS / "diagnosis.json"
    if world.name == "noise" and comparison.has(ADVISED, START) and path.is_file():
        told: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
        yield figures.unharmed_target(comparison, ADVISED, told["recommendation"])
