"""What is said, where that is recorded: messages of the chat API as the conventions write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from governor.request import Json
from governor.turn import Turn
from governor_server import exact_json
from governor_server.tracing.attributes import MAX_CONTENT_LENGTH


def said(messages: object) -> str:
    """Messages of the chat API, as the conventions write them."""
    given = messages if isinstance(messages, list) else []
    told = [_message(message) for message in given if isinstance(message, Mapping)]
    return exact_json.dumps(told).decode()[:MAX_CONTENT_LENGTH]


def messages_of(body: bytes) -> object:
    """The messages of a request, which may be no request at all."""
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return given.get("messages") if isinstance(given, dict) else None


def spoken(turn: Turn) -> Json:
    """A turn as a message of the chat API."""
    calls = [{"id": c.id, "function": {"name": c.name, "arguments": c.arguments}} for c in turn.calls]
    return {
        "role": "assistant",
        "content": turn.content,
        "reasoning": turn.reasoning,
        "tool_calls": calls,
        "finish_reason": turn.finish_reason,
    }


def _message(message: Json) -> dict[str, Any]:
    content, parts = message.get("content"), []
    if message.get("role") == "tool":
        parts.append({"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content})
    else:
        if message.get("reasoning"):
            parts.append({"type": "reasoning", "content": message["reasoning"]})
        if content:
            parts.append({"type": "text", "content": content})
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, Mapping) else None
            if isinstance(function, Mapping):
                named = {"name": function.get("name"), "arguments": function.get("arguments")}
                parts.append({"type": "tool_call", "id": call.get("id"), **named})
    told: dict[str, Any] = {"role": message.get("role"), "parts": parts}
    if message.get("finish_reason"):
        told["finish_reason"] = message["finish_reason"]
    return told
