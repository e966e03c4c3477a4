"""A full queue, deadlines and clients that leave: what is answered, and what is never computed."""

import asyncio
import base64
import json
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from standin import StandIn, image_file, stand_in
from starlette.requests import Request
from starlette.testclient import TestClient

from detrs.errors import UserError
from detrs.serving import ServerSettings, create_app
from detrs.serving.problems import RequestProblem
from detrs.serving.service import NUM_DECODERS

PNG = {"content-type": "image/png"}
FILE = image_file((250, 100, 0))
SCOPE: dict[str, Any] = {
    "type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict", "query_string": b"", "root_path": "",
    "headers": [(b"host", b"localhost"), (b"content-type", b"image/png")], "client": ("127.0.0.1", 1), "scheme": "http",
    "server": ("localhost", 80), "http_version": "1.1", "asgi": {"version": "3.0"},
}  # fmt: skip


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


class Busy:
    """A server whose model is computing an image and does not finish."""

    def __init__(self, client: TestClient, model: StandIn, clients: ThreadPoolExecutor) -> None:
        self.client, self.model, self._clients = client, model, clients
        self.service = client.app.state.service  # type: ignore[attr-defined]
        self.model.is_open.clear()
        self.first = self.ask()
        assert self.model.started.wait(30)

    def ask(self, number: int = 1) -> "Future[Any]":
        """Send a request with ``number`` images, and return before its answer."""
        files = [("files", ("a.png", FILE))] * number
        return self._clients.submit(self.client.post, "/predict", files=files)

    def post(self, number: int = 1) -> Any:
        return self.ask(number).result(30)


@contextmanager
def busy(**settings: Any) -> Iterator[Busy]:
    model, predictor = stand_in()
    app = create_app(predictor, ServerSettings(**settings))
    with TestClient(app) as client, ThreadPoolExecutor(8) as clients:
        try:
            yield Busy(client, model, clients)
        finally:
            model.is_open.set()
        until(lambda: app.state.service.pending == 0)
        assert client.post("/predict", content=FILE, headers=PNG).status_code == 200


def test_a_full_queue_is_503_at_once_and_what_was_accepted_is_answered() -> None:
    with busy(queue_size=4, max_images=3) as server:
        others = [server.ask(2)]
        until(lambda: server.service.pending == 3)
        response = server.post(2)  # one place is left
        assert response.status_code == 503 and 1 <= int(response.headers["retry-after"]) <= 60
        assert response.json() == {"error": "The queue of the server is full. Retry later."}
        others.append(server.ask(1))
        until(lambda: server.service.pending == 4)
        assert server.client.get("/health").status_code == 503
        assert server.client.get("/health/live").status_code == 200
        assert "detrs_pending_images 4.0" in server.client.get("/metrics").text
        assert server.post().status_code == 503
        server.model.is_open.set()
        assert [each.result(30).status_code for each in (server.first, *others)] == [200] * 3
        assert server.client.get("/health").status_code == 200
    assert server.model.batches == [1] * 5  # and that of ``busy``


def test_requests_of_one_client_are_429_above_its_limit() -> None:
    with busy(max_per_client=2) as server:
        second = server.ask()
        until(lambda: server.service.pending == 2)
        response = server.post()
        assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
        assert "2 requests of this client are in progress" in response.json()["error"]
        server.model.is_open.set()
        assert server.first.result(30).status_code == second.result(30).status_code == 200


def test_a_deadline_is_503_and_what_waited_is_never_computed() -> None:
    with busy(timeout_seconds=1.0) as server:
        response = server.post()
        assert response.status_code == 503 and "retry-after" in response.headers
        assert response.json() == {"error": "The answer took longer than 1 seconds. Retry later."}
        assert server.first.result(30).status_code == 503
        server.model.is_open.set()
        until(lambda: server.service.worker.waiting == 0)
    assert server.model.batches == [1, 1]  # the first, and that of ``busy``


def test_all_bodies_together_are_limited() -> None:
    """A body that does not arrive counts as far as it has."""
    _, predictor = stand_in()
    app = create_app(predictor, ServerSettings(max_body_bytes=1000, max_total_bytes=1500, body_timeout_seconds=20))
    with TestClient(app) as client, ThreadPoolExecutor(1) as clients:
        more, sent = threading.Event(), threading.Event()

        def body() -> Iterator[bytes]:
            yield b"x" * 900
            sent.set()
            assert more.wait(30)
            yield b"x"

        async def half() -> int:
            """The status of a request whose body stops in the middle."""
            parts = body()
            statuses: list[int] = []

            async def receive() -> Any:
                return {
                    "type": "http.request",
                    "body": await asyncio.to_thread(next, parts),
                    "more_body": not more.is_set(),
                }

            async def send(message: Any) -> None:
                if "status" in message:
                    statuses.append(message["status"])

            await app(dict(SCOPE), receive, send)
            return statuses[0]

        slow = clients.submit(asyncio.run, half())
        assert sent.wait(30)
        until(lambda: app.state.service._bytes == 900)
        response = client.post("/predict", content=b"x" * 700, headers=PNG)
        assert response.status_code == 503 and "retry-after" in response.headers
        assert client.post("/predict", content=FILE, headers=PNG).status_code == 200
        more.set()
        assert slow.result(30) == 415
        assert app.state.service._bytes == 0


