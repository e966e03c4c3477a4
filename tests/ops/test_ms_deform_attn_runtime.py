"""Multi-scale deformable attention with the compiler, export, autocast, threads, forks and caches."""

import ctypes
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import pytest
import torch
from torch.autograd import grad
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from detrs.ops import ms_deform_attn, threads, use
from detrs.ops.ms_deform_attn import numba_cpu, operator


@pytest.fixture(autouse=True)
def forced_numba():
    with use("numba"):
        yield


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def large(draw):
    """Enough work for the kernels to use several threads, too little for PyTorch's operators (32768 elements)."""
    inputs = draw(batch=1, queries=401, heads=2, channels=32, shapes=((11, 17), (3, 5)), dtype=torch.float32)
    assert inputs.weights.numel() * 32 > numba_cpu.SERIAL_BELOW
    return inputs


def gradients(inputs):
    tensors = [x.detach().clone().requires_grad_() for x in (inputs.value, inputs.locations, inputs.weights)]
    out = ms_deform_attn(tensors[0], inputs.shapes, *tensors[1:])
    return out.detach(), *grad(out, tensors, out.detach())


# Compiler


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # raised by PyTorch itself
def test_opcheck(draw) -> None:
    value, shapes, locations, weights = draw().differentiable()
    sizes = [size for shape in shapes for size in shape]
    locations, weights = locations.flatten(3, 4).detach(), weights.flatten(3, 4).detach()
    reference_points = draw.normal(2, 11, 2, 4).requires_grad_()
    padding = torch.arange(41).expand(2, -1) % 7 == 3
    for extra in ((None, None), (reference_points, padding)):
        inputs = (value, sizes, [2, 2], locations.requires_grad_(), weights.requires_grad_(), *extra)
        torch.library.opcheck(torch.ops.detrs.ms_deform_attn.default, inputs)
        inputs = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in inputs)
        arguments = (draw.normal(2, 11, 9), *inputs, [True, False, True, extra[0] is not None])
        torch.library.opcheck(torch.ops.detrs.ms_deform_attn_backward.default, arguments)


def test_compiles_as_one_graph_with_any_number_of_queries(draw) -> None:
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def compiled(value, locations, weights):
        return ms_deform_attn(value, ((5, 7), (3, 2)), locations, weights).sin()

    for queries in (11, 17):
        inputs = draw(queries=queries).differentiable()
        tensors = [inputs.value, inputs.locations, inputs.weights]
        out, eager = compiled(*tensors), ms_deform_attn(*inputs).sin()
        assert torch.allclose(out, eager, rtol=0, atol=1e-14)
        for ours, truth in zip(grad(out.sum(), tensors), grad(eager.sum(), tensors), strict=True):
            assert torch.allclose(ours, truth, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("backend", "operation"), [(None, "grid_sampler"), ("gather", "gather")])
def test_export_sees_plain_pytorch(draw, backend, operation) -> None:
    inputs = draw()

    class Module(torch.nn.Module):
        def forward(self, value, locations, weights):
            return ms_deform_attn(value, inputs.shapes, locations, weights)

    tensors = (inputs.value, inputs.locations, inputs.weights)
    queries = torch.export.Dim("queries", min=2, max=1000)
    dynamic = ({}, {1: queries}, {1: queries})
    with use(backend):
        program = torch.export.export(Module(), tensors, dynamic_shapes=dynamic)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any(operation in name for name in called) and not any("detrs" in name for name in called)
    assert backend is None or not any("grid_sampler" in name for name in called)
    other = draw(queries=23)
    assert torch.allclose(program.module()(other.value, other.locations, other.weights), ms_deform_attn(*other))


def test_autocast_keeps_coordinates(draw) -> None:
    inputs = draw(channels=16, dtype=torch.float32)
    projection = torch.nn.Linear(16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        value = projection(inputs.value)
        out = ms_deform_attn(value, *inputs[1:])
    assert value.dtype == out.dtype == torch.bfloat16
    assert torch.equal(out, ms_deform_attn(value.float(), *inputs[1:]).bfloat16())
    out.float().sum().backward()
    assert projection.weight.grad.dtype == torch.float32 and projection.weight.grad.any()


def test_vmap_maps_over_images(draw) -> None:
    inputs, other = draw(batch=4), draw()
    values, weights = inputs.value.unflatten(0, (2, 2)), inputs.weights.unflatten(0, (2, 2))
    mapped = torch.func.vmap(ms_deform_attn, in_dims=(0, None, None, 0))(
        values, inputs.shapes, other.locations, weights
    )
    for ours, value, weight in zip(mapped, values, weights, strict=True):
        assert torch.equal(ours, ms_deform_attn(value, inputs.shapes, other.locations, weight))


def test_flops_are_counted_forward_and_backward(draw) -> None:
    inputs = draw(batch=2, queries=11, heads=3, channels=4, points=2).differentiable()
    samples = 2 * 11 * 3 * 4
    with FlopCounterMode(display=False) as forward:
        out = ms_deform_attn(*inputs)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    assert forward.get_total_flops() == samples * 4 * 4 * 2  # corners, channels, multiplication and addition
    assert backward.get_total_flops() == 2 * forward.get_total_flops()


# Threads and processes


@pytest.mark.parametrize("pool", ["of PyTorch", "new threads"])
def test_bits_do_not_depend_on_the_number_of_threads(draw, two_threads, monkeypatch, pool: str) -> None:
    inputs = large(draw)
    team = threads._openmp()
    launched = []

    def counted(kernel, work, number, flags):
        launched.append(number)
        team(kernel, work, number, flags)

    monkeypatch.setattr(threads, "_openmp", lambda: counted if pool == "of PyTorch" and team else None)
    torch.set_num_threads(1)
    alone = gradients(inputs)
    assert not launched
    for number in (2, 3):
        torch.set_num_threads(number)
        for ours, same in zip(gradients(inputs), alone, strict=True):
            assert torch.equal(ours, same)
    if pool == "of PyTorch" and team:
        assert launched == [2, 2, 2, 3, 3, 3]  # forward, gradients of queries, gradient of the value


def test_where_no_more_threads_start_those_that_run_do_the_work(draw, two_threads, monkeypatch) -> None:
    inputs = large(draw)
    expected = gradients(inputs)
    start, started = threading.Thread.start, []

    def limited(thread) -> None:
        if len(started) % 2:
            started.append(None)
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threads, "_openmp", lambda: None)
    monkeypatch.setattr(threading.Thread, "start", limited)
    torch.set_num_threads(4)
    assert all(torch.equal(ours, same) for ours, same in zip(gradients(inputs), expected, strict=True))
    assert len(started) == 6 and not any(thread.is_alive() for thread in started if thread)


