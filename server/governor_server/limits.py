"""How much is taken in: the bounds on requests, each with the error that a client reads beyond it.

A proxy that takes in whatever comes is brought down by one client; one that refuses early, and says so, is
tried again. What the governor holds back of an answer has a bound too, but no error: beyond it the answer
goes on unjudged.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager

from governor_server.api_errors import ApiError
from governor_server.sections import Count, Seconds, Section

RETRY_AFTER_S = 1


class LimitSettings(Section):
    """Bytes are of one request or one answer; the counts are of the whole proxy, but for a tenant's own."""

    max_body_bytes: Count = 64 * 1024 * 1024
    body_timeout_s: Seconds = 60.0
    max_header_bytes: Count = 64 * 1024
    header_timeout_s: Seconds = 10.0
    write_timeout_s: Seconds = 120.0
    max_concurrent_requests: Count = 1024
    max_queued_requests: Count = 1024
    max_concurrent_requests_per_tenant: Count | None = None
    queue_timeout_s: Seconds = 30.0
    max_held_bytes: Count = 64 * 1024 * 1024


class Slots:
    """So many requests run at the same time, so many wait for it in the order in which they came, and any
    other is refused.

    With a share for each tenant, one that has as many requests here, running or waiting, is refused the next,
    so that it fills neither the places nor the queue. Refused, and not made to wait: there is one queue, in
    order, in which what waits for its own tenant would stand in the way of the others. The share holds
    while nobody else asks, too: a request that runs cannot be made to give its place to one that comes later.
    """

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._free = asyncio.Semaphore(limits.max_concurrent_requests)
        self.running = 0
        self.waiting = 0
        self.by_tenant: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Slots [{self.running} running, {self.waiting} waiting]>"

    @asynccontextmanager
    async def place(self, tenant: str) -> AsyncIterator[None]:
        """One for a request of `tenant`. Raises `ApiError` where there is none for it, or none became free
        in time."""
        with self._share(tenant):
            if self._free.locked():
                await self._wait()
            else:
                await self._free.acquire()
            self.running += 1
            try:
                yield
            finally:
                self.running -= 1
                self._free.release()

    @contextmanager
    def _share(self, tenant: str) -> Iterator[None]:
        share = self._limits.max_concurrent_requests_per_tenant
        if share is not None and self.by_tenant[tenant] >= share:
            raise over_share(share)
        self.by_tenant[tenant] += 1
        try:
            yield
        finally:
            self.by_tenant[tenant] -= 1
            # Tenants may be as many as there are keys that a client can think up.
            if not self.by_tenant[tenant]:
                del self.by_tenant[tenant]

    async def _wait(self) -> None:
        if self.waiting >= self._limits.max_queued_requests:
            raise overloaded("too many requests wait already")
        self.waiting += 1
        try:
            async with asyncio.timeout(self._limits.queue_timeout_s):
                await self._free.acquire()
        except TimeoutError:
            raise overloaded("the request waited too long for its turn") from None
        finally:
            self.waiting -= 1


def overloaded(why: str) -> ApiError:
    """The proxy has more to do than it is allowed to take on."""
    message = f"The proxy is overloaded: {why}. Try again in a moment."
    return ApiError(503, "server_overloaded", message, retry_after_s=RETRY_AFTER_S)


def over_share(share: int) -> ApiError:
    """The tenant has its share; the others are still served, so that it is no 503."""
    message = (
        f"This tenant has {share} requests here already (limits.max_concurrent_requests_per_tenant). "
        "Try again when one of them is answered."
    )
    return ApiError(429, "too_many_requests", message, retry_after_s=RETRY_AFTER_S)


def body_too_large(limit: int) -> ApiError:
    """The rest of the body is read and dropped: a client that still sends would not see the error."""
    message = f"The request's body is larger than {limit} bytes (limits.max_body_bytes)."
    return ApiError(413, "request_too_large", message)


def body_too_slow(limit_s: float) -> ApiError:
    """The body did not come in time."""
    message = f"The request's body did not arrive in time ({limit_s:g} s: limits.body_timeout_s)."
    return ApiError(408, "request_timeout", message, headers=[(b"connection", b"close")])


def headers_too_large(limit: int) -> ApiError:
    """Of a head that is complete, or of one that never ends."""
    message = f"The request's head is larger than {limit} bytes (limits.max_header_bytes)."
    return ApiError(431, "request_headers_too_large", message, headers=[(b"connection", b"close")])


def bad_request(why: str) -> ApiError:
    """Nothing that could be handed on."""
    return ApiError(400, "invalid_request_error", f"{why}.", headers=[(b"connection", b"close")])


def not_proxied(method: str) -> ApiError:
    """A method by which a client would get a tunnel, or upstream's headers with upstream's key."""
    message = f"{method} is not proxied: this is a server of the API, not a proxy for other addresses."
    headers = [(b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"), (b"connection", b"close")]
    return ApiError(405, "method_not_allowed", message, headers=headers)


def unknown_coding() -> ApiError:
    """The body came in a coding that is not undone here, and that upstream would not be told of."""
    message = "The request's transfer-encoding is not known here: `chunked` is."
    return ApiError(501, "invalid_request_error", message, headers=[(b"connection", b"close")])


def head_size(path: bytes, headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Bytes of a request's head, without its separators."""
    return len(path) + sum(len(name) + len(value) for name, value in headers)
