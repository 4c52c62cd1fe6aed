"""A policy plays tasks with real tools, and every token is kept as it was generated.

Token in, token out: the ids that the model wrote are the ids that it is trained on, and what comes between
its turns (results, headers) is rendered by the chat template and appended. Nothing is ever tokenized a second
time, so that a token's gradient belongs to the token that was drawn.

All rollouts of a batch take their turns together: one generation a turn for all that still play.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from governor.rewards.baselines import RIGHT
from governor.spans import Markup, Span, SpanKind, spans
from governor_training.environment import Environment, Message, Task, Toolbox

Ids = list[int]
Generate = Callable[[Sequence[Ids]], tuple[Sequence[Ids], Sequence[Sequence[float]] | None]]
"""From prompts to what the model writes behind each, the end token included, and, where the engine tells
them, the log-probabilities of these tokens."""

TOOL_THREADS = 32
"""Calls of tools that wait for something, at once."""


@dataclass(frozen=True, slots=True)
class PlayedCall:
    """An executed call. `turn` is the number of the turn that made it, from 0."""

    turn: int
    name: str
    arguments: str
    result: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class PlayedTurn:
    """What the model wrote in one go: tokens [start, stop) of the completion, with their texts and spans
    (counted from `start`)."""

    start: int
    stop: int
    texts: tuple[str, ...]
    spans: tuple[Span, ...]


@dataclass(slots=True)
class Rollout:
    """One task played by the policy. `completion` is everything behind the prompt, `mask` 1 where the model
    wrote it; `logprobs` are those of the sampler, 0 where it did not, None where the engine tells none.
    `finished` is False where a limit ended it; its score is then that of no answer."""

    task: Task
    prompt: Ids
    completion: Ids = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] | None = None
    turns: list[PlayedTurn] = field(default_factory=list)
    calls: list[PlayedCall] = field(default_factory=list)
    answer: str = ""
    score: float = 0.0
    finished: bool = False

    @property
    def correct(self) -> bool:
        return self.score >= RIGHT

    @property
    def read_calls(self) -> int:
        """How many of its calls only asked for information. The rewards are about these."""
        return sum(call.read_only for call in self.calls)


@dataclass(frozen=True, slots=True)
class Limits:
    """`turns` of the model, and `tokens` of a whole completion, results included."""

    turns: int = 8
    tokens: int = 512


class ChatFormat:
    """A tokenizer's chat template, in ids, and how the model marks its spans.

    `template` in the place of the tokenizer's own; `options` go to it (`enable_thinking`, for instance);
    `ends` are the ids that end a turn, None: the tokenizer's. Results are rendered with a stand-in for the
    conversation before them, as TRL does it.
    """

    def __init__(
        self,
        tokenizer: Any,
        markup: Markup | None = None,
        *,
        template: str | None = None,
        options: Mapping[str, Any] | None = None,
        ends: Collection[int] | None = None,
    ) -> None:
        self._tokenizer, self._markup = tokenizer, markup or Markup()
        self.ends = frozenset([tokenizer.eos_token_id] if ends is None else ends)
        self._options = {**(options or {}), **({"chat_template": template} if template else {})}
        self._texts: dict[int, str] = {}

    def prompt(self, task: Task, *, tools: bool = True) -> Ids:
        """The ids of a task's first messages, up to where the model begins to write; without its `tools` on
        request."""
        offered = list(task.tools) if tools and task.tools else None
        return self._render(list(task.messages), tools=offered, add_generation_prompt=True)

    def results(self, messages: Sequence[Message]) -> Ids:
        """The ids of the results of one turn's calls, from behind its end token up to where the model goes
        on. Raises ValueError for a template in which a result changes what stands before it."""
        call = {"type": "function", "function": {"name": messages[0]["name"], "arguments": {}}}
        before: list[Message] = [
            {"role": "user", "content": "dummy"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        head = self._render(before, add_generation_prompt=False)
        whole = self._render([*before, *messages], add_generation_prompt=True)
        # What the template writes behind the last end token was not written by the model.
        head = head[: max((place + 1 for place, id in enumerate(head) if id in self.ends), default=None)]
        if whole[: len(head)] != head:
            raise ValueError("this chat template rewrites earlier turns when a result comes: give another")
        return whole[len(head) :]

    def turn(self, ids: Ids, start: int, prompt: Ids) -> PlayedTurn:
        """What the model wrote, at `start` of the completion, behind `prompt`."""
        texts = tuple(self._piece(id) for id in ids)
        thinking = self._markup.reasoning[0]
        opened = bool(thinking) and self._ending(prompt).rstrip().endswith(thinking)
        found = spans(texts, self._markup, starts_in_reasoning=opened)
        return PlayedTurn(start, start + len(ids), texts, found)

    def content(self, turn: PlayedTurn, ids: Ids) -> str:
        """The turn as a client reads it: without reasoning, calls and end token."""
        parts = [ids[s.start : s.stop] for s in turn.spans if s.kind is SpanKind.CONTENT]
        return "".join(self.text(part) for part in parts)

    def text(self, ids: Sequence[int]) -> str:
        """The tokens as text, special ones left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def calls(self, turn: PlayedTurn, ids: Ids) -> list[tuple[str, str]] | None:
        """Name and arguments (as JSON) of each call of a turn; None where one cannot be read."""
        found = []
        for span in turn.spans:
            if span.kind is SpanKind.CALL:
                call = _call(self._tokenizer.decode(ids[span.start : span.stop]))
                if call is None:
                    return None
                found.append(call)
        return found

    def _render(self, messages: list[Message], **how: Any) -> Ids:
        ids = self._tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=False, **how, **self._options
        )
        return list(ids)

    def _ending(self, prompt: Ids) -> str:
        return "".join(self._piece(id) for id in prompt[-4:])

    def _piece(self, id: int) -> str:
        text = self._texts.get(id)
        if text is None:
            text = self._texts[id] = self._tokenizer.decode([id])
        return text


