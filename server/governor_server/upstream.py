"""The server behind the proxy: connections, headers, and what can go wrong with them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from time import perf_counter

import aiohttp
from multidict import CIMultiDict
from yarl import URL

Headers = list[tuple[bytes, bytes]]
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


class UpstreamError(Exception):
    """Upstream could not be asked, or its answer broke off. `status` is what a client is to see."""

    def __init__(self, reason: str, message: str, status: int = 502) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status


class UpstreamResponse:
    """An answer of upstream, its body not yet read. `waited_s` is the time spent waiting for it so far."""

    def __init__(self, response: aiohttp.ClientResponse, url: str, waited_s: float) -> None:
        self._response = response
        self._url = url
        self.waited_s = waited_s
        self.status = response.status
        # Without those of a governor before this one: what ours decided is told by ours alone.
        self.headers: Headers = [
            pair for pair in forwarded(response.raw_headers) if not pair[0].startswith(OWN_PREFIX)
        ]
        self._peeked: bytes | None = None

    @property
    def content_type(self) -> str:
        return self._response.content_type

    @property
    def encoded(self) -> bool:
        """Whether the body is compressed, and so cannot be read as it is."""
        return self._response.headers.get("content-encoding", "identity") != "identity"

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises `UpstreamError` when it breaks off."""
        first, self._peeked = self._peeked, None
        if first:
            yield first
        while piece := await self._read_any():
            yield piece

    async def peek(self) -> bytes:
        """The first piece of the body, which `pieces` gives again. Raises `UpstreamError`."""
        if self._peeked is None:
            self._peeked = await self._read_any()
        return self._peeked

    async def read(self) -> bytes:
        """The whole body. Raises `UpstreamError` when it breaks off."""
        return b"".join([piece async for piece in self.pieces()])

    async def _read_any(self) -> bytes:
        start = perf_counter()
        try:
            with _failures(self._url):
                return await self._response.content.readany()
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
        max_connections: int = 1024,
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._api_key = api_key
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=connect_timeout_s, sock_read=read_timeout_s
        )
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Upstream:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._max_connections, keepalive_timeout=KEEPALIVE_S),
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
        self, method: str, target: bytes, headers: Iterable[tuple[bytes, bytes]], body: Body = b""
    ) -> AsyncIterator[UpstreamResponse]:
        """Send a request; `target` is path and query as they stand on the wire. Leaving the context before
        the body was read closes the connection, which is how upstream learns that nobody waits any more.

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
            return await self._session.request(
                method, url, headers=headers, data=body or None, allow_redirects=False
            )

        start = perf_counter()
        with _failures(self.url):
            try:
                return await send()
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                stale = perf_counter() - start < STALE_S and isinstance(body, bytes)
                if isinstance(error, aiohttp.ClientConnectorError) or not stale:
                    raise
                return await send()

    def _headers(self, headers: Iterable[tuple[bytes, bytes]]) -> CIMultiDict[str]:
        sent = CIMultiDict((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)
        if self._api_key is not None:
            sent["Authorization"] = f"Bearer {self._api_key}"
        return sent


def forwarded(headers: Iterable[tuple[bytes, bytes]], *, drop: frozenset[bytes] = frozenset()) -> Headers:
    """The headers that a proxy hands on: all but those between two neighbours, and those in `drop`."""
    pairs = [(name.lower(), value) for name, value in headers]
    named = {
        token.strip().lower() for name, value in pairs if name == b"connection" for token in value.split(b",")
    }
    return [pair for pair in pairs if pair[0] not in HOP_BY_HOP | named | drop]


def requested(headers: Iterable[tuple[bytes, bytes]], *, drop: frozenset[bytes] = frozenset()) -> Headers:
    """The client's headers for upstream: without the host, which is another one, and without the governor's
    own."""
    kept = forwarded(headers, drop=drop | {b"host", b"expect"})
    return [pair for pair in kept if not pair[0].startswith(OWN_PREFIX)]


@contextmanager
def _failures(url: str) -> Iterator[None]:
    """Tells failures of the connection as `UpstreamError`."""
    try:
        yield
    except (TimeoutError, aiohttp.ServerTimeoutError) as error:
        raise UpstreamError("timeout", f"upstream {url} did not answer in time", 504) from error
    except aiohttp.ClientConnectorError as error:
        raise UpstreamError("unreachable", f"upstream {url} is unreachable: {error.os_error}") from error
    except (aiohttp.ClientError, OSError) as error:
        what = str(error) or type(error).__name__
        raise UpstreamError("broken", f"upstream {url} broke the connection: {what}") from error
