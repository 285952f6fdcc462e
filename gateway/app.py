"""Puts the gateway together: what it is made of, in which order that opens and closes, and its routes."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import structlog
from litestar import Litestar
from litestar.di import Provide

from gateway.auth import parse_keys
from gateway.bodies import Envelopes
from gateway.catalogue import Catalogue
from gateway.dispatch import Dispatcher, QueueDispatcher
from gateway.errors import exception_handlers
from gateway.front import HEALTH_PATHS, METRICS_PATH, Front
from gateway.health import Checks
from gateway.openapi import openapi_config
from gateway.predictions import Predictions
from gateway.routes import health, metrics, models, predict
from gateway.settings import Settings
from gateway.submission import Submission
from infra.connections.blobs import open_blobs
from infra.connections.clients import NatsConnection, Role, open_nats, open_redis
from infra.connections.jobs import Jobs
from infra.connections.placement import Placement
from infra.connections.replies import ReplyInbox
from infra.connections.requests import Requests

log = structlog.get_logger()

START_TIMEOUT_S = 15.0


@dataclass(slots=True)
class Services:
    """What handlers are given. Filled when the app starts."""

    catalogue: Catalogue
    predictions: Predictions
    checks: Checks


def create_app(settings: Settings, *, dispatcher: Dispatcher | None = None) -> Front:
    """Build the gateway; nothing is opened before its lifespan starts.

    `dispatcher` takes the place of the queue for live requests, as a benchmark wants it.
    """
    opened: list[Services] = []

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        async with open_services(settings, dispatcher) as services:
            opened.append(services)
            log.info("started", host=settings.gateway.host, port=settings.gateway.port)
            yield
            log.info("stopped")
            opened.clear()

    def provide(choose: Callable[[Services], Any]) -> Provide:
        return Provide(lambda: choose(opened[-1]), sync_to_thread=False)

    app = Litestar(
        route_handlers=[
            predict.predict,
            models.list_models,
            models.get_model,
            models.get_org_model,
            health.health,
            health.live,
            health.ready,
            metrics.metrics,
        ],
        dependencies={
            "predictions": provide(lambda services: services.predictions),
            "catalogue": provide(lambda services: services.catalogue),
            "checks": provide(lambda services: services.checks),
            "processes": Provide(lambda: settings.gateway.processes, sync_to_thread=False),
        },
        exception_handlers=exception_handlers(),
        lifespan=[lifespan],
        openapi_config=openapi_config(version("model-serving")),
        request_max_body_size=settings.gateway.max_body_bytes,
        logging_config=None,
    )
    return Front(app, keys=_keys(settings), open_paths=_open_paths(settings))


@asynccontextmanager
async def open_services(settings: Settings, dispatcher: Dispatcher | None) -> AsyncIterator[Services]:
    """Open every connection and start what runs beside the requests. Raises TimeoutError without NATS."""
    async with (
        _open_in_time(settings) as connection,
        open_redis(settings.redis) as redis,
        _running() as tasks,
    ):
        ack_timeout_s = settings.nats.ack_timeout_s
        requests = Requests(connection, timeout_s=ack_timeout_s)
        inbox = ReplyInbox(connection)
        await requests.open()
        await inbox.open()
        jobs = Jobs(connection, requests, timeout_s=ack_timeout_s)
        envelopes = Envelopes(open_blobs(settings.blobs), tasks)
        catalogue = Catalogue(Placement(redis))
        queue = QueueDispatcher(connection, requests, inbox, envelopes, ack_timeout_s=ack_timeout_s)
        await catalogue.refresh()
        submission = Submission(
            requests,
            jobs,
            envelopes,
            window=settings.gateway.publish_window,
            ack_timeout_s=ack_timeout_s,
        )
        predictions = Predictions(
            catalogue,
            dispatcher or queue,
            submission,
            inbox,
            envelopes,
            max_body_bytes=settings.gateway.max_body_bytes,
            default_timeout_s=settings.gateway.default_timeout_s,
        )
        endless = [
            tasks.create_task(queue.keep_waiting_ones_published(), name="publish again"),
            tasks.create_task(catalogue.keep_fresh(), name="catalogue"),
        ]
        yield Services(catalogue, predictions, Checks(connection, catalogue))
        for task in endless:
            task.cancel()


@asynccontextmanager
async def _open_in_time(settings: Settings) -> AsyncIterator[NatsConnection]:
    """Open NATS, but do not wait for it for ever: a process that never starts does not hear SIGTERM."""
    async with (
        asyncio.timeout(START_TIMEOUT_S) as patience,
        open_nats(settings.nats, Role.GATEWAY) as connection,
    ):
        patience.reschedule(None)
        yield connection


@asynccontextmanager
async def _running() -> AsyncIterator[asyncio.TaskGroup]:
    """Own the background tasks; one that fails ends the process, because nothing else would notice."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except* Exception as failed:
        log.error("background task failed", exc_info=failed.exceptions[0])
        os.kill(os.getpid(), signal.SIGTERM)


def _keys(settings: Settings) -> Any:
    if settings.gateway.auth == "off":
        return None
    return parse_keys(settings.gateway.api_keys.get_secret_value())


def _open_paths(settings: Settings) -> frozenset[str]:
    return HEALTH_PATHS | {METRICS_PATH} if settings.gateway.metrics_are_open else HEALTH_PATHS
