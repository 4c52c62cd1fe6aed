"""What is announced upstream is what is sent, however a client frames its request; what has two readings goes
no further."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from io import BytesIO
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governor_server.paths import is_chat
from governor_server.upstream import Stream, Upstream, UpstreamError
from tests.server.echo_upstream import Behaviour, echoing
from tests.server.framings import ARRIVING, CUT, INNER, METHODS, REFUSED, Request, framed
from tests.server.scripted_upstream import HANG, Answer, Piece, proxied, scripted
from tests.server.two_tenants import Wire, digest
from tests.wire.generated import Generated, chat, made

BODIES = (b"", b"{}", b"x" * 70_000, *INNER)
QUICK: dict[str, Any] = {"limits": {"body_timeout_s": 0.2, "header_timeout_s": 0.2}}


@pytest.mark.parametrize("name", ARRIVING)
async def test_a_request_arrives_whole_however_it_is_framed(name: str) -> None:
    """By any method and with any body, its length upstream is that of the bytes sent there, and neither an
    offer to change the protocol nor what follows a body changes its head."""
    async with echoing() as upstream, proxied(upstream.url) as proxy:
        for method in METHODS:
            for number, body in enumerate(BODIES):
                nonce = f"{method}.{number}"
                request = Request(method, "/v1/embeddings?x", {"x-nonce": nonce}, body)
                one = framed(name, request, Random(1))
                async with Wire.to(proxy.url) as wire:
                    wire.writer.write(one.raw)
                    seen = await wire.answer(head_only=method == "HEAD")
                (noted,) = upstream.noted
                upstream.noted.clear()
                assert (seen.status, noted.nonce, noted.body == body) == (200, nonce, True)
                assert noted.announced in (None, len(body))
                names = {name for name, _ in noted.headers}
                assert not names & {"upgrade", "http2-settings", "expect", "te", "trailer", "connection"}
    assert not upstream.garbage


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("target", ["/v1/chat/completions", "/v1/embeddings"])
async def test_what_has_two_readings_or_none_is_refused(name: str, target: str) -> None:
    """Before upstream hears of it, with an error that a client can read, and the connection is closed."""
    async with echoing() as upstream, proxied(upstream.url) as proxy:
        one = framed(name, Request("POST", target, {}, b"{}"), Random(1))
        async with Wire.to(proxy.url) as wire:
            wire.writer.write(one.raw)
            seen = await wire.answer()
            if name not in ("TRACE", "asterisk", "asterisk before a host"):
                assert await wire.reader.read() == b""
    assert 400 <= seen.status < 600
    assert set(json.loads(seen.body)["error"]) == {"message", "type", "param", "code"}
    assert not upstream.noted


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("target", ["/v1/chat/completions", "/v1/embeddings"])
@pytest.mark.parametrize("leaves", [True, False])
async def test_half_a_request_is_no_request(name: str, target: str, leaves: bool) -> None:
    """Whether its client goes away or says nothing more: 408 in the end, or what cannot be read is refused;
    upstream never takes it for a whole one, and no place is lost."""
    async with echoing() as upstream, proxied(upstream.url, **QUICK) as proxy:
        one = framed(name, Request("POST", target, {"x-nonce": "half"}, b"x" * 5000), Random(3))
        async with Wire.to(proxy.url) as wire:
            wire.writer.write(one.raw)
            if leaves:
                wire.end()
            async with asyncio.timeout(10):
                told = await wire.reader.read()
        assert not told or told.startswith((b"HTTP/1.1 408 ", b"HTTP/1.1 400 "))
        await proxy.until("governor_running_requests", 0)
    assert not any(noted.complete for noted in upstream.noted if noted.nonce == "half")


async def test_a_tunnel_is_refused_in_words() -> None:
    """Whoever set the governor as a proxy for all addresses learns what it is."""
    async with scripted() as upstream, proxied(upstream) as proxy, Wire.to(proxy.url) as wire:
        wire.writer.write(b"CONNECT api.openai.com:443 HTTP/1.1\r\nhost: api.openai.com:443\r\n\r\n")
        seen = await wire.answer()
    assert seen.status == 405
    assert "not a proxy" in json.loads(seen.body)["error"]["message"]


@pytest.mark.parametrize("early", [Behaviour.EARLY, Behaviour.EARLY_CLOSE, Behaviour.LATE])
async def test_an_offer_of_one_tenant_leaves_nothing_for_another(early: Behaviour) -> None:
    """The attack: Java's offer of HTTP/2 with a POST, whose body got lost while its length was announced; the
    next request on the connection, of any tenant, was taken for that body. There is one connection here."""
    keys = {"keys": [{"tenant": name, "sha256": digest(name)} for name in ("java", "other")]}
    sections: dict[str, Any] = {"auth": keys, "upstream": {"max_connections": 1}}
    async with echoing() as upstream, proxied(upstream.url, **sections) as proxy:
        for number in range(4):
            headers = {"authorization": "Bearer java", "x-nonce": "java", "x-behaviour": early.value}
            request = Request("POST", "/v1/nothing", headers, b"x" * 300)
            async with Wire.to(proxy.url) as wire:
                wire.writer.write(framed("offer of Java", request, Random(1)).raw)
                assert (await wire.answer()).nonce == "java"
            theirs = {"authorization": "Bearer other", "x-nonce": f"other.{number}"}
            async with asyncio.timeout(10), proxy.client.get("/v1/models", headers=theirs) as response:
                assert (await response.json())["nonce"] == f"other.{number}"
    assert not upstream.garbage


@pytest.mark.parametrize("method", METHODS)
async def test_an_answer_before_the_end_of_the_request_ends_the_connection(method: str) -> None:
    """The rest of a body that goes on while upstream has answered would be the next request on it."""
    async with echoing() as upstream, proxied(upstream.url, upstream={"max_connections": 1}) as proxy:
        headers = {"x-nonce": "early", "x-behaviour": Behaviour.EARLY.value}
        request = Request(method, "/v1/files", headers)
        async with Wire.to(proxy.url) as wire:
            wire.writer.write(request.head("transfer-encoding: chunked") + b"3\r\nabc\r\n")
            assert (await wire.answer(head_only=method == "HEAD")).status == 200
            async with proxy.client.get("/v1/models", headers={"x-nonce": "next"}) as response:
                assert (await response.json())["nonce"] == "next"
            wire.writer.write(b"0\r\n\r\n")
    assert not upstream.garbage
    assert not any(noted.complete for noted in upstream.noted if noted.nonce == "early")


@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS"])
async def test_a_body_that_a_server_may_overlook_ends_the_connection(method: str) -> None:
    """A server that answers a GET without looking for a body would read it as the next request."""
    answers = [Answer([b"1"]), Answer([b"2"])]
    async with scripted(*answers) as upstream, proxied(upstream, upstream={"max_connections": 1}) as proxy:
        before = upstream.connections
        async with proxy.client.request(method, "/v1/models", data=b"GET / HTTP/1.1\r\n\r\n") as response:
            assert await response.read() == b"1"
        async with proxy.client.get("/v1/models") as response:
            assert await response.read() == b"2"
        assert upstream.connections == before + 2


async def test_an_answer_that_nobody_asked_for_is_nobodys() -> None:
    """It lies on an idle connection, where it would be taken for the answer to whatever is asked next."""
    async with echoing() as upstream, proxied(upstream.url, upstream={"max_connections": 1}) as proxy:
        for number in range(20):
            behaviour = Behaviour.MORE if number % 2 else Behaviour.LATE
            headers = {"x-nonce": str(number), "x-behaviour": behaviour.value}
            async with proxy.client.post("/v1/embeddings", data=b"{}", headers=headers) as response:
                if behaviour is Behaviour.LATE:
                    assert (await response.json())["nonce"] == str(number)
                await response.read()


@pytest.mark.parametrize("length", [2, 4])
async def test_a_stream_of_another_length_than_announced_is_not_sent_as_a_whole(length: int) -> None:
    """Whatever made the mistake, upstream can tell, and the connection carries nothing else."""

    async def pieces() -> Any:
        yield b"abc"

    async with echoing() as upstream, Upstream(upstream.url, read_timeout_s=5) as client:
        with pytest.raises(UpstreamError):
            async with client.request("POST", b"/v1/files", [], Stream(pieces(), length)) as response:
                await response.read()
        async with client.request("GET", b"/v1/models", [(b"x-nonce", b"next")]) as response:
            assert json.loads(await response.read())["nonce"] == "next"
    assert not upstream.garbage


async def test_no_target_reaches_another_host() -> None:
    """`*@host` behind upstream's address would be a name and a password for `host`, with upstream's key."""
    async with echoing() as upstream, Upstream(upstream.url) as client:
        for target in (b"*@127.0.0.1:9/", b"", b"@host/", b":80/"):
            with pytest.raises(ValueError, match="no path"):
                async with client.request("GET", target, []):
                    pass


async def test_a_client_that_sent_more_and_leaves_ends_the_first_request_upstream() -> None:
    """The web server knows of the last request on a connection only; the first one is the one that runs."""
    async with scripted(Answer(before=[HANG])) as upstream, proxied(upstream) as proxy:
        async with Wire.to(proxy.url) as wire:
            one = Request("POST", "/v1/embeddings", {}, b"{}")
            wire.writer.write(framed("length", one, Random(1)).raw * 3)
            await upstream.asked.wait()
        async with asyncio.timeout(5):
            await upstream.gone.acquire()
        await proxy.until("governor_running_requests", 0)


async def test_a_bad_request_behind_others_does_not_cut_into_their_answers() -> None:
    """They are answered first, whole and in order; then the error."""
    go_on = asyncio.Event()
    answers = [Answer([b"a" * 100, go_on, b"b" * 100]), Answer([b"second"])]
    async with scripted(*answers) as upstream, proxied(upstream) as proxy, Wire.to(proxy.url) as wire:
        one = framed("length", Request("POST", "/v1/embeddings", {}, b"{}"), Random(1)).raw
        wire.writer.write(one + one + b"NONSENSE\r\n\r\n")
        await upstream.asked.wait()
        go_on.set()
        bodies = [(await wire.answer()).body for _ in range(2)]
        last = await wire.answer()
        assert await wire.reader.read() == b""
    assert bodies == [b"a" * 100 + b"b" * 100, b"second"]
    assert last.status == 400


# Time


@pytest.mark.parametrize("target", ["/v1/chat/completions", "/v1/embeddings"])
@pytest.mark.parametrize("every_s", [0.05, None])
async def test_a_body_that_trickles_is_given_up(target: str, every_s: float | None) -> None:
    """A byte now and then does not help, and neither its place nor its connection is lost."""
    async with echoing() as upstream, proxied(upstream.url, **QUICK) as proxy, Wire.to(proxy.url) as wire:
        wire.writer.write(Request("POST", target).head("content-length: 5000") + b"x")

        async def trickle() -> None:
            while every_s is not None:
                await asyncio.sleep(every_s)
                wire.writer.write(b"x")

        trickling = asyncio.create_task(trickle())
        async with asyncio.timeout(10):
            seen = await wire.answer()
            assert (seen.status, json.loads(seen.body)["error"]["type"]) == (408, "request_timeout")
            # What is still on its way to a connection that is closed resets it.
            with suppress(ConnectionResetError):
                assert await wire.reader.read() == b""
        trickling.cancel()
        await proxy.until("governor_running_requests", 0)
        assert proxy.metric("governor_upstream_failures_total", reason="broken") == 0


@pytest.mark.parametrize("path", ["/dashboard/login", "/governor/feedback"])
async def test_the_governors_own_routes_wait_no_longer(path: str) -> None:
    """Of which the first is open to everybody."""
    async with scripted() as upstream, proxied(upstream, **QUICK) as proxy, Wire.to(proxy.url) as wire:
        wire.writer.write(
            Request("POST", path)
            .head("content-length: 50", "origin: http://127.0.0.1")
            .replace(b"host: governor", b"host: 127.0.0.1")
            + b"key"
        )
        async with asyncio.timeout(10):
            await wire.reader.read()


async def test_an_answer_that_began_ends_with_a_body_that_does_not_come() -> None:
    """Upstream waits for the rest, and the client for upstream."""
    async with echoing() as upstream, proxied(upstream.url, **QUICK) as proxy:
        headers = {"x-nonce": "half", "x-behaviour": Behaviour.EARLY_HALF.value}
        async with Wire.to(proxy.url) as wire:
            wire.writer.write(Request("POST", "/v1/files", headers).head("content-length: 9") + b"x")
            async with asyncio.timeout(10):
                seen = await wire.answer()
                assert (seen.status, seen.whole) == (200, False)
            await proxy.until("governor_running_requests", 0)


@pytest.mark.parametrize("size", [1000, 5_000_000])
@pytest.mark.parametrize("chunked", [True, False])
async def test_an_upstream_that_does_not_read_is_given_up(size: int, chunked: bool) -> None:
    """504, as one that reads and does not answer."""
    quick: dict[str, Any] = {"read_timeout_s": 0.2, "connect_timeout_s": 0.2, "pool_timeout_s": 0.2}

    async def pieces() -> Any:
        for _ in range(10):
            yield b"x" * (size // 10)

    async with echoing() as upstream, proxied(upstream.url, upstream=quick) as proxy:
        headers = {"x-behaviour": Behaviour.UNREAD.value}
        for path in ("/v1/files", "/v1/chat/completions"):
            data = pieces() if chunked else BytesIO(b"x" * size)
            async with (
                asyncio.timeout(400 if size > 100_000 else 10),
                proxy.client.post(path, data=data, headers=headers) as response,
            ):
                assert response.status == 504
        upstream.over.set()


async def test_a_client_that_reads_nothing_gives_its_place_back() -> None:
    """And upstream's with it; the connection does not stay open for what it has not read."""
    endless: list[Piece] = [b"data: " + b"x" * 100_000 + b"\n\n"] * 400
    answer = Answer(endless, headers=[("content-type", "text/event-stream")], length=False)
    async with (
        scripted(answer) as upstream,
        proxied(upstream, limits={"write_timeout_s": 0.2}) as proxy,
        Wire.to(proxy.url) as wire,
    ):
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        wire.writer.write(Request("POST", "/v1/embeddings").head("content-length: 2") + b"{}")
        await upstream.asked.wait()
        await proxy.until("governor_running_requests", 0)


