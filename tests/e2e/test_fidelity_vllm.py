"""Against a real vLLM: what the governor changes when it changes nothing, and whether streams and responses
agree."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import aiohttp
import pytest

from governor_server.engine import Engine
from tests.server.scripted_upstream import Proxied, proxied
from tests.wire.assembled import Assembled
from tests.wire.generated import made

SYSTEM = {"role": "system", "content": "Answer with the help of the tools."}
PATH = "/v1/chat/completions"
SETTINGS: dict[str, Any] = {
    "tools": {"read_only": ["lookup", "find_country"], "effectful": ["save_note"]},
    "probe": {"timeout_s": 60.0},
}
FORCED = {"type": "function", "function": {"name": "lookup"}}


def tool(name: str, **parameters: str) -> dict[str, Any]:
    properties = {parameter: {"type": kind} for parameter, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {
        "type": "function",
        "function": {"name": name, "description": f"The tool {name}.", "parameters": schema},
    }


READING = [
    tool("lookup", country="string", field="string"),
    tool("find_country", field="string", value="string"),
]
SAVING = [*READING, tool("save_note", text="string")]
QUESTIONS = (
    "What is the capital of France?",
    "Please double-check: what is the currency of Italy?",
    "With some background, what is the domain of Japan?",
    "Save the capital of Italy to my notes.",
)
ATTEMPTS = 5
"""vLLM puts two tokens into one chunk when its own sender is late, so two streams may be cut differently."""
LOOKUP = ("call-1", "lookup", '{"country": "France", "field": "capital"}')


def ask(question: str, *more: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A greedy request; fields that are None are left out."""
    body = {
        "model": "atlas",
        "messages": [SYSTEM, {"role": "user", "content": question}, *more],
        "tools": SAVING if "notes" in question else READING,
        "max_tokens": 128,
        "temperature": 0,
        **fields,
    }
    return {key: value for key, value in body.items() if value is not None}


REQUESTS: Mapping[str, dict[str, Any]] = {
    "plain": ask("What is the capital of France?", tools=None),
    "auto": ask(QUESTIONS[0]),
    "auto, other question": ask(QUESTIONS[1]),
    "auto, explicit": ask(QUESTIONS[2], tool_choice="auto", parallel_tool_calls=True),
    "one call at most": ask(QUESTIONS[2], parallel_tool_calls=False),
    "effectful": ask(QUESTIONS[3]),
    "no call": ask(QUESTIONS[0], tool_choice="none"),
    "a call": ask(QUESTIONS[0], tool_choice="required"),
    "this call": ask(QUESTIONS[0], tool_choice=FORCED),
    "no thinking": ask(QUESTIONS[0], chat_template_kwargs={"enable_thinking": False}),
    "after a result": ask(QUESTIONS[0], *made(LOOKUP, results=["Paris"])),
    "after a result, no tools": ask(QUESTIONS[0], *made(LOOKUP, results=["Paris"]), tools=None),
    "cut off": ask(QUESTIONS[0], max_tokens=5),
    "cut off in the call": ask(QUESTIONS[0], tool_choice="auto", max_tokens=20),
    "logprobs": ask(QUESTIONS[0], logprobs=True),
    "logprobs, top 2": ask(QUESTIONS[0], logprobs=True, top_logprobs=2),
    "logprobs, top null": ask(QUESTIONS[0], logprobs=True, top_logprobs=None),
    "logprobs, top 20": ask(QUESTIONS[0], logprobs=True, top_logprobs=20),
    "token ids": ask(QUESTIONS[0], return_token_ids=True),
    "hidden reasoning": ask(QUESTIONS[0], include_reasoning=False),
    "unknown field": ask(QUESTIONS[0], foo_bar=1),
    "stop": ask(QUESTIONS[0], stop=["lookup"]),
    "sampled": ask(QUESTIONS[0], temperature=1.0, top_k=1),
}
REFUSED: Mapping[str, dict[str, Any]] = {
    "model": ask(QUESTIONS[0], model="nope"),
    "too long": ask("hello " * 4000),
    "max_tokens": ask(QUESTIONS[0], max_tokens=999999),
    "top_logprobs alone": ask(QUESTIONS[0], top_logprobs=5),
    "too many top_logprobs": ask(QUESTIONS[0], logprobs=True, top_logprobs=100_000),
    "temperature": ask(QUESTIONS[0], temperature=-3),
    "messages": ask(QUESTIONS[0], messages="x"),
    "tool_choice without tools": ask(QUESTIONS[0], tools=None, tool_choice="required"),
    "xargs": ask(QUESTIONS[0], vllm_xargs={"key": {"a": 1}}),
    "tool": ask(QUESTIONS[0], tools=[{"type": "function"}]),
}
STREAMS: Mapping[str, dict[str, Any]] = {
    "response": {},
    "stream": {"stream": True},
    "stream with usage": {"stream": True, "stream_options": {"include_usage": True}},
    "stream with usage in each chunk": {
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
}


async def post(session: aiohttp.ClientSession, url: str, body: Any, **headers: str) -> tuple[int, str, bytes]:
    async with session.post(url + PATH, json=body, headers=headers) as response:
        return response.status, response.headers["content-type"], await response.read()


def chunks(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(event[6:]) for event in body.split(b"\n\n") if event.startswith(b"data: {")]


def comparable(body: bytes) -> Any:
    """The body without what no two answers of vLLM share: ids, times, what the cache held, the last
    digits."""
    whole = not body.startswith(b"data: ")
    parsed = [json.loads(body)] if whole else chunks(body)
    return [_plain(part) for part in parsed] + ([] if whole else [body.endswith(b"data: [DONE]\n\n")])


def _plain(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item, name) for name, item in value.items() if name != "prompt_tokens_details"}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if key in ("id", "created") and value is not None:
        return type(value).__name__
    # Batches differ in the last digits; rounded, two that are alike may fall on either side of a half.
    return pytest.approx(value, rel=0.01, abs=0.02) if isinstance(value, float) else value


