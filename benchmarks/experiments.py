"""The six experiments that decide what is open about the GPU kernels: python benchmarks/experiments.py [E1 E4 ...]

    E1  gradient of values: additions or owners, from which number of samples per row (``OWNERS_FROM``)
    E2  forward: channels of a query over few lanes or many, warps, queries in rows or in blocks of 8 x 8 pixels
    E3  values with tokens first or heads first
    E4  owners: side of a tile, samples per step, length of a piece, precision; what each of their kernels takes
    E5  fused or not, and what the host adds where launches are not recorded
    E6  peers, as far as they are installed

Each prints JSON lines. ``microseconds`` are those of the GPU alone, launches being recorded and replayed with warm
caches. ``floor`` is what the fewest bytes take at 4.3 TB/s, and ``share`` the part that it has in the time.
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

from detrs.evaluation import operators
from detrs.evaluation.operators import CHANNELS, ENCODER, HEADS, POINTS, Case

BANDWIDTH = 4.3e12
"""Bytes per second that an H200 can read."""

Line = dict[str, Any]
DEVICE = torch.device("cuda")
DTYPES = ("float32", "bfloat16")
PLACES = ("star", "uniform")


def microseconds(work: Callable[[], object]) -> float:
    """On the GPU alone."""
    from triton.testing import do_bench_cudagraph

    return 1e3 * do_bench_cudagraph(work, rep=20, return_mode="median")


def of_host(work: Callable[[], object], times: int = 100) -> float:
    """As a caller sees it who waits at the end."""
    work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        work()
    torch.cuda.synchronize()
    return 1e6 * (time.perf_counter() - began) / times


def of_kernels(work: Callable[[], object], times: int = 10) -> dict[str, float]:
    """Microseconds of each kernel."""
    work()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(times):
            work()
        torch.cuda.synchronize()
    return {event.key: event.device_time_total / times for event in profile.key_averages()}


def floor(case: Case, *parts: str) -> float:
    """Microseconds for the fewest bytes: each row of values that is touched, and everything else, once."""
    tokens = sum(h * w for h, w in operators.LEVELS)
    queries = (case.queries or tokens) * HEADS
    samples = queries * POINTS  # of each level
    element = getattr(torch, case.dtype).itemsize
    touched = sum(-h * w * HEADS * math.expm1(-4 * samples / (h * w * HEADS)) for h, w in operators.LEVELS)
    touched = tokens * HEADS if case.queries == ENCODER else touched
    sizes = {
        "value": touched * CHANNELS * element,
        "grad_value": tokens * HEADS * CHANNELS * element,
        "out": queries * CHANNELS * element,
        "locations": samples * len(operators.LEVELS) * 12,  # and weights
    }
    return 1e6 * case.batch * sum(sizes[part] for part in parts) / BANDWIDTH


FORWARD = ("value", "locations", "out")
BACKWARD = ("value", "locations", "out", "locations", "grad_value")
SCATTER = ("locations", "out", "grad_value")


def line(case: Case, time: float, parts: tuple[str, ...], **others: Any) -> Line:
    least = floor(case, *parts)
    return {**asdict(case), **others, "microseconds": time, "floor": least, "share": least / time if time else None}


def variant(**names: Any) -> ModuleType:
    """The kernels, compiled with other constants."""
    from detrs.ops.ms_deform_attn import triton_gpu

    spec = importlib.util.spec_from_file_location("variant", triton_gpu.__file__)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module).update(names)
    return module


def arguments(case: Case, order: Tensor | None = None) -> tuple:
    """What ``forward`` takes; ``order`` is another one of the queries."""
    given = operators.inputs(case, DEVICE)
    queries = [given.offsets.flatten(3, 4), given.logits.flatten(3), given.reference]
    if order is not None:
        queries = [x[:, order].contiguous() for x in queries]
    sizes = tuple(size for shape in operators.LEVELS for size in shape)
    return given.value, sizes, (POINTS,) * len(operators.LEVELS), *queries, None


def upstream(case: Case) -> Tensor:
    queries = case.queries or sum(h * w for h, w in operators.LEVELS)
    return torch.ones(case.batch, queries, HEADS * CHANNELS, dtype=getattr(torch, case.dtype), device=DEVICE)


def in_blocks(side: int = 8) -> Tensor:
    """Queries of an encoder, block after block of ``side`` x ``side`` pixels."""
    orders, before = [], 0
    for h, w in operators.LEVELS:
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        block = (y // side * (w // side + 1) + x // side).flatten()
        orders.append(before + block.argsort(stable=True))
        before += h * w
    return torch.cat(orders).to(DEVICE)


def e1() -> Iterator[Line]:
    kernels = variant()
    for queries, batch, locations, dtype in itertools.product((ENCODER, 300, 900, 3000), (1, 2), PLACES, DTYPES):
        case = Case(queries, batch, locations, dtype)
        given, grad = kernels._given(*arguments(case)), upstream(case)
        for way in ("additions", "owners"):
            time = microseconds(partial(getattr(kernels, f"_by_{way}"), grad, given))
            yield line(case, time, SCATTER, way=way)


def e2() -> Iterator[Line]:
    for locations, dtype in itertools.product(PLACES, DTYPES):
        case = Case(ENCODER, 1, locations, dtype)
        size = getattr(torch, dtype).itemsize
        given = {"rows": arguments(case), "blocks": arguments(case, in_blocks())}
        for order, parts, warps in itertools.product(("rows", "blocks"), (1, 2, 4), (1, 2, 4)):
            lanes = max(1, CHANNELS // parts * size // 16)
            tile = {"TILE": 32 // lanes * warps, "PARTS": parts, "WIDTH": CHANNELS // parts, "num_warps": warps}
            kernels = variant(tiling=lambda channels, size, tile=tile: {"D": channels, **tile})
            yield line(case, microseconds(partial(kernels.forward, *given[order])), FORWARD, order=order, **tile)


def e3() -> Iterator[Line]:
    kernels = variant()
    for locations, dtype in itertools.product(PLACES, DTYPES):
        case = Case(ENCODER, 1, locations, dtype)
        value, *rest = arguments(case)
        for first in ("tokens", "heads"):
            value = value.transpose(1, 2).contiguous().transpose(1, 2) if first == "heads" else value
            yield line(case, microseconds(partial(kernels.forward, value, *rest)), FORWARD, first=first)


def e4() -> Iterator[Line]:
    import triton.language as tl

    for locations, dtype in itertools.product(PLACES, DTYPES):
        case = Case(ENCODER, 1, locations, dtype)
        key = getattr(torch, dtype)
        usual = {"side": 8, "step": 64 if dtype == "float32" else 128, "piece": 1024, "precision": "tf32x3"}
        others = [{"side": 4}, {"side": 16}, {"step": 192 - usual["step"]}, {"piece": 256}, {"piece": 4096}]
        others += [{"precision": "tf32"}] if dtype == "float32" else []
        for chosen in [{}, *others]:
            setting = {**usual, **chosen}
            kernels = variant(
                SIDE=tl.constexpr(setting["side"]),
                CELLS=tl.constexpr(setting["side"] - 1),
                PIECE=tl.constexpr(setting["piece"]),
                STEPS={key: setting["step"]},
                DOT_PRECISION=setting["precision"],
            )
            given, grad = kernels._given(*arguments(case)), upstream(case)
            with too_large() as failed:
                yield line(case, microseconds(partial(kernels._by_owners, grad, given)), SCATTER, **setting)
            if failed:
                yield {**asdict(case), **setting, "failed": str(failed[0])}
            elif not chosen:
                for name, time in of_kernels(partial(kernels._by_owners, grad, given)).items():
                    yield {**asdict(case), "kernel": name, "microseconds": time}


@contextmanager
def too_large() -> Iterator[list[Exception]]:
    """Tiles for which a GPU has too little memory or too few registers are a result, too."""
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
        given = operators.inputs(case, DEVICE)
        for name in ("detrs fused +", "detrs +", "grid_sample +"):
            work = operators.task(case, operators.implementations(DEVICE.type)[name], given)
            parts = FORWARD + BACKWARD if backward else FORWARD
            yield line(case, microseconds(work), parts, implementation=name, host=of_host(work))


def e6() -> Iterator[Line]:
    for queries, batch, locations, dtype, backward in itertools.product(
        (ENCODER, 300, 900), (1, 2, 4, 8), PLACES, DTYPES, (False, True)
    ):
        case = Case(queries, batch, locations, dtype, backward)
        given = operators.inputs(case, DEVICE)
        torch.compiler.reset()  # which would give up after some sizes
        for name, run in operators.implementations(DEVICE.type).items():
            if "compiled" in name and (batch, locations) != (1, "star"):
                continue  # each takes long to compile
            time = microseconds(operators.task(case, run, given))
            yield line(case, time, FORWARD + BACKWARD if backward else FORWARD, implementation=name)


EXPERIMENTS = {"E1": e1, "E2": e2, "E3": e3, "E4": e4, "E5": e5, "E6": e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="*", help="all, unless some are named")
    chosen = parser.parse_args().experiment or list(EXPERIMENTS)
    if unknown := set(chosen) - set(EXPERIMENTS):
        parser.error(f"there is no {', '.join(sorted(unknown))}, only: {', '.join(EXPERIMENTS)}")
    if not torch.cuda.is_available():
        raise SystemExit("These experiments time kernels on a GPU, and PyTorch finds none on this machine.")
    for name in chosen:
        for found in EXPERIMENTS[name]():
            gpu = torch.cuda.get_device_name(DEVICE)
            print(json.dumps({"experiment": name, "gpu": gpu, **found}), flush=True)


if __name__ == "__main__":
    main()
