"""The interface of the server: answers equal those of ``Predictor``, errors are one sentence."""

import base64
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from standin import CLASSES, StandIn, encoded, image_file, stand_in
from starlette.testclient import TestClient

from detrs import models
from detrs.backbones.timm import BackboneConfig
from detrs.checkpoints.detector import TrainedDetector, preprocessing_of
from detrs.config import Experiment
from detrs.data.transforms import DataConfig
from detrs.errors import UserError
from detrs.models.deformable_detr import DeformableDETRConfig
from detrs.ops import use
from detrs.predictor import Predictor
from detrs.serving import ServerSettings, check_packages, create_app
from detrs.serving.batching import MAX_FAILURES
from detrs.structures import Classes

PNG = {"content-type": "image/png"}
COLORS = ((250, 120, 40), (10, 200, 90), (0, 70, 255))
SIZES = ((31, 47), (47, 31), (61, 109))


@pytest.fixture
def model() -> tuple[StandIn, Predictor]:
    return stand_in()


@pytest.fixture
def client(model: tuple[StandIn, Predictor]) -> Iterator[TestClient]:
    with TestClient(create_app(model[1]), base_url="http://localhost") as client:
        yield client


def form(*files: bytes, names: str = "{}.png") -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (names.format(number), file)) for number, file in enumerate(files)]


def error(response: Any) -> str:
    """The one sentence of an error."""
    assert set(response.json()) == {"error"} and response.headers["content-type"] == "application/json"
    sentence = response.json()["error"]
    assert re.fullmatch(r"[A-Z][^\n]+\.", sentence), sentence
    return sentence


def values(client: TestClient) -> dict[tuple[str, ...], float]:
    """Name and labels of each sample of ``/metrics`` -> value."""
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(response.text)
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def test_answers_equal_those_of_the_predictor(client: TestClient, model: tuple[StandIn, Predictor]) -> None:
    files = [image_file(color, size) for color, size in zip(COLORS, SIZES, strict=True)]
    expected = [model[1](file)[0].to_json() for file in files]
    assert [len(each["detections"]) for each in expected] == [2, 2, 1]
    answer = client.post("/predict", files=form(*files)).json()
    named = [{**each, "source": f"{number}.png"} for number, each in enumerate(expected)]
    assert answer == {"model": "stand-in", "threshold": 0.3, "images": named}
    texts = [base64.b64encode(file).decode() for file in files]
    assert client.post("/predict", json={"images": texts}).json()["images"] == expected
    assert client.post("/predict", json={"image": texts[0]}).json()["images"] == expected[:1]
    assert client.post("/predict", json={"image": f"data:image/png;base64,{texts[1]}"}).json()["images"] == [
        expected[1]
    ]
    for kind in ("image/png", "image/jpeg", "application/octet-stream"):  # the content counts
        assert client.post("/predict", content=files[2], headers={"content-type": kind}).json()["images"] == [
            expected[2]
        ]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP"])
def test_formats(format: str, client: TestClient, model: tuple[StandIn, Predictor]) -> None:
    file = image_file(COLORS[0], format=format)
    assert client.post("/predict", content=file, headers=PNG).json()["images"] == [model[1](file)[0].to_json()]


def test_sizes_are_those_of_the_upright_image(client: TestClient) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    file = encoded(np.zeros((31, 47, 3), np.uint8), "JPEG", exif=exif)
    assert client.post("/predict", content=file, headers=PNG).json()["images"][0]["image_size"] == [47, 31]


