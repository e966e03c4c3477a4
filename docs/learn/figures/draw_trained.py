"""The figures of the course that show a trained detector.

``detrs demo`` trains it in fifteen minutes: ``python docs/learn/figures/draw_trained.py runs/demo/best.safetensors``.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from draw import INK, ORANGE, main, panels
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.overrides import TorchFunctionMode

from detrs.boxes import cxcywh_to_xyxy
from detrs.data.digits import DigitsDataset
from detrs.layers.deformable_attention import DeformableAttention
from detrs.ops.ms_deform_attn.reference import locate
from detrs.predictor import Predictor
from detrs.structures import Batch, Pyramid

IMAGE = 9
"""Index of the validation image."""


class Trained:
    """A detector that was trained by ``detrs demo``, and its best detection on an image of the demo dataset.

    Args:
        checkpoint: ``best.safetensors`` or the folder of the run.
        index: of the image in the validation split.
    """

    def __init__(self, checkpoint: str, index: int) -> None:
        detector = Predictor.load(checkpoint, device="cpu").detector
        self.model: Any = detector.module
        self.image = detector.preprocessing.resize(torch.as_tensor(DigitsDataset("val")[index].image))
        padding = torch.zeros(1, *self.image.shape[1:], dtype=torch.bool)
        self.batch = detector.preprocessing.normalize(Batch(self.image[None], padding, ()))
        with torch.no_grad():
            last = self.model(self.batch.images, padding).last
        self.query, self.label = divmod(int(last.logits[0].argmax()), last.logits.shape[2])
        self.name = detector.classes.names[self.label]
        height, width = self.image.shape[1:]
        self.scale = torch.tensor([width, height, width, height])
        self.box_xyxy = (cxcywh_to_xyxy(last.boxes[0, self.query]) * self.scale).tolist()

    def show(self, axes: Axes, title: str) -> None:
        """Draw the image with the box."""
        axes.imshow(self.image.permute(1, 2, 0))
        self.outline(axes, INK)
        axes.set_title(title)

    def outline(self, axes: Axes, color: str) -> None:
        """Draw the box."""
        x1, y1, x2, y2 = (value - 0.5 for value in self.box_xyxy)  # imshow: pixel centers are whole numbers
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=1.3))
        axes.set_xticks([])
        axes.set_yticks([])


def points(checkpoint: str) -> Figure:
    """Sampling points of a token in the encoder and of an object query in the last layer of the decoder."""
    trained = Trained(checkpoint, IMAGE)
    calls: list[tuple[DeformableAttention, Tensor, Tensor, Pyramid]] = []
    for module in trained.model.modules():
        if isinstance(module, DeformableAttention):
            module.register_forward_pre_hook(lambda layer, inputs: calls.append((layer, *inputs)))
    with torch.no_grad():
        trained.model(*trained.batch[:2])
    x1, y1, x2, y2 = trained.box_xyxy
    memory = calls[0][3]
    first, second = (height * width for height, width in memory.shapes[:2])
    at = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2]) / trained.scale[:2]
    distance = (memory.reference_points[0, first : first + second] - at).norm(dim=-1)
    token = first + int(distance.argmin())
    figure, axes = panels(2, 9.6, 4.1)
    for each, (layer, query, reference, pyramid), index, title in (
        (axes[0], calls[0], token, "Encoder: a token of the second level"),
        (axes[1], calls[-1], trained.query, f'Decoder, last layer: the query of "{trained.name}"'),
    ):
        trained.show(each, title)
        query, reference = query[:, index : index + 1], reference[:, index : index + 1]
        heads, levels, points = layer.heads_levels_points
        with torch.no_grad():
            samples = layer.samples(query, reference, pyramid)
        weights = samples.logits.flatten(3).softmax(-1)[0, 0]  # (M, L * P)
        offsets, around = samples.offsets.flatten(3, 4), samples.reference_points
        located = locate(offsets, around, pyramid.shapes, (points,) * levels)[0, 0]  # (M, L * P, 2)
        for head, color in zip(range(heads), (ORANGE, "#56b4e9", "#f0e442", "#cc79a7"), strict=True):
            x, y = (located[head] * trained.scale[:2] - 0.5).T
            each.scatter(x, y, s=900 * weights[head], color=color, edgecolor=INK, linewidth=0.5, alpha=0.85)
        x, y = (reference[0, 0, :2] * trained.scale[:2] - 0.5).tolist()
        each.plot(x, y, "+", color="white", markersize=12, markeredgewidth=2)
        each.set(xlim=(-0.5, trained.image.shape[2] - 0.5), ylim=(trained.image.shape[1] - 0.5, -0.5))
    return figure


class WithoutDetach(TorchFunctionMode):
    """While active, ``tensor.detach()`` is the tensor itself: references depend on the image, too (chapter 7)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is torch.Tensor.detach else func(*args, **(kwargs or {}))


def gradients(checkpoint: str) -> Figure:
    """Norm over the colors of the gradients of one detection with respect to the image."""
    trained = Trained(checkpoint, IMAGE)
    images = trained.batch.images.requires_grad_()
    with WithoutDetach():
        last = trained.model(images, trained.batch.padding).last
    values = {"score": last.logits[0, trained.query, trained.label].sigmoid()}
    values |= dict(zip(("x", "y", "w", "h"), last.boxes[0, trained.query], strict=True))
    figure = Figure(figsize=(7.2, 7), layout="constrained")
    axes = figure.subplots(2, 3).flatten().tolist()
    trained.show(axes[0], f'"{trained.name}", score {values["score"]:.2f}')
    for each, (name, value) in zip(axes[1:], values.items(), strict=True):
        norm = torch.autograd.grad(value, images, retain_graph=True)[0][0].norm(dim=0)
        each.imshow(norm, cmap="magma")
        trained.outline(each, "#ffffff")
        each.set_title(f"|∂ {name} / ∂ image|")
    x1, y1, x2, y2 = trained.box_xyxy
    width, height = trained.scale[:2].tolist()
    for each in axes:  # half a box around the box, inside the image
        each.set_xlim(max(1.5 * x1 - 0.5 * x2, -0.5), min(1.5 * x2 - 0.5 * x1, width - 0.5))
        each.set_ylim(min(1.5 * y2 - 0.5 * y1, height - 0.5), max(1.5 * y1 - 0.5 * y2, -0.5))
    return figure


OF_CHECKPOINT: dict[str, Callable[[str], Figure]] = {"points.webp": points, "gradients.webp": gradients}
"""Name of the file -> function that draws it."""

if __name__ == "__main__":
    main({name: partial(draw, sys.argv[1]) for name, draw in OF_CHECKPOINT.items()})
