"""Reference values of the authors' code; their file's ``_README`` describes hash, parameters and tolerances."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor


def hashed(index: int, *shape: int) -> Tensor:
    """Reproducible numbers in [-1, 1)."""
    mask = 2**32 - 1
    x = torch.arange(1, torch.Size(shape).numel() + 1) * 2654435761 + (index + 1) * 40503 & mask
    for factor, shift in ((1, 15), (2246822519, 13), (3266489917, 16)):
        x = x * factor & mask
        x = x ^ (x >> shift)
    return (x.double() / 2**32 * 2 - 1).float().view(shape)


def inputs(index: int, *shape: int) -> Tensor:
    """An input, of variance 1."""
    return hashed(index, *shape) * 3**0.5


def parameter(name: str, index: int, shape: tuple[int, ...]) -> Tensor:
    """A parameter of the authors' module, by its position in the sorted list of names."""
    if len(shape) > 1:
        return hashed(index, *shape) * math.sqrt(3 / math.prod(shape[1:]))
    return 0.1 * hashed(index, *shape) + name.endswith("weight")


def parameters(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """The parameters of the authors' module, by their name there."""
    return {name: parameter(name, index, shapes[name]) for index, name in enumerate(sorted(shapes))}


def golden(shared: Path, key: str) -> dict[str, Any]:
    """The entry ``key`` of the golden file; skips where there is none."""
    path = shared / "golden" / "goldens.json"
    if not path.is_file():
        pytest.skip("the golden numbers are not in the shared data folder")
    values: dict[str, Any] = json.loads(path.read_text())[key]
    return values


def check(found: Tensor, expected: dict[str, Any], sum_rtol: float = 1e-4) -> None:
    """Compare shape, first and last elements, and sums; terms of the plain sum cancel each other."""
    assert list(found.shape) == expected["shape"]
    ends: Iterable[tuple[Tensor, list[float]]] = (
        (found.flatten()[:6], expected["first"]),
        (found.flatten()[-4:], expected["last"]),
    )
    for mine, theirs in ends:
        torch.testing.assert_close(mine, torch.tensor(theirs), rtol=1e-4, atol=1e-5)
    assert found.double().abs().sum().item() == pytest.approx(expected["abs_sum"], rel=1e-4)
    assert found.double().sum().item() == pytest.approx(expected["sum"], rel=sum_rtol)
