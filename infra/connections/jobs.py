"""Job records, cancel marks and webhooks, in the JOBS stream, so that any gateway answers for any job."""

from collections import OrderedDict

import structlog
from nats.aio.msg import Msg

from infra.connections.clients import NatsConnection
from infra.connections.reading import StreamReader
from infra.connections.requests import PubAck, Requests
from schemas.errors import Unavailable
from schemas.jobs import JobRecord, decode_job, encode_job
from schemas.subjects import JOBS_STREAM, cancel_subject, job_subject, webhook_subject
from schemas.webhooks import WebhookRecord, decode_webhook, encode_webhook

log = structlog.get_logger()

MAX_CANCELLED = 100_000
EXPECTED_SEQ = "Nats-Expected-Last-Subject-Sequence"
OVERTAKEN = (10071, 10164)  # that is not the last sequence of this subject


class Jobs:
    """The JOBS stream: what jobs there are, which are cancelled, and which webhooks were told."""

    def __init__(self, connection: NatsConnection, requests: Requests, *, timeout_s: float) -> None:
        self._requests = requests
        self._reader = StreamReader(connection, requests, JOBS_STREAM, timeout_s=timeout_s)

    async def put(self, tenant: str, record: JobRecord) -> None:
        """Store or replace a job's record. Raises Unavailable if whether it was stored is unknown."""
        await self._store(job_subject(tenant, record.job), encode_job(record))

    async def get(self, tenant: str, job: str) -> JobRecord | None:
        """Return a job of this tenant, or None."""
        stored = await self._reader.last(job_subject(tenant, job))
        return None if stored is None else decode_job(stored.body)

    async def create(self, tenant: str, record: JobRecord) -> int | None:
        """Store a record unless there is one. Returns its sequence, or None if there is one already.

        Raises Unavailable if whether it was stored is unknown.
        """
        return await self.replace(tenant, record, 0)

    async def replace(self, tenant: str, record: JobRecord, seq: int) -> int | None:
        """Store a record in place of the one with sequence `seq`; None if that is not the newest any more."""
        headers = {EXPECTED_SEQ: str(seq)}
        ack = await self._requests.publish(job_subject(tenant, record.job), encode_job(record), headers)
        if ack.err_code in OVERTAKEN:
            return None
        self._check(ack)
        return ack.seq

    async def look(self, tenant: str, job: str) -> tuple[JobRecord, int] | None:
        """Return a job of this tenant with the sequence of its record, or None."""
        stored = await self._reader.last(job_subject(tenant, job))
        return None if stored is None else (decode_job(stored.body), stored.seq)

    async def newest(self, tenant: str, limit: int) -> list[JobRecord]:
        """Return the tenant's newest jobs, newest first. Reads all of them, by pages."""
        newest: OrderedDict[int, JobRecord] = OrderedDict()
        async for stored in self._reader.every(job_subject(tenant, "*"), page=1000):
            newest[stored.seq] = decode_job(stored.body)
            if len(newest) > limit:
                newest.popitem(last=False)
        return list(reversed(newest.values()))

    async def cancel(self, tenant: str, job: str) -> None:
        """Mark a job as cancelled: workers hear of it at once, and those that start later find the mark."""
        await self._store(cancel_subject(tenant, job), b"")

    async def is_cancelled(self, tenant: str, job: str) -> bool:
        """Say whether a job carries the mark."""
        return await self._reader.last(cancel_subject(tenant, job)) is not None

    async def webhook(self, tenant: str, job: str) -> WebhookRecord | None:
        """Return how far telling the webhook of a job has come, or None while there is nothing to tell."""
        stored = await self._reader.last(webhook_subject(tenant, job))
        return None if stored is None else decode_webhook(stored.body)

    async def put_webhook(self, tenant: str, job: str, record: WebhookRecord) -> None:
        """Store or replace how far it has come. Raises Unavailable if whether it was stored is unknown."""
        await self._store(webhook_subject(tenant, job), encode_webhook(record))

    async def _store(self, subject: str, body: bytes) -> None:
        self._check(await self._requests.publish(subject, body))

    def _check(self, ack: PubAck) -> None:
        if ack.err_code:
            log.error("job record refused", err_code=ack.err_code, reason=ack.description)
            raise Unavailable("jobs can not be stored now", retry_after_s=5)


class CancelledJobs:
    """The worker's view of cancel marks: those stored, and those that come while it runs.

    Remembers the newest MAX_CANCELLED. Items of an older cancelled job may still run, and their result is
    refused, because the gateway wrote `cancelled` for them.
    """

    def __init__(self, connection: NatsConnection, requests: Requests, *, timeout_s: float) -> None:
        self._connection = connection
        self._reader = StreamReader(connection, requests, JOBS_STREAM, timeout_s=timeout_s)
        self._marks: OrderedDict[str, None] = OrderedDict()

    def __call__(self, tenant: str, job: str) -> bool:
        """Say whether a job is known to be cancelled."""
        return cancel_subject(tenant, job) in self._marks

    async def open(self) -> None:
        """Listen for marks, as plain messages: each is also stored, so nothing depends on hearing it."""

        async def heard(message: Msg) -> None:
            self._add(message.subject)

        await self._connection.client.subscribe(cancel_subject("*", "*"), cb=heard)

    async def catch_up(self) -> None:
        """Read every stored mark; to be called at the start and after a reconnection."""
        async for stored in self._reader.every(cancel_subject("*", "*"), page=1000):
            self._add(stored.subject)

    def _add(self, subject: str) -> None:
        self._marks[subject] = None
        if len(self._marks) > MAX_CANCELLED:
            self._marks.popitem(last=False)
