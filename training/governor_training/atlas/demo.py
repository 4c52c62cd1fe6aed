"""The demonstration: the same agent on the same questions, first observed, then governed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from governor.decision import Reason
from governor_training import replay
from governor_training.agent import Agent, OpenAIChat, Run
from governor_training.atlas.environment import AtlasEnvironment
from governor_training.atlas.picture import draw
from governor_training.compare import Arm, Comparison
from governor_training.environment import Split, Task
from governor_training.local import Stack
from governor_training.machine import machine, versions
from governor_training.progress import CONCURRENCY, each

WARM_UP_QUESTIONS = 8
TOLD = (Reason.CONFIDENT_ANSWER, Reason.UNCERTAIN_ANSWER, Reason.REPEATED_CALL)


def run(stack: Stack, out: Path, *, questions: int, seed: int, console: Console) -> Comparison:
    """Plays the questions through two governors before the engine of `stack`, prints what came of it and
    writes it to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    observing = stack.governor({"GOVERNANCE__MODE": "observe", "OBSERVE__PROBE": "false"})
    # Two hundred questions are no traffic to learn from: all of them are governed, and none is labelled.
    lots = {f"EXPERIMENT__{name}": "0" for name in ("HOLDOUT", "EXPLORATION", "LABELS")}
    enforcing = stack.governor({"GOVERNANCE__MODE": "enforce", **lots})
    return asyncio.run(_run(stack.engine, observing, enforcing, out, questions, seed, console))


async def _run(
    engine: str, observing: str, enforcing: str, out: Path, questions: int, seed: int, console: Console
) -> Comparison:
    atlas = AtlasEnvironment()
    sample = atlas.tasks(questions, seed, Split.HELD_OUT)
    bare = Agent(OpenAIChat.at(engine), atlas)
    observed = Agent(OpenAIChat.at(observing), atlas)
    governed = Agent(OpenAIChat.at(enforcing, explain="1"), atlas)
    warm_up = atlas.tasks(WARM_UP_QUESTIONS, seed + 1, Split.HELD_OUT)
    for agent in (observed, governed):
        await asyncio.gather(*map(agent.ask, warm_up))

    before = await each("governor observes", sample, observed.ask, console)
    after = await each("governor enforces", sample, governed.ask, console)
    worth = await each(
        "true value of the calls", before, lambda run: replay.values(bare, atlas, run), console
    )
    comparison = Comparison.of(before, after, worth, atlas.effectful)

    picture = out / "conversation.png"
    # The conversation from which the governor removed most calls.
    telling = _most_telling(before, after)
    rows = {"ungoverned": observing, "governed": enforcing}
    runs = {
        name: await Agent(OpenAIChat.at(url, explain="tokens"), atlas).ask(telling)
        for name, url in rows.items()
    }
    draw(telling, runs, picture)
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

    question = {"question": before.task.text, "expected": before.task.expected}
    return {**question, "ungoverned": side(before), "governed": side(after), "decisions": after.decisions}


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
            console.print(f"[bold]“{run.task.text}”[/bold]", highlight=False)
            console.print(f"  The model proposed {decision['tool']}({arguments}).", highlight=False)
            console.print(f"  {decision['explanation']}", highlight=False)
            console.print(f"  In the end it said: “{run.answer.strip()}”\n", highlight=False)


def _most_telling(before: Sequence[Run], after: Sequence[Run]) -> Task:
    """A question where the result of one call was needed and the calls after it were not, if there is one."""

    def interest(pair: tuple[Run, Run]) -> tuple[bool, int]:
        first, second = pair
        telling = second.correct and not second.task.data.wording.saves and second.read_calls == 1
        return telling, len(first.calls) - len(second.calls)

    return max(zip(before, after, strict=True), key=interest)[0].task


def _settings(questions: int, seed: int) -> dict[str, Any]:
    """What somebody needs to run it again."""
    return {
        "questions": questions,
        "seed": seed,
        "temperature": 0,
        "concurrency": CONCURRENCY,
        **machine(),
        "versions": versions(),
    }
