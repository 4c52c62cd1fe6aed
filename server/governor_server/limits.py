"""How much is taken in: the bounds on requests, each with the error that a client reads beyond it.

A proxy that takes in whatever comes is brought down by one client; one that refuses early, and says so, is
tried again. What the governor holds back of an answer has a bound too, but no error: beyond it the answer
goes on unjudged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from governor_server.api_errors import ApiError
from governor_server.sections import Count, Seconds, Section

RETRY_AFTER_S = 1


class LimitSettings(Section):
    """Bytes are of one request or one answer; the counts are of the whole proxy."""

    max_body_bytes: Count = 64 * 1024 * 1024
    body_timeout_s: Seconds = 60.0
    max_header_bytes: Count = 64 * 1024
    header_timeout_s: Seconds = 10.0
    max_concurrent_requests: Count = 1024
    max_queued_requests: Count = 1024
    queue_timeout_s: Seconds = 30.0
    max_held_bytes: Count = 64 * 1024 * 1024


class Slots:
    """So many requests run at the same time, so many wait for it in the order in which they came, and any
    other is refused. Used as an async context manager, by any number of tasks.

    Raises `ApiError` where there is no place, or none became free in time.
    """

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._free = asyncio.Semaphore(limits.max_concurrent_requests)
        self.running = 0
        self.waiting = 0

    def __repr__(self) -> str:
        return f"<Slots [{self.running} running, {self.waiting} waiting]>"

    async def __aenter__(self) -> None:
        if self._free.locked():
            await self._wait()
        else:
            await self._free.acquire()
        self.running += 1

    async def __aexit__(self, *_: object) -> None:
        self.running -= 1
        self._free.release()

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


def body_too_large(limit: int) -> ApiError:
    """The rest of the body is read and dropped: a client that still sends would not see the error."""
    message = f"The request's body is larger than {limit} bytes (limits.max_body_bytes)."
    return ApiError(413, "request_too_large", message)


def body_too_slow(limit_s: float) -> ApiError:
    """The body did not come in time."""
    message = f"The request's body did not arrive within {limit_s:g} s (limits.body_timeout_s)."
    return ApiError(408, "request_timeout", message, headers=[(b"connection", b"close")])


def headers_too_large(limit: int) -> ApiError:
    """Of a head that is complete, or of one that never ends."""
    message = f"The request's head is larger than {limit} bytes (limits.max_header_bytes)."
    return ApiError(431, "request_headers_too_large", message, headers=[(b"connection", b"close")])


def head_size(path: bytes, headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Bytes of a request's head, without its separators."""
    return len(path) + sum(len(name) + len(value) for name, value in headers)
