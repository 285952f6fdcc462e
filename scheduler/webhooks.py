"""Tells the webhooks of jobs that have ended: at least once, signed, again after a failure, for a while.

What is to be told is stored before it is told, and what came of each try after it; so a restart loses
nothing, and repeats at most the tries that were under way, under the same id.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import structlog

from infra.connections.bounded import for_each
from infra.connections.callbacks import Callbacks, CallFailed
from infra.connections.clock import BrokerClock
from infra.connections.jobs import Jobs
from infra.connections.outcomes import read_state
from infra.connections.requests import ApiError
from infra.connections.results import Results
from infra.connections.settings import WebhookSettings
from infra.connections.streams import Streams
from scheduler import metrics
from scheduler.due import after_try, choose_fairly
from scheduler.open_jobs import Key, OpenJob, OpenJobs
from schemas.errors import Unavailable
from schemas.jobs import JobState
from schemas.subjects import RESULTS_STREAM, result_subject
from schemas.webhooks import Outcome, WebhookRecord, job_event, signed_headers

log = structlog.get_logger()

LOOKS_AT_ONCE = 16
FEW_ITEMS = 1000  # of which counting the subjects costs less than reading the headers

_OUTCOMES = {
    Outcome.PENDING: "retried",
    Outcome.DELIVERED: "delivered",
    Outcome.GONE: "gone",
    Outcome.GIVEN_UP: "given_up",
}


class Webhooks:
    """Looks through the open jobs once a period, and tells of each that has ended."""

    def __init__(
        self,
        open_jobs: OpenJobs,
        jobs: Jobs,
        results: Results,
        *,
        streams: Streams,
        clock: BrokerClock,
        callbacks: Callbacks,
        settings: WebhookSettings,
        period_s: float,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._open_jobs = open_jobs
        self._jobs = jobs
        self._results = results
        self._streams = streams
        self._clock = clock
        self._callbacks = callbacks
        self._settings = settings
        self._period_s = period_s
        self._chance = chance
        self._in_hand: dict[Key, str] = {}  # the deliveries under way, and their tenants
        self._room = asyncio.Event()

    async def run(self) -> None:
        """Look until cancelled, which abandons the tries under way."""
        works = True
        async with asyncio.TaskGroup() as tries:
            while True:
                self._room.clear()
                try:
                    await self.look(tries)
                    works = True
                except (Unavailable, ApiError) as error:
                    if works:
                        log.warning("webhooks not looked for", reason=str(error))
                    works = False
                await self._wait()

    async def look(self, tries: asyncio.TaskGroup) -> None:
        """Do one round: find what has ended, and start what is due. Raises Unavailable or ApiError."""
        await self._open_jobs.follow()
        await for_each(self._look_at, self._due(told=False), at_once=LOOKS_AT_ONCE)
        due = [job for job in self._due(told=True) if job.key not in self._in_hand]
        for place in choose_fairly(
            [job.tenant for job in due],
            Counter(self._in_hand.values()),
            at_once=self._settings.at_once,
            per_tenant=self._settings.per_tenant,
        ):
            self._in_hand[due[place].key] = due[place].tenant
            tries.create_task(self._try(due[place]), name="webhook")

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._period_s):
                await self._room.wait()
        except TimeoutError:
            pass

    def _due(self, *, told: bool) -> list[OpenJob]:
        return [job for job in self._open_jobs.due_to_look() if (job.webhook is not None) is told]

    async def _look_at(self, job: OpenJob) -> None:
        state, counts = JobState.QUEUED, None
        if await self._may_have_ended(job):
            state, counts = await read_state(self._jobs, self._results, job.tenant, job.record)
        if counts is None or not state.final:
            self._open_jobs.goes_on(job)
            return
        event = await self._jobs.webhook(*job.key)  # by a scheduler that this one has not heard of
        if event is None:
            created_at = self._clock.now_ns() // 1_000_000_000
            event = job_event(job.record.job, state, counts.model_dump(), created_at=created_at)
            await self._jobs.put_webhook(*job.key, event)
        self._open_jobs.tells(job, event)

    async def _may_have_ended(self, job: OpenJob) -> bool:
        """Ask the cheap question first: are there as many results as items?"""
        if job.record.receiving or job.record.items > FEW_ITEMS:
            return True
        subjects = result_subject(*job.key, "*")
        return len(await self._streams.subject_counts(RESULTS_STREAM, subjects)) >= job.record.items

    async def _try(self, job: OpenJob) -> None:
        try:
            await self._deliver(job)
        except Unavailable as error:  # tried, and not noted: it is tried again
            self._open_jobs.put_off(job)
            log.warning("webhook not noted", job=job.record.job, reason=error.message)
        finally:
            del self._in_hand[job.key]
            self._room.set()

    async def _deliver(self, job: OpenJob) -> None:
        event = await self._jobs.webhook(*job.key)
        if event is None:  # its time in the stream is over
            event = job.webhook
        if event is None or job.record.webhook is None:
            return
        if event.outcome is Outcome.PENDING:
            status = await self._post(job.tenant, job.record.webhook, event)
            event = self._after(event, status)
            metrics.webhook_deliveries.labels(_OUTCOMES[event.outcome]).inc()
            await self._jobs.put_webhook(*job.key, event)
        self._open_jobs.tells(job, event)

    def _after(self, event: WebhookRecord, status: int | None) -> WebhookRecord:
        settings = self._settings
        after = after_try(
            event, status, tries=settings.tries, retry_s=settings.retry_s, chance=self._chance()
        )
        if after.outcome is not Outcome.DELIVERED:
            log.warning("webhook failed", event_id=event.event, status=status, outcome=str(after.outcome))
        return after

    async def _post(self, tenant: str, url: str, event: WebhookRecord) -> int | None:
        """Return the status of the answer, or None if there was none."""
        key = self._settings.key_of(tenant)
        if key is None:
            log.error("webhook has no secret", tenant=tenant)
            return None
        timestamp = self._clock.now_ns() // 1_000_000_000
        headers = signed_headers(event.event, event.body, key=key, timestamp=timestamp)
        headers |= {"content-type": "application/json", "user-agent": "model-serving"}
        try:
            return await self._callbacks.post(url, event.body, headers)
        except CallFailed as error:
            log.info("webhook not reached", event_id=event.event, reason=str(error))
            return None
