"""The server behind the proxy: connections, headers, and what can go wrong with them."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from io import BytesIO
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from multidict import CIMultiDict
from yarl import URL

from governor_server.api_errors import ApiError, Headers
from governor_server.encoding import Decoder
from governor_server.redirects import ADDRESSES, own_address


@dataclass(frozen=True, slots=True)
class Stream:
    """A body that is sent while it comes. `length` is that of all pieces, None where it is not known yet."""

    pieces: AsyncIterator[bytes]
    length: int | None = None


Body = bytes | Stream

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

SLOWEST_BYTES_PER_S = 16 * 1024
"""A large body has one second more for each of these; a sender that is slower is given up."""

LAST_MOMENT_S = 0.1
"""How long a body that has said its last may take to end."""

FRAMING = frozenset({"content-length", "transfer-encoding"})
"""What these say upstream comes from the bytes that are sent, never from the client."""

WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "DELETE"})
"""Methods for which a body has no meaning (RFC 9110, 9.3): a server may answer without looking for one."""

RETRIED_BY_AIOHTTP = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""Methods that may be repeated at will: aiohttp sends these once more by itself."""

NO_CONTENT = frozenset({204, 304})
"""Statuses without a body, whatever length the head tells."""

used_before: ContextVar[bool] = ContextVar("used_before", default=False)
"""Whether the connection that this task got last had carried a request before."""


class UpstreamError(ApiError):
    """Upstream could not be asked, or its answer broke off. `status` is what a client is to see."""

    def __init__(self, reason: str, message: str, status: int = 502) -> None:
        super().__init__(status, f"upstream_{reason}", message)
        self.reason = reason


class UpstreamResponse:
    """An answer of upstream, its body not yet read. `waited_s` is the time spent waiting for it so far."""

    def __init__(
        self, response: aiohttp.ClientResponse, url: str, waited_s: float, roots: Sequence[URL] = ()
    ) -> None:
        self._response = response
        self.url = url
        self.waited_s = waited_s
        self.status = response.status
        self.headers = response_headers(response, roots)
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
        same: Sequence[str] = (),
    ) -> None:
        """`same`: further addresses of this server or of servers that stand for it, which its redirects may
        name."""
        self.url = url.rstrip("/").removesuffix("/v1")
        self._roots = [URL(root) for root in (self.url, *same)]
        self._api_key = api_key
        self._patience_s = pool_timeout_s + connect_timeout_s + read_timeout_s
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
            request_class=TrackedRequest,
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
        *,
        with_key: bool = True,
    ) -> AsyncIterator[UpstreamResponse]:
        """Send a request; `target` is path and query as they stand on the wire. Leaving the context before
        the body was read closes the connection, which is how upstream learns that nobody waits any more.
        `affinity` is for a `Balancer`: there is one server here. `with_key`: with upstream's key, if we have
        one.

        Raises `UpstreamError`.
        """
        start = perf_counter()
        response = await self._send(method, target, self._headers(headers, with_key), body)
        try:
            yield UpstreamResponse(response, self.url, perf_counter() - start, self._roots)
        finally:
            # `release` would wait for the rest of the body of a response that nobody wants.
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    async def _send(
        self, method: str, target: bytes, headers: CIMultiDict[str], body: Body
    ) -> aiohttp.ClientResponse:
        if not target.startswith(b"/"):
            # Behind the address of upstream it would be read as a part of the host's name.
            raise ValueError(f"no path: {target[:80]!r}")
        url = URL(self.url + target.decode("latin-1"), encoded=True)
        start = perf_counter()
        try:
            try:
                response = await self._send_once(method, url, headers, body)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if perf_counter() - start > STALE_S or not _never_arrived(method, body, error):
                    raise
                response = await self._send_once(method, url, headers, body)
        except FAILURES as error:
            raise failure(self.url, error) from error
        if response.status == 101:
            response.close()
            raise UpstreamError("broken", f"upstream {self.url} changed the protocol, which nobody asked for")
        return response

    async def _send_once(
        self, method: str, url: URL, headers: CIMultiDict[str], body: Body
    ) -> aiohttp.ClientResponse:
        """Send it, and wait for the head of the answer. aiohttp has no bound on how long upstream may leave a
        request unread. Raises `FAILURES`."""
        assert self._session is not None, "the upstream is used as a context manager"
        size = len(body) if isinstance(body, bytes) else 0
        async with asyncio.timeout(self._patience_s + size / SLOWEST_BYTES_PER_S) as patience:
            data: bytes | BytesIO | AsyncIterator[bytes] | None
            if isinstance(body, Stream):
                data = self._pieces(body, patience)
                if body.length is not None:
                    headers = CIMultiDict([*headers.items(), ("Content-Length", str(body.length))])
            else:
                data = BytesIO(body) if size > LARGE_BYTES else body or None
            return await self._session.request(method, url, headers=headers, data=data, allow_redirects=False)

    async def _pieces(self, body: Stream, patience: asyncio.Timeout) -> AsyncIterator[bytes]:
        """The body, while upstream takes it: how long the client takes is bounded elsewhere. Raises
        `ValueError` where it is not as long as it was announced to be."""
        loop = asyncio.get_running_loop()
        left = body.length
        renew(patience, None)
        async for piece in body.pieces:
            if left is not None:
                left -= len(piece)
                if left < 0:
                    break
            renew(patience, loop.time() + self._patience_s)
            yield piece
            renew(patience, None)
        renew(patience, loop.time() + self._patience_s)
        if left:
            raise ValueError("the body has another length than was announced")

    def _headers(self, headers: Iterable[tuple[bytes, bytes]], with_key: bool) -> CIMultiDict[str]:
        named = ((name.decode("latin-1"), _text(value)) for name, value in headers)
        sent = CIMultiDict(pair for pair in named if pair[0].lower() not in FRAMING)
        if self._api_key is not None and with_key:
            sent["Authorization"] = f"Bearer {self._api_key}"
        return sent


