"""Datasets of the ``datasets`` library: folders written by ``save_to_disk``, and datasets of the Hugging Face Hub."""

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrs.data.cache_folder import cache_folder
from detrs.data.content import Content, Split, is_usual
from detrs.data.findings import Findings
from detrs.data.formats.huggingface_arrow import extract, extracted, key, library, quiet
from detrs.errors import UserError
from detrs.files import open_regular, write_text

NAME = "Hugging Face datasets"
LAYOUTS = ("a folder written by save_to_disk of the datasets library, or hf:OWNER/NAME (Hugging Face datasets)",)
HUB_NAME = re.compile(r"hf:(?P<name>\w[\w.-]*(?:/\w[\w.-]*)?)(?:@(?P<revision>\w[\w./-]*))?")
TIMEOUT_SECONDS = 8.0
"""Limit of the first request. Later ones are repeated for 20 seconds by huggingface_hub."""


@dataclass(frozen=True)
class SavedSplit(Split):
    """A folder written by ``Dataset.save_to_disk``."""

    name: str
    path: Path
    folders: tuple[Path, ...]
    """Those of all splits."""

    def read(self, errors: Findings, notes: Findings) -> Content:
        datasets = library()
        with quiet(datasets):
            loaded = {folder: _load_saved(folder, datasets) for folder in self.folders}
            folder = extract(loaded[self.path], loaded.values(), self.path)
        return extracted(folder, self.name).read(errors, notes)


@dataclass(frozen=True)
class HubSplit(Split):
    """A split of a dataset of the Hub."""

    name: str
    path: Path
    """``hf:OWNER/NAME@REVISION``."""
    folder: str
    """Name of the folder in the cache."""

    def read(self, errors: Findings, notes: Findings) -> Content:
        folder = cache_folder("huggingface") / self.folder
        if not folder.is_dir():
            try:
                found = _download(*_parse(self.path.as_posix()))
            except ConnectionError as error:
                raise _unreachable(self.path.as_posix(), error) from error
            with quiet(library()):
                folder = extract(found[self.name], found.values(), f"{self.path.as_posix()}, split '{self.name}',")
        return extracted(folder, self.name).read(errors, notes)


def splits(path: Path) -> list[Split]:
    """The splits of a saved dataset."""
    try:
        if not path.is_dir():
            return []
        if (path / "dataset_dict.json").is_file():
            names = _json(path / "dataset_dict.json").get("splits")
            if not isinstance(names, list) or not all(
                isinstance(name, str) and name == Path(name).name for name in names
            ):
                raise UserError(f"{path / 'dataset_dict.json'} has no list of splits. Save the dataset again.")
            folders = tuple(path / name for name in names)
            return [SavedSplit(folder.name, folder, folders) for folder in folders]
        if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
            name = str(_json(path / "state.json").get("_split"))
            return [SavedSplit(name if is_usual(name) else "", path, (path,))]
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    return []


def hub_splits(source: str) -> list[Split]:
    """The splits of a dataset of the Hub, which is downloaded; without network, those in the cache.

    Raises:
        UserError: There is no such dataset, or it is neither reachable nor in the cache.
    """
    name, revision = _parse(source)
    file = f"{name.replace('/', '--')}@{(revision or '').replace('/', '--')}.json"
    index = cache_folder("huggingface") / "index" / file
    try:
        found = _download(name, revision)
    except ConnectionError as error:
        try:
            folders: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise _unreachable(source, error) from error
    else:
        folders = {split: key(dataset) for split, dataset in found.items()}
        try:
            index.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"Cannot write to {index.parent}: {error.strerror}. To use another folder, set DETRS_CACHE."
            ) from error
        write_text(index, json.dumps(folders))
    return [HubSplit(split, Path(source), folder) for split, folder in folders.items()]


def _unreachable(source: str, error: ConnectionError) -> UserError:
    return UserError(
        f"The dataset '{source}' is not in the cache, and the Hugging Face Hub cannot be reached ({error}). Use it "
        "once with network, or pass a local folder."
    )


def _parse(source: str) -> tuple[str, str | None]:
    match = HUB_NAME.fullmatch(source)
    if match is None:
        raise UserError(f"'{source}' is not a dataset of the Hugging Face Hub. Expected hf:OWNER/NAME[@REVISION].")
    return match["name"], match["revision"]


@functools.lru_cache(maxsize=4)
def _download(name: str, revision: str | None) -> dict[str, Any]:
    """All splits of a dataset of the Hub.

    Raises:
        ConnectionError: The Hub cannot be reached.
        UserError: There is no such dataset, or it cannot be used.
    """
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    datasets = library()
    try:
        commit = huggingface_hub.HfApi().dataset_info(name, revision=revision, timeout=TIMEOUT_SECONDS).sha
    except GatedRepoError as error:
        page = f"https://huggingface.co/datasets/{name}"
        raise UserError(
            f"The dataset '{name}' is gated: accept its conditions at {page}, then run: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"There is no public dataset '{name}' on the Hugging Face Hub. For a private one, run: hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"The dataset '{name}' has no revision '{revision}'. Expected a branch, tag or commit."
        ) from error
    except Exception as error:  # the HTTP clients of huggingface_hub have different errors for a missing network
        raise ConnectionError(type(error).__name__) from error
    try:
        return dict(datasets.load_dataset(name, revision=commit))
    except ConnectionError:
        raise
    except Exception as error:  # of the library, pyarrow, fsspec and the file formats
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise UserError(f"The dataset '{name}' cannot be loaded: {type(error).__name__}: {reason}.") from error


def _load_saved(folder: Path, datasets: Any) -> Any:
    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # of the library, pyarrow and json
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise UserError(
            f"{folder} cannot be loaded by the datasets library: {type(error).__name__}: {reason}. Save the dataset "
            "again with save_to_disk."
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: invalid JSON: {error}. Save the dataset again with save_to_disk.") from None
    return content if isinstance(content, dict) else {}
