"""Ends requests that no worker can ever serve, because no model of that name exists.

A publisher may write to `infer.<anything>.<lane>`; such a message has no consumer and would stay for
ever. After a grace, in which the model may still appear, its caller is told and a copy is kept.
"""

import asyncio
from collections.abc import Callable

import structlog

from infra.connections.blobs import BlobStore
from infra.connections.clients import NatsConnection
from infra.connections.clock import BrokerClock
from infra.connections.reading import Stored
from infra.connections.requests import ApiError, Requests
from infra.connections.results import Results
from infra.connections.streams import Streams
from scheduler import metrics
from scheduler.endings import Endings, ReadHeaders
from schemas.errors import InvalidInput, Unavailable, UnknownModel
from schemas.headers import read_headers
from schemas.subjects import INFER_STREAM, LIVE_STREAM, parse_infer_subject

log = structlog.get_logger()

BATCH = 500
BLOB_SWEEP_EVERY = 60  # rounds


class Sweeper:
    """Looks through INFER and INFER_LIVE for subjects without a model."""

    def __init__(
        self,
        connection: NatsConnection,
        requests: Requests,
        streams: Streams,
        results: Results,
        blobs: BlobStore,
        *,
        known: Callable[[], frozenset[str]],
        certain: Callable[[], bool],
        period_s: float,
        grace_s: float,
        blob_ttl_s: float,
        read: ReadHeaders = read_headers,
    ) -> None:
        self._streams = streams
        self._endings = Endings(connection, requests, streams, results, read=read)
        self._blobs = blobs
        self._clock = BrokerClock(requests)
        self._known = known
        self._certain = certain
        self._period_s = period_s
        self._grace_s = grace_s
        self._blob_ttl_s = blob_ttl_s

    async def run(self) -> None:
        """Sweep once a period until cancelled."""
        rounds = 0
        while True:
            await asyncio.sleep(self._period_s)
            try:
                await self.sweep()
                if rounds % BLOB_SWEEP_EVERY == 0:
                    await self._blobs.sweep(self._blob_ttl_s)
            except (Unavailable, ApiError) as error:
                log.warning("not swept", reason=str(error))
            rounds += 1

    async def sweep(self) -> int:
        """Do one round and return how many requests it ended. Raises Unavailable or ApiError."""
        if not self._certain():  # a model may be served, and we have not heard of it
            return 0
        await self._clock.sync()
        ended = 0
        for stream in (INFER_STREAM, LIVE_STREAM):
            stored = await self._streams.subject_counts(stream, "infer.>")
            unserved = {subject for subject in stored if not self._is_served(subject)}
            odd = {subject for subject in unserved if not _names_itself_alone(subject)}
            for subject in unserved - odd:
                ended += await self._end_all(stream, subject, {subject})
            if odd:
                ended += await self._end_all(stream, "infer.>", odd)
        return ended

    def _is_served(self, subject: str) -> bool:
        try:
            return parse_infer_subject(subject)[0] in self._known()
        except InvalidInput:
            return False

    async def _end_all(self, stream: str, subjects: str, unserved: set[str]) -> int:
        """End what is stored on a subject of `unserved`, looking at the oldest that match `subjects`."""
        ended, seq = 0, 1
        for _ in range(BATCH):
            old = await self._streams.oldest(stream, subjects, from_seq=seq)
            if old is None or self._clock.age_s(old.stored_at_ns) < self._grace_s:
                break
            seq = old.message.seq + 1
            if old.message.subject in unserved:
                await self._end(stream, old.message)
                ended += 1
        return ended

    async def _end(self, stream: str, message: Stored) -> None:
        error = UnknownModel("no model of this name is served", field="model")
        await self._endings.end(stream, message, error)
        metrics.swept.labels("unknown_model").inc()
        log.warning("request for an unknown model ended", stream=stream, stream_seq=message.seq)


def _names_itself_alone(subject: str) -> bool:
    """Say whether a subject, read as a filter, finds what is stored on it and nothing else.

    The server stores what is published to `infer.*.live`, and to subjects that are no UTF-8.
    """
    return "\ufffd" not in subject and not {"*", ">"} & set(subject.split("."))
