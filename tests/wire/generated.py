"""Bodies in vLLM's shape for any message, so that the same generation can be had streamed and whole."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ID = "chatcmpl-1"
CREATED = 1795334660
USAGE = {"prompt_tokens": 100, "total_tokens": 120, "completion_tokens": 20}


@dataclass(frozen=True, slots=True)
class Generated:
    """A generation. `calls` are (id, tool, arguments); `top` is the number of top_logprobs, None for no
    logprobs at all, as if neither had been asked for; `sure` is the probability of every token."""

    content: str = ""
    reasoning: str = ""
    calls: Sequence[tuple[str, str, str]] = ()
    finish_reason: str = ""
    top: int | None = 20
    sure: float = 0.99
    id: str = ID

    @property
    def ended(self) -> str:
        return self.finish_reason or ("tool_calls" if self.calls else "stop")

    def response(self) -> dict[str, Any]:
        """The whole response."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": self.content if not self.calls or self.content.strip() else None,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
        }
        if self.calls:
            message["tool_calls"] = [
                {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
                for id, name, arguments in self.calls
            ]
        message["reasoning"] = self.reasoning or None
        choice = {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs([text for text, _ in self._tokens()]),
            "finish_reason": self.ended,
            "stop_reason": None,
            "token_ids": None,
            "routed_experts": None,
        }
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": CREATED,
            "model": "atlas",
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": "vllm-0.32.0",
            "usage": USAGE,
            "prompt_logprobs": None,
            "prompt_token_ids": None,
        }

    def chunks(self, *, usage: bool = False) -> list[dict[str, Any]]:
        """The chunks of the stream, one a token, swallowed ones only with logprobs."""
        role = {"role": "assistant", "content": ""}
        first = self._chunk(role, None, None) | {"prompt_token_ids": None, "prompt_text": None}
        tokens = self._tokens()
        middle = [
            self._chunk(delta, self._logprobs([text]), None)
            for text, delta in tokens[:-1]
            if delta or self.top is not None
        ]
        last = self._chunk(tokens[-1][1], self._logprobs([tokens[-1][0]]), self.ended)
        end = {"choices": [], "usage": USAGE, "system_fingerprint": "vllm-0.32.0"}
        return [first, *middle, last, *([self._chunk({}, None, None) | end] if usage else [])]

    def _chunk(self, delta: dict[str, Any], logprobs: Any, finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        if finish_reason is not None:
            choice["stop_reason"] = None
        choice["token_ids"] = None
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": CREATED,
            "model": "atlas",
            "choices": [choice],
        }

    def _tokens(self) -> list[tuple[str, dict[str, Any]]]:
        """The tokens, and the delta that vLLM's parsers make of each."""
        tokens: list[tuple[str, dict[str, Any]]] = []
        if self.reasoning:
            tokens.append(("<think>", {}))
            tokens += [(word, {"reasoning": word}) for word in words(self.reasoning)]
            tokens.append(("</think>", {}))
        tokens += [(word, {"content": word}) for word in words(self.content)]
        for index, (id, name, arguments) in enumerate(self.calls):
            call = {"id": id, "type": "function", "index": index, "function": {"name": name}}
            tokens += [("<tool_call>", {}), ('\n{"name": "', {}), (name, {})]
            tokens.append(('", "arguments": ', {"content": None, "tool_calls": [call]}))
            for word in words(arguments):
                piece = {"index": index, "function": {"arguments": word}}
                tokens.append((word, {"content": None, "tool_calls": [piece]}))
            tokens += [("}\n", {}), ("</tool_call>", {})]
        tokens.append(("<|im_end|>", {}))
        return tokens

    def _logprobs(self, texts: Sequence[str]) -> dict[str, Any] | None:
        if self.top is None:
            return None
        return {"content": [self._token(text) for text in texts]}

    def _token(self, text: str) -> dict[str, Any]:
        sure = _entry(text, math.log(self.sure))
        others = [_entry(f"{text}{n}", math.log((1 - self.sure) / 40) - 0.01 * n) for n in range(1, 20)]
        return {**sure, "top_logprobs": [sure, *others][: self.top]}


def _entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def words(text: str) -> list[str]:
    """The text cut into pieces, whitespace before each word."""
    return re.findall(r"\s*\S+|\s+$", text)


def tool(name: str) -> dict[str, Any]:
    """The definition of a tool without arguments of note."""
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def chat(*messages: dict[str, Any], tools: Sequence[str] = ("lookup",), **fields: Any) -> dict[str, Any]:
    """A request with `messages` (default: one question) and `tools`."""
    asked = list(messages) or [{"role": "user", "content": "What is the capital of Norway?"}]
    return {"model": "atlas", "messages": asked, "tools": [tool(name) for name in tools], **fields}


def made(*calls: tuple[str, str, str], results: Sequence[str] = ("Oslo",)) -> list[dict[str, Any]]:
    """The messages of a turn with `calls`, and their results."""
    said = [
        {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for id, name, arguments in calls
    ]
    told = [
        {"role": "tool", "tool_call_id": call[0], "content": result}
        for call, result in zip(calls, results, strict=True)
    ]
    return [{"role": "assistant", "content": None, "tool_calls": said}, *told]


def changed(body: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    """A response or a chunk whose message, calls and functions have `value` wherever they had a `key`."""
    body = json.loads(json.dumps(body))
    for choice in body["choices"]:
        message = choice["delta"] if "delta" in choice else choice["message"]
        calls = message.get("tool_calls") or []
        for holder in (message, *calls, *(call["function"] for call in calls)):
            if holder.get(key) is not None:
                holder[key] = value
    return body


def stream_bytes(chunks: Sequence[dict[str, Any]], *, done: bool = True) -> bytes:
    """The chunks as vLLM writes them."""
    events = [
        b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
        for chunk in chunks
    ]
    return b"".join(events) + (b"data: [DONE]\n\n" if done else b"")
