"""Ends the items of jobs whose deadline has passed, and uploads whose gateway is gone; needs no worker.

A deadline is a duration from when the broker stored the job, by the broker's own clock, so a wrong clock
here or anywhere else expires nothing. The first terminal record stands: a result that comes in time, or
even late but first, is not touched.
"""

import asyncio

import structlog

from infra.connections.bounded import for_each
from infra.connections.jobs import Jobs
from infra.connections.outcomes import end_missing
from infra.connections.requests import ApiError
from infra.connections.results import Results
from scheduler import metrics
from scheduler.open_jobs import OpenJob, OpenJobs
from schemas.errors import Cancelled, DeadlineExceeded, InferenceError, Unavailable

log = structlog.get_logger()

JOBS_AT_ONCE = 16
WINDOW = 64  # of one job


class Expiry:
    """Looks through the open jobs once a period."""

    def __init__(self, open_jobs: OpenJobs, jobs: Jobs, results: Results, *, period_s: float) -> None:
        self._open_jobs = open_jobs
        self._jobs = jobs
        self._results = results
        self._period_s = period_s

    async def run(self) -> None:
        """Look until cancelled."""
        works = True
        while True:
            try:
                await self.end_due()
                works = True
            except (Unavailable, ApiError) as error:
                if works:
                    log.warning("deadlines not kept", reason=str(error))
                works = False
            await asyncio.sleep(self._period_s)

    async def end_due(self) -> None:
        """Do one round. Raises Unavailable or ApiError; what was not ended then is ended by the next."""
        await self._open_jobs.follow()
        await for_each(self._end, self._open_jobs.due_to_end(), at_once=JOBS_AT_ONCE)

    async def _end(self, job: OpenJob) -> None:
        if not job.record.receiving:
            await self._expire(job)
        elif not await self._end_upload(job):
            return
        self._open_jobs.has_ended(job)

    async def _expire(self, job: OpenJob) -> None:
        if await self._jobs.is_cancelled(*job.key):  # by a gateway that could not end the items itself
            error: InferenceError = Cancelled("the job was cancelled")
        else:
            error = DeadlineExceeded("the deadline passed before this item ended")
        ended = await end_missing(self._results, job.tenant, job.record, error, window=WINDOW)
        if ended:
            metrics.items_expired.inc(ended)
            log.info("job expired", job=job.record.job, tenant=job.tenant, items=ended)

    async def _end_upload(self, job: OpenJob) -> bool:
        """Return False if the upload goes on after all."""
        now = await self._jobs.get(*job.key)
        if now is not None and (not now.receiving or now.items != job.record.items):
            return False
        await self._jobs.cancel(*job.key)
        error = Cancelled("the upload was not finished")
        await end_missing(self._results, job.tenant, job.record, error, window=WINDOW)
        metrics.uploads_abandoned.inc()
        log.warning("abandoned upload cancelled", job=job.record.job, tenant=job.tenant)
        return True
