"""The gateway's metrics. Labels are bounded: a model counts under its name only if it has a card."""

from collections.abc import Mapping

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

from schemas.errors import ErrorCode

UNKNOWN = "unknown"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

requests_total = Counter(
    "model_serving_requests", "HTTP requests by how they ended", ["model", "route", "outcome"]
)
request_duration_seconds = Histogram(
    "model_serving_request_duration_seconds",
    "From the first byte of a request to the last of its answer",
    ["model", "route"],
    buckets=_SECONDS,
)
requests_in_flight = Gauge(
    "model_serving_requests_in_flight", "HTTP requests being served now", multiprocess_mode="livesum"
)
rejections_total = Counter("model_serving_rejections", "Requests refused before they were stored", ["reason"])
bad_lines_total = Counter("model_serving_bad_lines", "Lines of uploads that were no request")
payload_offloads_total = Counter(
    "model_serving_payload_offloads", "Bodies that went through the blob store", ["direction"]
)

_OUTCOMES: Mapping[ErrorCode, str] = {
    ErrorCode.OVERLOADED: "rejected",
    ErrorCode.DEADLINE_EXCEEDED: "expired",
    ErrorCode.CANCELLED: "cancelled",
    ErrorCode.POISON: "deadlettered",
}
_REASONS: Mapping[ErrorCode, str] = {
    ErrorCode.TOO_LARGE: "payload_too_large",
    ErrorCode.UNAUTHORIZED: "auth",
    ErrorCode.UNAVAILABLE: "queue_unavailable",
}
OVERLOADS = ("queue_full", "expected_wait", "tenant_concurrency", "tenant_rate")
for _reason in (*_REASONS.values(), *OVERLOADS):
    rejections_total.labels(_reason)


def count(
    *, model: str, route: str, status: int, error: ErrorCode | None, seconds: float, refused_for: str = ""
) -> None:
    """Note the end of one HTTP request; `refused_for` is one of OVERLOADS, or empty."""
    requests_total.labels(model, route, outcome_of(status, error)).inc()
    request_duration_seconds.labels(model, route).observe(seconds)
    if refused_for:
        rejections_total.labels(refused_for).inc()
    elif error is not None and error in _REASONS:
        rejections_total.labels(_REASONS[error]).inc()


def outcome_of(status: int, error: ErrorCode | None) -> str:
    """Name how a request ended, in the few words that a dashboard groups by."""
    if error is not None and error in _OUTCOMES:
        return _OUTCOMES[error]
    if status < 400:
        return "success"
    return "client_error" if status < 500 else "error"


def render(*, processes: int) -> bytes:
    """Write every metric in Prometheus' text form, of all `processes` that share our port."""
    if processes == 1:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
