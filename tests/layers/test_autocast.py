import pytest
import torch
from torch import Tensor, nn

from detrs import ops
from detrs.backbones.timm import BackboneConfig
from detrs.layers.autocast import for_linear_layers
from detrs.layers.deformable_attention import DeformableAttention
from detrs.layers.neck import ChannelMapper, LevelEmbedding, PyramidNeck, normalized_projection
from detrs.layers.position import SinePosition
from detrs.models import build
from detrs.models.deformable_detr import DeformableDETRConfig
from detrs.structures import Pyramid


def test_conversion_only_within_autocast_and_only_of_float32() -> None:
    x = torch.randn(3, 5)
    assert for_linear_layers(x) is x
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(for_linear_layers(x), x.bfloat16())
        for other in (x.double(), x.bfloat16()):
            assert for_linear_layers(other) is other  # as autocast itself
        with torch.autocast("cpu", enabled=False):
            assert for_linear_layers(x) is x


def inputs_of(model: nn.Module, ending: str) -> list[Tensor]:
    """Appended to in each call of the linear layers whose names have this ending."""
    inputs: list[Tensor] = []
    for name, module in model.named_modules():
        if name.endswith(ending):
            module.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    return inputs


@pytest.mark.parametrize("reference", ["keep", "refine"])
def test_all_decoder_layers_project_the_same_converted_tokens(reference: str) -> None:
    config = DeformableDETRConfig(
        backbone=BackboneConfig(name="test_resnet"), dim=32, num_heads=2, num_levels=3, encoder_layers=1,
        decoder_layers=3, ffn_dim=32, num_queries=5, num_classes=2, reference=reference,
    )  # fmt: skip
    torch.manual_seed(0)
    model = build(config).eval()
    values = inputs_of(model.decoder, "cross_attention.attention.value_proj")
    images, padding = torch.randn(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool)
    with torch.no_grad(), ops.use("reference"):
        memory = model.encoder(model.neck(model.backbone(images), padding))  # float32, as on GPUs within autocast
        queries, _ = model.queries(memory)
        expected = model.decoder(queries, memory)[0][-1]
        assert all(each is values[0] and each.dtype == torch.float32 for each in values)
        values.clear()
        with torch.autocast("cpu", torch.bfloat16):
            found = model.decoder(queries, memory)[0][-1]
    assert len(values) == 3 and all(each is values[0] and each.dtype == torch.bfloat16 for each in values)
    assert found.boxes.dtype == torch.float32
    torch.testing.assert_close(found.boxes, expected.boxes, atol=2e-2, rtol=0)


def test_offsets_and_weights_are_projected_from_one_converted_query() -> None:
    attention = DeformableAttention(32, 2, 1, 2)
    inputs = [inputs_of(attention, name) for name in ("sampling_offsets", "attention_weights")]
    query = torch.randn(2, 7, 32)
    nn.init.normal_(attention.sampling_offsets.weight)
    nn.init.normal_(attention.attention_weights.weight)
    ones, no_padding = torch.ones(2, 1, 2), torch.zeros(2, 7, dtype=torch.bool)
    memory = Pyramid(query, query, torch.rand(2, 7, 2), no_padding, ((1, 7),), ones, torch.tensor([[8, 56]] * 2))
    with torch.autocast("cpu", torch.bfloat16):
        offsets, logits, _ = attention.samples(query, memory.reference_points, memory)
        assert torch.equal(offsets.flatten(2), attention.sampling_offsets(query))  # what autocast alone computes
        assert torch.equal(logits.flatten(2), attention.attention_weights(query))
    assert inputs[0][0] is inputs[1][0] and inputs[0][0].dtype == torch.bfloat16


def test_tokens_and_position_have_the_type_of_linear_layers_and_so_has_their_sum() -> None:
    """A sum of bfloat16 and float32 would be computed in float32, and converted back in every layer."""
    neck = PyramidNeck(ChannelMapper((3,), 32, 2, normalized_projection), SinePosition(32, -0.5), LevelEmbedding(2, 32))
    maps, padding = [torch.randn(1, 3, 10, 20)], torch.zeros(1, 80, 160, dtype=torch.bool)
    expected = neck(maps, padding)
    with torch.autocast("cpu", torch.bfloat16):
        found = neck(maps, padding)
    assert expected.position.dtype == torch.float32
    assert found.tokens.dtype == found.position.dtype == torch.bfloat16
    assert torch.equal(found.position, expected.position.bfloat16())  # sines and level embeddings are not in bfloat16
    assert torch.equal(found.reference_points, expected.reference_points)
    assert found.reference_points.dtype == found.valid_ratio.dtype == torch.float32
