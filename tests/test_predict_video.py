"""Frames of videos are predicted as images are."""

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_video import decoded, make_frames, write_video

from detrs import models
from detrs.backbones.timm import BackboneConfig
from detrs.checkpoints.detector import TrainedDetector
from detrs.config import Experiment
from detrs.data.preprocessing import Preprocessing
from detrs.errors import UserError
from detrs.models.deformable_detr import DeformableDETRConfig
from detrs.ops import use
from detrs.predictor import Predictor
from detrs.structures import Classes

CLASSES = Classes(("wide", "tall"), (7, 3))
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
NUM_FRAMES = 300
SIZE = (54, 86)


@pytest.fixture(scope="module")
def video(once: Callable) -> Path:
    """A video of 300 frames."""
    return (
        once("video-300", lambda folder: write_video(folder / "video.mp4", make_frames(NUM_FRAMES, SIZE), crf="12"))
        / "video.mp4"
    )


@pytest.fixture(autouse=True)
def without_compilation() -> Iterator[None]:
    with use("reference"):
        yield


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """A small Deformable DETR with random weights."""
    torch.manual_seed(0)
    backbone = BackboneConfig(name="test_efficientnet", weights="none", freeze_stem=False, mean=MEAN, std=STD)
    model = DeformableDETRConfig(
        num_classes=2, backbone=backbone, dim=32, num_heads=4, encoder_layers=1, decoder_layers=1, ffn_dim=48,
        num_queries=11, queries="proposals", reference="refine",
    )  # fmt: skip
    detector = TrainedDetector(
        module=models.build(model),
        classes=CLASSES,
        preprocessing=Preprocessing(resize_to=(61, 113), mean=MEAN, std=STD),
        experiment=Experiment(model=model),
        scores={},
        step=1,
        epoch=1,
    )
    return Predictor(detector, "cpu")


@pytest.mark.parametrize(("batch_size", "stride"), [(8, 1), (1, 7), (16, 3), (5, 2), (32, 299)])
def test_detections_of_frames_equal_those_of_images(
    predictor: Predictor, video: Path, batch_size: int, stride: int
) -> None:
    """Of the frames decoded by PyAV alone; bit by bit, since the batches are the same."""
    images = decoded(video)
    assert len(images) == NUM_FRAMES
    expected = predictor([image for image, _ in images[::stride]], threshold=0.0, batch_size=batch_size)
    found = list(predictor.predict_video(video, threshold=0.0, batch_size=batch_size, stride=stride))
    assert [each.frame_index for each in found] == list(range(0, NUM_FRAMES, stride))
    assert [each.time_seconds for each in found] == pytest.approx([time for _, time in images[::stride]])
    for each, other in zip(found, expected, strict=True):
        assert torch.equal(each.detections.boxes_xyxy, other.boxes_xyxy)
        assert torch.equal(each.detections.scores, other.scores)
        assert torch.equal(each.detections.labels, other.labels)
        assert each.detections.source == str(video) and each.detections.image_size == SIZE
    assert len({tuple(each.scores.tolist()) for each in expected}) == len(expected)  # a frame has no other's detections
    assert all(len(each) > 0 for each in expected)


def test_frames_are_upright_images(predictor: Predictor, video: Path) -> None:
    (found, *_), ((image, _), *_) = predictor.predict_video(video, max_frames=1), decoded(video)
    np.testing.assert_array_equal(found.image.permute(1, 2, 0).numpy(), np.asarray(image))


def test_settings_of_images_are_settings_of_frames(predictor: Predictor, video: Path) -> None:
    settings: dict[str, Any] = {"threshold": 0.0, "classes": "tall", "nms": 0.3}
    expected = predictor([decoded(video)[0][0]], **settings)[0]
    (found,) = predictor.predict_video(video, max_frames=1, **settings)
    (everything,) = predictor.predict_video(video, max_frames=1, threshold=0.0)
    assert torch.equal(found.detections.boxes_xyxy, expected.boxes_xyxy)
    assert 0 < len(found.detections) < len(everything.detections) and {*found.detections.names} == {"tall"}


def test_json_of_a_frame(predictor: Predictor, video: Path) -> None:
    *_, last = predictor.predict_video(video, max_frames=2, stride=10, threshold=0.3)
    assert last.to_json() == {"frame": 10, "time_seconds": 0.4, **last.detections.to_json()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"stride": 0}, "stride is 0, but must be at least 1"),
        ({"max_frames": 0}, "max_frames is 0, but must be at least 1"),
        ({"reconnect": -1}, "reconnect is -1, but must be at least 0"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
    ],
)
def test_bad_arguments_are_refused_before_the_video_is_opened(
    predictor: Predictor, video: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        predictor.predict_video(video, **arguments)


def test_damaged_frames(predictor: Predictor, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_video(tmp_path / "a.avi", make_frames(9, SIZE), codec="mjpeg")
    content = path.read_bytes()
    following = [match.start() for match in re.finditer(b"\xff\xd8\xff", content)][3]
    path.write_bytes(content[: following - 1500] + bytes(1000) + content[following - 500 :])  # the end of frame 2
    errors: list[tuple[str, UserError]] = []
    found = predictor.predict_video(path, batch_size=2, on_error=lambda *each: errors.append(each))
    assert [each.frame_index for each in found] == [0, 1, 3, 4, 5, 6, 7, 8]
    assert [(name, str(error)) for name, error in errors] == [(str(path), f"{path}: frame 2 is damaged.")]
    with caplog.at_level(logging.WARNING, "detrs"):
        assert len(list(predictor.predict_video(path))) == 8
    assert [record.message for record in caplog.records] == [f"skipped: {path}: frame 2 is damaged."]
    with pytest.raises(UserError, match="frame 2 is damaged"):
        list(predictor.predict_video(path, on_error="raise"))
    assert len(list(predictor.predict_video(path, stride=4, on_error="raise"))) == 3  # frame 2 is not needed
