"""Clients of a server: requests of mixed sizes and kinds, sent one after the other, and what came back."""

import base64
import http.client
import io
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "serving"))

import hostile
from raw_client import Address

SIZES = ((320, 240), (640, 480), (480, 800), (1280, 720), (1920, 1080))
"""(width, height) of made images."""
BUSY = (429, 503)
TIMEOUT = 90.0
REFUSED = 0


class Body(NamedTuple):
    """A request."""

    kind: str
    path: str
    content_type: str
    content: bytes
    num_images: int


class Answer(NamedTuple):
    kind: str
    status: int | None
    """``None``: an open connection was closed without an answer; ``REFUSED``: a new one was not accepted."""
    seconds: float
    num_images: int
    is_equal: bool = True
    """To the answer of the idle server."""


def made_images() -> list[bytes]:
    """JPEG files of smooth noise, one of each size."""
    generator = np.random.default_rng(0)
    files = []
    for size in SIZES:
        small = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        stream = io.BytesIO()
        small.resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    return files


def bodies(files: Sequence[bytes]) -> list[Body]:
    """The requests of the load, in order: 3 of 4 images are sent by themselves."""
    found = []
    for i, file in enumerate(files):
        four = [files[(i + k) % len(files)] for k in range(4)]
        text = json.dumps({"images": [base64.b64encode(file).decode()]}).encode()
        multipart = hostile.MULTIPART.partition(": ")[2]
        found += [
            Body("one in a form", "/predict", multipart, hostile.form(hostile.file(file)), 1),
            Body("one as the body", "/predict", "image/jpeg", file, 1),
            Body("one in JSON", "/predict", "application/json", text, 1),
        ]
        if i % 4 == 0:
            found.append(Body("four in a form", "/predict", multipart, hostile.form(*map(hostile.file, four)), 4))
    return [*found, Body("explanation", "/explain", "image/jpeg", files[0], 1)]


def ask(connection: http.client.HTTPConnection, body: Body) -> tuple[int, bytes, float]:
    """Status, content and seconds to wait before the next request.

    Raises:
        OSError, HTTPException: the connection was closed.
    """
    connection.request("POST", body.path, body.content, {"Content-Type": body.content_type})
    response = connection.getresponse()
    return response.status, response.read(), float(response.headers.get("Retry-After", 0))


class Load:
    """Clients that send requests one after the other until ``stop`` is set."""

    def __init__(self, address: Address, requests: Sequence[Body], expected: Sequence[bytes]) -> None:
        self.answers: list[Answer] = []
        self.stop = threading.Event()
        self._address, self._requests, self._expected = address, requests, expected

    def client(self, number: int) -> None:
        connection, is_new = http.client.HTTPConnection(*self._address, timeout=TIMEOUT), True
        position = 7 * number  # clients send different requests at a time
        while not self.stop.is_set():
            index = position % len(self._requests)
            body, start = self._requests[index], time.perf_counter()
            try:
                status, content, wait = ask(connection, body)
            except (OSError, http.client.HTTPException):
                connection.close()
                self._add(Answer(body.kind, REFUSED if is_new else None, time.perf_counter() - start, 0))
                if is_new:  # the server accepts no more connections
                    return
                is_new = True
                continue
            is_new = connection.sock is None  # the server closed it, as its answer states
            seconds = time.perf_counter() - start
            is_equal = status != 200 or content == self._expected[index]
            self._add(Answer(body.kind, status, seconds, body.num_images, is_equal))
            if status in BUSY:
                self.stop.wait(min(wait, 5))
            else:
                position += 1

    def _add(self, answer: Answer) -> None:
        self.answers.append(answer)


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds."""
    return {f"p{q}": round(1000 * float(np.percentile(seconds, q)), 1) for q in (50, 90, 99, 100)}


def outcome(status: int | None) -> str:
    """A status in reports."""
    return {None: "lost", REFUSED: "refused"}.get(status, str(status))
