"""Live requests: published to the queue, answered through one inbox, while their callers wait.

    published ──PubAck──> stored ──reply──> answered
        │                   │ connection lost, connection back: published again, under the same id
        └─no PubAck: 503    └─no reply by the deadline: 504

The stream of live requests is in memory, so a restart of the broker empties it; the gateway still holds
every request that somebody waits for, and publishes it again. A request costs one task, that of its
caller, and one timer: the PubAck only moves the timer.
"""

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Protocol

from gateway.acks import check_stored
from gateway.bodies import Envelopes
from gateway.call import Call
from infra.connections.aborts import send_abort
from infra.connections.clients import NatsConnection
from infra.connections.replies import ReplyInbox
from infra.connections.requests import Question, Requests, read_pub_ack
from infra.connections.tenants import Tenancy
from schemas.envelope import InferRequest, Result, encode_request, error_of
from schemas.errors import DeadlineExceeded, InferenceError, Unavailable
from schemas.headers import RequestHeaders
from schemas.subjects import Lane, infer_subject

RECONNECT_GRACE_S = 3.0
MARGIN_S = 0.25  # for the answer itself, so that a caller is refused within the grace
REPUBLISH_PAUSE_S = 0.2


class Dispatcher(Protocol):
    """Gets one request answered while its caller waits."""

    async def infer(
        self, call: Call, request: InferRequest, *, timeout_s: float, lane: Lane = Lane.LIVE
    ) -> Result:
        """Return the outputs. Raises InferenceError, at the latest after `timeout_s`."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """A request whose caller waits, as it can be published again. Times are the loop's."""

    subject: str
    headers: RequestHeaders
    body: bytes
    reply: asyncio.Future[bytes]
    deadline: float
    patience: asyncio.Timeout
    question: Question | None = None
    awaited_ack: object = None
    lost: bool = False
    unstored_until: float | None = None  # until when it may be lost, while no PubAck has ever come

    def acknowledged(self, answer: asyncio.Future) -> None:  # type: ignore[type-arg]
        """Learn from the PubAck how long to wait; called on the loop."""
        failed = answer.cancelled() or answer.exception() is not None  # `lose` sees to a lost connection
        if failed or answer is not self.awaited_ack or self.reply.done():
            return
        try:
            check_stored(read_pub_ack(answer.result()))
        except Unavailable as error:
            if not self.lost:  # else the stream is not back yet, and we try again
                self.reply.set_exception(error)
        except InferenceError as error:
            self.reply.set_exception(error)
        else:
            self.lost = False
            self.unstored_until = None
            self._wait_until(self.deadline)

    def lose(self, now: float) -> None:
        """Whether it is still stored is not known any more; wait a little for that to mend.

        A request that was never known to be stored waits no longer than that in all.
        """
        if not self.reply.done():
            self.lost = True
            self.awaited_ack = None  # one that came just before says nothing any more
            grace_ends = now + RECONNECT_GRACE_S if self.unstored_until is None else self.unstored_until
            self._wait_until(min(self.deadline, grace_ends))

    def _wait_until(self, when: float) -> None:
        if not self.patience.expired():
            self.patience.reschedule(when)


