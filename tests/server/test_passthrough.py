"""What is not governed goes through byte for byte."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import aiohttp
import pytest
from yarl import URL

from tests.server.scripted_upstream import (
    ABORT,
    EVENTS,
    HANG,
    JSON,
    Answer,
    Proxied,
    proxied,
    scripted,
)
from tests.server.waiting import PATIENCE_S, refusing_port
from tests.wire.generated import Generated, chat, stream_bytes
from tests.wire.recorded import recorded

FORCED = {"type": "function", "function": {"name": "lookup"}}
ERRORS = (
    "err_badjson_type",
    "err_max_tokens",
    "err_model",
    "err_stream",
    "err_stream_plp",
    "err_too_long",
    "err_toolchoice_notools",
    "err_top_logprobs_nolog",
    "err_xargs",
    "err_xargs_nested",
)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    "target", ["/v1/models", "/v1/a%2Fb%20c?q=%C3%A6&q=&x", "/detokenize", "/v1/chat/completions/", "/"]
)
async def test_any_request_arrives_as_it_was_sent(method: str, target: str) -> None:
    """Method, path, query, headers and body, to the byte."""
    body = b"" if method in ("GET", "OPTIONS") else b'{ "a":  1.0, "\xc3\xa6": "\\u00e6" }'
    async with scripted(Answer([b"x"])) as upstream, proxied(upstream) as proxy:
        headers = {
            "Authorization": "Bearer k",
            "X-Request-Id": "r",
            "Accept-Encoding": "gzip",
            "User-Agent": "me",
            "X-Name": "Ærø",
        }
        url = URL(proxy.url + target, encoded=True)
        async with proxy.client.request(method, url, data=body or None, headers=headers) as response:
            assert await response.read() == b"x"
    (received,) = upstream.received
    assert (received.method, received.target, received.body) == (method, target, body)
    headers["X-Name"] = "Ærø".encode().decode("latin-1")
    for name, value in headers.items():
        assert received.header(name) == value
    assert received.header("host") == upstream.url.removeprefix("http://")


async def test_any_answer_arrives_as_it_was_sent() -> None:
    """Status, repeated headers, and a compressed body as it is."""
    body = gzip.compress(b"hello")
    headers = [
        ("content-encoding", "gzip"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("server", "theirs"),
    ]
    async with (
        scripted(Answer([body], 418, headers)) as upstream,
        proxied(upstream) as proxy,
        proxy.client.get("/v1/teapot") as response,
    ):
        assert (response.status, await response.read()) == (418, body)
        assert response.headers.getall("set-cookie") == ["a=1", "b=2"]
        assert response.headers.getall("server") == ["theirs"]
        assert response.headers["content-length"] == str(len(body))


async def test_headers_between_neighbours_stay_there() -> None:
    """Those of the connection, those that it names, and the governor's own."""
    answer = Answer(
        [b""], 200, [("keep-alive", "timeout=5"), ("x-hop", "1"), ("connection", "x-hop"), ("x-end", "1")]
    )
    async with scripted(answer) as upstream, proxied(upstream) as proxy:
        headers = {"Connection": "x-near", "X-Near": "1", "TE": "trailers", "X-Governor": "off", "X-Far": "1"}
        async with proxy.client.get("/v1/models", headers=headers) as response:
            assert "x-end" in response.headers
            assert not {"x-hop", "keep-alive"} & {name.lower() for name in response.headers}
    names = {name.lower() for name, _ in upstream.received[0].headers}
    assert "x-far" in names
    assert not {"x-near", "te", "x-governor", "connection"} & names


async def test_the_operators_key_replaces_the_clients() -> None:
    """With an upstream key, clients need not know it."""
    async with scripted(Answer()) as upstream, proxied(upstream, upstream={"api_key": "secret"}) as proxy:
        await (await proxy.client.get("/v1/models", headers={"Authorization": "Bearer mine"})).read()
    assert upstream.received[0].header("authorization") == "Bearer secret"


async def test_redirects_are_the_clients_business() -> None:
    """They are handed on, not followed."""
    answer = Answer([b""], 307, [("location", "/elsewhere")])
    async with (
        scripted(answer) as upstream,
        proxied(upstream) as proxy,
        proxy.client.get("/v1/models", allow_redirects=False) as response,
    ):
        assert (response.status, response.headers["location"]) == (307, "/elsewhere")
    assert len(upstream.received) == 1


