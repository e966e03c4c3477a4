"""Load, hostile requests and a stop of ``detrs serve``, on loopback.

    python benchmarks/serving.py CHECKPOINT [--seconds 120] [--clients 16] [--images FOLDER] [--json]

1. Clients send images of mixed sizes, one or several, as forms, bodies and base64, and at times ask for an explanation.
   Every answer must equal that of the idle server.
2. Hostile requests (``tests/serving/hostile.py``): each must get 4xx with one sentence, and a good request must be
   answered afterwards. Fifty clients then send one byte per second.
3. SIGTERM under load: every accepted request must be answered.

The exit code is 1 if one of these fails. The result is appended to ``results/serving.jsonl``.
"""

import argparse
import base64
import contextlib
import http.client
import io
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import page
import psutil
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "tests" / "serving"))

import hostile  # noqa: E402
from raw_client import Address, Reply, exchange  # noqa: E402

RESULTS = page.HERE / "results" / "serving.jsonl"
SIZES = ((320, 240), (640, 480), (480, 800), (1280, 720), (1920, 1080))
"""(width, height) of made images."""
BUSY = (429, 503)
SERVED = ("200", "429", "503")
GOOD_SECONDS = 1.0
"""Time in which a good request must be answered after a hostile one."""
SLOW_CLIENTS, SLOW_SECONDS = 50, 15
GROWTH = 0.05
"""Largest growth of the memory between the second and the last quarter of the load, as a fraction."""
ACCEPTED = 24
"""Requests in the server when it is stopped."""
TIMEOUT = 90.0
REFUSED = 0

Report = dict[str, Any]


class Body(NamedTuple):
    """A request."""

    kind: str
    path: str
    content_type: str
    content: bytes
    num_images: int


class Answer(NamedTuple):
    kind: str
    status: int | None
    """``None``: an open connection was closed without an answer; ``REFUSED``: a new one was not accepted."""
    seconds: float
    num_images: int
    is_equal: bool = True
    """To the answer of the idle server."""


class Running(NamedTuple):
    """A server process."""

    process: psutil.Popen
    address: Address

    def megabytes(self) -> float:
        return self.process.memory_info().rss / 1e6


@contextlib.contextmanager
def served(checkpoint: str, *flags: str) -> Iterator[Running]:
    """``detrs serve`` on a free port of loopback, killed at the end if it still runs."""
    command = [sys.executable, "-m", "detrs", "serve", checkpoint, "--port", "0", "--json", *flags]
    with psutil.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"detrs serve did not start: exit code {process.wait()}")
            host, port = json.loads(line)["url"].removeprefix("http://").split(":")
            yield Running(process, (host, int(port)))
        finally:
            if process.poll() is None:
                process.kill()


def made_images() -> list[bytes]:
    """JPEG files of smooth noise, one of each size."""
    generator = np.random.default_rng(0)
    files = []
    for size in SIZES:
        small = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        stream = io.BytesIO()
        small.resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    return files


def bodies(files: Sequence[bytes]) -> list[Body]:
    """The requests of the load, in order: 3 of 4 images are sent by themselves."""
    found = []
    for i, file in enumerate(files):
        four = [files[(i + k) % len(files)] for k in range(4)]
        text = json.dumps({"images": [base64.b64encode(file).decode()]}).encode()
        multipart = hostile.MULTIPART.partition(": ")[2]
        found += [
            Body("one in a form", "/predict", multipart, hostile.form(hostile.file(file)), 1),
            Body("one as the body", "/predict", "image/jpeg", file, 1),
            Body("one in JSON", "/predict", "application/json", text, 1),
        ]
        if i % 4 == 0:
            found.append(Body("four in a form", "/predict", multipart, hostile.form(*map(hostile.file, four)), 4))
    return [*found, Body("explanation", "/explain", "image/jpeg", files[0], 1)]


def ask(connection: http.client.HTTPConnection, body: Body) -> tuple[int, bytes, float]:
    """Status, content and seconds to wait before the next request.

    Raises:
        OSError, HTTPException: the connection was closed.
    """
    connection.request("POST", body.path, body.content, {"Content-Type": body.content_type})
    response = connection.getresponse()
    return response.status, response.read(), float(response.headers.get("Retry-After", 0))