def _call(text: str) -> tuple[str, str] | None:
    """A call as Qwen and Hermes write it: {"name": ..., "arguments": {...}}."""
    try:
        call = json.loads(text)
        name, arguments = call["name"], call["arguments"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return name, json.dumps(arguments, ensure_ascii=False)


def _here(playing: bool) -> bool:
    return playing


class Player:
    """Plays tasks of `environment` in the given format, within `limits`.

    `anywhere` says whether any process still plays, given whether this one does. A model that is spread over
    processes can only be run by all of them: one that has finished goes on generating for nobody.
    """

    def __init__(
        self,
        environment: Environment,
        chat: ChatFormat,
        limits: Limits,
        anywhere: Callable[[bool], bool] = _here,
    ) -> None:
        self._environment, self._chat, self._limits = environment, chat, limits
        self._anywhere = anywhere

    def play(
        self, tasks: Sequence[Task], generate: Generate, *, without_tools: Sequence[bool] = ()
    ) -> list[Rollout]:
        """One rollout for each of `tasks`, in order. Where `without_tools` is true the task's tools are not
        offered, and a call ends the rollout."""
        bare = list(without_tools) or [False] * len(tasks)
        rollouts = [
            Rollout(task, self._chat.prompt(task, tools=not without))
            for task, without in zip(tasks, bare, strict=True)
        ]
        boxes = [self._environment.toolbox(task) for task in tasks]
        playing = list(range(len(tasks)))
        while self._anywhere(bool(playing)):
            contexts = [rollouts[i].prompt + rollouts[i].completion for i in playing]
            written, logprobs = generate(contexts)
            for place, i in enumerate(playing):
                said = None if logprobs is None else list(logprobs[place])
                self._write(rollouts[i], list(written[place]), said, contexts[place])
            wanted = [(i, made) for i in playing if (made := self._wanted(rollouts[i], bare[i]))]
            answered = self._execute([(rollouts[i], boxes[i], made) for i, made in wanted])
            playing = [
                i
                for (i, _), results in zip(wanted, answered, strict=True)
                if self._append(rollouts[i], results)
            ]
        for rollout, box in zip(rollouts, boxes, strict=True):
            rollout.score = self._environment.score(rollout.task, rollout.answer, box)
        return rollouts

    def _write(self, rollout: Rollout, ids: Ids, logprobs: list[float] | None, context: Ids) -> None:
        room = self._limits.tokens - len(rollout.completion)
        cut = len(ids) > room
        ids = ids[:room]
        rollout.turns.append(self._chat.turn(ids, len(rollout.completion), context))
        if logprobs is not None:
            before = rollout.logprobs or [0.0] * len(rollout.completion)
            rollout.logprobs = before + logprobs[:room]
        rollout.completion += ids
        rollout.mask += [1] * len(ids)
        rollout.finished = not cut and bool(ids) and ids[-1] in self._chat.ends

    def _wanted(self, rollout: Rollout, bare: bool) -> list[tuple[str, str]]:
        """The calls to execute. Where there are none the rollout has ended, with an answer unless a limit
        ended it."""
        turn = rollout.turns[-1]
        ids = rollout.completion[turn.start : turn.stop]
        calls = self._chat.calls(turn, ids)
        if not rollout.finished:
            return []
        if calls is None:
            # What no parser reads as a call reaches a client as text.
            rollout.answer = "".join(turn.texts)
            return []
        if not calls:
            rollout.answer = self._chat.content(turn, ids)
            return []
        if bare or len(rollout.turns) >= self._limits.turns:
            rollout.finished = False
            return []
        return calls

    def _execute(
        self, asked: Sequence[tuple[Rollout, Toolbox, list[tuple[str, str]]]]
    ) -> list[list[PlayedCall]]:
        """The calls of one turn are executed in order; those of different rollouts at once where the tools
        say that they wait for something."""

        def one(rollout: Rollout, box: Toolbox, calls: list[tuple[str, str]]) -> list[PlayedCall]:
            return list(self._called(rollout, box, calls))

        if any(getattr(box, "waits", False) for _, box, _ in asked):
            with ThreadPoolExecutor(TOOL_THREADS) as threads:
                return list(threads.map(lambda work: one(*work), asked))
        return [one(*work) for work in asked]

    def _called(self, rollout: Rollout, box: Toolbox, calls: list[tuple[str, str]]) -> Iterator[PlayedCall]:
        for name, arguments in calls:
            result = box.call(name, json.loads(arguments))
            read_only = name in self._environment.read_only
            yield PlayedCall(len(rollout.turns) - 1, name, arguments, result, read_only)

    def _append(self, rollout: Rollout, calls: list[PlayedCall]) -> bool:
        """Puts the results into the context; whether there is room to go on."""
        rollout.calls += calls
        messages = [{"role": "tool", "name": call.name, "content": call.result} for call in calls]
        ids = self._chat.results(messages)
        if len(rollout.completion) + len(ids) >= self._limits.tokens:
            rollout.finished = False
            return False
        rollout.completion += ids
        rollout.mask += [0] * len(ids)
        if rollout.logprobs is not None:
            rollout.logprobs += [0.0] * len(ids)
        return True
