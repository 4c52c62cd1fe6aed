"""A conversation as tokens: which of them the model generated, in which turn, and how certain it was.

The chat template is the only thing that says how messages become tokens, and it may do anything: drop
earlier reasoning, add an empty thought. So each turn is rendered twice, with what the model was asked and
with what it said; what the two differ in is what it generated. Where a turn's question begins with the turn
before it, both are one sequence; where not, another one begins. So the model is trained on what it saw.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from governor.request import REASONING_KEYS
from governor.rewards import SpanChoice, segment_entropy
from governor.spans import Markup, Span, spans
from governor_training.environment import Message
from governor_training.errors import UsageError
from governor_training.finetuning.trajectory import Trajectory

CONTEXT = -1
"""The turn of a token that the model did not generate."""
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Rendered:
    """One turn of the model as text: what it was asked with, and what it said, its end token included."""

    turn: int
    prompt: str
    said: str


@dataclass(slots=True)
class Encoded:
    """A sequence of tokens. `turns[i]` is the turn that token i was generated in, or `CONTEXT`."""

    ids: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)

    def add(self, ids: Sequence[int], turn: int) -> None:
        self.ids += ids
        self.turns += [turn] * len(ids)

    def span(self, turn: int) -> tuple[int, int]:
        """[start, stop) of a turn; empty at 0 where it has none."""
        places = [place for place, one in enumerate(self.turns) if one == turn]
        return (places[0], places[-1] + 1) if places else (0, 0)


@dataclass(frozen=True, slots=True)
class Part:
    """The tokens [start, stop) of a sequence that are one turn, with their texts and spans."""

    start: int
    stop: int
    texts: Sequence[str]
    spans: Sequence[Span]

    def entropy(self, entropies: Sequence[float], choice: SpanChoice, results: Sequence[str]) -> float | None:
        """Of the turn, in nats. `entropies` are those of the sequence's tokens, `results` the texts of the
        tools' results."""
        return segment_entropy(entropies[self.start : self.stop], self.texts, self.spans, choice, results)


