import io
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from detrs import ops
from detrs.choices import Resolved
from detrs.errors import UserError
from detrs.evaluation.speed import UNLISTED_ATTENTION, SpeedReport, count_flops, profile
from detrs.layers.deformable_attention import DeformableAttention
from detrs.models.detector import Model
from detrs.structures import Pyramid

H, W, Q = 13, 19, 7


class Tiny(Model):
    """One of each: grouped and strided convolution, linear, attention three ways, a view of a parameter, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False).requires_grad_(False)
        self.grouped = nn.Conv2d(6, 10, (1, 3), padding=(0, 1), groups=2)
        self.norm = nn.BatchNorm2d(10)
        self.linear = nn.Linear(10, 12)
        self.queries = nn.Parameter(torch.randn(Q, 12))
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.seen: list[tuple[bool, tuple[int, ...], bool]] = []

    def objective(self, config: Any) -> Any:
        raise NotImplementedError

    def detect(self, images: Tensor, padding: Tensor, max_detections: int = 100) -> Any:
        return self(images, padding)

    def forward(self, images: Tensor, padding: Tensor) -> Tensor:
        self.seen.append((self.training, tuple(images.shape), bool(padding.any())))
        tokens = self.linear(self.norm(self.grouped(self.stem(images))).flatten(2).transpose(1, 2))  # (B, S, 12)
        queries = self.queries[None].expand(len(images), -1, -1)  # (B, Q, 12)
        queries = queries + self.attention(queries, queries, queries)[0]
        attended = F.scaled_dot_product_attention(queries, tokens, tokens)
        mask = torch.ones(Q, tokens.shape[1], dtype=torch.bool, device=tokens.device)
        masked = F.scaled_dot_product_attention(queries, tokens, tokens, attn_mask=mask)
        return torch.einsum("bqc,bsc->bqs", attended + masked, tokens)


def multiply_adds() -> int:
    """By hand, of one image."""
    h, w = 7, 10  # (13 + 1) / 2, (19 + 1) / 2
    s = h * w
    stem = s * 6 * 3 * 9
    grouped = s * 10 * (6 // 2) * 3
    linear = s * 10 * 12
    attention = 4 * Q * 12 * 12 + 2 * Q * Q * 12  # four projections; queries x keys, weights x values
    cross_attention = 2 * (2 * Q * s * 12)  # plain and masked
    return stem + grouped + linear + attention + cross_attention + Q * s * 12


@pytest.mark.parametrize("batch_size", [1, 3])
def test_work_is_counted_as_by_hand(batch_size: int) -> None:
    detector = Tiny()
    images, padding = torch.randn(batch_size, 3, H, W), torch.zeros(batch_size, H, W, dtype=torch.bool)
    for training in (True, False):
        assert count_flops(detector.train(training), images, padding) == batch_size * multiply_adds()
    assert profile(detector, (H, W), batch_size).gflops == multiply_adds() / 1e9


def test_attention_of_other_devices_is_counted() -> None:
    """Metal and the overridable operator, by their shapes; neither runs here."""
    batch, heads, queries, keys, channels, values = 2, 3, 5, 11, 7, 13
    sizes = ((queries, channels), (keys, channels), (keys, values))
    inputs = [torch.empty(batch, heads, *size, device="meta") for size in sizes]
    for operator in UNLISTED_ATTENTION:
        with FlopCounterMode(display=False, custom_mapping=UNLISTED_ATTENTION) as counter:
            operator(*inputs)
        assert counter.get_total_flops() == 2 * batch * heads * queries * keys * (channels + values)


def test_sampling_is_not_counted_with_any_backend() -> None:
    attention = DeformableAttention(64, num_heads=2, num_levels=2, num_points=4)
    shapes, queries = ((5, 7), (3, 2)), 11
    memory, query, point = torch.randn(1, 41, 64), torch.randn(1, queries, 64), torch.rand(1, queries, 2)

    class Sampling(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            padding, ratio = torch.zeros(1, 41, dtype=torch.bool), torch.ones(1, 2, 2)
            pyramid = Pyramid(tokens, tokens, torch.rand(1, 41, 2), padding, shapes, ratio, torch.tensor([[40, 56]]))
            return attention(query, point, pyramid)

    by_hand = 41 * 64 * 64 + queries * (64 * 64 + 64 * 2 * 2 * 4 * 3)
    for backend in ("reference", "gather", "numba"):
        with ops.use(backend):
            assert count_flops(Sampling(), memory) == by_hand


def test_parameters() -> None:
    report = profile(Tiny(), (H, W), repeats=1)
    learning = 10 * 3 * 3 + 10 + 2 * 10 + 10 * 12 + 12 + Q * 12 + 4 * 12 * 12 + 4 * 12
    assert report.trainable_parameters == learning
    assert report.parameters == learning + 6 * 3 * 9  # the frozen stem; running statistics are not parameters


def test_the_detector_is_left_as_it_was() -> None:
    detector = Tiny()
    frozen = [parameter.requires_grad for parameter in detector.parameters()]
    statistics = detector.norm.running_mean.clone()
    for training in (True, False):
        detector.train(training)
        profile(detector, (H, W), batch_size=2, repeats=3)
        assert detector.training == training
    assert [parameter.requires_grad for parameter in detector.parameters()] == frozen
    assert torch.equal(detector.norm.running_mean, statistics)
    assert torch.backends.mha.get_fastpath_enabled()
    assert detector.seen == 8 * [(False, (2, 3, H, W), False)]  # one pass to count and three to time, twice


def test_a_failing_detector_is_also_left_as_it_was() -> None:
    detector = Tiny()
    fitting, detector.linear = detector.linear, nn.Linear(11, 12)
    with pytest.raises(RuntimeError):
        profile(detector, (H, W))
    assert detector.training and detector.linear.weight.requires_grad and torch.backends.mha.get_fastpath_enabled()
    detector.linear = fitting
    with pytest.raises(RuntimeError):
        count_flops(detector, torch.randn(1, 4, H, W), torch.zeros(1, H, W))
    assert detector.training and detector.linear.weight.requires_grad and torch.backends.mha.get_fastpath_enabled()


def test_report() -> None:
    report = profile(Tiny(), (H, W), batch_size=2)
    assert report.latency_ms > 0
    assert report.images_per_s == pytest.approx(2 / report.latency_ms * 1e3)
    assert report.peak_memory_mib is None
    assert report.device.startswith("CPU, ")
    decoded = json.loads(json.dumps(report.to_json()))
    assert SpeedReport(**{**decoded, "image_size": tuple(decoded["image_size"])}) == report
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(report.table())
    text = console.export_text()
    assert f"{report.parameters:,}" in text and f"{H} x {W}" in text and "GPU" not in text


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_precision_is_that_of_the_forward_passes(precision: Resolved) -> None:
    class Cast(Tiny):
        def forward(self, images: Tensor, padding: Tensor) -> Tensor:
            dtypes.add(self.linear(torch.zeros(10)).dtype)
            return images

    dtypes: set[torch.dtype] = set()
    report = profile(Cast(), (H, W), repeats=1, precision=precision)
    assert report.precision == report.to_json()["precision"] == precision
    assert dtypes == {torch.bfloat16 if precision == "bf16" else torch.float32}


@pytest.mark.parametrize("bad", [{"image_size": (0, 5)}, {"batch_size": 0}, {"repeats": 0}])
def test_sizes_are_positive(bad: dict) -> None:
    with pytest.raises(UserError, match="must be at least 1"):
        profile(Tiny(), **{"image_size": (H, W), **bad})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_on_a_gpu() -> None:
    report = profile(Tiny(), (H, W), device="cuda")
    assert report.peak_memory_mib is not None and report.peak_memory_mib > 0
    assert report.device == torch.cuda.get_device_name()