@pytest.mark.parametrize("sent", [b"\r\n", b"\r\n\r\n\r\n"])
async def test_a_connection_is_not_kept_by_empty_lines(sent: bytes) -> None:
    """They are no request, and stop the clock that runs between requests."""
    async with echoing() as upstream, proxied(upstream.url, **QUICK) as proxy, Wire.to(proxy.url) as wire:
        for _ in range(3):
            wire.writer.write(sent)
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            assert await wire.reader.read() == b""


async def test_the_rest_of_a_refused_body_keeps_no_connection() -> None:
    """413 was told; what still comes is dropped, but not for ever."""
    limits = {"max_body_bytes": 100, "body_timeout_s": 0.2}
    async with (
        echoing() as upstream,
        proxied(upstream.url, limits=limits) as proxy,
        Wire.to(proxy.url) as wire,
    ):
        wire.writer.write(Request("POST", "/v1/files").head("content-length: 5000") + b"x" * 200)
        assert (await wire.answer()).status == 413
        wire.writer.write(b"x")
        async with asyncio.timeout(10):
            assert await wire.reader.read() == b""


async def test_a_refusal_that_a_client_did_not_wait_for_is_the_last() -> None:
    """It may send its body or not: whichever it is, the next request must not be taken for it."""
    async with (
        echoing() as upstream,
        proxied(upstream.url, limits={"max_body_bytes": 100}) as proxy,
        Wire.to(proxy.url) as wire,
    ):
        wire.writer.write(Request("POST", "/v1/files").head("content-length: 5000", "expect: 100-continue"))
        assert (await wire.answer()).status == 413
        assert await wire.reader.read() == b""