class Load:
    """Clients that send requests one after the other until ``stop`` is set."""

    def __init__(self, address: Address, requests: Sequence[Body], expected: Sequence[bytes]) -> None:
        self.answers: list[Answer] = []
        self.stop = threading.Event()
        self._address, self._requests, self._expected = address, requests, expected

    def client(self, number: int) -> None:
        connection, is_new = http.client.HTTPConnection(*self._address, timeout=TIMEOUT), True
        position = 7 * number  # clients send different requests at a time
        while not self.stop.is_set():
            index = position % len(self._requests)
            body, start = self._requests[index], time.perf_counter()
            try:
                status, content, wait = ask(connection, body)
            except (OSError, http.client.HTTPException):
                connection.close()
                self._add(Answer(body.kind, REFUSED if is_new else None, time.perf_counter() - start, 0))
                if is_new:  # the server accepts no more connections
                    return
                is_new = True
                continue
            is_new = connection.sock is None  # the server closed it, as its answer states
            seconds = time.perf_counter() - start
            is_equal = status != 200 or content == self._expected[index]
            self._add(Answer(body.kind, status, seconds, body.num_images, is_equal))
            if status in BUSY:
                self.stop.wait(min(wait, 5))
            else:
                position += 1

    def _add(self, answer: Answer) -> None:
        self.answers.append(answer)


