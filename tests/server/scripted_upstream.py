"""A server that answers as a script says, with pauses and accidents; and a proxy in front of it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import aiohttp
import uvicorn
from prometheus_client import CollectorRegistry

from governor_server.app import GovernorApp, create_app
from governor_server.serve import configuration
from governor_server.settings import Settings
from tests.server.waiting import eventually
from tests.wire.generated import Generated, stream_bytes
from tests.wire.recorded import Recorded

JSON = ("content-type", "application/json")
EVENTS = ("content-type", "text/event-stream; charset=utf-8")


class Accident(Enum):
    """What can happen instead of the next bytes."""

    ABORT = "abort"
    """The connection is reset."""
    CLOSE = "close"
    """The connection is closed in good order."""
    HANG = "hang"
    """Nothing more comes until the client goes away."""


ABORT, CLOSE, HANG = Accident.ABORT, Accident.CLOSE, Accident.HANG
Piece = bytes | float | asyncio.Event | Accident
"""Bytes to write, seconds to wait, an event to wait for, or an accident."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: without `length` the body is sent chunked, one chunk a piece of bytes. `before` comes before
    the status line, its bytes as they are."""

    pieces: Sequence[Piece] = ()
    status: int = 200
    headers: Sequence[tuple[str, str]] = (JSON,)
    length: bool = True
    before: Sequence[Piece] = ()

    @classmethod
    def whole(cls, body: Mapping[str, Any] | Generated, status: int = 200) -> Answer:
        """A JSON body."""
        body = body.response() if isinstance(body, Generated) else body
        return cls([json.dumps(body).encode()], status)

    @classmethod
    def stream(cls, source: Generated | bytes, *more: Piece, usage: bool = False) -> Answer:
        """A stream of events; `more` comes after it."""
        events = stream_bytes(source.chunks(usage=usage)) if isinstance(source, Generated) else source
        return cls([events, *more], headers=(EVENTS,), length=False)

    @classmethod
    def of(cls, recording: Recorded) -> Answer:
        """What was recorded."""
        streamed = "event-stream" in recording.headers.get("content-type", "")
        return cls(
            [recording.body],
            recording.status,
            (("content-type", recording.headers["content-type"]), ("vary", "Origin")),
            length=not streamed,
        )


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it arrived."""

    method: str
    target: str
    headers: Sequence[tuple[str, str]]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.body)
        return parsed

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


