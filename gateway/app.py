"""The ASGI application: the routes, what their handlers are given, and the front before them all."""

import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import structlog
from litestar import Litestar, Router
from litestar.connection import ASGIConnection
from litestar.di import Provide
from litestar.handlers import BaseRouteHandler
from litestar.types import Guard

from gateway.auth import ADMINS_ONLY, check_route
from gateway.call import call_of
from gateway.dispatch import Dispatcher
from gateway.errors import exception_handlers
from gateway.front import HEALTH_PATHS, METRICS_PATH, Front
from gateway.openapi import describe_bodies, openapi_config
from gateway.routes import dead, health, jobs, metrics, models, predict
from gateway.services import Services, open_services
from gateway.settings import GatewaySettings, Settings

log = structlog.get_logger()

_ROUTES = (
    predict.predict,
    jobs.get_job,
    jobs.cancel_job,
    jobs.get_results,
    jobs.get_item,
    models.list_models,
    models.get_model,
    models.get_org_model,
    dead.list_dead,
    dead.show_dead,
    dead.replay_dead,
    dead.remove_dead,
    dead.purge_dead,
    health.health,
    health.live,
    health.ready,
    metrics.metrics,
)


def create_app(settings: Settings, *, dispatcher: Dispatcher | None = None) -> Front:
    """Build the gateway; nothing is opened before its lifespan starts.

    `dispatcher` takes the place of the queue for live requests, as a benchmark wants it.
    """
    opened: list[Services] = []

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        async with open_services(settings, dispatcher) as services:
            opened.append(services)
            gc.freeze()  # what was built so far lives as long as we do; a full collection took 70 ms
            log.info("started", host=settings.gateway.host, port=settings.gateway.port)
            yield
            log.info("stopped")

    app = Litestar(
        route_handlers=[*_ROUTES, _upload_route(settings.gateway)],
        dependencies=_dependencies(opened, settings.gateway),
        guards=[_route_guard(settings.gateway)],
        exception_handlers=exception_handlers(),
        lifespan=[lifespan],
        openapi_config=openapi_config(version("model-serving")),
        request_max_body_size=settings.gateway.max_body_bytes,
        logging_config=None,
    )
    describe_bodies(app.openapi_schema)
    return Front(
        app,
        keys=settings.gateway.caller_keys,
        open_paths=_open_paths(settings.gateway),
        admin_keys=settings.gateway.admin_keys,
    )


def _upload_route(settings: GatewaySettings) -> Router:
    """Give /v1/jobs a limit of its own; Litestar keeps all methods of a path in one router."""
    handlers = [jobs.submit_job, jobs.list_jobs]
    return Router("/", route_handlers=handlers, request_max_body_size=settings.max_upload_bytes)


def _dependencies(opened: list[Services], settings: GatewaySettings) -> dict[str, Provide]:
    def provide(choose: Callable[[Services], Any]) -> Provide:
        return Provide(lambda: choose(opened[-1]), sync_to_thread=False)

    return {
        "predictions": provide(lambda services: services.predictions),
        "intake": provide(lambda services: services.intake),
        "book": provide(lambda services: services.book),
        "dead": provide(lambda services: services.dead),
        "catalogue": provide(lambda services: services.catalogue),
        "checks": provide(lambda services: services.checks),
        "processes": Provide(lambda: settings.processes, sync_to_thread=False),
    }


def _route_guard(settings: GatewaySettings) -> Guard:
    """Guard every route by what it is, not by its path, of which there are many spellings."""
    callers, admins = settings.caller_keys, settings.admin_keys

    def check(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        check_route(
            admins_only=ADMINS_ONLY.items() <= handler.opt.items(),
            is_admin=call_of(connection.scope).is_admin,
            admins=admins,
            callers=callers,
        )

    return check


def _open_paths(settings: GatewaySettings) -> frozenset[str]:
    return HEALTH_PATHS | {METRICS_PATH} if settings.metrics_are_open else HEALTH_PATHS
