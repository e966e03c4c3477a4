"""Runs one cell of the fault matrix: the fault, the resumed run, the comparison."""

import random
from pathlib import Path

import faults
from faults import MOMENTS
from sandbox import Result, Sandbox

FAULTS = ("F1", "F2", "F3", "F4", "F5", "F6", "F7", "F8", "F9", "F10", "F11", "F12", "F13", "F14", "F15", "F16")
IN_ONE_PROCESS = tuple(fault for fault in FAULTS if fault != "F15")
"""F15, a lost peer, needs a launcher: ``test_processes.py``."""
OFFSETS = 20
"""Random bytes at which a save is killed, divided among the moments."""

ENDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "F1": ("exit", ()),
    "F2": ("exit", ()),
    "F3": ("killed", ()),
    "F4": ("killed", ()),
    "F5": ("error", ("No space left on device", "bytes", "free", ".safetensors")),
    "F6": ("error", (".safetensors",)),
    "F7": ("ok", ()),
    "F8": ("error", ("loader process died", "out of memory", "--workers")),
    "F9": ("error", ("no batch for", "--workers 0")),
    "F10": ("error", ("--shm-size",)),
    "F11": ("error", ("out of memory", "--batch-size")),
    "F12": ("killed", ()),
    "F13": ("ok", ()),
    "F14": ("ok", ()),
    "F16": ("ok", ()),
}
"""How the disturbed process ends, and what its message contains."""
CODES = {"F1": 143, "F2": 130}


def cell(sandbox: Sandbox, fault: str, moment: str, folder: Path, expected: Path) -> str:
    """Empty if the fault was survived bit-exactly, otherwise what went wrong."""
    if fault == "F4":
        return killed_saves(sandbox, moment, folder, expected)
    output = folder / "run"
    end = sandbox.run("faults", "cause_of", {"fault": fault, "output": str(output), "moment": moment})
    kind, parts = ENDS[fault]
    if end.kind != kind or not all(part in str(end.value) for part in parts):
        return f"expected {kind} {parts}, got {end.kind}: {end.value}"
    if fault in CODES and end.code != CODES[fault]:
        return f"expected the exit code {CODES[fault]}, got {end.code}"
    if fault == "F7":
        faults.damage(str(output), ("truncated", "flipped", "zeros")[MOMENTS.index(moment)])
    if fault == "F13":
        refused = sandbox.run("faults", "other_data", {"output": str(output)})
        if refused.kind != "error" or "has changed" not in refused.value:
            return f"changed data: {refused.kind}: {refused.value}"
    if fault == "F12":
        expected = folder / "expected"
        sandbox.run("faults", "poisoned", {"output": str(expected), "moment": moment, "kills": False})
        again = sandbox.run("faults", "poisoned", {"output": str(output), "moment": moment, "kills": False})
    else:
        again = sandbox.run("faults", "resume", {"output": str(output)})
    return compared(again, output, expected, fault)


def compared(again: Result, output: Path, expected: Path, fault: str) -> str:
    if again.kind != "ok":
        return f"the resumed run: {again.kind}: {again.value}"
    if fault == "F7" and not any("intact" in line or "previous" in line for line in again.value) and again.value:
        return f"the fallback is not reported: {again.value}"
    return ", ".join(faults.differences(output, expected)[:5])


def killed_saves(sandbox: Sandbox, moment: str, folder: Path, expected: Path) -> str:
    """Saves that are killed at random bytes."""
    draw = random.Random(moment)
    size = (expected / "last.safetensors").stat().st_size
    count = OFFSETS // len(MOMENTS) + (MOMENTS.index(moment) < OFFSETS % len(MOMENTS))
    for number in range(count):
        output, offset = folder / str(number), draw.randrange(5000, size)
        end = sandbox.run("faults", "killed_at_byte", {"output": str(output), "offset": offset})
        if end.kind != "killed":
            return f"byte {offset}: {end.kind}: {end.value}"
        again = sandbox.run("faults", "resume", {"output": str(output)})
        if wrong := compared(again, output, expected, "F4"):
            return f"byte {offset}: {wrong}"
    return ""
