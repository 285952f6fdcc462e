"""What became of a job: its status, its results, and an end to it on request."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from gateway.answers import item_line, item_map
from gateway.bodies import Envelopes
from gateway.cancellation import Cancellation
from gateway.parsing import off_loop
from infra.connections.attempts import Attempts
from infra.connections.jobs import Jobs
from infra.connections.outcomes import read_state
from infra.connections.results import ItemRecord, Results
from schemas.api import ItemResult, JobList, JobStatus, WebhookStatus
from schemas.envelope import Failure, Result
from schemas.errors import ErrorCode, Internal, UnknownJob
from schemas.jobs import JobRecord, JobState
from schemas.json_tensors import write_json
from schemas.subjects import JOB_ID, Lane
from schemas.webhooks import Outcome

FIRST_PAGE = 16
MAX_PAGE = 1000
PAGE_BYTES = 8 << 20
CHUNK_BYTES = 64 << 10


class JobBook:
    """Answers for every job of a tenant, whichever gateway took it, from what the streams keep.

    Every call raises UnknownJob for a job that is not this tenant's, and Unavailable.
    """

    def __init__(
        self,
        jobs: Jobs,
        results: Results,
        attempts: Attempts,
        envelopes: Envelopes,
        cancellation: Cancellation,
    ) -> None:
        self._jobs = jobs
        self._results = results
        self._attempts = attempts
        self._envelopes = envelopes
        self._cancellation = cancellation

    async def status(self, tenant: str, job: str) -> JobStatus:
        """Say where a job is; the result is part of it for a job of one item."""
        record = await self._record(tenant, job)
        status = await self._status_of(tenant, record)
        if record.items == 1 and status.state.final:
            ended = await self._results.read(tenant, job, 0)
            if ended is not None:
                result = item_map(ended, await self._reply(tenant, ended))
                return status.model_copy(update={"result": ItemResult.model_validate(result)})
        return status

    async def item(self, tenant: str, job: str, item: int) -> bytes:
        """Write an ItemDetail as JSON: how one item ended, if it did, and the attempts at it."""
        record = await self._record(tenant, job)
        if not 0 <= item < record.items:
            raise UnknownJob(f"the job has no item {item}", field="item")
        history = await self._attempts.history(tenant, job, item)
        ended = await self._results.read(tenant, job, item)
        if ended is None:
            attempts = max((one.attempt for one in history), default=0)
            found: dict[str, Any] = {"item": item, "state": JobState.QUEUED, "attempts": attempts}
        else:
            reply = await self._reply(tenant, ended)
            found = item_map(ended, reply) | ({"worker": ended.worker} if ended.worker else {})
        events = [
            {
                "attempt": one.attempt,
                "worker": one.worker,
                "event": one.event,
                "reason": one.reason,
                "at": one.at,
            }
            for one in history
        ]
        size = 0 if ended is None else len(ended.body)
        return await off_loop(size, write_json, found | {"history": events})

    async def newest(self, tenant: str, limit: int) -> JobList:
        """List the newest jobs, without results."""
        records = await self._jobs.newest(tenant, limit)
        return JobList(jobs=[await self._status_of(tenant, record) for record in records])

    async def page(self, tenant: str, job: str, *, after: int, limit: int) -> bytes:
        """Write a ResultPage as JSON: results in the order in which they were stored, after a cursor.

        `next` is a cursor for as long as more may come, even if there are no more yet.
        """
        record = await self._record(tenant, job)
        final = (await self._status_of(tenant, record)).state.final  # asked first: more may end meanwhile
        found = await self._results.page(tenant, job, after_seq=after, limit=limit)
        replies = [(ended, await self._reply(tenant, ended)) for ended in found]
        last = found[-1].seq if found else after
        cursor = None if final and len(found) < limit else last
        return await off_loop(sum(len(ended.body) for ended in found), _write_page, replies, cursor)

    async def lines(self, tenant: str, job: str) -> AsyncIterator[bytes]:
        """Return every result there is now as JSONL, in chunks of several lines and bounded memory."""
        await self._record(tenant, job)  # before the answer has begun, so that it can still be a 404
        return self._lines(tenant, job)

    async def cancel(self, tenant: str, job: str) -> JobStatus:
        """End what has not ended. Cancelling again, or a job that has ended, changes nothing."""
        record = await self._record(tenant, job)
        if not (await self._status_of(tenant, record)).state.final:
            await self._cancellation.cancel(tenant, record)
        return await self.status(tenant, job)

    async def _record(self, tenant: str, job: str) -> JobRecord:
        if not JOB_ID.fullmatch(job):
            raise _unknown(job)
        record = await self._jobs.get(tenant, job)
        if record is None:
            return await self._record_of_result(tenant, job)
        return record

    async def _record_of_result(self, tenant: str, job: str) -> JobRecord:
        """Stand in for the record that a job published on NATS directly has not: its result tells enough."""
        ended = await self._results.read(tenant, job, 0)
        if ended is None:
            raise _unknown(job)
        reply = await self._reply(tenant, ended)
        model = reply.model if isinstance(reply, Result) else ""
        return JobRecord(job=job, model=model, lane=Lane.BATCH, created_at=0.0, items=1)

    async def _status_of(self, tenant: str, record: JobRecord) -> JobStatus:
        state, counts = await read_state(self._jobs, self._results, tenant, record)
        return JobStatus(
            id=record.job,
            model=record.model,
            state=state,
            counts=counts,
            created_at=record.created_at or None,
            metadata=record.metadata,
            webhook=await self._webhook_of(tenant, record),
        )

    async def _webhook_of(self, tenant: str, record: JobRecord) -> WebhookStatus | None:
        if record.webhook is None:
            return None
        told = await self._jobs.webhook(tenant, record.job)
        if told is None:
            return WebhookStatus(url=record.webhook)
        delivered = told.outcome is Outcome.DELIVERED
        return WebhookStatus(url=record.webhook, delivered=delivered, attempts=told.attempts)

    async def _lines(self, tenant: str, job: str) -> AsyncIterator[bytes]:
        chunk = bytearray()
        async for ended in self._every(tenant, job):
            reply = await self._reply(tenant, ended)
            chunk += await off_loop(len(ended.body), item_line, ended, reply)
            if len(chunk) >= CHUNK_BYTES:
                yield bytes(chunk)
                chunk.clear()
        if chunk:
            yield bytes(chunk)

    async def _every(self, tenant: str, job: str) -> AsyncIterator[ItemRecord]:
        """Read page by page, each sized by the last, because a slow reader must not hold a consumer open."""
        after, limit = 0, FIRST_PAGE
        while page := await self._results.page(tenant, job, after_seq=after, limit=limit):
            for ended in page:
                yield ended
            after = page[-1].seq
            mean_bytes = 1 + sum(len(ended.body) for ended in page) // len(page)
            limit = max(1, min(MAX_PAGE, PAGE_BYTES // mean_bytes))

    async def _reply(self, tenant: str, ended: ItemRecord) -> Result | Failure:
        try:
            return await self._envelopes.unpack(tenant, ended.body, keep=True)
        except Internal as error:  # one result that is gone must not hide the others
            return Failure(id="", code=ErrorCode.NOT_FOUND, message=error.message)


def _write_page(replies: Sequence[tuple[ItemRecord, Result | Failure]], cursor: int | None) -> bytes:
    return write_json({"results": [item_map(ended, reply) for ended, reply in replies], "next": cursor})


def _unknown(job: str) -> UnknownJob:
    shown = f" {job!r}" if JOB_ID.fullmatch(job) else ""
    return UnknownJob(f"there is no job{shown}", field="job")
