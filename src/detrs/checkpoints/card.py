"""The model card of a detector: README.md of a repository on the Hugging Face Hub, from its checkpoint and its run."""

import importlib.metadata
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from detrs.checkpoints.classes import is_unused
from detrs.checkpoints.detector import TrainedDetector
from detrs.config import Experiment
from detrs.presets import PRESETS, preset
from detrs.presets.fitted import FITTED
from detrs.schema import hints_of, is_dataclass, variants

METRICS = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ar100": "AR",
}
"""Score -> its name."""
CURVES = "results.png"
NOT_IN_COMMANDS = ("name", "initial", "runtime", "data.path", "model.num_classes")
"""Settings that a command does not repeat, or has common flags for."""


class Contents(NamedTuple):
    """What a repository contains beside the card and ``best.safetensors``."""

    has_transformers: bool
    """A model of ``transformers``."""
    has_curves: bool
    """``results.png``."""


def model_card(
    detector: TrainedDetector,
    repository: str,
    *,
    license: str | None,
    contents: Contents,
    per_class: Mapping[str, Mapping[str, Any]],
) -> str:
    """The card as Markdown with YAML front matter.

    Args:
        detector: its experiment, classes and scores are described.
        repository: ``owner/name``.
        license: identifier of the Hub, for example ``apache-2.0``.
        contents: files of the repository.
        per_class: class name -> ``ap``, ``ap50``, ``ar``, ``num_objects``; empty: unknown.
    """
    experiment = detector.experiment
    used = [name for name in detector.classes.names if not is_unused(name)]
    architecture = type(experiment.model).__name__.removesuffix("Config")
    data = experiment.data.path or "data in Python"
    is_trained = detector.step > 0
    origin = "trained with" if is_trained else "converted, not trained, with"
    parts = [
        front_matter(detector, repository, license, contents),
        f"# {repository.partition('/')[2]}",
        f"{architecture} ({experiment.name or 'own settings'}) for {len(used)} classes, {origin} "
        f"[detrs](https://pypi.org/project/detrs) {importlib.metadata.version('detrs')}.",
        "## Usage",
        block("python", f'import detrs\n\ndetections = detrs.load("{repository}")("image.jpg")'),
        threshold_of(detector),
    ]
    if contents.has_transformers:
        parts += ["With `transformers`:", block("python", transformers_usage(repository))]
        if nms := experiment.evaluation.suppression:
            parts.append(
                "`transformers` does not apply the non-maximum suppression with which the detector was scored. Apply "
                f"`torchvision.ops.batched_nms(boxes, scores, labels, {nms:g})` to its detections."
            )
    parts += ["## Results", *results(detector, per_class)]
    if contents.has_curves:
        parts.append(f"![Loss, loss terms, AP and learning rate over the steps of the training]({CURVES})")
    parts += ["## Classes", ", ".join(map(text, used)) + "."]
    if is_trained:
        parts += ["## Training", table(("setting", "value"), training_rows(detector, text(data)))]
        if line := command(experiment):
            parts += ["Command:", block("bash", line)]
    parts += ["## License", license or "No license was given."]
    return "\n\n".join(parts) + "\n"


def threshold_of(detector: TrainedDetector) -> str:
    """The default threshold in a sentence."""
    if detector.threshold is None:
        return "Detections below a score of 0.5 are left out; `threshold=` changes that."
    return (
        f"Detections below a score of {detector.threshold} are left out: this threshold maximizes F1 at IoU 0.5 on "
        "the validation split. `threshold=` changes it."
    )


def front_matter(detector: TrainedDetector, repository: str, license: str | None, contents: Contents) -> str:
    """YAML for the Hub: license, tags, and the scores as ``model-index``."""
    from huggingface_hub import EvalResult, ModelCardData

    experiment = detector.experiment
    data = experiment.data.path or "data in Python"
    scores = [
        EvalResult(
            task_type="object-detection",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", data.lower()).strip("-") or "data",
            dataset_name=data,
            dataset_split=experiment.data.val_split,
            metric_type=key,
            metric_name=name,
            metric_value=round(detector.scores[key], 4),
        )
        for key, name in METRICS.items()
        if detector.step and isinstance(detector.scores.get(key), float)  # else of data that are not known
    ]
    kind = re.sub(r"config$", "", type(experiment.model).__name__.lower())
    tags = ["object-detection", "detrs", kind, *(["transformers"] if contents.has_transformers else [])]
    values = ModelCardData(
        license=license,
        library_name="detrs",
        pipeline_tag="object-detection",
        tags=tags,
        model_name=repository.partition("/")[2],
        eval_results=scores or None,
    )
    return f"---\n{values.to_yaml().strip()}\n---"


