"""Do the same for many things, a few at a time, in memory that does not grow with how many there are."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def for_each(act: Callable[[T], Awaitable[None]], things: Iterable[T], *, at_once: int) -> None:
    """Await `act` for each of `things`, at most `at_once` at a time.

    The first exception ends it and is raised; what is under way then is cancelled.
    """
    waiting = iter(things)

    async def work() -> None:
        for thing in waiting:
            await act(thing)

    workers = [asyncio.create_task(work(), name="for each") for _ in range(at_once)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
