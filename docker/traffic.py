"""Agents that put atlas questions to a server for as long as they run: something to see on a dashboard.

python docker/traffic.py --url http://localhost:8000
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging

from governor_training.agent import Agent, OpenAIChat
from governor_training.atlas.environment import AtlasEnvironment
from governor_training.environment import Split

PAUSE_S = 5.0
"""After a failure: the server may be starting."""

log = logging.getLogger("traffic")


async def ask_on(url: str, first: int, step: int, seconds: float) -> None:
    """Ask one question after another, each with a pause behind it."""
    atlas = AtlasEnvironment()
    agent = Agent(OpenAIChat.at(url), atlas)
    for seed in itertools.count(first, step):
        for task in atlas.tasks(20, seed, Split.HELD_OUT):
            try:
                run = await agent.ask(task)
            except Exception as error:
                log.warning("%s", error)
                await asyncio.sleep(PAUSE_S)
            else:
                log.info(
                    "%s -> %s (%d calls)", task.messages[-1]["content"], run.answer.strip(), len(run.calls)
                )
            await asyncio.sleep(seconds)


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://localhost:8000", help="without /v1 (default: %(default)s)")
    parser.add_argument("--agents", type=int, default=4, help="how many at once (default: %(default)s)")
    parser.add_argument(
        "--pause", type=float, default=1.0, help="seconds between questions (default: %(default)s)"
    )
    given = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(message)s")
    logging.getLogger("httpx").setLevel("WARNING")
    asks = (ask_on(given.url, agent, given.agents, given.pause) for agent in range(given.agents))
    await asyncio.gather(*asks)


if __name__ == "__main__":
    asyncio.run(main())
