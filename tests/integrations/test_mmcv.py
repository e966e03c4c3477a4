"""The operator in a stand-in of mmcv, which needs a compiler to be installed: its module and the names in it."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_official import ARGUMENTS, assert_same_gradients, inputs, theirs

from detrs.errors import UserError
from detrs.integrations import mmcv as integration

MODULE = '''
class MultiScaleDeformableAttnFunction:
    @staticmethod
    def apply(*arguments):
        return "theirs"


def multi_scale_deformable_attn_pytorch(*arguments):
    return "theirs"


def attention(value, spatial_shapes, level_start_index, sampling_locations, attention_weights, on_gpu):
    """The end of MultiScaleDeformableAttention.forward."""
    if on_gpu:
        return MultiScaleDeformableAttnFunction.apply(
            value, spatial_shapes, level_start_index, sampling_locations, attention_weights, 64
        )
    return multi_scale_deformable_attn_pytorch(value, spatial_shapes, sampling_locations, attention_weights)
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "mmcv" / "ops"
    folder.mkdir(parents=True)
    (tmp_path / "mmcv" / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "multi_scale_deform_attn.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "mmcv"]:
        del sys.modules[name]


def test_installed_and_undone(package: Path) -> None:
    module: Any = importlib.import_module(integration.MODULE)
    value, *others = inputs()
    with integration.install():
        for on_gpu in (False, True):
            out = module.attention(value, *ARGUMENTS, *others, on_gpu)
            torch.testing.assert_close(out, theirs(value, *others), atol=1e-5, rtol=1e-5)
        with pytest.raises(UserError, match="has the functions of detrs already"):
            integration.install()
    assert module.attention(value, *ARGUMENTS, *others, False) == "theirs"
    assert module.attention(value, *ARGUMENTS, *others, True) == "theirs"


def test_gradients_are_equal() -> None:
    assert_same_gradients(integration.MultiScaleDeformableAttnFunction.apply)
    assert_same_gradients(
        lambda value, shapes, _, locations, weights, __: integration.multi_scale_deformable_attn_pytorch(
            value, shapes, locations, weights
        )
    )


def test_locations_of_half_precision_are_not_rounded() -> None:
    """mmcv rounds locations to the dtype of the values, which moves them by pixels."""
    value, locations, weights = (x.detach() for x in inputs(16))
    exact = theirs(value, locations, weights)
    out = integration.MultiScaleDeformableAttnFunction.apply(value.bfloat16(), *ARGUMENTS, locations, weights, 64)
    rounded = theirs(value, locations.bfloat16().float(), weights)
    assert out.dtype == torch.bfloat16
    assert (out - exact).abs().mean() < 0.5 * (rounded - exact).abs().mean()


def test_without_mmcv_and_with_other_versions(package: Path) -> None:
    (package / "multi_scale_deform_attn.py").write_text("def multi_scale_deformable_attn_pytorch(): ...")
    with pytest.raises(UserError, match="Expected MultiScaleDeformableAttnFunction in mmcv.ops"):
        integration.install()
    del sys.modules[integration.MODULE]
    (package / "multi_scale_deform_attn.py").unlink()
    importlib.invalidate_caches()
    with pytest.raises(UserError, match=r"Expected mmcv with its operators, .*No module named"):
        integration.install()
