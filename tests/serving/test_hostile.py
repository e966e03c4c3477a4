"""Every hostile request of the table gets 4xx and one sentence, and the server keeps answering."""

import json
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from explained import shared_tiny
from hostile import CASES, Case, Limits, file, part, post_form
from hostile_files import jpeg
from raw_client import Address, Reply, exchange
from running import running

from detrs.predictor import Predictor
from detrs.serving import ServerSettings, create_app

LIMITS = Limits(max_bytes=300_000, max_images=3, max_pixels=200_000)
TIMEOUT = 20.0
"""Seconds for one exchange on a busy machine."""


@pytest.fixture(scope="module")
def server() -> Iterator[Address]:
    settings = ServerSettings(
        max_body_bytes=LIMITS.max_bytes,
        max_images=LIMITS.max_images,
        max_pixels=LIMITS.max_pixels,
        body_timeout_seconds=0.5,
        hosts=("127.0.0.1",),
    )
    predictor = Predictor(shared_tiny("deformable-detr-tiny"), "cpu")
    predictor(jpeg())  # compiles the operator, without a deadline
    app = create_app(predictor, settings)
    with running(app, HEAD_SECONDS=0.5, LINGER_SECONDS=0.5) as address:
        yield address


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ask(server: Address, case: Case) -> Reply:
    return exchange(server, case.request(LIMITS), timeout=TIMEOUT, closes=case.closes)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_gets_4xx_and_one_sentence(case: Case, server: Address) -> None:
    reply = ask(server, case)
    if case.closes and reply.status is None:
        ask_good(server)
        return
    assert reply.status is not None and 400 <= reply.status < 500, reply
    sentence = reply.sentence
    assert re.fullmatch(r"[A-Z'][^\n]{5,400}\.", sentence), sentence
    assert not re.search(r"Traceback|/home|site-packages|root:|0x[0-9a-f]{6}", sentence)
    ask_good(server)


def ask_good(server: Address) -> None:
    """A good request is answered, whatever was before."""
    reply = exchange(server, [post_form(file(jpeg()))], timeout=TIMEOUT)
    (image,) = json.loads(reply.body)["images"]
    assert reply.status == 200 and image["image_size"] == [48, 64] and image["source"] == "image.jpg"


def test_names_with_paths_are_only_returned(server: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = (
        "../../../../etc/passwd",
        "C:\\\\windows\\\\a.jpg",
        "/etc/shadow",
        "a\u202egpj.exe",
        "..",
        "a;b.jpg",
        "<b>.jpg",
    )
    for name in names:
        content = part(jpeg(), f'name="files"; filename="{name}"'.encode().decode("latin-1"))
        reply = exchange(server, [post_form(content)], timeout=TIMEOUT)
        (image,) = json.loads(reply.body)["images"]
        source = image["source"]
        assert reply.status == 200 and not re.search(r"[/\\\u202e]", source or ""), source
    assert [*tmp_path.iterdir()] == []


def test_bombs_are_never_decoded(server: Address) -> None:
    """Most of the table are tiny files: none may allocate what its header promises."""
    bombs = [case for case in CASES if "bomb" in case.name]
    assert len(bombs) >= 9
    before = peak_megabytes()
    for case in bombs:
        ask(server, case)
    assert peak_megabytes() - before < 200


def test_they_do_not_fill_the_log(server: Address, caplog: pytest.LogCaptureFixture) -> None:
    for case in CASES:
        if not case.waits and "bomb" not in case.name:
            ask(server, case)
    assert [record.getMessage() for record in caplog.records] == []