@pytest.mark.parametrize("last", [b"0\r\nx: ", b"5;"])
async def test_what_stands_around_a_body_has_a_bound(last: bytes) -> None:
    """A trailer or an extension of a chunk without end would fill the memory."""
    async with echoing() as upstream, proxied(upstream.url, limits={"max_header_bytes": 10_000}) as proxy:
        async with Wire.to(proxy.url) as wire:
            wire.writer.write(Request("POST", "/v1/files").head("transfer-encoding: chunked") + last)
            async with asyncio.timeout(10):
                while not wire.reader.at_eof() and not wire.writer.is_closing():
                    wire.writer.write(b"y" * 3000)
                    await asyncio.sleep(0)
                    if heard(wire):
                        break
        await proxy.until("governor_running_requests", 0)
    assert not any(noted.complete for noted in upstream.noted if noted.target == "/v1/files")


def heard(wire: Wire) -> bool:
    """Whether the server has said anything, or closed."""
    return bool(getattr(wire.reader, "_buffer", b"")) or wire.reader.at_eof()


# Paths


@pytest.mark.parametrize(
    ("path", "chat"),
    [
        ("/v1/chat/completions", True),
        ("//v1/chat/completions", True),
        ("/v1//chat/completions", True),
        ("/v1/chat/completions/", True),
        ("/./v1/chat/completions", True),
        ("/x/../v1/chat/completions", True),
        ("/v1/chat/completions;x=1", True),
        ("/V1/Chat/Completions", True),
        ("/v1/chat%2Fcompletions", True),
        ("/v1/chat/completion%2573", True),
        ("/v1\\chat\\completions", True),
        ("/invocations", True),
        ("/v1/chat/completions/x", False),
        ("/v1/chat/completions/render", False),
        ("/v1/completions", False),
        ("/v1/chat/../completions", False),
        ("/x/v1/chat/completions", False),
        ("/", False),
        ("", False),
    ],
)
def test_a_chat_is_known_by_any_spelling(path: str, chat: bool) -> None:
    """Of which a server in front of upstream may make the one that upstream knows."""
    assert is_chat(path) is chat


