"""Ends jobs: the mark first, which workers hear, then a terminal record for each item that has not ended."""

import asyncio

import structlog

from infra.connections.jobs import Jobs
from infra.connections.outcomes import end_missing
from infra.connections.results import Results
from schemas.errors import Cancelled, Unavailable
from schemas.jobs import JobRecord

log = structlog.get_logger()

PATIENCE_S = 5.0


class Cancellation:
    """Cancels jobs. The mark is what counts; records that this process can not write, workers will."""

    def __init__(self, jobs: Jobs, results: Results, tasks: asyncio.TaskGroup, *, window: int) -> None:
        self._jobs = jobs
        self._results = results
        self._tasks = tasks
        self._window = window
        self._running: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def cancel(self, tenant: str, record: JobRecord) -> None:
        """Return when every item has ended, or after PATIENCE_S while the rest goes on.

        Raises Unavailable if the mark could not be stored. May be called again at any time.
        """
        await self._jobs.cancel(tenant, record.job)
        await asyncio.wait({self.end_items(tenant, record)}, timeout=PATIENCE_S)

    def end_items(self, tenant: str, record: JobRecord) -> asyncio.Task[None]:
        """Write the records of a job that carries the mark, in the background; once at a time for a job."""
        key = (tenant, record.job)
        running = self._running.get(key)
        if running is None:
            running = self._tasks.create_task(self._end_items(tenant, record), name="cancel job")
            self._running[key] = running
            running.add_done_callback(lambda _: self._running.pop(key))
        return running

    async def _end_items(self, tenant: str, record: JobRecord) -> None:
        try:
            error = Cancelled("the job was cancelled")
            await end_missing(self._results, tenant, record, error, window=self._window)
        except Unavailable as error:
            log.warning("cancelling goes on in the workers", job=record.job, reason=error.message)
