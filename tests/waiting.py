"""Wait for what a test expects, rather than for time: the asynchronous twin of `servers.wait_until`."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable

TIMEOUT_S = 15.0


async def until(
    happened: Callable[[], bool | Awaitable[bool]], what: str, *, timeout_s: float = TIMEOUT_S
) -> None:
    """Return as soon as `happened()` is true. Raises AssertionError naming `what` after `timeout_s`."""
    try:
        async with asyncio.timeout(timeout_s):
            while not await _true(happened):  # noqa: ASYNC110 - it happens in another process
                await asyncio.sleep(0.01)
    except TimeoutError as error:
        raise AssertionError(f"waited {timeout_s:g} s for {what}") from error


async def _true(happened: Callable[[], bool | Awaitable[bool]]) -> bool:
    answer = happened()
    return await answer if inspect.isawaitable(answer) else answer