SPELLINGS = st.lists(
    st.sampled_from(
        [
            "/",
            "//",
            "/./",
            "v1",
            "V1",
            "chat",
            "completions",
            "%2F",
            "%2e",
            "..",
            ";a",
            "governor",
            "decisions",
        ]
    ),
    max_size=9,
).map(lambda parts: "/" + "".join(parts))


@given(SPELLINGS)
def test_a_path_is_chat_or_not_however_often_it_is_made_normal(path: str) -> None:
    """One more server on the way changes nothing."""
    from governor_server.paths import normal_path

    assert normal_path(normal_path(path)) == normal_path(path)
    assert is_chat(path) is is_chat(normal_path(path))


@pytest.mark.parametrize(
    "target",
    [
        "//v1/chat/completions",
        "/v1/chat%2Fcompletions",
        "/v1/chat/completions/",
        "/v1/./chat/completions;x?y=1",
        "http://elsewhere/v1/chat/completions",
        "/invocations",
    ],
)
async def test_no_spelling_of_the_path_goes_round_the_governor(target: str) -> None:
    """A repeat is withheld, and the client's own bytes name the path upstream."""
    call = ("c1", "lookup", '{"country": "Norway"}')
    again = Answer.whole(Generated(calls=[("c2", *call[1:])]))
    said = Answer.whole(Generated(content="Oslo."))
    async with scripted(again, said, said, said) as upstream, proxied(upstream) as proxy:
        body = json.dumps(chat({"role": "user", "content": "Capital?"}, *made(call))).encode()
        async with Wire.to(proxy.url) as wire:
            request = Request("POST", target, {"content-type": "application/json"}, body)
            wire.writer.write(framed("length", request, Random(1)).raw)
            seen = await wire.answer()
        assert seen.status == 200
        assert proxy.metric("governor_requests_total", route="chat", code="200") == 1
    assert b'"c2"' not in seen.body
    assert upstream.received[0].target == target.removeprefix("http://elsewhere")


