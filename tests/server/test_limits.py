"""What is too much, and what a client reads then."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from governor_server import serve
from governor_server.app import create_app
from governor_server.limits import LimitSettings, Slots
from governor_server.serve import Server, configuration
from governor_server.settings import Settings
from tests.server.bodies import answer, assembled
from tests.server.records import Clock
from tests.server.scripted_upstream import EVENTS, HANG, Answer, Piece, Proxied, proxied, scripted
from tests.server.waiting import PATIENCE_S, eventually
from tests.wire.generated import Generated, chat, stream_bytes

NORWAY = ("c1", "lookup", '{"country": "Norway"}')
CALLING = Generated(content="Let me look.", calls=[NORWAY])
SURE = Answer.whole(Generated(content="Oslo"))
UNSURE = Answer.whole(Generated(content="Oslo", sure=0.4))
ROUTES = pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])


def error(body: bytes) -> Mapping[str, Any]:
    """What is wrong; asserts the shape that clients read."""
    (told,) = json.loads(body).items()
    assert told[0] == "error"
    assert set(told[1]) == {"message", "type", "param", "code"}
    found: Mapping[str, Any] = told[1]
    return found


@ROUTES
@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_that_is_too_large_is_refused(path: str, announced: bool) -> None:
    """Before it is read, where its length is told, else as soon as it is too long; the connection goes on."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * 1000

    data: Any = b"x" * 30_000 if announced else pieces()
    limits = {"max_body_bytes": 10_000}
    async with scripted(Answer([b"ok"])) as upstream, proxied(upstream, limits=limits) as proxy:
        async with proxy.client.post(path, data=data) as response:
            assert response.status == 413
            assert error(await response.read())["type"] == "request_too_large"
        assert proxy.metric("governor_refused_requests_total", reason="request_too_large") == 1
        upstream.script.append(Answer([b"ok"]))
        async with proxy.client.post(path, data=b"x" * 10_000) as response:
            assert response.status == 200


