import pytest
import torch

from detrs.devices import pick_device
from detrs.errors import UserError


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps", "xpu")
    with pytest.raises(UserError, match="'gpu' is not a device"):
        pick_device("gpu")
    with pytest.raises(UserError, match="'cpu:1': this machine has 1 x cpu"):
        pick_device("cpu:1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_device_that_is_not_available(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}': CUDA is not available"):
        pick_device(name)
