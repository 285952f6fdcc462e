"""Carries out what `settle` decided: store, reply, bury, and only then tell JetStream.

Our plumbing failing here does not fail the request: storing is tried again while the delivery's lease is
kept alive, and if that does not help, the delivery is left to be delivered again.
"""

import asyncio
from dataclasses import dataclass

import structlog

from infra.connections.attempts import Attempts
from infra.connections.blobs import BlobStore
from infra.connections.clients import NatsConnection
from infra.connections.dead import bury
from infra.connections.pulling import Delivery, Settler
from infra.connections.reading import Stored
from infra.connections.replies import send_reply
from infra.connections.requests import Requests
from infra.connections.results import Results
from schemas.envelope import Result, encode_blob_ref, encode_reply, failure_of
from schemas.errors import InferenceError, Unavailable
from schemas.headers import MSGPACK, RequestHeaders
from schemas.jobs import AttemptEvent
from workers import metrics
from workers.held import Held
from workers.settle import Settled, Settlement, settle

log = structlog.get_logger()

HEADERS_BYTES = 4096  # more than what we write beside a body
RETRY_DELAYS_S = (0.2, 0.5, 1.0, 2.0, 5.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Outlets:
    """Where answers go, and in whose name."""

    worker: str
    connection: NatsConnection
    requests: Requests
    results: Results
    blobs: BlobStore
    settler: Settler
    attempts: Attempts


class Answers:
    """Answers the deliveries of one model."""

    def __init__(self, outlets: Outlets, model: str, *, max_deliver: int, held: Held) -> None:
        self._outlets = outlets
        self._model = model
        self._max_deliver = max_deliver
        self._held = held

    async def answer(
        self,
        delivery: Delivery,
        headers: RequestHeaders,
        outcome: Result | InferenceError,
        *,
        malformed: bool = False,
    ) -> None:
        """End a delivery with its outcome. Never raises for our plumbing; it is logged, and tried again."""
        settlement = settle(
            outcome,
            attempt=delivery.attempt,
            max_deliver=self._max_deliver,
            is_job=headers.job is not None,
            awaited=headers.reply_to is not None,
            malformed=malformed,
            leased=self._held.is_leased(delivery),
        )
        self._count(settlement, outcome)
        for delay_s in (*RETRY_DELAYS_S, None):
            try:
                await self._carry_out(settlement, delivery, headers, outcome)
                return
            except Unavailable as error:
                log.warning("answer delayed", request_id=headers.id, model=self._model, reason=error.message)
            if delay_s is not None:
                await asyncio.sleep(delay_s)
        log.error("answer given up", request_id=headers.id, model=self._model, attempt=delivery.attempt)

    async def note_start(self, delivery: Delivery, headers: RequestHeaders) -> None:
        """Store that a request is started once more in the same delivery. Raises Unavailable."""
        await self._outlets.attempts.record(headers, delivery.attempt, AttemptEvent.STARTED)

    async def already_stored(self, headers: RequestHeaders) -> bool:
        """Say whether a job's item has its record. Raises Unavailable."""
        if headers.job is None:
            return False
        return await self._outlets.results.read(headers.tenant, headers.job, headers.item) is not None

    async def drop(self, delivery: Delivery) -> None:
        """Settle a delivery whose answer is stored."""
        try:
            await self._outlets.settler.ack(delivery)
        except Unavailable as error:
            log.warning("ack failed", model=self._model, reason=error.message)

    async def _carry_out(
        self,
        settlement: Settlement,
        delivery: Delivery,
        headers: RequestHeaders,
        outcome: Result | InferenceError,
    ) -> None:
        settler = self._outlets.settler
        if settlement.settled is Settled.NOTHING:
            log.warning("lease lapsed; failure not given", request_id=headers.id, model=self._model)
            return
        if settlement.settled is Settled.NAK:
            await self._give_back(delivery, headers, str(outcome), settlement.delay_s)
            return
        reply = outcome if isinstance(outcome, Result) else failure_of(outcome, headers.id)
        if settlement.store is not None and headers.job is not None:
            body = await self._body(headers.tenant, encode_reply(reply))
            written = await self._outlets.results.write(
                headers.tenant,
                headers.job,
                headers.item,
                state=settlement.store,
                body=body,
                attempts=delivery.attempt,
                worker=self._outlets.worker,
            )
            if not written:
                metrics.duplicates.labels(self._model).inc()
        if settlement.reply and headers.reply_to is not None:
            body = await self._body(headers.tenant, encode_reply(reply, headers.content_type))
            await send_reply(self._outlets.connection, headers.reply_to, body)
        if settlement.dead_reason is not None:
            message = Stored(delivery.subject, delivery.headers, delivery.body, delivery.stream_seq)
            await bury(self._outlets.requests, delivery.stream, message, settlement.dead_reason)
            metrics.dead_letters.labels(settlement.dead_reason.partition(":")[0]).inc()
        if headers.job is None:
            await settler.ack(delivery)
        else:
            await settler.ack_stored(delivery)

    async def _give_back(
        self, delivery: Delivery, headers: RequestHeaders, reason: str, delay_s: float
    ) -> None:
        await self._outlets.attempts.record(headers, delivery.attempt, AttemptEvent.RELEASED, reason)
        await self._outlets.settler.nak(delivery, delay_s)

    async def _body(self, tenant: str, body: bytes) -> bytes:
        """Keep a body inline, or put it into a blob and return the reference."""
        room = self._outlets.requests.room_for_body({}) - HEADERS_BYTES
        if len(body) <= min(self._outlets.blobs.inline_limit_bytes, room):
            return body
        return encode_blob_ref(await self._outlets.blobs.put(tenant, body))

    def _count(self, settlement: Settlement, outcome: Result | InferenceError) -> None:
        if settlement.settled is not Settled.ACK:
            name = "retried"
        elif isinstance(outcome, Result):
            name = "succeeded"
        else:
            name = {"cancelled": "cancelled", "deadline_exceeded": "expired"}.get(outcome.code, "failed")
        metrics.answers.labels(self._model, name).inc()


def minimal_headers(delivery: Delivery, reply_to: str | None) -> RequestHeaders:
    """Stand in for headers that could not be read: enough to reply, if a usable reply-to was given."""
    return RequestHeaders(
        id=f"{delivery.stream}:{delivery.stream_seq}", reply_to=reply_to, content_type=MSGPACK
    )
