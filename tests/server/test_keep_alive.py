"""A client hears something while a call is held back, and never in the middle of an event.

Time is the tests' own: the proxy's pauses end when a test says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from openai import AsyncOpenAI

from governor_server.asgi import Message, Reply
from governor_server.keep_alive import COMMENT, KeepAlive
from governor_server.settings import Settings
from tests.server.bodies import assembled
from tests.server.scripted_upstream import EVENTS, Answer, Piece, Proxied, ScriptedUpstream, proxied, scripted
from tests.wire.generated import Generated, chat, stream_bytes

NORWAY = ("c1", "lookup", '{"country": "Norway", "field": "capital"}')
CALLING = Generated(content="Let me look.", calls=[NORWAY], top=20)
UNSURE = Generated(content="Oslo", sure=0.4)
SURE = Generated(content="Oslo")


class Pauses:
    """Pauses that end one by one, as a test likes."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self._ended = asyncio.Semaphore(0)

    async def sleep(self, seconds: float) -> None:
        self.asked.append(seconds)
        await self._ended.acquire()

    def end_one(self) -> None:
        self._ended.release()


@asynccontextmanager
async def paused(
    upstream: ScriptedUpstream, mode: str = "enforce", **sections: object
) -> AsyncIterator[tuple[Proxied, Pauses]]:
    """A proxy whose pauses are the test's."""
    async with proxied(upstream, mode, **sections) as proxy:  # type: ignore[arg-type]
        pauses = Pauses()
        proxy.app.proxy.sleep = pauses.sleep
        yield proxy, pauses


async def read_until(response: aiohttp.ClientResponse, found: Callable[[bytes], bool]) -> bytes:
    """What has come once `found` says that it is enough."""
    came = b""
    while not found(came):
        piece = await response.content.readany()
        assert piece, came
        came += piece
    return came


def asking(proxy: Proxied) -> aiohttp.client._RequestContextManager:
    return proxy.client.post("/v1/chat/completions", json=chat(stream=True))


async def test_a_client_hears_something_while_a_call_is_held_back() -> None:
    """However long the call takes, and as often as it takes."""
    chunks = CALLING.chunks()
    more = asyncio.Event()
    pieces: list[Piece] = [stream_bytes(chunks[:-8], done=False), more, stream_bytes(chunks[-8:])]
    answer = Answer(pieces, 200, [EVENTS], length=False)
    async with (
        scripted(answer, Answer.whole(UNSURE)) as upstream,
        paused(upstream) as (proxy, pauses),
        asking(proxy) as response,
    ):
        await read_until(response, lambda came: b"look." in came)
        for _ in range(3):
            pauses.end_one()
            assert await read_until(response, bool) == COMMENT
        more.set()
        rest = await response.content.read()
    assert assembled(rest).calls == (NORWAY,)
    assert set(pauses.asked) == {2.0}


async def test_a_client_hears_something_before_the_first_content() -> None:
    """What opens the message waits until it is sure that upstream takes the request."""
    more = asyncio.Event()
    opening, *rest = SURE.chunks()
    pieces: list[Piece] = [stream_bytes([opening], done=False), more, stream_bytes(rest)]
    answer = Answer(pieces, 200, [EVENTS], length=False)
    async with scripted(answer) as upstream, paused(upstream) as (proxy, pauses):
        pauses.end_one()
        async with asking(proxy) as response:
            assert await read_until(response, bool) == COMMENT
            more.set()
            whole = await response.content.read()
    assert assembled(whole).content == "Oslo"


@pytest.mark.parametrize("action", ["answer", "notice"])
async def test_a_client_hears_something_while_a_probe_or_a_continuation_takes_its_time(action: str) -> None:
    """And then the message, whole."""
    probing, going_on = asyncio.Event(), asyncio.Event()
    probe = Answer([probing, *Answer.whole(SURE).pieces], length=False)
    later = Answer(
        [going_on, stream_bytes(Generated(content="It is Oslo.").chunks())], 200, [EVENTS], length=False
    )
    answers = [Answer.stream(CALLING), probe, *([later] if action == "notice" else [])]
    async with (
        scripted(*answers) as upstream,
        paused(upstream, governance={"action": action}) as (proxy, pauses),
        asking(proxy) as response,
    ):
        await read_until(response, lambda came: b"look." in came)
        for waiting in (probing, going_on)[: len(answers) - 1]:
            pauses.end_one()
            assert await read_until(response, bool) == COMMENT
            waiting.set()
        rest = await response.content.read()
    assert "Oslo" in assembled(rest.replace(COMMENT, b"")).content


@pytest.mark.parametrize(("mode", "calls"), [("observe", [NORWAY]), ("enforce", [])])
async def test_nothing_is_said_where_nothing_is_held_back(
    mode: str, calls: list[tuple[str, str, str]]
) -> None:
    """A stream that goes through as upstream sends it stays what upstream sent."""
    source = Answer.stream(Generated(content="Oslo.", calls=calls))
    async with (
        scripted(source, Answer.whole(SURE)) as upstream,
        paused(upstream, mode) as (proxy, pauses),
        asking(proxy) as response,
    ):
        await response.content.read()
    assert pauses.asked == []


