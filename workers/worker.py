"""A worker's life: load, announce, serve, drain.

There are two ways to end, and they are not the same. `drain()` stops pulling and finishes what is in hand.
Cancelling `run()` abandons what is in hand, and JetStream delivers it again, to someone else.
"""

import asyncio
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import structlog

from infra.connections.aborts import AbortedRequests
from infra.connections.clients import NatsConnection
from infra.connections.clock import BrokerClock
from infra.connections.jobs import CancelledJobs
from infra.connections.placement import Placement
from infra.connections.requests import ApiError
from infra.connections.streams import DELIVERY_SLACK
from infra.connections.telemetry import HealthReport
from infra.connections.tenants import Tenancy
from schemas.errors import Unavailable
from schemas.placement import HEARTBEAT_S, WorkerState, WorkerStatus
from schemas.subjects import Lane
from workers import metrics
from workers.answers import Answers, Outlets
from workers.held import Held
from workers.intake import Intake, IntakeSources, PreparedRequest
from workers.models import LoadedModel
from workers.runner import Runner

log = structlog.get_logger()

CLOCK_SYNC_S = 60.0
RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a worker is connected to."""

    connection: NatsConnection
    outlets: Outlets
    clock: BrokerClock
    cancelled: CancelledJobs
    placement: Placement
    threads: Executor
    tenancy: Tenancy
    aborted: AbortedRequests


class ServedModel:
    """One model with its intake and its runner, joined."""

    def __init__(
        self,
        model: LoadedModel,
        around: Surroundings,
        *,
        ack_wait_s: Mapping[Lane, float],
        max_starts: int,
    ) -> None:
        self.model = model
        self._settler = around.outlets.settler
        self.held = Held(ack_wait_s)
        answers = Answers(around.outlets, model.name, max_deliver=max_starts + DELIVERY_SLACK, held=self.held)
        self.runner = Runner(
            model,
            answers,
            is_cancelled=around.cancelled,
            is_aborted=around.aborted,
            more_coming=lambda: self.intake.more_coming,
            release=self._release,
        )
        sources = IntakeSources(
            connection=around.connection,
            blobs=around.outlets.blobs,
            clock=around.clock,
            is_cancelled=around.cancelled,
            threads=around.threads,
            attempts=around.outlets.attempts,
            tenancy=around.tenancy,
            is_aborted=around.aborted,
        )
        self.intake = Intake(
            model, sources, answers, held=self.held, max_starts=max_starts, offer=self.runner.offer
        )

    async def run(self) -> None:
        """Serve until drained; what was pulled is run and answered before this returns."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.runner.run(), name=f"run-{self.model.name}")
            await self.intake.run()
            self.runner.drain()

    async def extend(self, lanes: Collection[Lane]) -> None:
        """Start the leases on `lanes` anew, but not for an engine that makes no progress."""
        metrics.in_hand.labels(self.model.name).set(len(self.held))
        if not self.runner.is_stuck(time.monotonic()):
            await self.held.extend(lanes, self._settler)

    def _release(self, request: PreparedRequest) -> None:
        self.intake.release(request.delivery)