@pytest.mark.parametrize("way", STREAMS)
@pytest.mark.parametrize("name", REQUESTS)
async def test_observing_changes_no_field(engine: Engine, name: str, way: str) -> None:
    """Whatever is asked for, the client receives what vLLM would have sent it, nulls and empty deltas
    included."""
    body = {**REQUESTS[name], **STREAMS[way]}
    async with proxied(engine.url, "observe", **SETTINGS) as proxy:
        await post(proxy.client, engine.url, body)
        for _ in range(ATTEMPTS):
            direct = await post(proxy.client, engine.url, body)
            governed = await post(proxy.client, proxy.url, body)
            if comparable(governed[2]) == comparable(direct[2]):
                break
    assert governed[:2] == direct[:2]
    assert comparable(governed[2]) == comparable(direct[2])


@pytest.mark.parametrize("mode", ["observe", "enforce"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", REFUSED)
async def test_refusals_are_vllms_own(engine: Engine, name: str, stream: bool, mode: str) -> None:
    """Status, content type and every byte of the body, as if nothing had been added to the request."""
    body = {**REFUSED[name], "stream": stream}
    async with proxied(engine.url, mode, **SETTINGS) as proxy:
        direct = await post(proxy.client, engine.url, body)
        governed = await post(proxy.client, proxy.url, body)
    assert direct[0] >= 400 or direct[2].startswith(b'data: {"error"')
    assert governed == direct


@pytest.mark.parametrize("mode", ["observe", "enforce"])
@pytest.mark.parametrize("action", ["auto", "notice"])
@pytest.mark.parametrize("question", [*QUESTIONS, "repeated"])
async def test_streamed_and_whole_agree(engine: Engine, question: str, action: str, mode: str) -> None:
    """The same text, calls, end and decisions for the same greedy generation."""
    body = repeated() if question == "repeated" else ask(question)
    async with proxied(engine.url, mode, governance={"action": action}, **SETTINGS) as proxy:
        whole, why = await told(proxy, body)
        streamed, streamed_why = await told(proxy, {**body, "stream": True})
    assert streamed.content.strip() == whole.content.strip()
    assert (streamed.reasoning, streamed.finish_reason) == (whole.reasoning, whole.finish_reason)
    assert [call[1:] for call in streamed.calls] == [call[1:] for call in whole.calls]
    assert list(verdicts(streamed_why)) == list(verdicts(why))
    assert streamed_why["entropy"]["segment"] == pytest.approx(why["entropy"]["segment"], abs=0.01)


async def test_a_repeated_call_is_answered_without_it(engine: Engine) -> None:
    """The model wants to look up again what it just looked up; the client gets the answer instead."""
    async with proxied(engine.url, "enforce", governance={"policy": "rules"}, **SETTINGS) as proxy:
        direct = Assembled.of_response(json.loads((await post(proxy.client, engine.url, repeated()))[2]))
        governed, why = await told(proxy, repeated())
    if [call[1:] for call in direct.calls] != [LOOKUP[1:]]:
        pytest.skip("this model does not repeat the call")
    assert [(said["action"], said["reason"]) for said in why["decisions"]] == [("answer", "repeated_call")]
    assert governed.calls == ()
    assert governed.finish_reason == "stop"
    assert "Paris" in governed.content


def repeated() -> dict[str, Any]:
    """A conversation whose wording makes the model look up again what it just looked up."""
    return ask("Please double-check: what is the capital of France?", *made(LOOKUP, results=["Paris"]))


async def told(proxy: Proxied, body: Mapping[str, Any]) -> tuple[Assembled, dict[str, Any]]:
    """The message, and the governor's explanation of it."""
    _, _, answer = await post(proxy.client, proxy.url, body, **{"x-governor-explain": "1"})
    if body.get("stream"):
        received = chunks(answer)
        return Assembled.of_chunks(received), received[-1]["governor"]
    response = json.loads(answer)
    return Assembled.of_response(response), response["governor"]


def verdicts(why: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[tuple[Any, ...]]:
    for decision in why["decisions"]:
        yield tuple(decision[key] for key in ("tool", "arguments", "action", "proposed", "reason", "tier"))
