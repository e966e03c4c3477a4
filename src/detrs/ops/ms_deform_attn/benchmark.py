"""Speed of multi-scale deformable attention, compared with other implementations in one process.

The shapes are those of Deformable DETR on ResNet-50 at 800 x 1333: four levels, 8 heads of 32 channels, 4 points. In
the encoder every pixel is a query. ``star`` locations are near their query, as in a trained encoder; ``uniform``
locations are anywhere, the worst case for caches. Implementations run round-robin, so that other load on
the machine affects all of them, and the median over the rounds is reported. In a round, each implementation has a
warm-up run, followed by timed runs for ``ROUND_S`` seconds, because a short run depends on what the previous run left
in the caches: in a network, the values have just been computed. A run above half a second is timed once per round,
without warm-up.
"""

import functools
import importlib.metadata
import importlib.util
import math
import multiprocessing
import re
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from detrs.errors import UserError
from detrs.ops import ms_deform_attn, ms_deform_attn_fused, use
from detrs.structures import Shapes

LEVELS: Shapes = ((100, 167), (50, 84), (25, 42), (13, 21))
HEADS, CHANNELS, POINTS = 8, 32, 4
ROUND_S = 0.05
ENCODER = 0
"""Number of queries that means one query per pixel."""


@dataclass(frozen=True)
class Case:
    """One case of the benchmark."""

    queries: int = ENCODER
    batch: int = 1
    locations: str = "star"
    dtype: str = "float32"
    """Dtype of the values; locations and weights are float32."""
    backward: bool = False

    @property
    def name(self) -> str:
        part = f"decoder {self.queries}" if self.queries else "encoder"
        direction = "forward + backward" if self.backward else "forward"
        return f"{part}, {self.batch} x, {self.locations}, {self.dtype}, {direction}"


QUICK = tuple(Case(queries, backward=backward) for queries in (ENCODER, 300) for backward in (False, True))
FULL = tuple(
    Case(queries, batch, locations, backward=backward)
    for queries in (ENCODER, 300, 900)
    for batch in (1, 2, 4)
    for locations in ("star", "uniform")
    for backward in (False, True)
)


class Inputs(NamedTuple):
    """Arguments of all implementations."""

    value: Tensor
    offsets: Tensor
    logits: Tensor
    reference_points: Tensor
    locations: Tensor
    weights: Tensor


def inputs(case: Case, device: torch.device | str) -> Inputs:
    """The tensors of ``case``, from a fixed random seed."""
    random = torch.Generator().manual_seed(0)
    sizes = torch.tensor([(w, h) for h, w in LEVELS], dtype=torch.float32)
    grids = [torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij") for h, w in LEVELS]
    pixels = torch.cat(
        [torch.stack([x / w, y / h], -1).reshape(-1, 2) for (y, x), (h, w) in zip(grids, LEVELS, strict=True)]
    )  # (S, 2)
    points = pixels if case.queries == ENCODER else torch.rand(case.queries, 2, generator=random)
    shape = (case.batch, len(points), HEADS, len(LEVELS), POINTS)
    reference_points = points[None, :, None].expand(case.batch, -1, len(LEVELS), -1).contiguous()
    if case.locations == "star":
        angle = torch.arange(HEADS) * (2 * math.pi / HEADS)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        steps = torch.arange(1, POINTS + 1)[:, None] * (direction / direction.abs().amax(-1, keepdim=True))[:, None]
        offsets = steps[:, None] + torch.randn(*shape, 2, generator=random)  # one pixel of noise
    else:
        offsets = (torch.rand(*shape, 2, generator=random) - reference_points[:, :, None, :, None]) * sizes[:, None]
    logits = torch.randn(shape, generator=random)
    locations = reference_points[:, :, None, :, None] + offsets / sizes[:, None]
    weights = logits.flatten(3).softmax(-1).view(shape)
    value = torch.randn(case.batch, len(pixels), HEADS, CHANNELS, generator=random)
    value = value.to(getattr(torch, case.dtype))
    return Inputs(*(x.to(device) for x in (value, offsets, logits, reference_points, locations, weights)))


def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return ms_deform_attn(value, LEVELS, locations, weights)


def around(operator: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Inputs], Tensor]:
    """A layer with an operator that is not fused: softmax and locations, then the operator."""

    def run(given: Inputs) -> Tensor:
        locations = given.reference_points[:, :, None, :, None] + given.offsets / _tables(LEVELS, given.value.device)[0]
        return operator(given.value, locations, given.logits.flatten(3).softmax(-1).view_as(given.logits))

    return run


