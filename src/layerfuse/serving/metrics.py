"""What Prometheus reads at /metrics."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        counter = partial(Counter, registry=own, namespace="layerfuse")
        histogram = partial(Histogram, registry=own, namespace="layerfuse")
        seconds = partial(histogram, buckets=_SECONDS)
        self.requests = counter("requests", "Requests answered.", ("path", "status"))
        self.seconds = seconds("request_seconds", "Time to answer.", ("path",))
        self.texts = counter("texts", "Texts classified.", ("model",))
        self.truncated = counter("truncated_texts", "Texts that were cut.", ("model",))
        self.predicted = counter("predictions", "Texts by class.", ("model", "label"))
        self.queue = Gauge("layerfuse_queue_texts", "Texts that wait.", registry=own)
        self.queue_seconds = seconds("queue_seconds", "Time until a request's batch begins.")
        self.batch_texts = histogram("batch_texts", "Texts of a batch.", buckets=_TEXTS)
