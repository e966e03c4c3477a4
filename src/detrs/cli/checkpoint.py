"""``detrs checkpoint``: inspect a checkpoint of any supported kind, and list published ones."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from detrs.cli.arguments import Flag, parse
from detrs.cli.inputs import check_checkpoint
from detrs.cli.report import console, print_json
from detrs.config.detection import suppression_in_words
from detrs.errors import UserError, did_you_mean, printable

if TYPE_CHECKING:
    from detrs.checkpoints.sources import Source
    from detrs.models.detector import Model

ACTIONS = ("inspect", "list")
USAGE = """usage: detrs checkpoint ACTION [...]

Inspect checkpoints. No code in them is executed.

actions:
  inspect SOURCE [--tensors] [--json]    show what a checkpoint contains
  list [--json]                          list published checkpoints

detrs checkpoint ACTION --help           show the flags of an action"""
CLASSES_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class InspectArguments:
    """Show what a checkpoint contains. No code in it is executed."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """Path of a best.safetensors, folder of a run, exported file (.onnx, .pt2), or published weights: Hub id, folder,
    .pth file."""
    tensors: Flag = False
    """Also list the name, shape and dtype of each tensor."""
    json: Flag = False
    """Print one JSON object instead of tables."""


@dataclass(frozen=True, kw_only=True)
class ListArguments:
    """List published checkpoints that detrs reads, with the AP that their authors report on COCO val2017."""

    json: Flag = False
    """Print one JSON object instead of a table."""


def run(argv: list[str]) -> None:
    """Run one action."""
    action, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if action in ("--help", "-h"):
        print(USAGE)
    elif action == "inspect":
        inspect(parse(InspectArguments, rest, "detrs checkpoint inspect"))
    elif action == "list":
        list_published(parse(ListArguments, rest, "detrs checkpoint list"))
    else:
        raise UserError(f"Unknown action '{action}'.{did_you_mean(action, ACTIONS)} Expected inspect or list.")


def inspect(arguments: InspectArguments) -> None:
    """Print the description of a checkpoint."""
    check_checkpoint(arguments.source)
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from detrs.checkpoints.sources import EXPORTED, open_source

    source = open_source(arguments.source)
    if arguments.tensors and source.kind == EXPORTED:
        raise UserError(
            f"'{arguments.source}' is an exported file, which does not have the tensors of the detector by name. Omit "
            "--tensors, or inspect its checkpoint."
        )
    values = describe(source, arguments.tensors)
    if arguments.json:
        print_json({"source": arguments.source, **values})
        return
    screen = console(as_json=False)
    names = values["classes"]
    more = f", ... ({len(names) - CLASSES_SHOWN} more)" if len(names) > CLASSES_SHOWN else ""
    ap = values["scores"].get("ap")
    rows = {
        "kind": values["kind"],
        "path": values["path"],
        "detector": values["detector"],
        "preset": values["preset"],
        "parameters": f"{values['num_parameters']:,}",
        "classes": f"{len(names)}: {', '.join(names[:CLASSES_SHOWN])}{more}",
        **exported_rows(values["export"]),
        "resize to": resizing(values["preprocessing"]["resize_to"], values["export"]),
        "mean": ", ".join(f"{value:g}" for value in values["preprocessing"]["mean"]),
        "std": ", ".join(f"{value:g}" for value in values["preprocessing"]["std"]),
        "AP": None if ap is None else f"{ap:.3f}",
        "threshold": None
        if values["threshold"] is None
        else f"{values['threshold']} (best F1 on the validation split)",
        "suppression": values["nms"] and suppression_in_words(values["nms"]),
        "written by": values["written_by"],
        "published at": values["url"],
        "SHA-256": values["sha256"],
    }
    table = Table.grid(padding=(0, 1), pad_edge=False)  # narrow, so that 64 digits of SHA-256 fit into 80 columns
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            table.add_row(name, Text(printable(value)))
    screen.print(table)
    if arguments.tensors:
        table = Table("tensor", "shape", "dtype", box=SIMPLE_HEAD)
        table.columns[0].overflow = "fold"
        for entry in values["tensors"]:
            table.add_row(Text(entry["name"]), " x ".join(map(str, entry["shape"])) or "scalar", entry["dtype"])
        screen.print(table)


def resizing(resize_to: list[int], export: dict[str, Any] | None) -> str:
    """How images are resized, in words."""
    if export is None or export["static"] is None:
        return f"shortest side {resize_to[0]}, longest side at most {resize_to[1]}"
    height, width = export["static"]
    how = "aspect ratio kept, padded" if export["padding"] else "aspect ratio not kept"
    return f"{height} x {width} ({how})"


def exported_rows(export: dict[str, Any] | None) -> dict[str, str]:
    """The rows of an exported file: its format, and what it takes and returns; none for other sources."""
    if export is None:
        return {}
    opset = "" if export["opset"] is None else f", opset {export['opset']}"
    flags = [name for name in ("gather", "preprocess", "postprocess", "padding") if export[name]]
    return {
        "format": f"{export['format']}{opset}, {export['precision']}{''.join(f', --{flag}' for flag in flags)}",
        "inputs": ", ".join(export["inputs"]),
        "outputs": f"{', '.join(export['outputs'])}; at most {export['max_detections']} detections per image",
    }


def exported_settings(model: "Model") -> dict[str, Any] | None:
    """The settings of an exported file, with the names of its inputs and outputs; ``None`` for other models."""
    from detrs.checkpoints.exported import ExportedModel
    from detrs.schema import to_dict

    if not isinstance(model, ExportedModel):
        return None
    return {**to_dict(model.export), **{name: list(value) for name, value in model.signature._asdict().items()}}


def describe(source: "Source", with_tensors: bool = False) -> dict[str, Any]:
    """The description of a checkpoint as JSON-serializable values."""
    from detrs.checkpoints.skeleton import Skeleton
    from detrs.checkpoints.sources import EXPORTED, file_sha256, writer
    from detrs.models import build
    from detrs.schema import to_dict

    detector, known = source.detector, source.published
    module = detector.module
    if source.kind == EXPORTED:  # its tensors are constants of a program: the parameters are those of the model
        with Skeleton():
            module = build(detector.experiment.model)
    preprocessing = to_dict(detector.preprocessing)
    del preprocessing["fixed"]  # in ``export``
    values: dict[str, Any] = {
        "kind": source.kind,
        "path": str(source.path),
        "detector": type(detector.experiment.model).__name__.removesuffix("Config"),
        "preset": detector.experiment.name,
        "num_parameters": sum(parameter.numel() for parameter in module.parameters()),
        "classes": list(detector.classes.names),
        "category_ids": list(detector.classes.category_ids),
        "preprocessing": preprocessing,
        "export": exported_settings(detector.module),
        "scores": detector.scores,
        "step": detector.step,
        "epoch": detector.epoch,
        "threshold": detector.threshold,
        "class_thresholds": detector.class_thresholds,
        "nms": detector.experiment.evaluation.suppression,
        "written_by": writer(source),
        "url": known.url if known else None,
        "sha256": file_sha256(source.path) if source.path.is_file() else None,
    }
    if with_tensors:
        values["tensors"] = [
            {"name": name, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
            for name, tensor in detector.module.state_dict().items()
        ]
    return values


def list_published(arguments: ListArguments) -> None:
    """Print the table of published checkpoints."""
    from detrs.checkpoints.published import TABLE
    from detrs.schema import to_dict

    if arguments.json:
        rows = [
            {
                "source": each.source,
                "on_hub": each.on_hub,
                "url": each.url,
                "preset": each.preset,
                "ap": each.ap,
                "sha256": each.sha256,
                "preprocessing": to_dict(each.preprocessing),
            }
            for each in TABLE
        ]
        print_json({"checkpoints": rows})
        return
    width = max(len(each.preset) for each in TABLE)
    # Not a table of rich: names are copied, so lines are neither broken nor padded.
    print(f"{'AP':>4}  {'preset':{width}}  checkpoint")
    for each in TABLE:
        print(f"{100 * each.ap:4.1f}  {each.preset:{width}}  {each.source}")
    print("\nAP: of the authors, on COCO val2017.")
    print("owner/name: on the Hugging Face Hub, downloaded on first use.")
    print("Files: download them from the URLs in detrs checkpoint list --json.")
