"""Connections of slow and broken clients to a real server: each ends, with one sentence where a client reads it."""

import socket
import time

import pytest
from loopback import Running, answers, is_live, running
from standin import image_file

from detrs.serving import ServerSettings, protocol

FILE = image_file((250, 100, 0))
GET = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
LIVE = '200 {"live":true}'
CLOSE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def post(content: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = ["POST /predict HTTP/1.1", "Host: localhost", "Content-Type: image/png", *headers]
    lines += [] if headers else [f"Content-Length: {len(content) if length is None else length}"]
    return "\r\n".join([*lines, "", ""]).encode() + content


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.4)
    monkeypatch.setattr(protocol, "LINGER_SECONDS", 0.3)
    monkeypatch.setattr(protocol, "WRITE_SECONDS", 0.4)
    monkeypatch.setattr(protocol, "STOP_SECONDS", 0.05)


def works(server: Running) -> bool:
    return server.exchange(CLOSE)[0] == [LIVE]


def test_heads_that_stop_or_drip_are_408() -> None:
    with running() as server:
        for parts in ((b"GET /hea",), (GET[:1], *(b"x" for _ in range(30)))):
            found, seconds = server.exchange(*parts, pause=0.05)
            assert found == ['408 {"error": "The head of the request did not arrive within 0.4 seconds."}']
            assert seconds > 0.39
        assert server.exchange()[0] == []  # nothing was sent: nothing is answered
        assert works(server)


def test_a_second_head_on_an_open_connection_has_the_same_deadline() -> None:
    with running() as server:
        found, seconds = server.exchange(GET, GET[:10], pause=0.1)
        assert found[0] == LIVE and found[1].startswith("408 ") and len(found) == 2
        assert seconds > 0.49
        assert server.exchange(GET, GET, CLOSE, pause=0.2)[0] == [LIVE] * 3  # longer than one head may take
        assert server.exchange(GET + GET + CLOSE)[0] == [LIVE] * 3


def test_bodies_that_stop_or_drip_are_408_and_hold_no_place() -> None:
    with running(ServerSettings(body_timeout_seconds=0.3, queue_size=1, max_images=1)) as server:
        slow = [server.connect() for _ in range(20)]
        for connection in slow:
            connection.sendall(post(FILE[:10], length=len(FILE)))
        found, _ = server.exchange(post(FILE, "Connection: close", f"Content-Length: {len(FILE)}"))
        assert found[0].startswith("200 ")
        for connection in slow:
            with connection:
                assert answers(connection) == ['408 {"error":"The body did not arrive within 0.3 seconds."}']
        found, _ = server.exchange(post(b"", length=50), *(b"x" for _ in range(50)), pause=0.05)
        assert found == ['408 {"error":"The body did not arrive within 0.3 seconds."}']
        assert server.service.pending == 0 and works(server)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50 + b"\r\n\r\n", 400),  # TLS
        (b"GET /health HTTP/1.1\r\n\r\n", 400),  # without Host
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 400_000, 431),
        (post(b"abc", "Content-Length: -5"), 400),
        (post(b"abc", "Content-Length: 3", "Content-Length: 4"), 400),
        (post(b"zz\r\nabc\r\n", "Transfer-Encoding: chunked"), 400),
        (post(b"3\r\nabc\r\nzz\r\n", "Transfer-Encoding: chunked"), 400),
    ],
)
def test_what_is_not_http_is_one_answer_in_json(request_bytes: bytes, status: int) -> None:
    with running() as server:
        found, seconds = server.exchange(request_bytes)
        assert len(found) == 1 and found[0].startswith(f'{status} {{"error": "The ')
        assert seconds < 3
        assert works(server)


def test_a_body_that_becomes_invalid_while_the_model_runs_does_no_harm() -> None:
    """Two requests on one connection, of which the second is not HTTP."""
    with running() as server:
        server.model.is_open.clear()
        with server.connect() as connection:
            connection.sendall(post(FILE) + b"GARBAGE\r\n\r\n")
            assert server.model.started.wait(30)
            server.model.is_open.set()
            found = answers(connection)
        assert found[0].startswith("200 ") and found[1].startswith("400 ")
        assert works(server)


def test_early_answers_arrive_while_the_client_sends_and_the_connection_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(ServerSettings(max_body_bytes=1000)) as server:
        body = b"x" * 3_000_000
        monkeypatch.setattr(protocol, "LINGER_SECONDS", 10)
        for request in (post(body), post(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body), "Transfer-Encoding: chunked")):
            with server.connect() as connection:
                connection.sendall(request + CLOSE)  # does not fail
                found = answers(connection)
            assert found[0] == '413 {"error":"The body is larger than 1,000 bytes. Send smaller or fewer images."}'
            assert found[1:] == [LIVE]
        monkeypatch.setattr(protocol, "LINGER_SECONDS", 0.3)
        found, seconds = server.exchange(post(b"", length=10**9), *(b"x" * 100 for _ in range(100)), pause=0.05)
        assert len(found) == 1 and found[0].startswith("413 ")
        assert seconds < 3  # not the 5 seconds for which the client would send
        assert works(server)


def test_clients_that_do_not_read_are_cut() -> None:
    with running() as server:
        with server.connect() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with pytest.raises((BrokenPipeError, ConnectionResetError, TimeoutError)):
                end = time.monotonic() + 15
                while time.monotonic() < end:
                    connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
                raise AssertionError
        end = time.monotonic() + 10
        while server.server.server_state.connections and time.monotonic() < end:
            time.sleep(0.02)
        assert not server.server.server_state.connections
        assert works(server)


def test_connections_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 30)
    with running() as server:
        others = [server.connect() for _ in range(3)]
        for connection in others:
            assert is_live(connection)
        assert server.exchange()[0] == ['503 {"error": "The server has too many connections. Retry later."}']
        for connection in others:
            assert is_live(connection)
            connection.close()
        assert works(server)