async def test_head_has_no_body() -> None:
    """The length is that of the body that a GET would have."""
    async with (
        scripted(Answer([b"12345"])) as upstream,
        proxied(upstream) as proxy,
        proxy.client.head("/v1/models") as response,
    ):
        assert response.headers["content-length"] == "5"
        assert await response.read() == b""


async def test_a_streamed_answer_arrives_as_it_comes() -> None:
    """The first piece is there before the second was sent."""
    more = asyncio.Event()
    answer = Answer([b"event: a\ndata: 1\n\n", more, b"data: 2\n\n"], 200, [EVENTS], length=False)
    async with (
        scripted(answer) as upstream,
        proxied(upstream) as proxy,
        proxy.client.post("/v1/messages", data=b"{}") as response,
    ):
        assert await response.content.readany() == b"event: a\ndata: 1\n\n"
        more.set()
        assert await response.content.read() == b"data: 2\n\n"


async def test_an_uploaded_body_arrives_whole() -> None:
    """However many pieces the client sends it in."""

    async def pieces() -> Any:
        for n in range(5):
            yield b"%d" % n * 70_000
            await asyncio.sleep(0)

    async with (
        scripted(Answer([b"ok"])) as upstream,
        proxied(upstream) as proxy,
        proxy.client.post("/v1/audio/transcriptions", data=pieces()) as response,
    ):
        assert await response.read() == b"ok"
    assert upstream.received[0].body == b"".join(b"%d" % n * 70_000 for n in range(5))


@pytest.mark.parametrize("name", ["messages_stream", "responses", "chat_plain"])
async def test_recorded_answers_of_other_kinds_are_not_touched(name: str) -> None:
    """Also a chat completion without tools."""
    recording = recorded(name)
    path = {"messages_stream": "/v1/messages", "responses": "/v1/responses"}.get(name, "/v1/chat/completions")
    async with (
        scripted(Answer.of(recording)) as upstream,
        proxied(upstream) as proxy,
        proxy.client.post(path, data=json.dumps(recording.request)) as response,
    ):
        assert await response.read() == recording.body
        assert not any(name.lower().startswith("x-governor") for name in response.headers)
    assert upstream.received[0].body == json.dumps(recording.request).encode()


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": "required"},
        {"tool_choice": FORCED},
        {"n": 2},
        {"prompt_logprobs": 1},
        {"tools": None},
        {"messages": 5},
    ],
)
async def test_what_may_not_be_governed_is_forwarded_as_its_original_bytes(fields: dict[str, Any]) -> None:
    """Not parsed and written again: whitespace, escapes and the order of the keys are the client's."""
    raw = json.dumps(chat() | fields, indent=3, ensure_ascii=True).encode()
    async with (
        scripted(Answer([b'{ "odd" :1 }'])) as upstream,
        proxied(upstream) as proxy,
        proxy.client.post("/v1/chat/completions", data=raw) as response,
    ):
        assert await response.read() == b'{ "odd" :1 }'
    assert upstream.received[0].body == raw


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b'"x"', b"[1]"])
async def test_a_body_that_does_not_parse_is_upstreams_to_refuse(raw: bytes) -> None:
    """The error that the client reads is vLLM's."""
    refusal = Answer([b'{"error":{}}'], 400)
    async with (
        scripted(refusal) as upstream,
        proxied(upstream) as proxy,
        proxy.client.post("/v1/chat/completions", data=raw) as response,
    ):
        assert (response.status, await response.read()) == (400, b'{"error":{}}')
    assert upstream.received[0].body == raw


async def test_a_client_can_switch_the_governor_off() -> None:
    """For one request, by a header that upstream does not see."""
    answer = Answer.whole(Generated(calls=[("c1", "lookup", "{}")]))
    async with scripted(answer) as upstream, proxied(upstream) as proxy:
        _, headers, body = await proxy.chat(chat(), x_governor="off")
    assert body == answer.pieces[0]
    assert "logprobs" not in upstream.received[0].json
    assert upstream.received[0].header("x-governor") is None


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("tools", [False, True])
async def test_upstreams_errors_arrive_untouched(name: str, tools: bool) -> None:
    """Status, body and content type, also of requests that would have been governed."""
    recording = recorded(name)
    answers = [Answer.of(recording)] * 2
    request = recording.request | ({"tools": chat()["tools"]} if tools else {})
    async with scripted(*answers) as upstream, proxied(upstream) as proxy:
        status, headers, body = await proxy.chat(request)
    assert (status, body) == (recording.status, recording.body)
    assert headers["content-type"] == "application/json"
    assert upstream.received[-1].json == request or status == 404


