"""Takes deliveries of one model in: pulls as many as there is room for, checks, decodes, prepares.

What is cheap is done on the loop as the delivery comes; blobs, preprocessing and large bodies go to
threads, while the batch before them runs. What can not run is answered here and never meets a batch.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass

import structlog

from infra.connections.attempts import Attempts
from infra.connections.blobs import BlobStore
from infra.connections.clients import NatsConnection
from infra.connections.clock import BrokerClock
from infra.connections.pulling import Delivery, PullConsumer
from infra.connections.sturdy import UNREADABLE
from infra.connections.tenants import Tenancy
from schemas.envelope import BlobRef, InferRequest, decode_request
from schemas.errors import Cancelled, DeadlineExceeded, InferenceError, Internal, InvalidInput, Poison
from schemas.headers import RequestHeaders, read_reply_to
from schemas.jobs import AttemptEvent
from schemas.subjects import Lane, consumer_name, parse_infer_subject
from workers import metrics
from workers.answers import Answers, minimal_headers
from workers.engines.base import Arrays, batch_rows
from workers.held import Held
from workers.models import LoadedModel

log = structlog.get_logger()

INLINE_WORK_BYTES = 128 * 1024
IN_HAND_BATCHES = 3  # one runs, one is prepared, one is being answered
_SMOOTHING = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class PreparedRequest:
    """A request that is ready to run. Times are monotonic seconds; `queue_s` is by the broker's clock."""

    delivery: Delivery
    headers: RequestHeaders
    lane: Lane
    arrays: Arrays
    items: int
    size_bytes: int
    delivered_s: float
    queue_s: float
    deadline_s: float | None


@dataclass(frozen=True, slots=True)
class IntakeSources:
    """What intake needs besides its model."""

    connection: NatsConnection
    blobs: BlobStore
    clock: BrokerClock
    is_cancelled: Callable[[str, str], bool]  # of a tenant and a job
    threads: Executor
    attempts: Attempts
    tenancy: Tenancy
    is_aborted: Callable[[str], bool] = lambda _: False  # of a request's id


