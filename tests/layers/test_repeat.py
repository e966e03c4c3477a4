import torch

from detrs.layers.encoder import Encoder
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


def run(encoder: Encoder, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(7)
    Double.calls = 0
    y = encoder(x)
    y.sum().backward()
    return y, encoder.layers[0].linear.weight.grad.clone()


def test_recomputation_changes_no_number_and_no_name() -> None:
    encoder, x = Encoder([Double(), Double()]), torch.randn(5, 3)
    names = list(encoder.state_dict())
    y, gradient = run(encoder, x)
    assert Double.calls == 2
    encoder.zero_grad()
    checkpoint_activations(encoder.layers)
    y_again, gradient_again = run(encoder, x)
    assert Double.calls == 4  # each layer a second time, in the backward pass
    assert list(encoder.state_dict()) == names
    assert torch.equal(y, y_again)
    assert torch.equal(gradient, gradient_again)