def results(detector: TrainedDetector, per_class: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Paragraphs and tables with the scores."""
    scores, split = detector.scores, detector.experiment.data.val_split
    known = {name: scores[key] for key, name in METRICS.items() if key in scores}
    if not known:
        yield "No scores are stored in the checkpoint."
        return
    if "num_images" in scores:
        yield (
            f"COCO metrics on the split `{split}`: {scores['num_images']:,} images, {scores['num_objects']:,} objects."
        )
    yield table(tuple(known), [tuple(figure(value) for value in known.values())])
    if per_class:
        rows = [
            (text(name), f"{row['num_objects']:,}", *(figure(row[key]) for key in ("ap", "ap50", "ar")))
            for name, row in per_class.items()
        ]
        yield table(("class", "objects", "AP", "AP50", "AR"), rows)


def training_rows(detector: TrainedDetector, data: str) -> list[tuple[str, str]]:
    """Settings of the training, and values."""
    experiment, backbone = detector.experiment, detector.experiment.model.backbone
    short, long = detector.preprocessing.resize_to
    rows = [
        ("data", f"{data}, splits `{experiment.data.train_split}` and `{experiment.data.val_split}`"),
        ("backbone", f"`{backbone.name}`"),
        ("image size", f"{short}, {long}"),
        ("batch size", str(experiment.data.batch_size)),
        ("learning rate", f"{experiment.optimizer.lr:g}"),
    ]
    if experiment.initial:
        rows.insert(1, ("initial weights", text(experiment.initial)))
    rows.append(("best weights", f"step {detector.step:,}, epoch {detector.epoch}"))
    return rows


def command(experiment: Experiment) -> str:
    """The command that trains with these settings, or ``""`` if they are not of a preset."""
    if experiment.name not in PRESETS:
        return ""
    start = preset(experiment.name)
    if type(start.model) is not type(experiment.model):
        return ""
    words = ["detrs", "train", experiment.name, "--data", experiment.data.path or "FOLDER"]
    if experiment.initial:
        words += ["--weights", experiment.initial]
    if experiment.name in FITTED:
        words.append("--fixed-settings")
    for name, value in differences(start, experiment):
        if not name.startswith(NOT_IN_COMMANDS):
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{name}".replace("_", "-"), *(str(each) for each in values)]
    return shlex.join(words)


def differences(before: Any, after: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``section.name`` and value of every setting of ``after`` that differs; of another kind, from its defaults."""
    for name, hint in hints_of(type(after)).items():
        old, new, place = getattr(before, name), getattr(after, name), prefix + name
        if is_dataclass(new):
            if variants(hint) and type(old) is not type(new):
                yield f"{place}.kind", type(new).__name__
                old = type(new)()
            yield from differences(old, new, f"{place}.")
        elif new != old:
            yield place, new


def transformers_usage(repository: str) -> str:
    return (
        "from transformers import AutoImageProcessor, AutoModelForObjectDetection\n\n"
        f'processor = AutoImageProcessor.from_pretrained("{repository}")\n'
        f'model = AutoModelForObjectDetection.from_pretrained("{repository}")'
    )


def last_per_class(metrics: Path, step: int) -> dict[str, dict[str, Any]]:
    """Scores of each class after ``step``, from the ``metrics.jsonl`` of a run; empty if it has none."""
    found: dict[str, dict[str, Any]] = {}
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return found
    for each in lines:
        try:
            line = json.loads(each)
        except ValueError:  # incomplete, as a killed run leaves it
            continue
        if isinstance(line, dict) and (line.get("kind"), line.get("step")) == ("evaluation", step):
            found = line.get("per_class", found)
    return found


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def block(language: str, code: str) -> str:
    return f"```{language}\n{code}\n```"


def table(header: tuple[str, ...], rows: list[Any]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text(value: str) -> str:
    """``value`` without a meaning in Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(value.split()))
