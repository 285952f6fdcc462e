"""Health, for people and probes; open to everybody."""

from litestar import Response, get
from litestar.di import NamedDependency

from gateway.answers import json_response
from gateway.health import Checks
from schemas.api import Health


@get("/health", sync_to_thread=False, security=[{}])
def health(checks: NamedDependency[Checks]) -> Health:
    """Say how this gateway is, and which models can answer now."""
    return checks.report()


@get("/health/live", sync_to_thread=False, security=[{}])
def live(checks: NamedDependency[Checks]) -> Health:
    """Say that the process runs."""
    return checks.report()


@get("/health/ready", sync_to_thread=False, security=[{}])
def ready(checks: NamedDependency[Checks]) -> Response[bytes]:
    """Answer 503 while requests can not be taken."""
    return json_response(checks.report(), status=200 if checks.ready else 503)
