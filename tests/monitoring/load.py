"""An upstream that plays vLLM's recorded bytes for as long as it is asked, and agents that keep asking."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
from typing import Any

import aiohttp

from tests.server.scripted_upstream import EVENTS, JSON, Answer, Received, ScriptedUpstream, play
from tests.wire.generated import tool
from tests.wire.recorded import HERE, recorded

CALL_ID = re.compile(rb"chatcmpl-tool-[0-9a-f]{16}")
GROWING = re.compile(r"^(\S+_(?:total|bucket|count|sum)(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)

CALL_STREAM = recorded("chat_tools_auto_stream").body
PLAIN, AFTER = recorded("chat_plain").body, recorded("chat_after_tool").body
VLLM_METRICS = (HERE / "metrics.txt").read_text("utf-8")


def _talking_call() -> bytes:
    """The recorded call behind the recorded words: no recording has both, and only words have an entropy."""
    call, words = recorded("chat_tools_auto").response, recorded("chat_plain").response
    (choice,), (said,) = call["choices"], words["choices"]
    choice["message"]["content"] = said["message"]["content"]
    choice["logprobs"]["content"][:0] = said["logprobs"]["content"][:-1]
    return json.dumps(call).encode()


CALL = _talking_call()


class Player(ScriptedUpstream):
    """Calls a tool, calls it once more after the result, then answers; some of the probes fail."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers = itertools.count(1)
        self._scrapes = itertools.count(1)
        self._lots = random.Random(2026)

    async def _answer(
        self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes:
        await play(self._chosen(request), writer)
        return b""

    def _chosen(self, request: Received) -> Answer:
        if request.target == "/health":
            return Answer([b""], headers=())
        if request.target == "/tokenize":
            return Answer.whole({"tokens": [8], "count": 1})
        if request.target == "/metrics":
            return Answer([self._metrics().encode()], headers=[("content-type", "text/plain; version=0.0.4")])
        return self._generated(request.json)

    def _generated(self, body: dict[str, Any]) -> Answer:
        results = sum(message["role"] == "tool" for message in body["messages"])
        if "logit_bias" in body or body.get("tool_choice") == "none":
            if self._lots.random() < 0.1:
                return Answer([b"{}"], status=500)
            # Half of the results change the answer.
            return Answer([AFTER if results and self._lots.random() < 0.5 else PLAIN])
        if results >= 2:
            return Answer([AFTER])
        fresh = b"chatcmpl-tool-%016x" % next(self._numbers)
        if body.get("stream"):
            return Answer([CALL_ID.sub(fresh, CALL_STREAM)], headers=(EVENTS,), length=False)
        return Answer([CALL_ID.sub(fresh, CALL)], headers=(JSON,))

    def _metrics(self) -> str:
        """What vLLM showed once under the demonstration, with all that only grows grown by as much again at
        each scrape."""
        times = next(self._scrapes)
        return GROWING.sub(lambda row: f"{row[1]} {float(row[2]) * times}", VLLM_METRICS)


async def converse(session: aiohttp.ClientSession, number: int) -> None:
    """One conversation of an agent: a question, one call, its result, and the answer."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": f"What is the weather in Cairo, {number}?"}]
    body = {"model": "atlas", "messages": messages, "tools": [tool("get_weather"), tool("search")]}
    named = {"x-governor-conversation": f"talk-{number}"}
    call = {"name": "get_weather", "arguments": '{"location": "Cairo"}'}
    answer = await _post(session, {**body, "stream": number % 2 == 1}, named)
    found = CALL_ID.search(answer)
    if found is None:
        return
    said = [{"id": found[0].decode(), "type": "function", "function": call}]
    messages.append({"role": "assistant", "content": None, "tool_calls": said})
    messages.append({"role": "tool", "tool_call_id": found[0].decode(), "content": "31 C and sunny. " * 20})
    await _post(session, body, named)


async def _post(session: aiohttp.ClientSession, body: dict[str, Any], headers: dict[str, str]) -> bytes:
    async with session.post("/v1/chat/completions", json=body, headers=headers) as response:
        assert response.status == 200
        return await response.read()
