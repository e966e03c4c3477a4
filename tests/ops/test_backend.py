import subprocess
import sys

import pytest
import torch

from detrs import ops
from detrs.errors import UserError
from detrs.ops import backend

BOTH = frozenset({"numba", "triton"})
NONE = frozenset[str]()


@pytest.mark.parametrize(
    ("device", "dtype", "installed", "forced", "chosen"),
    [
        ("cpu", torch.float32, BOTH, None, "numba"),
        ("cpu", torch.bfloat16, BOTH, None, "numba"),
        ("cpu", torch.float8_e5m2, BOTH, None, "reference"),
        ("cpu", torch.float32, NONE, None, "reference"),
        ("cuda", torch.float32, BOTH, None, "triton"),
        ("cuda", torch.float64, BOTH, None, "reference"),
        ("cuda", torch.float32, NONE, None, "reference"),
        ("cuda", torch.bfloat16, BOTH, "triton", "triton"),
        ("cuda", torch.float32, BOTH, "gather", "gather"),
        ("meta", torch.float32, BOTH, None, "reference"),
        ("cpu", torch.float32, BOTH, "reference", "reference"),
        ("cuda", torch.float32, NONE, "reference", "reference"),
        ("cpu", torch.float64, BOTH, "numba", "numba"),
    ],
)
def test_choice_is_a_function_of_its_arguments(device, dtype, installed, forced, chosen) -> None:
    with backend.use("reference"):  # has no influence
        assert backend.choose(device, dtype, installed, forced) == chosen


@pytest.mark.parametrize(
    ("forced", "device", "dtype", "installed", "reason"),
    [
        ("numba", "cuda", torch.float32, BOTH, "cuda"),
        ("numba", "cpu", torch.float32, NONE, "cannot be imported"),
        ("numba", "cpu", torch.float8_e5m2, BOTH, "float8_e5m2"),
        ("triton", "cpu", torch.float32, BOTH, "on 'cpu'"),
        ("triton", "cuda", torch.float64, BOTH, "float64"),
    ],
)
def test_a_forced_backend_that_cannot_run_is_an_error(forced, device, dtype, installed, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        backend.choose(device, dtype, installed, forced)


def test_an_unknown_backend_is_an_error_with_the_nearest_name(monkeypatch) -> None:
    with pytest.raises(UserError, match="Did you mean 'numba'"):
        ops.use("nunba")
    monkeypatch.setattr(backend, "_forced", "nunba")  # as from DETRS_OPS=nunba
    with pytest.raises(UserError, match="DETRS_OPS"):
        backend.current("cpu", torch.float32)
    assert "Did you mean 'numba'" in ops.describe()


def test_an_unknown_name_in_the_environment_is_an_error_for_every_detector(monkeypatch) -> None:
    monkeypatch.setenv("DETRS_OPS", "nunba")
    words = [sys.executable, "-m", "detrs", "profile", "detr-tiny", "--image-size", "32", "--repeats", "1"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: Expected one of the backends") and "Did you mean 'numba'?" in done.stderr


def test_use_lasts_for_the_block_or_for_good(monkeypatch) -> None:
    monkeypatch.setattr(backend, "_forced", None)
    with ops.use("reference"):
        assert backend.current("cpu", torch.float32) == "reference"
        with ops.use("numba"):
            assert backend.current("cpu", torch.float32) == "numba"
        assert backend.current("cpu", torch.float32) == "reference"
    assert backend.current("cpu", torch.float32) == "numba"
    with pytest.raises(KeyError), ops.use("reference"):
        raise KeyError
    assert "forced: nothing" in ops.describe()
    ops.use("reference")
    assert "forced: reference" in ops.describe()
    ops.use(None)
    assert backend.current("cpu", torch.float32) == "numba"


def test_describe_says_why_numba_does_not_run(monkeypatch) -> None:
    monkeypatch.setattr(backend, "_forced", None)
    monkeypatch.setattr(backend, "_why_not", lambda package: "Numba needs NumPy 2.4 or less")
    assert ops.describe().splitlines() == [
        "forced: nothing",
        "numba: Numba needs NumPy 2.4 or less",
        "triton: Numba needs NumPy 2.4 or less",
        "cpu: reference",
        "cuda: reference",
    ]
