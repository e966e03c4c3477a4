"""Six experiments on the design choices of the GPU kernels: python benchmarks/experiments.py [E1 E4 ...]

    E1  gradient of the value: atomics or binned, by the number of samples per row (``BINNED_FROM``)
    E2  lanes per query and warps of each kernel by queries, fused or not, queries in rows or in blocks of 8 x 8 pixels
    E3  token-major or head-major values
    E4  binned: side of a tile, samples per step, length of a chunk, queries per program, precision; time of each kernel
    E5  fused or not, and the overhead of the host if launches are not recorded
    E6  other implementations, if installed

Each prints JSON lines. ``microseconds`` are those of the GPU alone: launches are recorded and replayed with warm
caches. ``lower_bound`` is the time for the minimal memory traffic at 4.3 TB/s, and ``efficiency`` its ratio to the
measured time.
"""

import argparse
import importlib.util
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from detrs.ops.ms_deform_attn import benchmark
from detrs.ops.ms_deform_attn.benchmark import CHANNELS, ENCODER, HEADS, POINTS, Case
from detrs.ops.ms_deform_attn.inputs import Inputs

WARP_SIZE = 64 if torch.version.hip else 32
BANDWIDTH = 4.3e12
"""Memory bandwidth of an H200 in bytes per second."""

Line = dict[str, Any]
DEVICE = torch.device("cuda")
DTYPES = ("float32", "bfloat16")
LOCATIONS = ("star", "uniform")


def microseconds(work: Callable[[], object]) -> float:
    """Of the GPU alone."""
    from triton.testing import do_bench_cudagraph

    return 1e3 * do_bench_cudagraph(work, rep=20, return_mode="median")


def host_microseconds(work: Callable[[], object], times: int = 100) -> float:
    """Including the host: the mean of several calls and one synchronization."""
    work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        work()
    torch.cuda.synchronize()
    return 1e6 * (time.perf_counter() - began) / times


def kernel_microseconds(work: Callable[[], object], times: int = 10) -> dict[str, float]:
    """Microseconds of each kernel."""
    work()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(times):
            work()
        torch.cuda.synchronize()
    return {event.key: event.device_time_total / times for event in profile.key_averages()}


def lower_bound(case: Case, *parts: str) -> float:
    """Microseconds for the minimal memory traffic: each sampled row of the value and everything else once."""
    tokens = sum(h * w for h, w in benchmark.LEVELS)
    queries = (case.queries or tokens) * HEADS
    samples = queries * POINTS  # of each level
    element = getattr(torch, case.dtype).itemsize
    touched = sum(-h * w * HEADS * math.expm1(-4 * samples / (h * w * HEADS)) for h, w in benchmark.LEVELS)
    touched = tokens * HEADS if case.queries == ENCODER else touched
    sizes = {
        "value": touched * CHANNELS * element,
        "grad_value": tokens * HEADS * CHANNELS * element,
        "out": queries * CHANNELS * element,
        "locations": samples * len(benchmark.LEVELS) * 12,  # and weights
    }
    return 1e6 * case.batch * sum(sizes[part] for part in parts) / BANDWIDTH


FORWARD = ("value", "locations", "out")
BACKWARD = ("value", "locations", "out", "locations", "grad_value")
SCATTER = ("locations", "out", "grad_value")


def line(case: Case, time: float, parts: tuple[str, ...], **others: Any) -> Line:
    bound = lower_bound(case, *parts)
    return {
        **asdict(case),
        **others,
        "microseconds": time,
        "lower_bound": bound,
        "efficiency": bound / time if time else None,
    }


def variant(**names: Any) -> ModuleType:
    """The kernels, compiled with other values of their constants."""
    from detrs.ops.ms_deform_attn import triton_gpu

    spec = importlib.util.spec_from_file_location("variant", triton_gpu.__file__)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module).update(names)
    return module


def arguments(case: Case, order: Tensor | None = None, form: str = "point") -> Inputs:
    """Arguments of ``forward``: locations and weights ("plain"), or offsets and logits around points ("point");
    ``order`` permutes the queries."""
    given = benchmark.inputs(case, DEVICE)
    if form == "plain":
        queries: list[Tensor | None] = [given.locations.flatten(3, 4), given.weights.flatten(3), None]
    else:
        queries = [given.offsets.flatten(3, 4), given.logits.flatten(3), given.reference_points]
    if order is not None:
        queries = [x if x is None else x[:, order].contiguous() for x in queries]
    return Inputs(given.value, benchmark.LEVELS, (POINTS,) * len(benchmark.LEVELS), *queries, None)


def upstream(case: Case) -> Tensor:
    queries = case.queries or sum(h * w for h, w in benchmark.LEVELS)
    return torch.ones(case.batch, queries, HEADS * CHANNELS, dtype=getattr(torch, case.dtype), device=DEVICE)