def test_parameters_select_detections(client: TestClient) -> None:
    def names(query: str) -> list[str]:
        response = client.post(f"/predict?{query}", content=image_file((100, 255, 200)), headers=PNG)
        assert response.status_code == 200, response.text
        return [each["name"] for each in response.json()["images"][0]["detections"]]

    assert names("") == ["dog, wet", "bird", "cat"]
    assert names("threshold=0.5") == ["dog, wet", "bird"]
    assert names("threshold=1") == ["dog, wet"]
    assert names("max_detections=1") == ["dog, wet"]
    assert names("classes=cat") == ["cat"]
    assert names("classes=cat&classes=bird") == names("classes=cat,bird") == ["bird", "cat"]
    assert names("classes=dog,%20wet") == ["dog, wet"]  # a name with a comma
    assert names("classes=bird,cat&threshold=0.5&max_detections=5") == ["bird"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("threshold=50", "The parameter threshold is '50': Input should be less than or equal to 1."),
        ("threshold=-0.1", "The parameter threshold is '-0.1'"),
        ("threshold=nan", "The parameter threshold is 'nan'"),
        ("threshold=high", "The parameter threshold is 'high': Input should be a valid number"),
        ("max_detections=0", "The parameter max_detections is '0'"),
        ("max_detections=1.5", "The parameter max_detections is '1.5'"),
        ("treshold=0.5", "Unknown parameter 'treshold'. Did you mean 'threshold'?"),
        ("classes=cats", "There is no class 'cats'. Did you mean 'cat'?"),
        ("classes=", "There is no class ''."),
    ],
)
def test_invalid_parameters(query: str, message: str, client: TestClient, model: tuple[StandIn, Predictor]) -> None:
    response = client.post(f"/predict?{query}", content=image_file(COLORS[0]), headers=PNG)
    assert response.status_code == 422
    assert message in error(response)
    assert model[0].batches == []


