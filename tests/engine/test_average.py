import copy

import pytest
import torch
from torch import nn

from detrs.engine.average import Average


def network() -> nn.Module:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1))
    net[2].weight.requires_grad_(False)
    return net


def change(net: nn.Module) -> None:
    """What a training step does: other weights, other statistics, one more batch counted."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    net(torch.randn(2, 3, 7, 5))


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.97])
def test_average_is_the_recursion_of_its_definition(decay: float) -> None:
    net = network()
    average = Average(net, decay)
    expected = {name: tensor.double() for name, tensor in copy.deepcopy(net.state_dict()).items()}
    for t in range(23):
        change(net)
        average.update()
        d = min(decay, (1 + t) / (10 + t))
        for name, tensor in net.state_dict().items():
            expected[name] = d * expected[name] + (1 - d) * tensor.double()
    for name, tensor in average.module.state_dict().items():
        if name == "1.num_batches_tracked":
            assert tensor == 23  # a count is copied, not averaged
        else:
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_without_decay_the_average_is_the_detector_to_the_bit() -> None:
    net = network()
    average = Average(net, 0.0)
    change(net)
    average.update()
    for name, tensor in net.state_dict().items():
        assert torch.equal(average.module.state_dict()[name], tensor), name


def test_average_leaves_the_detector_alone() -> None:
    net = network()
    average = Average(net, 0.9)
    change(net)
    before = copy.deepcopy(net.state_dict())
    average.update()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert net.training and not average.module.training
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    own = {tensor.data_ptr() for tensor in average.module.state_dict().values()}
    assert own.isdisjoint(tensor.data_ptr() for tensor in net.state_dict().values())
