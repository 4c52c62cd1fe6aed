"""One evaluation from the options of the command to the files that it writes."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openai import OpenAIError
from rich.console import Console

from governor.errors import GovernorError
from governor.policies.table import find_kind
from governor.standing import Standing, kept
from governor_training.agent import Chat, OpenAIChat
from governor_training.environment import NotEnoughTasks, Split
from governor_training.errors import UsageError
from governor_training.evaluation.cache import Answers, HttpUpstream
from governor_training.evaluation.extent import extent
from governor_training.evaluation.places import Place, api_key, base_governance
from governor_training.evaluation.report import Report, conclusion, markdown
from governor_training.evaluation.study import Evaluated, Findings, Plan, Study
from governor_training.evaluation.sweep import CALIBRATED, FORECAST, PRUNED, UNGOVERNED
from governor_training.local import Stack
from governor_training.machine import machine, versions

THRESHOLD = "threshold"
SAMPLING_CONTINUATIONS = 4
NEVER_S = 1e9


def run(options: argparse.Namespace, console: Console) -> int:
    """Raises `TrainingError`."""
    place = Place.of(
        environment=options.environment,
        dataset=options.dataset,
        tools=options.tools,
        score_by=options.scorer,
        right=options.right,
        upstream=options.upstream,
        model=options.model,
    )
    try:
        found = extent(
            plan_of(options, place.served.name), place.environment, chosen_split=options.split is not None
        )
    except NotEnoughTasks as error:
        raise UsageError(f"{error} (use fewer --tasks or --learn)") from None
    plan = found.plan
    for line in found.says:
        console.print(line, highlight=False)
    options.out.mkdir(parents=True, exist_ok=True)
    with Stack(place.served, place.environment) as stack:
        try:
            answers = Answers(options.answers) if options.answers else None
            findings = asyncio.run(_study(plan, place, stack, options.out, console, answers))
        except NotEnoughTasks as error:
            raise UsageError(f"{error} (use fewer --tasks or --learn)") from None
    report = Report.of(findings)
    settings = {
        **{name: value for name, value in _plain(options).items() if name != "run"},
        "environment": place.environment.name,
        "model": place.served.name,
        **machine(),
        "versions": versions(),
    }
    write(report, settings, options.out, plots=not options.no_plots)
    for table in report.tables():
        console.print(table)
    console.print(told(report))
    console.print(f"All figures: {options.out / 'summary.json'}, all calls: {options.out / 'calls.jsonl'}")
    return 0


def plan_of(options: argparse.Namespace, model: str) -> Plan:
    """Raises `UsageError` for a policy that there is not."""
    for name in options.policies or ():
        if name not in (CALIBRATED, FORECAST, PRUNED):
            try:
                find_kind(name)
            except GovernorError as error:
                raise UsageError(f"{error.detail}, {CALIBRATED}, {FORECAST}, {PRUNED}") from None
    sampling = SAMPLING_CONTINUATIONS if options.temperature > 0 else 1
    return Plan(
        tasks=options.tasks,
        seeds=tuple(options.seeds),
        learn=options.learn,
        policies=tuple(options.policies) if options.policies else None,
        max_harm=options.max_harm,
        concurrency=options.concurrency,
        timed=options.timed,
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        max_turns=options.max_turns,
        continuations=options.continuations or sampling,
        model=model,
        split=Split(options.split or Split.HELD_OUT),
    )


async def _study(
    plan: Plan, place: Place, stack: Stack, out: Path, console: Console, answers: Answers | None
) -> Findings:
    key = api_key()
    base = base_governance(place.environment, stack.engine, stack.vocab_size)
    async with HttpUpstream(stack.engine, api_key=key) as upstream:
        study = Study(plan, place.environment, upstream, base, console, answers)
        gates, learned = await study.learn()
        gate = gates.get(plan.max_harm)
        path: Path | None = None
        if gate is not None:
            path = out / "gates.json"
            standing = Standing(gate=gate, attempts=gate.attempt, rules=gate.rules)
            path.write_text(json.dumps(kept({("", plan.model): standing}), indent=2) + "\n", "utf-8")
            console.print(gate.explain())
        ungoverned = await study.play_ungoverned()
        if (doubt := doubt_of(ungoverned)) is not None:
            console.print(doubt, style="bold")
        calls = study.calls(gate)
        with (out / "calls.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row.as_dict()) + "\n" for row in calls)
        swept = await study.sweep(gates)
        try:
            timed = await study.time(await _arms(stack, path, key)) if plan.timed > 0 else {}
        except OpenAIError as error:
            # All else is found by now, and is worth more than the seconds.
            console.print(f"Not timed: {error}")
            timed = {}
    served, asked = study.requests
    return Findings(gates, learned, ungoverned, swept, calls, timed, served, asked)


def doubt_of(ungoverned: Evaluated) -> str | None:
    """What to say where no answer is right: then every call looks avoidable, whatever the governor does."""
    if not ungoverned.played or any(one.correct for one in ungoverned.played):
        return None
    best = max(one.score for one in ungoverned.played)
    return (
        f"No answer without a governor is right (the best score is {best:.2f}), so the figures below say "
        "nothing: try another --scorer, or a lower --right. `contains` suits answers in whole sentences."
    )


async def _arms(stack: Stack, path: Path | None, key: str | None) -> Mapping[str, Chat]:
    """The engine itself, and governors in front of it; the gate's where `path` has one."""
    # The gate stays as it is: nothing is held out, explored or learned on the way.
    lots = {f"EXPERIMENT__{name}": "0" for name in ("HOLDOUT", "EXPLORATION", "LABELS")}
    gated = {
        "CALIBRATION__PATH": str(path),
        "CALIBRATION__RENEW_S": str(NEVER_S),
        "AUTH__ISOLATION": "records",
    }
    overrides: dict[str, Mapping[str, str]] = {THRESHOLD: {}}
    if path is not None:
        overrides[CALIBRATED] = gated
    arms: dict[str, Chat] = {UNGOVERNED: OpenAIChat.at(stack.engine, api_key=key or "none")}
    for name, settings in overrides.items():
        acting = {"GOVERNANCE__MODE": "enforce", "GOVERNANCE__POLICY": name}
        url = await asyncio.to_thread(stack.governor, {**acting, **lots, **settings})
        arms[name] = OpenAIChat.at(url, api_key=key or "none", explain="1")
    return arms


def write(report: Report, settings: Mapping[str, Any], out: Path, *, plots: bool) -> None:
    """The files of an evaluation. Raises OSError."""
    (out / "summary.json").write_text(json.dumps(report.summary(settings), indent=2) + "\n", "utf-8")
    (out / "tables.md").write_text(f"{told(report)}\n\n{markdown(report.tables())}", "utf-8")
    if plots:
        from governor_training.evaluation.plots import draw

        draw(report, out)


def told(report: Report) -> str:
    """The outcome in sentences, the headline's settings first."""
    found = report.findings
    base = found.ungoverned.figures
    lines = [conclusion(base, one.figures, one.name) for one in found.swept if one.policy == CALIBRATED]
    lines += [conclusion(base, one.figures, one.name) for one in found.swept if one.policy == THRESHOLD]
    return "\n".join(lines)


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    return {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items()}