ODD_PATHS = (
    "/governor/decisions",
    "//governor/decisions",
    "/governor//decisions",
    "/governor/decisions/",
    "/governor/./decisions",
    "/governor%2Fdecisions",
    "/GOVERNOR/decisions",
    "/governor/decisions;x",
    "/dashboard/../governor/decisions",
    "/dashboard/static/x/..%2F..%2F..%2Fgovernor%2Fdecisions",
    "/dashboard/api/overview",
    "/dashboard//api/overview",
    "/dashboard/./api/overview",
    "/dashboard%2Fapi%2Foverview",
    "/dashboard/api/overview/",
    "/dashboard/events",
    "/metrics",
    "//metrics",
    "/metrics/",
    "http://localhost/governor/decisions",
    "/healthz/../governor/decisions",
)


@pytest.mark.parametrize("target", ODD_PATHS)
@pytest.mark.parametrize("key", ["", "client"])
async def test_no_spelling_of_a_path_opens_what_is_the_operators(target: str, key: str) -> None:
    """Without the operator's key nothing of it is shown; what the governor does not know goes to upstream, if
    it may."""
    auth = {"keys": [{"tenant": "t", "sha256": digest("client")}], "admin_keys": [digest("operator")]}
    async with echoing() as upstream, proxied(upstream.url, auth=auth) as proxy:
        headers = {"authorization": f"Bearer {key}", "x-nonce": "n"} if key else {}
        async with Wire.to(proxy.url) as wire:
            wire.writer.write(Request("GET", target, headers).head())
            seen = await wire.answer()
    if seen.status == 200:
        assert key and seen.nonce == "n" and len(upstream.noted) == 1
    else:
        assert 300 <= seen.status < 500 and not upstream.noted
