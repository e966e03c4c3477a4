"""Answers during a stop close their connection, so that clients send their next request elsewhere."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from raw_client import exchange
from running import running


def test_they_state_that_the_connection_is_closed() -> None:
    arrived = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        arrived.set()
        await asyncio.sleep(0.3)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    request = [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"]
    with ThreadPoolExecutor(1) as pool, running(app) as server:
        assert "connection" not in exchange(server, request, timeout=10).headers
        arrived.clear()
        last = pool.submit(exchange, server, request, timeout=10)
        assert arrived.wait(10)
    assert last.result().body == b"ok" and last.result().headers["connection"] == "close"
