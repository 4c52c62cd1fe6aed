"""Work on many items at once, with a progress bar."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

CONCURRENCY = 4
Item = TypeVar("Item")
Result = TypeVar("Result")


async def each(
    what: str,
    items: Sequence[Item],
    work: Callable[[Item], Awaitable[Result]],
    console: Console,
    *,
    concurrency: int = CONCURRENCY,
) -> list[Result]:
    """The results of `work` on every item, in order, `concurrency` at a time.

    The first failure ends the others and is raised.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    places = asyncio.Semaphore(concurrency)
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(f"{what:24}", total=len(items))

        async def one(item: Item) -> Result:
            async with places:
                result = await work(item)
            progress.advance(bar)
            return result

        running = [asyncio.ensure_future(one(item)) for item in items]
        try:
            return list(await asyncio.gather(*running))
        except BaseException:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            raise
