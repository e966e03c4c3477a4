"""Boxes come back in pixels of the original, whatever its size, orientation, kind and neighbours."""

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from detrs import models
from detrs.backbones.timm import BackboneConfig
from detrs.checkpoints.detector import TrainedDetector, preprocessing_of, save_detector
from detrs.classification import Focal, class_logits
from detrs.config import EvaluationConfig, Experiment
from detrs.criterion.set_criterion import CriterionConfig
from detrs.data.preprocessing import Preprocessing
from detrs.data.transforms import DataConfig
from detrs.errors import UserError
from detrs.models.deformable_detr import DeformableDETRConfig
from detrs.models.detector import Model
from detrs.ops import use
from detrs.postprocess import best_boxes
from detrs.predictor import Predictor
from detrs.structures import Boxes, Classes, Prediction

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
CLASSES = Classes(("wide", "tall"), (7, 3))
RESIZE_TO = (61, 113)
SIZES = ((149, 211), (307, 97), (53, 53), (131, 389), (83, 59))  # (height, width): wide, tall, square, flat, small


class Finder(Model):
    """Finds the one bright rectangle of a dark image from its pixels, so that geometry is tested exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[int, ...]] = []
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    def objective(self, config: CriterionConfig) -> Any:
        raise NotImplementedError

    def detect(self, images: Tensor, padding: Tensor, max_detections: int = 100) -> Boxes:
        assert not self.training
        assert images.dtype == torch.float32 and not images[padding[:, None].expand_as(images)].any()
        self.batches.append(tuple(images.shape))
        boxes, wide = [], []
        for image, padded in zip(images, padding, strict=True):
            height, width = int((~padded)[:, 0].sum()), int((~padded)[0].sum())
            bright = (image * self.std + self.mean)[:, :height, :width].mean(0)
            rows, columns = bright.sum(1), bright.sum(0)  # the edges by area: exact below a pixel
            y, x = (torch.arange(n, dtype=torch.float32) + 0.5 for n in (height, width))
            center = (columns * x).sum() / columns.sum(), (rows * y).sum() / rows.sum()
            size = columns.sum() / columns.max(), rows.sum() / rows.max()
            boxes.append(torch.stack([*center, *size]) / torch.tensor([width, height, width, height]))
            wide.append(size[0] > size[1])
        is_wide = torch.stack(wide)[:, None]
        logits = torch.where(torch.cat([is_wide, ~is_wide], 1), 2.0, -3.0)[:, None]  # (B, 1, 2)
        return best_boxes(Prediction(logits, torch.stack(boxes)[:, None]), class_logits(Focal()), max_detections)


def make_image(size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """A black image with one white rectangle, and the rectangle (x1, y1, x2, y2)."""
    height, width = size
    box = (width // 5, height // 3, width // 5 + width // 2, height // 3 + height // 4)
    image = np.zeros((height, width, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    return image, box


def tolerance(size: tuple[int, int]) -> float:
    """One pixel of the resized image, in pixels of the original."""
    return max(1.0, min(size) / RESIZE_TO[0], max(size) / RESIZE_TO[1])


def trained(module: Model, experiment: Experiment | None = None, **changes: Any) -> TrainedDetector:
    preprocessing = Preprocessing(resize_to=RESIZE_TO, mean=MEAN, std=STD)
    values: dict[str, Any] = {"module": module, "classes": CLASSES, "preprocessing": preprocessing}
    values |= {"experiment": experiment or Experiment(), "scores": {}, "step": 1, "epoch": 1}
    return TrainedDetector(**(values | changes))


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(trained(Finder()), "cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images 0.png .. 4.png, and what a folder of images has beside images."""
    for number, size in enumerate(SIZES):
        Image.fromarray(make_image(size)[0]).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._0.png").write_bytes(b"what a Mac leaves behind")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / ".thumbnails" / "0.png").write_bytes(b"what a file browser leaves behind")
    (tmp_path / "deeper").mkdir()
    Image.fromarray(make_image((73, 91))[0]).save(tmp_path / "deeper" / "UPPER.JPG")
    return tmp_path


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_boxes_are_in_pixels_of_the_original(predictor: Predictor, batch_size: int) -> None:
    images = [make_image(size)[0] for size in SIZES]
    found = predictor(images, batch_size=batch_size)
    assert [each.image_size for each in found] == list(SIZES)
    for each, size in zip(found, SIZES, strict=True):
        assert each.boxes_xyxy.shape == (1, 4)
        expected = torch.tensor([make_image(size)[1]], dtype=torch.float32)
        torch.testing.assert_close(each.boxes_xyxy, expected, rtol=0, atol=tolerance(size))


