"""``detrs serve``."""

import ast
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from detrs.predictor import Predictor
from detrs.serving import ServerSettings, server

PNG = {"content-type": "image/png"}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The applications that were served, by a server that stops at once."""
    apps: list[Any] = []

    def run(own: server.Server, listener: socket.socket) -> int:
        apps.append(own.config.app)
        own._on_started()
        return 0

    monkeypatch.setattr(server, "run", run)
    return apps


def test_a_signal_stops_the_command_and_loses_no_request(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    words = ("serve", str(checkpoint), "--port", "0", "--json", "--device", "cpu")
    errors = (tmp_path / "errors").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-m", "detrs", *words], stdout=subprocess.PIPE, stderr=errors, text=True
    )
    assert process.stdout is not None
    connections: list[http.client.HTTPConnection] = []
    try:
        started = json.loads(process.stdout.readline())
        assert started["pid"] == process.pid and started["checkpoint"] == str(checkpoint)
        address = started["url"].removeprefix("http://")
        file = (data / "images" / "val-0.png").read_bytes()
        answers: list[Any] = []

        def ask(connection: http.client.HTTPConnection) -> None:
            connection.request("POST", "/predict?threshold=0", file, PNG)
            answers.append(json.load(connection.getresponse()))

        connections += [http.client.HTTPConnection(address, timeout=60) for _ in range(7)]
        *senders, last = connections
        clients = [threading.Thread(target=ask, args=[each]) for each in senders]
        for client in clients:
            client.start()
        while not all(each.sock for each in senders):
            time.sleep(0.01)
        last.request("GET", "/health/live")  # its connection is accepted after those above
        assert last.getresponse().read()
        process.send_signal(signal.SIGTERM)
        for client in clients:
            client.join(60)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        for each in (process.stdout, errors, *connections):
            each.close()
    expected = Predictor.load(checkpoint, "cpu")(file, threshold=0.0)[0].to_json()
    assert [each["images"] for each in answers] == [[expected]] * 6
    assert (tmp_path / "errors").read_text() == ""


def test_the_address_and_the_settings(detrs: Callable, checkpoint: Path, served: list[Any]) -> None:
    done = detrs("serve", checkpoint, "--port", "0", "--max-images", "3", "--threshold", "0.25", "--token", "abc")
    assert done.code == 0 and done.err == ""
    assert done.out.startswith(f"Serving {checkpoint} at http://127.0.0.1:") and "(Ctrl-C stops)" in done.out
    with TestClient(served[0], base_url="http://localhost") as client:
        health = client.get("/health").json()
        assert (health["max_images"], health["threshold"], health["needs_token"]) == (3, 0.25, True)
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers={"authorization": "Bearer abc"}).status_code == 200
        assert client.get("/health", headers={"host": "evil.example"}).status_code == 421


def test_names_of_a_proxy(detrs: Callable, checkpoint: Path, served: list[Any]) -> None:
    for host in ("127.0.0.1", "0.0.0.0"):
        assert (
            detrs("serve", checkpoint, "--host", host, "--port", "0", "--hosts", "cells.example", "b.example").code == 0
        )
        with TestClient(served[-1]) as client:
            for name, status in (("cells.example", 200), ("b.example:80", 200), ("localhost", 200), ("c.example", 421)):
                assert client.get("/health", headers={"host": name}).status_code == status


def test_other_machines_are_a_warning(
    detrs: Callable, checkpoint: Path, served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = detrs("serve", checkpoint, "--host", "0.0.0.0", "--port", "0", "--json")
    assert done.err.startswith("warning: 0.0.0.0 may be reached from other machines, without a token.")
    assert done.json["url"].startswith("http://localhost:")
    monkeypatch.setenv("DETRS_TOKEN", "abc")
    done = detrs("serve", checkpoint, "--host", "0.0.0.0", "--port", "0", "--json")
    assert done.err.startswith("warning: 0.0.0.0 may be reached from other machines, without encryption.")
    with TestClient(served[1]) as client:
        assert client.get("/health", headers={"host": "gpu-7.example"}).json()["needs_token"]


def test_flags_exist_for_the_settings() -> None:
    from dataclasses import fields

    from detrs.cli.serve import ServeArguments

    own = {field.name: field.default for field in fields(ServeArguments)}
    for field in fields(ServerSettings):
        if field.name not in ("max_total_bytes", "hosts"):
            assert own[field.name] == field.default


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-images", "65"], "--max-images is 65, above --queue-size, 64: such requests would never be accepted."),
        (["--threshold", "2"], "--threshold is 2.0, but must be in [0, 1]."),
        (["--token", ""], "The token must consist of printable ASCII characters, and not be empty."),
        (["--port", "99999"], "port is 99999, but must be in [0, 65535]."),
        (["--host", "no such host"], "'no such host' is not an address of this machine: "),
        (["--device", "abacus"], "'abacus' is not a device"),
    ],
)
def test_faults_are_one_sentence(
    detrs: Callable, checkpoint: Path, served: list[Any], words: list[str], message: str
) -> None:
    done = detrs("serve", checkpoint, "--port", "0", *words)
    assert done.code == 2 and message in done.message
    assert served == []


def test_a_taken_port_and_a_missing_checkpoint(detrs: Callable, checkpoint: Path, served: list[Any]) -> None:
    with server.bind("127.0.0.1", 0) as other:
        other.listen()
        port = other.getsockname()[1]
        done = detrs("serve", checkpoint, "--port", port)
        assert done.code == 2 and done.message.startswith(f"Cannot use port {port} of '127.0.0.1'")
    done = detrs("serve", "nothing.safetensors", "--port", "0")
    assert done.code == 2 and "nothing.safetensors" in done.message
    assert served == []


def test_the_second_signal_is_the_exit_code(detrs: Callable, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "run", lambda own, listener: 128 + signal.SIGTERM)
    assert detrs("serve", checkpoint, "--port", "0").code == 143


@pytest.mark.parametrize("module", ["detrs.cli.serve", "detrs.serving", "detrs.serving.settings"])
def test_the_packages_of_the_extra_are_imported_when_the_server_starts(module: str) -> None:
    """Without them, the error has the command that installs them."""
    file = sys.modules[module].__file__
    assert file is not None
    imports = [each for each in ast.parse(Path(file).read_text()).body if isinstance(each, ast.Import | ast.ImportFrom)]
    roots = {
        name
        for each in imports
        for name in ([each.module] if isinstance(each, ast.ImportFrom) else [a.name for a in each.names])
    }
    own = {name for name in roots if name and name.startswith("detrs.serving")}
    assert own <= {"detrs.serving", "detrs.serving.settings"}
    assert not roots & {"fastapi", "starlette", "uvicorn", "prometheus_client", "python_multipart"}


def test_another_suppression(detrs: Callable, served: list[Any], checkpoint: Path) -> None:
    done = detrs("serve", checkpoint, "--port", 0, "--device", "cpu", "--nms", 0.4)
    assert done.code == 0 and TestClient(served[0], base_url="http://localhost").get("/health").json()["nms"] == 0.4
    assert detrs("serve", checkpoint, "--nms", 70).message.startswith("nms is 70.0, but must be")
