"""Results do not depend on whether kernels are compiled in this process or were compiled before."""

import os
import subprocess
import sys
from pathlib import Path

RESULTS = """
import hashlib, torch
from detrs.ops import ms_deform_attn_fused
from detrs.ops.dropout import add_norm, attention, relu_dropout

torch.manual_seed(0)

def random(*size):
    return torch.randn(size, requires_grad=True)

norm = torch.nn.LayerNorm(48)
query, key, value = (random(2, 4, 30, 8) for _ in range(3))
samples = random(2, 30, 4, 8), random(2, 30, 4, 2, 3, 2), random(2, 30, 4, 2, 3), random(2, 30, 2, 2)
x, update = random(4, 50, 48), random(4, 50, 48)
for operator, inputs in (
    (lambda x, update: add_norm(x, update, norm, 0.1), (x, update)),
    (lambda x: relu_dropout(x * 1, 0.1), (x,)),
    (lambda *inputs: attention(*inputs, None, 0.1), (query, key, value)),
    (lambda value, *rest: ms_deform_attn_fused(value, ((4, 5), (2, 5)), *rest), samples),
):
    result = operator(*inputs)
    for tensor in (result, *torch.autograd.grad(result.square().sum(), inputs)):
        print(hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest())
"""


def test_the_process_that_compiles_kernels_has_the_results_of_later_ones(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", RESULTS]
    first, second = (
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    )
    assert first == second and len(first) == 14
    assert list(tmp_path.rglob("*.nbc"))
