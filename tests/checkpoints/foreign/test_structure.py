import pytest
import timm
import torch

from detrs.checkpoints.foreign.official_detr import backbone_name
from detrs.checkpoints.foreign.structure import RESNETS, Structure
from detrs.checkpoints.foreign.transformers_backbone import read_backbone, written_backbone

STAGES = (3, 4, 5)


@pytest.mark.parametrize("kind, blocks", RESNETS)
def test_every_reader_gives_a_resnet_the_same_weights_to_start_from(kind: str, blocks: tuple[int, ...]) -> None:
    name = RESNETS[kind, blocks]
    plain = name.partition(".")[0]
    assert timm.is_model_pretrained(name)
    with torch.device("meta"):
        model = timm.create_model(plain)
    tensors = {f"backbone.0.body.{key}": tensor for key, tensor in model.state_dict().items()}
    widths = [each["num_chs"] for each in model.feature_info[1:]]
    own = {"model_type": "resnet", "layer_type": kind, "depths": list(blocks), "hidden_sizes": widths}
    microsoft = {"backbone": f"microsoft/resnet-{plain.removeprefix('resnet')}", "use_timm_backbone": False}
    configs = ({"backbone": plain}, {"backbone": name}, {"backbone_config": own}, microsoft)
    read = [read_backbone(config, single_map=False, default_stages=STAGES).config for config in configs]
    assert backbone_name(tensors) == Structure(tensors, "a.pth").resnet("backbone.0.body.") == name
    assert [config.name for config in read] == [name] * len(configs)
    assert written_backbone(read[0], STAGES, single_map=False)["backbone"] == plain
