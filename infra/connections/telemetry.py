"""Logs, and the small HTTP server through which a process without one shows its health and metrics."""

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Counter, generate_latest

from infra.connections.settings import LogSettings

# Moved by workers and by the scheduler. A name can be registered once in a process, and tests import both.
dead_letters = Counter("model_serving_deadletters", "Requests given up and copied to DEAD", ["reason"])

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure_logging(settings: LogSettings, *, service: str) -> None:
    """Send every log line to stderr, as JSON or as key=value text; call once, first of all."""
    renderer: structlog.typing.Processor
    if settings.format == "json":
        renderer = structlog.processors.JSONRenderer(serializer=json.dumps)
    else:
        renderer = structlog.processors.LogfmtRenderer(
            key_order=["timestamp", "level", "service", "event"], bool_as_flag=False
        )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]

    def add_service(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["service"] = service
        return event

    structlog.configure(
        processors=[*shared, add_service, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[settings.level]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, add_service, renderer],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=max(LEVELS[settings.level], logging.WARNING), handlers=[handler], force=True)


@dataclass(frozen=True, slots=True)
class HealthReport:
    """What a process says of itself: each check's result by name; it is ready if `ready` is true."""

    ready: bool
    checks: dict[str, str]
    models_loaded: tuple[str, ...] = ()


class OperationsServer:
    """Serves /health, /health/live, /health/ready and /metrics from a thread of its own."""

    def __init__(self, host: str, port: int, health: Callable[[], HealthReport]) -> None:
        self._health = health
        self._server = make_server(host, port, self._answer, WSGIServer, _QuietHandler)
        self._thread = threading.Thread(target=self._serve, name="operations", daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on, which the kernel chose if 0 was asked for."""
        return int(self._server.server_port)

    def start(self) -> None:
        """Start serving; does not block."""
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()

    def _serve(self) -> None:
        self._server.serve_forever(poll_interval=1.0)

    def _answer(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            start("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
            return [generate_latest(REGISTRY)]
        if path not in ("/health", "/health/live", "/health/ready"):
            start("404 Not Found", [])
            return []
        report = self._health()
        ok = report.ready or path != "/health/ready"
        status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
        start(f"{status.value} {status.phrase}", [("Content-Type", "application/json")])
        body = {
            "status": "ready" if report.ready else "not ready",
            "models_loaded": list(report.models_loaded),
            "checks": report.checks,
        }
        return [json.dumps(body).encode()]


class _QuietHandler(WSGIRequestHandler):
    """Probes come every few seconds and are not worth a line each; a slow one is cut off."""

    timeout = 5

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the parent's name
        """Say nothing."""
