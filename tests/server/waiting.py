"""Waiting for what must happen, however busy the machine is, and never for what must not wait."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from random import Random
from typing import Any

import pytest

PATIENCE_S = 60.0
"""The longest that anything is waited for that has to happen; no test takes longer for it being long."""
TURN_S = 0.01


def at_once(work: Coroutine[Any, Any, None]) -> None:
    """Run what must not wait for anything."""
    with pytest.raises(StopIteration):
        work.send(None)
    work.close()


@contextmanager
def never_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This thread must not wait for another one, except for a lock."""
    here, wait = threading.current_thread(), threading.Condition.wait

    def refuse(condition: threading.Condition, timeout: float | None = None) -> bool:
        assert threading.current_thread() is not here, "it waits"
        return wait(condition, timeout)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Condition, "wait", refuse)
        yield


async def eventually(condition: Callable[[], bool]) -> None:
    """Returns as soon as it is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(TURN_S)


def until(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    """The same without an event loop."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing happened for {seconds} s"
        time.sleep(TURN_S)


async def within(seconds: float, work: Coroutine[Any, Any, Any]) -> None:
    """Run what must be over in so many seconds of the event loop. Those in which the machine did something
    else do not count."""
    task = asyncio.ensure_future(work)
    for _ in range(round(seconds / TURN_S)):
        if task.done():
            break
        await asyncio.sleep(TURN_S)
    task.cancel()
    assert task.done(), f"it takes longer than {seconds} s"
    await task


@contextmanager
def refusing_port() -> Iterator[int]:
    """A port of this machine that refuses connections, and that nobody else gets meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def port_of_its_own() -> int:
    """A free port for a program that must be told one: nobody else is given it by chance, since the machine
    gives out none of these by itself."""
    lots = Random()
    while True:
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("127.0.0.1", lots.randrange(10_000, 30_000)))
            return int(tried.getsockname()[1])
