"""Metrics in the text format of Prometheus, in a registry of their own."""

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counts and times of requests and forward passes.

    Args:
        model: name of the detector.
        version: of detrs.
    """

    def __init__(self, model: str, version: str) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "detrs_requests", "Requests by route and status", ("route", "status"), registry=registry
        )
        self._request_seconds = Histogram(
            "detrs_request_seconds", "Time from the head of a request to its answer", ("route",), buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self._batch_images = Histogram(
            "detrs_batch_images", "Images in a forward pass", buckets=SIZES, registry=registry
        )
        self._batch_seconds = Histogram(
            "detrs_batch_seconds", "Time of a forward pass with its transfers", buckets=SECONDS, registry=registry
        )
        Info("detrs_model", "The detector", registry=registry).info({"name": model, "version": version})

    def request_finished(self, route: str, status: int, seconds: float) -> None:
        """A request was answered. ``route`` is one of the application's, never the path that the client sent."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def queue(self, waiting: Callable[[], int], pending: Callable[[], int]) -> None:
        """Add the lengths of the queue.

        Args:
            waiting: returns the number of images that wait for the model.
            pending: returns the number of images that the server holds.
        """
        registry = self._registry
        Gauge("detrs_waiting_images", "Images that wait for the model", registry=registry).set_function(waiting)
        Gauge("detrs_pending_images", "Images that the server holds", registry=registry).set_function(pending)

    def batch_finished(self, size: int, seconds: float) -> None:
        """The model computed ``size`` images in ``seconds``."""
        self._batch_images.observe(size)
        self._batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """All metrics."""
        return generate_latest(self._registry)
