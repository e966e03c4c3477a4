"""Datasets in other formats than COCO on the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest
from convert import to_cvat, to_label_studio, to_labelme, to_voc
from small import replace, write_coco

from detrs.engine import trainer

SMALL = (
    "--device cpu --batch-size 2 --image-size 61 83 --quiet --epochs 1 --model.dim 64 --model.num-heads 4 "
    "--model.ffn-dim 48 --model.decoder-layers 1 --model.encoder-layers 1 --model.num-queries 7 "
    "--model.backbone.name test_efficientnet --model.backbone.weights none --json"
)
WRITERS = {"voc": to_voc, "cvat": to_cvat, "labelme": to_labelme, "label_studio": to_label_studio}
FILES = {
    "voc": ("Annotations/train 0.xml", "<xmax>36.5</xmax>", "<xmax>3</xmax>"),
    "cvat": ("annotations.xml", 'xbr="36.5"', 'xbr="3"'),
    "labelme": ("train/train 0.json", '"label": "cat"', '"label": ""'),
    "label_studio": ("train.json", '"rotation": 0', '"rotation": 30'),
}
"""A file, and a text in it that is replaced by a faulty one."""
MESSAGES = {
    "voc": "<bndbox> with xmax below xmin or ymax below ymin: Annotations/train 0.xml:4: xmin=6.5",
    "cvat": "<box> with xbr below xtl or ybr below ytl: annotations.xml:7: xtl=5.5 ytl=7 xbr=3 ybr=30",
    "labelme": "shape without label: train/train 0.json: shapes[1]: ''",
    "label_studio": "train.json: task 1: result[0]: rotation 30",
}


@pytest.mark.parametrize("format_", list(WRITERS))
def test_trains_and_reports_faults(
    detrs: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str
) -> None:
    monkeypatch.setattr(trainer, "save_curves", lambda *arguments: None)  # slow, and tested elsewhere
    root = tmp_path / "data"
    coco = write_coco(tmp_path / "coco")
    for split in ("train", "val"):
        WRITERS[format_](coco, split, root)
    command = ["train", "deformable-detr-tiny", "--data", root, *SMALL.split(), "--output"]
    done = detrs(*command, "run")
    assert done.code == 0, done.err
    assert Path(done.json["checkpoint"]).is_file()

    file, old, new = FILES[format_]
    replace(root / file, old, new)
    done = detrs(*command, "other")
    assert done.code == 2 and MESSAGES[format_] in done.message
    assert not Path("other").exists()
