"""An agent as people write them with the `openai` package. It knows nothing of the governor but a base
URL."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai import AsyncOpenAI

from governor.calls import CallSignature, canonical_arguments
from governor_training.atlas import chat
from governor_training.atlas.questions import Question
from governor_training.atlas.tools import ANSWERING, READ_ONLY, SAVING, Toolbox
from governor_training.atlas.world import World

MAX_TURNS = 8
MODEL = "atlas"

_ANSWER = re.compile(r"The [a-z]+ of .+ is (.+)\.")


@dataclass(frozen=True, slots=True)
class Call:
    """An executed call. `turn` is the number of the assistant message that made it, from 0."""

    turn: int
    name: str
    arguments: str
    result: str

    @property
    def read_only(self) -> bool:
        return self.name in READ_ONLY

    @property
    def signature(self) -> CallSignature:
        return CallSignature(self.name, canonical_arguments(self.arguments))


@dataclass(slots=True)
class Run:
    """One question played to its end. `tokens` counts all that was asked of the engine, the governor's share
    too."""

    question: Question
    messages: list[dict[str, Any]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    answer: str = ""
    malformed: int = 0
    seconds: float = 0.0
    tokens: Counter[str] = field(default_factory=Counter)
    explanations: list[Mapping[str, Any]] = field(default_factory=list)
    """What the governor said of each turn; empty without it."""

    @property
    def tools(self) -> Sequence[dict[str, Any]]:
        return SAVING if self.question.wording.saves else ANSWERING

    @property
    def correct(self) -> bool:
        """The right value was answered and, where it was to be saved, saved, once and nothing else."""
        said = _ANSWER.fullmatch(self.answer.strip())
        saved = self.notes == ([self.question.answer] if self.question.wording.saves else [])
        return said is not None and said[1] == self.question.answer and saved

    @property
    def turns(self) -> int:
        """How many messages of the model there are."""
        return sum(message["role"] == "assistant" for message in self.messages)

    @property
    def read_calls(self) -> int:
        return sum(call.read_only for call in self.calls)

    @property
    def decisions(self) -> list[Mapping[str, Any]]:
        return [decision for said in self.explanations for decision in said.get("decisions", ())]


class Agent:
    """Asks the model, runs the tools it calls, until it answers."""

    def __init__(
        self,
        client: AsyncOpenAI,
        world: World,
        *,
        headers: Mapping[str, str] | None = None,
        temperature: float = 0.0,
    ) -> None:
        self._client, self._world = client, world
        self._headers, self._temperature = dict(headers or {}), temperature

    async def ask(self, question: Question) -> Run:
        run = Run(question)
        run.messages = [
            {"role": "system", "content": chat.SYSTEM},
            {"role": "user", "content": question.text},
        ]
        began = time.monotonic()
        await self.go_on(run, Toolbox(self._world))
        run.seconds = time.monotonic() - began
        return run

    async def go_on(
        self, run: Run, toolbox: Toolbox, withheld: Mapping[CallSignature, str] | None = None
    ) -> None:
        """Continues from `run.messages`. A call in `withheld` gets that text in place of its result, every
        time."""
        while run.turns < MAX_TURNS:
            message = await self._turn(run)
            calls = message.get("tool_calls") or []
            if not calls:
                run.answer = message.get("content") or ""
                run.malformed += "<tool_call>" in run.answer
                break
            for call in calls:
                self._execute(run, call, toolbox, withheld or {})
        run.notes = toolbox.notes

    async def _turn(self, run: Run) -> dict[str, Any]:
        response = await self._client.chat.completions.create(
            model=MODEL,
            messages=run.messages,  # type: ignore[arg-type]
            tools=run.tools,  # type: ignore[arg-type]
            temperature=self._temperature,
            max_tokens=128,
            extra_headers=self._headers,
        )
        body = response.model_dump(exclude_none=True)
        run.tokens.update(_tokens(body["usage"]))
        if explanation := body.get("governor"):
            run.explanations.append(explanation)
            for usage in explanation["usage"].values():
                run.tokens.update(_tokens(usage))
        message: dict[str, Any] = body["choices"][0]["message"]
        run.messages.append(message)
        return message

    def _execute(
        self, run: Run, call: Mapping[str, Any], toolbox: Toolbox, withheld: Mapping[CallSignature, str]
    ) -> None:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        turn = run.turns - 1
        try:
            parsed = json.loads(arguments)
            made = Call(turn, name, arguments, "")
            result = withheld.get(made.signature) or toolbox.call(name, parsed)
        except (ValueError, TypeError):
            run.malformed += 1
            result = "error: the arguments are no JSON object"
            arguments = "{}"
        run.calls.append(Call(turn, name, arguments, result))
        run.messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})


def _tokens(usage: Mapping[str, Any]) -> Counter[str]:
    return Counter(prompt=usage.get("prompt_tokens") or 0, completion=usage.get("completion_tokens") or 0)
