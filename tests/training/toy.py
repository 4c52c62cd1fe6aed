"""A toy environment, and a model that plays it by a rule: no engine, no randomness.

The task is to say a number. Number n is known to the model by heart if n is even; else it must be fetched.
The model fetches in any case, twice if n is divisible by three, and then saves it where there is a tool to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from governor.notices import is_notice
from governor_training.environment import NotEnoughTasks, Split, Task
from governor_training.environment import Toolbox as AnyToolbox


def schema(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


FETCH, SAVE = schema("fetch"), schema("save")


class ToyToolbox:
    def __init__(self, number: int) -> None:
        self.number = number
        self.saved: list[str] = []

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        if name == "save":
            self.saved.append(str(arguments.get("name")))
            return "saved"
        return str(self.number) if name == "fetch" else "error: no such tool"


class Toy:
    """Tasks 0, 1, 2, ...; with `saves` each answer is to be saved too."""

    name = "toy"
    model_name = "toy"
    read_only = frozenset({"fetch"})
    effectful = frozenset({"save"})

    def __init__(self, saves: bool = False, most: int = 1000) -> None:
        self.saves, self.most = saves, most

    def tasks(self, count: int, seed: int, split: Split) -> Sequence[Task]:
        if count > self.most:
            raise NotEnoughTasks(f"there are {self.most}")
        first = 10_000 * (split is Split.TRAIN) + seed
        return [self.task(first + place) for place in range(count)]

    def task(self, number: int) -> Task:
        tools = (FETCH, SAVE) if self.saves else (FETCH,)
        messages = ({"role": "user", "content": f"Number {number}?"},)
        return Task(str(number), messages, tools, str(number), number)

    def toolbox(self, task: Task) -> ToyToolbox:
        return ToyToolbox(task.data)

    def score(self, task: Task, answer: str, toolbox: AnyToolbox) -> float:
        saved = isinstance(toolbox, ToyToolbox) and toolbox.saved == ([str(task.data)] if self.saves else [])
        return float(answer == str(task.data) and saved)


class ToyModel:
    """An engine that serves the toy model over the chat API's bodies; counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Mapping[str, Any]] = []

    async def __call__(self, body: Mapping[str, Any], conversation: str = "") -> Mapping[str, Any]:
        self.asked.append(body)
        number = int(body["messages"][0]["content"].removeprefix("Number ").removesuffix("?"))
        results = [message["content"] for message in body["messages"] if message["role"] == "tool"]
        fetched = str(number) in results
        known = number % 2 == 0
        answer = str(number) if known or fetched else "0"
        sure = known or fetched
        forced = body.get("tool_choice") == "none"
        if forced:
            return response(body, text=answer, sure=sure)
        fetches = sum(result == str(number) for result in results)
        noticed = any(is_notice(result) for result in results)
        if not noticed and fetches < (2 if number % 3 == 0 else 1):
            return response(body, call=("fetch", {"name": "n"}), sure=sure)
        saves = any(tool["function"]["name"] == "save" for tool in body.get("tools") or ())
        if saves and "saved" not in results:
            return response(body, call=("save", {"name": answer}), sure=sure)
        return response(body, text=answer, sure=sure)


def response(
    body: Mapping[str, Any],
    *,
    text: str = "",
    call: tuple[str, Mapping[str, Any]] | None = None,
    sure: bool = True,
) -> dict[str, Any]:
    """A chat completion; the tokens of a text are its characters."""
    message: dict[str, Any] = {"role": "assistant", "content": text or None}
    said = list(text)
    if call is not None:
        arguments = json.dumps(call[1])
        identity = f"call_{len(body['messages'])}"
        function = {"name": call[0], "arguments": arguments}
        message["tool_calls"] = [{"id": identity, "type": "function", "function": function}]
        said = ["<tool_call>", f'{{"name": "{call[0]}", "arguments": ', arguments, "}", "</tool_call>"]
    choice: dict[str, Any] = {
        "index": 0,
        "message": message,
        "finish_reason": "tool_calls" if call else "stop",
        "logprobs": {"content": [_token(token, sure) for token in said]} if body.get("logprobs") else None,
    }
    usage = {"prompt_tokens": 10 * len(body["messages"]), "completion_tokens": len(said)}
    return {"id": "chat_1", "created": 0, "model": body["model"], "choices": [choice], "usage": usage}


def _token(text: str, sure: bool) -> dict[str, Any]:
    first = -0.01 if sure else -0.7
    top = [{"token": text, "logprob": first}, {"token": "~", "logprob": -4.7 if sure else -0.71}]
    return {"token": text, "logprob": first, "top_logprobs": top}
