"""The server behind the proxy: connections, headers, and what can go wrong with them."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from io import BytesIO
from time import perf_counter
from weakref import WeakSet

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from multidict import CIMultiDict
from yarl import URL

from governor_server.api_errors import ApiError, Headers
from governor_server.encoding import Decoder

Body = bytes | AsyncIterator[bytes]

KEEPALIVE_S = 3.0
"""Shorter than the 5 s after which uvicorn, and so vLLM, closes an idle connection: a request sent on one
that is just being closed is lost."""

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
OWN_PREFIX = b"x-governor"

STALE_S = 0.5
"""A connection that upstream had closed fails at once; one that fails later was at work, and is not tried
again."""

LARGE_BYTES = 512 * 1024
"""A body beyond this is written in pieces, between which others have their turn."""

LAST_MOMENT_S = 0.1
"""How long a body that has said its last may take to end."""

RETRIED_BY_AIOHTTP = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""Methods that may be repeated at will: aiohttp sends these once more by itself."""

used_before: ContextVar[bool] = ContextVar("used_before", default=False)
"""Whether the connection that this task got last had carried a request before."""


class UpstreamError(ApiError):
    """Upstream could not be asked, or its answer broke off. `status` is what a client is to see."""

    def __init__(self, reason: str, message: str, status: int = 502) -> None:
        super().__init__(status, f"upstream_{reason}", message)
        self.reason = reason


