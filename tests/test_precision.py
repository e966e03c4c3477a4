"""Which precision is chosen, and that its context leaves no trace."""

import threading
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F

from detrs import precision
from detrs.choices import Precision, Resolved
from detrs.errors import UserError
from detrs.precision import autocast, has_bf16, resolve, speedup

CPU = torch.device("cpu")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A process that has not chosen, without the variable of the test suite."""
    monkeypatch.delenv(precision.VARIABLE)
    monkeypatch.setattr(precision, "_chosen", {})
    monkeypatch.setattr(precision, "_warned", set())
    yield monkeypatch


@pytest.mark.parametrize(
    ("in_hardware", "ratio", "expected"), [(True, 4.0, "bf16"), (True, 1.1, "fp32"), (False, 4.0, "fp32")]
)
def test_auto_is_bf16_where_the_device_has_it_and_it_is_faster(
    fresh: pytest.MonkeyPatch, in_hardware: bool, ratio: float, expected: str
) -> None:
    fresh.setattr(precision, "has_bf16", lambda device: in_hardware)
    fresh.setattr(precision, "speedup", lambda device: ratio)
    assert resolve("auto", CPU) == expected
    fresh.setattr(precision, "has_bf16", lambda device: not in_hardware)
    fresh.setattr(precision, "speedup", lambda device: 100.0)
    assert resolve("auto", CPU) == expected, "decided once per process"


def test_threads_that_ask_at_once_get_one_answer(fresh: pytest.MonkeyPatch) -> None:
    ratios = iter([4.0, 1.0, 4.0, 1.0])
    fresh.setattr(precision, "has_bf16", lambda device: True)
    fresh.setattr(precision, "speedup", lambda device: next(ratios))
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(resolve("auto", CPU))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["bf16"] * 4


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_the_environment_variable_is_what_auto_means(fresh: pytest.MonkeyPatch, name: str) -> None:
    fresh.setattr(precision, "speedup", lambda device: pytest.fail("no probe is needed"))
    fresh.setenv(precision.VARIABLE, name)
    assert resolve("auto", CPU) == name
    assert resolve("fp32", CPU) == "fp32" and resolve("bf16", CPU) == "bf16", (
        "a precision that is given is not replaced"
    )


def test_an_empty_environment_variable_is_none(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(precision, "has_bf16", lambda device: False)
    fresh.setenv(precision.VARIABLE, "")
    assert resolve("auto", CPU) == "fp32"


@pytest.mark.parametrize(
    ("name", "variable", "message"),
    [
        ("bf61", None, r"^precision: expected one of auto, fp32, bf16, fp16, got 'bf61'\. Did you mean 'bf16'\?$"),
        ("fp16", None, r"^precision 'fp16' is not supported on the CPU: choose 'fp32' or 'bf16'\.$"),
        ("auto", "half", r"^the environment variable DETRS_PRECISION: expected one of auto, .* got 'half'\.$"),
        ("auto", "fp16", r"^the environment variable DETRS_PRECISION 'fp16' is not supported on the CPU"),
    ],
)
def test_other_names(fresh: pytest.MonkeyPatch, name: str, variable: str | None, message: str) -> None:
    if variable is not None:
        fresh.setenv(precision.VARIABLE, variable)
    with pytest.raises(UserError, match=message):
        resolve(name, CPU)


def test_a_device_without_autocast_has_float32_only(fresh: pytest.MonkeyPatch) -> None:
    meta = torch.device("meta")
    assert resolve("auto", meta) == resolve("fp32", meta) == "fp32"
    with pytest.raises(UserError, match=r"^precision 'bf16' is not supported on the device 'meta': choose 'fp32'\.$"):
        resolve("bf16", meta)


def test_emulated_bf16_is_warned_about_once(fresh: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    fresh.setattr(precision, "has_bf16", lambda device: False)
    assert resolve("bf16", CPU) == resolve("bf16", CPU) == "bf16"
    (record,) = caplog.records
    assert "does not multiply bfloat16 in hardware" in record.message
    caplog.clear()
    fresh.setattr(precision, "_warned", set())
    fresh.setattr(precision, "has_bf16", lambda device: True)
    assert resolve("bf16", CPU) == "bf16" and not caplog.records


@pytest.mark.parametrize(("name", "expected"), [("amx_bf16", True), ("avx512_bf16", True), ("avx512_f", False)])
def test_capabilities_of_processors(monkeypatch: pytest.MonkeyPatch, name: str, expected: bool) -> None:
    monkeypatch.setattr(precision, "cpu_capabilities", lambda: {name: True, "avx2": True})
    assert has_bf16(CPU) == (expected and torch.backends.mkldnn.is_available())


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_capabilities_of_gpus(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: bool) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_bf16(torch.device("cuda:1")) == expected


def test_capabilities_with_any_version_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(has_bf16(CPU), bool)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert not has_bf16(CPU)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert has_bf16(CPU) == torch.backends.mkldnn.is_available()


def test_the_probe_changes_nothing_and_measures_a_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of the fastest round counts, so that a round that another program interrupts has no effect."""
    before = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        assert 0 < speedup(CPU) < 1000
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(before, torch.get_rng_state()) and torch.is_grad_enabled()

    types: list[torch.dtype] = []
    seconds = {
        torch.float32: iter([1.0, 4.0, 50.0, *[5.0] * 9]),
        torch.bfloat16: iter([1.0, 70.0, 2.0, *[3.0] * 9]),
    }

    def measured(x: torch.Tensor, weight: torch.Tensor) -> float:
        assert x.dtype == weight.dtype
        types.append(x.dtype)
        return next(seconds[x.dtype])

    monkeypatch.setattr(precision, "_seconds", measured)
    assert speedup(CPU) == 4.0 / 2.0, "without the first call, which compiles kernels"
    assert types[::2] == [torch.float32] * (len(types) // 2) and types[1::2] == [torch.bfloat16] * (len(types) // 2)


def test_the_probe_is_short_on_a_slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    rounds: list[float] = []

    def slow(x: torch.Tensor, weight: torch.Tensor) -> float:
        clock[0] += 0.02
        rounds.append(clock[0])
        return 0.02

    monkeypatch.setattr(precision, "_seconds", slow)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: clock[0])
    assert speedup(CPU) == 1.0
    assert len(rounds) == 2 * (1 + precision.MIN_ROUNDS)


@pytest.mark.parametrize("outer", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_the_context_decides_whatever_is_around_it(outer: Resolved, name: Resolved) -> None:
    x, weight = torch.randn(3, 7), torch.randn(5, 7)
    with autocast(outer, "cpu"):
        with autocast(name, "cpu"):
            assert F.linear(x, weight).dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
        assert torch.is_autocast_enabled("cpu") == (outer == "bf16")
    assert not torch.is_autocast_enabled("cpu")


def test_names() -> None:
    resolved: tuple[Any, ...] = get_args(Resolved)
    assert get_args(Precision) == ("auto", *resolved) and {*resolved} == {"fp32", *precision.DTYPES}