def in_blocks(side: int = 8) -> Tensor:
    """Queries of an encoder, block after block of ``side`` x ``side`` pixels."""
    orders, before = [], 0
    for h, w in benchmark.LEVELS:
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        block = (y // side * (w // side + 1) + x // side).flatten()
        orders.append(before + block.argsort(stable=True))
        before += h * w
    return torch.cat(orders).to(DEVICE)


def e1() -> Iterator[Line]:
    kernels = variant()
    for queries, batch, locations, dtype in itertools.product((ENCODER, 300, 900, 3000), (1, 2), LOCATIONS, DTYPES):
        case = Case(queries, batch, locations, dtype)
        inputs, grad = kernels._prepared(arguments(case)), upstream(case)
        for way in ("atomics", "bins"):
            time = microseconds(partial(getattr(kernels, f"_by_{way}"), grad, inputs))
            yield line(case, time, SCATTER, way=way)


def e2() -> Iterator[Line]:
    for form, dtype, parts, warps in itertools.product(("plain", "point"), DTYPES, (1, 2, 4), (1, 2, 4)):
        case = Case(ENCODER, 1, "star", dtype)
        size = getattr(torch, dtype).itemsize
        orders = {"rows": None, "blocks": in_blocks()} if form == "point" else {"rows": None}

        def tiling(channels: int, size: int, parts: int = parts, warps: int = warps) -> dict[str, int]:
            width = channels // parts
            tile = WARP_SIZE // max(1, width * size // 16) * warps
            return {"D": channels, "TILE": tile, "PARTS": parts, "WIDTH": width, "num_warps": warps}

        kernels = variant(tiling=tiling)
        for order, permutation in orders.items():
            inputs, grad = kernels._prepared(arguments(case, permutation, form)), upstream(case)
            works = {
                "forward": (partial(kernels.forward, inputs), FORWARD),
                "backward": (partial(kernels.backward, grad, inputs, (False, True, True, False)), FORWARD),
                "add": (partial(kernels._by_atomics, grad, inputs), SCATTER),
            }
            for name, (work, bytes_of) in works.items():
                others = {"form": form, "kernel": name, "order": order, **tiling(CHANNELS, size)}
                yield line(case, microseconds(work), bytes_of, **others)


def e3() -> Iterator[Line]:
    kernels = variant()
    for locations, dtype in itertools.product(LOCATIONS, DTYPES):
        case = Case(ENCODER, 1, locations, dtype)
        inputs = arguments(case)
        head_major = inputs.value.transpose(1, 2).contiguous().transpose(1, 2)
        for major, given in (("tokens", inputs), ("heads", inputs._replace(value=head_major))):
            yield line(case, microseconds(partial(kernels.forward, given)), FORWARD, major=major)


def e4() -> Iterator[Line]:
    import triton.language as tl

    for locations, dtype in itertools.product(LOCATIONS, DTYPES):
        case = Case(ENCODER, 1, locations, dtype)
        key = getattr(torch, dtype)
        usual = {"side": 8, "step": 64 if dtype == "float32" else 128, "chunk": 1024, "queries": 64}
        usual["precision"] = "tf32x3"
        others = [{"side": 4}, {"side": 16}, {"step": 192 - usual["step"]}, {"chunk": 256}, {"chunk": 4096}]
        others += [{"queries": queries} for queries in (32, 128, 256)]
        others += [{"precision": "tf32"}] if dtype == "float32" else []
        for chosen in [{}, *others]:
            setting = {**usual, **chosen}
            kernels = variant(
                TILE_SIDE=tl.constexpr(setting["side"]),
                BIN_SIDE=tl.constexpr(setting["side"] - 1),
                CHUNK=tl.constexpr(setting["chunk"]),
                STEPS={key: setting["step"]},
                DOT_PRECISION=setting["precision"],
                QUERIES_TO_BIN=setting["queries"],
            )
            inputs, grad = kernels._prepared(arguments(case)), upstream(case)
            with too_large() as failed:
                yield line(case, microseconds(partial(kernels._by_bins, grad, inputs)), SCATTER, **setting)
            if failed:
                yield {**asdict(case), **setting, "failed": str(failed[0])}
            elif not chosen:
                for name, time in kernel_microseconds(partial(kernels._by_bins, grad, inputs)).items():
                    yield {**asdict(case), "kernel": name, "microseconds": time}


@contextmanager
def too_large() -> Iterator[list[Exception]]:
    """Collects the error of a tile that exceeds the shared memory or registers of the GPU."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources

    found: list[Exception] = []
    try:
        yield found
    except (OutOfResources, CompilationError) as error:
        found.append(error)


def e5() -> Iterator[Line]:
    for queries, backward in itertools.product((ENCODER, 300), (False, True)):
        case = Case(queries, backward=backward)
        given = benchmark.inputs(case, DEVICE)
        for name in ("detrs fused +", "detrs +", "grid_sample +"):
            work = benchmark.task(case, benchmark.implementations(DEVICE.type)[name], given)
            parts = FORWARD + BACKWARD if backward else FORWARD
            yield line(case, microseconds(work), parts, implementation=name, host=host_microseconds(work))


def e6() -> Iterator[Line]:
    for queries, batch, locations, dtype, backward in itertools.product(
        (ENCODER, 300, 900), (1, 2, 4, 8), LOCATIONS, DTYPES, (False, True)
    ):
        case = Case(queries, batch, locations, dtype, backward)
        given = benchmark.inputs(case, DEVICE)
        torch.compiler.reset()  # it stops compiling after several sizes
        for name, run in benchmark.implementations(DEVICE.type).items():
            if "compiled" in name and (batch, locations) != (1, "star"):
                continue  # each compiles for minutes
            time = microseconds(benchmark.task(case, run, given))
            yield line(case, time, FORWARD + BACKWARD if backward else FORWARD, implementation=name)


EXPERIMENTS = {"E1": e1, "E2": e2, "E3": e3, "E4": e4, "E5": e5, "E6": e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="*", help="default: all")
    chosen = parser.parse_args().experiment or list(EXPERIMENTS)
    if unknown := set(chosen) - set(EXPERIMENTS):
        parser.error(f"unknown experiment {', '.join(sorted(unknown))}, expected: {', '.join(EXPERIMENTS)}")
    if not torch.cuda.is_available():
        raise SystemExit("The experiments time kernels on a GPU, but CUDA is not available.")
    for name in chosen:
        for found in EXPERIMENTS[name]():
            gpu = torch.cuda.get_device_name(DEVICE)
            print(json.dumps({"experiment": name, "gpu": gpu, **found}), flush=True)


if __name__ == "__main__":
    main()