class QueueDispatcher:
    """Dispatches through JetStream."""

    def __init__(
        self,
        connection: NatsConnection,
        requests: Requests,
        inbox: ReplyInbox,
        envelopes: Envelopes,
        tenancy: Tenancy,
        *,
        ack_timeout_s: float,
    ) -> None:
        self._connection = connection
        self._requests = requests
        self._inbox = inbox
        self._envelopes = envelopes
        self._tenancy = tenancy
        self._ack_timeout_s = ack_timeout_s
        self._waiting: set[_Waiting] = set()
        self._reconnected = asyncio.Event()

    async def infer(
        self, call: Call, request: InferRequest, *, timeout_s: float, lane: Lane = Lane.LIVE
    ) -> Result:
        """Publish, wait for the reply, and return it. Raises InferenceError."""
        body, blob = await self._envelopes.pack(call.tenant, encode_request(request))
        try:
            reply = await self._reply(call, infer_subject(request.model, lane), body, timeout_s)
        finally:
            if blob is not None:
                self._envelopes.forget(blob)
        answer = await self._envelopes.unpack(call.tenant, reply, keep=False)
        if isinstance(answer, Result):
            return answer
        raise error_of(answer)

    async def keep_waiting_ones_published(self) -> None:
        """Publish again, after each reconnection, what may be lost. Runs until cancelled."""
        self._connection.on_disconnect(self._lose_all)
        self._connection.on_reconnect(self._on_reconnect)
        while True:
            await self._reconnected.wait()
            self._reconnected.clear()
            await self._publish_lost_ones()

    async def _reply(self, call: Call, subject: str, body: bytes, timeout_s: float) -> bytes:
        now = asyncio.get_running_loop().time()
        deadline = now + timeout_s
        with self._inbox.expect() as expected:
            headers = RequestHeaders(
                id=call.request_id,
                tenant=call.tenant,
                reply_to=expected.subject,
                deadline_ms=math.ceil(timeout_s * 1000),
                traceparent=call.traceparent,
            )
            patience = asyncio.timeout_at(min(deadline, now + self._ack_timeout_s))
            waiting = _Waiting(subject, headers, body, expected.body, deadline, patience)
            waiting.unstored_until = now + RECONNECT_GRACE_S - MARGIN_S
            try:
                async with patience:
                    with self._held(waiting):
                        await self._publish(waiting)
                        return await expected.body
            except TimeoutError as error:
                raise _too_late(waiting) from error
            except asyncio.CancelledError:  # the caller has left
                with suppress(Unavailable):
                    await send_abort(self._connection, call.request_id)
                raise

    @contextmanager
    def _held(self, waiting: _Waiting) -> Iterator[None]:
        self._waiting.add(waiting)
        try:
            yield
        finally:
            self._waiting.discard(waiting)
            waiting.reply.cancel()  # so that a late PubAck changes nothing
            if waiting.question is not None:
                self._requests.forget(waiting.question)

    async def _publish(self, waiting: _Waiting) -> None:
        if waiting.question is not None:
            self._requests.forget(waiting.question)
        headers = self._tenancy.write(waiting.headers)
        waiting.question = await self._requests.begin(waiting.subject, waiting.body, headers)
        waiting.awaited_ack = waiting.question.answer
        waiting.question.answer.add_done_callback(waiting.acknowledged)

    def _lose_all(self) -> None:
        now = asyncio.get_running_loop().time()
        for waiting in self._waiting:
            waiting.lose(now)

    def _on_reconnect(self) -> None:
        self._lose_all()  # each gets a new grace: for the streams to be there again
        self._reconnected.set()

    async def _publish_lost_ones(self) -> None:
        while self._connection.connected:
            lost = [waiting for waiting in self._waiting if waiting.lost and not waiting.reply.done()]
            if not lost:
                return
            for waiting in lost:
                await self._publish_again(waiting)
            await asyncio.sleep(REPUBLISH_PAUSE_S)

    async def _publish_again(self, waiting: _Waiting) -> None:
        left_s = waiting.deadline - asyncio.get_running_loop().time()
        if waiting.reply.done() or left_s <= 0:
            return
        waiting.headers = replace(waiting.headers, deadline_ms=math.ceil(left_s * 1000))
        try:
            await self._publish(waiting)
        except InferenceError as error:
            if not isinstance(error, Unavailable) and not waiting.reply.done():
                waiting.reply.set_exception(error)


def _too_late(waiting: _Waiting) -> InferenceError:
    if asyncio.get_running_loop().time() >= waiting.deadline:
        return DeadlineExceeded("the request was not answered within its deadline")
    if waiting.lost:
        return Unavailable("the connection to the queue was lost", retry_after_s=RECONNECT_GRACE_S)
    return Unavailable("the queue did not answer in time", retry_after_s=2)