def test_images_of_one_size_go_together(predictor: Predictor) -> None:
    sizes = [SIZES[0], SIZES[1], SIZES[0], SIZES[0], SIZES[1]]
    found = predictor([make_image(size)[0] for size in sizes], batch_size=4)
    assert [each.image_size for each in found] == sizes
    finder = predictor.detector.module
    assert isinstance(finder, Finder)
    wide, tall = (3, 61, 86), (3, 113, 36)
    assert finder.batches == [(3, *wide), (1, *tall), (1, *tall)]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_image_and_boxes(predictor: Predictor, tmp_path: Path, orientation: int) -> None:
    upright, box = make_image((149, 211))
    undo = {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_90",
        7: "TRANSVERSE",
    }
    undo[8] = "ROTATE_270"  # what the camera stored, so that the tag turns it upright
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose[undo[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.jpg", quality=100, exif=exif)
    (found,) = predictor(tmp_path / "turned.jpg")
    assert found.image_size == (149, 211)
    torch.testing.assert_close(found.boxes_xyxy, torch.tensor([box], dtype=torch.float32), rtol=0, atol=3.0)


def test_every_kind_of_source_gives_the_same(predictor: Predictor, folder: Path) -> None:
    array = make_image(SIZES[0])[0]
    path = folder / "0.png"
    sources: list[Any] = [
        path,
        str(path),
        path.read_bytes(),
        Image.open(path),
        array,
        torch.tensor(array).permute(2, 0, 1),
    ]
    sources += [array[..., 0]]  # grey
    single = [predictor(source)[0] for source in sources]
    together = predictor(sources)
    for each in single + together:
        torch.testing.assert_close(each.boxes_xyxy, single[0].boxes_xyxy)
        assert each.names == ["wide"] and each.image_size == SIZES[0]
    assert [each.source for each in together] == [str(path), str(path), None, None, None, None, None]


def test_folders_and_globs_are_sorted_and_hold_images_only(predictor: Predictor, folder: Path) -> None:
    five = [str(folder / f"{number}.png") for number in range(5)]
    assert [each.source for each in predictor(folder)] == five
    assert [each.source for each in predictor(str(folder / "*"))] == five
    assert [each.source for each in predictor(folder / "[13].png")] == [five[1], five[3]]
    assert [each.source for each in predictor(folder / "**" / "*")] == [*five, str(folder / "deeper" / "UPPER.JPG")]
    mixed = predictor([five[4], folder / "[0-1].png", make_image((73, 91))[0], five[2]])
    assert [each.source for each in mixed] == [five[4], five[0], five[1], None, five[2]]


def test_a_name_with_glob_characters_is_a_file_first(predictor: Predictor, folder: Path) -> None:
    path = (folder / "0.png").rename(folder / "cat [1].png")
    assert [each.source for each in predictor(path)] == [str(path)]


def test_relative_globs_and_home(predictor: Predictor, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    assert [each.source for each in predictor("deeper/*.JPG")] == ["deeper/UPPER.JPG"]
    (folder / ".thumbnails" / "0.png").write_bytes((folder / "0.png").read_bytes())
    assert [each.source for each in predictor(".thumbnails/*.png")] == [".thumbnails/0.png"]
    assert [each.source for each in predictor("~/deeper")] == [str(folder / "deeper" / "UPPER.JPG")]


def test_an_endless_iterable_is_read_no_further_than_needed(predictor: Predictor) -> None:
    def camera() -> Iterator[np.ndarray]:
        for number in range(10**9):
            assert number < 3, "read ahead"
            yield make_image(SIZES[number])[0]

    found = predictor.predict_iter(camera(), batch_size=3)
    assert [next(found).detections.image_size for _ in range(3)] == list(SIZES[:3])


def test_predict_iter_gives_the_image_too(predictor: Predictor, folder: Path) -> None:
    for size, (image, detections) in zip(SIZES, predictor.predict_iter(folder, batch_size=2), strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), make_image(size)[0])
        assert detections.image_size == size


def test_threshold_and_max_detections(folder: Path) -> None:
    detector = trained(Finder())
    predictor = Predictor(detector, "cpu", max_detections=1)
    low, high = torch.tensor([-3.0, 2.0]).sigmoid().tolist()
    everything = Predictor(detector, "cpu")
    assert [len(each) for each in predictor(folder, threshold=0.0)] == [1] * 5
    assert [len(each) for each in everything(folder, threshold=0.0)] == [2] * 5
    assert [len(each) for each in everything(folder, threshold=low + 1e-6)] == [1] * 5
    assert [len(each) for each in everything(folder, threshold=high + 1e-6)] == [0] * 5


def test_the_threshold_is_that_of_the_detector_by_default(folder: Path) -> None:
    low, high = torch.tensor([-3.0, 2.0]).sigmoid().tolist()  # 0.047, 0.881
    for own, expected, count in ((None, 0.5, 1), (high + 1e-3, high + 1e-3, 0), (low, low, 2), (0.0, 0.0, 2)):
        predictor = Predictor(trained(Finder(), threshold=own), "cpu")
        assert predictor.threshold == expected
        assert [len(each) for each in predictor(folder)] == [count] * 5
        assert [len(each.detections) for each in predictor.predict_iter(folder)] == [count] * 5
        assert [len(each) for each in predictor(folder, threshold=0.1)] == [1] * 5  # given


def test_max_detections_are_those_of_the_evaluation_by_default(folder: Path) -> None:
    experiment = Experiment(evaluation=EvaluationConfig(max_detections=1))
    detector = trained(Finder(), experiment)
    assert [len(each) for each in Predictor(detector, "cpu")(folder, threshold=0.0)] == [1] * 5
    assert [len(each) for each in Predictor(detector, "cpu", max_detections=2)(folder, threshold=0.0)] == [2] * 5
    assert detector.experiment == experiment  # not changed by the second predictor
    best = Predictor(detector, "cpu", max_detections=1)(folder, threshold=0.0)
    for each, other in zip(best, Predictor(detector, "cpu", max_detections=2)(folder, threshold=0.0), strict=True):
        assert each.scores.item() == other.scores.max().item()
    for bad in (0, -1):
        with pytest.raises(UserError, match=f"^max_detections is {bad}, but must be at least 1"):
            Predictor(detector, "cpu", max_detections=bad)


def test_a_predictor_needs_no_training(tmp_path: Path) -> None:
    """Servers and notebooks import neither process groups nor training."""
    code = (
        "import detrs.predictor, sys\n"
        "print([name for name in sys.modules if name.startswith(('accelerate', 'detrs.engine'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"


def test_detections_can_be_changed_in_place(predictor: Predictor) -> None:
    (found,) = predictor(make_image((89, 211))[0])
    found.boxes_xyxy.add_(1)
    found.scores.mul_(0.5)


def test_a_folder_that_may_not_be_read(predictor: Predictor, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(UserError, match="cannot be opened: Permission denied"):
        predictor(folder)


def test_labels_keep_the_ids_of_the_data_set(predictor: Predictor) -> None:
    wide, tall = predictor([make_image((89, 211))[0], make_image((307, 97))[0]])
    assert [result["category_id"] for result in wide.to_coco(1) + tall.to_coco(2)] == [7, 3]


@pytest.fixture
def with_faults(folder: Path) -> Path:
    (folder / "1.png").write_text("a text")
    (folder / "3.png").write_bytes((folder / "2.png").read_bytes()[:60])
    return folder


def test_a_file_that_is_not_an_image_is_named(predictor: Predictor, with_faults: Path) -> None:
    with pytest.raises(UserError, match=r"1\.png"):
        predictor(with_faults)


def test_skipping_loses_nothing_else(predictor: Predictor, with_faults: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "detrs"):
        found = predictor([with_faults, with_faults / "missing.png"], on_error="skip", batch_size=2)
    assert [Path(each.source).name for each in found] == ["0.png", "2.png", "4.png"]
    assert all(
        name in record.message for name, record in zip(("1.png", "3.png", "missing.png"), caplog.records, strict=True)
    )
    errors: list[tuple[str, UserError]] = []
    again = predictor([with_faults, with_faults / "missing.png"], on_error=lambda *fault: errors.append(fault))
    assert [each.source for each in again] == [each.source for each in found]
    assert [Path(source).name for source, _ in errors] == ["1.png", "3.png", "missing.png"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.png", "nowhere.png does not exist"),
        ("nowhere/*.png", "No images .* match 'nowhere/"),
        ("empty", r"The folder 'empty' has no images \(.*\)\.$"),
        ("above", r"The folder 'above' .*; for images in sub-folders use 'above/\*\*/\*'"),
        ("https://example.com/a.jpg", "is a URL.*allow_urls=True"),
        (np.zeros((5, 7, 2), np.uint8), r"shape \(H, W, 3\)"),
        (torch.zeros(5, 7, 3, dtype=torch.uint8), r"shape \(3, H, W\)"),
    ],
)
def test_bad_sources(
    predictor: Predictor, folder: Path, monkeypatch: pytest.MonkeyPatch, source: Any, message: str
) -> None:
    monkeypatch.chdir(folder)
    Path("empty").mkdir()
    Path("above").mkdir()
    Path("deeper").rename("above/deeper")
    with pytest.raises(UserError, match=message):
        predictor(source)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": -0.1}, "threshold is -0.1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_read(
    predictor: Predictor, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        predictor.predict_iter("nowhere.png", **arguments)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_urls_are_fetched_when_allowed(predictor: Predictor, folder: Path, server: str) -> None:
    (found,) = predictor(f"{server}/1.png", allow_urls=True)
    assert found.source == f"{server}/1.png"
    torch.testing.assert_close(found.boxes_xyxy, predictor(folder / "1.png")[0].boxes_xyxy)
    with pytest.raises(UserError, match=r"notes\.txt: .*not a readable image"):
        predictor(f"{server}/notes.txt", allow_urls=True)
    with pytest.raises(UserError, match=r"missing\.png could not be downloaded: .*404"):
        predictor(f"{server}/missing.png", allow_urls=True)


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    backbone = BackboneConfig(name="test_efficientnet", weights="none", freeze_stem=False, mean=MEAN, std=STD)
    return Experiment(
        model=DeformableDETRConfig(
            num_classes=2, backbone=backbone, dim=64, num_heads=4, encoder_layers=1, decoder_layers=2, ffn_dim=48,
            num_queries=17, queries="proposals", reference="refine",
        )
    )  # fmt: skip


def test_batches_equal_single_images(experiment: Experiment) -> None:
    torch.manual_seed(0)
    predictor = Predictor(trained(models.build(experiment.model), experiment), "cpu")
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES + SIZES[:3]]
    with use("reference"):
        single = [predictor(image, threshold=0.0)[0] for image in images]
        for batch_size in (6, 8):
            for each, alone in zip(predictor(images, threshold=0.0, batch_size=batch_size), single, strict=True):
                torch.testing.assert_close(each.scores, alone.scores, rtol=0, atol=1e-5)
                torch.testing.assert_close(each.boxes_xyxy, alone.boxes_xyxy, rtol=0, atol=1e-2)


def test_a_saved_detector_predicts_as_before(experiment: Experiment, tmp_path: Path) -> None:
    torch.manual_seed(0)
    experiment = replace(experiment, data=DataConfig(resize_to=(67, 127)))
    preprocessing = Preprocessing(resize_to=(67, 127), mean=MEAN, std=STD)
    assert preprocessing_of(experiment) == preprocessing
    detector = trained(models.build(experiment.model), experiment, preprocessing=preprocessing)
    save_detector(tmp_path / "best.safetensors", detector)
    before = Predictor(detector, "cpu")
    after = Predictor.load(tmp_path / "best.safetensors", "cpu")
    assert (after.detector.classes, after.detector.preprocessing) == (CLASSES, preprocessing)
    assert after.detector.experiment == experiment
    image = make_image(SIZES[0])[0]
    with use("reference"):
        old, new = before(image, threshold=0.0)[0], after(image, threshold=0.0)[0]
    assert torch.equal(old.boxes_xyxy, new.boxes_xyxy) and torch.equal(old.scores, new.scores)


class Multiplying(Finder):
    """Remembers the type of a matrix product in ``detect``."""

    def __init__(self) -> None:
        super().__init__()
        self.types: list[torch.dtype] = []

    def detect(self, images: Tensor, padding: Tensor, max_detections: int = 100) -> Boxes:
        self.types.append((torch.ones(3, 5) @ torch.ones(5, 2)).dtype)
        return super().detect(images, padding, max_detections)


@pytest.mark.parametrize(
    ("precision", "variable", "expected"),
    [("auto", "fp32", "fp32"), ("auto", "bf16", "bf16"), ("fp32", "bf16", "fp32"), ("bf16", "fp32", "bf16")],
)
def test_precision(monkeypatch: pytest.MonkeyPatch, precision: Any, variable: str, expected: str) -> None:
    """That of the predictor, in images and tiles, whatever autocast is active around it; which is left as it was."""
    monkeypatch.setenv("DETRS_PRECISION", variable)
    module = Multiplying()
    predictor = Predictor(trained(module), "cpu", precision=precision)
    assert predictor.precision == expected
    image = torch.zeros(3, 53, 97, dtype=torch.uint8)
    image[:, 10:30, 20:60] = 255
    predictor(image)
    predictor(image, tile=64)
    with torch.autocast("cpu", torch.bfloat16):
        predictor(image)
        assert torch.is_autocast_enabled("cpu")
    assert {*module.types} == {{"fp32": torch.float32, "bf16": torch.bfloat16}[expected]}
    assert not torch.is_autocast_enabled("cpu")


def test_precisions_that_do_not_exist() -> None:
    with pytest.raises(UserError, match=r"^precision: expected one of auto, fp32, bf16, fp16, got 'int8'\."):
        Predictor(trained(Finder()), "cpu", precision="int8")  # type: ignore[arg-type]
