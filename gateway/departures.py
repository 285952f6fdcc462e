"""Notices callers who close their connection while they wait, so that nobody works for them.

Most answers come sooner than anybody leaves, so a request costs an entry in a table, and only one that
waits for longer than PATIENCE_S gets a task that listens for the end of its connection.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from litestar import Request
from litestar.types import Receive

from gateway.errors import ClientGone

PATIENCE_S = 0.25


@dataclass(slots=True, eq=False)
class _Caller:
    task: asyncio.Task[Any]
    receive: Receive
    since_s: float
    listener: asyncio.Task[None] | None = None
    left: bool = False

    async def listen(self) -> None:
        """Wait for the end of the connection; to be called once the body was read."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.left = True
        self.task.cancel()


class Departures:
    """The callers who wait now."""

    def __init__(self) -> None:
        self._waiting: set[_Caller] = set()

    @contextmanager
    def watching(self, request: Request[Any, Any, Any]) -> Iterator[None]:
        """Raise ClientGone from the block, which the current task is in, as soon as its caller leaves."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        if task is None:
            raise RuntimeError("only a task can be left by its caller")
        caller = _Caller(task, request.receive, loop.time())
        self._waiting.add(caller)
        try:
            yield
        except asyncio.CancelledError:
            if not caller.left:
                raise
            task.uncancel()
            raise ClientGone from None
        finally:
            self._waiting.discard(caller)
            if caller.listener is not None:
                caller.listener.cancel()

    async def run(self) -> None:
        """Listen to those who have waited for a while. Runs until cancelled."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as listening:
            while True:
                await asyncio.sleep(PATIENCE_S)
                since_s = loop.time() - PATIENCE_S
                for caller in self._waiting:
                    if caller.listener is None and caller.since_s <= since_s:
                        caller.listener = listening.create_task(caller.listen(), name="caller")
