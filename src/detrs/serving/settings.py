"""Settings of the server: limits, queue, batches, token."""

import math
from dataclasses import dataclass, field

from detrs.config.data import MAX_PIXELS
from detrs.errors import UserError

MEGABYTE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of the server. Limits are checked before the work that they limit.

    Raises:
        UserError: a value is out of range.
    """

    threshold: float | None = None
    """Minimum score of a detection where a request has no ``threshold``; by default the predictor's."""
    max_batch: int | None = None
    """Images of equal resized size in one forward pass. 1: the answer is bit-equal to that of ``Predictor`` for the
    image alone. Larger: equal up to rounding errors. By default 1 on the CPU, where batches save little, else 8."""
    batch_window_ms: float = 5.0
    """How long an image waits for others to fill its batch, in milliseconds; only if ``max_batch`` is above 1."""
    queue_size: int = 64
    """Images that the server holds at a time: being decoded, waiting, or in the model. More are answered with 503."""
    max_per_client: int | None = None
    """Requests of one client address that are processed at a time. More are answered with 429. By default unlimited."""
    timeout_seconds: float = 30.0
    """Time from the complete request to its answer, else 503."""
    body_timeout_seconds: float = 15.0
    """Time in which the body of a request must arrive, else 408."""
    max_body_bytes: int = 20 * MEGABYTE
    """Size of the body of a request, else 413."""
    max_total_bytes: int = 256 * MEGABYTE
    """Size of all bodies in memory. More are answered with 503."""
    max_images: int = 32
    """Images in one request, else 413."""
    max_pixels: int = 50_000_000
    """Pixels of an image, checked before it is decoded, else 413."""
    token: str | None = field(default=None, repr=False)
    """If given, requests need the header ``Authorization: Bearer TOKEN``, else 401; except for the pages, ``/health``
    and the description of the interface."""
    hosts: tuple[str, ...] | None = None
    """Names in the header ``Host`` that are answered, without port; against DNS rebinding, where a web site makes a
    browser send requests to this server under another name. ``None``: all."""

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UserError(f"threshold is {self.threshold}, but must be in [0, 1].")
        for name in ("max_batch", "queue_size", "max_per_client", "max_body_bytes", "max_total_bytes", "max_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}, but must be at least 1.")
        if not 1 <= self.max_pixels <= MAX_PIXELS:
            raise UserError(f"max_pixels is {self.max_pixels}, but must be in [1, {MAX_PIXELS:,}].")
        for name in ("timeout_seconds", "body_timeout_seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}, but must be above 0.")
        if not 0 <= self.batch_window_ms <= 1000:
            raise UserError(f"batch_window_ms is {self.batch_window_ms}, but must be in [0, 1000].")
        if self.max_images > self.queue_size:
            raise UserError(
                f"max_images is {self.max_images}, above queue_size, {self.queue_size}: such requests would never be "
                "accepted. Raise queue_size or lower max_images."
            )
        if self.max_body_bytes > self.max_total_bytes:
            raise UserError(
                f"max_body_bytes is {self.max_body_bytes:,}, above max_total_bytes, {self.max_total_bytes:,}. Raise "
                "max_total_bytes or lower max_body_bytes."
            )
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise UserError("The token must consist of printable ASCII characters, and not be empty.")
