"""Ends requests that JetStream gave up: those its advisories name, and by a sweep those nobody named.

Workers count starts and end what they can not run. This is for what never gets that far: a request that
every worker loses before it starts, or that was given up while nobody listened.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable

import structlog

from infra.connections.advisories import AdvisoryKind, kind_of, read_advisory
from infra.connections.clients import NatsConnection
from infra.connections.pulling import Delivery, PullConsumer, Settler
from infra.connections.reading import Stored
from infra.connections.requests import ApiError, Requests
from infra.connections.streams import ADVISORIES_IN_HAND, CONSUMER_NOT_FOUND, OldMessage, Streams
from scheduler import metrics
from scheduler.endings import Endings
from scheduler.parked import Place, parked, surplus, walk_length
from schemas.errors import InvalidInput, Poison, Unavailable
from schemas.subjects import (
    ADVISORIES_STREAM,
    ADVISORY_CONSUMER,
    DEAD_STREAM,
    INFER_STREAM,
    LIVE_STREAM,
    Lane,
    consumer_name,
    infer_subject,
    parse_infer_subject,
)

log = structlog.get_logger()

RETRY_S = 5.0


class Advisories:
    """Follows the ADVISORIES stream. An advisory is acked only when its request has ended."""

    def __init__(
        self, connection: NatsConnection, requests: Requests, streams: Streams, endings: Endings
    ) -> None:
        self._streams = streams
        self._endings = endings
        self._settler = Settler(connection, requests)
        self._arrived: asyncio.Queue[Delivery] = asyncio.Queue()  # bounded by the credit given
        self._in_hand = 0
        self._consumer = PullConsumer(
            connection,
            ADVISORIES_STREAM,
            ADVISORY_CONSUMER,
            room=lambda: ADVISORIES_IN_HAND - self._in_hand,
            on_delivery=self._take,
        )

    async def run(self) -> None:
        """End what advisories name, one after the other, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._consumer.run(), name="pull advisories")
            while True:
                await self._settle(await self._arrived.get())
                self._in_hand -= 1
                self._consumer.top_up()

    def _take(self, delivery: Delivery) -> None:
        self._in_hand += 1
        self._arrived.put_nowait(delivery)

    async def _settle(self, delivery: Delivery) -> None:
        try:
            await self._end_what_it_names(delivery)
            await self._settler.ack(delivery)
        except (Unavailable, ApiError) as error:
            log.warning("dead letter delayed", advisory=delivery.stream_seq, reason=str(error))
            with contextlib.suppress(Unavailable):  # it comes again anyway, only later
                await self._settler.nak(delivery, RETRY_S)

    async def _end_what_it_names(self, delivery: Delivery) -> None:
        if kind_of(delivery.subject) is not AdvisoryKind.MAX_DELIVERIES:
            return  # a terminated request is gone; who terminates one buries it first
        advisory = read_advisory(delivery.body)
        if advisory is None or advisory.stream not in (INFER_STREAM, LIVE_STREAM):
            log.error("advisory unreadable", advisory=delivery.stream_seq)
            return
        found = await self._streams.at(advisory.stream, advisory.stream_seq)
        if found is None or not _is_about(found, advisory.consumer, delivery.stored_at_ns):
            return
        await end_poison(
            self._endings, advisory.stream, found.message, deliveries=advisory.deliveries, reason="poison"
        )


def _is_about(found: OldMessage, consumer: str, told_at_ns: int) -> bool:
    """Say whether an advisory means this message, not a later one that took its place after a restart."""
    try:
        model, lane = parse_infer_subject(found.message.subject)
    except InvalidInput:
        return False
    return consumer_name(model, lane) == consumer and found.stored_at_ns <= told_at_ns


class ParkedSweep:
    """Looks for requests that were given up while no advisory could be stored."""

    def __init__(
        self,
        streams: Streams,
        endings: Endings,
        *,
        known: Callable[[], frozenset[str]],
        period_s: float,
    ) -> None:
        self._streams = streams
        self._endings = endings
        self._known = known
        self._period_s = period_s
        self._seen_s: dict[str, dict[Place, float]] = {}  # by subject, where there was a surplus

    async def run(self) -> None:
        """Sweep once a period until cancelled."""
        while True:
            await asyncio.sleep(self._period_s)
            try:
                await self.sweep()
            except (Unavailable, ApiError) as error:
                log.warning("not swept for parked requests", reason=str(error))

    async def sweep(self) -> int:
        """Do one round and return how many requests it ended. Raises Unavailable or ApiError.

        Nothing ends in the round in which it is first seen.
        """
        metrics.dead_letter_depth.set(await self._streams.count(DEAD_STREAM))
        ended = 0
        for stream in (INFER_STREAM, LIVE_STREAM):
            stored = await self._streams.subject_counts(stream, "infer.>")
            for model in self._known():
                for lane in Lane:
                    if lane.stream == stream:
                        ended += await self._sweep_lane(model, lane, stored)
        return ended

    async def _sweep_lane(self, model: str, lane: Lane, stored: dict[str, int]) -> int:
        subject = infer_subject(model, lane)
        try:
            backlog = await self._streams.backlog(model, lane)
        except ApiError as error:
            if error.err_code != CONSUMER_NOT_FOUND:  # a new one delivers all of them again
                raise
            self._seen_s.pop(subject, None)
            return 0
        beyond = surplus(stored.get(subject, 0), backlog)
        if not beyond:
            return 0
        found = await self._oldest(lane.stream, subject, backlog.delivered_seq, walk_length(beyond))
        now_s, before = time.monotonic(), self._seen_s.get(subject, {})
        seen_s = {place: before.get(place, now_s) for place in found}
        to_end = parked(seen_s, backlog, now_s=now_s)
        self._seen_s[subject] = {place: at_s for place, at_s in seen_s.items() if place not in to_end}
        for place in sorted(to_end):
            await end_poison(
                self._endings, lane.stream, found[place], deliveries=backlog.max_deliver, reason="parked"
            )
        return len(to_end)

    async def _oldest(self, stream: str, subject: str, up_to_seq: int, at_most: int) -> dict[Place, Stored]:
        """Read the oldest requests of a subject that were delivered and are still stored."""
        found: dict[Place, Stored] = {}
        seq = 1
        while len(found) < at_most:
            old = await self._streams.oldest(stream, subject, from_seq=seq)
            if old is None or old.message.seq > up_to_seq:
                break
            found[old.message.seq, old.stored_at_ns] = old.message
            seq = old.message.seq + 1
        return found


async def end_poison(endings: Endings, stream: str, message: Stored, *, deliveries: int, reason: str) -> None:
    """End one request that was given up after so many deliveries."""
    error = Poison(f"the request was delivered {deliveries} times and never ended")
    buried = await endings.end(stream, message, error, attempts=deliveries)
    if buried:
        metrics.dead_letters.labels(reason).inc()
    log.warning(
        "request given up",
        stream=stream,
        stream_seq=message.seq,
        attempts=deliveries,
        found_by=reason,
        had_an_answer=not buried,
    )
