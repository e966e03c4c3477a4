"""What every request passes first and every answer last: host, origin, token; headers, metrics, errors."""

import hmac
import logging
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detrs.serving.problems import CLIENT_CLOSED_REQUEST, Disconnected, RequestProblem, problem_response

logger = logging.getLogger("detrs.serving")

MAX_HEADERS = 100
MAX_HEAD_BYTES = 32_768
MAX_ADDRESS_BYTES = 8_192

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; frame-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}
"""Added to every answer that has no header of the same name."""


class Gate:
    """ASGI middleware around the whole application.

    Args:
        app: the application.
        token: expected in the header ``Authorization``; ``None``: open.
        is_open: whether a path needs no token.
        hosts: accepted names in the header ``Host``; ``None``: all.
        finished: called with the route, the status and the seconds of each request.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        is_open: Callable[[str], bool],
        hosts: tuple[str, ...] | None,
        finished: Callable[[str, int, float], None],
    ) -> None:
        self._app = app
        self._token = token
        self._is_open = is_open
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)
        self._finished = finished

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def send_secured(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, send_secured)
        except RequestProblem as problem:
            await problem_response(problem.status, problem.message, problem.retry_after)(scope, receive, send_secured)
        except Disconnected:
            status = CLIENT_CLOSED_REQUEST
        except Exception:  # a fault of the server: reported in its log, and the other requests go on
            logger.exception("a request failed")
            if not status:
                message = "The server failed to answer; its log has the reason."
                await problem_response(500, message)(scope, receive, send_secured)
        finally:
            route = scope.get("route")
            self._finished(getattr(route, "path", "other"), status, time.perf_counter() - start)

    def _check(self, scope: Scope) -> None:
        """Raise ``RequestProblem`` if the request is not answered at all."""
        head = sum(len(name) + len(value) for name, value in scope["headers"])
        if len(scope["headers"]) > MAX_HEADERS or head > MAX_HEAD_BYTES:
            raise RequestProblem(
                431, f"The request has more than {MAX_HEADERS} headers or {MAX_HEAD_BYTES:,} bytes of them."
            )
        if len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"]) > MAX_ADDRESS_BYTES:
            raise RequestProblem(414, f"The address of the request is longer than {MAX_ADDRESS_BYTES:,} bytes.")
        headers = Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:  # a proxy may read it in another way
            raise RequestProblem(400, "The request has both Content-Length and Transfer-Encoding. Send one of them.")
        host = headers.get("host", "")
        if self._hosts is not None and _name(host) not in self._hosts:
            raise RequestProblem(421, "This server is not responsible for the name in the header Host.")
        origin = headers.get("origin")
        if origin is not None and scope["method"] not in ("GET", "HEAD") and _authority(origin) != host:
            raise RequestProblem(403, "Requests from pages of other sites are not answered.")
        if self._token is not None and not self._is_open(scope["path"]):
            kind, _, token = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._token.encode()):
                raise RequestProblem(401, "The token is missing or wrong. Send the header Authorization: Bearer TOKEN.")


def _authority(origin: str) -> str | None:
    """Host and port of a header ``Origin``; ``None`` if it is invalid."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _name(host: str) -> str:
    """The name in a header ``Host``, without port; empty if it is invalid."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