class UpstreamResponse:
    """An answer of upstream, its body not yet read. `waited_s` is the time spent waiting for it so far."""

    def __init__(self, response: aiohttp.ClientResponse, url: str, waited_s: float) -> None:
        self._response = response
        self.url = url
        self.waited_s = waited_s
        self.status = response.status
        # Without those of a governor before this one: what ours decided is told by ours alone.
        self.headers: Headers = [
            pair for pair in forwarded(response.raw_headers) if not pair[0].startswith(OWN_PREFIX)
        ]
        self._peeked: bytes | None = None
        self._decoder: Decoder | None = None
        self.at_end = False

    @property
    def content_type(self) -> str:
        return self._response.content_type

    @property
    def encoded(self) -> bool:
        """Whether the body is compressed, and so cannot be read as it is."""
        return self._decoder is None and self._encoding != "identity"

    @property
    def _encoding(self) -> str:
        return self._response.headers.get("content-encoding", "identity")

    def decode(self) -> bool:
        """Read the body unpacked from now on, without the header that says that it is packed; False where
        that cannot be done."""
        if self.encoded:
            self._decoder = Decoder.of(self._encoding)
            if self._decoder is not None:
                packed = (b"content-encoding", b"content-length")
                self.headers = [pair for pair in self.headers if pair[0] not in packed]
        return not self.encoded

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises `UpstreamError` when it breaks off."""
        first, self._peeked = self._peeked, None
        if first:
            yield first
        while piece := await self._next():
            yield piece

    async def _next(self) -> bytes:
        if self._decoder is None:
            return await self._read_any()
        try:
            while not (piece := self._decoder.take()):
                if not (packed := await self._read_any()):
                    break
                self._decoder.feed(packed)
        except zlib.error as error:
            raise failure(self.url, error) from error
        return piece

    async def read(self) -> bytes:
        """The whole body. Raises `UpstreamError` when it breaks off."""
        return b"".join([piece async for piece in self.pieces()])

    async def read_up_to(self, most: int) -> bytes:
        """The body, or what came of one that is larger than `most` bytes: `pieces` gives all of it again
        then, and `at_end` is False. Raises `UpstreamError`."""
        pieces, size = [], 0
        async for piece in self.pieces():
            pieces.append(piece)
            size += len(piece)
            if size > most:
                self._peeked = b"".join(pieces)
                return self._peeked
        self.at_end = True
        return b"".join(pieces)

    async def settle(self) -> None:
        """Wait a moment for the end of a body that has said its last: then the connection can be used again,
        also by what is asked next. Raises `UpstreamError` when it breaks off instead."""
        if self._response.content.at_eof():
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_MOMENT_S):
                while await self._read_any():
                    pass

    async def _read_any(self) -> bytes:
        start = perf_counter()
        try:
            return await self._response.content.readany()
        except FAILURES as error:
            raise failure(self.url, error) from error
        finally:
            self.waited_s += perf_counter() - start


class Upstream:
    """A pool of connections to one OpenAI-compatible server.

    `url` is its root; a trailing `/v1`, as clients write it in a base URL, is taken off. Used as an async
    context manager.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        connect_timeout_s: float = 5.0,
        read_timeout_s: float = 600.0,
        pool_timeout_s: float = 10.0,
        max_connections: int = 2048,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._api_key = api_key
        self._timeout = aiohttp.ClientTimeout(
            total=None, connect=pool_timeout_s, sock_connect=connect_timeout_s, sock_read=read_timeout_s
        )
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None

    def serving(self, affinity: str = "") -> str:
        """The address of the server that a request would go to."""
        return self.url

    async def __aenter__(self) -> Upstream:
        self._session = aiohttp.ClientSession(
            connector=Pool(limit=self._max_connections, keepalive_timeout=KEEPALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def request(
        self,
        method: str,
        target: bytes,
        headers: Iterable[tuple[bytes, bytes]],
        body: Body = b"",
        affinity: str = "",
    ) -> AsyncIterator[UpstreamResponse]:
        """Send a request; `target` is path and query as they stand on the wire. Leaving the context before
        the body was read closes the connection, which is how upstream learns that nobody waits any more.
        `affinity` is for a `Balancer`: there is one server here.

        Raises `UpstreamError`.
        """
        start = perf_counter()
        response = await self._send(method, target, self._headers(headers), body)
        try:
            yield UpstreamResponse(response, self.url, perf_counter() - start)
        finally:
            # `release` would wait for the rest of the body of a response that nobody wants.
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    async def _send(
        self, method: str, target: bytes, headers: CIMultiDict[str], body: Body
    ) -> aiohttp.ClientResponse:
        assert self._session is not None, "the upstream is used as a context manager"
        url = URL(self.url + target.decode("latin-1"), encoded=True)

        async def send() -> aiohttp.ClientResponse:
            assert self._session is not None
            data: Body | BytesIO | None = body or None
            if isinstance(body, bytes) and len(body) > LARGE_BYTES:
                data = BytesIO(body)
            return await self._session.request(method, url, headers=headers, data=data, allow_redirects=False)

        start = perf_counter()
        try:
            try:
                return await send()
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if perf_counter() - start > STALE_S or not _never_arrived(method, body, error):
                    raise
                return await send()
        except FAILURES as error:
            raise failure(self.url, error) from error

    def _headers(self, headers: Iterable[tuple[bytes, bytes]]) -> CIMultiDict[str]:
        sent = CIMultiDict((name.decode("latin-1"), _text(value)) for name, value in headers)
        if self._api_key is not None:
            sent["Authorization"] = f"Bearer {self._api_key}"
        return sent


def forwarded(headers: Iterable[tuple[bytes, bytes]], *, drop: frozenset[bytes] = frozenset()) -> Headers:
    """The headers that a proxy hands on: all but those between two neighbours, and those in `drop`."""
    pairs = [(name.lower(), value) for name, value in headers]
    dropped = HOP_BY_HOP | drop
    for name, value in pairs:
        if name == b"connection":
            dropped |= {token.strip().lower() for token in value.split(b",")}
    return [pair for pair in pairs if pair[0] not in dropped]


def requested(headers: Iterable[tuple[bytes, bytes]], *, drop: frozenset[bytes] = frozenset()) -> Headers:
    """The client's headers for upstream: without the host, which is another one, and without the governor's
    own."""
    kept = forwarded(headers, drop=drop | {b"host", b"expect"})
    return [pair for pair in kept if not pair[0].startswith(OWN_PREFIX)]


def _text(value: bytes) -> str:
    """The text from which aiohttp, which writes UTF-8, makes the same bytes again; of what is no UTF-8 there
    is none."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


class Pool(aiohttp.TCPConnector):
    """Connections, of which it is known whether they were used before."""

    def __init__(self, *, limit: int, keepalive_timeout: float) -> None:
        super().__init__(limit=limit, keepalive_timeout=keepalive_timeout)
        self._used: WeakSet[ResponseHandler] = WeakSet()

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
    ) -> Connection:
        """A free connection, or a new one."""
        connection = await super().connect(req, traces, timeout)
        protocol = connection.protocol
        used_before.set(protocol in self._used)
        if protocol is not None:
            self._used.add(protocol)
        return connection


def _never_arrived(method: str, body: Body, error: aiohttp.ClientError) -> bool:
    """Whether upstream closed an idle connection just when a request went out on it, so that it never read
    the request: nothing came back, on a connection that had worked before. On a new one upstream took the
    request and died of it, and would do so again."""
    answered = isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str)
    repeatable = method not in RETRIED_BY_AIOHTTP and isinstance(body, bytes)
    return repeatable and not answered and used_before.get()


FAILURES = (TimeoutError, aiohttp.ClientError, OSError)
"""What can go wrong with a connection."""


def failure(url: str, error: BaseException) -> UpstreamError:
    """A failure of the connection, without words of upstream's: they may be of an answer."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return UpstreamError("connect_timeout", f"no connection to upstream {url} in time", 504)
    if isinstance(error, TimeoutError):
        return UpstreamError("timeout", f"upstream {url} did not answer in time", 504)
    if isinstance(error, aiohttp.ClientConnectorError):
        return UpstreamError("unreachable", f"upstream {url} is unreachable: {error.os_error.strerror}")
    return UpstreamError("broken", f"upstream {url} broke the connection ({type(error).__name__})")