class Intake:
    """The deliveries of one model that this worker holds.

    `offer` is called on the loop with each prepared request. `release` must be called once for each
    delivery that was offered and is settled.
    """

    def __init__(
        self,
        model: LoadedModel,
        sources: IntakeSources,
        answers: Answers,
        *,
        held: Held,
        max_starts: int,
        offer: Callable[[PreparedRequest], None],
    ) -> None:
        self._model = model
        self._sources = sources
        self._answers = answers
        self._offer = offer
        self._held = held
        self._max_starts = max_starts
        self._quarantine = asyncio.Lock()
        self._items_per_message = 1.0
        self._pending = dict.fromkeys(Lane, 0)
        self._preparing = 0
        self._stopped = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self.consumers = {lane: self._consumer(lane) for lane in Lane}

    async def run(self) -> None:
        """Pull on every lane until `stop_pulling`, and prepare what came."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for lane, consumer in self.consumers.items():
                tasks.create_task(consumer.run(), name=f"pull-{self._model.name}-{lane}")
            await self._stopped.wait()

    async def stop_pulling(self) -> None:
        """Take nothing new. What was pushed to us before the server heard of it is still taken in."""
        await asyncio.gather(*(consumer.stop() for consumer in self.consumers.values()))
        self._stopped.set()

    @property
    def held(self) -> int:
        """How many deliveries are in hand, from their coming to their settling."""
        return len(self._held)

    @property
    def more_coming(self) -> bool:
        """Say whether company for a waiting request is known to be on its way."""
        return self._preparing > 0 or any(
            self._pending[lane] > 0 and consumer.has_credit for lane, consumer in self.consumers.items()
        )

    @property
    def available(self) -> bool:
        """Say whether every lane's consumer answers."""
        return all(consumer.available for consumer in self.consumers.values())

    def release(self, delivery: Delivery) -> None:
        """Let go of a settled delivery, which makes room for another."""
        lane = self._held.release(delivery)
        if lane is not None:
            self.consumers[lane].top_up()

    def _consumer(self, lane: Lane) -> PullConsumer:
        return PullConsumer(
            self._sources.connection,
            lane.stream,
            consumer_name(self._model.name, lane),
            room=lambda: self._room(lane),
            on_delivery=self._delivered,
        )

    def _room(self, lane: Lane) -> int:
        """How many more messages to hold on a lane. Room is in items; a message may bring several."""
        messages = IN_HAND_BATCHES * self._model.max_batch_size / self._items_per_message
        return max(2, round(messages)) - self._held.on(lane)

    def _delivered(self, delivery: Delivery) -> None:
        lane = parse_infer_subject(delivery.subject)[1]  # the consumer's filter lets nothing else through
        self._pending[lane] = delivery.pending
        self._held.add(delivery, lane)
        if delivery.attempt > 1:
            metrics.redeliveries.labels(self._model.name).inc()
        try:
            headers = self._read_headers(delivery)
        except InferenceError as error:
            self._spawn(self._refuse_unreadable(delivery, error))
            return
        if delivery.attempt > 1:
            self._spawn(self._accept_again(delivery, headers, lane))
            return
        if self._model.needs_thread or len(delivery.body) > INLINE_WORK_BYTES:
            self._spawn(self._accept_slowly(delivery, headers, lane))
            return
        try:
            self._check_wanted(delivery, headers)
            decoded = self._decode(delivery.body, headers)
            if isinstance(decoded, BlobRef):
                self._spawn(self._accept_slowly(delivery, headers, lane))
                return
            self._ready(delivery, headers, lane, self._prepare(decoded))
        except Exception as error:
            self._spawn(self._refuse(delivery, headers, error))

    def _read_headers(self, delivery: Delivery) -> RequestHeaders:
        fallback_id = f"{delivery.stream}:{delivery.stream_seq}"
        if UNREADABLE in delivery.headers:
            raise InvalidInput("can not be read", field="headers")
        return self._sources.tenancy.read(delivery.headers, fallback_id=fallback_id)

    def _check_wanted(self, delivery: Delivery, headers: RequestHeaders) -> None:
        """Raise if the answer came too late to be of use, or is no longer asked for."""
        deadline_s = headers.deadline_s
        if deadline_s is not None and self._sources.clock.age_s(delivery.stored_at_ns) >= deadline_s:
            raise DeadlineExceeded(f"the deadline of {headers.deadline_ms} ms passed in the queue")
        if headers.job is not None and self._sources.is_cancelled(headers.tenant, headers.job):
            raise Cancelled("the job was cancelled")
        if self._sources.is_aborted(headers.id):
            raise Cancelled("the caller has left")

    def _decode(self, body: bytes, headers: RequestHeaders) -> InferRequest | BlobRef:
        try:
            return decode_request(body, headers.content_type, signature=self._model.signature)
        except InferenceError as error:
            raise MalformedMessage(error) from error

    def _prepare(self, request: InferRequest) -> Arrays:
        if request.model != self._model.name:
            wrong = InvalidInput("is not the model of the subject it was published to", field="model")
            raise MalformedMessage(wrong)
        return self._model.prepare(request)

    async def _accept_again(self, delivery: Delivery, headers: RequestHeaders, lane: Lane) -> None:
        """Take in a request that was delivered before, and that may be what ended the worker it was with.

        One at a time, from its preparing to its answer, so that if it ends this worker too, no other
        request that was delivered before has been started for nothing.
        """
        while twin := self._held.twin(delivery):
            await self._held.until_released(twin)
        async with self._quarantine:
            try:
                if await self._answers.already_stored(headers):
                    await self._answers.drop(delivery)
                    self.release(delivery)
                    return
                self._check_wanted(delivery, headers)
                starts = await self._sources.attempts.starts(headers)
                if starts >= self._max_starts:
                    raise Poison(f"the request was started {starts} times and never ended")
                await self._sources.attempts.record(headers, delivery.attempt, AttemptEvent.STARTED)
            except InferenceError as error:
                await self._refuse(delivery, headers, error)
                return
            await self._accept_slowly(delivery, headers, lane)
            await self._held.until_released(delivery)

    async def _accept_slowly(self, delivery: Delivery, headers: RequestHeaders, lane: Lane) -> None:
        self._preparing += 1
        try:
            self._check_wanted(delivery, headers)
            arrays = await self._fetch_and_prepare(delivery.body, headers)
            self._check_wanted(delivery, headers)  # again: preparing took time
        except Exception as error:
            await self._refuse(delivery, headers, error)
        else:
            self._ready(delivery, headers, lane, arrays)
        finally:
            self._preparing -= 1

    async def _fetch_and_prepare(self, body: bytes, headers: RequestHeaders) -> Arrays:
        loop, threads = asyncio.get_running_loop(), self._sources.threads
        decoded = await loop.run_in_executor(threads, self._decode, body, headers)
        if isinstance(decoded, BlobRef):
            try:
                body = await self._sources.blobs.get(headers.tenant, decoded)
            except InvalidInput as error:
                raise MalformedMessage(error) from error
            decoded = await loop.run_in_executor(threads, self._decode, body, headers)
            if isinstance(decoded, BlobRef):
                raise MalformedMessage(InvalidInput("refers to another reference", field="blob"))
        return await loop.run_in_executor(threads, self._prepare, decoded)

    def _ready(self, delivery: Delivery, headers: RequestHeaders, lane: Lane, arrays: Arrays) -> None:
        now_s = time.monotonic()
        queue_s = self._sources.clock.age_s(delivery.stored_at_ns)
        deadline_s = None if headers.deadline_s is None else now_s + headers.deadline_s - queue_s
        items = batch_rows(arrays)
        self._items_per_message += _SMOOTHING * (items - self._items_per_message)
        metrics.queue_s.labels(self._model.name).observe(queue_s)
        self._offer(
            PreparedRequest(
                delivery=delivery,
                headers=headers,
                lane=lane,
                arrays=arrays,
                items=items,
                size_bytes=sum(array.nbytes for array in arrays.values()),
                delivered_s=now_s,
                queue_s=queue_s,
                deadline_s=deadline_s,
            )
        )

    async def _refuse(self, delivery: Delivery, headers: RequestHeaders, error: Exception) -> None:
        malformed = isinstance(error, MalformedMessage)
        if isinstance(error, MalformedMessage):
            error = error.reason
        if not isinstance(error, InferenceError):
            log.error(
                "request failed to decode", request_id=headers.id, model=self._model.name, exc_info=error
            )
            error = Internal("the worker failed on this request; its log says more")
        await self._answers.answer(delivery, headers, error, malformed=malformed)
        self.release(delivery)

    async def _refuse_unreadable(self, delivery: Delivery, error: InferenceError) -> None:
        try:
            reply_to = read_reply_to(delivery.headers)
        except InvalidInput:
            reply_to = None
        await self._answers.answer(delivery, minimal_headers(delivery, reply_to), error, malformed=True)
        self.release(delivery)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        if self._tasks is None:
            raise RuntimeError("intake is not running")
        self._tasks.create_task(work, name=f"intake-{self._model.name}")


class MalformedMessage(Exception):
    """A message that is no request at all; `reason` says why. Its publisher did not use our gateway."""

    def __init__(self, reason: InferenceError) -> None:
        super().__init__(reason.message)
        self.reason = reason
