"""Draw the photographs of the gallery and of the README from trained detectors.

    python docs/figures/gallery.py cells runs/bccd 0.4 bccd/images/a.jpg bccd/images/b.jpg ...
    python docs/figures/gallery.py digits runs/demo 0.4

``cells`` needs a Deformable DETR trained on BCCD and images of its validation split; ``digits`` the detector of ``detrs
demo``. The number is the threshold. The figures are written beside this file.
"""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

import detrs
from detrs.data import open_dataset
from detrs.explanation.views import Explanation, SamplingView
from detrs.visualization.draw import draw_detections

HERE = Path(__file__).parent
LEVELS = ("#E69F00", "#56B4E9", "#CC79A7", "#F0E442")
"""Colors of the levels, fine to coarse: of the palette of Okabe and Ito."""
MAX_BYTES = 200_000


def main() -> None:
    what, checkpoint, threshold, *images = sys.argv[1:]
    detector = detrs.load(checkpoint, device="cpu")
    if what == "cells":
        cells(detector, float(threshold), images)
    elif what == "digits":
        digits(detector, float(threshold))
    else:
        raise SystemExit(f"Expected cells or digits, got {what}.")


def cells(detector: detrs.Predictor, threshold: float, images: list[str]) -> None:
    """Detections, sampling points and gradients on blood cells."""
    save(tiles(detections(detector, images, threshold), columns=2), "cells_detections")
    save(tiles(detections(detector, images[:2], threshold), columns=2), "cells")
    (explained,) = detrs.explain(detector, images[0], threshold=threshold, num_gradients=1)
    save(sampling_points(explained), "cells_sampling_points")
    save(gradients(explained), "cells_gradients")


def digits(detector: detrs.Predictor, threshold: float) -> None:
    """Detections in the first validation images of the demo dataset."""
    dataset = open_dataset("digits", "val")
    images = [dataset[index].image.numpy().transpose(1, 2, 0) for index in range(8)]
    save(tiles(detections(detector, images, threshold), columns=4), "digits_detections")


def detections(detector: detrs.Predictor, images: list[Any], threshold: float) -> list[Image.Image]:
    """The images with their detections."""
    found = detector.predict_iter(images, threshold=threshold)
    return [draw_detections(image, each, threshold) for image, each in found]


def sampling_points(explained: Explanation) -> Image.Image:
    """The sampling points of the best detection in each decoder layer, enlarged."""
    views = [view for view in explained.views if isinstance(view, SamplingView) and view.stage == "decoder"]
    query, (height, width) = explained.queries[0], explained.detections.image_size
    figure = panels(explained, len(views))
    x1, y1, x2, y2 = explained.detections.boxes_xyxy[0].tolist()
    side = 0.7 * max(x2 - x1, (y2 - y1) * width / height)
    for number, (axes, view) in enumerate(zip(figure.axes, views, strict=True)):
        row = view.queries.tolist().index(query)
        axes.set_title(f"decoder layer {number + 1}", fontsize=10)
        points(axes, view.locations[row], view.weights[row], (height, width))
        box(axes, explained, 0)
        axes.set_xlim((x1 + x2) / 2 - side, (x1 + x2) / 2 + side)
        axes.set_ylim((y1 + y2) / 2 + side * height / width, (y1 + y2) / 2 - side * height / width)
    figure.axes[0].legend(loc="lower left", fontsize=8, framealpha=0.9)
    return rendered(figure)


def points(axes: Axes, locations: Tensor, weights: Tensor, image_size: tuple[int, int]) -> None:
    """Sampling points (M, L, P, 2) of one query; the area of a point is proportional to its weight (M, L, P)."""
    height, width = image_size
    for level, color in zip(range(locations.shape[1]), LEVELS, strict=False):
        x, y = (locations[:, level].flatten(0, 1) * locations.new_tensor([width, height])).T.numpy()
        area = 500 * weights[:, level].flatten().numpy()
        axes.scatter(
            x,
            y,
            s=area + 4,
            color=color,
            edgecolors="black",
            linewidths=0.6,
            label=f"level {level + 1}, stride {8 << level}",
        )


def gradients(explained: Explanation) -> Image.Image:
    """Gradient norms of the best detection: of its score, and of two coordinates of its box."""
    figure = panels(explained, 3)
    height, width = explained.detections.image_size
    for axes, (name, title) in zip(figure.axes, (("score", "score"), ("x", "center x"), ("w", "width")), strict=True):
        norm = explained.gradients[0].maps[name].numpy()
        largest = float(np.quantile(norm, 0.999))
        axes.imshow(norm, extent=(0, width, height, 0), cmap="magma", vmin=0, vmax=largest)
        axes.set_title(f"|d {title} / d image|", fontsize=10)
        box(axes, explained, explained.gradients[0].detection)
    return rendered(figure)


def panels(explained: Explanation, number: int) -> Figure:
    """A figure with the image in each of ``number`` panels."""
    height, width = explained.detections.image_size
    figure = Figure(figsize=(3.6 * number, 3.6 * height / width + 0.3), dpi=110, layout="constrained")
    for axes in figure.subplots(1, number, squeeze=False)[0]:
        axes.imshow(explained.image.permute(1, 2, 0).numpy())
        axes.set_axis_off()
    return figure


def box(axes: Axes, explained: Explanation, number: int) -> None:
    """The box of a detection, and its name and score as title unless there is one."""
    x1, y1, x2, y2 = explained.detections.boxes_xyxy[number].tolist()
    for color, line_width in (("black", 3.0), ("white", 1.4)):
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=line_width))
    if not axes.get_title():
        score = explained.detections.scores[number]
        axes.set_title(f"{explained.detections.names[number]} {score:.2f}", fontsize=10)


def tiles(images: list[Image.Image], columns: int) -> Image.Image:
    """Images of equal size, side by side."""
    width, height = images[0].size
    assert all(image.size == (width, height) for image in images)
    rows = -(-len(images) // columns)
    gap = 8
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for number, image in enumerate(images):
        sheet.paste(image, (number % columns * (width + gap), number // columns * (height + gap)))
    return sheet


def rendered(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def save(image: Image.Image, name: str) -> None:
    """Write a WebP file of at most ``MAX_BYTES``."""
    path = HERE / f"{name}.webp"
    for quality in (88, 80, 70, 60, 50):
        image.save(path, quality=quality, method=6)
        if path.stat().st_size <= MAX_BYTES:
            print(path, path.stat().st_size, image.size)
            return
    raise SystemExit(f"{path} has more than {MAX_BYTES} bytes.")


if __name__ == "__main__":
    main()
