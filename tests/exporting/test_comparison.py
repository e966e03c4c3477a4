import time

import numpy as np
import pytest
import torch
from trained import experiment, trained

from detrs.checkpoints.sources import FOLDER, Source
from detrs.data.digits import DigitsDataset
from detrs.errors import UserError
from detrs.exporting.comparison import Opened, images_of, open_file, time_files, with_scores
from detrs.models.detector import Model
from detrs.structures import Boxes

SETTINGS = experiment("deformable-detr-tiny")
CPU = torch.device("cpu")


class Slow(Model):
    """Takes ``milliseconds``, and records its name in the log."""

    def __init__(self, name: str, milliseconds: float, log: list[str]) -> None:
        super().__init__()
        self.name, self.milliseconds, self.log = name, milliseconds, log

    def objective(self, config):
        raise NotImplementedError

    def detect(self, images, padding, max_detections: int = 100) -> Boxes:
        assert images.shape[0] == 1 and images.is_floating_point() and not torch.is_grad_enabled()
        self.log.append(self.name)
        time.sleep(self.milliseconds / 1e3)
        return Boxes(torch.zeros(1, 1, 4), torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.long))


def files(log: list[str]) -> list[Opened]:
    speeds = {"slow": 20.0, "fast": 4.0}
    return [Opened(name, "onnx", 5, trained(SETTINGS, Slow(name, ms, log))) for name, ms in speeds.items()]


def test_files_process_each_image_in_turn_and_the_order_rotates() -> None:
    log: list[str] = []
    done: list[tuple[int, int]] = []
    images = [torch.zeros(3, 40, 60, dtype=torch.uint8)] * 3
    report = time_files(files(log), images, device=CPU, repeats=2, on_images=lambda *counts: done.append(counts))
    turns = np.array(log).reshape(-1, 2, 2)  # each file runs twice for each image
    assert len(turns) == 3 * 3 and (turns[:, :, 0] == turns[:, :, 1]).all()
    assert turns[0, :, 0].tolist() == ["slow", "fast"] and turns[1, :, 0].tolist() == ["fast", "slow"]
    assert done[-1] == (9, 9)
    slow, fast = report.files
    assert 20 <= slow.model.median_ms <= slow.model.p95_ms and 4 <= fast.model.median_ms < slow.model.median_ms
    assert 20 <= slow.total.median_ms <= slow.total.p95_ms and 4 <= fast.total.median_ms <= fast.total.p95_ms
    assert (report.num_images, report.repeats) == (3, 2)


def test_the_table_shows_ratios_and_scores() -> None:
    from rich.console import Console

    report = time_files(files([]), [torch.zeros(3, 40, 60, dtype=torch.uint8)], device=CPU, repeats=3)
    report = with_scores(report, [(0.5151, 0.8), (None, None)])
    console = Console(width=160, record=True)
    console.print(report.table())
    text = console.export_text()
    assert "0.5151" in text and "(1.00)" in text and "0.0 MB" in text and " - " in text
    values = report.to_json()
    assert values["files"][0]["ap"] == 0.5151 and values["files"][1]["ap"] is None
    assert values["files"][1]["model"]["median_ms"] == report.files[1].model.median_ms


def test_images_are_those_of_the_dataset_or_made_in_the_size_of_the_detector() -> None:
    detector = trained(SETTINGS)
    digits = DigitsDataset("val", 7)
    images = images_of(digits, 3, detector)
    assert [torch.equal(a, digits[i].image) for a, i in zip(images, (0, 2, 4), strict=True)] == [True] * 3
    assert len(images_of(digits, 100, detector)) == 7
    made = images_of(None, 40, detector)
    assert len(made) == 40 and {image.shape for image in made} == {(3, 128, 192)}


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"pytorch_model.bin": 13}, 13),
        ({"model.safetensors": 5, "pytorch_model.bin": 13}, 5),
        ({"model-00001-of-00002.safetensors": 5, "model-00002-of-00002.safetensors": 7}, 12),
    ],
)
def test_the_size_of_a_folder_is_that_of_its_weights(sizes: dict[str, int], expected: int, tmp_path, monkeypatch):
    for name, size in {"config.json": 3, **sizes}.items():
        (tmp_path / name).write_bytes(bytes(size))
    source = Source(trained(SETTINGS), FOLDER, tmp_path, None)
    monkeypatch.setattr("detrs.exporting.comparison.open_source", lambda path: source)
    assert open_file(tmp_path, CPU).num_bytes == expected


def test_nothing_to_time() -> None:
    with pytest.raises(UserError, match="at least one file, image and repetition"):
        time_files([], [], device=CPU)
