import torch

from detrs.layers.repeat import checkpoint_activations


class Double(torch.nn.Module):
    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Double.calls += 1
        return self.dropout(self.linear(x))


def run(layers: torch.nn.ModuleList, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(7)
    Double.calls = 0
    y = layers[1](layers[0](x))
    y.sum().backward()
    return y, layers[0].linear.weight.grad.clone()


def test_recomputation_changes_no_number_and_no_name() -> None:
    layers, x = torch.nn.ModuleList([Double(), Double()]), torch.randn(5, 3)
    names = list(layers.state_dict())
    y, gradient = run(layers, x)
    assert Double.calls == 2
    layers.zero_grad()
    checkpoint_activations(layers)
    y_again, gradient_again = run(layers, x)
    assert Double.calls == 4  # each layer a second time, in the backward pass
    assert list(layers.state_dict()) == names
    assert torch.equal(y, y_again)
    assert torch.equal(gradient, gradient_again)
