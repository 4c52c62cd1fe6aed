"""Pages in a browser: what they ask before they ask, and what they may read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from governor_server.engine import free_port
from tests.server.scripted_upstream import HANG, Answer, proxied, scripted
from tests.server.two_tenants import digest

ORIGIN = {"origin": "https://page.example"}
PREFLIGHT = {
    **ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type",
}
AUTH: dict[str, Any] = {
    "keys": [{"tenant": "acme", "sha256": digest("key")}],
    "admin_keys": [digest("operator")],
}
ALLOWED = Answer([b"OK"], 200, [("access-control-allow-origin", "*"), ("access-control-max-age", "600")])
PATHS = pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])


@PATHS
@pytest.mark.parametrize("own_key", ["secret", None])
async def test_a_browser_may_ask_first_without_a_key(path: str, own_key: str | None) -> None:
    """It has none to send. Upstream answers, and gets neither upstream's key nor anything else that the
    question does not need."""
    async with (
        scripted(ALLOWED) as upstream,
        proxied(upstream, auth=AUTH, upstream={"api_key": own_key}) as proxy,
    ):
        headers = {**PREFLIGHT, "x-anything": "1", "cookie": "a=b", "x-api-key": "guess"}
        async with proxy.client.options(path, headers=headers) as response:
            assert (response.status, await response.read()) == (200, b"OK")
            assert response.headers["access-control-allow-origin"] == "*"
    (received,) = upstream.received
    sent = {name.lower() for name, _ in received.headers}
    assert (received.method, received.target, received.body) == ("OPTIONS", path, b"")
    assert sent - {"host"} == set(PREFLIGHT)


@PATHS
@pytest.mark.parametrize(
    ("method", "headers", "body"),
    [
        ("OPTIONS", ORIGIN, b""),
        ("OPTIONS", {"access-control-request-method": "POST"}, b""),
        ("OPTIONS", PREFLIGHT, b"{}"),
        ("OPTIONS", {**PREFLIGHT, "transfer-encoding": "chunked"}, b""),
        ("GET", PREFLIGHT, b""),
        ("POST", PREFLIGHT, b"{}"),
    ],
)
async def test_what_is_no_such_question_needs_a_key(
    path: str, method: str, headers: dict[str, str], body: bytes
) -> None:
    """Nothing else can be asked in its name."""
    async with (
        scripted() as upstream,
        proxied(upstream, auth=AUTH) as proxy,
        proxy.client.request(method, path, headers=headers, data=body or None) as response,
    ):
        assert response.status == 401
    assert not upstream.received


async def test_questions_without_a_key_keep_nobody_out() -> None:
    """They have few places of their own."""
    limits = {"max_concurrent_requests": 1, "max_queued_requests": 1}
    held = [Answer(before=[HANG])] * 16
    async with scripted(*held) as upstream, proxied(upstream, auth=AUTH, limits=limits) as proxy:

        async def ask() -> None:
            async with proxy.client.options("/v1/models", headers=PREFLIGHT) as response:
                await response.read()

        asking = [asyncio.create_task(ask()) for _ in range(30)]
        async with asyncio.timeout(10):
            while len(upstream.received) < 16:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        upstream.script.append(Answer([b"mine"]))
        async with proxy.client.get("/v1/models", headers={"authorization": "Bearer key"}) as response:
            assert await response.read() == b"mine"
        assert len(upstream.received) == 17
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


@PATHS
async def test_a_page_may_read_the_governors_errors(path: str) -> None:
    """Else it learns no more than that something failed: of a key, of a body, of the proxy's load, of
    upstream. And when it may come back."""
    gone = f"http://127.0.0.1:{free_port('127.0.0.1', 0)}"
    limits = {"max_body_bytes": 100, "max_concurrent_requests_per_tenant": 1}
    key = {"authorization": "Bearer key"}
    seen: dict[int, Any] = {}
    async with proxied(gone, auth=AUTH, limits=limits) as proxy:
        for headers, body in (({}, b"{}"), (key, b"x" * 200), (key, b"{}")):
            async with proxy.client.post(path, data=body, headers={**ORIGIN, **headers}) as response:
                seen[response.status] = response.headers
        async with proxy.client.post(path, data=b"{}") as response:
            assert not any(name.lower().startswith("access-control") for name in response.headers)
    assert set(seen) == {401, 413, 502}
    for headers in seen.values():
        assert headers["access-control-allow-origin"] == "*"
        assert "retry-after" in headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in headers


async def test_a_page_reads_what_could_not_be_parsed() -> None:
    """That comes from another place than the other errors."""
    async with scripted() as upstream, proxied(upstream) as proxy:
        reader, writer = await asyncio.open_connection(*proxy.url.removeprefix("http://").split(":"))
        writer.write(b"POST / HTTP/1.1\r\norigin: https://page.example\r\ncontent-length: +1\r\n\r\n")
        told = await reader.read()
        writer.close()
    assert told.startswith(b"HTTP/1.1 400 ")
    assert b"access-control-allow-origin: *" in told


@pytest.mark.parametrize(
    "path", ["/governor/decisions", "/dashboard/api/overview", "/metrics", "/governor/feedback"]
)
async def test_no_page_elsewhere_reads_what_is_the_operators(path: str) -> None:
    """Neither the answers nor the errors of those routes, and no question opens them."""
    async with scripted() as upstream, proxied(upstream, auth=AUTH) as proxy:
        for method, headers in (("OPTIONS", PREFLIGHT), ("GET", ORIGIN)):
            operator = {"authorization": "Bearer operator"} if method == "GET" else {}
            async with proxy.client.request(method, path, headers={**headers, **operator}) as response:
                assert not any(name.lower().startswith("access-control") for name in response.headers)
    assert not upstream.received


async def test_upstreams_own_words_to_pages_stay_its_own() -> None:
    """Who may read an answer is upstream's to say, also of an error."""
    answer = Answer([b"{}"], 404, [("access-control-allow-origin", "https://page.example")])
    async with (
        scripted(answer) as upstream,
        proxied(upstream) as proxy,
        proxy.client.get("/v1/models", headers=ORIGIN) as response,
    ):
        assert response.headers.getall("access-control-allow-origin") == ["https://page.example"]
