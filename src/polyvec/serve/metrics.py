"""What a server counts, for Prometheus."""

from collections.abc import Callable, Sequence
from typing import Any

from polyvec.errors import MissingExtraError
from polyvec.interfaces import EncodeReport
from polyvec.serve.batching import Report

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
except ImportError:
    raise MissingExtraError("prometheus-client", "serve", "polyvec serve") from None

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
TOKENS = (16, 64, 256, 1024, 2048, 4096, 8192, 16_384, 32_768)


class Metrics:
    """Counters of one server, apart from those of others in the process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter(
            "polyvec_requests", "Requests, by route and status.", ["route", "status"], **registry
        )
        self.seconds = Histogram(
            "polyvec_request_seconds", "Until an answer.", ["route"], buckets=SECONDS, **registry
        )
        self.rejected = Counter(
            "polyvec_rejected", "Requests refused, by the reason.", ["reason"], **registry
        )
        self.tokenize_seconds = Histogram(
            "polyvec_tokenize_seconds", "Reading a request.", ["model"], buckets=SECONDS, **registry
        )
        self.queue_seconds = Histogram(
            "polyvec_queue_seconds", "A text in the queue.", ["model"], buckets=SECONDS, **registry
        )
        self.inference_seconds = Histogram(
            "polyvec_inference_seconds", "A batch.", ["model"], buckets=SECONDS, **registry
        )
        self.batch_tokens = Histogram(
            "polyvec_batch_tokens", "Tokens of a batch.", ["model"], buckets=TOKENS, **registry
        )
        self.batch_texts = Histogram(
            "polyvec_batch_texts",
            "Texts of a batch.",
            ["model"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            **registry,
        )
        self.tokens = Counter("polyvec_tokens", "Tokens that were read.", ["model"], **registry)
        self.padding = Counter(
            "polyvec_padding_tokens", "Tokens computed for nothing.", ["model"], **registry
        )
        self.truncated = Counter(
            "polyvec_truncated_texts", "Texts that were cut.", ["model"], **registry
        )
        self.queued = Gauge(
            "polyvec_queued_tokens", "Tokens that wait or are computed.", ["model"], **registry
        )

    def on_batch(self, model: str) -> Callable[[Report], None]:
        """A function that counts a model's batches."""

        def count(report: Report) -> None:
            self.inference_seconds.labels(model).observe(report.seconds)
            self.batch_tokens.labels(model).observe(report.tokens)
            self.batch_texts.labels(model).observe(report.texts)
            for waited in report.waited:
                self.queue_seconds.labels(model).observe(waited)

        return count

    def on_computed(self, model: str) -> Callable[[EncodeReport], None]:
        """A function that counts a model's tokens, and its padding."""

        def count(report: EncodeReport) -> None:
            self.tokens.labels(model).inc(report.num_tokens)
            self.padding.labels(model).inc(report.num_computed_tokens - report.num_tokens)

        return count

    def page(self, queued: Sequence[tuple[str, int]]) -> bytes:
        """All of it as Prometheus reads it; queued: the tokens of each model."""
        for model, tokens in queued:
            self.queued.labels(model).set(tokens)
        return bytes(generate_latest(self.registry))
