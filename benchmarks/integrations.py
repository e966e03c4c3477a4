"""Times models of ``transformers`` with and without ``accelerate``: python benchmarks/integrations.py [MODEL ...]

Each model has the size of a published checkpoint, random weights and a random image, so nothing is downloaded. Original
and accelerated model have the same weights and run one after the other in each round of one process, in alternating
order. Reports medians of wall-clock and CPU time, and the largest difference of the outputs. Appends JSON lines to
benchmarks/results/integrations.jsonl and updates the table in benchmarks/README.md.
"""

import argparse
import copy
import importlib.metadata
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import page
import torch
import transformers
from page import Line
from torch import Tensor

from detrs.devices import pick_device
from detrs.errors import did_you_mean
from detrs.integrations.transformers import accelerate
from models import device_name, seconds

RESULTS = page.HERE / "results" / "integrations.jsonl"
ATTENTION_ROUNDS = 5
NOISE = 0.02
"""Standard deviation of weights that are zero in a new model: with them, boxes would not depend on the attention."""
Inputs = dict[str, Tensor]
Built = tuple[Any, Inputs]


def images(height: int, width: int) -> Inputs:
    return {"pixel_values": torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))}


def text(height: int, width: int) -> Inputs:
    """An image and a caption of four words, each of which ends with a full stop (token 1012 of BERT)."""
    ids = torch.tensor([[101, 4937, 1012, 3899, 1012, 3586, 1012, 2482, 1012, 102]])
    return {**images(height, width), "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def resnet50() -> Any:
    return transformers.ResNetConfig(out_features=["stage2", "stage3", "stage4"])


def deformable_detr(**settings: Any) -> Built:
    """SenseTime/deformable-detr on ResNet-50, with the backbone of transformers instead of timm's."""
    config = transformers.DeformableDetrConfig(backbone_config=resnet50(), use_timm_backbone=False, **settings)
    return transformers.DeformableDetrForObjectDetection(config), images(800, 1333)


def deformable_detr_two_stage() -> Built:
    """SenseTime/deformable-detr-with-box-refine-two-stage."""
    return deformable_detr(with_box_refine=True, two_stage=True)


def rt_detr() -> Built:
    """PekingU/rtdetr_r50vd."""
    return transformers.RTDetrForObjectDetection(transformers.RTDetrConfig()), images(640, 640)


def rt_detr_v2() -> Built:
    """PekingU/rtdetr_v2_r50vd."""
    return transformers.RTDetrV2ForObjectDetection(transformers.RTDetrV2Config()), images(640, 640)


def d_fine() -> Built:
    """The defaults of transformers (HGNetV2), with the points of the published models."""
    return transformers.DFineForObjectDetection(transformers.DFineConfig(decoder_n_points=[3, 6, 3])), images(640, 640)


def deimv2() -> Built:
    """The defaults of transformers (HGNetV2), with the points of the published models."""
    config = transformers.Deimv2Config(decoder_n_points=[3, 6, 3])
    return transformers.Deimv2ForObjectDetection(config), images(640, 640)


def pp_doclayout_v3() -> Built:
    """PaddlePaddle/PP-DocLayoutV3."""
    return transformers.PPDocLayoutV3ForObjectDetection(transformers.PPDocLayoutV3Config()), images(800, 800)


def grounding_dino() -> Built:
    """IDEA-Research/grounding-dino-tiny: Swin-T and BERT."""
    return transformers.GroundingDinoForObjectDetection(transformers.GroundingDinoConfig()), text(800, 1333)


def mm_grounding_dino() -> Built:
    """openmmlab-community/mm_grounding_dino_tiny: Swin-T and BERT."""
    return transformers.MMGroundingDinoForObjectDetection(transformers.MMGroundingDinoConfig()), text(800, 1333)


def mask2former() -> Built:
    """facebook/mask2former-swin-small-coco-instance."""
    return transformers.Mask2FormerForUniversalSegmentation(transformers.Mask2FormerConfig()), images(800, 1333)


def oneformer() -> Built:
    """shi-labs/oneformer_ade20k_swin_tiny."""
    config = transformers.OneFormerConfig()
    tasks = torch.randint(100, (1, config.task_seq_len), generator=torch.Generator().manual_seed(0))
    return transformers.OneFormerForUniversalSegmentation(config), {**images(512, 683), "task_inputs": tasks}


def omdet_turbo() -> Built:
    """omlab/omdet-turbo-swin-tiny-hf, with timm's Swin-T."""
    config = transformers.OmDetTurboConfig()
    classes = torch.tensor([[49406, 2368, 49407], [49406, 1929, 49407], [49406, 1615, 49407], [49406, 1, 49407]])
    tasks = torch.tensor([[49406, 9765, 2368, 1929, 49407]])
    inputs = {
        **images(640, 640), "classes_input_ids": classes, "classes_attention_mask": torch.ones_like(classes),
        "tasks_input_ids": tasks, "tasks_attention_mask": torch.ones_like(tasks),
        "classes_structure": torch.tensor([len(classes)]),
    }  # fmt: skip
    return transformers.OmDetTurboForObjectDetection(config), inputs


def lw_detr() -> Built:
    """AnnaZhang/lwdetr_small_60e_coco."""
    config = transformers.LwDetrConfig(projector_scale_factors=[1.0])
    return transformers.LwDetrForObjectDetection(config), images(640, 640)


def rf_detr() -> Built:
    """Roboflow/rf-detr-base: DINOv2-S with windows."""
    backbone = transformers.RfDetrDinov2Config(
        hidden_size=384, num_attention_heads=6, image_size=518, out_features=["stage2", "stage5", "stage8", "stage11"]
    )
    return transformers.RfDetrForObjectDetection(transformers.RfDetrConfig(backbone_config=backbone)), images(560, 560)


MODELS: dict[str, Callable[[], Built]] = {
    each.__name__: each
    for each in (
        deformable_detr, deformable_detr_two_stage, grounding_dino, mm_grounding_dino, mask2former, oneformer,
        omdet_turbo, rt_detr, rt_detr_v2, d_fine, deimv2, pp_doclayout_v3, lw_detr, rf_detr,
    )
}  # fmt: skip


def tensors(output: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Floating-point tensors of an output, by path."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield path, output
    elif isinstance(output, dict | tuple | list):
        pairs = output.items() if isinstance(output, dict) else enumerate(output)
        for key, value in pairs:
            yield from tensors(value, f"{path}.{key}" if path else str(key))


def differences(actual: Any, expected: Any) -> dict[str, tuple[float, float]]:
    """Largest difference and largest value of each output; infinities (masked logits) are at the same places."""
    found, given = dict(tensors(actual)), dict(tensors(expected))
    assert found.keys() == given.keys()
    largest = {}
    for name, value in given.items():
        assert torch.equal(found[name].isfinite(), value.isfinite()), name
        if value.numel():
            finite = value.nan_to_num(0.0, 0.0, 0.0)
            difference = (found[name].nan_to_num(0.0, 0.0, 0.0) - finite).abs().max()
            largest[name] = (float(difference), float(finite.abs().max()))
    return largest


@torch.no_grad()
def random_model(name: str) -> Built:
    """A model, and its inputs. No weights are zero, and batch normalization has the statistics of the image.

    Otherwise the features of a new model vanish, and its outputs do not depend on the attention.
    """
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            parameter.normal_(std=NOISE)
    hooks = [
        module.register_forward_pre_hook(normalize)
        for module in model.modules()
        if getattr(module, "running_var", None) is not None
    ]
    model.eval()(**inputs)
    for hook in hooks:
        hook.remove()
    return model, inputs


def normalize(module: Any, inputs: tuple[Tensor, ...]) -> None:
    """Sets the statistics of batch normalization, which is frozen in most models, to those of its input.

    The scale becomes 1: in a new model of RT-DETR and others, it is around 0.
    """
    axes = [axis for axis in range(inputs[0].ndim) if axis != 1]
    module.running_mean.copy_(inputs[0].mean(axes))
    module.running_var.copy_(inputs[0].var(axes) + 1e-6)
    module.weight.fill_(1.0)


@torch.no_grad()
def attention_milliseconds(versions: dict[str, Any], replaced: tuple[str, ...], inputs: Inputs) -> dict[str, float]:
    """Medians of the CPU time of all replaced modules together, on their inputs in the model.

    Where they take a few percent of the time of a model, the rest of it hides the difference.
    """
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    hooks = [
        versions["original"]
        .get_submodule(name)
        .register_forward_pre_hook(lambda _, a, k, name=name: calls.append((name, a, k)), with_kwargs=True)
        for name in replaced
    ]
    versions["original"](**inputs)
    for hook in hooks:
        hook.remove()
    times: dict[str, list[float]] = {key: [] for key in versions}
    for _ in range(ATTENTION_ROUNDS):
        for key, version in versions.items():
            before = time.process_time()
            for name, args, kwargs in calls:
                version.get_submodule(name)(*args, **kwargs)
            times[key].append(time.process_time() - before)
    return {key: 1e3 * statistics.median(values) for key, values in times.items()}


@torch.no_grad()
def compare(name: str, repeats: int, budget: float, device: torch.device) -> Line:
    """Medians of one model over at least ``repeats`` rounds and ``budget`` seconds, and differences of its outputs."""
    model, inputs = random_model(name)
    model = model.to(device)
    inputs = {key: value.to(device) for key, value in inputs.items()}
    versions = {"original": model, "accelerated": copy.deepcopy(model)}
    replaced = accelerate(versions["accelerated"]).replaced
    outputs = {key: version(**inputs) for key, version in versions.items()}  # the first run compiles kernels
    wall: dict[str, list[float]] = {key: [] for key in versions}
    cpu: dict[str, list[float]] = {key: [] for key in versions}
    began = time.perf_counter()
    while len(wall["original"]) < repeats or time.perf_counter() - began < budget:
        for key in list(versions)[:: 1 if len(wall["original"]) % 2 else -1]:
            before = time.process_time()
            wall[key].append(seconds(lambda: versions[key](**inputs), device))  # noqa: B023
            cpu[key].append(time.process_time() - before)
    return {
        "model": name,
        "image_size": list(inputs["pixel_values"].shape[2:]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "replaced": len(replaced),
        "milliseconds": {key: 1e3 * statistics.median(values) for key, values in wall.items()},
        "cpu_milliseconds": {key: 1e3 * statistics.median(values) for key, values in cpu.items()},
        "ratios": ratios(wall),
        "cpu_ratios": ratios(cpu),
        "attention_cpu_milliseconds": attention_milliseconds(versions, replaced, inputs),
        "differences": differences(outputs["accelerated"], outputs["original"]),
        "repeats": len(wall["original"]),
        "device": device_name(device),
        "versions": {key: importlib.metadata.version(key) for key in ("detrs", "torch", "transformers")},
        "commit": page.commit(),
    }


def ratios(times: dict[str, list[float]]) -> list[float]:
    """Of the two runs of each round."""
    return [round(a / b, 4) for a, b in zip(times["original"], times["accelerated"], strict=True)]


def attention_ratio(line: Line) -> str:
    times = line.get("attention_cpu_milliseconds")
    return f"{times['original'] / times['accelerated']:.1f}x" if times else "-"


def largest_difference(line: Line) -> float:
    """Relative to the largest value of the output, if that is above 1."""
    return max(difference / max(1.0, value) for difference, value in line["differences"].values())


def table(lines: list[Line]) -> str:
    """Markdown: one section per machine, one row per model."""
    sections = []
    for device in dict.fromkeys(line["device"] for line in lines):
        here = [line for line in lines if line["device"] == device]
        versions = ", ".join(f"{name} {version}" for name, version in here[-1]["versions"].items())
        rows = [
            [
                f"`{line['model']}`, {line['image_size'][0]} x {line['image_size'][1]}",
                str(line["replaced"]),
                f"{line['milliseconds']['original']:.0f}",
                f"{line['milliseconds']['accelerated']:.0f}",
                f"{statistics.median(line['ratios']):.2f}x",
                f"{statistics.median(line['cpu_ratios']):.2f}x",
                attention_ratio(line),
                str(line["repeats"]),
                f"{largest_difference(line):.0e}",
            ]
            for line in here
        ]
        header = [
            "model",
            "modules",
            "original, ms",
            "accelerated, ms",
            "ratio",
            "CPU time",
            "attention",
            "rounds",
            "difference",
        ]
        sections.append(f"**{device}** ({versions})\n\n{page.table(header, rows)}\n")
    return "\n".join(sections)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="*", help="default: all")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=5, help="smallest number of rounds")
    parser.add_argument("--seconds", type=float, default=60, help="smallest time of the rounds of each model")
    arguments = parser.parse_args()
    chosen = arguments.model or list(MODELS)
    for name in chosen:
        if name not in MODELS:
            parser.error(f"unknown model '{name}'.{did_you_mean(name, MODELS)} Known: {', '.join(MODELS)}")
    device = pick_device(arguments.device)
    for name in chosen:
        line = compare(name, arguments.repeats, arguments.seconds, device)
        page.append(RESULTS, line)
        print(line, flush=True)
    page.put("integrations", table(page.newest(RESULTS, lambda line: (line["device"], line["model"]))), page.README)


if __name__ == "__main__":
    main()