class Encoder:
    """Encodes conversations with a tokenizer and its chat template. `template` are arguments for it."""

    def __init__(
        self, tokenizer: Any, *, markup: Markup | None = None, template: Mapping[str, Any] | None = None
    ) -> None:
        if not tokenizer.chat_template:
            raise UsageError(f"the tokenizer of {tokenizer.name_or_path} has no chat template")
        self.tokenizer = tokenizer
        self.markup = markup or Markup()
        self._template = dict(template or {})
        self._takes_text = _takes_arguments_as_text(tokenizer)
        self._adds_bos = bool(tokenizer.bos_token) and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]

    def rendered(self, trajectory: Trajectory) -> Iterator[Rendered]:
        """The turns of the model that are not given, as text. Raises `UsageError` where the template does not
        tell the question from the answer."""
        turn = -1
        for place, message in enumerate(trajectory.messages):
            if message["role"] != "assistant":
                continue
            turn += 1
            if turn >= trajectory.given:
                before = trajectory.messages[:place]
                if trajectory.forgetful:
                    before = [_without_reasoning(one) for one in before]
                yield self.turn(turn, before, message, trajectory)

    def turn(
        self, number: int, before: Sequence[Message], message: Message, trajectory: Trajectory
    ) -> Rendered:
        """What the model said after the messages `before`. Raises `UsageError`."""
        prompt = self._text(before, trajectory.tools, True)
        whole = self._text([*before, message], trajectory.tools, False)
        if not whole.startswith(prompt):
            raise UsageError(
                f"{trajectory.where}: the chat template of {self.tokenizer.name_or_path} writes the beginning"
                " of a conversation otherwise once the answer follows, so that nobody can tell what the model"
                " generated (use a template that keeps the beginning)"
            )
        return Rendered(number, prompt, whole[len(prompt) :].rstrip())

    def encode(self, trajectory: Trajectory) -> list[Encoded]:
        """The sequences of a conversation, each turn that is not given in one of them. Raises
        `UsageError`."""
        found: list[Encoded] = []
        text = ""
        for turn in self.rendered(trajectory):
            if not found or not turn.prompt.startswith(text):
                found.append(Encoded())
                text = ""
            found[-1].add(self._ids(turn.prompt[len(text) :], first=not text), CONTEXT)
            found[-1].add(self._ids(turn.said), turn.turn)
            text = turn.prompt + turn.said
        return found

    def plain(self, text: str) -> str:
        """A prompt for someone who adds the token that begins a sequence again."""
        return text.removeprefix(self.tokenizer.bos_token) if self._adds_bos else text

    def segment_entropies(
        self, encoded: Encoded, entropies: Sequence[float], choice: SpanChoice, results: Sequence[str]
    ) -> dict[int, float | None]:
        """The entropy of each turn in a sequence, in nats. `entropies[i]` is of the distribution that token i
        was drawn from; `results` are the texts of the tools' results."""
        return {turn: part.entropy(entropies, choice, results) for turn, part in self.parts(encoded).items()}

    def parts(self, encoded: Encoded) -> dict[int, Part]:
        """The turns of a sequence with their spans."""
        found = {}
        for turn in dict.fromkeys(encoded.turns):
            if turn != CONTEXT:
                start, stop = encoded.span(turn)
                texts = [self.tokenizer.decode([token]) for token in encoded.ids[start:stop]]
                found[turn] = Part(start, stop, texts, spans(texts, self.markup))
        return found

    def _text(self, messages: Sequence[Message], tools: Sequence[Any], asking: bool) -> str:
        shaped = [message if self._takes_text else _parsed_arguments(message) for message in messages]
        text: str = self.tokenizer.apply_chat_template(
            shaped,
            tools=list(tools) or None,
            add_generation_prompt=asking,
            tokenize=False,
            **self._template,
        )
        return text

    def _ids(self, text: str, *, first: bool = False) -> list[int]:
        ids: list[int] = self.tokenizer(
            self.plain(text) if first else text, add_special_tokens=first and self._adds_bos
        ).input_ids
        return ids


@torch.no_grad()
def exact_entropies(model: Any, sequences: Sequence[Encoded], pad: int) -> list[list[float]]:
    """For each token of each sequence the entropy, in nats, of the distribution that the model gives for its
    place, over the whole vocabulary and at temperature 1; 0 where the model did not generate it.

    `model` must have TRL's fused head with the output "entropy", so that no logits of (B, T, V) are ever
    made.
    """
    ids = _padded([one.ids for one in sequences], pad).to(model.device)
    labels = _padded([_labels(one) for one in sequences], IGNORED).to(model.device)
    mask = _padded([[1] * len(one.ids) for one in sequences], 0).to(model.device)
    found = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).entropy
    # The head is aligned with the labels from the second one on.
    rows = found.float().cpu().tolist()
    return [[0.0, *row][: len(one.ids)] for row, one in zip(rows, sequences, strict=True)]


def _labels(sequence: Encoded) -> list[int]:
    return [
        token if turn != CONTEXT else IGNORED
        for token, turn in zip(sequence.ids, sequence.turns, strict=True)
    ]


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def _without_reasoning(message: Message) -> Message:
    return {key: value for key, value in message.items() if key not in REASONING_KEYS}


def _takes_arguments_as_text(tokenizer: Any) -> bool:
    """Whether the template writes arguments that are text as they are, and not as a JSON string. The text is
    what the model wrote, to the last space."""
    arguments = '{"probe": 1}'
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:
        # Templates raise what they like; one that insists on an object is given one.
        return False
    return arguments in text and f'"{arguments}"' not in text


def _parsed_arguments(message: Message) -> Message:
    if not message.get("tool_calls"):
        return message
    return {**message, "tool_calls": [_with_object(call) for call in message["tool_calls"]]}


def _with_object(call: Mapping[str, Any]) -> Mapping[str, Any]:
    arguments = call["function"].get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        return {**call, "function": {**call["function"], "arguments": json.loads(arguments)}}
    except ValueError:
        return call
