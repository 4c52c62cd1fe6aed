"""Two tenants on one pool of few connections: one sends requests in every framing that a client may, well or
badly, in pieces, several at once, and leaves; upstream answers early or late, with and without reading, in
good order or not. The other tenant must get its own answers, in its time, and all places and connections must
be free in the end.

Each request comes from the seed and its number. The exit code is 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import sys
import time
from collections.abc import Sequence

from tests.server.two_tenants import two_tenants


async def play(seed: int, requests: int, mode: str) -> int:
    """Play and report; returns the exit code."""
    start = time.monotonic()
    async with two_tenants(seed, mode) as scene:
        report = await scene.run(requests)
    print(report)
    print(f"{time.monotonic() - start:.0f} s, seed {seed}, {mode}")
    return 0 if report.clean else 1


def main(given: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tenants", description=__doc__)
    parser.add_argument(
        "--requests", type=int, default=10_000, help="of the odd tenant (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32), help="(drawn)")
    parser.add_argument("--mode", choices=("enforce", "observe"), default="enforce", help="of the governor")
    arguments = parser.parse_args(given)
    # What upstream does to its requests is expected here, and would be told thousands of times.
    logging.getLogger().addHandler(logging.NullHandler())
    return asyncio.run(play(arguments.seed, arguments.requests, arguments.mode))


if __name__ == "__main__":
    sys.exit(main())
