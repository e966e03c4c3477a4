"""torch._dynamo is executed when it is used, and then works as if it had been imported at first.

Each test needs a new process, and the import of the compiler takes seconds: there are few, which test much.
"""

import subprocess
import sys

START = """
import sys
from detrs.cli.deferred import DeferredModule, defer_compiler
defer_compiler()
import torch
def deferred(name="torch._dynamo"): return type(sys.modules[name]) is DeferredModule
"""


def run(code: str) -> None:
    """Run code in a new process in which the import is deferred; warnings are errors."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", START + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_is_executed_when_something_is_compiled() -> None:
    run("""
import torchvision, timm, detrs.ops.backend
from torch._compile import _disable_dynamo
assert deferred() and deferred("torch._dynamo.utils") and "sympy" not in sys.modules

meta_path = [*sys.meta_path]
defer_compiler()
assert sys.meta_path == meta_path  # PyTorch was imported already

@torch.compiler.assume_constant_result
def constant(): return 3

@torch.compiler.disable
def excluded(x): return x * 2

def function(x): return x + 1
of_pytorch = _disable_dynamo(function)

x = torch.arange(5.0)
assert torch.equal(excluded(x), x * 2) and torch.equal(of_pytorch(x), x + 1)  # the functions themselves
assert deferred() and not hasattr(constant, "_dynamo_marked_constant")
kept = getattr(function, "__dynamo_disable")

compiled = torch.compile(lambda x: x.sin() * constant(), backend="eager", fullgraph=True)
torch.testing.assert_close(compiled(x), x.sin() * 3)
assert not deferred() and not deferred("torch._dynamo.utils") and "sympy" in sys.modules
assert constant._dynamo_marked_constant

import torch._dynamo.config
assert torch._dynamo.config is sys.modules["torch._dynamo.config"] and not torch._dynamo.config.suppress_errors
supported = sys.modules["torchvision.ops.roi_align"].is_compile_supported
assert supported.__module__ == "detrs.cli.deferred"
assert supported("cpu") == torch._dynamo.utils.is_compile_supported("cpu")

for exclusion in (excluded, of_pytorch):
    count = torch._dynamo.testing.CompileCounter()
    broken = torch.compile(lambda x: exclusion(x.sin()).cos(), backend=count)
    torch.testing.assert_close(broken(x), exclusion(x.sin()).cos())
    assert count.frame_count == 2  # before and behind the excluded function
assert getattr(function, "__dynamo_disable") is not kept
try:
    torch.compile(lambda x: excluded(x), backend="eager", fullgraph=True)(x)
except torch._dynamo.exc.Unsupported:
    pass
else:
    raise AssertionError("a function that is excluded from compilation was compiled")
""")


def test_an_import_of_a_part_executes_it() -> None:
    run("""
from torch._dynamo.utils import counters
from torch._dynamo import optimize
import torch._dynamo.config
assert len(counters) == 0 and optimize.__module__.startswith("torch._dynamo")
assert not deferred() and not deferred("torch._dynamo.utils")
assert sys.modules["torch._dynamo.utils"] is torch._dynamo.utils
""")
