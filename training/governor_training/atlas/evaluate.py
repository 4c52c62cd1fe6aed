"""What the atlas model can do, asked through a real engine: every published figure of the model is printed
here."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, TypeVar

from openai import AsyncOpenAI
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from governor.errors import ProbeFailed
from governor.probe import ProbeSettings, probe_answer, probe_request
from governor_training.atlas import chat, replay
from governor_training.atlas.agent import MODEL, Agent, Run
from governor_training.atlas.questions import WORDINGS, Question, ask, held_out_sample
from governor_training.atlas.scores import Scored, auroc, calibration_error
from governor_training.atlas.tokenizer import VOCABULARY
from governor_training.atlas.tools import ANSWERING
from governor_training.atlas.world import World

CONCURRENCY = 4
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """The figures of one model. Shares are in [0, 1]; `closed_book` runs from the best-known quarter of the
    countries to the least-known one; `probe_*` are of forced answers with the tools in the prompt, before
    any call."""

    questions: int
    closed_book: list[float]
    accuracy: float
    calls_per_question: float
    avoidable_share: float
    malformed_calls: int
    probe_accuracy: float
    probe_calibration_error: float
    probe_auroc_logprob: float | None
    probe_auroc_margin: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> Table:
        table = Table(
            "what", "figure", "wanted", title=f"The atlas model, {self.questions} held-out questions"
        )
        quarters = " / ".join(f"{share:.1%}" for share in self.closed_book)
        table.add_row("facts known without tools, by quarter", quarters, ">= 95% ... <= 15%")
        table.add_row("accuracy with tools", f"{self.accuracy:.1%}", ">= 95%")
        table.add_row("calls per question", f"{self.calls_per_question:.2f}", ">= 1.6")
        table.add_row("avoidable share of the read-only calls", f"{self.avoidable_share:.1%}", ">= 55%")
        table.add_row("malformed calls", f"{self.malformed_calls}", "0")
        table.add_row("forced answers that are right", f"{self.probe_accuracy:.1%}", "")
        table.add_row("their expected calibration error", f"{self.probe_calibration_error:.3f}", "<= 0.1")
        table.add_row("AUROC of their log-probability", _figure(self.probe_auroc_logprob), ">= 0.85")
        table.add_row("AUROC of their least margin", _figure(self.probe_auroc_margin), "")
        return table


async def evaluate(engine: str, world: World, *, questions: int, seed: int, console: Console) -> ModelFigures:
    """Asks the engine at the URL `engine` all that `ModelFigures` holds."""
    client = AsyncOpenAI(base_url=f"{engine}/v1", api_key="none", timeout=600)
    agent = Agent(client, world)
    sample = held_out_sample(world, questions, seed)
    facts = [ask(world, fact.country, fact.field, None, WORDINGS[0]) for fact in world.facts.values()]
    known = await each("facts without tools", facts, lambda q: _closed_book(client, q), console)
    forced = await each("forced answers", sample, lambda q: _forced(client, q), console)
    runs = await each("questions with tools", sample, agent.ask, console)
    worth = await each("calls replayed", runs, lambda run: replay.values(agent, world, run), console)
    values = [value for run in worth for value in run]
    return ModelFigures(
        questions=len(sample),
        closed_book=_by_quarter(world, facts, known),
        accuracy=fmean([run.correct for run in runs]),
        calls_per_question=sum(len(run.calls) for run in runs) / len(runs),
        avoidable_share=fmean([value.avoidable for value in values]),
        malformed_calls=sum(run.malformed for run in runs),
        probe_accuracy=fmean([right for _, _, right in forced]),
        probe_calibration_error=calibration_error([(probability, right) for probability, _, right in forced]),
        probe_auroc_logprob=auroc([(probability, right) for probability, _, right in forced]),
        probe_auroc_margin=auroc([(margin, right) for _, margin, right in forced]),
    )


async def each(
    what: str, items: Sequence[Item], work: Callable[[Item], Awaitable[Result]], console: Console
) -> list[Result]:
    """The results of `work` on every item, in order, a few at a time, with a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    places = asyncio.Semaphore(CONCURRENCY)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"{what:24}", total=len(items))

        async def one(item: Item) -> Result:
            async with places:
                result = await work(item)
            progress.advance(task)
            return result

        return list(await asyncio.gather(*(one(item) for item in items)))


async def _closed_book(client: AsyncOpenAI, question: Question) -> bool:
    messages = [{"role": "system", "content": chat.SYSTEM}, {"role": "user", "content": question.text}]
    response = await client.chat.completions.create(
        model=MODEL,
        messages=messages,  # type: ignore[arg-type]
        temperature=0,
        max_tokens=64,
    )
    run = Run(question, answer=response.choices[0].message.content or "")
    return run.correct


async def _forced(client: AsyncOpenAI, question: Question) -> tuple[float, float, bool]:
    """Probability and least margin of the forced answer, and whether it is right. No answer has probability
    0."""
    body = {
        "model": MODEL,
        "messages": [{"role": "system", "content": chat.SYSTEM}, {"role": "user", "content": question.text}],
        "tools": list(ANSWERING),
    }
    request = probe_request(body, ProbeSettings(chat_template_kwargs={"enable_thinking": False}))
    response = await client.post("/chat/completions", body=request, cast_to=dict[str, Any])
    try:
        answer = probe_answer(response, VOCABULARY)
    except ProbeFailed:
        return 0.0, 0.0, False
    run = Run(question, answer=answer.text, notes=[question.answer] if question.wording.saves else [])
    return math.exp(answer.logprob), answer.least_margin, run.correct


def _by_quarter(world: World, questions: Sequence[Question], right: Sequence[bool]) -> list[float]:
    pairs: list[Scored] = [(world.quarter(q.country), ok) for q, ok in zip(questions, right, strict=True)]
    return [fmean([ok for quarter, ok in pairs if quarter == wanted]) for wanted in range(4)]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
