"""Start a worker: `python -m workers`. `--check` tries settings and connections, and exits."""

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import structlog
import uvloop
from pydantic import ValidationError

from infra.connections.aborts import AbortedRequests
from infra.connections.attempts import Attempts
from infra.connections.blobs import open_blobs
from infra.connections.checks import check_connections, explain_settings_error
from infra.connections.clients import NatsConnection, Role, open_nats, open_redis
from infra.connections.clock import BrokerClock
from infra.connections.jobs import CancelledJobs
from infra.connections.placement import Placement
from infra.connections.pulling import Settler
from infra.connections.requests import Requests
from infra.connections.results import Results
from infra.connections.telemetry import OperationsServer, configure_logging
from infra.connections.tenants import Tenancy
from schemas.errors import ModelUnavailable
from schemas.subjects import Lane
from workers import metrics
from workers.answers import Outlets
from workers.engines.base import DeviceLost
from workers.models import LoadedModel, load_model
from workers.repository import scan
from workers.settings import Settings, WorkerSettings
from workers.worker import Surroundings, Worker

log = structlog.get_logger()

EXIT_DEVICE_LOST = 70
EXIT_BAD_SETTINGS = 2


def main() -> int:
    """Run until SIGTERM, then drain. Returns the exit status."""
    try:
        settings = Settings()
    except ValidationError as error:
        print(explain_settings_error(error), file=sys.stderr)  # noqa: T201 - there is no log yet
        return EXIT_BAD_SETTINGS
    configure_logging(settings.log, service="worker")
    if "--check" in sys.argv[1:]:
        return asyncio.run(check_connections(settings.nats, settings.redis, Role.WORKER))
    try:
        status: int = uvloop.run(_serve(settings))
    except* DeviceLost as lost:
        log.error("engine lost; ending the process", reason=_first_reason(lost))
        status = EXIT_DEVICE_LOST
    if status:
        # An engine's thread may never return, and an interpreter that ends in order waits for it.
        os._exit(status)
    return status


def _first_reason(error: BaseException) -> str:
    """Return the text of the first exception in a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


async def _serve(settings: Settings) -> int:
    models = await asyncio.to_thread(load_models, settings.worker)
    if not models:
        repository = str(settings.worker.model_repository)
        log.error("no model to serve", repository=repository, models=settings.worker.models)
        return 1
    threads = ThreadPoolExecutor(settings.worker.prepare_threads, thread_name_prefix="prepare")
    async with (
        open_nats(settings.nats, Role.WORKER) as connection,
        open_redis(settings.redis) as redis_client,
    ):
        timeout_s = settings.nats.ack_timeout_s
        requests = Requests(connection, timeout_s=timeout_s)
        await requests.open()
        worker = Worker(
            models,
            Surroundings(
                connection=connection,
                outlets=_outlets(settings, connection, requests),
                clock=BrokerClock(requests),
                cancelled=CancelledJobs(connection, requests, timeout_s=timeout_s),
                placement=Placement(redis_client),
                threads=threads,
                tenancy=Tenancy(settings.tenants.signing_key),
                aborted=AbortedRequests(connection),
            ),
            device=settings.worker.device,
            ack_wait_s={lane: settings.streams.ack_wait_of(lane) for lane in Lane},
            max_starts=settings.streams.max_deliver,
        )
        return await _run_until_told(worker, settings.worker)


def _outlets(settings: Settings, connection: NatsConnection, requests: Requests) -> Outlets:
    worker_id = f"{socket.gethostname()}-{os.getpid()}-{connection.instance}"
    timeout_s = settings.nats.ack_timeout_s
    return Outlets(
        worker=worker_id,
        connection=connection,
        requests=requests,
        results=Results(connection, requests, timeout_s=timeout_s),
        blobs=open_blobs(settings.blobs),
        settler=Settler(connection, requests),
        attempts=Attempts(connection, requests, worker=worker_id, timeout_s=timeout_s),
    )


async def _run_until_told(worker: Worker, settings: WorkerSettings) -> int:
    """Run the worker between its signals; returns 1 if draining took longer than its grace."""
    loop = asyncio.get_running_loop()
    operations = OperationsServer(settings.metrics_host, settings.metrics_port, worker.health)
    operations.start()
    gc.freeze()  # what was loaded lives as long as we do
    try:
        async with asyncio.timeout(None) as life:

            def on_signal() -> None:
                worker.drain()
                life.reschedule(loop.time() + settings.drain_grace_s)

            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, on_signal)
            await worker.run()
    except TimeoutError:
        log.error("drain took too long; what was in hand will be delivered again", worker=worker.id)
        return 1
    finally:
        operations.stop()
    return 0


def load_models(settings: WorkerSettings) -> list[LoadedModel]:
    """Load and warm up every wanted model, newest version each. A broken one is logged and left out."""
    found = scan(settings.model_repository)
    for broken in found.broken:
        log.error("model is broken", where=broken.where, reason=broken.reason)
    latest = found.latest()
    wanted = latest if settings.models == "*" else settings.models.split(",")
    models = []
    for name in wanted:
        if name not in latest:
            log.error("model is not in the repository", model=name)
            continue
        started_s = time.monotonic()
        try:
            model = load_model(
                latest[name],
                device=settings.device,
                max_batch_size=settings.max_batch_size,
                batch_timeout_ms=settings.batch_timeout_ms,
                allow_python=settings.allow_python_models,
            )
            model.warm_up()
        except ModelUnavailable as error:
            log.error("model not loaded", model=name, reason=error.message, field=error.field)
            continue
        load_s = time.monotonic() - started_s
        metrics.create_at_zero(name)
        metrics.model_load_s.labels(name).set(load_s)
        metrics.model_memory_bytes.labels(name, settings.device).set(model.memory_bytes())
        log.info("model loaded", model=name, version=model.version, load_s=round(load_s, 3))
        models.append(model)
    return models


if __name__ == "__main__":
    sys.exit(main())
