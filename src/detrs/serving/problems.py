"""Errors of requests: a status and one sentence, as JSON ``{"error": "..."}``."""

from fastapi.responses import JSONResponse

from detrs.errors import printable


class RequestProblem(Exception):
    """A request that cannot be answered.

    Args:
        status: the HTTP status.
        message: one sentence: what was expected, what came, what to do.
        retry_after: seconds after which the request may succeed.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after


class Disconnected(Exception):
    """The client closed the connection before the answer."""


CLIENT_CLOSED_REQUEST = 499
"""Status in the metrics, as in nginx, of requests whose client disconnected; never sent."""


def problem_response(status: int, message: str, retry_after: int | None = None) -> JSONResponse:
    """The answer to a request that failed."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": printable(message)}, status, headers)
