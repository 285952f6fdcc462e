"""Turns requests into jobs: the record first, then a message an item; a 202 means all are stored."""

import contextlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.bodies import Envelopes
from gateway.call import Call
from gateway.pipeline import Message, Pipeline
from infra.connections.jobs import Jobs
from infra.connections.requests import Requests
from infra.connections.tenants import Tenancy
from schemas.envelope import InferRequest, encode_request
from schemas.errors import InferenceError, Unavailable
from schemas.headers import RequestHeaders
from schemas.jobs import JobRecord
from schemas.models import ModelCard
from schemas.subjects import Lane, infer_subject


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a caller says of a job, whatever its items are."""

    card: ModelCard
    lane: Lane
    version: int | None = None
    timeout_ms: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    webhook: str | None = None  # a URL that was checked

    @property
    def stored_lane(self) -> Lane:
        """The lane its items go to: never the live one, which does not survive a restart of the broker."""
        return Lane.INTERACTIVE if self.lane is Lane.LIVE else self.lane


class Submission:
    """Submits jobs. Whoever gets a JobRecord back may answer 202."""

    def __init__(
        self,
        requests: Requests,
        jobs: Jobs,
        envelopes: Envelopes,
        tenancy: Tenancy,
        *,
        window: int,
        ack_timeout_s: float,
    ) -> None:
        self._requests = requests
        self._jobs = jobs
        self._envelopes = envelopes
        self._tenancy = tenancy
        self._window = window
        self._ack_timeout_s = ack_timeout_s

    async def submit(
        self, call: Call, job: NewJob, requests: Sequence[InferRequest], *, reply_to: str | None = None
    ) -> JobRecord:
        """Store a job whole. Raises Overloaded, Unavailable or TooLarge, and then marks it as cancelled."""
        record = new_record(job, items=len(requests))
        await self._jobs.put(call.tenant, record)
        pipeline = self.pipeline()
        try:
            for item, request in enumerate(requests):
                await pipeline.add(await self.message(call, record, item, request, reply_to=reply_to))
            await pipeline.finish()
        except InferenceError:
            pipeline.abandon()
            with contextlib.suppress(Unavailable):
                await self._jobs.cancel(call.tenant, record.job)
            raise
        return record

    def pipeline(self, *, patience_s: float = 0.0) -> Pipeline:
        """Open a pipeline for the items of one job."""
        return Pipeline(
            self._requests,
            window=self._window,
            ack_timeout_s=self._ack_timeout_s,
            patience_s=patience_s,
        )

    async def message(
        self, call: Call, record: JobRecord, item: int, request: InferRequest, *, reply_to: str | None = None
    ) -> Message:
        """Write the message of one item. A large body goes into a blob, which stays until it is swept."""
        headers = RequestHeaders(
            id=f"{record.job}.{item}",
            tenant=call.tenant,
            reply_to=reply_to,
            job=record.job,
            item=item,
            deadline_ms=record.deadline_ms,
            traceparent=call.traceparent,
        )
        body, _ = await self._envelopes.pack(call.tenant, encode_request(request))
        return Message(infer_subject(record.model, record.lane), self._tenancy.write(headers), body)


def new_record(job: NewJob, *, items: int, receiving: bool = False) -> JobRecord:
    """Write down what a job is, under a new id that can not be guessed."""
    return JobRecord(
        job=secrets.token_hex(16),
        model=job.card.name,
        lane=job.stored_lane,
        created_at=time.time(),
        items=items,
        version=job.version,
        deadline_ms=job.timeout_ms,
        receiving=receiving,
        metadata=dict(job.metadata),
        webhook=job.webhook,
    )
