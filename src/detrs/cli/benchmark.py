"""``detrs benchmark``: compares files of detectors, presets, or operators with other implementations."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from detrs.choices import Precision
from detrs.cli import accuracy
from detrs.cli.arguments import Flag, check_data, parse
from detrs.cli.inputs import check_checkpoint, check_dataset
from detrs.cli.report import console, counting, print_json
from detrs.errors import UserError, counted, did_you_mean
from detrs.files import os_errors

OPERATORS = "ops"


@dataclass(frozen=True, kw_only=True)
class BenchmarkArguments:
    """Compare the accuracy and latency of checkpoints and exported files, or, with ops, time the attention operator. To
    compare the accuracy of presets, see detrs benchmark accuracy --help.

    Files: all of them process the same images, one at a time and in turn; the table shows the median and the 95th
    percentile for an image in memory, of everything and of the model alone, and the AP of each.

    ops: multi-scale deformable attention against grid_sample, torch.compile and, if installed, deformops. All
    implementations run round-robin in one process. The table shows the median of each and its ratio to detrs.
    """

    subjects: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="ops | CHECKPOINT [FILE ...]")
    ] = ()
    """ops; or checkpoints and exported files. Latencies are compared with those of the first."""
    data: str | None = None
    """Folder or file of a dataset, hf:OWNER/NAME, or digits. Default: the dataset used in the training of
    the first file."""
    split: str | None = None
    """Split to evaluate. Default: the validation split used in training."""
    images: int = 20
    """Number of images to time."""
    latency_only: Flag = False
    """Do not compute AP. Without --data, made images are timed."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1."""
    precision: Precision = "auto"
    """Of checkpoints, as in detrs predict: auto, fp32, bf16 or fp16. Exported files have their own."""
    repeats: int = 7
    """Number of timed rounds; each runs every implementation, or every file on every image."""
    full: Flag = False
    """ops: run all 36 cases instead of 4: batch sizes 1, 2 and 4, 300 and 900 queries, star and uniform locations."""
    output: Path | None = None
    """ops: append one JSON line per case to this file."""
    json: Flag = False
    """Print one JSON object to stdout; the table goes to stderr."""


def run(argv: list[str]) -> None:
    """Compare files, presets or operators and print the table."""
    if argv[:1] == [accuracy.NAME]:
        accuracy.run(argv[1:])
        return
    arguments = parse(BenchmarkArguments, argv, "detrs benchmark")
    if not arguments.subjects:
        raise UserError(
            f"Nothing to compare: expected ops, or checkpoints and exported files, or {accuracy.NAME} and presets."
        )
    first = arguments.subjects[0]
    if arguments.subjects == (OPERATORS,):
        if arguments.data or arguments.split or arguments.latency_only:
            raise UserError("--data, --split and --latency-only are for files; ops has none.")
        run_operators(arguments)
        return
    hint = did_you_mean(first, (OPERATORS, accuracy.NAME))
    if hint and len(arguments.subjects) == 1 and not os.path.lexists(first):
        raise UserError(f"Unknown benchmark '{first}', expected: ops, {accuracy.NAME}, or files.{hint}")
    if arguments.full or arguments.output:
        raise UserError("--full and --output are for ops, not for files.")
    run_files(arguments)


def run_files(arguments: BenchmarkArguments) -> None:
    """Accuracy and latency of files."""
    if arguments.images < 1 or arguments.repeats < 1:
        raise UserError(f"--images and --repeats must be at least 1, got {arguments.images} and {arguments.repeats}.")
    check_data(arguments.data)
    check_dataset(arguments.data)
    for path in arguments.subjects:
        check_checkpoint(path)
    from detrs.devices import pick_device
    from detrs.engine.evaluate import evaluate_checkpoint
    from detrs.engine.validation import dataset_to_score
    from detrs.exporting.comparison import dataset_of, images_of, open_file, time_files, with_scores

    device = pick_device(arguments.device)
    files = [open_file(path, device, arguments.precision) for path in arguments.subjects]
    dataset = dataset_of(files[0].detector, arguments.data, arguments.split, is_required=not arguments.latency_only)
    scored = None if arguments.latency_only else dataset
    if scored is not None:
        for file in files:  # before the time is spent
            dataset_to_score(file.name, file.detector, file.detector.experiment, scored, None, warns=False)
    images = images_of(dataset, arguments.images, files[0].detector)
    with counting("timing") as on_images:
        report = time_files(files, images, device=device, repeats=arguments.repeats, on_images=on_images)
    if scored is not None:
        scores = []
        for file in files:
            with counting(f"evaluating {file.name}") as on_images:
                found = evaluate_checkpoint(
                    file.name,
                    data=scored,
                    device=arguments.device,
                    precision="auto" if file.detector.own_precision else arguments.precision,
                    on_images=on_images,
                )
            scores.append((found.report.ap, found.report.ap50))
        report = with_scores(report, scores)
    screen = console(as_json=arguments.json)
    screen.print(report.table())
    screen.print(
        f"{report.device}; {counted(report.num_images, 'image')}, one at a time, {report.repeats} rounds: median and "
        "95th percentile; in parentheses: relative to the first file"
    )
    if arguments.json:
        print_json(report.to_json())


def run_operators(arguments: BenchmarkArguments) -> None:
    """The speed of the attention operator."""
    from detrs.devices import pick_device
    from detrs.ops.ms_deform_attn import benchmark

    device = pick_device(arguments.device)
    screen = console(as_json=arguments.json)
    reports = []
    with console(as_json=True).status("") as status:
        for case in benchmark.FULL if arguments.full else benchmark.QUICK:
            status.update(case.name)
            reports.append(benchmark.compare(case, device, arguments.repeats))
            if arguments.output:
                with os_errors(f"Cannot write to '{arguments.output}'"), arguments.output.open("a") as file:
                    file.write(json.dumps(reports[-1].to_json()) + "\n")
    screen.print(benchmark.table(reports))
    screen.print(f"{reports[0].device}, median of {arguments.repeats} rounds; in parentheses: time relative to detrs")
    if arguments.json:
        print_json({"cases": [report.to_json() for report in reports]})
