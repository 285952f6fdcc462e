"""Brings JetStream to what it should be: every stream declared, three consumers for every known model.

Level-triggered: each round looks at everything anew and repeats what is missing, so a lost message, a
restart of the server (which empties INFER_LIVE) or a deleted consumer heals within a period. A model that
was seen once stays known, to a scheduler that starts later by its consumers: an empty Redis unlearns nothing.
"""

import asyncio
import contextlib
import time

import structlog

from infra.connections.clients import NatsConnection
from infra.connections.placement import Placement
from infra.connections.requests import ApiError
from infra.connections.streams import CONSUMER_NOT_FOUND, STREAM_NOT_FOUND, Streams
from infra.connections.telemetry import HealthReport
from scheduler import metrics
from scheduler.rates import Rates
from schemas.errors import Unavailable
from schemas.placement import BacklogReport
from schemas.subjects import Lane

log = structlog.get_logger()

MEASURE_S = 5.0


class Reconciler:
    """Declares streams and consumers, and measures how full they are."""

    def __init__(
        self, connection: NatsConnection, streams: Streams, placement: Placement, *, period_s: float
    ) -> None:
        self._connection = connection
        self._streams = streams
        self._placement = placement
        self._period_s = period_s
        self._undeclared = True  # whether the streams must be declared before anything else
        self._known: dict[str, bool] = {}  # model -> whether its consumers are declared
        self._certain = False
        self._healthy = False
        self._wake = asyncio.Event()
        self._measure_next_s = 0.0
        self._rates = Rates()

    @property
    def known(self) -> frozenset[str]:
        """The models that were announced since this process started, or had consumers before."""
        return frozenset(self._known)

    @property
    def certain(self) -> bool:
        """Say whether a model that is not known does not exist: placement was read at least once."""
        return self._certain

    async def run(self) -> None:
        """Reconcile until cancelled; at once after a reconnection, else once a period."""
        self._connection.on_reconnect(self._start_over)
        while True:
            self._wake.clear()
            try:
                await self.reconcile()
                self._healthy = True
            except (Unavailable, ApiError) as error:
                if self._healthy:
                    log.warning("not reconciled", reason=str(error))
                self._healthy = False
                if isinstance(error, ApiError) and error.err_code == STREAM_NOT_FOUND:
                    self._start_over()
            try:
                async with asyncio.timeout(self._period_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def reconcile(self) -> None:
        """Do one round. Raises Unavailable at the first thing that can not be done.

        Raises ApiError too, but not before what does not depend on it is done: no model's consumers wait
        for those of another.
        """
        if self._undeclared:
            await self._streams.declare()
            for model in await self._streams.declared_models():
                self._known.setdefault(model, False)
            self._undeclared = False
        for model in await self._announced():
            self._known.setdefault(model, False)
        refusals = [await self._declare(model) for model, declared in self._known.items() if not declared]
        if time.monotonic() >= self._measure_next_s:
            self._measure_next_s = time.monotonic() + MEASURE_S
            await self._measure()
        for refusal in filter(None, refusals):
            raise refusal

    def health(self) -> HealthReport:
        """Say whether the last round went through; called from the operations thread."""
        checks = {
            "nats": "ok" if self._connection.connected else "disconnected",
            "reconciled": "ok" if self._healthy else "failed",
        }
        return HealthReport(self._healthy and self._connection.connected, checks, tuple(sorted(self._known)))

    async def _declare(self, model: str) -> ApiError | None:
        """Declare a model's consumers. Returns the refusal, where there is one."""
        try:
            await self._streams.declare_consumers(model)
        except ApiError as refusal:
            return refusal
        self._known[model] = True
        log.info("consumers declared", model=model)
        return None

    async def _announced(self) -> list[str]:
        try:
            cards = await self._placement.cards()
        except Unavailable:
            return []  # Redis is a hint; what is known goes on being served
        self._certain = True
        return list(cards)

    async def _measure(self) -> None:
        reports: list[BacklogReport] = []
        for model in self._known:
            for lane in Lane:
                try:
                    backlog = await self._streams.backlog(model, lane)
                except ApiError as error:
                    if error.err_code != CONSUMER_NOT_FOUND:
                        raise
                    self._known[model] = False
                    log.warning("consumer was gone", model=model, lane=lane)
                    continue
                metrics.queue_depth.labels(model, lane).set(backlog.waiting)
                metrics.queue_ack_pending.labels(model, lane).set(backlog.in_hand)
                per_s = self._rates.update((model, lane), backlog, time.monotonic())
                reports.append(BacklogReport(model=model, lane=lane, waiting=backlog.waiting, per_s=per_s))
        with contextlib.suppress(Unavailable):  # a gateway that hears nothing says so by a constant
            await self._placement.report_backlog(reports)

    def _start_over(self) -> None:
        self._undeclared = True
        self._known = dict.fromkeys(self._known, False)
        self._wake.set()
