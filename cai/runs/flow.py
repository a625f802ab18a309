"""Many examples through one async function: bounded in number, results in order, no barrier between their steps."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


async def in_flight(
    function: Callable[[Item], Awaitable[Result]], items: Iterable[Item], limit: int
) -> AsyncIterator[tuple[Item, Result]]:
    """Every item with its result, in the items' order, at most `limit` being worked on at a time.

    The first error cancels what is under way and is raised.
    """
    waiting: deque[tuple[Item, asyncio.Task[Result]]] = deque()
    alive: set[asyncio.Task[Result]] = set()
    source = iter(items)
    exhausted = False
    try:
        while True:
            while len(alive) < limit and not exhausted:
                try:
                    item = next(source)
                except StopIteration:
                    exhausted = True
                    break
                task = asyncio.ensure_future(function(item))
                waiting.append((item, task))
                alive.add(task)
            while waiting and waiting[0][1].done():
                item, task = waiting.popleft()
                yield item, task.result()
            if not waiting and exhausted:
                return
            if alive:
                done, alive = await asyncio.wait(alive, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
    finally:
        for task in alive:
            task.cancel()
        await asyncio.gather(*alive, return_exceptions=True)
