"""Sends the bytes of a request as they are, and reads one answer."""

import json
import select
import socket
import time
from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

Address = tuple[str, int]


class Reply(NamedTuple):
    """An answer, or a connection that was closed without one (``status`` is ``None``)."""

    status: int | None
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes
    seconds: float

    @property
    def sentence(self) -> str:
        """The message of an error."""
        if self.headers.get("content-type", "").startswith("application/json"):
            values = json.loads(self.body)
            return values["error"]
        return self.body.decode()


def exchange(address: Address, request: Iterable[bytes], *, timeout: float, closes: bool = False) -> Reply:
    """The answer to a request. Sending stops as soon as the server answers or closes the connection.

    Args:
        address: host and port.
        request: in parts.
        timeout: seconds for the whole exchange.
        closes: close the sending side after the request.

    Raises:
        TimeoutError: no answer, and the connection is open.
    """
    parts = iter(request)
    first = next(parts)  # some take a second to build
    start = time.monotonic()
    with socket.create_connection(address, timeout) as connection:
        try:
            for part in chain([first], parts):
                if select.select([connection], [], [], 0)[0]:
                    break
                connection.sendall(part)
            if closes:
                connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # an answer may have been sent before
        received = b""
        while True:
            connection.settimeout(max(start + timeout - time.monotonic(), 0.001))
            try:
                some = connection.recv(65536)
            except ConnectionResetError:
                some = b""
            received += some
            reply = _parsed(received, time.monotonic() - start, closed=not some)
            if reply is not None:
                return reply


def _parsed(received: bytes, seconds: float, *, closed: bool) -> Reply | None:
    """The answer in the bytes received so far, or ``None`` if more is needed."""
    head, complete, body = received.partition(b"\r\n\r\n")
    if not complete:
        return Reply(None, {}, received, seconds) if closed else None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = headers.get("content-length")
    if (length is not None and len(body) >= int(length)) or closed:
        return Reply(int(first.split()[1]), headers, body[: None if length is None else int(length)], seconds)
    return None
