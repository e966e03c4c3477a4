"""Settings of a model that follow from the names and shapes in a foreign state dict."""

import re
from collections.abc import Mapping

from torch import Tensor

from detrs.errors import UserError
from detrs.presets.recipes import R50, R101

RESNETS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18.tv_in1k",
    ("basic", (3, 4, 6, 3)): "resnet34.tv_in1k",
    ("bottleneck", (2, 2, 2, 2)): "resnet26.bt_in1k",
    ("bottleneck", (3, 4, 6, 3)): R50.name,
    ("bottleneck", (3, 4, 23, 3)): R101.name,
    ("bottleneck", (3, 8, 36, 3)): "resnet152.tv_in1k",
}
"""Block and number of blocks per stage -> timm model, with the weights that detectors start from."""
STAGES = tuple(f"layer{stage}" for stage in range(1, 5))
"""Names of the stages of a ResNet in torchvision and timm."""


class Structure:
    """Names and shapes of a foreign state dict.

    Args:
        tensors: the state dict.
        source: the file, for messages.
    """

    def __init__(self, tensors: Mapping[str, Tensor], source: object) -> None:
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.source = source

    def size(self, name: str, axis: int = 0) -> int:
        """Size of a tensor along ``axis``.

        Raises:
            UserError: it is missing or has fewer axes.
        """
        shape = self.shapes.get(name)
        if shape is None:
            raise UserError(f"'{self.source}' does not contain the tensor '{name}', which is required.")
        if len(shape) <= axis:
            raise UserError(f"'{self.source}' has '{name}' of shape {shape}, expected at least {axis + 1} axes.")
        return shape[axis]

    def count(self, pattern: str) -> int:
        """How many different numbers ``{i}`` stands for in the names that start with ``pattern``."""
        start, end = pattern.split("{i}")
        expression = re.compile(rf"{re.escape(start)}(\d+){re.escape(end)}")
        return len({found[1] for name in self.shapes if (found := expression.match(name))})

    def matrices(self, prefix: str) -> int:
        """How many tensors below ``prefix`` have two axes."""
        return sum(name.startswith(prefix) and len(shape) == 2 for name, shape in self.shapes.items())

    def resnet(self, prefix: str, stages: tuple[str, ...] = STAGES) -> str:
        """The timm name of a ResNet.

        Args:
            prefix: of all its names.
            stages: names of its stages.

        Raises:
            UserError: it is not a ResNet that timm has with these names.
        """
        blocks = tuple(self.count(f"{prefix}{stage}.{{i}}.") for stage in stages)
        kind = "bottleneck" if f"{prefix}{stages[0]}.0.conv3.weight" in self.shapes else "basic"
        if (kind, blocks) not in RESNETS:
            raise UserError(
                f"'{self.source}' has a backbone with {', '.join(map(str, blocks))} {kind} blocks under '{prefix}'. "
                "Expected ResNet-18, 26, 34, 50, 101 or 152."
            )
        return RESNETS[kind, blocks]
