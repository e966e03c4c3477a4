"""The table of presets in the README: parameters and GFLOPs are those of the models."""

import re
from pathlib import Path

import pytest
import torch

from detrs.evaluation.speed import count_flops
from detrs.models import build
from detrs.presets import preset

README = Path(__file__).resolve().parents[2] / "README.md"
ROWS = re.findall(r"^\| `([\w-]+)` \| [\d.-]+ \| ([\d.]+) M \| ([\d.]+) \|", README.read_text(), re.MULTILINE)


def test_the_table_is_found() -> None:
    assert len(ROWS) > 25 and {"dino-tiny", "dino-swin-l-4scale", "faster-rcnn-r50-fpn"} < {name for name, *_ in ROWS}


@pytest.mark.parametrize(("name", "millions", "gflops"), ROWS)
def test_parameters_and_gflops_at_800_x_1066(name: str, millions: str, gflops: str) -> None:
    with torch.device("meta"):
        model = build(preset(name).model).eval()
        images, padding = torch.empty(1, 3, 800, 1066), torch.empty(1, 800, 1066, dtype=torch.bool)
    assert float(millions) == pytest.approx(sum(p.numel() for p in model.parameters()) / 1e6, abs=0.0501)
    if not name.startswith("faster-rcnn"):  # its proposals depend on values
        assert float(gflops) == pytest.approx(count_flops(model, images, padding) / 1e9, abs=0.0501)
