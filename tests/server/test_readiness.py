"""The proxy serves while upstream is down, and is ready once upstream answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from governor_server import readiness
from governor_server.readiness import pause_s, until_ready
from governor_server.serve import greeting
from governor_server.settings import Settings
from tests.server.scripted_upstream import Proxied, Received, ScriptedUpstream, proxied
from tests.server.test_cli import free_port
from tests.server.waiting import eventually


async def readyz(proxy: Proxied) -> tuple[int, Any]:
    async with proxy.client.get("/readyz") as response:
        return response.status, orjson.loads(await response.read())


async def test_it_looks_less_and_less_often_and_says_it_twice(caplog: pytest.LogCaptureFixture) -> None:
    """One line says what to do, one that it is over; between them the log stays quiet."""
    slept: list[float] = []
    problems: Iterator[str] = iter(["down"] * 7 + [""])

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def look() -> str:
        return next(problems)

    with caplog.at_level(logging.INFO):
        await until_ready("upstream http://gpu:8000 is unreachable", look, sleep)
    assert slept == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    first, last = (record.getMessage() for record in caplog.records)
    assert first.startswith("upstream http://gpu:8000 is unreachable. ") and "--upstream" in first
    assert "upstream answers now" in last


def test_the_pause_is_bounded() -> None:
    """Also after weeks."""
    assert pause_s(10**9) == readiness.LONGEST_PAUSE_S


async def test_it_serves_before_upstream_does_and_learns_what_it_needs_when_upstream_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Alive and not ready, with the reason; then ready, and governed as if upstream had been there first,
    though nobody asked /readyz meanwhile."""
    monkeypatch.setattr(readiness, "pause_s", lambda attempt: 0.01)
    port = free_port()
    async with proxied(f"http://127.0.0.1:{port}", call_start_id=None) as proxy:
        async with proxy.client.get("/healthz") as response:
            assert response.status == 200
        status, body = await readyz(proxy)
        assert (status, body["status"]) == (503, "upstream does not answer")
        assert f"127.0.0.1:{port}" in body["reason"] and "unreachable" in body["reason"]
        assert proxy.app.proxy.governance.probe.call_start_id is None
        upstream = ScriptedUpstream()
        server = await asyncio.start_server(upstream.serve, "127.0.0.1", port)
        try:
            await eventually(lambda: proxy.app.proxy.governance.probe.call_start_id == 8)
            assert await readyz(proxy) == (200, {"status": "ok"})
        finally:
            server.close()
            await upstream.close()


class Starting(ScriptedUpstream):
    """Answers 503 to everything until `started`, as what stands in front of a server that loads its model."""

    started = False
    asked_for_tokens = 0

    async def _answer(
        self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes:
        self.asked_for_tokens += request.target == "/tokenize"
        if self.started:
            return await super()._answer(request, reader, writer)
        writer.write(b"HTTP/1.1 503 Loading\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        return b""


async def test_what_a_starting_server_says_is_not_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 503 to the question for the token is no answer: it is asked again when the server is there."""
    monkeypatch.setattr(readiness, "pause_s", lambda attempt: 0.01)
    upstream = Starting()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    url = "http://{}:{}".format(*server.sockets[0].getsockname()[:2])
    try:
        async with proxied(url, call_start_id=None) as proxy:
            status, body = await readyz(proxy)
            assert status == 503 and "GET /health" in body["reason"]
            assert upstream.asked_for_tokens
            upstream.started = True
            await eventually(lambda: proxy.app.proxy.governance.probe.call_start_id == 8)
    finally:
        server.close()
        await upstream.close()


def test_the_greeting_says_where_everything_is() -> None:
    """Base URL, upstream, dashboard, and which tools may be withheld: a misspelt pattern is seen at once."""
    sections: dict[str, Any] = {"tools": {"read_only": ["get_*", "search"], "effectful": ["send"]}}
    settings = Settings(**sections)
    lines = greeting(settings, ("127.0.0.1", 8001), "http://gpu:8000")
    assert lines[:4] == [
        "ready: base_url http://127.0.0.1:8001/v1 (mode observe, policy threshold)",
        "upstream: http://gpu:8000",
        "dashboard: http://127.0.0.1:8001/dashboard",
        "read-only tools: get_*, search; effectful: send",
    ]
    waiting = greeting(settings, ("::1", 8001, 0, 0), "http://gpu:8000", "it is down")
    assert waiting[0].startswith("waiting for upstream: base_url http://[::1]:8001/v1")


@pytest.mark.parametrize(
    ("sections", "part"),
    [
        ({"server": {"host": "0.0.0.0"}}, "answer to this machine only"),
        ({"tools": {}}, "no tool is listed as read-only"),
    ],
)
def test_the_greeting_says_what_an_operator_may_not_expect(sections: dict[str, Any], part: str) -> None:
    """That the dashboard stays closed from outside, say."""
    assert any(part in line for line in greeting(Settings(**sections), ("0.0.0.0", 1), "http://gpu"))


def test_a_gate_that_cannot_learn_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without scikit-learn `calibrated` would observe for ever, without a word."""
    sections: dict[str, Any] = {"governance": {"policy": "calibrated"}}
    settings = Settings(**sections)
    assert not any("scikit-learn" in line for line in greeting(settings, ("127.0.0.1", 1), "http://gpu"))
    monkeypatch.setattr("governor_server.extras.missing", lambda extra: ("sklearn",))
    assert any("scikit-learn" in line for line in greeting(settings, ("127.0.0.1", 1), "http://gpu"))
