"""What is read can be written again without a number having changed, from the client up and back again."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governor.calls import ToolCatalog
from governor.decision import Mode, Reason
from governor.exchange import Ask, Exchange
from governor.governance import Governance
from governor.policies import Evidence, Judgement, ThresholdPolicy, Verdict
from governor_server import answers, exact_json, sse
from tests.server.bodies import chunks_of
from tests.server.scripted_upstream import Answer, proxied, scripted
from tests.wire.generated import Generated, chat, stream_bytes
from tests.wire.odd_json import TEXTS, exactly

NORWAY = ("c1", "lookup", '{"country": "Norway"}')
SPAIN = ("c2", "lookup", '{"country": "Spain"}')
CALLING = Generated(content="Let me look.", calls=[NORWAY, SPAIN])
ENFORCE = Governance(
    vocab_size=4096, mode=Mode.ENFORCE, policy=ThresholdPolicy(), catalog=ToolCatalog(read_only=("lookup",))
)
BIG = 2**64


class First:
    """Withholds the first call."""

    name = "first"

    def judge(self, evidence: Evidence) -> Judgement:
        return Verdict(evidence.call.id == "c1", Reason.REPEATED_CALL, 0)


@given(TEXTS)
def test_any_json_is_written_as_it_was_read(text: str) -> None:
    for read in (exact_json.loads, answers.whole, answers.parsed):
        assert exactly(exact_json.dumps(read(text.encode()))) == exactly(text)


@pytest.mark.parametrize("digits", [1, 15, 17, 18, 60, 4000])
def test_no_number_of_digits_is_too_many(digits: int) -> None:
    for text in ("9" * digits, f"0.{'3' * digits}", f"-{'7' * digits}.25e-3"):
        assert exactly(exact_json.dumps(exact_json.loads(text.encode()))) == exactly(text)


@pytest.mark.parametrize("depth", [1, 254, 255, 600])
def test_what_is_nested_deeply_is_written(depth: int) -> None:
    """orjson writes 254 levels."""
    text = b"[" * depth + b"]" * depth
    assert exact_json.dumps(exact_json.loads(text)) == text


@pytest.mark.parametrize(
    "text", [b"", b"{", b"NaN", b"[1,]", b'"\\ud800"', b'"\xff"', b"\xef\xbb\xbf1", b"[" * 10_000]
)
def test_what_cannot_be_written_again_is_not_read(text: bytes) -> None:
    """A lone surrogate is half a character: such a request goes upstream as it is, ungoverned."""
    with pytest.raises(ValueError):
        exact_json.loads(text)


def test_what_is_no_json_is_not_written() -> None:
    with pytest.raises(TypeError):
        exact_json.dumps({"a": object()})


@given(extra=TEXTS, schema=TEXTS, told=TEXTS, stream=st.booleans())
def test_upstream_gets_what_the_client_wrote(extra: str, schema: str, told: str, stream: bool) -> None:
    """Value for value, plus what is asked for on top: in the request, in the probe, and in what takes the
    place of a withheld call."""
    raw = (
        f'{{"model": "atlas", "stream": {json.dumps(stream)}, "extra": {extra}, "messages": '
        f'[{{"role": "user", "content": "Hi", "told": {told}}}], "tools": [{{"type": "function", '
        f'"function": {{"name": "lookup", "parameters": {schema}}}}}]}}'
    )
    exchange = Exchange(exact_json.loads(raw.encode()), ENFORCE)
    asked: list[Ask] = [exchange.admission()]
    for chunk in CALLING.chunks() if stream else ():
        exchange.receive(chunk)
    if not stream:
        exchange.receive_response(CALLING.response())
    probe = exchange.finish()
    assert isinstance(probe, Ask)
    asked.append(probe)
    if isinstance(
        answering := exchange.probe_answered(Generated(content="Oslo", finish_reason="length").response()),
        Ask,
    ):
        asked.append(answering)
    client = exactly(raw)
    for ask in asked:
        body = exactly(exact_json.dumps(ask.body))
        assert {key: body[key] for key in ("extra", "tools")} == {
            key: client[key] for key in ("extra", "tools")
        }
        assert body["messages"][:1] == client["messages"]
    request = exactly(exact_json.dumps(asked[0].body))
    assert request == {**client, "logprobs": True, "top_logprobs": 20}


@pytest.mark.parametrize("mode", ["observe", "enforce"])
async def test_a_schema_with_a_large_number_arrives(mode: str) -> None:
    """The largest of an unsigned integer of 64 bits, and one more."""
    asking = chat()
    bounds = {"maximum": BIG, "minimum": -(2**63) - 1}
    asking["tools"][0]["function"]["parameters"] = {"type": "integer", **bounds}
    answer = Answer.whole(Generated(content="Oslo."))
    async with scripted(answer) as upstream, proxied(upstream, mode) as proxy:
        await proxy.chat(asking)
    (received,) = upstream.received
    assert received.json["tools"] == asking["tools"]
    assert received.json["logprobs"] is True


async def test_a_lone_surrogate_goes_up_as_it_is() -> None:
    """Ungoverned, to the last byte."""
    raw = json.dumps(chat({"role": "user", "content": "\ud83d"})).encode()
    async with (
        scripted(Answer.whole(Generated(content="Oslo."))) as upstream,
        proxied(upstream) as proxy,
        proxy.client.post("/v1/chat/completions", data=raw) as response,
    ):
        assert response.status == 200
    assert upstream.received[0].body == raw


@pytest.mark.parametrize("asked", [{}, {"logprobs": True, "top_logprobs": 2}])
@given(extra=TEXTS)
@settings(max_examples=30)
def test_the_client_gets_the_numbers_that_upstream_wrote(asked: dict[str, Any], extra: str) -> None:
    """In chunks whose logprobs were taken out, and in those of a message that lacks one of its calls."""
    exchange = Exchange(chat(stream=True, **asked), replace(ENFORCE, policy=First()))
    parse = answers.whole if asked else answers.parsed
    sent, got = [], []
    for chunk in CALLING.chunks(usage=True):
        text = json.dumps({**chunk, "x": "X"}, separators=(",", ":")).replace('"X"', extra)
        data = text.encode()
        sent.append(exactly(text))
        passed = exchange.receive(answers.chunk(sse.Event(b"data: " + data + b"\n\n", data), parse(data)))
        got += [answers.written(seen) for seen in passed]
    step = exchange.finish()
    assert not isinstance(step, Ask)
    got += [answers.written(seen) for seen in step.chunks]
    received = [exactly(event.removeprefix(b"data: ")) for event in got]
    assert received
    assert all(chunk["x"] == exactly(extra) for chunk in received)
    assert any(choice["delta"].get("tool_calls") for chunk in received for choice in chunk["choices"])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_price_of_upstream_reaches_the_client_to_the_last_digit(stream: bool) -> None:
    """A field that only some servers send, in an answer that was put together from two generations."""
    cost = Decimal("0.00012345678901234567890123")
    first, second = CALLING, Generated(content="It is Oslo.", id="chatcmpl-2")

    def sent(generated: Generated) -> Answer:
        bodies = generated.chunks(usage=True) if stream else [generated.response()]
        marked = [{**body, "cost": "COST"} for body in bodies]
        raw = stream_bytes(marked) if stream else json.dumps(marked[0]).encode()
        raw = raw.replace(b'"COST"', str(cost).encode())
        return Answer.stream(raw) if stream else Answer([raw])

    probe = Answer.whole(Generated(content="Oslo", id="chatcmpl-p"))
    async with (
        scripted(sent(first), probe, sent(second)) as upstream,
        proxied(upstream, governance={"action": "notice"}) as proxy,
    ):
        _, headers, body = await proxy.chat(chat(stream=stream))
    told = (
        [exactly(e[6:]) for e in body.split(b"\n\n") if e.startswith(b"data: {")]
        if stream
        else [exactly(body)]
    )
    assert b"It is Oslo." in body or "Oslo." in "".join(str(c) for c in chunks_of(body))
    assert all(one["cost"] == cost for one in told)
    assert len(upstream.received) == 3
    assert upstream.received[2].json["messages"][-1]["role"] == "tool"
