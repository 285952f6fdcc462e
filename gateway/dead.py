"""Dead letters, for admins: what was given up and why, and a second chance for it."""

import base64
import contextlib
import dataclasses

import structlog

from gateway.catalogue import Catalogue
from gateway.pipeline import Message
from gateway.submission import NewJob, Submission, new_record
from infra.connections.dead import DeadLetter, DeadLetters
from infra.connections.jobs import Jobs
from infra.connections.tenants import Tenancy
from schemas.api import DeadLetterAnswer, DeadLetterPage, Purged, Replayed
from schemas.errors import InferenceError, InvalidInput, NotFound, Unavailable
from schemas.headers import ATTEMPTS, JOB, REASON, SIGNATURE, TENANT
from schemas.subjects import check_model_name, infer_subject, parse_infer_subject

log = structlog.get_logger()

MAX_PAGE = 1000


class DeadBook:
    """Shows, replays and purges dead letters. Every call raises Unavailable."""

    def __init__(
        self,
        letters: DeadLetters,
        catalogue: Catalogue,
        submission: Submission,
        jobs: Jobs,
        tenancy: Tenancy,
    ) -> None:
        self._letters = letters
        self._catalogue = catalogue
        self._submission = submission
        self._jobs = jobs
        self._tenancy = tenancy

    async def page(self, model: str | None, *, limit: int, after: int | None) -> DeadLetterPage:
        """List letters, newest first, from behind the cursor `after`."""
        if model is not None:
            check_model_name(model)
        found = await self._letters.newest(model, limit=limit, before_seq=after)
        cursor = found[-1].seq if len(found) == limit else None
        return DeadLetterPage(letters=[_answer(letter) for letter in found], next=cursor)

    async def letter(self, seq: int, *, with_body: bool) -> DeadLetterAnswer:
        """Show all of a letter; its body, which is somebody's, only if that is asked for."""
        letter = await self._letter(seq)
        body = base64.b64encode(letter.body).decode() if with_body else None
        headers = {name: value for name, value in letter.headers.items() if name != SIGNATURE}
        return _answer(letter).model_copy(update={"headers": headers, "body": body})

    async def replay(self, seq: int) -> Replayed:
        """Publish a letter's message again, as a new job of its tenant. The letter stays.

        An item that has ended can not change, so the old job keeps its answer; and whoever waited for a
        reply was told long ago. Raises InvalidInput where the message could not run, and UnknownModel.
        """
        letter = await self._letter(seq)
        if letter.is_cut:
            raise InvalidInput("the end of its body was not kept, so it can not run", field="seq")
        headers = self._tenancy.read(letter.original_headers, fallback_id=str(seq))
        model, lane = parse_infer_subject(letter.subject)
        new_job = NewJob(
            await self._catalogue.card(model),
            lane,
            timeout_ms=headers.deadline_ms,
            metadata={"dead_letter": str(seq)},
        )
        record = new_record(new_job, items=1)
        await self._jobs.put(headers.tenant, record)
        fresh = dataclasses.replace(headers, id=f"{record.job}.0", job=record.job, item=0, reply_to=None)
        message = Message(infer_subject(model, record.lane), self._tenancy.write(fresh), letter.body)
        try:
            pipeline = self._submission.pipeline()
            await pipeline.add(message)
            await pipeline.finish()
        except InferenceError:
            with contextlib.suppress(Unavailable):
                await self._jobs.cancel(headers.tenant, record.job)
            raise
        log.info("dead letter replayed", dead_letter=seq, model=model, job=record.job)
        return Replayed(job=record.job, tenant=headers.tenant, model=model)

    async def remove(self, seq: int) -> Purged:
        """Delete one letter."""
        if not _possible(seq) or not await self._letters.remove(seq):
            raise _unknown()
        log.info("dead letters purged", dead_letter=seq, count=1)
        return Purged(purged=1)

    async def purge(self, model: str | None, *, older_than_s: float | None) -> Purged:
        """Delete the letters of a model, those older than something, or those that are both."""
        if model is None and older_than_s is None:
            raise InvalidInput(
                "give model, older_than_s, or both: nothing is deleted by default", field="model"
            )
        if model is not None:
            check_model_name(model)
        count = await self._letters.purge(model, older_than_s=older_than_s or 0.0)
        log.info("dead letters purged", model=model, older_than_s=older_than_s, count=count)
        return Purged(purged=count)

    async def _letter(self, seq: int) -> DeadLetter:
        letter = await self._letters.get(seq) if _possible(seq) else None
        if letter is None:
            raise _unknown()
        return letter


def _answer(letter: DeadLetter) -> DeadLetterAnswer:
    headers = letter.headers
    return DeadLetterAnswer(
        seq=letter.seq,
        model=letter.model,
        subject=letter.subject,
        reason=headers.get(REASON, ""),
        stored_at=letter.stored_at,
        size_bytes=letter.size_bytes,
        tenant=headers.get(TENANT),
        job=headers.get(JOB),
        attempts=int(headers[ATTEMPTS]) if ATTEMPTS in headers else None,
    )


def _possible(seq: int) -> bool:
    return 0 < seq < 1 << 63


def _unknown() -> NotFound:
    return NotFound("there is no such dead letter", field="seq")
