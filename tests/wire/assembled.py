"""The message that a client makes of what it receives, so that a stream and a response can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Assembled:
    """A message as an agent sees it. `calls` are (id, tool, arguments) in the order of their indices,
    `tokens` the texts of the logprobs."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, str, str], ...] = ()
    finish_reason: str | None = None
    tokens: tuple[str, ...] = ()
    ids: frozenset[str] = frozenset()

    @classmethod
    def of_response(cls, response: Mapping[str, Any]) -> Assembled:
        """From a whole response."""
        choice = response["choices"][0]
        message = choice["message"]
        calls = message.get("tool_calls") or []
        return cls(
            message.get("content") or "",
            message.get("reasoning") or "",
            tuple((call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls),
            choice["finish_reason"],
            _tokens(choice),
            frozenset({response["id"]}),
        )

    @classmethod
    def of_chunks(cls, chunks: Sequence[Mapping[str, Any]]) -> Assembled:
        """From the chunks of a stream; asserts that calls come with dense indices and after their first
        piece."""
        content, reasoning, finish = "", "", None
        tokens: list[str] = []
        calls: list[list[str]] = []
        for choice in (choice for chunk in chunks for choice in chunk["choices"]):
            assert finish is None, "something follows the end"
            delta = choice["delta"]
            content += delta.get("content") or ""
            reasoning += delta.get("reasoning") or ""
            tokens += _tokens(choice)
            finish = choice["finish_reason"]
            for call in delta.get("tool_calls") or ():
                assert call["index"] <= len(calls), "an index was left out"
                if call["index"] == len(calls):
                    calls.append([call["id"], call["function"]["name"], ""])
                calls[call["index"]][2] += call["function"].get("arguments") or ""
        return cls(
            content,
            reasoning,
            tuple((id, name, arguments) for id, name, arguments in calls),
            finish,
            tuple(tokens),
            frozenset(chunk["id"] for chunk in chunks),
        )


def _tokens(choice: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(token["token"] for token in (choice.get("logprobs") or {}).get("content") or ())
