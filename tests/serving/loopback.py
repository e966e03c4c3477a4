"""The server of ``detrs serve`` in a thread, on a free port, and a client that sends bytes as they are."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from standin import StandIn, stand_in

from detrs.serving import ServerSettings, create_app, server
from detrs.serving.server import Server


class Running(NamedTuple):
    """A server that accepts requests."""

    port: int
    model: StandIn
    service: Any
    server: Server
    thread: threading.Thread

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def exchange(self, *parts: bytes, pause: float = 0.0) -> tuple[list[str], float]:
        """What the server sends until it closes the connection, and after how many seconds.

        Args:
            parts: the bytes to send; sending ends early if the connection is closed.
            pause: seconds between the parts.
        """
        start = time.monotonic()
        with self.connect() as connection:
            try:
                for part in parts:
                    connection.sendall(part)
                    time.sleep(pause)
            except (BrokenPipeError, ConnectionResetError):
                pass
            return answers(connection), time.monotonic() - start

    def stop(self) -> None:
        """As the first SIGTERM does."""
        self.server.handle_exit(15, None)


def answers(connection: socket.socket) -> list[str]:
    """Status and body of each answer until the connection is closed."""
    received = b""
    try:
        while some := connection.recv(65536):
            received += some
    except ConnectionResetError:
        pass
    return split(received)


def is_live(connection: socket.socket) -> bool:
    """Whether a request for ``/health/live`` is answered on an open connection."""
    connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    received = b""
    while not received.endswith(b'{"live":true}'):  # head and body may arrive one by one
        some = connection.recv(65536)
        if not some:
            return False
        received += some
    return split(received) == ['200 {"live":true}']


def split(received: bytes) -> list[str]:
    """``STATUS BODY`` of each answer."""
    found = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        length = int(headers["content-length"])
        found.append(f"{lines[0].split()[1]} {received[:length].decode()}")
        received = received[length:]
    return found


@contextmanager
def running(settings: ServerSettings | None = None) -> Iterator[Running]:
    """A server with a stand-in detector."""
    settings = settings or ServerSettings()
    model, predictor = stand_in()
    app = create_app(predictor, settings)
    started = threading.Event()
    own = server.build_server(app, settings, started.set)
    listener = server.bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, args=(own, listener))
    thread.start()
    try:
        assert started.wait(30)
        yield Running(port, model, app.state.service, own, thread)
    finally:
        model.is_open.set()
        own.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
