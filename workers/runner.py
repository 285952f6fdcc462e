"""Runs the batches of one model, one at a time, on the engine's own thread, and has them answered.

Answering a batch goes on while the next one runs. A batch whose run fails is split and run request by
request, so one bad input never fails its batch-mates.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog

from schemas.envelope import Result
from schemas.errors import Cancelled, DeadlineExceeded, InferenceError, ModelFailed
from workers import metrics
from workers.answers import Answers
from workers.batcher import Batcher, BatchLimits, Waiting
from workers.engines.base import Arrays, DeviceLost
from workers.intake import PreparedRequest
from workers.models import LoadedModel

log = structlog.get_logger()

_SMOOTHING = 0.2

Outcome = Arrays | InferenceError


class Runner:
    """The batches of one model. `release` is called once for each delivery that was answered."""

    def __init__(
        self,
        model: LoadedModel,
        answers: Answers,
        *,
        is_cancelled: Callable[[str, str], bool],
        is_aborted: Callable[[str], bool] = lambda _: False,
        more_coming: Callable[[], bool],
        release: Callable[[PreparedRequest], None],
    ) -> None:
        self._model = model
        self._answers = answers
        self._is_cancelled = is_cancelled
        self._is_aborted = is_aborted
        self._more_coming = more_coming
        self._release = release
        self._batcher: Batcher[PreparedRequest] = Batcher(
            BatchLimits(max_items=model.max_batch_size, timeout_s=model.batch_timeout_ms / 1000)
        )
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"engine-{model.name}")
        self._wake = asyncio.Event()
        self._draining = False
        self._run_s = 0.0
        self._started_s: float | None = None

    def offer(self, request: PreparedRequest) -> None:
        """Let a request wait for its batch."""
        self._batcher.add(
            Waiting(
                request=request,
                lane=request.lane,
                shape=self._model.shape_key(request.arrays),
                items=request.items,
                size_bytes=request.size_bytes,
                arrived_s=request.delivered_s,
                deadline_s=request.deadline_s,
                priority=request.headers.priority,
                alone=request.delivery.attempt > 1,
            )
        )
        self._wake.set()

    def drain(self) -> None:
        """End `run` once nothing waits any more; to be called when nothing more will be offered."""
        self._draining = True
        self._wake.set()

    def is_stuck(self, now_s: float) -> bool:
        """Say whether a run has lasted longer than the model may, so the leases must lapse."""
        return self._started_s is not None and now_s - self._started_s > self._model.config.max_execution_s

    async def run(self) -> None:
        """Run batches until drained. Raises DeviceLost if the engine can not be used again."""
        try:
            async with asyncio.TaskGroup() as answering:
                while (batch := await self._next_batch(answering)) is not None:
                    outcomes, run_s = await self._run_batch(batch)
                    answering.create_task(self._answer_batch(batch, outcomes, run_s), name="answer-batch")
        finally:
            self._thread.shutdown(wait=False)

    async def _next_batch(self, answering: asyncio.TaskGroup) -> list[PreparedRequest] | None:
        """Wait until a batch should start. Returns None when drained."""
        while True:
            now_s = time.monotonic()
            for late in self._batcher.take_expired(now_s):
                error = DeadlineExceeded("the deadline passed before the request could run")
                answering.create_task(self._answer(late.request, error), name="answer-expired")
            start_s = self._batcher.ready_at(now_s, more_coming=self._more_coming(), run_s=self._run_s)
            if start_s is not None and start_s <= now_s:
                batch = self._still_wanted([entry.request for entry in self._batcher.take()], answering)
                if batch:
                    return batch
                continue
            if start_s is None and self._draining:
                return None
            await self._sleep_until_woken(None if start_s is None else start_s - now_s)

    async def _sleep_until_woken(self, at_most_s: float | None) -> None:
        try:
            async with asyncio.timeout(at_most_s):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    def _still_wanted(
        self, batch: list[PreparedRequest], answering: asyncio.TaskGroup
    ) -> list[PreparedRequest]:
        wanted = []
        for request in batch:
            headers = request.headers
            if headers.job is not None and self._is_cancelled(headers.tenant, headers.job):
                error = Cancelled("the job was cancelled")
                answering.create_task(self._answer(request, error), name="answer-cancelled")
            elif self._is_aborted(headers.id):
                error = Cancelled("the caller has left")
                answering.create_task(self._answer(request, error), name="answer-aborted")
            else:
                wanted.append(request)
        return wanted

    async def _run_batch(self, batch: Sequence[PreparedRequest]) -> tuple[list[Outcome], float]:
        """Return an outcome for each request, in order, and how long the run took, in seconds."""
        name = self._model.name
        started_s = time.monotonic()
        for request in batch:
            metrics.batch_wait_s.labels(name).observe(started_s - request.delivered_s)
        outcomes = await self._run_or_split(batch)
        run_s = time.monotonic() - started_s
        self._run_s += _SMOOTHING * (run_s - self._run_s)
        items = sum(request.items for request in batch)
        metrics.inference_s.labels(name).observe(run_s)
        metrics.batch_size.labels(name).observe(items)
        metrics.inferences.labels(name).inc(items)
        return outcomes, run_s

    async def _run_or_split(self, batch: Sequence[PreparedRequest]) -> list[Outcome]:
        try:
            return list(await self._run_in_thread([request.arrays for request in batch]))
        except ModelFailed as error:
            if len(batch) == 1:
                return [error]
        log.warning("batch split", model=self._model.name, requests=len(batch))
        return [await self._run_alone(request) for request in batch]

    async def _run_alone(self, request: PreparedRequest) -> Outcome:
        """Run a request whose batch failed. That is another start, so it is counted before it happens."""
        try:
            await self._answers.note_start(request.delivery, request.headers)
            return (await self._run_in_thread([request.arrays]))[0]
        except InferenceError as error:
            return error

    async def _run_in_thread(self, arrays: list[Arrays]) -> Sequence[Arrays]:
        """Run on the engine's thread. A run that does not end in time can not be stopped: DeviceLost."""
        run = asyncio.get_running_loop().run_in_executor(self._thread, self._model.run, arrays)
        self._started_s = time.monotonic()
        try:
            async with asyncio.timeout(self._model.config.max_execution_s):
                return await run
        except TimeoutError as error:
            raise DeviceLost(f"model {self._model.name!r} ran over its max_execution_s") from error
        finally:
            self._started_s = None

    async def _answer_batch(
        self, batch: Sequence[PreparedRequest], outcomes: Sequence[Outcome], run_s: float
    ) -> None:
        jobs = []
        for request, outcome in zip(batch, outcomes, strict=True):
            answer = self._result(request, outcome, run_s)
            if request.headers.job is None:
                await self._answer(request, answer)
            else:
                jobs.append(self._answer(request, answer))  # these await the broker: all at once
        if jobs:
            await asyncio.gather(*jobs)

    def _result(self, request: PreparedRequest, outcome: Outcome, run_s: float) -> Result | InferenceError:
        if isinstance(outcome, InferenceError):
            return outcome
        try:
            outputs = self._model.finish(outcome)
        except ModelFailed as error:
            return error
        held_ms = (time.monotonic() - request.delivered_s) * 1000
        return Result(
            id=request.headers.id,
            model=self._model.name,
            version=self._model.version,
            outputs=outputs,
            timing={"queue_ms": request.queue_s * 1000, "worker_ms": held_ms, "run_ms": run_s * 1000},
        )

    async def _answer(self, request: PreparedRequest, outcome: Result | InferenceError) -> None:
        await self._answers.answer(request.delivery, request.headers, outcome)
        self._release(request)
