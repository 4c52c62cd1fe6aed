"""What the agents of this directory share: the question, the tools, and what came of it.

Each of them is a program in the environment of `scripts/clients`, started with `-m`: one line of JSON with
the jobs comes in, one line for each goes out. None knows of a governor, only of a base URL.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from governor_training.atlas.tools import ANSWERING, SAVING, Toolbox
from governor_training.atlas.world import load_world
from governor_training.pretraining.chat import SYSTEM

MODEL = "atlas"
API_KEY = "none"
MAX_TOKENS = 128
MAX_TURNS = 8
__all__ = ["API_KEY", "MAX_TOKENS", "MAX_TURNS", "MODEL", "SYSTEM", "Desk", "Ending", "Job", "loop", "main"]


@dataclass(frozen=True, slots=True)
class Job:
    """One conversation to have. `url` ends in `/v1`."""

    url: str
    stream: bool
    question: str


@dataclass(frozen=True, slots=True)
class Ending:
    """What the framework made of it. `finishes` are the finish reasons of the model's turns, as far as the
    framework tells them."""

    answer: str
    finishes: Sequence[str] = ()


@dataclass(slots=True)
class Desk:
    """The tools of one conversation, in OpenAI's shape and as functions, and the calls that were run."""

    definitions: Sequence[Mapping[str, Any]]
    calls: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    toolbox: Toolbox = field(default_factory=lambda: Toolbox(load_world()))

    @classmethod
    def of(cls, job: Job) -> Desk:
        return cls(SAVING if "notes" in job.question else ANSWERING)

    @property
    def functions(self) -> list[Mapping[str, Any]]:
        """Name, description and parameters of each tool."""
        return [tool["function"] for tool in self.definitions]

    def run(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The result of a call."""
        self.calls.append((name, dict(arguments)))
        return self.toolbox.call(name, arguments)


Play = Callable[[Job, Desk], Awaitable[Ending]]
Turn = Callable[[list[dict[str, Any]]], Awaitable[tuple[dict[str, Any], str]]]
"""The model's next message after those given, and its finish reason."""


async def loop(job: Job, desk: Desk, turn: Turn) -> Ending:
    """The loop of an agent, for clients that have none of their own."""
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": job.question},
    ]
    finishes: list[str] = []
    for _ in range(MAX_TURNS):
        message, finish = await turn(messages)
        finishes.append(finish)
        messages.append(message)
        calls = message.get("tool_calls") or []
        if not calls:
            return Ending(message.get("content") or "", finishes)
        for call in calls:
            result = desk.run(call["function"]["name"], json.loads(call["function"]["arguments"]))
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
    raise RuntimeError(f"no answer after {MAX_TURNS} turns")


def main(play: Play) -> None:
    """Have the conversations that standard input names, one after the other."""
    asyncio.run(_all(play, [Job(**job) for job in json.loads(sys.stdin.readline())]))


async def _all(play: Play, jobs: Sequence[Job]) -> None:
    for job in jobs:
        desk = Desk.of(job)
        ending = await play(job, desk)
        told = {**asdict(ending), "calls": desk.calls, "notes": desk.toolbox.notes}
        sys.stdout.write(json.dumps(told) + "\n")
