"""Upload of a detector to the Hugging Face Hub: our checkpoint, a model of ``transformers``, and a model card."""

import logging
import os
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from detrs.checkpoints import hub
from detrs.checkpoints.card import CURVES, Contents, last_per_class, model_card
from detrs.checkpoints.detector import TrainedDetector, save_detector
from detrs.checkpoints.foreign.transformers import check_new, save_transformers
from detrs.checkpoints.sources import open_weights
from detrs.config import Experiment
from detrs.config.data import is_hub_name
from detrs.errors import UserError
from detrs.files import user_path

logger = logging.getLogger("detrs")

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def push_to_hub(
    checkpoint: Path | str,
    repository: str,
    *,
    private: bool = False,
    license: str | None = None,
    dry_run: Path | str | None = None,
) -> str:
    """Upload a trained detector with a model card.

    The repository contains ``best.safetensors``, the files of ``transformers`` where it has the detector,
    ``README.md``, and ``results.png`` of the run. Paths of this machine are removed from the settings; images are not
    uploaded.

    Args:
        checkpoint: a ``best.safetensors``, or the folder of a run.
        repository: ``owner/name``; created if it does not exist.
        private: create it as a private repository.
        license: identifier of the Hub, for example ``apache-2.0``; by default, the card has none.
        dry_run: write the files to this new folder, and upload nothing.

    Returns:
        The address of the repository, or the folder of ``dry_run``.

    Raises:
        UserError: an argument is invalid, the checkpoint or the folder cannot be used, there is no token, or the upload
            fails.
    """
    check_names(repository, license)
    if dry_run is not None:
        write_folder(checkpoint, user_path(dry_run), repository, license)
        return str(dry_run)
    check_token()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "repository"
        write_folder(checkpoint, folder, repository, license)
        return upload(folder, repository, private=private)


def check_names(repository: str, license: str | None) -> None:
    """Check the name of a repository and of a license.

    Raises:
        UserError: with an example.
    """
    if not REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository:
        raise UserError(
            f"Expected a repository as owner/name, for example my-name/blood-cells, got '{repository}'. Letters, "
            "digits, '-', '_' and '.' are allowed."
        )
    if license is not None and not LICENSE.fullmatch(license):
        raise UserError(f"Expected a license identifier of the Hub, for example apache-2.0 or other, got '{license}'.")


def check_token() -> None:
    """Check that there is a token.

    Raises:
        UserError: with the command to log in.
    """
    from huggingface_hub import get_token

    if get_token() is None:
        raise UserError(
            "There is no token of the Hugging Face Hub: log in with hf auth login, or set HF_TOKEN to a token with "
            "write access. To write the files without an upload, add --dry-run FOLDER."
        )


def write_folder(checkpoint: Path | str, folder: Path, repository: str, license: str | None) -> None:
    """Write the files of the repository.

    Raises:
        UserError: the checkpoint cannot be read, or the folder is not empty or cannot be written.
    """
    check_new(folder)
    source = user_path(checkpoint)
    detector = without_paths(open_weights(checkpoint))
    run = source if source.is_dir() else source.parent
    try:
        save_transformers(detector, folder)
        has_transformers = True
    except UserError as error:
        logger.info("without the files of transformers: %s", error)
        has_transformers = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_detector(folder / "best.safetensors", detector)
        curves = run / CURVES
        if curves.is_file():
            shutil.copyfile(curves, folder / CURVES)
        contents = Contents(has_transformers, (folder / CURVES).exists())
        per_class = last_per_class(run / "metrics.jsonl", detector.step)
        card = model_card(detector, repository, license=license, contents=contents, per_class=per_class)
        (folder / "README.md").write_text(card, encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot write to '{folder}': {error.strerror}.") from error


def without_paths(detector: TrainedDetector) -> TrainedDetector:
    """The detector with the last part of each path in its settings, which do not exist on other machines."""
    experiment: Experiment = detector.experiment
    model: Any = experiment.model
    backbone = replace(model.backbone, weights=local_name(model.backbone.weights))
    return replace(
        detector,
        experiment=replace(
            experiment,
            initial=local_name(experiment.initial),
            model=replace(model, backbone=backbone),
            data=replace(experiment.data, path=local_name(experiment.data.path)),
        ),
    )


def local_name(value: str | None) -> Any:
    """The last part of a path; names of models and datasets on the Hub are kept, unless there is such a path."""
    if value is None or is_hub_name(value) or (hub.parse(value) is not None and not os.path.exists(value)):
        return value
    return os.path.basename(os.path.normpath(os.path.expanduser(value)))


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Create the repository if it does not exist, and upload the folder in one commit.

    Returns:
        The address of the repository.

    Raises:
        UserError: the Hub cannot be reached, or rejects the token or the repository.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = huggingface_hub.HfApi(library_name="detrs")
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload a detector with detrs")
    except OfflineModeIsEnabled as error:
        raise UserError("HF_HUB_OFFLINE is set: unset it to upload, or add --dry-run FOLDER.") from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status == 401:
            reason = "the token is invalid. Log in again with hf auth login"
        elif status in (403, 404):
            reason = f"the token has no write access to '{repository.partition('/')[0]}'. Use a token that has"
        else:
            reason = str(error).partition("\n")[0].rstrip(".") or f"status {status}"
        raise UserError(f"The Hugging Face Hub rejected '{repository}': {reason}.") from error
    except Exception as error:  # every HTTP client of huggingface_hub has other errors for a missing network
        raise UserError(
            f"The Hugging Face Hub cannot be reached ({type(error).__name__}). Repeat the command with network, or add "
            "--dry-run FOLDER."
        ) from error
    return str(address)
