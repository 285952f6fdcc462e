"""The worker's metrics. Each is moved on the line where its event happens."""

from prometheus_client import Counter, Gauge, Histogram

from infra.connections import telemetry
from schemas.errors import ErrorCode

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

OUTCOMES = ("succeeded", "failed", "cancelled", "expired", "retried")

inferences = Counter("model_serving_inferences", "Items that a model ran", ["model"])
answers = Counter("model_serving_worker_answers", "Deliveries by what became of them", ["model", "outcome"])
batch_size = Histogram("model_serving_batch_size", "Items in a batch", ["model"], buckets=_ITEMS)
inference_s = Histogram(
    "model_serving_inference_duration_seconds", "Time a batch ran in the engine", ["model"], buckets=_SECONDS
)
batch_wait_s = Histogram(
    "model_serving_batch_wait_seconds", "From delivery to the start of the run", ["model"], buckets=_SECONDS
)
queue_s = Histogram(
    "model_serving_queue_duration_seconds",
    "From the broker's storing to delivery",
    ["model"],
    buckets=_SECONDS,
)
redeliveries = Counter("model_serving_redeliveries", "Deliveries that were not the first", ["model"])
dead_letters = telemetry.dead_letters
duplicates = Counter("model_serving_duplicates", "Results refused because one was stored before", ["model"])
in_hand = Gauge("model_serving_worker_in_hand", "Deliveries held and not settled", ["model"])
model_memory_bytes = Gauge(
    "model_serving_model_memory_bytes", "What a loaded model holds", ["model", "device"]
)
model_load_s = Gauge("model_serving_model_load_duration_seconds", "Time the last load took", ["model"])


def create_at_zero(model: str) -> None:
    """Make every series of a model, so that rates exist before the first event."""
    for code in ErrorCode:
        dead_letters.labels(code)
    for outcome in OUTCOMES:
        answers.labels(model, outcome)
    for metric in (
        inferences,
        batch_size,
        inference_s,
        batch_wait_s,
        queue_s,
        redeliveries,
        duplicates,
    ):
        metric.labels(model)
