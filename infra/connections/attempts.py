"""What is known of the attempts at a request beyond its first: who started it again, and who gave it back.

The first start of a request leaves no record, for that would cost every request a write. From the second
delivery on each start is stored before it happens, so a request that ends its workers is started as often
as allowed and no more, however they end, and requests that merely were in the same hands lose nothing.
"""

import hashlib
import time

from infra.connections.clients import NatsConnection
from infra.connections.reading import StreamReader
from infra.connections.requests import Requests
from schemas.errors import Unavailable
from schemas.headers import RequestHeaders
from schemas.jobs import Attempt, AttemptEvent, decode_attempt, encode_attempt
from schemas.subjects import ATTEMPTS_STREAM, attempt_subject

MAX_ATTEMPTS_KEPT = 64  # of one request; the stream keeps no more


class Attempts:
    """The ATTEMPTS stream. `worker` names who writes."""

    def __init__(
        self, connection: NatsConnection, requests: Requests, *, worker: str, timeout_s: float
    ) -> None:
        self._requests = requests
        self._worker = worker
        self._reader = StreamReader(connection, requests, ATTEMPTS_STREAM, timeout_s=timeout_s)

    async def starts(self, headers: RequestHeaders) -> int:
        """Count the starts of a request that was delivered before; its first delivery counts as one."""
        found = await self._read(_subject(headers))
        return 1 + sum(attempt.event is AttemptEvent.STARTED for attempt in found)

    async def record(
        self, headers: RequestHeaders, attempt: int, event: AttemptEvent, reason: str = ""
    ) -> None:
        """Store one event. Raises Unavailable if whether it was stored is unknown."""
        body = encode_attempt(
            Attempt(attempt=attempt, worker=self._worker, event=event, reason=reason, at=time.time())
        )
        ack = await self._requests.publish(_subject(headers), body)
        if ack.err_code:
            raise Unavailable(f"attempts can not be stored now: {ack.description}", retry_after_s=5)

    async def history(self, tenant: str, job: str, item: int) -> list[Attempt]:
        """Return what is known of one item of a job, oldest first."""
        return await self._read(attempt_subject(tenant, job, item))

    async def _read(self, subject: str) -> list[Attempt]:
        page = await self._reader.page(subject, limit=MAX_ATTEMPTS_KEPT)
        return [decode_attempt(stored.body) for stored in page]


def _subject(headers: RequestHeaders) -> str:
    """Name a request by its job, or else by its id, which may hold anything and is therefore hashed."""
    if headers.job is not None:
        return attempt_subject(headers.tenant, headers.job, headers.item)
    return attempt_subject(headers.tenant, hashlib.sha256(headers.id.encode()).hexdigest()[:40], 0)
