"""The scheduler's metrics: how far behind each model is, and what the sweeps did."""

from prometheus_client import Counter, Gauge

from infra.connections import telemetry

queue_depth = Gauge(
    "model_serving_queue_depth", "Requests stored and not yet delivered to a worker", ["model", "lane"]
)
queue_ack_pending = Gauge(
    "model_serving_queue_ack_pending", "Requests delivered and not yet settled", ["model", "lane"]
)
swept = Counter("model_serving_swept", "Requests ended because no worker can ever serve them", ["reason"])
swept.labels("unknown_model")
dead_letters = telemetry.dead_letters
for reason in ("poison", "parked"):  # told by an advisory, or found by the sweep for missed ones
    dead_letters.labels(reason)
dead_letter_depth = Gauge("model_serving_deadletter_depth", "Dead letters that are kept")
open_jobs = Gauge("model_serving_open_jobs", "Jobs with a deadline or a webhook, or under upload, in memory")
open_jobs_forgotten = Counter(
    "model_serving_open_jobs_forgotten",
    "Jobs older than what is kept that had not ended or not told their webhook",
)
items_expired = Counter("model_serving_items_expired", "Job items ended because their deadline passed")
uploads_abandoned = Counter(
    "model_serving_uploads_abandoned", "Uploads cancelled because their gateway is gone"
)
webhook_deliveries = Counter(
    "model_serving_webhook_deliveries", "Tries to tell a webhook, by what came of them", ["outcome"]
)
for _outcome in ("delivered", "retried", "gone", "given_up"):
    webhook_deliveries.labels(_outcome)
