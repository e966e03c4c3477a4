"""The benchmark of the server, without a server: its requests, its verdict and its text."""

import email
import json
from typing import Any

import pytest

import serving


def report(**changes: Any) -> serving.Report:
    """A report without faults, except for ``changes``: ``load__statuses`` is ``report["load"]["statuses"]``."""
    found: serving.Report = {
        "load": {
            "statuses": {"200": 900, "503": 3},
            "different answers": 0,
            "megabytes in quarters": [950, 1000, 1010, 1020],
            "milliseconds": {"one in a form": serving.percentiles([0.1, 0.2, 0.3])},
        },
        "hostile": {"wrong": []},
        "stop": {
            "answers to them": {"200": 24},
            "clients that kept sending": {"200": 16, "refused": 16},
            "exit code": 0,
        },
    }
    for name, value in changes.items():
        part, key = name.split("__")
        found[part][key.replace("_", " ")] = value
    return found


def test_a_good_report_has_no_faults() -> None:
    assert serving.faults(report()) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"load__statuses": {"200": 5, "500": 2}}, "load: 2 answers: 500"),
        ({"load__statuses": {"200": 5, "lost": 1}}, "load: 1 answers: lost"),
        ({"load__different_answers": 4}, "load: 4 answers differ"),
        ({"load__megabytes_in_quarters": [900, 1000, 1050, 1100]}, "the memory grows from 1000 to 1100 MB"),
        ({"hostile__wrong": ["zip-bomb: 500"]}, "hostile: zip-bomb: 500"),
        ({"stop__answers_to_them": {"200": 23, "lost": 1}}, "stop: 1 accepted requests: lost"),
        ({"stop__clients_that_kept_sending": {"lost": 2}}, "stop: 2 requests of other clients: lost"),
        ({"stop__exit_code": -9}, "stop: exit code -9"),
    ],
)
def test_faults(change: dict[str, Any], expected: str) -> None:
    (found,) = serving.faults(report(**change))
    assert expected in found


def test_text() -> None:
    lines = serving.text(report() | {"faults": ["stop: exit code 1"]}).splitlines()
    assert "  milliseconds, one in a form                          p50 200, p90 280, p99 298, p100 300" in lines
    assert lines[-1] == "FAULT stop: exit code 1"


def test_the_section_of_the_readme() -> None:
    values: Any = report() | {"model": "deformable-detr-tiny", "device": "cpu", "cores": 2}
    values["load"] |= {"clients": 16, "seconds": 120.1, "images per second": 12.5, "megabytes, largest": 1100}
    values["hostile"] |= {"cases": 133, "statuses": {"413": 15, "400": 118}}
    values["hostile"] |= {"good request, slowest in seconds": 0.2}
    values["hostile"] |= {"good request among slow clients, slowest in seconds": 0.3}
    values["stop"] |= {"accepted": 24, "seconds": 4.5}
    found = serving.markdown([values])
    assert "| one in a form | 200 | 280 | 298 | 300 |" in found
    assert "16 clients, 120.1 seconds, answers: 900 x 200, 3 x 503" in found
    assert "133, 0 not as required; answers: 118 x 400, 15 x 413" in found
    assert "24 accepted requests, answers: 24 x 200; exit code 0 after 4.5 seconds" in found


def test_requests_contain_their_images() -> None:
    files = serving.made_images()
    requests = serving.bodies(files)
    assert {each.kind for each in requests} == {
        *("one in a form", "one as the body", "one in JSON", "four in a form", "explanation")
    }
    for each in requests:
        if each.content_type.startswith("multipart"):
            form = email.message_from_bytes(f"Content-Type: {each.content_type}\r\n\r\n".encode() + each.content)
            parts = [part.get_payload(decode=True) for part in form.get_payload()]
            assert len(parts) == each.num_images and all(part in files for part in parts)
        elif each.content_type == "application/json":
            assert len(json.loads(each.content)["images"]) == each.num_images