async def test_a_body_that_does_not_come_is_given_up() -> None:
    """A client that holds it back for ever holds nothing else for ever."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    limits = {"body_timeout_s": 0.1}
    async with (
        scripted() as upstream,
        proxied(upstream, limits=limits) as proxy,
        proxy.client.post("/v1/chat/completions", data=pieces()) as response,
    ):
        assert (response.status, error(await response.read())["type"]) == (408, "request_timeout")


@ROUTES
async def test_a_head_that_is_too_large_is_refused(path: str) -> None:
    """Each header may be small."""
    headers = {f"x-{number}": "y" * 1000 for number in range(20)}
    async with (
        scripted() as upstream,
        proxied(upstream, limits={"max_header_bytes": 10_000}) as proxy,
        proxy.client.post(path, data=b"{}", headers=headers) as response,
    ):
        assert response.status == 431
        assert error(await response.read())["type"] == "request_headers_too_large"
    assert not upstream.received


async def test_a_head_without_end_does_not_fill_the_memory() -> None:
    """The parser would keep all of it."""
    async with scripted() as upstream, proxied(upstream, limits={"max_header_bytes": 10_000}) as proxy:
        reader, writer = await connected(proxy)
        writer.write(b"GET / HTTP/1.1\r\nx: ")
        for _ in range(4):
            await asyncio.sleep(0.05)
            writer.write(b"y" * 3000)
        told = await reader.read()
        writer.close()
    head, body = told.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 431 ")
    assert error(body)["type"] == "request_headers_too_large"


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nx: y"])
async def test_a_connection_on_which_nothing_is_asked_is_closed(sent: bytes) -> None:
    """Else a few thousand of them are all that the machine allows."""
    async with scripted() as upstream, proxied(upstream, limits={"header_timeout_s": 0.1}) as proxy:
        reader, writer = await connected(proxy)
        writer.write(sent)
        async with asyncio.timeout(PATIENCE_S):
            assert await reader.read() == b""
        writer.close()


async def connected(proxy: Proxied) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = proxy.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def test_more_than_may_wait_are_told_to_come_back() -> None:
    """At once, and not after a time-out: 503, which clients try again, and when."""
    limits = {"max_concurrent_requests": 1, "max_queued_requests": 1}
    release = asyncio.Event()
    held = replace(SURE, before=[release])
    async with scripted(held, SURE) as upstream, proxied(upstream, limits=limits) as proxy:
        running = asyncio.create_task(proxy.chat(chat()))
        await upstream.asked.wait()
        waiting = asyncio.create_task(proxy.chat(chat()))
        await proxy.until("governor_waiting_requests", 1)
        status, headers, body = await proxy.chat(chat())
        assert (status, headers["retry-after"], error(body)["type"]) == (503, "1", "server_overloaded")
        assert proxy.metric("governor_refused_requests_total", reason="server_overloaded") == 1
        release.set()
        assert [(await task)[0] for task in (running, waiting)] == [200, 200]


async def test_nobody_waits_for_ever() -> None:
    """A turn that does not come in time is given up, and the place in the queue is free again."""
    slots = Slots(LimitSettings(max_concurrent_requests=1, queue_timeout_s=0.05))
    async with slots.place("acme"):
        with pytest.raises(Exception, match="overloaded"):
            await slots.place("acme").__aenter__()
        assert (repr(slots), slots.by_tenant) == ("<Slots [1 running, 0 waiting]>", {"acme": 1})
    assert (repr(slots), slots.by_tenant) == ("<Slots [0 running, 0 waiting]>", {})


@ROUTES
async def test_a_greedy_tenant_does_not_keep_another_out(path: str) -> None:
    """What it asks beyond its share is refused, as its own doing and not the proxy's; its neighbour is served
    meanwhile, and so is the tenant itself once it has an answer."""
    limits = {"max_concurrent_requests": 3, "max_concurrent_requests_per_tenant": 2}
    release = asyncio.Event()
    held = replace(SURE, before=[release])
    async with (
        scripted(held, held, SURE, SURE) as upstream,
        proxied(upstream, limits=limits) as proxy,
    ):

        async def ask(tenant: str) -> tuple[int, Mapping[str, str], bytes]:
            headers = {"authorization": f"Bearer {tenant}"}
            async with proxy.client.post(path, json=chat(), headers=headers) as response:
                return response.status, response.headers, await response.read()

        greedy = [asyncio.create_task(ask("greedy")) for _ in range(2)]
        await eventually(lambda: len(upstream.received) == 2)
        status, headers, body = await ask("greedy")
        assert (status, headers["retry-after"], error(body)["type"]) == (429, "1", "too_many_requests")
        assert proxy.metric("governor_refused_requests_total", reason="too_many_requests") == 1
        assert (await ask("neighbour"))[0] == 200
        release.set()
        assert [(await task)[0] for task in greedy] == [200, 200]
        assert (await ask("greedy"))[0] == 200
        await proxy.until("governor_running_requests", 0)
        assert not proxy.app.proxy.slots.by_tenant


async def test_a_greedy_tenant_does_not_fill_the_queue() -> None:
    """What waits counts like what runs; a client that leaves, or that is refused, leaves nothing behind."""
    slots = Slots(
        LimitSettings(max_concurrent_requests=3, max_queued_requests=3, max_concurrent_requests_per_tenant=2)
    )
    tenants = ["first", "first", "second", "greedy", "greedy", "neighbour"]
    asking = [asyncio.create_task(occupy(slots, tenant)) for tenant in tenants]
    await asyncio.sleep(0)
    assert repr(slots) == "<Slots [3 running, 3 waiting]>"
    with pytest.raises(Exception, match="per_tenant"):
        await slots.place("greedy").__aenter__()
    with pytest.raises(Exception, match="overloaded"):
        await slots.place("another").__aenter__()
    assert slots.by_tenant == {"first": 2, "second": 1, "greedy": 2, "neighbour": 1}
    for task in reversed(asking):
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    assert (repr(slots), slots.by_tenant) == ("<Slots [0 running, 0 waiting]>", {})


async def occupy(slots: Slots, tenant: str) -> None:
    """For ever."""
    async with slots.place(tenant):
        await asyncio.Event().wait()


async def test_a_call_that_is_too_long_to_hold_back_passes() -> None:
    """It goes out unjudged, whole and in order; no client reads an error for what the governor wanted."""
    long = Generated(calls=[("c1", "lookup", json.dumps({"text": "word " * 100}))])
    async with (
        scripted(answer(long, True), SURE) as upstream,
        proxied(upstream, limits={"max_held_bytes": 20_000}) as proxy,
    ):
        _, _, body = await proxy.chat(chat(stream=True))
        assert proxy.metric("governor_fail_open_total", where="held_bytes") == 1
    assert assembled(body).calls == tuple(long.calls)
    assert len(upstream.received) == 1


async def test_what_the_client_does_not_want_is_not_held_back() -> None:
    """A long thought that is measured, and thrown away, takes none of the room for calls."""
    thinking = Generated(reasoning="Hm. " * 200, calls=[("c1", "lookup", "{}")])
    async with (
        scripted(answer(thinking, True), UNSURE) as upstream,
        proxied(upstream, limits={"max_held_bytes": 50_000}) as proxy,
    ):
        _, _, body = await proxy.chat(chat(stream=True, include_reasoning=False))
        assert proxy.metric("governor_fail_open_total", where="held_bytes") == 0
    assert (assembled(body).reasoning, assembled(body).calls) == ("", tuple(thinking.calls))
    assert len(upstream.received) == 2


async def test_a_response_that_is_too_long_to_hold_back_goes_on() -> None:
    """As upstream sent it, but for the logprobs that nobody asked for."""
    source = answer(CALLING, False)
    async with (
        scripted(source, SURE) as upstream,
        proxied(upstream, limits={"max_held_bytes": 1000}) as proxy,
    ):
        _, _, body = await proxy.chat(chat())
        assert proxy.metric("governor_fail_open_total", where="held_bytes") == 1
    assert json.loads(body) == replace(CALLING, top=None).response()


# The end


async def test_a_termination_turns_readiness_red_and_lets_streams_finish(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever distributes the requests must see it before the door is closed."""
    time = Clock()
    monkeypatch.setattr(serve, "time", SimpleNamespace(monotonic=time))
    more = asyncio.Event()
    chunks = Generated(content="Let me think.", top=None).chunks()
    pieces: list[Piece] = [stream_bytes(chunks[:3], done=False), more, stream_bytes(chunks[3:])]
    plain = answer(Generated(content="Oslo."), False)
    async with (
        scripted(Answer(pieces, 200, [EVENTS], length=False), plain) as upstream,
        ending(upstream.url, drain_delay_s=10.0, shutdown_grace_s=60) as (server, proxy),
        proxy.client.post("/v1/chat/completions", json=chat(stream=True)) as response,
    ):
        early = await response.content.readany()
        server.drain()
        async with proxy.client.get("/readyz") as ready:
            assert (ready.status, await ready.json()) == (503, {"status": "draining"})
        assert (await proxy.chat(chat()))[0] == 200
        time.now += 9.9
        for turn in range(2):
            assert not await server.on_tick(turn)
        time.now += 0.2
        await eventually(lambda: server.should_exit)
        more.set()
        assert assembled(early + await response.content.read()).content == "Let me think."