async def test_after_a_call_went_out_nothing_is_said() -> None:
    """What upstream is silent about is upstream's."""
    book = ("c2", "book", '{"city": "Oslo"}')
    chunks = Generated(content="Oslo.\n", calls=[book]).chunks()
    more = asyncio.Event()
    # A swallowed marker and a blank wait for what follows; the call of `book` does not.
    pieces: list[Piece] = [stream_bytes(chunks[:-3], done=False), more, stream_bytes(chunks[-3:])]
    answer = Answer(pieces, 200, [EVENTS], length=False)
    async with scripted(answer) as upstream, paused(upstream) as (proxy, pauses), asking(proxy) as response:
        await read_until(response, lambda came: b'\\"Oslo\\"' in came)
        for _ in range(2):
            await after_a_pause(pauses)
        more.set()
        rest = await response.content.read()
    assert COMMENT not in rest


async def test_comments_of_upstream_pass_while_a_call_is_held_back() -> None:
    """Also those that come while the message goes on after a notice."""
    chunks = CALLING.chunks()
    more = asyncio.Event()
    pieces: list[Piece] = [
        stream_bytes(chunks[:-8], done=False) + b": first\n\n",
        more,
        stream_bytes(chunks[-8:]),
    ]
    again = asyncio.Event()
    on = stream_bytes(Generated(content="It is Oslo.").chunks())
    answers = [
        Answer(pieces, 200, [EVENTS], length=False),
        Answer.whole(SURE),
        Answer([b": second\n\n", again, on], 200, [EVENTS], length=False),
    ]
    async with (
        scripted(*answers) as upstream,
        paused(upstream, governance={"action": "notice"}) as (proxy, _),
        asking(proxy) as response,
    ):
        await read_until(response, lambda came: b": first\n\n" in came)
        more.set()
        await read_until(response, lambda came: b": second\n\n" in came)
        again.set()
        assert b"It" in await response.content.read()


async def test_a_client_that_leaves_while_a_call_is_held_back_leaves_nothing_behind() -> None:
    """Neither the request at upstream nor the comments."""
    chunks = CALLING.chunks()
    answer = Answer([stream_bytes(chunks[:-8], done=False), asyncio.Event()], 200, [EVENTS], length=False)
    async with scripted(answer) as upstream, paused(upstream) as (proxy, pauses):
        async with asking(proxy) as response:
            await read_until(response, lambda came: b"look." in came)
            pauses.end_one()
            await read_until(response, bool)
            response.close()
        async with asyncio.timeout(10):
            await upstream.gone.acquire()
            while any("KeepAlive" in repr(task) for task in asyncio.all_tasks()):  # noqa: ASYNC110
                await asyncio.sleep(0)


async def test_openai_skips_the_comments() -> None:
    """The SDK that most clients use makes the same message of it."""
    chunks = CALLING.chunks()
    more = asyncio.Event()
    pieces: list[Piece] = [stream_bytes(chunks[:-8], done=False), more, stream_bytes(chunks[-8:])]
    answer = Answer(pieces, 200, [EVENTS], length=False)
    async with (
        scripted(answer, Answer.whole(UNSURE)) as upstream,
        paused(upstream) as (proxy, pauses),
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0) as client,
    ):
        text, arguments = "", ""
        async for chunk in await client.chat.completions.create(**chat(), stream=True):
            for choice in chunk.choices:
                text += choice.delta.content or ""
                arguments += "".join(
                    call.function.arguments or "" for call in choice.delta.tool_calls or () if call.function
                )
            if text.endswith("look.") and not more.is_set():
                for _ in range(3):
                    await after_a_pause(pauses)
                more.set()
    assert (text, arguments) == ("Let me look.", NORWAY[2])


# Alone


class Written:
    """What a client was sent."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def send(self, message: Message) -> None:
        self.bodies.append(message["body"])


@asynccontextmanager
async def keeping(holds: Callable[[], bool]) -> AsyncIterator[tuple[KeepAlive, Pauses, Written]]:
    pauses, written = Pauses(), Written()
    alive = KeepAlive(Reply(written.send), 10.0, pauses.sleep, holds=holds)
    alive.begin()
    yield alive, pauses, written
    alive.end()


async def after_a_pause(pauses: Pauses) -> None:
    """Ends a pause, and returns when the next has begun."""
    begun = len(pauses.asked)
    pauses.end_one()
    async with asyncio.timeout(10):
        while len(pauses.asked) == begun:  # noqa: ASYNC110
            await asyncio.sleep(0)


@pytest.mark.parametrize("unfinished", [b"data: {", b"data: {}\n", b"data: {}\r\n", b"x" * 100])
async def test_nothing_is_put_into_an_event(unfinished: bytes) -> None:
    """An event too large to be read goes on in pieces."""
    async with keeping(lambda: True) as (alive, pauses, written):
        await asyncio.sleep(0)
        alive.sent(unfinished)
        for _ in range(3):
            await after_a_pause(pauses)
        assert written.bodies == []
        alive.sent(unfinished + b"\n\n")
        await after_a_pause(pauses)
        await after_a_pause(pauses)
        assert written.bodies


async def test_who_just_heard_something_hears_nothing_more() -> None:
    """Each pause is half of the longest silence, so that the longest silence is no longer than that."""
    async with keeping(lambda: True) as (alive, pauses, written):
        await asyncio.sleep(0)
        for _ in range(3):
            alive.sent(b"data: 1\n\n")
            await after_a_pause(pauses)
        assert written.bodies == []
        await after_a_pause(pauses)
        assert written.bodies == [COMMENT]
    assert set(pauses.asked) == {5.0}


async def test_silence_may_last_less_than_clients_wait() -> None:
    """httpx, under most Python clients, gives up after 5 seconds by default."""
    assert Settings().stream.max_silence_s < 5
