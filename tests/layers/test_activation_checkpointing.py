from functools import partial

import torch

from detrs.layers.activation_checkpointing import checkpoint_activations
from detrs.layers.decoder import Decoder, keep
from detrs.layers.encoder import Encoder


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
    model = torch.nn.ModuleDict({"encoder": Encoder([Double(), Double()]), "rest": torch.nn.Linear(3, 3)})
    layers, x = model["encoder"].layers, torch.randn(5, 3)
    names = list(model.state_dict())
    y, gradient = run(layers, x)
    assert Double.calls == 2
    layers.zero_grad()
    assert checkpoint_activations(model) == 2
    y_again, gradient_again = run(layers, x)
    assert Double.calls == 4  # each layer a second time, in the backward pass
    assert list(model.state_dict()) == names
    assert torch.equal(y, y_again)
    assert torch.equal(gradient, gradient_again)


def test_layers_of_all_encoders_and_decoders_are_counted_and_no_others() -> None:
    model = torch.nn.Sequential(Encoder([Double()]), Double(), Decoder([Double(), Double()], [], keep))
    assert checkpoint_activations(model) == 3
    assert [isinstance(layer.forward, partial) for layer in (model[0].layers[0], model[1])] == [True, False]
    assert checkpoint_activations(torch.nn.Sequential(Double())) == 0
