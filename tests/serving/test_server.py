"""The address of the server, and its stop, which loses no accepted request."""

import signal
import socket
import threading
import time

import pytest
from loopback import answers, is_live, running
from standin import image_file, stand_in

from detrs.errors import UserError
from detrs.serving import ServerSettings, create_app, protocol, server

FILE = image_file((250, 100, 0))
POST = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(FILE)
GET = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_a_stop_answers_what_was_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the model, in the queue, with a body that is still arriving, and on a connection that was idle."""
    monkeypatch.setattr(protocol, "STOP_SECONDS", 1.0)
    with running() as own:
        own.model.is_open.clear()
        accepted = [own.connect() for _ in range(4)]
        for connection in accepted[:3]:
            connection.sendall(POST + FILE)
        accepted[3].sendall(POST + FILE[:20])
        idle, used = own.connect(), own.connect()
        assert is_live(used)
        while own.service.pending < 3:
            time.sleep(0.002)
        own.stop()
        while own.server.servers[0].sockets:
            time.sleep(0.002)
        used.sendall(GET)  # sent while the stop began
        assert [each[:4] for each in answers(used)] == ["200 "]
        with pytest.raises(OSError):
            own.connect()
        accepted[3].sendall(FILE[20:])
        own.model.is_open.set()
        for connection in accepted:
            assert [each[:4] for each in answers(connection)] == ["200 "]
        assert answers(idle) == []
        own.thread.join(30)
        assert not own.thread.is_alive() and own.server.forced_by == 0
        assert not own.service.worker.is_ready
        for connection in (*accepted, idle, used):
            connection.close()


def test_the_deadlines_limit_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LINGER_SECONDS", 0.2)
    with running(ServerSettings(body_timeout_seconds=1.0)) as own:
        with own.connect() as connection:
            connection.sendall(POST + FILE[:20])
            while own.service._bytes < 20:  # of bodies in memory
                time.sleep(0.002)
            own.stop()
            assert [each[:4] for each in answers(connection)] == ["408 "]
        own.thread.join(10)
        assert not own.thread.is_alive()


def test_the_second_signal_ends_at_once() -> None:
    with running() as own:
        with own.connect() as connection:
            connection.sendall(POST + FILE[:20])
            while own.service._bytes < 20:
                time.sleep(0.002)
            own.stop()
            own.server.handle_exit(signal.SIGINT, None)
            own.thread.join(10)
            assert not own.thread.is_alive()
        assert own.server.forced_by == signal.SIGINT


def test_signal_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def stop() -> None:
        threading.Timer(0.1, signal.raise_signal, (signal.SIGTERM,)).start()

    app = create_app(stand_in()[1])
    with server.bind("127.0.0.1", 0) as listener:
        assert server.run(server.build_server(app, ServerSettings(), stop), listener) == 0
    assert signal.getsignal(signal.SIGTERM) == before


def test_addresses() -> None:
    with server.bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert port > 0
        assert server.is_loopback(listener)
        assert server.url(listener) == f"http://127.0.0.1:{port}"
        listener.listen()
        with pytest.raises(UserError, match=f"^Cannot use port {port} of '127.0.0.1': Address already in use. Choose"):
            server.bind("127.0.0.1", port)
    with server.bind("0.0.0.0", 0) as listener:
        assert not server.is_loopback(listener)
        assert server.url(listener) == f"http://localhost:{listener.getsockname()[1]}"


@pytest.mark.skipif(not socket.has_ipv6, reason="without IPv6")
def test_addresses_of_ipv6() -> None:
    try:
        listener = server.bind("::1", 0)
    except UserError:
        pytest.skip("::1 is not configured")
    with listener:
        assert server.is_loopback(listener)
        assert server.url(listener) == f"http://[::1]:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", 70000, "port is 70000, but must be in [0, 65535]."),
        ("127.0.0.1", -1, "port is -1, but"),
        ("192.0.2.1", 0, "Cannot use port 0 of '192.0.2.1': "),
        ("", 0, "host is empty"),
        ("no such host", 0, "'no such host' is not an address of this machine: "),
        ("a" * 300, 0, " is not an address of this machine: "),
    ],
)
def test_wrong_addresses(host: str, port: int, message: str) -> None:
    with pytest.raises(UserError) as error:
        server.bind(host, port)
    assert message in str(error.value)
