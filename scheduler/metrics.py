"""The scheduler's metrics: how far behind each model is, and what the sweeps did."""

from prometheus_client import Counter, Gauge

queue_depth = Gauge(
    "model_serving_queue_depth", "Requests stored and not yet delivered to a worker", ["model", "lane"]
)
queue_ack_pending = Gauge(
    "model_serving_queue_ack_pending", "Requests delivered and not yet settled", ["model", "lane"]
)
swept = Counter("model_serving_swept", "Requests ended because no worker can ever serve them", ["reason"])
swept.labels("unknown_model")