def with_backend(name: str, run: Callable[[Inputs], Tensor]) -> Callable[[Inputs], Tensor]:
    def forced(given: Inputs) -> Tensor:
        with use(name):
            return run(given)

    return forced


def implementations(device_type: str) -> dict[str, Callable[[Inputs], Tensor]]:
    """Name -> implementation, for all that can run here. ``+`` means: with softmax and locations."""

    def plain(given: Inputs) -> Tensor:
        return attend(given.value, given.locations, given.weights)

    found: dict[str, Callable[[Inputs], Tensor]] = {
        "detrs": plain,
        "grid_sample": with_backend("reference", plain),
        "detrs fused +": lambda x: ms_deform_attn_fused(x.value, LEVELS, x.offsets, x.logits, x.reference_points),
        "detrs +": around(attend),
        "grid_sample +": with_backend("reference", around(attend)),
    }
    if device_type == "cuda" or shutil.which("g++"):  # required by torch.compile
        compiled = torch.compile(attend)
        found["compiled grid_sample"] = with_backend("reference", lambda x: compiled(x.value, x.locations, x.weights))
    if importlib.util.find_spec("deformops"):
        found["deformops"] = _deformops
    return found


@functools.cache
def _tables(levels: Shapes, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Size (w, h) of each level as (L, 1, 2), its shape and its first token.

    Cached, because nothing may be copied from the host while launches are recorded.
    """
    shapes = torch.tensor(levels, device=device)
    areas = shapes.prod(1)
    return shapes.flip(1)[:, None].float(), shapes, areas.cumsum(0) - areas


def _deformops(given: Inputs) -> Tensor:
    from deformops.registry import msda  # type: ignore[import-not-found,unused-ignore]

    _, shapes, starts = _tables(LEVELS, given.value.device)
    weights = given.weights.to(given.value.dtype)
    return msda(given.value, shapes, starts, given.locations, weights, method="linear")


LEARNED = ("value", "offsets", "logits", "locations", "weights")


def task(case: Case, run: Callable[[Inputs], Tensor], given: Inputs) -> Callable[[], object]:
    """The function to time: one run of ``case``."""
    if not case.backward:

        def forward() -> Tensor:
            with torch.no_grad():
                return run(given)

        return forward
    leaves = given._replace(**{name: getattr(given, name).detach().requires_grad_() for name in LEARNED})
    tensors = [getattr(leaves, name) for name in LEARNED]
    with torch.no_grad():
        upstream = torch.ones_like(run(given))
    return lambda: torch.autograd.grad(run(leaves), tensors, upstream, allow_unused=True)


@dataclass(frozen=True)
class CaseReport:
    """Medians of one case."""

    case: Case
    milliseconds: dict[str, float]
    peak_mib: dict[str, float]
    """Peak memory beyond the inputs."""
    device: str
    repeats: int
    versions: dict[str, str]

    def ratio(self, name: str, baseline: str = "detrs") -> float:
        """Time of an implementation relative to the baseline."""
        return self.milliseconds[name] / self.milliseconds[baseline]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, ready for ``json.dumps``."""
        return {"operator": "ms_deform_attn", "name": self.case.name, **asdict(self)}


def compare(case: Case, device: torch.device | str = "cpu", repeats: int = 7, *, memory: bool = True) -> CaseReport:
    """Time every implementation on one case.

    Args:
        case: The case.
        device: Device to run on.
        repeats: Number of rounds; each runs every implementation.
        memory: Also measures peak memory; on a CPU, each implementation in a separate process.

    Raises:
        UserError: ``repeats`` is below 1.
    """
    if repeats < 1:
        raise UserError(f"Expected at least 1 repeat, got {repeats}.")
    device = torch.device(device)
    given = inputs(case, device)
    chosen = implementations(device.type)
    if device.type == "cpu" and case.backward:
        chosen.pop("compiled grid_sample", None)  # compiles for minutes, and runs at half the speed of eager
    tasks = {name: task(case, run, given) for name, run in chosen.items()}
    for work in tasks.values():
        work()
    if device.type == "cuda":
        milliseconds = {name: _replayed(work, repeats) for name, work in tasks.items()}
    else:
        seconds: dict[str, list[float]] = {name: [] for name in tasks}
        for _ in range(repeats):
            for name, work in tasks.items():
                seconds[name].append(_seconds_per_run(work))
        milliseconds = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}
    measured = ("detrs", "grid_sample", "detrs fused +", "grid_sample +") if memory else ()
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    versions = {name: importlib.metadata.version(name) for name in ("detrs", "torch")}
    peaks = {name: _peak(case, name, str(device)) for name in measured}
    return CaseReport(case, milliseconds, peaks, where, repeats, versions)


