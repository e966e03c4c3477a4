"""Checkpoints on the Hugging Face Hub: download of one revision into the cache of huggingface_hub, or from the cache.

huggingface_hub retries a failed download of a file for 20 seconds. Here one short request comes first: it returns the
names of the files and fails at once without network; then the cache is used.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from detrs.checkpoints.file_names import CONFIG, OLD_WEIGHTS, PREPROCESSING, WEIGHTS
from detrs.errors import UserError

ID = re.compile(r"(?P<owner>\w[\w.-]*)/(?P<name>\w[\w.-]*?)(?:@(?P<revision>\w[\w./-]*))?")
"""``owner/name`` or ``owner/name@revision``."""
FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pkl", ".onnx", ".pt2", ".json", ".zip")
"""Names with these suffixes are files, not repositories."""
TIMEOUT_SECONDS = 5.0
"""Limit of the first request."""

OUR_FILE = "best.safetensors"
CONFIGS = (CONFIG, PREPROCESSING)
PARTS = re.compile(r"model\.safetensors\.index\.json|model-\d{5}-of-\d{5}\.safetensors")


class Repository(NamedTuple):
    """A repository at one revision."""

    name: str
    """``owner/name``."""
    revision: str | None
    """Branch, tag or commit; ``None``: the default branch."""

    def __str__(self) -> str:
        return f"'{self.name}'" + (f" (revision '{self.revision}')" if self.revision else "")


def parse(source: str) -> Repository | None:
    """The repository that a text names, or ``None`` if it is not an id.

    >>> parse("facebook/detr-resnet-50@main")
    Repository(name='facebook/detr-resnet-50', revision='main')
    >>> parse("runs/best.safetensors")
    """
    match = ID.fullmatch(source)
    if match is None or source.lower().endswith(FILE_SUFFIXES):
        return None
    return Repository(f"{match['owner']}/{match['name']}", match["revision"])


def download(repository: Repository) -> Path:
    """The folder with the files of a repository, downloaded unless the cache has them.

    Returns:
        A folder of ``transformers``, or one with ``best.safetensors``.

    Raises:
        UserError: The repository or its revision does not exist, is private or gated, has no weights, or is neither
            cached nor reachable.
    """
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, revision = repository
    try:
        info = huggingface_hub.HfApi().model_info(name, revision=revision, timeout=TIMEOUT_SECONDS)
        wanted = files_of([file.rfilename for file in info.siblings or []], repository)
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=wanted, etag_timeout=TIMEOUT_SECONDS
            )
        )
    except GatedRepoError as error:
        raise UserError(
            f"The repository {repository} is gated: accept its conditions at https://huggingface.co/{name}, then log "
            "in with hf auth login."
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"There is no file or folder '{name}', and no public repository of that name on the Hugging Face Hub. For "
            "a private repository, log in with hf auth login."
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"The repository '{name}' has no revision '{revision}'. Expected a branch, a tag or a commit; without "
            "@revision, the default branch is used."
        ) from error
    except UserError:
        raise
    except Exception as error:  # every HTTP client of huggingface_hub has other errors for a missing network
        reason = "HF_HUB_OFFLINE is set" if isinstance(error, OfflineModeIsEnabled) else type(error).__name__
        try:
            return Path(huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True))
        except (LocalEntryNotFoundError, ValueError, OSError):
            raise UserError(
                f"There is no file or folder '{name}'. The repository {repository} is not in the cache, and the "
                f"Hugging Face Hub cannot be reached ({reason}). Download it once with network, or pass a local path."
            ) from error


def files_of(names: Iterable[str], repository: Repository) -> list[str]:
    """The files to download: our checkpoint, else weights in one format with their settings.

    Raises:
        UserError: There are no weights.
    """
    found = set(names)
    if OUR_FILE in found:
        return [OUR_FILE]
    configs = [name for name in CONFIGS if name in found]
    for weights in ([WEIGHTS], sorted(filter(PARTS.fullmatch, found)), [OLD_WEIGHTS]):
        if weights and set(weights) <= found and CONFIG in found:
            return [*configs, *weights]
    raise UserError(
        f"The repository {repository} has no weights of a detector. Expected {OUR_FILE}, or {CONFIG} with "
        f"{WEIGHTS} or {OLD_WEIGHTS}."
    )
