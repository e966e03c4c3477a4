"""Public names of packages, imported on first use."""

import sys
from types import ModuleType

import pytest

import detrs.checkpoints
import detrs.data
from detrs.on_demand import on_demand


def test_a_name_is_imported_once_and_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("some.package")
    package.__getattr__ = on_demand("some.package", {"sqrt": "math", "power": "math:pow"})  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "some.package", package)
    assert package.sqrt(4.0) == 2.0 and package.power(2.0, 3.0) == 8.0
    assert {"sqrt", "power"} <= set(vars(package))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'some\.package' has no attribute 'root'"):
        on_demand("some.package", {"sqrt": "math"})("root")


@pytest.mark.parametrize("package", [detrs, detrs.data, detrs.checkpoints], ids=lambda package: package.__name__)
def test_every_public_name_exists(package: ModuleType) -> None:
    for name in package.__all__:
        assert getattr(package, name) is not None, name
    with pytest.raises(ImportError, match="nothing"):
        exec(f"from {package.__name__} import nothing")
