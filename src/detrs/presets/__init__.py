"""Presets: named experiments, functions in one literal table; each docstring gives the paper's row.

The presets with a ResNet are the official recipes on COCO 2017 (118,287 training images), AdamW with a learning rate
divided by ten after four fifths of the epochs: Deformable DETR 50 epochs, batch 32, 2e-4; DETR 500 epochs, batch 64,
1e-4; Conditional DETR 50 epochs, batch 16 (DC5: 8), 1e-4; Anchor DETR 50 epochs, batch 8, 1e-4; Sparse R-CNN 36 epochs,
batch 16, 2.5e-5, with two drops; DAB- and DN-DETR 50 epochs, DINO 12, 24 or 36 (drops after 11, 20, 30), batch 16,
1e-4. AP is on val2017, of the authors' released weights where the paper's differs;
parameters and GFLOPs (multiply-adds, as papers count) are the paper's rows, for 91 classes (Sparse R-CNN: 80).
"""

from collections.abc import Callable
from dataclasses import replace

from detrs.config import Experiment
from detrs.errors import UserError, did_you_mean
from detrs.presets import dab_detr, deformable_detr, dynamic_detr, efficient_detr, faster_rcnn, single_map, sparse_rcnn

PRESETS: dict[str, Callable[[], Experiment]] = {
    "deformable-detr-tiny": deformable_detr.deformable_detr_tiny,
    "deformable-detr-small": deformable_detr.deformable_detr_small,
    "deformable-detr-r50-single-scale": deformable_detr.deformable_detr_r50_single_scale,
    "deformable-detr-r50-single-scale-dc5": deformable_detr.deformable_detr_r50_single_scale_dc5,
    "deformable-detr-r50": deformable_detr.deformable_detr_r50,
    "deformable-detr-r50-refine": deformable_detr.deformable_detr_r50_refine,
    "deformable-detr-r50-two-stage": deformable_detr.deformable_detr_r50_two_stage,
    "deformable-detr-r50-single-scale-k1": deformable_detr.deformable_detr_r50_single_scale_k1,
    "deformable-detr-r50-own-level-k1": deformable_detr.deformable_detr_r50_own_level_k1,
    "deformable-detr-r50-own-level": deformable_detr.deformable_detr_r50_own_level,
    "deformable-detr-r50-fpn": deformable_detr.deformable_detr_r50_fpn,
    "deformable-detr-r50-bifpn": deformable_detr.deformable_detr_r50_bifpn,
    "deformable-detr-r101-single-scale": deformable_detr.deformable_detr_r101_single_scale,
    "deformable-detr-r101-single-scale-dc5": deformable_detr.deformable_detr_r101_single_scale_dc5,
    "deformable-detr-r101": deformable_detr.deformable_detr_r101,
    "deformable-detr-r101-refine": deformable_detr.deformable_detr_r101_refine,
    "deformable-detr-r101-two-stage": deformable_detr.deformable_detr_r101_two_stage,
    "detr-tiny": single_map.detr_tiny,
    "detr-r50": single_map.detr_r50,
    "detr-r50-dc5": single_map.detr_r50_dc5,
    "detr-r50-dc5-plus": single_map.detr_r50_dc5_plus,
    "detr-r101": single_map.detr_r101,
    "detr-r101-dc5": single_map.detr_r101_dc5,
    "conditional-detr-tiny": single_map.conditional_detr_tiny,
    "conditional-detr-r50": single_map.conditional_detr_r50,
    "conditional-detr-r50-dc5": single_map.conditional_detr_r50_dc5,
    "conditional-detr-r101": single_map.conditional_detr_r101,
    "conditional-detr-r101-dc5": single_map.conditional_detr_r101_dc5,
    "anchor-detr-tiny": single_map.anchor_detr_tiny,
    "anchor-detr-r50": single_map.anchor_detr_r50,
    "anchor-detr-r50-dc5": single_map.anchor_detr_r50_dc5,
    "anchor-detr-r101": single_map.anchor_detr_r101,
    "anchor-detr-r101-dc5": single_map.anchor_detr_r101_dc5,
    "deformable-detr-dat-tiny": deformable_detr.deformable_detr_dat_tiny,
    "efficient-detr-tiny": efficient_detr.efficient_detr_tiny,
    "efficient-detr-r50": efficient_detr.efficient_detr_r50,
    "efficient-detr-r50-6enc": efficient_detr.efficient_detr_r50_6enc,
    "efficient-detr-r101": efficient_detr.efficient_detr_r101,
    "efficient-detr-r101-6enc": efficient_detr.efficient_detr_r101_6enc,
    "dynamic-detr-tiny": dynamic_detr.dynamic_detr_tiny,
    "dynamic-detr-r50": dynamic_detr.dynamic_detr_r50,
    "faster-rcnn-tiny": faster_rcnn.faster_rcnn_tiny,
    "faster-rcnn-small": faster_rcnn.faster_rcnn_small,
    "faster-rcnn-r50-fpn": faster_rcnn.faster_rcnn_r50_fpn,
    "sparse-rcnn-tiny": sparse_rcnn.sparse_rcnn_tiny,
    "sparse-rcnn-r50-100": sparse_rcnn.sparse_rcnn_r50_100,
    "sparse-rcnn-r50-300": sparse_rcnn.sparse_rcnn_r50_300,
    "sparse-rcnn-r101-100": sparse_rcnn.sparse_rcnn_r101_100,
    "sparse-rcnn-r101-300": sparse_rcnn.sparse_rcnn_r101_300,
    "dab-detr-tiny": dab_detr.dab_detr_tiny,
    "dab-detr-r50": dab_detr.dab_detr_r50,
    "dab-detr-r50-dc5": dab_detr.dab_detr_r50_dc5,
    "dn-detr-tiny": dab_detr.dn_detr_tiny,
    "dn-detr-r50": dab_detr.dn_detr_r50,
    "dab-deformable-detr-tiny": dab_detr.dab_deformable_detr_tiny,
    "dab-deformable-detr-r50": dab_detr.dab_deformable_detr_r50,
    "dn-deformable-detr-tiny": dab_detr.dn_deformable_detr_tiny,
    "dn-deformable-detr-r50": dab_detr.dn_deformable_detr_r50,
    "dino-tiny": dab_detr.dino_tiny,
    "dino-small": dab_detr.dino_small,
    "dino-r50-4scale": dab_detr.dino_r50_4scale,
    "dino-r50-4scale-24": dab_detr.dino_r50_4scale_24,
    "dino-r50-4scale-36": dab_detr.dino_r50_4scale_36,
    "dino-r50-5scale": dab_detr.dino_r50_5scale,
    "dino-swin-l-4scale": dab_detr.dino_swin_l_4scale,
    "dino-swin-l-5scale": dab_detr.dino_swin_l_5scale,
}


def preset(name: str) -> Experiment:
    """The experiment called ``name``; see ``PRESETS``.

    Raises:
        UserError: for an unknown name, with the nearest known one.
    """
    if name not in PRESETS:
        raise UserError(f"There is no preset '{name}'.{did_you_mean(name, PRESETS)} See: detrs presets")
    return replace(PRESETS[name](), name=name)