async def test_the_end_has_a_deadline() -> None:
    """A stream that never ends is cut off, so that its reader sees that it is not whole, and upstream that
    nobody reads."""
    endless = Answer([stream_bytes(CALLING.chunks()[:3], done=False), HANG], 200, [EVENTS], length=False)
    async with (
        scripted(endless) as upstream,
        ending(upstream.url, drain_delay_s=0, shutdown_grace_s=1) as (server, proxy),
        proxy.client.post("/v1/chat/completions", json=chat(stream=True)) as response,
    ):
        await response.content.readany()
        server.drain()
        with pytest.raises(aiohttp.ClientError):
            await response.content.read()
        async with asyncio.timeout(PATIENCE_S):
            await upstream.gone.acquire()


@asynccontextmanager
async def ending(upstream_url: str, **server: float) -> AsyncIterator[tuple[Server, Proxied]]:
    """A proxy as `governor serve` runs it, and its server. The heap is left as it was found."""
    collect_after = gc.get_threshold()
    sections: dict[str, Any] = {"server": server, "store": {"path": ":memory:"}}
    settings = Settings(**sections)
    app = create_app(settings, upstream_url=upstream_url, registry=CollectorRegistry())
    running = Server(
        configuration(settings, app),
        on_started=lambda: None,
        on_draining=app.drain,
        drain_delay_s=settings.server.drain_delay_s,
    )
    bound = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    serving = asyncio.create_task(running.serve([bound]))
    while not running.started:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    try:
        async with aiohttp.ClientSession(url, auto_decompress=False) as client:
            yield running, Proxied(app, client, url)
    finally:
        running.should_exit = True
        await serving
        bound.close()
        gc.unfreeze()
        gc.set_threshold(*collect_after)
