"""HTTP/1.1 connections with deadlines for clients that are slow on purpose, on uvicorn's protocol.

uvicorn limits neither the time for the head of a request, nor that of a client that continues to send after the answer
or does not read it. Here each has a deadline, and errors of the protocol are JSON like all others.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

import h11
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""Time for the head of a request, from its first byte or from the start of the connection."""
LINGER_SECONDS = 2.0
"""Time in which the rest of a body is discarded after an early answer; if the connection were closed at once, the
client would receive an error of its network instead of the answer."""
WRITE_SECONDS = 30.0
"""Time in which a client must read when the buffers are full."""
STOP_SECONDS = 0.3
"""At the stop of the server: time in which requests are still accepted on connections that were open before."""
MAX_CONNECTIONS = 512
MAX_HEAD_BYTES = 32_768


class Protocol(H11Protocol):
    """A connection; at most one timer runs, that of its current stage."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._is_rejected = False
        self._stage = ""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        if len(self.connections) > MAX_CONNECTIONS:
            self._reject(503, "The server has too many connections. Retry later.")
        self._watch()

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing() and not self._is_rejected:
            super().data_received(data)
            self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close the connection after its current request, or soon if it has none."""
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(STOP_SECONDS, self._shut_down)
        else:
            self._shut_down()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not HTTP."""
        is_too_large = getattr(sys.exception(), "error_status_hint", 400) == 431  # other hints: 501, of a wrong coding
        status = 431 if is_too_large else 400
        too_large = f"The head of the request is larger than {MAX_HEAD_BYTES:,} bytes."
        self._reject(status, too_large if is_too_large else "The request is not valid HTTP/1.1.")
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # the application's answer would be a second one
            self.cycle.message_event.set()

    def _watch(self) -> None:
        """Start the timer of the current stage if the stage has changed."""
        stage, seconds, action = self._current()
        if stage != self._stage:
            self._cancel()
            self._stage = stage
            self._timer = None if action is None else self.loop.call_later(seconds, action)

    def _current(self) -> tuple[str, float, Callable[[], object] | None]:
        """Name of the stage, its time limit, and what ends it."""
        if self.transport.is_closing():
            return "closing", LINGER_SECONDS, self.transport.abort
        if self._is_rejected:
            return "rejected", LINGER_SECONDS, self._close
        if self.flow.write_paused:
            return "writing", WRITE_SECONDS, self.transport.abort
        if self.conn.their_state is h11.IDLE:
            if self.timeout_keep_alive_task is not None:
                return "between requests", 0, None
            return "head", HEAD_SECONDS, self._head_is_late
        if self.cycle is not None and self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY:
            return "rest of the body", LINGER_SECONDS, self._close
        return "request", 0, None

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _head_is_late(self) -> None:
        if self.conn.trailing_data[0]:
            message = f"The head of the request did not arrive within {HEAD_SECONDS:g} seconds."
            self._reject(408, message)
        else:
            self._close()

    def _shut_down(self) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            # otherwise the client sends its next request on a connection that is being closed
            self.cycle.default_headers = [*self.cycle.default_headers, CLOSE_HEADER]
        super().shutdown()
        self._watch()

    def _close(self) -> None:
        self._unset_keepalive_if_required()
        self.transport.close()
        self._watch()

    def _reject(self, status: int, message: str) -> None:
        """Answer with an error, unless an answer was started, and close the connection when the client has read it."""
        self._unset_keepalive_if_required()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"error": message}).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("x-content-type-options", "nosniff"),
                ("connection", "close"),
            ]
            reason = HTTPStatus(status).phrase.encode()
            response = h11.Response(status_code=status, headers=headers, reason=reason)
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self._is_rejected = True
        self.transport.write_eof()
        self._watch()