class Worker:
    """Pulls micro-batches of its models and runs them until told to stop."""

    def __init__(
        self,
        models: Sequence[LoadedModel],
        around: Surroundings,
        *,
        device: str,
        ack_wait_s: Mapping[Lane, float],
        max_starts: int,
    ) -> None:
        self.id = around.outlets.worker
        self._around = around
        self._device = device
        self._ack_wait_s = ack_wait_s
        self._served = [
            ServedModel(model, around, ack_wait_s=ack_wait_s, max_starts=max_starts) for model in models
        ]
        self._state = WorkerState.STARTING
        self._draining = asyncio.Event()
        self._current = asyncio.Event()  # whether the broker's clock and the cancel marks were read

    async def run(self) -> None:
        """Serve until drained. Raises an exception group with DeviceLost if an engine is lost."""
        around = self._around
        await around.cancelled.open()
        await around.aborted.open()
        around.connection.on_reconnect(self._catch_up_soon)
        self._catch_up = asyncio.Event()
        self._catch_up.set()
        async with asyncio.TaskGroup() as background:
            loops = [
                background.create_task(self._keep_leases(), name="leases"),
                background.create_task(self._heartbeat(), name="heartbeat"),
                background.create_task(self._follow_broker(), name="broker"),
            ]
            await self._current.wait()
            async with asyncio.TaskGroup() as serving:
                for served in self._served:
                    serving.create_task(served.run(), name=f"serve-{served.model.name}")
                await self._draining.wait()
                await self._stop_pulling()
            for task in loops:
                task.cancel()
        await self._leave()

    def drain(self) -> None:
        """Stop pulling, finish what is in hand, and let `run` return."""
        if not self._draining.is_set():
            log.info("draining", worker=self.id, in_hand=sum(len(served.held) for served in self._served))
        self._state = WorkerState.DRAINING
        self._draining.set()
        self._current.set()

    def health(self) -> HealthReport:
        """Say whether work would be pulled now; called from the operations thread."""
        checks = {
            "nats": "ok" if self._around.connection.connected else "disconnected",
            "state": str(self._state),
        }
        missing = [served.model.name for served in self._served if not served.intake.available]
        checks["consumers"] = f"waiting for {', '.join(missing)}" if missing else "ok"
        ready = self._around.connection.connected and self._state is WorkerState.READY and not missing
        return HealthReport(ready, checks, tuple(served.model.name for served in self._served))

    async def _stop_pulling(self) -> None:
        await asyncio.gather(*(served.intake.stop_pulling() for served in self._served))

    async def _keep_leases(self) -> None:
        """Extend what is in hand at a third of ack_wait."""
        extended_s = dict.fromkeys(Lane, time.monotonic())
        while True:
            await asyncio.sleep(min(self._ack_wait_s.values()) / 3)
            now_s = time.monotonic()
            due = [
                lane for lane, wait_s in self._ack_wait_s.items() if now_s - extended_s[lane] >= wait_s / 4
            ]
            extended_s |= dict.fromkeys(due, now_s)
            for served in self._served:
                try:
                    await served.extend(due)
                except Unavailable:
                    log.warning("leases not extended", model=served.model.name)

    async def _heartbeat(self) -> None:
        """Announce the worker and its models; a Redis that is away is logged once and costs nothing."""
        reachable = True
        while True:
            if self._state is WorkerState.STARTING and all(s.intake.available for s in self._served):
                self._state = WorkerState.READY
                log.info("ready", worker=self.id, models=[served.model.name for served in self._served])
            try:
                await self._around.placement.announce(
                    self._status(), [served.model.card for served in self._served]
                )
            except Unavailable:
                if reachable:
                    log.warning("placement not reachable; serving on", worker=self.id)
                reachable = False
            else:
                reachable = True
            starting = self._state is WorkerState.STARTING
            await asyncio.sleep(RETRY_S / 4 if starting else HEARTBEAT_S)

    async def _follow_broker(self) -> None:
        """Keep the broker's clock and the cancel marks current, anew after each reconnection."""
        reachable = True
        while True:
            self._catch_up.clear()
            try:
                await self._around.clock.sync()
                await self._around.cancelled.catch_up()
            except (Unavailable, ApiError) as error:
                if reachable:
                    log.warning("broker not followed; trying again", worker=self.id, reason=str(error))
                reachable = False
                await asyncio.sleep(RETRY_S / 4)  # the streams may not be declared yet
                continue
            reachable = True
            self._current.set()
            try:
                async with asyncio.timeout(CLOCK_SYNC_S):
                    await self._catch_up.wait()
            except TimeoutError:
                pass

    def _catch_up_soon(self) -> None:
        self._catch_up.set()

    def _status(self) -> WorkerStatus:
        return WorkerStatus(
            worker=self.id,
            state=self._state,
            models=tuple(served.model.name for served in self._served),
            host=socket.gethostname(),
            device=self._device,
        )

    async def _leave(self) -> None:
        try:
            await self._around.placement.leave(self.id)
        except Unavailable:
            log.warning("heartbeat left to lapse", worker=self.id)
        log.info("stopped", worker=self.id)
