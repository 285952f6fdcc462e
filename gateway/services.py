"""What the gateway is made of, and in which order that opens and closes."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from gateway.admission import Admission, AdmissionLimits
from gateway.bodies import Envelopes
from gateway.cancellation import Cancellation
from gateway.catalogue import Catalogue
from gateway.dead import DeadBook
from gateway.departures import Departures
from gateway.dispatch import Dispatcher, QueueDispatcher
from gateway.health import Checks
from gateway.intake import JobIntake
from gateway.jobs import JobBook
from gateway.once import Once
from gateway.predictions import Predictions
from gateway.settings import GatewaySettings, Settings
from gateway.submission import Submission
from gateway.uploads import UploadLimits, Uploads
from gateway.webhooks import WebhookCheck
from infra.connections.attempts import Attempts
from infra.connections.blobs import open_blobs
from infra.connections.callbacks import open_callbacks
from infra.connections.clients import NatsConnection, Role, open_nats, open_redis
from infra.connections.dead import DeadLetters
from infra.connections.jobs import Jobs
from infra.connections.placement import Placement
from infra.connections.replies import ReplyInbox
from infra.connections.requests import Requests
from infra.connections.results import Results
from infra.connections.settings import WebhookSettings
from infra.connections.tenants import Tenancy

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Services:
    """What handlers are given."""

    catalogue: Catalogue
    predictions: Predictions
    intake: JobIntake
    book: JobBook
    dead: DeadBook
    checks: Checks


@dataclass(frozen=True, slots=True)
class _Queue:
    """The gateway's ends of NATS, open."""

    connection: NatsConnection
    requests: Requests
    inbox: ReplyInbox
    jobs: Jobs
    results: Results
    attempts: Attempts
    letters: DeadLetters
    tenancy: Tenancy
    timeout_s: float


@asynccontextmanager
async def open_services(settings: Settings, dispatcher: Dispatcher | None) -> AsyncIterator[Services]:
    """Open every connection and start what runs beside the requests. Raises TimeoutError without NATS.

    `dispatcher`, if given, takes the place of the queue for live requests.
    """
    async with (
        _open_queue(settings) as queue,
        open_redis(settings.redis) as redis,
        _open_webhooks(settings.webhooks) as webhooks,
        _running() as tasks,
    ):
        envelopes = Envelopes(open_blobs(settings.blobs), tasks)
        catalogue = Catalogue(Placement(redis))
        await catalogue.refresh()
        departures = Departures()
        live = QueueDispatcher(
            queue.connection,
            queue.requests,
            queue.inbox,
            envelopes,
            queue.tenancy,
            ack_timeout_s=queue.timeout_s,
        )
        endless = [
            tasks.create_task(live.keep_waiting_ones_published(), name="publish again"),
            tasks.create_task(catalogue.keep_fresh(), name="catalogue"),
            tasks.create_task(departures.run(), name="departures"),
        ]
        yield _assemble(
            settings.gateway,
            queue,
            catalogue,
            envelopes,
            webhooks,
            departures=departures,
            dispatcher=dispatcher or live,
            tasks=tasks,
        )
        for task in endless:
            task.cancel()


def _assemble(
    settings: GatewaySettings,
    queue: _Queue,
    catalogue: Catalogue,
    envelopes: Envelopes,
    webhooks: WebhookCheck,
    *,
    departures: Departures,
    dispatcher: Dispatcher,
    tasks: asyncio.TaskGroup,
) -> Services:
    window, max_body_bytes = settings.publish_window, settings.max_body_bytes
    submission = Submission(
        queue.requests,
        queue.jobs,
        envelopes,
        queue.tenancy,
        window=window,
        ack_timeout_s=queue.timeout_s,
    )
    once = Once(submission, queue.jobs, queue.results)
    limits = AdmissionLimits(
        settings.tenant_max_in_flight, settings.tenant_requests_per_s, settings.max_wait_s
    )
    admission = Admission(limits, catalogue)
    cancellation = Cancellation(queue.jobs, queue.results, tasks, window=window)
    predictions = Predictions(
        catalogue,
        admission=admission,
        departures=departures,
        dispatcher=dispatcher,
        submission=submission,
        once=once,
        results=queue.results,
        inbox=queue.inbox,
        envelopes=envelopes,
        max_body_bytes=max_body_bytes,
        default_timeout_s=settings.default_timeout_s,
    )
    uploads = Uploads(submission, queue.jobs, queue.results, cancellation, _upload_limits(settings))
    max_items = settings.max_job_items
    intake = JobIntake(
        catalogue,
        admission=admission,
        submission=submission,
        once=once,
        uploads=uploads,
        webhooks=webhooks,
        max_body_bytes=max_body_bytes,
        max_items=max_items,
    )
    book = JobBook(queue.jobs, queue.results, queue.attempts, envelopes, cancellation)
    dead = DeadBook(queue.letters, catalogue, submission, queue.jobs, queue.tenancy)
    return Services(catalogue, predictions, intake, book, dead, Checks(queue.connection, catalogue))


@asynccontextmanager
async def _open_webhooks(settings: WebhookSettings) -> AsyncIterator[WebhookCheck]:
    async with open_callbacks(
        allow_private=settings.allow_private, timeout_s=settings.timeout_s, ca_file=settings.ca_file
    ) as callbacks:
        yield WebhookCheck(callbacks, settings)


def _upload_limits(settings: GatewaySettings) -> UploadLimits:
    return UploadLimits(
        max_line_bytes=settings.max_line_bytes,
        max_items=settings.max_job_items,
        patience_s=settings.upload_patience_s,
    )


@asynccontextmanager
async def _open_queue(settings: Settings) -> AsyncIterator[_Queue]:
    """Open NATS, but do not wait for it for ever: a process that never starts does not hear SIGTERM."""
    async with (
        _patience(settings.gateway.start_timeout_s) as patience,
        open_nats(settings.nats, Role.GATEWAY) as connection,
    ):
        timeout_s = settings.nats.ack_timeout_s
        requests = Requests(connection, timeout_s=timeout_s)
        inbox = ReplyInbox(connection)
        await requests.open()
        await inbox.open()
        patience.reschedule(None)
        jobs = Jobs(connection, requests, timeout_s=timeout_s)
        results = Results(connection, requests, timeout_s=timeout_s)
        attempts = Attempts(connection, requests, worker="", timeout_s=timeout_s)  # it only reads
        letters = DeadLetters(connection, requests, timeout_s=timeout_s)
        tenancy = Tenancy(settings.tenants.signing_key)
        yield _Queue(connection, requests, inbox, jobs, results, attempts, letters, tenancy, timeout_s)


@asynccontextmanager
async def _patience(timeout_s: float) -> AsyncIterator[asyncio.Timeout]:
    try:
        async with asyncio.timeout(timeout_s) as patience:
            yield patience
    except TimeoutError:
        log.error("nats did not answer", timeout_s=timeout_s)
        raise


@asynccontextmanager
async def _running() -> AsyncIterator[asyncio.TaskGroup]:
    """Own the background tasks; one that fails ends the process, because nothing else would notice."""
    left_by_error = False
    try:
        async with asyncio.TaskGroup() as tasks:
            try:
                yield tasks
            except Exception:
                left_by_error = True
                raise
    except* Exception as failed:
        if left_by_error:
            raise
        log.error("background task failed", exc_info=failed.exceptions[0])
        os.kill(os.getpid(), signal.SIGTERM)
