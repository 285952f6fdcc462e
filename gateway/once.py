"""Jobs with an idempotency key: submitted by whoever is first, completed by whoever finds them incomplete.

The record is created before the items, and says `receiving` until all of them are stored. Only one gateway
can create it. Items carry ids of their own, so publishing one again within the dedupe window stores it
once; and what has a result is not published again at all.
"""

from collections.abc import Sequence
from dataclasses import replace

from gateway.call import Call
from gateway.idempotency import Identity
from gateway.submission import NewJob, Submission, new_record
from infra.connections.jobs import Jobs
from infra.connections.results import Results
from schemas.envelope import InferRequest
from schemas.errors import Unavailable
from schemas.jobs import JobRecord


class Once:
    """Submits a job once for each key, whatever number of gateways is asked to."""

    def __init__(self, submission: Submission, jobs: Jobs, results: Results) -> None:
        self._submission = submission
        self._jobs = jobs
        self._results = results

    async def submit(
        self,
        call: Call,
        job: NewJob,
        requests: Sequence[InferRequest],
        identity: Identity,
        *,
        reply_to: str | None = None,
    ) -> JobRecord:
        """Return the job of this key, all of it stored. Notes on `call` if it was there before.

        Raises IdempotencyMismatch, Overloaded, TooLarge and Unavailable; after the last three the same
        request with the same key completes what was begun.
        """
        record = new_record(job, items=len(requests), receiving=True)
        record = replace(record, job=identity.job, fingerprint=identity.fingerprint)
        ended: set[int] = set()
        if await self._jobs.create(call.tenant, record) is None:
            record = await self._known(call, identity)
            if not record.receiving:
                return record
            ended = {item async for item in self._results.items(call.tenant, record.job)}
        await self._publish(call, record, requests, ended, reply_to)
        record = replace(record, receiving=False)
        await self._jobs.put(call.tenant, record)
        return record

    async def _known(self, call: Call, identity: Identity) -> JobRecord:
        record = await self._jobs.get(call.tenant, identity.job)
        if record is None:  # it was forgotten this very moment
            raise Unavailable("the job of this key is not kept any more", retry_after_s=1)
        identity.check(record)
        call.replayed = True
        return record

    async def _publish(
        self,
        call: Call,
        record: JobRecord,
        requests: Sequence[InferRequest],
        ended: set[int],
        reply_to: str | None,
    ) -> None:
        pipeline = self._submission.pipeline()
        try:
            for item, request in enumerate(requests):
                if item not in ended:
                    message = await self._submission.message(call, record, item, request, reply_to=reply_to)
                    await pipeline.add(message)
            await pipeline.finish()
        finally:
            pipeline.abandon()
