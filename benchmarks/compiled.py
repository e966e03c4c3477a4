"""Compiles the GPU kernels ahead of time, without a GPU, and reports on their machine code.

    python benchmarks/compiled.py

prints a JSON line for each kernel, dtype and GPU. The launches are those of the library, recorded with CPU tensors and
compiled for the types and alignments that Triton would infer from them.
"""

import argparse
import collections
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from detrs.ops.ms_deform_attn import triton_gpu
from detrs.ops.ms_deform_attn.inputs import Inputs

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
KERNELS = ("forward", "backward", "add", "bin", "accumulate_tile", "gather")
FORMS = ("plain", "point", "box")
DTYPES = ("float32", "bfloat16", "float16")
NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Launch(NamedTuple):
    kernel: JITFunction
    arguments: tuple
    options: dict[str, Any]


class Report(NamedTuple):
    kernel: str
    form: str
    dtype: str
    target: str
    instructions: int
    """Static count of machine instructions."""
    per_point: float | None
    """Machine instructions that a warp executes per sampling point and query; of ``accumulate_tile``, per sample."""
    registers: int
    spills: int
    """Bytes of spilled registers."""
    shared: int
    """Bytes of shared memory."""
    load_bytes: int
    """Bytes of the widest access to global memory by one lane."""
    store_bytes: int
    float_atomics: int
    memory: dict[str, int]
    """Instructions that access memory or synchronize."""


def launches(
    form: str = "plain",
    dtype: torch.dtype = torch.float32,
    target: str = "sm_90",
    binned: bool = False,
    channels: int = 32,
    points: tuple[int, ...] = (4, 4, 4, 4),
    padding: bool = False,
    queries: int = 64,
    size: tuple[int, int] = (5, 7),
) -> list[Launch]:
    """All launches of a forward and a backward pass with 8 heads."""
    heads, levels = 8, len(points)
    shapes = (size,) * levels
    tokens = size[0] * size[1] * levels
    value = torch.zeros(2, tokens, heads, channels, dtype=dtype)
    locations = torch.zeros(2, queries, heads, sum(points), 2)
    reference_points = None if form == "plain" else torch.zeros(2, queries, levels, 4 if form == "box" else 2)
    padded = torch.zeros(2, tokens, dtype=torch.bool) if padding else None
    inputs = Inputs(value, shapes, points, locations, locations[..., 0].contiguous(), reference_points, padded)
    needs = (True, True, True, reference_points is not None)
    with recorded(target) as found, mock.patch.object(triton_gpu, "use_binned_backward", lambda *_: binned):
        out = triton_gpu.forward(inputs)
        triton_gpu.backward(torch.zeros_like(out), inputs, needs)
    return found


@contextmanager
def recorded(target: str) -> Iterator[list[Launch]]:
    """Records launches in a list instead of running them, as for a GPU of this type."""
    found: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: JITFunction) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]):
            return lambda *arguments, **options: found.append(Launch(self.kernel, arguments, options))

    kernels = {f"_{name}": Recorder(getattr(triton_gpu, f"_{name}")) for name in KERNELS}
    precision = "ieee" if TARGETS[target].backend == "hip" else "tf32x3"
    with mock.patch.multiple(triton_gpu, WARP_SIZE=TARGETS[target].warp_size, DOT_PRECISION=precision, **kernels):
        yield found


def compiled(launch: Launch, target: str = "sm_90") -> Any:
    """The kernel as Triton compiles it for this launch."""
    options, source = _source(launch, target)
    return triton.compile(source, target=TARGETS[target], options=options.__dict__)


def specialization(launch: Launch, target: str = "sm_90") -> str:
    """The key by which Triton caches compiled kernels."""
    options, source = _source(launch, target)
    return f"{source.hash()} {options}"


def _source(launch: Launch, target: str) -> tuple[Any, ASTSource]:
    backend = make_backend(TARGETS[target])
    kernel = launch.kernel
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    options = {"debug": False, "instrumentation_mode": "", **launch.options}
    bound, specialized, options = bind(*launch.arguments, **options)
    options, signature, constants, attributes = kernel._pack_args(backend, options, bound, specialized, options)
    return options, ASTSource(kernel, signature, constants, attributes)


def report(launch: Launch, target: str, form: str, dtype: torch.dtype) -> Report:
    binary = compiled(launch, target)
    name = launch.kernel.__name__.strip("_")
    opcodes, looped, resources = (_amd if target.startswith("gfx") else _nvidia)(binary)
    options = launch.options
    per_point = None
    if looped is not None and name in ("forward", "backward", "add"):  # all loops are over the points of a level
        executed = sum(opcodes.values()) + looped * (options["points"][0] - 1)
        per_point = round(executed * options["num_warps"] / (options["TILE"] * options["K"]), 2)
    elif looped is not None and name == "accumulate_tile":
        per_point = round(looped * options["num_warps"] / options["STEP"], 2)
    return Report(
        kernel=name,
        form=form,
        dtype=str(dtype).removeprefix("torch."),
        target=target,
        instructions=sum(opcodes.values()),
        per_point=per_point,
        shared=binary.metadata.shared,
        memory={code: count for code, count in sorted(opcodes.items()) if MEMORY.match(code)},
        **resources,
    )


