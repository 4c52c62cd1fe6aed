"""How the benchmark's own servers serve: on the fastest loop, since what they take is no proxy's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import uvloop


def serve(port: int, connection: Callable[[], asyncio.Protocol]) -> None:
    """Serve on this machine's `port`, with a `connection` for each client, until the process is ended."""
    uvloop.run(_serve(port, connection))


async def _serve(port: int, connection: Callable[[], asyncio.Protocol]) -> None:
    server = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", port)
    async with server:
        await server.serve_forever()
