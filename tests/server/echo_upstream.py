"""An upstream that trusts what a request announces, answers early or late, and notes every byte.

Each answer names the request that it is for by its `x-nonce`, so that an answer that reaches somebody else is
found, and so is a request that was read out of another's body.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

LINES: Final = 64 * 1024
GOVERNORS_OWN: Final = frozenset({"/health", "/tokenize"})
"""What the governor asks for itself: not noted."""


class Behaviour(StrEnum):
    """When upstream answers, and what it does with the rest; clients ask for it in `x-behaviour`."""

    LATE = "late"
    """Once the body is there."""
    EARLY = "early"
    """At once, and the body is read afterwards."""
    EARLY_CLOSE = "early-close"
    """At once, without reading the body; then the connection is closed."""
    LATE_CLOSE = "late-close"
    """Once the body is there; then the connection is closed."""
    EARLY_HALF = "early-half"
    """The head at once, the rest when the body is there."""
    DRIP = "drip"
    """In pieces, chunked, and the end in the middle of one."""
    MORE = "more"
    """A second answer behind the first, which nobody asked for."""
    UNREAD = "unread"
    """Never: the body is not read at all."""
    SILENT = "silent"
    """Never, although the body was read."""
    RESET = "reset"
    """The connection is reset in the middle of the answer."""


@dataclass(slots=True)
class Noted:
    """A request as it stood on the wire. `announced` is its length, None where it came in chunks; `complete`:
    all of it came."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    announced: int | None = None
    body: bytes = b""
    complete: bool = False

    def all(self, name: str) -> list[str]:
        """The values of a header."""
        return [value for key, value in self.headers if key == name]

    @property
    def nonce(self) -> str:
        return ",".join(self.all("x-nonce"))


@dataclass(slots=True)
class EchoUpstream:
    """`garbage` is what came where a request should begin."""

    noted: list[Noted] = field(default_factory=list)
    garbage: list[bytes] = field(default_factory=list)
    open: int = 0
    url: str = ""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when nobody asks any more: what was left unread is read."""
    _tasks: set[asyncio.Task[object]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.open += 1
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.transport.abort()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; false ends the connection."""
        head = await reader.readuntil(b"\r\n\r\n")
        request = parsed(head)
        if request is None:
            self.garbage.append(head)
            return False
        if request.target not in GOVERNORS_OWN:
            self.noted.append(request)
        wanted = request.all("x-behaviour")
        behaviour = Behaviour(wanted[0]) if wanted else Behaviour.LATE
        answer = answer_to(request)
        if behaviour in (Behaviour.UNREAD, Behaviour.SILENT):
            if behaviour is Behaviour.UNREAD:
                await self.over.wait()
            while await reader.read(LINES):
                pass
            return False
        if behaviour in (Behaviour.EARLY, Behaviour.EARLY_CLOSE, Behaviour.EARLY_HALF):
            first = len(answer) - 5 if behaviour is Behaviour.EARLY_HALF else len(answer)
            writer.write(answer[:first])
            await writer.drain()
            answer = answer[first:]
            if behaviour is Behaviour.EARLY_CLOSE:
                return False
        await self._read_body(request, reader)
        if behaviour is Behaviour.RESET:
            writer.write(answer[:-3])
            await writer.drain()
            return False
        if behaviour is Behaviour.DRIP and request.method != "HEAD":
            await drip(answer, writer)
        else:
            writer.write(answer)
        if behaviour is Behaviour.MORE:
            writer.write(answer_to(Noted("GET", "/", [("x-nonce", "nobody")])))
        await writer.drain()
        return behaviour is not Behaviour.LATE_CLOSE

    async def _read_body(self, request: Noted, reader: asyncio.StreamReader) -> None:
        if request.announced is not None:
            while len(request.body) < request.announced:
                piece = await reader.read(request.announced - len(request.body))
                if not piece:
                    raise asyncio.IncompleteReadError(request.body, request.announced)
                request.body += piece
        else:
            while size := await self._size(reader):
                request.body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
        request.complete = True

    async def _size(self, reader: asyncio.StreamReader) -> int:
        line = await reader.readline()
        if not line.endswith(b"\r\n"):
            raise asyncio.IncompleteReadError(line, None)
        try:
            return int(line, 16)
        except ValueError:
            self.garbage.append(line)
            raise ConnectionResetError from None


async def drip(answer: bytes, writer: asyncio.StreamWriter) -> None:
    """The same answer in chunks, one at a time."""
    _, _, body = answer.partition(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
    for piece in (body[:3], body[3:]):
        await writer.drain()
        await asyncio.sleep(0)
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
    writer.write(b"0\r\n\r\n")


def answer_to(request: Noted) -> bytes:
    """Whose request it was, and by which method."""
    body = json.dumps({"nonce": request.nonce, "method": request.method}).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + (b"" if request.method == "HEAD" else body)


def parsed(head: bytes) -> Noted | None:
    """None where it is no head of a request, or its framing has two meanings."""
    try:
        line, *rows = head.decode("latin-1")[:-4].split("\r\n")
        method, target, version = line.split(" ")
        headers = [(name.lower(), value) for name, value in (row.split(": ", 1) for row in rows)]
    except ValueError:
        return None
    request = Noted(method, target, headers)
    lengths, codings = request.all("content-length"), request.all("transfer-encoding")
    if version != "HTTP/1.1" or len(lengths) + len(codings) > 1 or not target.startswith("/"):
        return None
    if not codings:
        request.announced = int(lengths[0]) if lengths else 0
    return request


@asynccontextmanager
async def echoing() -> AsyncIterator[EchoUpstream]:
    """One that runs, on a free port."""
    upstream = EchoUpstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, limit=LINES)
    upstream.url = "http://{}:{}".format(*server.sockets[0].getsockname()[:2])
    try:
        yield upstream
    finally:
        server.close()
        with suppress(Exception):
            await upstream.close()
