"""Published checkpoints of the family on COCO 2017: where they are, and the AP that the authors report.

The weights do not show everything: a DETR with dilated C5 (DC5) has the same tensors as one without. The table fills
this in for a file with a published name, and the promised scores.
"""

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from detrs.presets import preset

if TYPE_CHECKING:
    from detrs.data.preprocessing import Preprocessing


class Published(NamedTuple):
    """A published checkpoint."""

    source: str
    """Hub id ``owner/name``, or the name of the file."""
    url: str
    """Page or file to download."""
    preset: str
    """Our preset of the same model."""
    ap: float
    """COCO AP on val2017 of the released weights, as its authors report it, in [0, 1]."""
    sha256: str | None = None
    """SHA-256 of the file, or its first digits if the authors give only those; ``None``: not published."""

    @property
    def on_hub(self) -> bool:
        """Whether ``detrs.load(source)`` downloads it; other files are downloaded by hand."""
        return "/" in self.source

    @property
    def dilated(self) -> bool:
        """Whether C5 is dilated (DC5)."""
        return "-dc5" in self.preset

    @property
    def preprocessing(self) -> "Preprocessing":
        """The preprocessing of its evaluation."""
        from detrs.checkpoints.detector import preprocessing_of

        return preprocessing_of(preset(self.preset))

    @property
    def scores(self) -> dict[str, Any]:
        """The promised scores of a :class:`TrainedDetector`."""
        return {"ap": self.ap}


HUB = "https://huggingface.co"
DETR = "https://dl.fbaipublicfiles.com/detr"
DEFORMABLE = "https://github.com/fundamentalvision/Deformable-DETR"
CONDITIONAL = "https://github.com/Atten4Vis/ConditionalDETR"
ANCHOR = "https://github.com/megvii-research/AnchorDETR"
SPARSE = "https://github.com/PeizeSun/SparseR-CNN"
DINO = "https://drive.google.com/drive/folders/1qD5m1NmK0kjE5hh-G17XUX751WsEG-h_"
TORCHVISION = "https://download.pytorch.org/models"
REFINE = "r50_deformable_detr_plus_iterative_bbox_refinement"


def _hub(source: str, preset: str, ap: float) -> Published:
    return Published(source, f"{HUB}/{source}", preset, ap)


def _hashed(name: str, folder: str, preset: str, ap: float) -> Published:
    """A file of ``torch.hub``, whose name ends with the first digits of its SHA-256."""
    return Published(name, f"{folder}/{name}", preset, ap, PurePosixPath(name).stem.rpartition("-")[2])


TABLE = (
    _hub("facebook/detr-resnet-50", "detr-r50", 0.420),
    _hub("facebook/detr-resnet-50-dc5", "detr-r50-dc5", 0.433),
    _hub("facebook/detr-resnet-101", "detr-r101", 0.435),
    _hub("facebook/detr-resnet-101-dc5", "detr-r101-dc5", 0.449),
    _hub("microsoft/conditional-detr-resnet-50", "conditional-detr-r50", 0.410),
    _hub("SenseTime/deformable-detr-single-scale", "deformable-detr-r50-single-scale", 0.394),
    _hub("SenseTime/deformable-detr-single-scale-dc5", "deformable-detr-r50-single-scale-dc5", 0.415),
    _hub("SenseTime/deformable-detr", "deformable-detr-r50", 0.445),
    _hub("SenseTime/deformable-detr-with-box-refine", "deformable-detr-r50-refine", 0.462),
    _hub("SenseTime/deformable-detr-with-box-refine-two-stage", "deformable-detr-r50-two-stage", 0.469),
    _hub("IDEA-Research/dab-detr-resnet-50", "dab-detr-r50", 0.422),
    _hub("IDEA-Research/dab-detr-resnet-50-dc5", "dab-detr-r50-dc5", 0.445),
    _hashed("detr-r50-e632da11.pth", DETR, "detr-r50", 0.420),
    _hashed("detr-r50-dc5-f0fb7ef5.pth", DETR, "detr-r50-dc5", 0.433),
    _hashed("detr-r101-2c7b67e5.pth", DETR, "detr-r101", 0.435),
    _hashed("detr-r101-dc5-a2e86def.pth", DETR, "detr-r101-dc5", 0.449),
    Published("ConditionalDETR_r50_epoch50.pth", CONDITIONAL, "conditional-detr-r50", 0.410),
    Published("ConditionalDETR_r50dc5_epoch50.pth", CONDITIONAL, "conditional-detr-r50-dc5", 0.437),
    Published("ConditionalDETR_r101_epoch50.pth", CONDITIONAL, "conditional-detr-r101", 0.428),
    Published("ConditionalDETR_r101dc5_epoch50.pth", CONDITIONAL, "conditional-detr-r101-dc5", 0.450),
    Published("r50_deformable_detr_single_scale-checkpoint.pth", DEFORMABLE, "deformable-detr-r50-single-scale", 0.394),
    Published(
        "r50_deformable_detr_single_scale_dc5-checkpoint.pth", DEFORMABLE, "deformable-detr-r50-single-scale-dc5", 0.415
    ),
    Published("r50_deformable_detr-checkpoint.pth", DEFORMABLE, "deformable-detr-r50", 0.445),
    Published(f"{REFINE}-checkpoint.pth", DEFORMABLE, "deformable-detr-r50-refine", 0.462),
    Published(f"{REFINE}_plus_plus_two_stage-checkpoint.pth", DEFORMABLE, "deformable-detr-r50-two-stage", 0.469),
    Published("AnchorDETR_r50_c5.pth", ANCHOR, "anchor-detr-r50", 0.421),
    Published("AnchorDETR_r50_dc5.pth", ANCHOR, "anchor-detr-r50-dc5", 0.443),
    Published("AnchorDETR_r101_c5.pth", ANCHOR, "anchor-detr-r101", 0.435),
    Published("AnchorDETR_r101_dc5.pth", ANCHOR, "anchor-detr-r101-dc5", 0.451),
    Published("checkpoint0011_4scale.pth", DINO, "dino-r50-4scale", 0.490),
    Published("checkpoint0023_4scale.pth", DINO, "dino-r50-4scale-24", 0.504),
    Published("checkpoint0033_4scale.pth", DINO, "dino-r50-4scale-36", 0.509),
    Published("checkpoint0011_5scale.pth", DINO, "dino-r50-5scale", 0.494),
    Published("r50_100pro_3x_model.pth", SPARSE, "sparse-rcnn-r50-100", 0.428),
    Published("r50_300pro_3x_model.pth", SPARSE, "sparse-rcnn-r50-300", 0.450),
    Published("r101_100pro_3x_model.pth", SPARSE, "sparse-rcnn-r101-100", 0.441),
    Published("r101_300pro_3x_model.pth", SPARSE, "sparse-rcnn-r101-300", 0.464),
    _hashed("fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", TORCHVISION, "faster-rcnn-r50-fpn", 0.370),
)
"""Hub ids first, then the files of the official repositories."""

DUPLICATE = re.compile(r" ?\(\d+\)(?=\.\w+$)")
"""What browsers add to the name of a second download: ``detr (1).pth``."""


def find(source: str) -> Published | None:
    """The published checkpoint of a Hub id or of a file name; ``None`` if it is not in the table."""
    name = DUPLICATE.sub("", source)
    return next((each for each in TABLE if each.source == name), None)
