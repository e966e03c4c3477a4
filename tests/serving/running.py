"""A server in a thread of the test."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import uvicorn
from raw_client import Address

from detrs.serving.protocol import HEAD_SECONDS, MAX_HEAD_BYTES, Protocol


@contextmanager
def running(app: Any, **times: float) -> Iterator[Address]:
    """Serves an ASGI application on a free port, with the connections of ``detrs serve``.

    Args:
        app: an application.
        times: ``HEAD_SECONDS``, ...: of ``protocol``, to change.
    """
    with mock.patch.multiple("detrs.serving.protocol", **{"HEAD_SECONDS": HEAD_SECONDS} | times):
        config = uvicorn.Config(
            app, port=0, http=Protocol, ws="none", lifespan="on", log_config=None, log_level="error",
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )  # fmt: skip
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield server.servers[0].sockets[0].getsockname()
        finally:
            server.should_exit = True
            thread.join()
