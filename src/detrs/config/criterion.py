"""Settings of the set criterion."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Le

BoxCoordinates = Literal["cxcywh", "xyxy"]
"""Coordinates of the L1 distance of boxes."""


@dataclass(frozen=True, kw_only=True)
class NoDenoising:
    """Only the detector's own queries are trained."""


@dataclass(frozen=True, kw_only=True)
class GroupDenoising:
    """In training, boxes of objects with noise as further queries, in groups (DN-DETR, 4.2).

    For detectors whose queries are boxes from the start.
    """

    groups: Annotated[int, Ge(1), Le(1_000)] = 5
    """Copies of each object; the queries of a group attend to each other and to those that are matched."""
    label_noise: Annotated[float, Ge(0), Le(1)] = 0.2
    """Probability that a label is replaced by a random one."""
    box_noise: Annotated[float, Ge(0), Le(1)] = 0.4
    """Largest shift of a center, in halves of the box's sides, and largest change of a side, relative to it."""
    hide_padding: bool = False
    """Images with fewer objects than others have unused queries. True: no query attends to them. False: as in the
    authors' code, so that losses depend on the other images of the batch."""
    max_objects: Annotated[int, Ge(1)] | None = None
    """Denoise at most this number of objects of an image, another random choice in each step; ``None``: all."""


@dataclass(frozen=True, kw_only=True)
class ContrastiveDenoising:
    """In training, boxes of objects with little and with much noise as further queries; only the former are to find
    their object (DINO, 3.2).

    For detectors whose queries are boxes from the start.
    """

    pairs: Annotated[int, Ge(1), Le(10_000)] = 100
    """Number of pairs of queries per image. There are as many groups with a pair per object as fit, at least one."""
    label_noise: Annotated[float, Ge(0), Le(1)] = 0.25
    """Probability that a label is replaced by a random one; half of the paper's ``label_noise_ratio`` of 0.5."""
    box_noise: Annotated[float, Ge(0), Le(2)] = 1.0
    """Noise of corners, in halves of the box's sides: up to this, and from this to twice this where nothing is to be
    found."""
    hide_padding: bool = False
    """Images with fewer objects than others have unused queries. True: no query attends to them, and they are not in
    the loss. False: they are trained to find nothing, as in the authors' code, so that losses depend on the other
    images of the batch."""
    max_objects: Annotated[int, Ge(1)] | None = None
    """Denoise at most this number of objects of an image, another random choice in each step; ``None``: all."""


Denoising = NoDenoising | GroupDenoising | ContrastiveDenoising


@dataclass(frozen=True, kw_only=True)
class OneToOne:
    """Each object is matched with one query."""


@dataclass(frozen=True, kw_only=True)
class OneToMany:
    """In training, each object is also matched with several of further queries, which do not attend to the others.

    One group whose objects are repeated is H-DETR (Jia et al. 2022, arXiv 2207.13080, 3.2: hybrid branch); several
    groups without repeats are Group DETR (Chen et al. 2022, arXiv 2207.13085).
    """

    groups: Annotated[int, Ge(1), Le(100)] = 1
    """Groups of further queries; each is matched on its own, and attends to itself only."""
    queries: Annotated[int, Ge(1), Le(10_000)] = 300
    """Queries of a group. From proposals: the best ones after those of the detector, dealt to the groups in turn."""
    repeats: Annotated[int, Ge(1), Le(100)] = 6
    """Queries of a group that are matched with each object."""
    weight: Annotated[float, Ge(0)] = 1.0
    """Weight of their loss, which is divided by the number of groups and repeats."""


Assignment = OneToOne | OneToMany
Quality = Literal["none", "varifocal", "matchability"]
"""What the score of a matched query is trained to be."""


@dataclass(frozen=True, kw_only=True)
class CriterionConfig:
    """Weights of the box terms, in the matching and in the loss (DETR, A.4).

    The weight of the classification term is ``model.classification.weight``.
    """

    box_weight: Annotated[float, Ge(0)] = 5.0
    """Weight of the L1 distance of normalized boxes."""
    box_coordinates: BoxCoordinates = "cxcywh"
    """Coordinates of the L1 distance. ``cxcywh``: center and size. ``xyxy``: corners (Sparse R-CNN)."""
    giou_weight: Annotated[float, Ge(0)] = 2.0
    """Weight of 1 - GIoU."""
    auxiliary: bool = True
    """Supervise every decoder layer, not only the last."""
    quality: Quality = "none"
    """What the score of a matched query is trained to be; with the focal loss only, whose alpha and gamma then are for
    the matching alone. ``none``: 1. ``varifocal``: the IoU of its box and the object (VarifocalNet, 3.2, as in
    RT-DETR). ``matchability``: a power of it (DEIM, Eq. 4)."""
    look_forward: Literal["once", "twice"] = "once"
    """``twice``: the loss of a decoder layer also trains the box that the layer before refined (DINO, 3.4); for
    detectors that refine boxes. DINO and DAB-DETR do so in any case."""
    denoising: Denoising = field(default_factory=NoDenoising)
    """Further queries in training, which do not change the detector."""
    assignment: Assignment = field(default_factory=OneToOne)
    """Number of queries that are matched with an object in training."""