def _seconds_per_run(work: Callable[[], object]) -> float:
    """Seconds per run: the mean over a round, or a single run if it is long."""
    began = time.perf_counter()
    work()
    alone = time.perf_counter() - began
    if alone > 10 * ROUND_S:
        return alone
    began, runs = time.perf_counter(), 0
    while runs == 0 or time.perf_counter() - began < ROUND_S:
        work()
        runs += 1
    return (time.perf_counter() - began) / runs


def _replayed(work: Callable[[], object], repeats: int) -> float:
    """Milliseconds on the device, without the host: launches are recorded once and replayed."""
    from triton.testing import do_bench_cudagraph  # type: ignore[import-untyped,unused-ignore]

    return float(do_bench_cudagraph(work, rep=20 * repeats, return_mode="median"))


def _peak(case: Case, name: str, device: str) -> float:
    """Peak memory in MiB of one run beyond its inputs."""
    if torch.device(device).type == "cuda":
        work = task(case, implementations("cuda")[name], inputs(case, device))
        work()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if not Path("/proc/self/status").exists():
        return math.nan
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_of_process, (case, name, torch.get_num_threads()))


def _peak_of_process(case: Case, name: str, threads: int) -> float:
    torch.set_num_threads(threads)
    run = implementations("cpu")[name]
    task(case, run, inputs(Case(queries=10, backward=case.backward), "cpu"))()  # imports and compiles
    work = task(case, run, inputs(case, "cpu"))
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    kept = work()
    del kept
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    """A value of /proc/self/status in KiB."""
    match = re.search(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), flags=re.MULTILINE)
    assert match
    return int(match[1])


def table(reports: list[CaseReport]) -> Table:
    """All cases as a table: milliseconds, and the ratio to detrs in parentheses."""
    names = list(dict.fromkeys(name for report in reports for name in report.milliseconds))
    shown = Table("case", *names, box=SIMPLE_HEAD)
    for column in shown.columns[1:]:
        column.justify = "right"
    for report in reports:
        cells = []
        for name in names:
            baseline = "detrs fused +" if name.endswith("+") else "detrs"
            has_ratio = name in report.milliseconds and name != baseline
            ratio = f" ({report.ratio(name, baseline):.1f}x)" if has_ratio else ""
            cells.append(f"{report.milliseconds[name]:.2f} ms{ratio}" if name in report.milliseconds else "-")
        shown.add_row(report.case.name, *cells)
    return shown
