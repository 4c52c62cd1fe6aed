"""A client that costs little itself: HTTP/1.1 over one kept connection, with the times of each answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final, Self, cast

import httptools

TIMEOUT_S: Final = 30.0


@dataclass(slots=True)
class Answer:
    """`first_s` and `last_s` are when the body began and ended, in seconds after the request was written.
    `status` is 0 until the head is there."""

    status: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    pieces: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


class Connection(asyncio.Protocol):
    """One connection to a server. `answer` is what came so far of the last one.

    Raises `ConnectionError` from `ask` when it breaks off.
    """

    def __init__(self) -> None:
        self.answer = Answer()
        self._done: asyncio.Future[Answer] | None = None
        self._start = 0.0
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def to(cls, host: str, port: int) -> Self:
        """A new connection."""
        return await cls().open(host, port)

    async def open(self, host: str, port: int) -> Self:
        """Connect; once."""
        await asyncio.get_running_loop().create_connection(lambda: self, host, port)
        return self

    @property
    def usable(self) -> bool:
        """Whether a further request may be sent on it."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes, timeout_s: float = TIMEOUT_S) -> Answer:
        """Send `request`, as it stands on the wire, and wait for the whole answer."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the connection is closed")
        self.answer = Answer()
        self._done = asyncio.get_running_loop().create_future()
        self._start = perf_counter()
        self._transport.write(request)
        async with asyncio.timeout(timeout_s):
            return await self._done

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # From the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"no HTTP: {error}"))
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(ConnectionResetError("the server closed the connection"))

    def _fail(self, error: Exception) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)

    # From the parser

    def on_headers_complete(self) -> None:
        self.answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if not self.answer.first_s:
            self.answer.first_s = perf_counter() - self._start
        self.answer.pieces.append(body)

    def on_message_complete(self) -> None:
        self.answer.last_s = perf_counter() - self._start
        if self._done is not None and not self._done.done():
            self._done.set_result(self.answer)


def request(
    host: str, port: int, body: bytes, *, key: str = "none", headers: Mapping[str, str] | None = None
) -> bytes:
    """A chat request as it stands on the wire, of the client with the API key `key`; with `headers` more."""
    more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    )
    return head.encode() + body
