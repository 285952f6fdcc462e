"""Metrics, for Prometheus."""

from litestar import Response, get
from litestar.di import NamedDependency
from prometheus_client import CONTENT_TYPE_LATEST

from gateway import metrics as gateway_metrics


@get("/metrics", sync_to_thread=False, include_in_schema=False)
def metrics(processes: NamedDependency[int]) -> Response[bytes]:
    """Write every metric of this gateway, of all its processes."""
    return Response(gateway_metrics.render(processes=processes), media_type=CONTENT_TYPE_LATEST)
