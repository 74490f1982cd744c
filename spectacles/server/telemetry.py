"""What the server reports about itself: a log of JSON lines on stdout, and Prometheus metrics.

Neither holds a file name, a picture, a key or a client's address."""

import functools
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from spectacles.metrics.abstention import AbstainReason
from spectacles.server.batching import Answer
from spectacles.server.schemas import ImagePrediction, RejectedImage


def write(event: str, **facts: Any) -> None:
    """One line of the log. Straight to the stream: through `logging` it takes three times as long, for each image."""
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts})
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def log_image(request_id: str, milliseconds: float, size: int, result: ImagePrediction | RejectedImage) -> None:
    """One line per image."""
    if isinstance(result, RejectedImage):
        facts: dict[str, Any] = {"status": result.status, "error": result.error}
    else:
        facts = {"label": result.label, "confidence": result.confidence, "abstain_reason": result.abstain_reason}
    write("inference", request_id=request_id, milliseconds=milliseconds, bytes=size, **facts)


SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
BATCHES = (1, 2, 4, 8, 16, 32)
MAX_CLASSES = 100
"""Classes that are counted by name; predictions of others count as OTHER."""
OTHER = "other"
ANSWERED = "answered"
OUTCOMES = (ANSWERED, *get_args(AbstainReason))
"""Of an image that is predicted: answered, or why the model abstains."""
ROUTES = ("/predict", "/explain", "/model", "/metrics", "/health/live", "/health/ready", "/admin/reload", "/")
REASONS = (
    "queue_full", "too_late", "rate", "no_key", "no_keys", "host", "body_too_large", "slow_client", "memory",
    "not_ready", "bad_request", "image", "disconnected", "url",
)  # fmt: skip


def route(path: str) -> str:
    """All paths that do not exist count as OTHER."""
    return path if path in ROUTES else OTHER


def cached_labels(metric: Any) -> Any:
    """`metric.labels`, looked up once for each combination of values: that takes longer than counting."""
    return functools.cache(metric.labels)


class Metrics:
    """Every series exists from the start, so that a rate of 0 is a number too."""

    def __init__(self, queue_length: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, label: str, values: Sequence[str] = ()) -> Callable[[str], Counter]:
            labelled: Callable[[str], Counter] = cached_labels(
                Counter(f"spectacles_{name}", text, [label], registry=self.registry)
            )
            for value in values:
                labelled(value)
            return labelled

        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"spectacles_{name}", text, labels, buckets=buckets, registry=self.registry)

        waiting = Gauge("spectacles_queue_images", "Images waiting or being computed", registry=self.registry)
        waiting.set_function(queue_length)
        requests = Counter("spectacles_requests", "Requests answered", ["route", "status"], registry=self.registry)
        self.requests: Callable[[str, str], Counter] = cached_labels(requests)
        self.rejections = counter("rejections", "Images and requests rejected", "reason", REASONS)
        self.predictions = counter("predictions", "Images by label", "label")
        self.images = counter("images", "Images predicted, by outcome", "outcome", OUTCOMES)
        self.swaps = counter("swaps", "Bundles loaded after the first", "outcome", ("done", "failed"))
        self.stages: Callable[[str], Histogram] = cached_labels(
            histogram("stage_seconds", "Time of an image in each stage", SECONDS, "stage")
        )
        self.latency: Callable[[str], Histogram] = cached_labels(
            histogram("request_seconds", "Time of a request, its upload included", SECONDS, "route")
        )
        self.batches = histogram("batch_images", "Images computed together", BATCHES)

    def observe(self, answer: Answer) -> None:
        """Counts one image."""
        prediction = answer.prediction
        self.stages("queue").observe(answer.waited)
        self.stages("decoding").observe(answer.decoding)
        if prediction.reason:
            self.rejections("image").inc()
            return
        self.stages("inference").observe(answer.inference)
        self.batches.observe(answer.batch)
        info = answer.model.info
        known = info.classes[:MAX_CLASSES]
        for label in info.labels_of(prediction.label):
            self.predictions(label if label in known else OTHER).inc()
        self.images(prediction.abstain_reason or ANSWERED).inc()

    def reject(self, reason: str) -> None:
        self.rejections(reason if reason in REASONS else OTHER).inc()

    def finish(self, route: str, status: int, seconds: float) -> None:
        """Counts one request. `route`: one of a bounded number."""
        self.requests(route, str(status)).inc()
        self.latency(route).observe(seconds)

    def exposition(self) -> tuple[bytes, str]:
        """(text, content type)."""
        return generate_latest(self.registry), CONTENT_TYPE_PLAIN_0_0_4