def under_load(
    server: Running, requests: Sequence[Body], expected: Sequence[bytes], clients: int, seconds: int
) -> Report:
    """Latency, throughput, statuses and memory."""
    load = Load(server.address, requests, expected)
    memory = []
    with ThreadPoolExecutor(clients) as pool:
        for number in range(clients):
            pool.submit(load.client, number)
        start = time.perf_counter()
        while time.perf_counter() < start + seconds:
            memory.append(server.megabytes())
            time.sleep(0.5)
        load.stop.set()
    duration = time.perf_counter() - start
    good = [each for each in load.answers if each.status == 200]
    quarters = [statistics.median(part) for part in np.array_split(memory, 4)]
    return {
        "clients": clients,
        "seconds": round(duration, 1),
        "statuses": dict(Counter(_name(each.status) for each in load.answers)),
        "different answers": sum(not each.is_equal for each in load.answers),
        "requests per second": round(len(good) / duration, 2),
        "images per second": round(sum(each.num_images for each in good) / duration, 2),
        "milliseconds": {
            kind: percentiles([each.seconds for each in good if each.kind == kind])
            for kind in sorted({each.kind for each in good})
        },
        "megabytes in quarters": [round(value) for value in quarters],
        "megabytes, largest": round(max(memory)),
    }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds."""
    return {f"p{q}": round(1000 * float(np.percentile(seconds, q)), 1) for q in (50, 90, 99, 100)}


def attacked(server: Running, limits: hostile.Limits, good: Body) -> Report:
    """Every case of the catalogue, each followed by a good request."""
    wrong, statuses, slowest, before = [], Counter[str](), 0.0, server.megabytes()

    def attack(case: hostile.Case) -> tuple[hostile.Case, Reply]:
        return case, exchange(server.address, case.request(limits), timeout=TIMEOUT, closes=case.closes)

    with ThreadPoolExecutor(8) as pool:
        waiting = pool.map(attack, [case for case in hostile.CASES if case.waits])
        for case in hostile.CASES:
            if not case.waits:
                check(*attack(case), statuses, wrong)
                slowest = max(slowest, good_seconds(server.address, good, wrong, case.name))
        for case, reply in waiting:
            check(case, reply, statuses, wrong)
    after = server.megabytes()
    slow = [socket.create_connection(server.address) for _ in range(SLOW_CLIENTS)]
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\nContent-Length: 90000\r\n\r\n"
    slowest_among_slow = 0.0
    for i in range(SLOW_SECONDS):
        for number, connection in enumerate(slow):
            with contextlib.suppress(OSError):  # closed by the server
                connection.sendall(head if i == 0 and number % 2 else head[i : i + 1])  # half: slow within the head
        time.sleep(1)
        slowest_among_slow = max(slowest_among_slow, good_seconds(server.address, good, wrong, "slow clients"))
    grown = server.megabytes() - after
    for connection in slow:
        connection.close()
    return {
        "cases": len(hostile.CASES),
        "statuses": dict(statuses),
        "wrong": wrong,
        "good request, slowest in seconds": round(slowest, 3),
        "good request among slow clients, slowest in seconds": round(slowest_among_slow, 3),
        "megabytes grown by hostile requests": round(after - before),
        "megabytes grown by slow clients": round(grown),
    }


def check(case: hostile.Case, reply: Reply, statuses: Counter[str], wrong: list[str]) -> None:
    """Counts the status of an answer, and names the case in ``wrong`` if it is not as it must be."""
    statuses[str(reply.status)] += 1
    is_good = case.closes if reply.status is None else 400 <= reply.status < 500 and reply.sentence.endswith(".")
    if not is_good:
        wrong.append(f"{case.name}: {reply.status}")


def good_seconds(address: Address, good: Body, wrong: list[str], after: str) -> float:
    """Time of a good request; if it took too long, because the machine is busy, of a second one."""
    for _ in range(2):
        connection, start = http.client.HTTPConnection(*address, timeout=TIMEOUT), time.perf_counter()
        status, _, _ = ask(connection, good)
        seconds = time.perf_counter() - start
        connection.close()
        if status == 200 and seconds <= GOOD_SECONDS:
            return seconds
    wrong.append(f"good request after {after}: {status}, {seconds:.2f} seconds")
    return seconds


def stopped(server: Running, requests: Sequence[Body], expected: Sequence[bytes], clients: int) -> Report:
    """SIGTERM while ``ACCEPTED`` complete requests are in the server and others keep sending."""
    load = Load(server.address, requests, expected)
    sent = [requests[i % len(requests)] for i in range(ACCEPTED)]
    connections = []
    for body in sent:
        connection = http.client.HTTPConnection(*server.address, timeout=TIMEOUT)
        connection.request("POST", body.path, body.content, {"Content-Type": body.content_type})
        connections.append(connection)
    with ThreadPoolExecutor(clients) as pool:
        for number in range(clients):
            pool.submit(load.client, number)
        time.sleep(1)
        start = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        statuses = []
        for i, connection in enumerate(connections):
            try:
                response = connection.getresponse()
                content = response.read()
                is_equal = response.status != 200 or content == expected[i % len(requests)]
                statuses.append(f"{response.status}" if is_equal else "different")
            except (OSError, http.client.HTTPException):
                statuses.append("lost")
        code = server.process.wait(TIMEOUT)
        seconds = time.perf_counter() - start
        load.stop.set()
    return {
        "accepted": ACCEPTED,
        "answers to them": dict(Counter(statuses)),
        "clients that kept sending": dict(Counter(_name(each.status) for each in load.answers)),
        "exit code": code,
        "seconds": round(seconds, 1),
    }


def _name(status: int | None) -> str:
    return {None: "lost", REFUSED: "refused"}.get(status, str(status))


def faults(report: Report) -> list[str]:
    """What is not as it must be."""
    load, attacks, stop = report["load"], report["hostile"], report["stop"]
    found = [f"load: {number} answers: {status}" for status, number in load["statuses"].items() if status not in SERVED]
    if load["different answers"]:
        found.append(f"load: {load['different answers']} answers differ from those of the idle server")
    _, second, _, last = load["megabytes in quarters"]
    if last > second * (1 + GROWTH):
        found.append(f"load: the memory grows from {second} to {last} MB")
    found += [f"hostile: {each}" for each in attacks["wrong"]]
    for status, number in stop["answers to them"].items():
        if status != "200":
            found.append(f"stop: {number} accepted requests: {status}")
    for status, number in stop["clients that kept sending"].items():
        if status not in (*SERVED, "refused"):
            found.append(f"stop: {number} requests of other clients: {status}")
    if stop["exit code"]:
        found.append(f"stop: exit code {stop['exit code']}")
    return found


def text(report: Report) -> str:
    """The report as lines."""
    lines = []
    for name in ("load", "hostile", "stop"):
        lines.append(name)
        lines += [f"  {key:52} {value}" for key, value in report[name].items() if key != "milliseconds"]
        for kind, values in report[name].get("milliseconds", {}).items():
            lines.append(f"  {f'milliseconds, {kind}':52} {', '.join(f'{q} {value:g}' for q, value in values.items())}")
    return "\n".join([*lines, *(f"FAULT {each}" for each in report["faults"])])


def measured(arguments: argparse.Namespace) -> Report:
    """All three parts, with one server."""
    files = (
        [path.read_bytes() for path in sorted(arguments.images.iterdir())[:20]] if arguments.images else made_images()
    )
    requests = bodies(files)
    with served(arguments.checkpoint, *arguments.flags) as server:
        connection = http.client.HTTPConnection(*server.address, timeout=TIMEOUT)
        connection.request("GET", "/health")
        health = json.loads(connection.getresponse().read())
        alone = [ask(connection, body) for body in requests]
        assert all(status == 200 for status, _, _ in alone), Counter(status for status, _, _ in alone)
        expected = [content for _, content, _ in alone]
        print(f"serving {health['model']}: {arguments.clients} clients, {arguments.seconds} seconds", file=sys.stderr)
        limits = hostile.Limits(health["max_body_bytes"], health["max_images"], health["max_pixels"])
        report = {
            "model": health["model"],
            "device": health["device"],
            "machine": platform.machine(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "commit": page.commit(),
            "load": under_load(server, requests, expected, arguments.clients, arguments.seconds),
            "hostile": attacked(server, limits, requests[0]),
            "stop": stopped(server, requests, expected, arguments.clients),
        }
    return {**report, "faults": faults(report)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--images", type=Path, help="folder of images; by default, images are made")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("flags", nargs="*", help="of detrs serve, after --")
    report = measured(parser.parse_args())
    page.append(RESULTS, report)
    print(json.dumps(report) if "--json" in sys.argv else text(report))
    raise SystemExit(1 if report["faults"] else 0)


if __name__ == "__main__":
    main()
