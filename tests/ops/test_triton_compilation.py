"""Machine code of the GPU kernels, compiled without a GPU. ``benchmarks/compiled.py`` prints the whole report."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def compiled() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "compiled.py"
    spec = importlib.util.spec_from_file_location("compiled", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not (module.NVIDIA_TOOLS / "nvdisasm").exists():
        pytest.skip("this Triton comes without a disassembler")
    return module


# Each takes seconds.
CASES = [
    ("forward", "plain", torch.float32, "sm_90"),
    ("forward", "box", torch.bfloat16, "sm_90"),
    ("backward", "box", torch.float32, "sm_90"),
    ("backward", "point", torch.float32, "sm_90"),
    ("add", "point", torch.bfloat16, "sm_90"),
    ("bin", "box", torch.float32, "sm_90"),
    ("accumulate_tile", "plain", torch.float32, "sm_90"),
    ("gather", "plain", torch.bfloat16, "sm_90"),
    ("forward", "plain", torch.float32, "sm_80"),
    ("forward", "box", torch.float32, "sm_80"),
    ("accumulate_tile", "plain", torch.bfloat16, "sm_80"),
    ("forward", "box", torch.bfloat16, "gfx942"),
    ("backward", "plain", torch.float32, "gfx942"),
    ("accumulate_tile", "plain", torch.float32, "gfx942"),
]


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's tools are for Linux")
@pytest.mark.parametrize(("kernel", "form", "dtype", "target"), CASES, ids=lambda x: str(x).removeprefix("torch."))
def test_nothing_spills_and_rows_are_read_sixteen_bytes_at_a_time(compiled, kernel, form, dtype, target) -> None:
    binned = kernel in ("bin", "accumulate_tile", "gather")
    launches = compiled.launches(form, dtype, target, binned)
    (launch,) = [launch for launch in launches if launch.kernel.__name__ == f"_{kernel}"]
    report = compiled.report(launch, target, form, dtype)
    assert report.spills == 0
    if kernel == "add":  # four additions in one instruction
        assert report.float_atomics == 64 and all("F32x4" in code for code in report.memory if code.startswith("RED"))
    else:
        assert report.float_atomics == 0
    if kernel != "bin":  # it reads scalars, not rows
        assert report.load_bytes == 16
    if kernel in ("forward", "accumulate_tile", "gather"):
        assert report.store_bytes == 16
    if kernel == "forward" and target != "gfx942":
        assert report.shared == 0 and not any(code.startswith(("BAR", "SHFL")) for code in report.memory)
    if (kernel, dtype, target) == ("forward", torch.float32, "sm_90"):
        assert report.per_point <= 24


def test_the_report_sees_narrow_accesses(compiled) -> None:
    launch = compiled.launches(channels=3, points=(1,))[0]
    assert compiled.report(launch, "sm_90", "plain", torch.float32).load_bytes == 4


@pytest.mark.parametrize("binned", [False, True], ids=["atomics", "binned"])
def test_other_numbers_and_sizes_compile_nothing_anew(compiled, binned) -> None:
    expected = [compiled.specialization(launch) for launch in compiled.launches("box", binned=binned, padding=True)]
    for queries, size in ((1, (5, 7)), (16, (1, 1)), (300, (16, 32)), (17, (8, 1))):
        launches = compiled.launches("box", binned=binned, padding=True, queries=queries, size=size)
        assert [compiled.specialization(launch) for launch in launches] == expected