@pytest.mark.skipif(sys.platform != "linux", reason="another OpenMP")
def test_the_threads_are_those_of_torch() -> None:
    assert threads._openmp() is not None
    ours = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD)  # the one that torch has loaded
    theirs = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "torch" in line}
    assert any("libgomp" in path for path in theirs)
    before = ours.omp_get_max_threads()
    torch.set_num_threads(before + 1)
    try:
        assert ours.omp_get_max_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_concurrent_python_threads(draw, two_threads) -> None:
    inputs = large(draw)
    alone = gradients(inputs)

    def work(_):
        torch.set_num_threads(2)
        return gradients(inputs)

    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(work, range(16)):
            assert all(torch.equal(ours, same) for ours, same in zip(results, alone, strict=True))


class Attended(Dataset):
    """Computes in a worker what the main process has computed with threads."""

    def __init__(self, inputs) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index):
        torch.set_num_threads(2)
        value, shapes, locations, weights = self.inputs
        sizes = [size for shape in shapes for size in shape]
        out = ms_deform_attn(value, shapes, locations, weights)
        points = [locations.shape[4]] * len(shapes)
        inputs = (out, value, sizes, points, locations.flatten(3, 4), weights.flatten(3, 4), None, None)
        return out, *operator.ms_deform_attn_backward(*inputs, [True, True, True, False])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_workers_of_a_data_loader(draw, two_threads) -> None:
    inputs = large(draw)
    torch.set_num_threads(1)
    gradients(inputs)  # compiles what the workers will run
    here = Attended(inputs)[0]  # starts threads, which a fork does not copy
    loader = DataLoader(Attended(inputs), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=180)
    for there in loader:
        assert all(torch.equal(ours, same) for ours, same in zip(there, here, strict=True))
    assert not threads._forked


# Cache


NEXT_PROCESS = """
import torch
from detrs.ops import ms_deform_attn, use
from detrs.ops.ms_deform_attn import numba_cpu
with use("numba"):
    ms_deform_attn(torch.ones(1, 2, 1, 5), ((1, 2),), torch.ones(1, 1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 1))
print(numba_cpu._forward_kernel(5, "float32").compiled.cache_hits)
"""


def test_the_next_process_finds_the_kernels_compiled(tmp_path, monkeypatch) -> None:
    """Fails if a kernel captures an object that is pickled differently in each process."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    numba_cpu._forward_kernel.cache_clear()
    ms_deform_attn(torch.ones(1, 2, 1, 5), ((1, 2),), torch.ones(1, 1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 1))
    numba_cpu._forward_kernel.cache_clear()
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.run([sys.executable, "-c", NEXT_PROCESS], env=environment, capture_output=True, text=True)
    assert process.stdout.split() == ["1"], process.stderr


def test_processes_that_cache_kernels_at_the_same_time_do_not_mix_them_up(tmp_path, monkeypatch) -> None:
    """numba does not lock its index: a process that writes it may not have read what another has just added."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    compile_kernel = numba_cpu._forward_kernel.__wrapped__
    with monkeypatch.context() as patch:
        patch.setattr(numba.core.caching.IndexDataCacheFile, "_load_index", lambda self: {})
        compile_kernel(5, "float32")
        compile_kernel(6, "float32")
    assert len(list(tmp_path.rglob("*.nbc"))) == 2
    assert [compile_kernel(channels, "float32").compiled.cache_hits for channels in (5, 6)] == [1, 1]


def test_a_change_of_any_source_is_noticed(tmp_path, monkeypatch) -> None:
    """numba's cache only checks the file that defines a kernel."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    numba_cpu._forward_kernel.__wrapped__(5, "float32")
    assert numba_cpu._forward_kernel.__wrapped__(5, "float32").compiled.cache_hits == 1
    monkeypatch.setattr(numba_cpu, "_VERSION", 1)
    assert numba_cpu._forward_kernel.__wrapped__(5, "float32").compiled.cache_hits == 0


def test_what_was_in_the_workspace_does_not_matter(draw, monkeypatch) -> None:
    inputs = large(draw)
    expected = gradients(inputs)
    empty = torch.empty

    def dirty(*size, **options):
        return empty(*size, **options).fill_(255)  # as floats: NaN

    monkeypatch.setattr(torch, "empty", dirty)
    assert all(torch.equal(ours, same) for ours, same in zip(gradients(inputs), expected, strict=True))


def test_without_a_place_for_the_cache_it_says_so_and_works(monkeypatch, draw) -> None:
    inputs = draw()
    expected = ms_deform_attn(*inputs)
    monkeypatch.setattr(numba_cpu, "_forward_kernel", numba_cpu._forward_kernel.__wrapped__)
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="NUMBA_CACHE_DIR"):
        patch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
        assert torch.equal(ms_deform_attn(*inputs), expected)