def test_the_body_must_arrive_in_time_and_holds_no_place() -> None:
    _, predictor = stand_in()
    app = create_app(predictor, ServerSettings(body_timeout_seconds=0.2, queue_size=1, max_images=1))
    sent: list[Any] = []

    async def receive() -> Any:
        assert app.state.service.pending == 0
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    start = time.monotonic()
    asyncio.run(app(dict(SCOPE), receive, send))
    assert sent[0]["status"] == 408 and b"did not arrive within 0.2 seconds." in sent[1]["body"]
    assert time.monotonic() - start > 0.19
    app.state.service.close()


def test_work_of_clients_that_leave_is_never_computed() -> None:
    with busy() as server:
        app, service = server.client.app, server.service

        async def leave() -> list[Any]:
            """What is sent to a client that disconnects when its image waits."""
            messages = iter([{"type": "http.request", "body": FILE, "more_body": False}])
            sent: list[Any] = []

            async def receive() -> Any:
                message = next(messages, None)
                if message is None:
                    while service.worker.waiting != 1:
                        await asyncio.sleep(0.002)
                    return {"type": "http.disconnect"}
                return message

            async def send(message: Any) -> None:
                sent.append(message)

            await app(dict(SCOPE), receive, send)
            await asyncio.sleep(0.01)
            assert service.worker.waiting == 0
            return sent

        assert asyncio.run(leave()) == []
        assert service.pending == 1
        server.model.is_open.set()
        assert server.first.result(30).status_code == 200
        assert 'detrs_requests_total{route="/predict",status="499"} 1.0' in server.client.get("/metrics").text
    assert server.model.batches == [1, 1]  # the first, and that of ``busy``


def test_what_waits_for_a_decoder_is_freed_when_its_client_leaves() -> None:
    """Bodies of clients that left are not counted any more, so they must not occupy memory."""
    service = create_app(stand_in()[1]).state.service
    is_open, started, freed = threading.Event(), list[int](), list[int]()

    def decode(number: int, body: object) -> None:
        started.append(number)
        assert is_open.wait(30)
        raise UserError("unnoticed")

    async def leave() -> list[int]:
        calls = set()
        for number in range(NUM_DECODERS + 3):
            body = threading.Event()  # an object that can be referenced weakly
            weakref.finalize(body, freed.append, number)
            calls.add(asyncio.create_task(service._in_decoder(decode, number, body)))
        del body
        await asyncio.to_thread(until, lambda: len(started) == NUM_DECODERS)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        del call, calls
        before = sorted(freed)
        is_open.set()
        assert await service._in_decoder(int) == 0
        return before

    assert asyncio.run(leave()) == [2, 3, 4] and sorted(started) == [0, 1]
    service.close()


def test_the_deadline_includes_the_time_until_a_decoder_is_free() -> None:
    _, predictor = stand_in()
    app = create_app(predictor, ServerSettings(timeout_seconds=0.5))
    is_open = threading.Event()
    with TestClient(app) as client, ThreadPoolExecutor(2) as others:
        for _ in range(NUM_DECODERS):
            app.state.service._decoders.submit(is_open.wait, 30)
        late = [others.submit(client.post, "/predict", content=FILE, headers=PNG) for _ in range(2)]
        try:
            assert [each.result(10).status_code for each in late] == [503, 503]
        finally:
            is_open.set()


def test_the_application_ends_although_the_model_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detrs.serving.service.CLOSE_SECONDS", 0.1)
    app = create_app(stand_in()[1])
    worker, is_open = app.state.service.worker, threading.Event()
    with TestClient(app):
        worker.submit([lambda: is_open.wait(30)], time.monotonic() + 60)
    assert worker._thread.is_alive()
    is_open.set()
    worker.close(30)
    assert not worker._thread.is_alive()


def called(body: bytes, kind: bytes, function: Callable[[Any], Any]) -> Any:
    """What ``Service.call`` returns for a request."""
    _, predictor = stand_in()
    service = create_app(predictor).state.service
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Any:
        return next(messages, None) or await asyncio.sleep(60)

    try:
        return asyncio.run(service.call(Request({**SCOPE, "headers": [(b"content-type", kind)]}, receive), function))
    finally:
        service.close()


def test_calls_run_with_one_image_in_the_thread_of_the_model() -> None:
    found = called(FILE, b"image/png", lambda upload: (upload, threading.current_thread().name))
    assert found == ((FILE, None), "detrs-model")


def test_calls_check_images_and_answer_errors_of_input() -> None:
    def fail(upload: Any) -> None:
        raise UserError("There is nothing to explain.")

    def never(upload: Any) -> None:
        raise AssertionError

    with pytest.raises(RequestProblem, match="There is nothing to explain.") as problem:
        called(FILE, b"image/png", fail)
    assert problem.value.status == 422
    with pytest.raises(RequestProblem, match="The image is a PDF document") as problem:
        called(b"%PDF-1.7", b"image/png", never)
    assert problem.value.status == 415
    texts = json.dumps({"images": [base64.b64encode(FILE).decode()] * 2}).encode()
    with pytest.raises(RequestProblem, match="The request has 2 images. Send one."):
        called(texts, b"application/json", never)
