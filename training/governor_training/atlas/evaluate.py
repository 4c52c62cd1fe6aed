"""What the atlas model can do, asked through a real engine: every published figure of the model is printed
here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from openai import AsyncOpenAI
from rich.console import Console
from rich.table import Table

from governor.calls import tool_names
from governor.errors import ProbeFailed
from governor.probe import ProbeSettings, probe_answer, probe_request
from governor_training import replay
from governor_training.agent import Agent, OpenAIChat
from governor_training.atlas.environment import AtlasEnvironment, task_of
from governor_training.atlas.questions import WORDINGS, Question, ask
from governor_training.atlas.tools import ANSWERING, Toolbox
from governor_training.atlas.world import World
from governor_training.environment import Split, Task
from governor_training.pretraining.tokenizer import VOCABULARY
from governor_training.progress import each
from governor_training.scores import Scored, auroc, calibration_error


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


async def evaluate(engine: str, *, questions: int, seed: int, console: Console) -> ModelFigures:
    """Asks the engine at the URL `engine` all that `ModelFigures` holds."""
    atlas = AtlasEnvironment()
    world = atlas.world
    talk = OpenAIChat.at(engine)
    client = talk.client
    agent = Agent(talk, atlas)
    sample = atlas.tasks(questions, seed, Split.HELD_OUT)
    facts = [ask(world, fact.country, fact.field, None, WORDINGS[0]) for fact in world.facts.values()]
    known = await each("facts without tools", facts, lambda q: _closed_book(client, atlas, q), console)
    forced = await each("forced answers", sample, lambda task: _forced(client, atlas, task), console)
    runs = await each("questions with tools", sample, agent.ask, console)
    worth = await each("calls replayed", runs, lambda run: replay.values(agent, atlas, run), console)
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


async def _closed_book(client: AsyncOpenAI, atlas: AtlasEnvironment, question: Question) -> bool:
    task = task_of(question)
    response = await client.chat.completions.create(
        model=atlas.model_name,
        messages=list(task.messages),  # type: ignore[arg-type]
        temperature=0,
        max_tokens=64,
    )
    answer = response.choices[0].message.content or ""
    return atlas.score(task, answer, Toolbox(atlas.world)) == 1.0


async def _forced(client: AsyncOpenAI, atlas: AtlasEnvironment, task: Task) -> tuple[float, float, bool]:
    """Probability and least margin of the forced answer, and whether it is right. No answer has probability
    0."""
    body = {"model": atlas.model_name, "messages": list(task.messages), "tools": list(ANSWERING)}
    request = probe_request(body, ProbeSettings(chat_template_kwargs={"enable_thinking": False}))
    response = await client.post("/chat/completions", body=request, cast_to=dict[str, Any])
    try:
        answer = probe_answer(response, VOCABULARY, tools=tool_names(ANSWERING))
    except ProbeFailed:
        return 0.0, 0.0, False
    saved = Toolbox(atlas.world)
    if task.data.wording.saves:
        saved.save_note(task.data.answer)
    return math.exp(answer.logprob), answer.least_margin, atlas.score(task, answer.text, saved) == 1.0


def _by_quarter(world: World, questions: Sequence[Question], right: Sequence[bool]) -> list[float]:
    pairs: list[Scored] = [(world.quarter(q.country), ok) for q, ok in zip(questions, right, strict=True)]
    return [fmean([ok for quarter, ok in pairs if quarter == wanted]) for wanted in range(4)]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
