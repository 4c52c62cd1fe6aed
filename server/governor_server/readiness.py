"""Waiting for an upstream that does not answer yet, while the proxy already serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Final

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0

log = logging.getLogger(__name__)


def pause_s(attempt: int) -> float:
    """Seconds before the next look, after so many in vain.

    >>> [pause_s(attempt) for attempt in (0, 1, 2, 9)]
    [1.0, 2.0, 4.0, 30.0]
    """
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(attempt, 10))


async def until_ready(
    problem: str,
    look: Callable[[], Awaitable[str]],
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Look again and again until there is no problem. `look` gives it in words, "" where there is none;
    `problem` is what it gave first. The log has one line when this begins and one when it ends."""
    log.warning(
        "%s. The proxy serves, but is not ready (/readyz answers 503) until upstream answers: start that "
        "server, or correct upstream.url (--upstream)",
        problem,
    )
    for attempt in count():
        await sleep(pause_s(attempt))
        if not await look():
            log.warning("upstream answers now: the proxy is ready")
            return
