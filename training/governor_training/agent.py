"""An agent as people write them with the `openai` package. It knows nothing of the governor but a base
URL."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from openai import AsyncOpenAI

from governor.calls import CallSignature, canonical_arguments, tool_names
from governor.markup import reads_as_call
from governor_training.environment import Environment, Message, Task, Toolbox

MAX_TURNS = 8
MAX_TOKENS = 128
RIGHT = 0.999
"""The least score of a task that counts as done right."""


@dataclass(frozen=True, slots=True)
class Call:
    """An executed call. `turn` is the number of the assistant message that made it, from 0; `id` is the
    call's own, by which a record of it is found."""

    turn: int
    name: str
    arguments: str
    result: str
    read_only: bool = True
    id: str = ""

    @property
    def signature(self) -> CallSignature:
        return CallSignature(self.name, canonical_arguments(self.arguments))


@dataclass(slots=True)
class Run:
    """One task played to its end. `tokens` counts all that was asked of the engine, the governor's share
    too; `requests` counts the agent's own."""

    task: Task
    messages: list[Message] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    answer: str = ""
    score: float = 0.0
    malformed: int = 0
    seconds: float = 0.0
    tokens: Counter[str] = field(default_factory=Counter)
    own_tokens: Counter[str] = field(default_factory=Counter)
    """The governor's share, by what it was for: `probe_prompt`, `probe_completion`, `continuation_prompt`
    and so on."""
    requests: int = 0
    explanations: list[Mapping[str, Any]] = field(default_factory=list)
    """What the governor said of each turn; empty without it."""

    @property
    def correct(self) -> bool:
        return self.score >= RIGHT

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


class Chat(Protocol):
    """Answers a chat completion. `conversation` tells the agent's conversations apart."""

    async def __call__(self, body: dict[str, Any], conversation: str) -> Mapping[str, Any]:
        """The response's body; raises what the client raises."""
        ...


@dataclass(frozen=True, slots=True)
class OpenAIChat:
    """A server that speaks OpenAI's API, asked with the `openai` package."""

    client: AsyncOpenAI
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def at(cls, url: str, *, api_key: str = "none", explain: str = "") -> OpenAIChat:
        """The server at `url` (without `/v1`); `explain` is what a governor there is asked to tell.

        The client tries again as it does by default: between two turns a server may close the connection.
        """
        client = AsyncOpenAI(base_url=f"{url}/v1", api_key=api_key, timeout=600)
        return cls(client, {"x-governor-explain": explain} if explain else {})

    async def __call__(self, body: dict[str, Any], conversation: str) -> Mapping[str, Any]:
        response = await self.client.chat.completions.create(**body, extra_headers=self.headers)
        told: dict[str, Any] = response.model_dump(exclude_none=True)
        return told


class Agent:
    """Asks the model, runs the tools it calls, until it answers.

    `model` is the name it is served under, None: the environment's. `seed` goes along with every request
    where `temperature` is above 0.
    """

    def __init__(
        self,
        chat: Chat,
        environment: Environment,
        *,
        model: str | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        max_turns: int = MAX_TURNS,
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        self._chat, self._environment = chat, environment
        self._settings: dict[str, Any] = {
            "model": model or environment.model_name,
            "temperature": temperature,
            "max_tokens": max_tokens,
        }
        if temperature > 0 and seed is not None:
            self._settings["seed"] = seed
        self._max_turns = max_turns

    async def ask(self, task: Task) -> Run:
        run = Run(task, messages=[dict(message) for message in task.messages])
        began = time.monotonic()
        await self.go_on(run, self._environment.toolbox(task))
        run.seconds = time.monotonic() - began
        return run

    async def go_on(
        self, run: Run, toolbox: Toolbox, instead: Mapping[CallSignature, str] | None = None
    ) -> None:
        """Continues from `run.messages` to the end, and scores it. A call in `instead` gets that text in
        place of its result, every time."""
        while run.turns < self._max_turns:
            message = await self._turn(run)
            calls = message.get("tool_calls") or []
            if not calls:
                run.answer = message.get("content") or ""
                run.malformed += reads_as_call(run.answer, tool_names(run.task.tools or ()))
                break
            for call in calls:
                await self._execute(run, call, toolbox, instead or {})
        run.score = self._environment.score(run.task, run.answer, toolbox)

    async def _turn(self, run: Run) -> Message:
        body = {**self._settings, "messages": list(run.messages)}
        if run.task.tools:
            body["tools"] = list(run.task.tools)
        response = await self._chat(body, run.task.id)
        run.requests += 1
        run.tokens.update(_tokens(response.get("usage") or {}))
        if explanation := response.get("governor"):
            run.explanations.append(explanation)
            for purpose, usage in explanation["usage"].items():
                spent = _tokens(usage)
                run.tokens.update(spent)
                run.own_tokens.update({f"{purpose}_{kind}": number for kind, number in spent.items()})
        message: Message = response["choices"][0]["message"]
        run.messages.append(message)
        return message

    async def _execute(
        self, run: Run, call: Mapping[str, Any], toolbox: Toolbox, instead: Mapping[CallSignature, str]
    ) -> None:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        made = Call(run.turns - 1, name, arguments, "", name in self._environment.read_only, call["id"])
        parsed = object_of(arguments)
        if parsed is None:
            run.malformed += 1
            result = "error: the arguments are no JSON object"
        elif made.signature in instead:
            result = instead[made.signature]
        else:
            result = await _called(toolbox, name, parsed)
        run.calls.append(Call(made.turn, name, arguments, result, made.read_only, made.id))
        run.messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})


async def _called(toolbox: Toolbox, name: str, arguments: Mapping[str, Any]) -> str:
    """In a thread where the tools say that they wait for something (`waits`), so that other conversations go
    on meanwhile; a thread costs more than a tool that only computes."""
    if getattr(toolbox, "waits", False):
        return await asyncio.to_thread(toolbox.call, name, arguments)
    return toolbox.call(name, arguments)


def object_of(arguments: str) -> Mapping[str, Any] | None:
    """The arguments of a call, None where they are no JSON object."""
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _tokens(usage: Mapping[str, Any]) -> Counter[str]:
    return Counter(prompt=usage.get("prompt_tokens") or 0, completion=usage.get("completion_tokens") or 0)


def total(runs: Sequence[Run]) -> Counter[str]:
    """All tokens of all runs, by kind."""
    tokens: Counter[str] = Counter()
    for run in runs:
        tokens.update(run.tokens)
    return tokens