@pytest.mark.parametrize(("name", "path"), [("err_msg", "/v1/messages"), ("err_resp", "/v1/responses")])
async def test_errors_of_the_other_apis_arrive_untouched(name: str, path: str) -> None:
    """Each has a shape of its own."""
    recording = recorded(name)
    async with (
        scripted(Answer.of(recording)) as upstream,
        proxied(upstream) as proxy,
        proxy.client.post(proxy.url + path, json=recording.request) as response,
    ):
        assert (response.status, await response.read()) == (recording.status, recording.body)
    assert (upstream.received[0].target, upstream.received[0].json) == (path, recording.request)


async def test_advice_to_come_back_later_arrives() -> None:
    """Retry-After is part of the answer to too many requests."""
    busy = Answer([b'{"error":{"code":429}}'], 429, [JSON, ("retry-after", "7")])
    async with scripted(busy) as upstream, proxied(upstream) as proxy:
        status, headers, body = await proxy.chat(chat(stream=True))
    assert (status, headers["retry-after"], body) == (429, "7", b'{"error":{"code":429}}')
    assert len(upstream.received) == 1


async def test_an_upstream_that_is_not_there_is_named() -> None:
    """In an error of the shape that clients read, for governed requests and others."""
    with refusing_port() as port:
        url = f"http://127.0.0.1:{port}"
        async with proxied(url) as proxy:
            for status, body in [(await proxy.chat(chat()))[::2], await _get(proxy, "/v1/models")]:
                error = json.loads(body)["error"]
                assert status == 502
                assert url in error["message"]
                assert error["type"] == "upstream_unreachable"
                assert set(error) == {"message", "type", "param", "code"}
            assert (await _get(proxy, "/readyz"))[0] == 503
            assert (await _get(proxy, "/healthz"))[0] == 200


async def test_an_upstream_that_does_not_answer_is_a_timeout() -> None:
    """504, after the configured time."""
    settings = {"read_timeout_s": 0.1}
    async with scripted(Answer(before=[HANG])) as upstream, proxied(upstream, upstream=settings) as proxy:
        status, _, body = await proxy.chat(chat(tools=[]))
    assert (status, json.loads(body)["error"]["type"]) == (504, "upstream_timeout")


async def test_a_connection_that_upstream_just_closed_is_tried_once_more() -> None:
    """An idle connection may die while the request is on its way; nothing was answered on it."""
    answers = [Answer([b"1"]), Answer(before=[ABORT]), Answer([b"2"])]
    async with scripted(*answers) as upstream, proxied(upstream) as proxy:
        assert (await _get(proxy, "/v1/models"))[1] == b"1"
        async with proxy.client.post("/v1/embeddings", data=b"{}") as response:
            assert await response.read() == b"2"
    assert len(upstream.received) == 3


async def test_an_answer_that_breaks_off_is_not_made_whole() -> None:
    """The client must not take half of it for all."""
    answer = Answer([b"half", 0.05, ABORT, b"whole"])
    async with scripted(answer) as upstream, proxied(upstream) as proxy:
        with pytest.raises(aiohttp.ClientError):
            await _get(proxy, "/v1/models")


@pytest.mark.parametrize("pieces", [[HANG], [b"data: 1\n\n", HANG]])
async def test_a_client_that_leaves_ends_the_request_upstream(pieces: list[Any]) -> None:
    """Before the first byte, and in the middle."""
    answer = Answer(pieces, 200, [EVENTS], length=False)
    async with scripted(answer) as upstream, proxied(upstream) as proxy:
        request = asyncio.create_task(_get(proxy, "/v1/stream"))
        await upstream.asked.wait()
        await asyncio.sleep(0.05)
        request.cancel()
        async with asyncio.timeout(PATIENCE_S):
            await upstream.gone.acquire()


async def test_metrics_and_decisions_are_the_governors_own() -> None:
    """vLLM's metrics stay at vLLM."""
    async with scripted(Answer.stream(stream_bytes([]))) as upstream, proxied(upstream) as proxy:
        status, text = await _get(proxy, "/metrics")
        assert status == 200
        assert b"governor_conversations" in text
        assert json.loads((await _get(proxy, "/governor/decisions"))[1]) == {"decisions": []}
    assert not upstream.received


async def test_websockets_are_refused() -> None:
    """They are not proxied, and a client is told so instead of waiting."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    async with scripted() as upstream, proxied(upstream) as proxy:
        await proxy.app({"type": "websocket", "path": "/v1/realtime"}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


async def _get(proxy: Proxied, path: str) -> tuple[int, bytes]:
    async with proxy.client.get(path) as response:
        return response.status, await response.read()
