"""Load, hostile requests and a stop of ``detrs serve``, on loopback.

    python benchmarks/serving.py CHECKPOINT [--seconds 120] [--clients 16] [--images FOLDER] [--json]

1. Clients send images of mixed sizes, one or several, as forms, bodies and base64, and at times ask for an explanation.
   Every answer must equal that of the idle server.
2. Hostile requests (``tests/serving/hostile.py``): each must get 4xx with one sentence, and a good request must be
   answered afterwards. Fifty clients then send one byte per second.
3. SIGTERM under load: every accepted request must be answered.

The exit code is 1 if one of these fails. The result is appended to ``results/serving.jsonl``, and shown
in README.md.
"""

import argparse
import contextlib
import http.client
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import page
import psutil
from serving_load import TIMEOUT, Body, Load, ask, bodies, made_images, outcome, percentiles

from detrs.errors import counted

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "serving"))
import hostile
from raw_client import Address, Reply, exchange

RESULTS = page.HERE / "results" / "serving.jsonl"
SERVED = ("200", "429", "503")
GOOD_SECONDS = 1.0
"""Time in which a good request must be answered after a hostile one."""
SLOW_CLIENTS, SLOW_SECONDS = 50, 15
GROWTH = 0.05
"""Largest growth of the memory between the second and the last quarter of the load, as a fraction."""
ACCEPTED = 24
"""Requests in the server when it is stopped."""

Report = dict[str, Any]


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
        "statuses": dict(Counter(outcome(each.status) for each in load.answers)),
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
        "clients that kept sending": dict(Counter(outcome(each.status) for each in load.answers)),
        "exit code": code,
        "seconds": round(seconds, 1),
    }


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


def markdown(reports: Sequence[Report]) -> str:
    """The section of README.md: one part per model, device and number of cores."""
    return "\n\n".join(_section(report) for report in reports)


def _section(report: Report) -> str:
    load, attacks, stop = report["load"], report["hostile"], report["stop"]
    quarters = ", ".join(f"{value:,}" for value in load["megabytes in quarters"])
    lines = [
        f"**{report['model']}, {report['device']}, {counted(report['cores'], 'core')}**",
        f"Load: {counted(load['clients'], 'client')}, {load['seconds']:g} seconds, {_counts(load['statuses'])}; "
        f"{load['different answers']} differ from those of the idle server. {load['images per second']:g} images per "
        f"second. Memory in MB, medians of the quarters: {quarters}; largest {load['megabytes, largest']:,}.",
        page.table(
            ["request", "p50 / ms", "p90 / ms", "p99 / ms", "largest / ms"],
            [[kind, *(f"{value:,.0f}" for value in values.values())] for kind, values in load["milliseconds"].items()],
        ),
        f"Hostile requests: {attacks['cases']}, {len(attacks['wrong'])} not as required; "
        f"{_counts(attacks['statuses'])}. Good requests between them took at most "
        f"{attacks['good request, slowest in seconds']:g} seconds, and "
        f"{attacks['good request among slow clients, slowest in seconds']:g} beside {SLOW_CLIENTS} clients that send "
        f"one byte per second.",
        f"SIGTERM under load: {stop['accepted']} accepted requests, {_counts(stop['answers to them'])}; exit code "
        f"{stop['exit code']} after {stop['seconds']:g} seconds.",
    ]
    return "\n\n".join(lines)


def _counts(outcomes: Mapping[str, int]) -> str:
    """``answers: 12 x 200, 3 x 503``."""
    return "answers: " + ", ".join(f"{number:,} x {status}" for status, number in sorted(outcomes.items()))


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
    lines = page.newest(RESULTS, lambda line: (line["model"], line["device"], line["cores"]))
    page.put("serving", markdown(lines), page.README)
    print(json.dumps(report) if "--json" in sys.argv else text(report))
    raise SystemExit(1 if report["faults"] else 0)


if __name__ == "__main__":
    main()
