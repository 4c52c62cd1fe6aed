"""Clients that do not wait for their answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from tests.server.scripted_upstream import Proxied, ScriptedUpstream
from tests.server.waiting import PATIENCE_S, within

WITHIN_S = 1.0
"""How soon upstream must learn of it: a slot of the engine generates for nobody until then."""


async def leave(proxy: Proxied, upstream: ScriptedUpstream, body: Mapping[str, Any], requests: int) -> None:
    """Ask, go away once upstream was asked so many times, and see that upstream learns of it in time."""
    asking = asyncio.create_task(proxy.chat(body))
    async with asyncio.timeout(PATIENCE_S):
        while len(upstream.received) < requests:
            upstream.asked.clear()
            await upstream.asked.wait()
    await asyncio.sleep(0.05)
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking
    await within(WITHIN_S, upstream.gone.acquire())
