"""One client over raw ASGI: what it sent, what it gets, and whether it is still there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

from governor_server.api_errors import ApiError, Headers
from governor_server.limits import LimitSettings, body_too_large, body_too_slow
from governor_server.upstream import SLOWEST_BYTES_PER_S, Body, Stream, UpstreamResponse

EVENT_STREAM = "text/event-stream"
REQUEST_ID = b"x-request-id"

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ClientGone(Exception):
    """The client closed its connection before its request was complete."""


class Reply:
    """The response to one client, which gets `request_id` as its `x-request-id` unless upstream has named the
    request: then `upstream_id` is that name. `status` is 0 until it has begun."""

    def __init__(self, send: Send, request_id: str = "") -> None:
        self._send = send
        self._request_id = request_id
        self.upstream_id = ""
        self.status = 0
        self._head: tuple[int, Headers] | None = None

    def prepare(self, status: int, headers: Headers) -> None:
        """The head of a body that begins with its first piece; until then another one may take its place."""
        self._head = status, headers

    async def begin(self, status: int, headers: Headers) -> None:
        self.status = status
        named = next((value for name, value in headers if name == REQUEST_ID), b"")
        self.upstream_id = named.decode("latin-1")
        if self._request_id and not self.upstream_id:
            headers = [*headers, (REQUEST_ID, self._request_id.encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def piece(self, body: bytes) -> None:
        if body:
            await self.open()
            await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def open(self) -> None:
        """Send the head that was prepared, if it still waits."""
        head, self._head = self._head, None
        if head is not None and not self.status:
            await self.begin(*head)

    async def end(self, body: bytes = b"") -> None:
        await self.open()
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        await self.begin(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self.end(body)

    async def relay(self, response: UpstreamResponse) -> None:
        """Hand upstream's response on, as it comes."""
        headers = response.headers
        if response.content_type == EVENT_STREAM:
            headers = unbuffered(headers)
        await self.begin(response.status, headers)
        async for piece in response.pieces():
            await self.piece(piece)
        await self.end()

    async def error(self, error: ApiError, more: Headers | None = None) -> None:
        """An error of the proxy, in the shape of the API's; `more` headers go with it."""
        headers = [(b"content-type", b"application/json"), *error.headers, *(more or ())]
        await self.whole(error.status, headers, error.dumped())


def unbuffered(headers: Headers) -> Headers:
    """The headers of a stream, with the wish that nobody between us and the client collects or compresses
    it."""
    kept = [pair for pair in headers if pair[0] != b"x-accel-buffering"]
    if all(name != b"cache-control" for name, _ in kept):
        kept.append((b"cache-control", b"no-cache, no-transform"))
    return [*kept, (b"x-accel-buffering", b"no")]


def target(scope: Scope) -> bytes:
    """Path and query as the client wrote them."""
    query: bytes = scope["query_string"]
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    return path + b"?" + query if query else path


def header(scope: Scope, name: bytes) -> str:
    """The value of a request header, "" if there is none; `name` in lower case, as servers hand them on."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found.decode("latin-1")
    return ""


async def read_body(scope: Scope, receive: Receive, limits: LimitSettings) -> bytes:
    """The whole body of a request. Raises `ClientGone`, and `ApiError` beyond the limits."""
    upload = await Upload.begin(scope, receive, limits)
    if isinstance(upload.body, bytes):
        return upload.body
    return b"".join([piece async for piece in upload.body.pieces])


def check_length(scope: Scope, limits: LimitSettings) -> int | None:
    """How long the body is, where the client says so. Refuses one that is too long before it was read. Raises
    `ApiError`."""
    length = header(scope, b"content-length")
    if not length.strip().isdecimal():
        return None
    if int(length[:20]) > limits.max_body_bytes:
        raise body_too_large(limits.max_body_bytes)
    return int(length)


def in_time(receive: Receive, limits: LimitSettings) -> Receive:
    """The same messages, for an application that waits for a body without a bound: a client that keeps it
    waiting is taken for one that has left."""
    loop = asyncio.get_running_loop()
    end: float | None = loop.time() + limits.body_timeout_s

    async def receive_in_time() -> Message:
        nonlocal end
        try:
            async with asyncio.timeout_at(end):
                message = await receive()
        except TimeoutError:
            return {"type": "http.disconnect"}
        if not message.get("more_body"):
            end = None
        return message

    return receive_in_time


class Upload:
    """The body of a request: bytes if all of it is there, else handed on as it comes. Where the client goes
    away, takes too long or sends too much, `failure` says so: reading raises it, `ClientGone` or `ApiError`.
    """

    def __init__(self, receive: Receive, limits: LimitSettings) -> None:
        self._receive = receive
        self._limits = limits
        self._size = 0
        self._waited_s = 0.0
        self._over = asyncio.Event()
        self.failure: ClientGone | ApiError | None = None
        self.body: Body = b""

    @classmethod
    async def begin(cls, scope: Scope, receive: Receive, limits: LimitSettings) -> Upload:
        """Wait for the first piece. Raises `ClientGone` and `ApiError`."""
        length = check_length(scope, limits)
        upload = cls(receive, limits)
        first = await upload._next()
        if first.get("more_body"):
            upload.body = Stream(upload._pieces(first), length)
        else:
            upload.body = first.get("body", b"")
            upload._over.set()
        return upload

    async def _next(self) -> Message:
        """What the client sends next, in time: a large body has more of it."""
        limit_s = self._limits.body_timeout_s
        start = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(limit_s + self._size / SLOWEST_BYTES_PER_S - self._waited_s):
                message = await self._receive()
        except TimeoutError:
            raise body_too_slow(limit_s) from None
        self._waited_s += asyncio.get_running_loop().time() - start
        if message["type"] == "http.disconnect":
            raise ClientGone
        self._size += len(message.get("body", b""))
        if self._size > self._limits.max_body_bytes:
            raise body_too_large(self._limits.max_body_bytes)
        return message

    async def _pieces(self, message: Message) -> AsyncIterator[bytes]:
        try:
            while True:
                yield message.get("body", b"")
                if not message.get("more_body"):
                    return
                message = await self._next()
        except (ClientGone, ApiError) as failure:
            self.failure = failure
            raise
        finally:
            self._over.set()

    async def gone(self) -> None:
        """Returns when the rest of the body does not come, or the client goes away after it."""
        await self._over.wait()
        if self.failure is None:
            await gone(self._receive)


async def gone(receive: Receive) -> None:
    """Returns when the client goes away. Its request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def until_gone(leaving: Coroutine[Any, Any, None], work: Coroutine[Any, Any, None]) -> None:
    """Do `work`, but give it up when `leaving` returns.

    Raises `ClientGone`, and what `work` raises.
    """
    working = asyncio.current_task()
    assert working is not None
    left = False

    def leave(watching: asyncio.Task[None]) -> None:
        nonlocal left
        if not watching.cancelled():
            left = True
            working.cancel()

    watching = asyncio.create_task(leaving)
    watching.add_done_callback(leave)
    try:
        await work
    except asyncio.CancelledError:
        # Ours, unless somebody else wants the task to end, too.
        if left and not working.uncancel():
            raise ClientGone from None
        raise
    finally:
        watching.remove_done_callback(leave)
        watching.cancel()
