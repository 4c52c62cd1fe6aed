"""What the governor leaves alone, through the whole proxy: messages that are not whole, calls and requests in
forms that it does not know, and calls written as text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.governor.written_calls import WRITES
from tests.server.bodies import answer, assembled
from tests.server.scripted_upstream import Answer, proxied, scripted
from tests.wire.generated import Generated, chat, made, stream_bytes

BOTH = pytest.mark.parametrize("stream", [False, True])
NORWAY = ("c1", "lookup", '{"country": "Norway"}')
AGAIN = ("c2", *NORWAY[1:])
QUESTION = {"role": "user", "content": "What is the capital of Norway?"}
REPEATED = [QUESTION, *made(NORWAY)]
EVERYTHING = {"read_only": ["*"], "effectful": ["apply_patch"]}
RULES = {"policy": "rules"}


@BOTH
@pytest.mark.parametrize("reason", ["length", "abort", "content_filter", "repetition", "later_word"])
async def test_an_unfinished_message_is_recorded_with_a_reason_of_its_own(stream: bool, reason: str) -> None:
    """The client gets it as it came, nothing more is asked of upstream, and the metric says why it passed."""
    cut = Generated(content="Again.", calls=[("c2", "lookup", '{"country": "Nor')], finish_reason=reason)
    async with scripted(answer(cut, stream)) as upstream, proxied(upstream, governance=RULES) as proxy:
        _, _, body = await proxy.chat(chat(*REPEATED, stream=stream))
        labels = {"tool": "lookup", "decision": "pass", "reason": "cut_message"}
        assert proxy.metric("governor_tool_calls_total", **labels) == 1
        (record,) = proxy.app.store.recent(9)
    message = assembled(body)
    assert (message.content, message.finish_reason) == ("Again.", reason)
    assert message.calls == (("c2", "lookup", '{"country": "Nor'),)
    assert (record.decision["reason"], record.decision["tier"], record.rule) == ("cut_message", None, "")
    assert len(upstream.received) == 1


ODD: tuple[Any, ...] = (
    {"id": "c2", "type": "custom", "custom": {"name": "apply_patch", "input": "*** Begin Patch"}},
    {"id": "c2", "type": "function", "function": {"name": "", "arguments": "{}"}},
    {"id": "c2", "type": "function", "function": {"name": 5, "arguments": "{}"}},
    {"id": "c2", "type": "function", "function": {"name": "Apply_Patch", "arguments": "{}"}},
    {"id": "c2", "type": "function", "function": {"name": "functions.apply_patch", "arguments": "{}"}},
    {"id": "c2", "type": "mcp", "name": "lookup"},
    {"id": "c2", "type": "function", "function": None},
    None,
)


@BOTH
@pytest.mark.parametrize("entry", ODD, ids=str)
async def test_an_odd_call_reaches_the_client_under_a_pattern_that_takes_all(
    stream: bool, entry: Any
) -> None:
    """`--read-only '*'` with a budget of one call: whatever was understood would be withheld."""
    budget = {**RULES, "budgets": {"per_conversation": 1}}
    calls = [entry if entry is None else {**entry, "index": 0}] if stream else [entry]
    if stream:
        first, *_, last = Generated(content="Well.").chunks()
        first["choices"][0]["delta"]["tool_calls"] = calls
        last["choices"][0]["finish_reason"] = "tool_calls"
        sent = Answer.stream(stream_bytes([first, last]))
    else:
        response = Generated(content="Well.").response()
        response["choices"][0]["message"]["tool_calls"] = calls
        response["choices"][0]["finish_reason"] = "tool_calls"
        sent = Answer.whole(response)
    async with scripted(sent) as upstream, proxied(upstream, governance=budget, tools=EVERYTHING) as proxy:
        status, _, body = await proxy.chat(chat(*REPEATED, stream=stream))
    assert status == 200
    assert json.dumps(calls, separators=(",", ":")).encode() in body
    assert len(upstream.received) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_legacy_request_passes_byte_for_byte(stream: bool) -> None:
    legacy = {
        "model": "atlas",
        "stream": stream,
        "messages": [QUESTION],
        "functions": [{"name": "lookup", "parameters": {}}],
        "function_call": "auto",
    }
    response = answer(Generated(content="Oslo", top=None), stream)
    async with scripted(response) as upstream, proxied(upstream) as proxy:
        _, headers, body = await proxy.chat(legacy)
    assert upstream.received[0].json == legacy
    assert assembled(body).content == "Oslo"
    assert "x-governor-decision" not in headers


@BOTH
@pytest.mark.parametrize("parser", ["hermes", "mistral", "kimi_k2", "llama4_json", "openai", "deepseek_v3"])
async def test_a_call_written_in_any_markup_is_not_the_answer(stream: bool, parser: str) -> None:
    """Streamed too: of the text of the call nothing has gone on when it turns out to be one."""
    text = WRITES[parser]("lookup", {"country": "Norway", "field": "capital"})
    written = Generated(content=f"Let me see.\n{text}", id="chatcmpl-2")
    answers = [answer(Generated(calls=[AGAIN]), stream), answer(written, stream)]
    async with scripted(*answers) as upstream, proxied(upstream, governance=RULES) as proxy:
        _, _, body = await proxy.chat(chat(*REPEATED, stream=stream))
    message = assembled(body)
    assert message.calls == (AGAIN,)
    assert not any(word in message.content for word in ("lookup", "Norway", "field"))
