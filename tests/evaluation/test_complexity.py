"""Terms of the complexity of attention, against numbers computed by hand."""

import pytest
import torch

from detrs.errors import UserError
from detrs.evaluation.complexity import Complexity, complexity
from detrs.models import build
from detrs.presets import preset

HEIGHT, WIDTH = 224, 352
C = 256
C5 = 7 * 11
LEVELS = 28 * 44 + 14 * 22 + C5 + 4 * 6


def of(name: str) -> list[Complexity]:
    with torch.device("meta"):
        return complexity(build(preset(name).model), (HEIGHT, WIDTH))


def test_deformable_detr() -> None:
    """Sec. 4.1 and A.1, 8 heads, 4 points on each of 4 levels: the decoder projects fewer tokens than it samples."""
    encoder, self_attention, cross_attention = of("deformable-detr-r50")
    assert encoder == Complexity(
        "encoder self-attention",
        "deformable",
        6,
        LEVELS,
        LEVELS,
        {
            "N_q C^2": LEVELS * C**2,
            "min(N_k C^2, N_q L K C^2)": LEVELS * C**2,
            "5 N_q L K C": 5 * LEVELS * 16 * C,
            "3 N_q C M L K": 3 * LEVELS * C * 8 * 16,
        },
    )
    assert self_attention.terms == {"N_q C^2": 300 * C**2, "N_k C^2": 300 * C**2, "N_q N_k C": 300 * 300 * C}
    assert (cross_attention.num_queries, cross_attention.num_keys, cross_attention.layers) == (300, LEVELS, 6)
    assert cross_attention.terms["min(N_k C^2, N_q L K C^2)"] == min(LEVELS, 300 * 16) * C**2
    assert encoder.total == 6 * sum(encoder.terms.values())


@pytest.mark.parametrize("name", ["detr-r50", "conditional-detr-r50"])
def test_global_attention(name: str) -> None:
    """Sec. 3: quadratic in the number of tokens in the encoder, linear in the decoder."""
    rows = of(name)
    queries = preset(name).model.num_queries  # type: ignore[union-attr]
    assert [(row.kind, row.layers) for row in rows] == [("global", 6)] * 3
    assert rows[0].terms == {"N_q C^2": C5 * C**2, "N_k C^2": C5 * C**2, "N_q N_k C": C5**2 * C}
    assert rows[2].terms == {"N_q C^2": queries * C**2, "N_k C^2": C5 * C**2, "N_q N_k C": queries * C5 * C}


@pytest.mark.parametrize(
    ("name", "kind", "layers"),
    [("dab-detr-r50", "global", 6), ("dab-deformable-detr-r50", "deformable", 6), ("dino-r50-4scale", "deformable", 6)],
)
def test_decoder_layers_with_box_queries(name: str, kind: str, layers: int) -> None:
    """DAB-DETR and DINO wrap their layers."""
    rows = of(name)
    assert [(row.part, row.kind, row.layers) for row in rows[1:]] == [
        ("decoder self-attention", "global", layers),
        ("decoder cross-attention", kind, layers),
    ]
    queries = preset(name).model.num_queries  # type: ignore[union-attr]
    assert rows[1].terms["N_q N_k C"] == queries**2 * C


def test_row_column_attention() -> None:
    encoder, self_attention, cross_attention = of("anchor-detr-r50")
    assert (encoder.kind, self_attention.kind, cross_attention.kind) == ("row-column", "global", "row-column")
    assert cross_attention.terms["N_q (H + W) C"] == 900 * (7 + 11) * C


def test_models_without_attention_are_rejected() -> None:
    with pytest.raises(UserError, match="without attention"):
        of("faster-rcnn-tiny")
