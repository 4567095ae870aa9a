"""What Prometheus reads at /metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter(
            "layerfuse_requests", "Requests answered.", ("path", "status"), registry=own
        )
        self.seconds = Histogram(
            "layerfuse_request_seconds",
            "Time to answer.",
            ("path",),
            buckets=_SECONDS,
            registry=own,
        )
        self.texts = Counter("layerfuse_texts", "Texts classified.", ("model",), registry=own)
        self.truncated = Counter(
            "layerfuse_truncated_texts",
            "Texts longer than an encoder reads.",
            ("model",),
            registry=own,
        )
        self.predicted = Counter(
            "layerfuse_predictions", "Texts by predicted class.", ("model", "label"), registry=own
        )
        self.queue = Gauge("layerfuse_queue_texts", "Texts that wait for a batch.", registry=own)
        self.queue_seconds = Histogram(
            "layerfuse_queue_seconds",
            "Time that a request waited for its batch.",
            buckets=_SECONDS,
            registry=own,
        )
        self.batch_texts = Histogram(
            "layerfuse_batch_texts", "Texts of a batch.", buckets=_TEXTS, registry=own
        )