@dataclass(slots=True)
class ScriptedUpstream:
    """Answers each request with the next answer of `script`. `gone` counts the clients that left before the
    end of theirs, `connections` those that came; `asked` is set by every request."""

    script: deque[Answer] = field(default_factory=deque)
    received: list[Received] = field(default_factory=list)
    gone: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    connections: int = 0
    url: str = ""
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            early = b""
            while (request := await read_request(reader, early)) is not None:
                # What comes on a connection that was closed by then is read by nobody.
                if writer.is_closing():
                    break
                early = await self._answer(request, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(
        self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes:
        """Returns what came of the next request meanwhile."""
        if request.target == "/health":
            # So that the first request of a test has a connection of its own.
            answer = Answer([b""], headers=[("connection", "close")])
        elif request.target == "/tokenize" and request.json.get("prompt") == "<tool_call>":
            answer = Answer.whole({"tokens": [8], "count": 1})
        else:
            self.received.append(request)
            self.asked.set()
            answer = self.answer_to(request)
        leaving = asyncio.create_task(_left(reader))
        playing = asyncio.create_task(play(answer, writer, head_only=request.method == "HEAD"))
        await asyncio.wait({leaving, playing}, return_when=asyncio.FIRST_COMPLETED)
        # A client that has all of its answer may ask again before the script has come to its end.
        if not playing.done() and not leaving.result():
            self.gone.release()
        early = b""
        for other in (leaving, playing):
            other.cancel()
        with suppress(asyncio.CancelledError):
            early = await leaving
        with suppress(asyncio.CancelledError, ConnectionError):
            await playing
        return early

    def answer_to(self, request: Received) -> Answer:
        """The answer to a request that has just arrived."""
        return self.script.popleft()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _left(reader: asyncio.StreamReader) -> bytes:
    """Returns when the client closes the connection, or the first byte of its next request."""
    with suppress(ConnectionError):
        return await reader.read(1)
    return b""


async def read_request(reader: asyncio.StreamReader, early: bytes = b"") -> Received | None:
    """The next request, of which `early` was read already; None where the client is done."""
    head = early + await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b""
    if not head:
        return None
    line, *rows = head.decode("latin-1").strip().split("\r\n")
    method, target, _ = line.split(" ")
    headers = [(name, value) for name, _, value in (row.partition(": ") for row in rows)]
    lower = {name.lower(): value for name, value in headers}
    if lower.get("transfer-encoding") == "chunked":
        body = b""
        while size := await _chunk_size(reader):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    else:
        body = await reader.readexactly(int(lower.get("content-length", 0)))
    return Received(method, target, headers, body)


async def _chunk_size(reader: asyncio.StreamReader) -> int:
    line = await reader.readline()
    if not line:
        raise asyncio.IncompleteReadError(line, None)
    return int(line, 16)


async def play(answer: Answer, writer: asyncio.StreamWriter, *, head_only: bool = False) -> None:
    for piece in answer.before:
        await _pause(piece, writer)
    headers = [f"{name}: {value}" for name, value in answer.headers]
    size = sum(len(piece) for piece in answer.pieces if isinstance(piece, bytes))
    headers.append(f"content-length: {size}" if answer.length else "transfer-encoding: chunked")
    writer.write("\r\n".join([f"HTTP/1.1 {answer.status} Scripted", *headers, "", ""]).encode("latin-1"))
    for piece in () if head_only else answer.pieces:
        if not isinstance(piece, bytes):
            await _pause(piece, writer)
        elif piece:
            writer.write(piece if answer.length else b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
    if not answer.length:
        writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _pause(piece: Piece, writer: asyncio.StreamWriter) -> None:
    if isinstance(piece, float):
        await asyncio.sleep(piece)
    elif isinstance(piece, asyncio.Event):
        await piece.wait()
    elif isinstance(piece, bytes):
        writer.write(piece)
        await writer.drain()
    elif piece is ABORT:
        writer.transport.abort()
        raise ConnectionResetError
    elif piece is CLOSE:
        writer.close()
        raise ConnectionResetError
    elif piece is HANG:
        await asyncio.sleep(3600)


@asynccontextmanager
async def scripted(
    *answers: Answer, kind: type[ScriptedUpstream] = ScriptedUpstream
) -> AsyncIterator[ScriptedUpstream]:
    """A scripted upstream on a free port."""
    upstream = kind(deque(answers))
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.url = "http://{}:{}".format(*server.sockets[0].getsockname()[:2])
    try:
        yield upstream
    finally:
        server.close()
        await upstream.close()


@dataclass(frozen=True, slots=True)
class Proxied:
    """A proxy that runs, and a client to use it with."""

    app: GovernorApp
    client: aiohttp.ClientSession
    url: str

    async def chat(self, body: Mapping[str, Any], **headers: str) -> tuple[int, Mapping[str, str], bytes]:
        """POST a chat completion; header names are written with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.client.post("/v1/chat/completions", json=body, headers=named) as response:
            return response.status, response.headers, await response.read()

    def metric(self, name: str, **labels: str) -> float:
        """The value of one of the governor's metrics at a scrape now, 0 if it was never touched."""
        self.app.metrics.render()
        return self.app.metrics.registry.get_sample_value(name, labels) or 0.0

    async def until(self, metric: str, value: float, **labels: str) -> None:
        """Returns once a metric has that value. Raises TimeoutError."""
        await eventually(lambda: self.metric(metric, **labels) == value)


class PromptServer(uvicorn.Server):
    """One that looks whether it has ended when it has, and not ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.serving = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        self.serving.set_result(None)
        await self.ended.wait()


@asynccontextmanager
async def proxied(
    behind: ScriptedUpstream | str,
    /,
    mode: str = "enforce",
    *,
    call_start_id: int | None = 7,
    **sections: Mapping[str, Any],
) -> AsyncIterator[Proxied]:
    """A proxy in front of the server `behind`; `sections` are added to its settings."""
    configured: dict[str, Any] = {
        "store": {"path": ":memory:"},
        "tools": {"read_only": ["lookup", "find*"], "effectful": ["book"]},
        # No lots, unless a test is about them.
        "experiment": {"holdout": 0, "exploration": 0, "labels": 0},
        "server": {"shutdown_grace_s": 2},
        **sections,
    }
    configured["governance"] = {"mode": mode, "policy": "threshold", **sections.get("governance", {})}
    url = behind if isinstance(behind, str) else behind.url
    settings = Settings(**configured)
    registry = CollectorRegistry()
    app = create_app(
        settings, upstream_url=url, registry=registry, call_start_id=call_start_id, vocab_size=4096
    )
    bound = socket.create_server(("127.0.0.1", 0))
    server = PromptServer(configuration(settings, app))
    serving = asyncio.create_task(server.serve([bound]))
    try:
        await asyncio.wait({serving, server.serving}, return_when=asyncio.FIRST_COMPLETED)
        base = f"http://127.0.0.1:{bound.getsockname()[1]}"
        async with aiohttp.ClientSession(base, auto_decompress=False) as client:
            yield Proxied(app, client, base)
    finally:
        server.ended.set()
        await serving
        bound.close()