def renew(patience: asyncio.Timeout, when: float | None) -> None:
    """Another end for a time-out, if it still runs: of a request whose answer has begun it does not."""
    with suppress(RuntimeError):
        patience.reschedule(when)


def response_headers(response: aiohttp.ClientResponse, roots: Sequence[URL]) -> Headers:
    """The headers of an answer that are for the client. Without those of a governor before this one: what
    ours decided is told by ours alone."""
    dropped = frozenset({b"content-length"} if response.status in NO_CONTENT else ())
    kept = forwarded(response.raw_headers, drop=dropped)
    return [
        (name, own_address(name, value, roots) if name in ADDRESSES else value)
        for name, value in kept
        if not name.startswith(OWN_PREFIX)
    ]


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


@dataclass(slots=True)
class Sending:
    """How far a request is. `clear`: upstream cannot have overlooked a part of it, or we a part of the
    answer."""

    clear: bool
    whole: bool = False


class TrackedRequest(aiohttp.ClientRequest):
    """A request that says when all of it was handed to its connection."""

    sending = Sending(clear=False)

    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        """Write the head, and begin with the body."""
        # An answer to HEAD has no end that we know of where upstream sends a body all the same.
        self.sending.clear = self.method != "HEAD" and not (self.method in WITHOUT_BODY and self.body)
        response = await super().send(conn)
        if self._writer is None:
            self.sending.whole = True
        return response

    async def write_bytes(self, *args: Any, **options: Any) -> None:
        """Write the body. What fails is told to the connection, which is not used again then."""
        await super().write_bytes(*args, **options)
        self.sending.whole = True


class Pool(aiohttp.TCPConnector):
    """Connections, of which none is used again that may be in the middle of something: else what was left of
    one tenant's request or answer would be taken for a part of another's."""

    def __init__(self, *, limit: int, keepalive_timeout: float) -> None:
        super().__init__(limit=limit, keepalive_timeout=keepalive_timeout)
        self._last: WeakKeyDictionary[ResponseHandler, Sending] = WeakKeyDictionary()

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
    ) -> Connection:
        """A free connection, or a new one."""
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            assert protocol is not None
            used = protocol in self._last
            # Something came although nothing was asked: it is nobody's answer.
            if not (used and protocol.should_close):
                break
            connection.close()
        used_before.set(used)
        sending = self._last[protocol] = Sending(clear=False)
        if isinstance(req, TrackedRequest):
            req.sending = sending
        return connection

    def _release(self, key: Any, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        transport = protocol.transport
        if transport is not None and transport.get_write_buffer_size():
            # To close it would wait until upstream has read what nobody wants it to read any more.
            protocol.abort()
            should_close = True
        last = self._last.get(protocol)
        done = last is not None and last.whole and last.clear
        super()._release(key, protocol, should_close=should_close or not done)


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
