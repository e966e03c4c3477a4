"""Peak memory of one training step beyond the model, on a CPU: python benchmarks/step_memory.py PRESET IMPLEMENTATION

The step runs in a process of its own, after a step on a small image that loads libraries and compiles kernels. Prints a
number: the largest resident memory during the step minus that before it, in MiB. Linux only.
"""

import argparse
import ctypes
import gc
import subprocess
import sys
from pathlib import Path

import torch
from model_peers import Case, in_precision, works

STATUS = Path("/proc/self/status")
SMALL = (128, 160)
"""(height, width) in pixels of the image of the first step."""


def resident_kib(field: str) -> int:
    """``VmRSS``, the resident memory, or ``VmHWM``, its maximum since ``reset_peak``, in KiB."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def reset_peak() -> None:
    """Return freed memory to the system, and begin a new maximum."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def measure(implementation: str, precision: str, case: Case) -> float:
    for size in (SMALL, case.image_size):
        run = works(case._replace(image_size=size), [implementation])[implementation]
        run = in_precision(run, case.device, precision)
        reset_peak()
        before = resident_kib("VmRSS")
        run()
        peak = resident_kib("VmHWM")
        del run
    return (peak - before) / 1024


def in_own_process(implementation: str, precision: str, case: Case) -> float:
    """``measure`` in a new process.

    Raises:
        CalledProcessError: with what it wrote to stderr.
    """
    size = [str(side) for side in case.image_size]
    command = [sys.executable, __file__, case.name, implementation, "--precision", precision, "--image-size", *size]
    command += ["--batch-size", str(case.batch_size)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("implementation", choices=("detrs", "grid_sample", "transformers", "torchvision"))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--image-size", type=int, nargs=2, default=(480, 640))
    parser.add_argument("--batch-size", type=int, default=1)
    arguments = parser.parse_args()
    size = (arguments.image_size[0], arguments.image_size[1])
    case = Case(arguments.preset, size, arguments.batch_size, True, torch.device("cpu"))
    print(f"{measure(arguments.implementation, arguments.precision, case):.0f}")


if __name__ == "__main__":
    main()
