"""A model in this process that answers chat completions: an engine for a laptop, a test, or an evaluation
between two steps of training.

Requests that wait are generated together. Nothing is cached between requests, so a real engine is faster on
anything but small models. Greedy answers do not depend on what else is in the batch, but for rounding; a
request's `seed` is not heeded.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteriaList,
)

from governor.spans import Markup
from governor_training.environment import Message

BATCH = 64
MAX_TOKENS = 128
BANNED = -50.0
"""A bias below this excludes a token."""


class InProcess:
    """Answers bodies of chat completions with `model`. `batch` is how many are generated together."""

    def __init__(
        self, model: Any, tokenizer: Any, *, batch: int = BATCH, markup: Markup | None = None
    ) -> None:
        self._model, self._tokenizer, self._batch = model.eval(), tokenizer, batch
        self._markup = markup or Markup()
        self._waiting: list[tuple[Mapping[str, Any], asyncio.Future[Mapping[str, Any]]]] = []
        self._worker: asyncio.Task[None] | None = None
        self._ids = count()
        self._texts: dict[int, str] = {}

    @classmethod
    def load(cls, model: str | Path, *, batch: int = BATCH) -> InProcess:
        """From a folder or a hub's name; in float32 where there is no GPU."""
        gpu = torch.cuda.is_available()
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto" if gpu else torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(model)
        return cls(loaded.to("cuda") if gpu else loaded, tokenizer, batch=batch)

    @property
    def vocab_size(self) -> int:
        return int(self._model.config.get_text_config().vocab_size)

    def token_id(self, text: str) -> int | None:
        """The id of the token `text`; None where it takes several."""
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return int(ids[0]) if len(ids) == 1 else None

    async def __call__(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The response to one chat completion."""
        future: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append((body, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            # All who can ask now do so before the batch is closed.
            await asyncio.sleep(0)
            taken, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
            try:
                answers = await asyncio.to_thread(self.answer, [body for body, _ in taken])
            except Exception as error:
                for _, future in taken:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(taken, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    @torch.inference_mode()
    def answer(self, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The responses to several chat completions, generated together."""
        prompts = [self._prompt(body) for body in bodies]
        inputs = self._padded(prompts)
        limits = [body.get("max_tokens") or MAX_TOKENS for body in bodies]
        generated = self._model.generate(
            **inputs,
            max_new_tokens=max(limits),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=self._pad,
            stopping_criteria=StoppingCriteriaList([_AllEnded(inputs["input_ids"].shape[1], limits)]),
            logits_processor=LogitsProcessorList([_AsAsked.of(bodies, self._device)]),
        )
        new = generated.sequences[:, inputs["input_ids"].shape[1] :]
        logprobs = torch.stack(generated.logits, 1).float().log_softmax(-1)
        return [
            self._response(body, len(prompt), new[row, :limit], logprobs[row, :limit])
            for row, (body, prompt, limit) in enumerate(zip(bodies, prompts, limits, strict=True))
        ]

    @property
    def _device(self) -> torch.device:
        device: torch.device = self._model.device
        return device

    @property
    def _pad(self) -> int:
        pad = self._tokenizer.pad_token_id
        return int(self._tokenizer.eos_token_id if pad is None else pad)

    def _prompt(self, body: Mapping[str, Any]) -> list[int]:
        ids: list[int] = self._tokenizer.apply_chat_template(
            list(body["messages"]),
            tools=body.get("tools") or None,
            add_generation_prompt=True,
            return_dict=False,
            **(body.get("chat_template_kwargs") or {}),
        )
        return ids

    def _padded(self, prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self._pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        return {"input_ids": ids.to(self._device), "attention_mask": mask.to(self._device)}

    def _response(
        self, body: Mapping[str, Any], prompt: int, ids: torch.Tensor, logprobs: torch.Tensor
    ) -> dict[str, Any]:
        ends = (ids == self._tokenizer.eos_token_id).nonzero()
        length = int(ends[0]) + 1 if len(ends) else len(ids)
        stopped = bool(len(ends))
        tokens = ids[:length].tolist()
        text = self._tokenizer.decode(tokens[: length - stopped], skip_special_tokens=False)
        message = parsed(text, self._markup, (f"call_{n}" for n in self._ids))
        top = int(body.get("top_logprobs") or 0)
        content = self._logprobs(tokens, logprobs, top) if body.get("logprobs") else None
        return {
            "id": "chat",
            "object": "chat.completion",
            "created": 0,
            "model": body.get("model", ""),
            "choices": [
                {
                    "index": 0,
                    "message": message,
                    "logprobs": None if content is None else {"content": content},
                    "finish_reason": _finish(message, stopped),
                }
            ],
            "usage": {"prompt_tokens": prompt, "completion_tokens": length, "total_tokens": prompt + length},
        }

    def _logprobs(self, tokens: Sequence[int], logprobs: torch.Tensor, top: int) -> list[dict[str, Any]]:
        values, ids = logprobs.topk(min(top, logprobs.shape[-1]))
        own = logprobs[torch.arange(len(tokens)), torch.tensor(tokens)].tolist()
        text = self._text
        return [
            {
                "token": text(token),
                "logprob": own[place],
                "top_logprobs": [
                    {"token": text(one), "logprob": value}
                    for one, value in zip(ids[place].tolist(), values[place].tolist(), strict=True)
                ],
            }
            for place, token in enumerate(tokens)
        ]

    def _text(self, token: int) -> str:
        """Remembered: the twenty likeliest tokens of every place are asked for."""
        if token not in self._texts:
            self._texts[token] = self._tokenizer.decode([token])
        return self._texts[token]


@dataclass(frozen=True, slots=True)
class _AllEnded:
    """Ends the batch when every row ended itself or reached its own limit."""

    prompt: int
    limits: Sequence[int]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        done = input_ids.shape[1] - self.prompt
        return torch.tensor([done >= limit for limit in self.limits], device=input_ids.device)


class _AsAsked(LogitsProcessor):
    """Each row with its own temperature and bans: one batch serves requests of every kind."""

    def __init__(self, temperatures: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._temperatures, self._bias = temperatures, bias

    @classmethod
    def of(cls, bodies: Sequence[Mapping[str, Any]], device: torch.device) -> _AsAsked:
        temperatures = [1.0 if body.get("temperature") is None else body["temperature"] for body in bodies]
        pairs = [
            (row, int(token), float(bias))
            for row, body in enumerate(bodies)
            for token, bias in (body.get("logit_bias") or {}).items()
        ]
        biases = torch.tensor(pairs, device=device).reshape(-1, 3) if pairs else None
        return cls(torch.tensor(temperatures, device=device).unsqueeze(1), biases)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._bias is not None:
            scores = scores.clone()
            rows, tokens, bias = self._bias[:, 0].long(), self._bias[:, 1].long(), self._bias[:, 2]
            banned = torch.where(bias <= BANNED, torch.full_like(bias, -torch.inf), bias)
            scores[rows, tokens] += banned.to(scores.dtype)
        best = torch.full_like(scores, -torch.inf).scatter(1, scores.argmax(1, keepdim=True), 0.0)
        warm = scores / self._temperatures.clamp(min=1e-3).to(scores.dtype)
        return torch.where(self._temperatures > 0, warm, best)


def parsed(text: str, markup: Markup, ids: Any) -> Message:
    """The message that a text says: reasoning, content and calls, as engines with a Hermes parser give it.

    A text whose calls are not all well formed is content as a whole.
    """
    message: Message = {"role": "assistant", "content": text}
    think, unthink = markup.reasoning
    if unthink in text:
        thought, _, rest = text.partition(unthink)
        reasoning = thought.removeprefix(think).strip("\n")
        message = {"role": "assistant", "content": rest.strip("\n")}
        if reasoning:
            message["reasoning"] = reasoning
    opening, closing = markup.call
    before, *bodies = str(message["content"]).split(opening)
    if not bodies:
        return message
    try:
        calls = [json.loads(body.split(closing)[0]) for body in bodies]
        message["tool_calls"] = [
            {
                "id": next(ids),
                "type": "function",
                "function": {
                    "name": str(call["name"]),
                    "arguments": json.dumps(call["arguments"], ensure_ascii=False),
                },
            }
            for call in calls
        ]
    except (ValueError, LookupError, TypeError):
        return message
    message["content"] = before.strip() or None
    return message


def _finish(message: Message, stopped: bool) -> str:
    if message.get("tool_calls"):
        return "tool_calls"
    return "stop" if stopped else "length"
