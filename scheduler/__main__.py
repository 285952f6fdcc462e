"""Start the scheduler: `python -m scheduler`. `--check` tries settings and connections, and exits."""

import asyncio
import signal
import sys
from collections.abc import Coroutine, Mapping

import structlog
import uvloop
from pydantic import ValidationError

from infra.connections.blobs import open_blobs
from infra.connections.checks import check_connections, explain_settings_error
from infra.connections.clients import Role, open_nats, open_redis
from infra.connections.placement import Placement
from infra.connections.requests import Requests
from infra.connections.results import Results
from infra.connections.settings import (
    BlobSettings,
    LogSettings,
    NatsSettings,
    RedisSettings,
    StreamSettings,
    WebhookSettings,
)
from infra.connections.streams import Streams
from infra.connections.telemetry import OperationsServer, configure_logging
from infra.connections.tenants import Tenancy, TenantSettings
from scheduler.dead_letters import Advisories, ParkedSweep
from scheduler.endings import Endings
from scheduler.job_duties import open_job_duties
from scheduler.reconciler import Reconciler
from scheduler.settings import SchedulerSettings
from scheduler.sweeper import Sweeper

log = structlog.get_logger()

EXIT_BAD_SETTINGS = 2


def main() -> int:
    """Run until SIGTERM. Returns the exit status."""
    try:
        settings = SchedulerSettings()
        nats, redis, blobs = NatsSettings(), RedisSettings(), BlobSettings()
        streams, webhooks = StreamSettings(), WebhookSettings()
        tenancy = Tenancy(TenantSettings().signing_key)
        configure_logging(LogSettings(), service="scheduler")
    except ValidationError as error:
        print(explain_settings_error(error), file=sys.stderr)  # noqa: T201 - there is no log yet
        return EXIT_BAD_SETTINGS
    if "--check" in sys.argv[1:]:
        return asyncio.run(check_connections(nats, redis, Role.SCHEDULER))
    uvloop.run(
        _serve(
            settings, nats, redis, blobs, stream_settings=streams, webhook_settings=webhooks, tenancy=tenancy
        )
    )
    return 0


async def _serve(
    settings: SchedulerSettings,
    nats: NatsSettings,
    redis: RedisSettings,
    blobs: BlobSettings,
    *,
    stream_settings: StreamSettings,
    webhook_settings: WebhookSettings,
    tenancy: Tenancy,
) -> None:
    async with open_nats(nats, Role.SCHEDULER) as connection, open_redis(redis) as redis_client:
        requests = Requests(connection, timeout_s=nats.ack_timeout_s)
        await requests.open()
        streams = Streams(requests, stream_settings)
        reconciler = Reconciler(connection, streams, Placement(redis_client), period_s=settings.reconcile_s)
        results = Results(connection, requests, timeout_s=nats.ack_timeout_s)
        endings = Endings(connection, requests, streams, results, read=tenancy.read)
        advisories = Advisories(connection, requests, streams, endings)
        parked = ParkedSweep(streams, endings, known=lambda: reconciler.known, period_s=settings.sweep_s)
        sweeper = Sweeper(
            connection,
            requests,
            streams,
            results,
            open_blobs(blobs),
            known=lambda: reconciler.known,
            certain=lambda: reconciler.certain,
            period_s=settings.sweep_s,
            grace_s=settings.unknown_model_grace_s,
            blob_ttl_s=blobs.ttl_s,
            read=tenancy.read,
        )
        operations = OperationsServer(settings.metrics_host, settings.metrics_port, reconciler.health)
        operations.start()
        try:
            async with open_job_duties(
                connection,
                requests,
                streams,
                settings,
                webhook_settings,
                kept_s=stream_settings.result_ttl_s,
                timeout_s=nats.ack_timeout_s,
            ) as duties:
                await _run_until_told(
                    {
                        "reconcile": reconciler.run(),
                        "sweep": sweeper.run(),
                        "advisories": advisories.run(),
                        "parked": parked.run(),
                        "deadlines": duties.expiry.run(),
                        "webhooks": duties.webhooks.run(),
                    }
                )
        finally:
            operations.stop()


async def _run_until_told(endless: Mapping[str, Coroutine[None, None, None]]) -> None:
    """Run what never ends by itself, each under its name, until SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as tasks:
        loops = [tasks.create_task(run, name=name) for name, run in endless.items()]
        log.info("started")
        await stop.wait()
        for task in loops:
            task.cancel()
    log.info("stopped")


if __name__ == "__main__":
    sys.exit(main())
