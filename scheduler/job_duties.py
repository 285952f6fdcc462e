"""What the scheduler does for jobs, beside their items: keep their deadlines, and tell their webhooks."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from infra.connections.callbacks import Resolve, open_callbacks
from infra.connections.clients import NatsConnection
from infra.connections.clock import BrokerClock
from infra.connections.jobs import Jobs
from infra.connections.reading import StreamReader
from infra.connections.requests import Requests
from infra.connections.results import Results
from infra.connections.settings import WebhookSettings
from infra.connections.streams import Streams
from scheduler.due import Patience
from scheduler.expiry import Expiry
from scheduler.open_jobs import OpenJobs
from scheduler.settings import SchedulerSettings
from scheduler.webhooks import Webhooks
from schemas.subjects import JOBS_STREAM


@dataclass(frozen=True, slots=True)
class JobDuties:
    """Two loops over the same open jobs."""

    open_jobs: OpenJobs
    expiry: Expiry
    webhooks: Webhooks


@asynccontextmanager
async def open_job_duties(
    connection: NatsConnection,
    requests: Requests,
    streams: Streams,
    settings: SchedulerSettings,
    webhook_settings: WebhookSettings,
    *,
    kept_s: float,
    timeout_s: float,
    clock: BrokerClock | None = None,
    resolve: Resolve | None = None,
) -> AsyncIterator[JobDuties]:
    """Build both loops, which do not run yet. `kept_s` is how long the JOBS stream keeps a record."""
    clock = clock or BrokerClock(requests)
    jobs = Jobs(connection, requests, timeout_s=timeout_s)
    results = Results(connection, requests, timeout_s=timeout_s)
    open_jobs = OpenJobs(
        requests,
        StreamReader(connection, requests, JOBS_STREAM, timeout_s=timeout_s),
        clock,
        patience=Patience(settings.expiry_grace_s, settings.upload_abandoned_s),
        kept_s=kept_s,
        max_jobs=settings.max_open_jobs,
    )
    async with open_callbacks(
        allow_private=webhook_settings.allow_private,
        timeout_s=webhook_settings.timeout_s,
        ca_file=webhook_settings.ca_file,
        resolve=resolve,
    ) as callbacks:
        yield JobDuties(
            open_jobs,
            Expiry(open_jobs, jobs, results, period_s=settings.jobs_s),
            Webhooks(
                open_jobs,
                jobs,
                results,
                streams=streams,
                clock=clock,
                callbacks=callbacks,
                settings=webhook_settings,
                period_s=settings.jobs_s,
            ),
        )
