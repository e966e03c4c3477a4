"""Our deformable convolution and torchvision's on the CPU: ``python benchmarks/deformable_convolution.py``.

Modulated 3x3 convolutions of the sizes in ``dynamic-detr-tiny`` and ``dynamic-detr-r50``, forward, and forward and
backward, measured round-robin. Prints a Markdown table of medians in milliseconds with the ratio to detrs; takes two
minutes.
"""

import statistics
import time
from collections.abc import Callable

import page
import torch
import torchvision
from torch import Tensor

from detrs.layers.deformable_convolution import deform_conv2d

CASES = ((8, 64, 16, 24, 1), (8, 64, 32, 48, 2), (1, 256, 100, 136, 1), (1, 256, 100, 136, 2))
"""Images, channels, height, width and stride."""
ROUNDS = 7


def inputs(images: int, channels: int, height: int, width: int, stride: int) -> list[Tensor]:
    """Map, offsets, modulation, weight and bias."""
    torch.manual_seed(0)
    h, w = (height - 1) // stride + 1, (width - 1) // stride + 1
    tensors = (
        torch.randn(images, channels, height, width),
        torch.randn(images, 18, h, w),
        torch.rand(images, 9, h, w),
        torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5,
        torch.zeros(channels),
    )
    return [tensor.requires_grad_() for tensor in tensors]


def seconds(function: Callable[[], Tensor], tensors: list[Tensor], backward: bool) -> float:
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        result = function()
    if backward:
        torch.autograd.grad(result, tensors, torch.ones_like(result))
    return time.perf_counter() - start


def main() -> None:
    rows = []
    for case in CASES:
        tensors, stride = inputs(*case), case[-1]
        x, offsets, modulation, weight, bias = tensors
        functions = {
            "detrs": lambda: deform_conv2d(x, offsets, modulation, weight, bias, stride, 1),  # noqa: B023
            "torchvision": lambda: torchvision.ops.deform_conv2d(x, offsets, weight, bias, stride, 1, mask=modulation),  # noqa: B023
        }
        torch.testing.assert_close(functions["detrs"](), functions["torchvision"](), atol=1e-4, rtol=1e-4)
        for backward in (False, True):
            taken: dict[str, list[float]] = {name: [] for name in functions}
            for turn in range(ROUNDS + 1):  # the first compiles
                for name, function in functions.items():
                    value = seconds(function, tensors, backward)
                    if turn:
                        taken[name].append(1000 * value)
            ours, theirs = (statistics.median(taken[name]) for name in functions)
            what = "forward + backward" if backward else "forward"
            sizes = f"{case[0]} x {case[1]} x {case[2]} x {case[3]}, stride {stride}, {what}"
            rows.append([sizes, f"{ours:.1f}", f"{theirs:.1f} ({theirs / ours:.1f}x)"])
    print(f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}, torchvision {torchvision.__version__}\n")
    print(page.table(["case", "detrs", "torchvision"], rows))


if __name__ == "__main__":
    main()
