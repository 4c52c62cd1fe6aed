"""Comments that keep a stream alive while the governor holds a part of it back.

Many clients, and proxies on the way to them, give up on a connection after some seconds of silence. A comment
is a line that begins with a colon, which every reader of server-sent events skips.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from governor_server import sse
from governor_server.asgi import Reply

COMMENT: Final = b": keep-alive\n\n"

Sleep = Callable[[float], Awaitable[object]]


class KeepAlive:
    """Tells the client of `reply` that it is not forgotten, so that it never hears nothing for longer than
    `max_silence_s` while something is held back. `sleep` waits for so many seconds."""

    def __init__(
        self, reply: Reply, max_silence_s: float, sleep: Sleep, *, holds: Callable[[], bool]
    ) -> None:
        self._reply = reply
        self._pause_s = max_silence_s / 2
        self._sleep = sleep
        self._holds = holds
        self._last = COMMENT
        self._silent = True
        self._task: asyncio.Task[None] | None = None

    def sent(self, body: bytes) -> None:
        """The client got `body`."""
        self._last, self._silent = body, False

    def begin(self) -> None:
        """From now on something may be held back."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def end(self) -> None:
        """Nothing is said any more."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            self._silent = True
            await self._sleep(self._pause_s)
            # A comment in the middle of an event would end it.
            if self._silent and self._holds() and sse.ends_event(self._last):
                await self._reply.piece(COMMENT)
