"""Jobs that come as JSONL: read line by line, one message a line, in bounded memory however long they are."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import structlog
from pydantic import ValidationError

from gateway import metrics
from gateway.call import Call
from gateway.cancellation import Cancellation
from gateway.claims import Claim, Claims, with_beats
from gateway.errors import ClientGone
from gateway.idempotency import Fingerprint
from gateway.lines import Line, LineCutter
from gateway.parsing import item_request, off_loop, read_map
from gateway.submission import NewJob, Submission, new_record
from infra.connections.jobs import Jobs
from infra.connections.results import Results
from schemas.api import JobItem
from schemas.envelope import Failure, InferRequest, encode_reply, invalid_input
from schemas.errors import Cancelled, Conflict, InvalidInput, Overloaded, TooLarge, Unavailable
from schemas.jobs import ItemState, JobRecord
from schemas.models import ModelCard

log = structlog.get_logger()

BAD_LINES_AT_ONCE = 64
PROGRESS_S = 2.0
_MAY_COME_AGAIN = (ClientGone, Conflict, Overloaded, Unavailable)


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """How much one upload may hold, beside the limit of its bytes."""

    max_line_bytes: int
    max_items: int
    patience_s: float  # with a queue that is full


class Uploads:
    """Receives JSONL. Lines that are wrong fail alone; a full queue makes the caller wait."""

    def __init__(
        self,
        submission: Submission,
        jobs: Jobs,
        results: Results,
        cancellation: Cancellation,
        limits: UploadLimits,
    ) -> None:
        self._submission = submission
        self._jobs = jobs
        self._results = results
        self._cancellation = cancellation
        self._claims = Claims(jobs)
        self._limits = limits

    async def receive(
        self, call: Call, job: NewJob, chunks: AsyncIterator[bytes], fingerprint: Fingerprint | None = None
    ) -> JobRecord:
        """Store a job as it comes in, and return when every line of it is stored.

        Raises InvalidInput if there is no line, TooLarge, Overloaded, Unavailable, Cancelled, and what
        `chunks` raises; the job is cancelled then, unless the same upload may come again under its key.
        With a `fingerprint` raises IdempotencyMismatch and Conflict as well.
        """
        record, claim = new_record(job, items=0, receiving=True), None
        if fingerprint is None:
            await self._jobs.put(call.tenant, record)
        else:
            claim = await self._claims.claim(call.tenant, replace(record, job=fingerprint.job))
            record, chunks = claim.record, fingerprint.of(chunks)
            if record.fingerprint is not None:
                return await _replayed(call, record, chunks, fingerprint)
        upload = _Upload(
            self._submission, self._results, self._limits, call=call, card=job.card, record=record
        )
        upload.claim = claim
        try:
            await self._take(upload, chunks if claim is None else with_beats(chunks, PROGRESS_S))
        except Exception as error:
            log.warning("upload given up", job=record.job, items=upload.items, reason=type(error).__name__)
            if claim is not None and isinstance(error, _MAY_COME_AGAIN):
                upload.abandon()
            else:
                await self._give_up(upload)
            raise
        if fingerprint is not None:
            upload.record = replace(upload.record, fingerprint=fingerprint.identity.fingerprint)
        return await self._complete(upload)

    async def _take(self, upload: "_Upload", chunks: AsyncIterator[bytes]) -> None:
        loop = asyncio.get_running_loop()
        noted_at = loop.time()
        async for chunk in chunks:
            await upload.feed(chunk)
            if loop.time() - noted_at >= PROGRESS_S:
                await self._note_progress(upload)
                noted_at = loop.time()
        await upload.finish()

    async def _note_progress(self, upload: "_Upload") -> None:
        await self._put(upload, replace(upload.record, items=upload.items))
        if await self._jobs.is_cancelled(upload.call.tenant, upload.record.job):
            raise Cancelled("the job was cancelled while it was uploaded")

    async def _complete(self, upload: "_Upload") -> JobRecord:
        tenant, record = upload.call.tenant, replace(upload.record, items=upload.items, receiving=False)
        await self._put(upload, record)
        if await self._jobs.is_cancelled(tenant, record.job):  # by somebody who saw fewer items
            self._cancellation.end_items(tenant, record)
        return record

    async def _put(self, upload: "_Upload", record: JobRecord) -> None:
        if upload.claim is None:
            await self._jobs.put(upload.call.tenant, record)
        else:
            await self._claims.keep(upload.call.tenant, upload.claim, record)

    async def _give_up(self, upload: "_Upload") -> None:
        upload.abandon()
        tenant, record = upload.call.tenant, replace(upload.record, items=upload.items, receiving=False)
        with contextlib.suppress(Unavailable):
            await self._jobs.cancel(tenant, record.job)
            await self._jobs.put(tenant, record)
        self._cancellation.end_items(tenant, record)


async def _replayed(
    call: Call, record: JobRecord, chunks: AsyncIterator[bytes], fingerprint: Fingerprint
) -> JobRecord:
    """Return the job that was there before, if this upload is the one that made it."""
    async for _ in chunks:
        pass  # only its fingerprint counts
    fingerprint.identity.check(record)
    call.replayed = True
    return record


class _Upload:
    """One upload under way. `items` counts the lines taken so far, the bad ones included."""

    def __init__(
        self,
        submission: Submission,
        results: Results,
        limits: UploadLimits,
        *,
        call: Call,
        card: ModelCard,
        record: JobRecord,
    ) -> None:
        self.call = call
        self.record = record
        self.items = 0
        self.claim: Claim | None = None  # of an upload with an idempotency key
        self._submission = submission
        self._results = results
        self._limits = limits
        self._card = card
        self._cutter = LineCutter(limits.max_line_bytes)
        self._pipeline = submission.pipeline(patience_s=limits.patience_s)
        self._refused: list[tuple[int, Failure]] = []

    async def feed(self, chunk: bytes) -> None:
        """Publish the lines that `chunk` completes."""
        for line in self._cutter.feed(chunk):
            await self._take(line)

    async def finish(self) -> None:
        """Return when every line is stored. Raises InvalidInput if there was none."""
        for line in self._cutter.finish():
            await self._take(line)
        if not self.items:
            raise InvalidInput("holds no line", field="body")
        await self._pipeline.finish()
        await self._store_refused()

    def abandon(self) -> None:
        """Wait for nothing more."""
        self._pipeline.abandon()

    async def _take(self, line: Line) -> None:
        if self.items >= self._limits.max_items:
            raise TooLarge(
                f"holds more than {self._limits.max_items} lines, which is the limit", field="body"
            )
        item = self.items
        self.items += 1
        try:
            request = await off_loop(len(line.body or b""), self._read, line)
        except InvalidInput as error:
            await self._refuse(item, line, error)
            return
        await self._pipeline.add(await self._submission.message(self.call, self.record, item, request))

    def _read(self, line: Line) -> InferRequest:
        if line.body is None:
            raise TooLarge(f"is longer than the limit of {self._limits.max_line_bytes} bytes", field="body")
        try:
            item = read_map(JobItem, line.body)
        except ValidationError as error:
            raise invalid_input(error) from error
        return item_request(item.inputs, item.parameters, self._card, self.record.version)

    async def _refuse(self, item: int, line: Line, error: InvalidInput) -> None:
        metrics.bad_lines_total.inc()
        message = f"line {line.number}: {error.message}"
        failure = Failure(id=f"{self.record.job}.{item}", code=error.code, message=message, field=error.field)
        self._refused.append((item, failure))
        if len(self._refused) >= BAD_LINES_AT_ONCE:
            await self._store_refused()

    async def _store_refused(self) -> None:
        refused, self._refused = self._refused, []
        await asyncio.gather(*(self._store(item, failure) for item, failure in refused))

    async def _store(self, item: int, failure: Failure) -> None:
        await self._results.write(
            self.call.tenant,
            self.record.job,
            item,
            state=ItemState.FAILED,
            body=encode_reply(failure),
            attempts=0,
        )
