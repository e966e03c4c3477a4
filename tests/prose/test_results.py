"""Numbers in docs/results.md are those of the presets; GFLOPs are compared in tests/models."""

import re
from pathlib import Path

import pytest
import torch

from detrs.evaluation.complexity import complexity
from detrs.evaluation.speed import count_flops
from detrs.models import build
from detrs.models.detector import Detector
from detrs.presets import preset

PAGE = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
ROWS = re.findall(r"^\|.*\| `([\w-]+)`.*\| ([\d,]+) \| ([\d.]+) \|$", PAGE, flags=re.MULTILINE)


def test_the_page_has_every_row_of_the_table() -> None:
    assert len(ROWS) == 8


@pytest.mark.parametrize(("name", "parameters", "gflops"), ROWS)
def test_parameters_and_gflops(name: str, parameters: str, gflops: str) -> None:
    with torch.device("meta"):
        model = build(preset(name).model).eval()
        inputs = torch.empty(1, 3, 800, 1066), torch.empty(1, 800, 1066, dtype=torch.bool)
    assert f"{sum(p.numel() for p in model.parameters()):,}" == parameters
    if isinstance(model, Detector):  # the number of proposals is data
        assert f"{count_flops(model, *inputs) / 1e9:.1f}" == gflops


def test_complexity() -> None:
    columns = []
    for name in ("detr-r50", "detr-r50-dc5", "deformable-detr-r50"):
        with torch.device("meta"):
            columns.append(complexity(build(preset(name).model), (800, 1066)))
    for i, part in enumerate(("encoder", "decoder, self-attention", "decoder, cross-attention")):
        cells = " | ".join(f"{rows[i].total / 1e9:.2f}" for rows in columns)
        assert f"| {part} | {cells} |" in PAGE
    pairs = [6 * rows[0].terms["N_q N_k C"] / 1e9 for rows in columns[:2]]
    assert f"| of which N_q N_k C | {pairs[0]:.2f} | {pairs[1]:.2f} | - |" in PAGE
    assert f"{6 * columns[2][0].num_keys ** 2 * 256 / 1e9:.1f} · 10⁹" in PAGE