def test_long_keys_are_cut_before_the_search_for_similar_ones(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search would take a quarter of a minute for a key of 20 MB, and block all other requests."""
    words: list[str] = []
    monkeypatch.setattr("detrs.serving.uploads.did_you_mean", lambda word, _: words.append(word) or " Did you mean x?")
    response = client.post("/predict", json={"imagesx" * 100_000: []})
    assert response.status_code == 400 and " Did you mean x?" in error(response)
    assert [len(word) for word in words] == [80]


def test_a_bad_image_in_a_request_is_named(client: TestClient, model: tuple[StandIn, Predictor]) -> None:
    good = image_file(COLORS[0])
    response = client.post("/predict", files=form(good, b"%PDF-1.7 text", good))
    assert response.status_code == 415
    assert error(response) == "Image 2 (1.png) is a PDF document. Expected a JPEG, PNG, WEBP or BMP image."
    response = client.post("/predict", files=form(good, good[:-30]))
    assert (response.status_code, error(response)[:35]) == (400, "Image 2 (1.png): The image cannot b")
    assert model[0].batches == []


def test_limits_come_before_the_work(model: tuple[StandIn, Predictor], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ServerSettings(max_images=2, max_pixels=999, max_body_bytes=5000)
    decoded: list[object] = []
    monkeypatch.setattr("detrs.serving.images.decode_image", decoded.append)
    small, large = image_file(COLORS[0], (27, 37)), image_file(COLORS[0], (10, 100))
    with TestClient(create_app(model[1], settings)) as client:
        response = client.post("/predict", content=large, headers=PNG)
        assert response.status_code == 413
        assert error(response) == "The image has more than 999 pixels (10 x 100). Send a smaller image."
        for body in (
            {"files": form(small, small, small)},
            {"json": {"images": [base64.b64encode(small).decode()] * 3}},
        ):
            response = client.post("/predict", **body)
            assert (response.status_code, error(response)[:35]) == (413, "The request has more than 2 images.")
        response = client.post("/predict", content=b"x" * 5001, headers=PNG)
        assert error(response) == "The body is larger than 5,000 bytes. Send smaller or fewer images."
        response = client.post("/predict", content=iter([b"x" * 3000] * 2), headers=PNG)  # chunked
        assert (response.status_code, error(response)[:35]) == (413, "The body is larger than 5,000 bytes")
        assert decoded == []


def test_errors_of_the_router(client: TestClient) -> None:
    assert error(client.get("/etc/passwd")) == "There is nothing at this address. See /docs."
    response = client.get("/predict")
    assert (response.status_code, error(response)[:18]) == (405, "The method GET is ")
    assert response.headers["allow"] == "POST"


def test_no_redirect_names_the_host_of_a_header(client: TestClient) -> None:
    response = client.get("/docs/", headers={"host": "evil.example"}, follow_redirects=False)
    assert response.status_code == 404 and "location" not in response.headers


def test_failures_of_the_model(client: TestClient, model: tuple[StandIn, Predictor]) -> None:
    def answer(problem: Exception) -> Any:
        def fail(images: torch.Tensor) -> None:
            raise problem

        model[0].fail = fail
        return client.post("/predict", content=image_file(COLORS[0]), headers=PNG)

    for problem in (torch.OutOfMemoryError("GPU"), MemoryError(), RuntimeError("can't allocate memory: 9 bytes")):
        response = answer(problem)
        assert response.status_code == 503 and int(response.headers["retry-after"]) > 0
        assert error(response) == "The model ran out of memory. Send a smaller image, or retry later."
    response = answer(UserError("The image must have 64 x 64 pixels."))
    assert (response.status_code, error(response)) == (422, "The image must have 64 x 64 pixels.")
    for _ in range(MAX_FAILURES):
        assert client.get("/health").json()["ready"]
        response = answer(ArithmeticError("a secret"))
        assert (response.status_code, error(response)) == (500, "The server failed to answer; its log has the reason.")
    assert client.get("/health").status_code == 503
    assert client.get("/health/live").json() == {"live": True}
    model[0].fail = lambda images: None
    assert client.post("/predict", content=image_file(COLORS[0]), headers=PNG).status_code == 200
    assert client.get("/health").status_code == 200


def test_health_describes_the_server(client: TestClient) -> None:
    health = client.get("/health").json()
    assert health["ready"] is True and health["model"] == "stand-in" and health["version"]
    assert health["classes"] == list(CLASSES.names) and health["threshold"] == 0.3
    assert health["nms"] is None


def test_metrics_count_requests_and_batches(client: TestClient) -> None:
    client.post("/predict", files=form(*[image_file(COLORS[0])] * 3))
    client.post("/predict", content=b"", headers=PNG)
    client.get("/secret/4711")
    found = values(client)
    assert found["detrs_requests_total", "/predict", "200"] == 1
    assert found["detrs_requests_total", "/predict", "415"] == 1
    assert found["detrs_requests_total", "other", "404"] == 1
    assert found["detrs_request_seconds_count", "/predict"] == 2
    assert found["detrs_batch_images_count",] == found["detrs_batch_images_sum",] == 3  # one by one on the CPU
    assert found["detrs_pending_images",] == found["detrs_waiting_images",] == 0
    assert not any("4711" in label for labels in found for label in labels)


def test_every_answer_has_the_security_headers(client: TestClient, model: tuple[StandIn, Predictor]) -> None:
    def fail(images: torch.Tensor) -> None:
        raise ArithmeticError

    model[0].fail = fail
    failed = client.post("/predict", content=image_file(COLORS[0]), headers=PNG)
    assert failed.status_code == 500
    paths = ("/health", "/docs", "/openapi.json", "/metrics", "/none")
    for response in (failed, client.post("/predict?x=1"), *map(client.get, paths)):
        assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"


def test_docs_describe_every_route_without_other_servers(client: TestClient) -> None:
    page, description = client.get("/docs").text, client.get("/openapi.json").json()
    assert "<script" not in page and "http:" not in page and "https:" not in page
    for path in ("/predict", "/health", "/health/live", "/metrics"):
        assert path in description["paths"] and f"<code>{path}</code>" in page
    for name in ("threshold", "classes", "max_detections"):
        assert f"<code>{name}</code>" in page
    links = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert links and all(client.get(link).status_code == 200 for link in links)


@pytest.mark.parametrize(
    ("header", "status"),
    [
        *[("Bearer s3cret", 200), ("bearer s3cret", 200)],
        *[("Bearer other", 401), ("Basic s3cret", 401), ("", 401), ("Bearer", 401)],
    ],
)
def test_token(header: str, status: int, model: tuple[StandIn, Predictor]) -> None:
    app = create_app(model[1], ServerSettings(token="s3cret"))
    headers = {"authorization": header} if header else {}
    with TestClient(app) as client:
        for response in (
            client.post("/predict", content=image_file(COLORS[0]), headers=PNG | headers),
            client.get("/metrics", headers=headers),
        ):
            assert response.status_code == status
            assert status == 200 or (error(response) and response.headers["www-authenticate"] == "Bearer")
        assert client.get("/health").status_code == client.get("/docs").status_code == 200
        assert client.get("/none").status_code == 401
    assert "s3cret" not in repr(ServerSettings(token="s3cret"))


def test_names_of_the_host_and_origins_of_other_sites(model: tuple[StandIn, Predictor]) -> None:
    with TestClient(create_app(model[1], ServerSettings(hosts=("localhost", "::1")))) as client:

        def status(host: str, **headers: str) -> int:
            file = image_file(COLORS[0])
            return client.post("/predict", content=file, headers=PNG | {"host": host} | headers).status_code

        assert status("localhost") == status("LOCALHOST:8000") == status("[::1]:80") == 200
        assert status("evil.example") == status("localhost.evil.example") == status("[::1") == 421
        assert status("localhost:8000", origin="http://localhost:8000") == 200
        assert status("localhost:8000", origin="http://localhost:9000") == 403
        assert status("localhost", origin="null") == status("localhost", origin="http://evil.example") == 403
        assert status("localhost", origin="http://[") == status("localhost", origin="http://[x]") == 403


def test_bodies_that_are_compressed_or_have_two_lengths(client: TestClient) -> None:
    file = image_file(COLORS[0])
    response = client.post("/predict", content=file, headers=PNG | {"content-encoding": "gzip"})
    assert response.status_code == 415 and "Content-Encoding" in error(response)
    response = client.post(
        "/predict", content=file, headers=PNG | {"transfer-encoding": "chunked", "content-length": "5"}
    )
    assert response.status_code == 400 and "Transfer-Encoding" in error(response)


def test_long_heads(client: TestClient) -> None:
    many = client.get("/health", headers={f"x-{number}": "a" for number in range(120)})
    large = client.get("/health", headers={"x": "a" * 40_000})
    assert (many.status_code, error(many)) == (large.status_code, error(large))
    assert many.status_code == 431
    assert client.get("/health?" + "a" * 9000).status_code == 414


def test_the_application_works_without_its_lifespan(model: tuple[StandIn, Predictor]) -> None:
    """As part of another application, where it is not started."""
    app = create_app(model[1])
    assert TestClient(app).post("/predict", content=image_file(COLORS[0]), headers=PNG).status_code == 200
    app.state.service.close()


def test_missing_packages(monkeypatch: pytest.MonkeyPatch, model: tuple[StandIn, Predictor]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "fastapi" else object())
    with pytest.raises(UserError, match=r"^Serving requires fastapi: pip install 'detrs\[serve\]'$"):
        check_packages()
    with pytest.raises(UserError):
        create_app(model[1])


def tiny(seed: int = 0) -> Predictor:
    """A detector of random weights."""
    torch.manual_seed(seed)
    experiment = Experiment(
        model=DeformableDETRConfig(
            num_classes=2, dim=64, num_heads=4, encoder_layers=1, decoder_layers=2, ffn_dim=48, num_queries=17,
            backbone=BackboneConfig(name="test_efficientnet", weights="none", freeze_stem=False),
            queries="proposals", reference="refine",
        ),
        data=DataConfig(resize_to=(61, 113)),
    )  # fmt: skip
    detector = TrainedDetector(
        module=models.build(experiment.model), classes=Classes(("a", "b"), (1, 2)),
        preprocessing=preprocessing_of(experiment), experiment=experiment, scores={}, step=1, epoch=1,
    )  # fmt: skip
    return Predictor(detector, "cpu")


@pytest.mark.parametrize("max_batch", [None, 4])
def test_concurrent_requests_to_a_real_model(max_batch: int | None) -> None:
    """One by one, answers are bit-equal to those of ``Predictor`` for the image alone; in batches, up to rounding."""
    random = np.random.default_rng(0)
    files = [encoded(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES * 4]
    with use("reference"):
        predictor = tiny()
        expected = [predictor(file, threshold=0.0)[0] for file in files]
        settings = ServerSettings(max_batch=max_batch, batch_window_ms=50)
        with TestClient(create_app(predictor, settings)) as client, ThreadPoolExecutor(6) as clients:
            ask: Callable[[bytes], Any] = lambda file: client.post(  # noqa: E731
                "/predict?threshold=0", content=file, headers=PNG
            )
            answers = [response.json()["images"][0] for response in clients.map(ask, files)]
            found = values(client)
    assert found["detrs_batch_images_sum",] == len(files)
    assert (found["detrs_batch_images_count",] == len(files)) == (max_batch is None)
    for answer, wanted in zip(answers, expected, strict=True):
        if max_batch is None:
            assert json.dumps(answer) == json.dumps(wanted.to_json())
        scores = sorted((each["score"] for each in answer["detections"]), reverse=True)
        assert len(scores) > 10
        np.testing.assert_allclose(scores, wanted.scores, atol=1e-5)