MEMORY = re.compile(
    r"LDG|STG|LDL|STL|LDS|STS|RED|ATOM|SHFL|BAR|LDGSTS|HGMMA|HMMA|global_|flat_|buffer_|ds_|scratch_|s_barrier|v_mfma"
)


def _widest(opcodes: collections.Counter, pattern: str, widths: dict[str, int]) -> int:
    found = [match for code in opcodes if (match := re.match(pattern, code))]
    return max((widths.get(match.group(1) or "", 4) for match in found), default=0)


def _nvidia(binary: Any) -> tuple[collections.Counter, int | None, dict[str, int]]:
    """Counts in machine code (SASS), disassembled by the tool in Triton's wheel.

    Returns:
        Number of each instruction, number of instructions in loops (spanned by a backward branch), and resources.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        code = _run("nvdisasm", "-c", file.name)
        usage = _run("cuobjdump", "-res-usage", file.name)
    lines, labels, loops = [], {}, []
    for line in code.splitlines():
        if label := re.match(r"(\.L_\w+):", line):
            labels[label.group(1)] = len(lines)
        if instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line):
            target = re.search(r"BRA.*`\((\.L_\w+)\)", line)
            if target and target.group(1) in labels:
                loops.append((labels[target.group(1)], len(lines)))
            lines.append(instruction.group(1))
    loops = [
        (begin, end) for begin, end in loops if end - begin > 1
    ]  # the last instruction of a kernel jumps to itself
    looped = sum(any(begin <= number <= end for begin, end in loops) for number in range(len(lines)))
    opcodes = collections.Counter(line for line in lines if line != "NOP")
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage).group(1)) for name in ("REG", "STACK"))
    local = sum(count for code, count in opcodes.items() if code.startswith(("LDL", "STL")))
    widths = {"128": 16, "64": 8, "U16": 2, "U8": 1}
    return (
        opcodes,
        looped,
        {
            "registers": registers,
            "spills": max(stack, 4 * local),
            "load_bytes": _widest(
                opcodes, r"(?:LDG|LDGSTS)\.E(?:\.BYPASS)?(?:\.LTC128B)?(?:\.(128|64|U16|U8))?", widths
            ),
            "store_bytes": _widest(opcodes, r"STG\.E(?:\.(128|64|U16|U8))?", widths),
            "float_atomics": sum(
                c for code, c in opcodes.items() if re.match(r"(RED|ATOM).*(\.F32|\.F16|\.BF16)", code)
            ),
        },
    )


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([NVIDIA_TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout


def _amd(binary: Any) -> tuple[collections.Counter, None, dict[str, int]]:
    """Counts in LLVM assembly."""
    code = binary.asm["amdgcn"]
    opcodes = collections.Counter(re.findall(r"^\t((?:v|s|global|flat|buffer|ds|scratch)_\w+)", code, re.MULTILINE))
    number = {name: int(re.search(rf"\.{name}:\s*(\d+)", code).group(1)) for name in ("vgpr_count", "vgpr_spill_count")}
    scratch = int(re.search(r"\.private_segment_fixed_size:\s*(\d+)", code).group(1))
    widths = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4}
    return (
        opcodes,
        None,
        {
            "registers": number["vgpr_count"],
            "spills": max(scratch, 4 * number["vgpr_spill_count"]),
            "load_bytes": _widest(opcodes, r"(?:global|buffer)_load_(\w+)", widths),
            "store_bytes": _widest(opcodes, r"(?:global|buffer)_store_(\w+)", widths),
            "float_atomics": sum(c for code, c in opcodes.items() if re.match(r"\w+_atomic_\w*(f32|f16|bf16)", code)),
        },
    )


def reports(form: str, dtype: torch.dtype, target: str) -> Iterator[Report]:
    """All kernels: forward, backward, and both methods for the gradient of the value."""
    both = launches(form, dtype, target, binned=False) + launches(form, dtype, target, binned=True)
    for launch in {launch.kernel.__name__: launch for launch in both}.values():
        yield report(launch, target, form, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--form", nargs="+", choices=FORMS, default=["plain", "box"])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES[:2])
    chosen = parser.parse_args()
    for target in chosen.target:
        for form in chosen.form:
            for dtype in chosen.dtype:
                for line in reports(form, getattr(torch, dtype), target):
                    print(json.dumps(line._asdict()), flush=True)


if __name__ == "__main__":
    main()
