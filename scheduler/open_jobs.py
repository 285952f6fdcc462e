"""Follows the JOBS stream and keeps in memory the jobs that still need something from the scheduler.

Level-triggered: the stream is all there is, so after a restart everything is found again. Where more jobs
are open than may be kept, the rest waits in the stream, in order, until there is room.
"""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, replace

import structlog

from infra.connections.clock import BrokerClock
from infra.connections.reading import Stored, StreamReader
from infra.connections.requests import Requests
from scheduler import metrics
from scheduler.due import LOOK_MOST_S, NEVER, Patience, delivery_ns, end_ns, look_ns, needs_us
from schemas.jobs import JobRecord, decode_job
from schemas.subjects import JOBS_STREAM
from schemas.webhooks import WebhookRecord, decode_webhook

log = structlog.get_logger()

PAGE = 1000

Key = tuple[str, str]


@dataclass(slots=True, eq=False)
class OpenJob:
    """A job that needs us, and when; unix nanoseconds on the broker's clock."""

    tenant: str
    record: JobRecord  # without its metadata
    stored_at_ns: int
    end_at_ns: int  # when its items are to be ended
    look_at_ns: int  # when to look whether it has ended, or to try its webhook
    webhook: WebhookRecord | None = None  # once there is an event to tell

    @property
    def key(self) -> Key:
        """Who it is, whatever is known of it."""
        return self.tenant, self.record.job


class OpenJobs:
    """The jobs with a deadline, a webhook, or an upload that goes on; oldest record first."""

    def __init__(
        self,
        requests: Requests,
        reader: StreamReader,
        clock: BrokerClock,
        *,
        patience: Patience,
        kept_s: float,
        max_jobs: int,
    ) -> None:
        self._requests = requests
        self._reader = reader
        self._clock = clock
        self._patience = patience
        self._kept_ns = int(kept_s * 1e9)
        self._max_jobs = max_jobs
        self._jobs: dict[Key, OpenJob] = {}
        self._stream_created = ""
        self._seq = 0
        self._full = False
        self._following = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._jobs)

    async def follow(self) -> None:
        """Take in what came since the last call. Raises Unavailable, and ApiError without the stream."""
        async with self._following:
            await self._clock.sync()
            info = await self._requests.api(f"STREAM.INFO.{JOBS_STREAM}")
            last_seq = int(info["state"]["last_seq"])
            if info["created"] != self._stream_created or last_seq < self._seq:  # another stream
                self._stream_created, self._seq = info["created"], 0
                self._jobs.clear()
            self._forget_old()
            if last_seq > self._seq and await self._read():
                self._seq = max(self._seq, last_seq)  # the last message may be gone by now
            metrics.open_jobs.set(len(self._jobs))

    def due_to_end(self) -> list[OpenJob]:
        """Return the jobs whose items are to be ended now."""
        now_ns = self._clock.now_ns()
        return [job for job in self._jobs.values() if job.end_at_ns <= now_ns]

    def due_to_look(self) -> list[OpenJob]:
        """Return the jobs with a webhook for which something is to be done now."""
        now_ns = self._clock.now_ns()
        return [job for job in self._jobs.values() if job.look_at_ns <= now_ns]

    def has_ended(self, job: OpenJob) -> None:
        """Note that every item of a job has ended."""
        if self._jobs.get(job.key) is job:
            job.end_at_ns = NEVER
            if job.record.webhook is not None and job.webhook is None:
                job.look_at_ns = self._clock.now_ns()
            self._drop_if_done(job)

    def goes_on(self, job: OpenJob) -> None:
        """Note that a job with a webhook was looked at and has not ended."""
        job.look_at_ns = look_ns(job.record, job.stored_at_ns, now_ns=self._clock.now_ns())

    def put_off(self, job: OpenJob) -> None:
        """Note that what is due for a job with a webhook could not be done now."""
        job.look_at_ns = self._clock.now_ns() + int(LOOK_MOST_S * 1e9)

    def tells(self, job: OpenJob, webhook: WebhookRecord) -> None:
        """Note what was stored now of telling the webhook of a job, which has ended."""
        if self._jobs.get(job.key) is job:
            job.webhook, job.end_at_ns = webhook, NEVER
            job.look_at_ns = delivery_ns(webhook, self._clock.now_ns())
            self._drop_if_done(job)

    async def _read(self) -> bool:
        """Take in what is stored after the last message taken; return whether that was all of it."""
        async with aclosing(self._reader.every(">", after_seq=self._seq, page=PAGE)) as every:
            async for stored in every:
                if not self._take(stored):
                    return False
                self._seq = stored.seq
        self._full = False
        return True

    def _take(self, stored: Stored) -> bool:
        kind, tenant, job = stored.subject.split(".")
        try:
            if kind == "job":
                return self._take_job(tenant, decode_job(stored.body), stored.stored_at_ns)
            if kind == "webhook":
                self._take_webhook((tenant, job), decode_webhook(stored.body), stored.stored_at_ns)
        except ValueError:
            log.error("record can not be read", subject=stored.subject)
        return True

    def _take_job(self, tenant: str, record: JobRecord, stored_at_ns: int) -> bool:
        self._jobs.pop((tenant, record.job), None)  # its place is by its newest record
        if not needs_us(record):
            return True
        if len(self._jobs) >= self._max_jobs:
            if not self._full:
                log.error("too many open jobs: later ones wait", max_jobs=self._max_jobs)
            self._full = True
            return False
        self._jobs[tenant, record.job] = OpenJob(
            tenant,
            replace(record, metadata={}),
            stored_at_ns,
            end_at_ns=end_ns(record, stored_at_ns, self._patience),
            look_at_ns=look_ns(record, stored_at_ns),
        )
        return True

    def _take_webhook(self, key: Key, webhook: WebhookRecord, stored_at_ns: int) -> None:
        job = self._jobs.get(key)
        if job is None or (job.webhook is not None and job.webhook.attempts > webhook.attempts):
            return  # done, or read before a try that has ended meanwhile
        job.webhook, job.end_at_ns = webhook, NEVER  # there is an event because the job has ended
        job.look_at_ns = delivery_ns(webhook, stored_at_ns)
        self._drop_if_done(job)

    def _drop_if_done(self, job: OpenJob) -> None:
        if job.end_at_ns == job.look_at_ns == NEVER:
            del self._jobs[job.key]

    def _forget_old(self) -> None:
        """Drop the jobs that the stream itself has forgotten."""
        kept_since_ns = self._clock.now_ns() - self._kept_ns
        while self._jobs:
            oldest = next(iter(self._jobs.values()))
            if oldest.stored_at_ns >= kept_since_ns:
                return
            del self._jobs[oldest.key]
            metrics.open_jobs_forgotten.inc()
            log.warning("job forgotten before it ended", job=oldest.record.job, tenant=oldest.tenant)
