"""Answers during a stop close their connection, so that clients send their next request elsewhere."""

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hostile import file, post_form
from hostile_files import jpeg
from raw_client import Address, Reply, exchange
from running import running
from standin import stand_in

from detrs.serving import ServerSettings, create_app

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Slow:
    """An application that takes its time.

    Args:
        seconds: before an answer; may be changed.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.arrived = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.arrived.set()
        await asyncio.sleep(self.seconds)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


def test_they_state_that_the_connection_is_closed() -> None:
    app = Slow()
    with ThreadPoolExecutor(1) as pool, running(app) as server:
        assert "connection" not in exchange(server, [REQUEST], timeout=10).headers
        app.arrived.clear()
        app.seconds = 1.0  # the server notices within 0.1 seconds that it has to stop
        last = pool.submit(exchange, server, [REQUEST], timeout=10)
        assert app.arrived.wait(10)
    assert last.result().body == b"ok" and last.result().headers["connection"] == "close"


def test_also_of_requests_that_arrive_just_after_the_signal() -> None:
    is_sent = threading.Event()

    def late(server: Address) -> Reply:
        def request() -> Iterator[bytes]:
            yield REQUEST[:5]
            is_sent.set()
            time.sleep(0.6)  # the server stops meanwhile
            yield REQUEST[5:]

        return exchange(server, request(), timeout=10)

    with ThreadPoolExecutor(1) as pool, running(Slow(1.5), STOP_SECONDS=1.2) as server:
        last = pool.submit(late, server)
        assert is_sent.wait(10)
        time.sleep(0.2)  # the connection is accepted
    assert last.result().body == b"ok" and last.result().headers["connection"] == "close"


def test_images_of_a_late_request_leave_nothing_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    module, predictor = stand_in()
    module.is_open.clear()
    body = post_form(*[file(jpeg())] * 4)
    with running(create_app(predictor, ServerSettings(timeout_seconds=1.0, max_batch=1))) as server:
        reply = exchange(server, [body], timeout=10)
        module.is_open.set()  # three images are left, whose deadline is over
        assert exchange(server, [post_form(file(jpeg()))], timeout=10).status == 200
        gc.collect()  # asyncio logs exceptions that nobody has seen when their future is deleted
    assert reply.status == 503 and [record.getMessage() for record in caplog.records] == []
