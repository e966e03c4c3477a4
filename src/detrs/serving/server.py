"""Runs the application with uvicorn: binds the address, stops gracefully."""

import ipaddress
import math
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from detrs.errors import UserError
from detrs.isolation import only_errors_logged
from detrs.serving.protocol import MAX_HEAD_BYTES, Protocol
from detrs.serving.settings import ServerSettings

KEEP_ALIVE_SECONDS = 5
STOP_MARGIN_SECONDS = 10
"""Time of a graceful stop beyond the deadlines of a request."""


class Server(uvicorn.Server):
    """A server that finishes the requests it accepted after the first SIGTERM or Ctrl-C; the second ends it at once.

    Args:
        config: of uvicorn.
        on_started: called when requests are accepted.
    """

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], object]) -> None:
        super().__init__(config)
        self._on_started = on_started
        self.forced_by = 0
        """Signal that ended the server before it had finished; 0: none."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit, self.forced_by = True, sig
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket at an address, not listening yet.

    Args:
        host: a name or an IP address of this machine.
        port: 0: any free one.

    Raises:
        UserError: the address cannot be used, or the port is taken.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"port is {port}, but must be in [0, 65535].")
    if not host:
        raise UserError("host is empty: use 127.0.0.1 for this machine only, or 0.0.0.0 for all networks.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"'{host}' is not an address of this machine: {reason}.") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UserError(
            f"Cannot use port {port} of '{host}': {error.strerror}. Choose another port; 0 is any free one."
        ) from error
    return listener


def is_loopback(listener: socket.socket) -> bool:
    """Whether only programs on this machine reach a bound socket."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def url(listener: socket.socket) -> str:
    """The address of a bound socket for a browser on this machine."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "localhost"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def build_server(app: Any, settings: ServerSettings, on_started: Callable[[], object]) -> Server:
    """A server for ``run``.

    Args:
        app: of ``create_app``.
        settings: of the application; their deadlines limit the time of the stop.
        on_started: called when requests are accepted.
    """
    deadlines = settings.body_timeout_seconds + settings.timeout_seconds
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(deadlines + STOP_MARGIN_SECONDS),
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
    return Server(config, on_started)


def run(server: Server, listener: socket.socket) -> int:
    """Answer requests until SIGTERM or Ctrl-C, then finish those that were accepted.

    Args:
        server: of ``build_server``.
        listener: of ``bind``.

    Returns:
        The exit code: 0 after a graceful stop; 130 or 143 if a second Ctrl-C or SIGTERM ended it at once.
    """
    with only_errors_logged("uvicorn.error"):  # each invalid request would be a warning
        server.run(sockets=[listener])
    return 128 + server.forced_by if server.forced_by else 0
