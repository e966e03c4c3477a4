"""``detrs train``: train a preset. Common flags are short; every other setting has a flag with its section's name."""

import contextlib
import dataclasses
import operator
import os
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import tyro

from detrs import config
from detrs.choices import Precision
from detrs.cli import flags
from detrs.cli.arguments import Flag, Size, after, as_pair, check_data, is_given, new_folder, parse
from detrs.cli.inputs import check_checkpoint, check_dataset, check_run_folder
from detrs.cli.kinds import with_kinds
from detrs.cli.report import console, print_json
from detrs.config import Experiment, Tracker
from detrs.config.data import is_hub_name
from detrs.data import data_exists, data_root
from detrs.engine.run import RunFolder
from detrs.errors import UserError
from detrs.presets import preset
from detrs.presets.fitted import FITTED, FITTED_SETTINGS

if TYPE_CHECKING:
    from detrs.engine.train import TrainResult

RESUME_USAGE = "--resume requires the folder of the run. Usage: detrs train --resume FOLDER"
COMMON_FLAGS = {name.replace("-", "_"): setting for setting, name in flags.TRAIN.items()}
"""Common flag -> setting."""


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """Train a detector.

    PRESET is a name listed by detrs presets. With --weights it can be omitted: the model and the image size are then
    those of the weights, and the recipe is that of their preset. To resume a run: detrs train --resume FOLDER, which
    reads all settings from the folder, or repeat the original command with --resume.

    Settings of several kinds have one more flag: --criterion.denoising.kind (NoDenoising, GroupDenoising or
    ContrastiveDenoising), --criterion.assignment.kind (OneToOne or OneToMany) and, for detectors with both, that of
    --model.classification.kind (Focal or Softmax).
    """

    data: str | None
    """Folder or file of a dataset (COCO, YOLO, Pascal VOC, ...), hf:OWNER/NAME, or digits for the demo dataset."""
    val_fraction: float | None
    """Fraction of the training images to hold out for validation, if the dataset has no validation split."""
    epochs: int
    """Number of passes over the training images."""
    batch_size: int
    """Images per optimizer step, summed over all processes."""
    image_size: Size
    """Short and long side in pixels, or one number for both."""
    lr: float
    """Learning rate of the transformer and the heads."""
    device: str
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Precision
    """auto, fp32, bf16 or fp16. auto: bf16 where the processor or GPU multiplies it in hardware, else fp32. A resumed
    run keeps its precision."""
    workers: int
    """Number of data loading processes; 0 loads in the main process."""
    threads: int | None
    """CPU threads. Default: one per core that other programs leave free."""
    max_minutes: float | None
    """Time budget in minutes; the learning rate schedule adapts to it."""
    weights: str | None
    """Start from a trained detector of the same model: best.safetensors, folder of a run, or published weights (Hub id,
    folder, .pth file). Weights of classes are kept by name; other classes start anew."""
    track: tuple[Tracker, ...]
    """Log to experiment trackers, too: tensorboard, wandb, mlflow, trackio."""
    backbone: str | None = None
    """timm model name, or a .safetensors file with weights of one. Default: the backbone of the preset."""
    output: Path | None = None
    """Output folder. Default: runs/PRESET-N."""
    resume: Flag = False
    """Resume the run in --output."""
    fixed_settings: Flag = False
    """Use the settings of the preset as they are. By default, those of the presets ending in -small (epochs, batch
    size, EMA, queries, image size) follow from the training images unless they are given; reasons are printed."""
    no_cache: Flag = False
    """Check the dataset anew, and do not keep the result for the next time."""
    quiet: Flag = False
    """Hide the progress display."""
    json: Flag = False
    """Print one JSON object with the final scores."""
    settings: Annotated[Experiment, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


def run(argv: list[str]) -> None:
    """Train."""
    experiment, output, arguments = read(argv)
    config.validate(experiment)
    if not arguments.resume:
        data_root(experiment.data.path)  # raises if there is none
    check_dataset(experiment.data.path)
    check_run_folder(output, resume=arguments.resume)
    from detrs.cli.cores import threads_beside_others
    from detrs.engine.runtime import is_main_process
    from detrs.engine.train import train
    from detrs.ops.threads import num_threads

    if experiment.name in FITTED and not arguments.fixed_settings:
        given = given_settings(argv)
        if arguments.resume:
            experiment = as_saved(experiment, output, given)
        elif not argv[0].startswith("-"):  # --weights without a preset keeps the settings
            experiment = fitted_to_data(experiment, given, quiet=arguments.quiet)
    with num_threads(threads_beside_others(experiment.runtime)):  # not a setting: a resumed run measures again
        result = train(experiment, output, resume=arguments.resume, quiet=arguments.quiet)
    if not is_main_process():
        return
    console(as_json=arguments.json).print(summary(result), soft_wrap=True)
    if arguments.json:
        print_json(to_json(result))


def given_settings(argv: list[str]) -> set[str]:
    """The settings of ``FITTED_SETTINGS`` that ``argv`` contains."""
    short = {place: flag for flag, place in COMMON_FLAGS.items()}
    return {place for place in FITTED_SETTINGS if is_given(place, argv) or is_given(short.get(place, place), argv)}


def as_saved(experiment: Experiment, output: Path, given: Collection[str]) -> Experiment:
    """The experiment of a command that is repeated with --resume: settings that followed from the data stay."""
    saved = config.load(RunFolder(output).experiment)
    for place in set(FITTED_SETTINGS) - set(given):
        if place.startswith("model.") and type(experiment.model) is not type(saved.model):
            continue  # a run of another detector is rejected later
        with contextlib.suppress(AttributeError):  # Faster R-CNN has no queries
            experiment = config.with_setting(experiment, place, operator.attrgetter(place)(saved))
    return experiment


def fitted_to_data(experiment: Experiment, given: Collection[str], *, quiet: bool) -> Experiment:
    """The experiment with settings that follow from its data; prints what changes."""
    from detrs.data.opening import open_training_part
    from detrs.engine.fitting import FINER, fitted, training_images
    from detrs.engine.runtime import is_main_process

    first: tuple[str, ...] = ()
    if experiment.initial is not None and FINER not in given:
        experiment, first = with_feature_maps(experiment, experiment.initial)
        given = {*given, FINER}
    train_set = open_training_part(experiment.data, cache_annotations=experiment.runtime.cache_annotations)
    experiment, reasons = fitted(experiment, training_images(train_set), given)
    reasons = first + reasons
    config.validate(experiment)
    if reasons and not quiet and is_main_process():
        lines = [flags.with_flags(reason, "train") for reason in reasons]
        print("Settings that follow from the data (--fixed-settings keeps those of the preset):", file=sys.stderr)
        print(*(f"  {line}" for line in lines), sep="\n", file=sys.stderr)
    return experiment


def with_feature_maps(experiment: Experiment, weights: str) -> tuple[Experiment, tuple[str, ...]]:
    """The experiment with the feature maps of its initial weights, which followed from other data, and the reason."""
    from detrs.checkpoints.sources import open_weights
    from detrs.engine.fitting import FINER, shown

    trained, before = open_weights(weights).experiment.model, experiment.model.backbone.stages
    stages = trained.backbone.stages
    if type(trained) is not type(experiment.model) or stages == before:  # other models are rejected later
        return experiment, ()
    reason = f"{FINER} {shown(stages)} instead of {shown(before)}: those of the initial weights"
    return config.with_setting(experiment, FINER, stages), (reason,)


def summary(result: "TrainResult") -> str:
    """The result as one line of text."""
    if not result.scores:
        return f"{result.steps} steps without validation, in {result.seconds:.0f} s: {result.checkpoint}"
    figures = {name: result.scores.get(key) for name, key in (("AP", "ap"), ("AP50", "ap50"))}
    scores = ", ".join(f"{name} {'-' if value is None else f'{value:.3f}'}" for name, value in figures.items())
    return f"{scores} at step {result.best_step} of {result.steps}, in {result.seconds:.0f} s: {result.checkpoint}"


def to_json(result: "TrainResult") -> dict[str, Any]:
    """The result as printed by ``--json``."""
    return {
        **result.scores,
        "checkpoint": str(result.checkpoint),
        "output": str(result.output),
        "best_step": result.best_step,
        "steps": result.steps,
        "seconds": round(result.seconds, 3),
    }


def read(argv: list[str]) -> tuple[Experiment, Path, TrainArguments]:
    """The experiment, the output folder and the parsed arguments."""
    start, rest, folder = Experiment(), argv, None
    name = "PRESET"
    if argv[:1] == ["--resume"] and not {"--help", "-h"} & set(argv):
        if len(argv) == 1 or argv[1].startswith("-"):
            raise UserError(RESUME_USAGE)
        folder, rest = Path(argv[1]), ["--resume", *argv[2:]]
        if folder.suffix == ".safetensors" and not os.path.isdir(folder):
            folder = folder.parent  # of last.safetensors
        RunFolder(folder).check(resume=True)
        start, name = config.load(RunFolder(folder).experiment), f"--resume {folder}"
    elif argv and not argv[0].startswith("-"):
        name, rest = argv[0], argv[1:]
        start = preset(name)
    elif weights := after("--weights", argv)[:1]:
        name, start = f"--weights {weights[0]}", of_weights(weights[0], argv)
    elif not {"--help", "-h"} & set(argv):
        raise UserError("No preset given. Usage: detrs train PRESET --data FOLDER. See: detrs presets")
    start, rest = with_kinds(start, rest)
    short: Any = {flag: operator.attrgetter(place)(start) for flag, place in COMMON_FLAGS.items()}
    arguments = parse(
        TrainArguments, rest, f"detrs train {name}", TrainArguments(**short, output=folder, settings=start)
    )
    if arguments.resume and arguments.output is None:
        raise UserError(RESUME_USAGE)
    if is_given("track", rest) and not arguments.track and not start.runtime.track:
        raise UserError(f"--track expects at least one of {', '.join(get_args(Tracker))}, separated by spaces.")
    experiment = merged(arguments, rest)
    if arguments.no_cache:
        runtime = dataclasses.replace(experiment.runtime, cache_annotations=False)
        experiment = dataclasses.replace(experiment, runtime=runtime)
    if is_given("data", rest) or is_given("data.path", rest):
        check_data(experiment.data.path)
    elif folder is not None:
        check_data_exists(experiment.data.path)
    return with_absolute_data(experiment), arguments.output or new_folder(start.name or "train"), arguments


def of_weights(source: str, argv: list[str]) -> Experiment:
    """The experiment of a command without a preset: from its weights, or, with ``--resume``, from the run."""
    output = after("--output", argv)[:1]
    if is_given("resume", argv) and output:
        folder = RunFolder(Path(output[0]))
        folder.check(resume=True)
        return config.load(folder.experiment)
    check_checkpoint(source)
    from detrs.engine.finetuning import experiment_from

    return experiment_from(source)


def check_data_exists(path: str | None) -> None:
    """Check that the dataset of a resumed run still exists.

    Raises:
        UserError: it does not; relative paths of older runs depend on the working directory.
    """
    if path is not None and is_local(path) and not data_exists(data_root(path)):
        raise UserError(f"The dataset of this run, '{path}', does not exist. If it has moved, add --data FOLDER.")


def is_local(path: str) -> bool:
    """Whether ``--data`` names a file or folder."""
    return path != "digits" and not is_hub_name(path)


def with_absolute_data(experiment: Experiment) -> Experiment:
    """``experiment`` with an absolute path of its dataset, so that the run can be resumed from another directory."""
    path = experiment.data.path
    if path is None or not is_local(path) or not data_exists(root := data_root(path)):
        return experiment
    absolute = str(root.absolute())
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, path=absolute))


def merged(arguments: TrainArguments, words: list[str]) -> Experiment:
    """The experiment with the common flags in ``words`` applied.

    Raises:
        UserError: a common flag and the flag of its setting were both given, with different values.
    """
    experiment = arguments.settings
    for flag, place in COMMON_FLAGS.items():
        if not is_given(flag, words):
            continue
        short: Any = as_pair(arguments.image_size) if flag == "image_size" else getattr(arguments, flag)
        long = operator.attrgetter(place)(experiment)
        if is_given(place, words) and long != short:
            names = f"--{flag} and --{place}".replace("_", "-")
            raise UserError(
                f"{names} are the same setting, but their values differ: {short} and {long}. Pass only one of them."
            )
        section, _, setting = place.rpartition(".")
        if section:
            short, setting = dataclasses.replace(getattr(experiment, section), **{setting: short}), section
        changed: dict[str, Any] = {setting: short}
        experiment = dataclasses.replace(experiment, **changed)
    if arguments.backbone:
        from detrs.backbones.timm import with_weights

        model = experiment.model
        model = dataclasses.replace(model, backbone=with_weights(model.backbone, arguments.backbone))
        experiment = dataclasses.replace(experiment, model=model)
    return experiment
