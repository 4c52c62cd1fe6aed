"""A relay that reads nothing of what it copies: the least that any process between client and upstream costs.

    python -m benchmarks.proxy.relay --upstream 9000 --port 9001

Each client's connection has one of its own to upstream. What it takes is the machine's price of two sockets:
what a proxy takes beyond it is the proxy's.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import cast

from benchmarks.proxy.serving import serve


class Side(asyncio.Protocol):
    """One of the two connections; `other` gets what comes here, as soon as it is there."""

    def __init__(self, other: Side | None = None) -> None:
        self.other = other
        self.transport: asyncio.Transport | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)
        else:
            self._early.append(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class ClientSide(Side):
    """Opens the connection to upstream when its own is there."""

    def __init__(self, upstream: int) -> None:
        super().__init__()
        self._upstream = upstream
        self._opening: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._opening = asyncio.create_task(self._open())

    async def _open(self) -> None:
        try:
            upstream, self.other = await asyncio.get_running_loop().create_connection(
                lambda: Side(self), "127.0.0.1", self._upstream
            )
        except OSError:
            if self.transport is not None:
                self.transport.close()
            return
        upstream.writelines(self._early)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", type=int, required=True, help="its port")
    arguments = parser.parse_args()
    serve(arguments.port, lambda: ClientSide(arguments.upstream))
    return 0


if __name__ == "__main__":
    sys.exit(main())
