"""Traffic for the dashboard: an agent that asks the demonstration's questions, one after the other, without
end."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
from openai import AsyncOpenAI
from rich.console import Console

from governor_training.agent import Agent
from governor_training.atlas.environment import AtlasEnvironment
from governor_training.environment import Split, Task
from governor_training.local import Stack

AGENTS = 3
"""Conversations at the same time."""
BATCH = 500
PAUSE_S = 0.5
"""Between two questions of an agent: people look on."""

SETTINGS = {
    "GOVERNANCE__MODE": "enforce",
    # One tenant: feedback finds a conversation under the name that the agent gave it.
    "AUTH__ISOLATION": "none",
    # Enough is held out and labelled that a few minutes show something.
    "EXPERIMENT__HOLDOUT": "0.3",
    "EXPERIMENT__LABELS": "1.0",
    "STORE__KEEP_TEXT": "true",
    "STORE__KEEP_CONVERSATIONS": "true",
    "PRUNING__POLICY": "low_value",
    # Made up, like the tools.
    "PRICES__PROMPT_PER_MILLION": "0.5",
    "PRICES__COMPLETION_PER_MILLION": "1.5",
    "PRICES__PER_CALL": '{"*": 0.002}',
}


@dataclass(frozen=True, slots=True)
class NamedChat:
    """A governor that is told the name of each conversation, so that feedback finds it."""

    client: AsyncOpenAI

    async def __call__(self, body: dict[str, Any], conversation: str) -> Mapping[str, Any]:
        headers = {"x-governor-conversation": conversation}
        response = await self.client.chat.completions.create(**body, extra_headers=headers)
        told: dict[str, Any] = response.model_dump(exclude_none=True)
        return told


def run(stack: Stack, out: Path, *, seed: int, questions: int | None, console: Console) -> None:
    """Starts a governor before the engine of `stack`, says where its dashboard is, and asks until it is
    interrupted, or `questions`."""
    out.mkdir(parents=True, exist_ok=True)
    store = out / "records.db"
    for left in out.glob(f"{store.name}*"):
        left.unlink()
    url = stack.governor({**SETTINGS, "STORE__PATH": str(store.absolute())})
    console.print(f"The dashboard: {url}/dashboard", style="bold")
    console.print("Agents ask until you press Ctrl-C.")
    with suppress(KeyboardInterrupt):
        asyncio.run(_ask(url, _tasks(seed, questions)))


def _tasks(seed: int, questions: int | None) -> Iterator[Task]:
    """Each batch is another one, and a question that comes again is another conversation."""
    atlas = AtlasEnvironment()
    batches = (atlas.tasks(BATCH, seed + number, Split.HELD_OUT) for number in itertools.count())
    asked = itertools.islice(itertools.chain.from_iterable(batches), questions)
    return (replace(task, id=f"{number:05} {task.id}") for number, task in enumerate(asked, 1))


async def _ask(url: str, tasks: Iterator[Task]) -> None:
    chat = NamedChat(AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=600))
    agent = Agent(chat, AtlasEnvironment())
    async with aiohttp.ClientSession(url) as session:

        async def one() -> None:
            for task in tasks:
                done = await agent.ask(task)
                told = {"conversation": task.id, "passed": done.correct}
                async with session.post("/governor/feedback", json=told) as response:
                    response.raise_for_status()
                await asyncio.sleep(PAUSE_S)

        await asyncio.gather(*(one() for _ in range(AGENTS)))
