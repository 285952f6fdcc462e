"""Terminal records of job items: written once, by whoever is first, and never changed.

The stream keeps one message a subject and refuses a second, across restarts of the server; that, and not
the dedupe window, is what makes a result effectively-once (DESIGN.md 3).
"""

from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import structlog

from infra.connections.clients import NatsConnection
from infra.connections.reading import HEADERS_PAGE, PAGE, Stored, StreamReader
from infra.connections.requests import Requests
from schemas.errors import Unavailable
from schemas.headers import ATTEMPTS, CONTENT_TYPE, MSGPACK, STATE, WORKER
from schemas.jobs import ItemState
from schemas.subjects import RESULTS_STREAM, result_subject

log = structlog.get_logger()

SUBJECT_FULL = "maximum messages per subject exceeded"
MAX_COUNTED_JOBS = 4096


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """How one item ended. `body` is a reply as msgpack, or a reference to one in the blob store."""

    item: int
    state: ItemState
    attempts: int
    worker: str  # who wrote it; empty if no worker did
    body: bytes
    seq: int


@dataclass(slots=True)
class _Counted:
    """How far a job's records were counted; the count goes on from there, as records never change."""

    seq: int = 0
    by_state: dict[ItemState, int] = field(default_factory=dict)


class Results:
    """The RESULTS stream, both ends."""

    def __init__(self, connection: NatsConnection, requests: Requests, *, timeout_s: float) -> None:
        self._requests = requests
        self._reader = StreamReader(connection, requests, RESULTS_STREAM, timeout_s=timeout_s)
        self._counted: OrderedDict[tuple[str, str], _Counted] = OrderedDict()

    async def write(
        self,
        tenant: str,
        job: str,
        item: int,
        *,
        state: ItemState,
        body: bytes,
        attempts: int,
        worker: str = "",
    ) -> bool:
        """Write a terminal record; `body` is a reply as msgpack.

        Returns False if there is a record already, which then stands.

        Raises Unavailable if whether it was written is unknown; writing again is safe.
        """
        headers = {STATE: state, ATTEMPTS: str(attempts), CONTENT_TYPE: MSGPACK}
        if worker:
            headers[WORKER] = worker
        ack = await self._requests.publish(result_subject(tenant, job, item), body, headers)
        if not ack.err_code:
            return True
        if ack.description == SUBJECT_FULL:
            return False
        log.error("result refused", err_code=ack.err_code, reason=ack.description)
        raise Unavailable("results can not be stored now", retry_after_s=5)

    async def read(self, tenant: str, job: str, item: int) -> ItemRecord | None:
        """Return the record of one item, or None while it has not ended. Raises Unavailable."""
        stored = await self._reader.last(result_subject(tenant, job, item))
        return None if stored is None else _record(stored)

    async def page(self, tenant: str, job: str, *, after_seq: int = 0, limit: int = PAGE) -> list[ItemRecord]:
        """Return records in the order in which they were written, after `after_seq`."""
        found = await self._reader.page(result_subject(tenant, job, "*"), after_seq=after_seq, limit=limit)
        return [_record(stored) for stored in found]

    async def every(self, tenant: str, job: str) -> AsyncIterator[ItemRecord]:
        """Yield every record of a job that is there now, in bounded memory."""
        async for stored in self._reader.every(result_subject(tenant, job, "*")):
            yield _record(stored)

    async def items(self, tenant: str, job: str) -> AsyncIterator[int]:
        """Yield the numbers of the items that have ended, reading headers only."""
        subjects = result_subject(tenant, job, "*")
        async for stored in self._reader.every(subjects, headers_only=True, page=HEADERS_PAGE):
            yield _item_of(stored.subject)

    async def counts(self, tenant: str, job: str) -> Mapping[ItemState, int]:
        """Count a job's items by how they ended. Reads the headers of what came since the last count."""
        counted = self._counted.setdefault((tenant, job), _Counted())
        self._counted.move_to_end((tenant, job))
        if len(self._counted) > MAX_COUNTED_JOBS:
            self._counted.popitem(last=False)
        seq, by_state = counted.seq, dict(counted.by_state)
        subjects = result_subject(tenant, job, "*")
        async for stored in self._reader.every(subjects, after_seq=seq, headers_only=True, page=HEADERS_PAGE):
            state = ItemState(stored.headers[STATE])
            by_state[state] = by_state.get(state, 0) + 1
            seq = stored.seq
        if seq > counted.seq:  # another count of the same job may have gone further meanwhile
            counted.seq, counted.by_state = seq, by_state
        return by_state


def _item_of(subject: str) -> int:
    return int(subject.rpartition(".")[2])


def _record(stored: Stored) -> ItemRecord:
    return ItemRecord(
        item=_item_of(stored.subject),
        state=ItemState(stored.headers[STATE]),
        attempts=int(stored.headers.get(ATTEMPTS, "1")),
        worker=stored.headers.get(WORKER, ""),
        body=stored.body,
        seq=stored.seq,
    )
