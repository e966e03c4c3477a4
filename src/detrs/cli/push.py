"""``detrs push``: upload a detector to the Hugging Face Hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from detrs.cli.arguments import Flag, parse
from detrs.cli.inputs import check_checkpoint
from detrs.cli.report import console, print_json


@dataclass(frozen=True, kw_only=True)
class PushArguments:
    """Upload a trained detector to the Hugging Face Hub, with a model card.

    Uploads best.safetensors, the files of transformers where it has the detector, the curves of the run, and a
    README.md with scores, classes and settings. Images are not uploaded.
    """

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """Path of a best.safetensors, or the folder of a run."""
    repository: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OWNER/NAME")]
    """Repository on the Hub; created if it does not exist."""
    private: Flag = False
    """Create a private repository."""
    license: str | None = None
    """License of the weights, as an identifier of the Hub, for example apache-2.0."""
    dry_run: Path | None = None
    """Write the files to this new folder, and upload nothing."""
    json: Flag = False
    """Print one JSON object with the address of the repository, or the folder."""


def run(argv: list[str]) -> None:
    """Upload a checkpoint, or write the files."""
    arguments = parse(PushArguments, argv, "detrs push")
    check_checkpoint(arguments.checkpoint)
    from detrs.checkpoints.publishing import push_to_hub

    place = push_to_hub(
        arguments.checkpoint,
        arguments.repository,
        private=arguments.private,
        license=arguments.license,
        dry_run=arguments.dry_run,
    )
    if arguments.json:
        print_json({"folder" if arguments.dry_run else "url": place})
    else:
        console(as_json=False).print(place, soft_wrap=True)
