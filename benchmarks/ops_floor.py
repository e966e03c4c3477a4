"""The limit of the forward kernel on this CPU: python benchmarks/ops_floor.py

An encoder of the benchmark of the operator, one image, one thread, in nanoseconds per sample. With all samples at one
pixel, their pixels are in the L1 cache: what remains is the time of the instructions. Reading the four pixels of each
sample from the L2 cache takes at least their bytes divided by the rate at which this CPU reads from it, which is
measured by a dot product. Writes a table into README.md.
"""

import statistics
import time
from collections.abc import Callable

import page
import torch

from detrs.ops.ms_deform_attn.benchmark import CHANNELS, Case, Inputs, attend, inputs
from models import device_name

ROUNDS = 15
L2_BYTES, REPEATS = 2**20, 200
"""Size of the vector of the dot product, larger than L1 and smaller than L2, and products in a row."""
CORNERS = 4
LOCATIONS = {"one pixel": "star", "star": "star", "uniform": "uniform"}


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def l2_rate() -> float:
    """Bytes per second that one thread reads from the L2 cache."""
    x = torch.ones(L2_BYTES // 4)

    def run() -> None:
        for _ in range(REPEATS):
            torch.dot(x, x)

    return REPEATS * L2_BYTES / min(seconds(run) for _ in range(ROUNDS))


def times() -> dict[str, float]:
    """Median nanoseconds of each sample; the cases run in turn."""
    given: dict[str, Inputs] = {name: inputs(Case(locations=kind), "cpu") for name, kind in LOCATIONS.items()}
    given["one pixel"].locations.fill_(0.4)
    found: dict[str, list[float]] = {name: [] for name in given}
    for number in range(ROUNDS + 1):  # the first compiles
        for name, (value, _, _, _, locations, weights) in given.items():
            taken = seconds(lambda value=value, at=locations, by=weights: attend(value, at, by))  # type: ignore[misc]
            found[name] += [taken] * (number > 0)
    return {name: 1e9 * statistics.median(found[name]) / given[name].weights.numel() for name in found}


def main() -> None:
    threads, num_bytes = torch.get_num_threads(), CORNERS * CHANNELS * 4
    torch.set_num_threads(1)
    try:
        found, traffic, device = times(), 1e9 * num_bytes / l2_rate(), device_name(torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)
    instructions = found["one pixel"]
    rows = [
        [name, f"{time_:.1f}", f"{instructions / time_:.0%}", f"{traffic / time_:.0%}"] for name, time_ in found.items()
    ]
    header = ["locations", "ns per sample", "instructions alone", f"{num_bytes} bytes from L2"]
    text = (
        f"**{device}**, L2 read at {num_bytes / traffic:.0f} GB/s, so {num_bytes} bytes in "
        f"{traffic:.1f} ns.\n\n{page.table(header, rows)}"
    )
    print(text)
    page.put("ops floor", text, page.README)


if __name__ == "__main__":
    main()
