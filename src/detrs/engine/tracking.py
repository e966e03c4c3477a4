"""Experiment trackers (TensorBoard, Weights & Biases, MLflow, Trackio): what a run logs to them, through accelerate.

They receive what ``metrics.jsonl`` receives, two figures and the settings. They never change a result: the state of
random generators is kept, and a tracker that fails during training is dropped with a warning.
"""

import importlib.util
import json
import logging
import math
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detrs import files
from detrs.config import Experiment
from detrs.engine.run import RunFolder
from detrs.engine.runtime import Runtime
from detrs.errors import UserError
from detrs.isolation import random_streams
from detrs.schema import to_dict

logger = logging.getLogger("detrs")

PROJECT = "detrs"
"""Project or experiment in the trackers; Weights & Biases, MLflow and Trackio have variables to change it."""
INSTALL = {
    "tensorboard": "pip install 'detrs[track]'",
    "wandb": "pip install wandb",
    "mlflow": "pip install mlflow",
    "trackio": "pip install trackio",
}
"""Tracker, which is also the name of its package -> how to install it."""
MAX_SIDE = 1600
"""Figures are scaled down to this long side in pixels; TensorBoard stores them as PNG."""
SIZES = ("_small", "_medium", "_large")
SCORES = {f"ap{end}": f"AP{end}" for end in ("", "50", "75", *SIZES)} | {
    f"ar{end}": f"AR{end}" for end in ("1", "10", "100", *SIZES)
}
"""Score in ``metrics.jsonl`` -> name in trackers."""


def check_trackers(names: Sequence[str]) -> None:
    """Check that the packages of trackers are installed, and that the program itself has no run open in them.

    Raises:
        UserError: a package is missing, or a run is open. Weights & Biases would log to that run and finish it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"runtime.track is '{name}', but the package {name} is not installed: {INSTALL[name]}")
        if has_open_run(name):
            end = "mlflow.end_run()" if name == "mlflow" else f"{name}.finish()"
            raise UserError(
                f"runtime.track is '{name}', but this program has a run open in it: call {end} before training, or "
                "train without this tracker."
            )


def has_open_run(name: str) -> bool:
    """Whether the program has started a run of Weights & Biases or MLflow and not finished it."""
    package: Any = sys.modules.get(name)
    if package is None:
        return False
    if name == "mlflow":
        return package.active_run() is not None
    return name == "wandb" and package.run is not None


class Tracking:
    """The trackers of one run; none in all processes except the main process.

    Args:
        runtime: starts them.
        folder: folder of the run; its name is that of the run in the trackers.
    """

    def __init__(self, runtime: Runtime, folder: RunFolder) -> None:
        self.runtime, self.folder = runtime, folder
        self.trackers: dict[str, Any] = {}
        self.runs: dict[str, str] = {}
        """Tracker -> id of its run."""
        self.step = 0

    @contextmanager
    def open(self, experiment: Experiment, *, step: int, is_new: bool) -> Iterator[None]:
        """Inside, the trackers of the experiment are running. At the end they receive the curves and are finished.

        Args:
            experiment: its ``runtime.track`` names the trackers; all settings are logged if the run is new.
            step: steps so far. TensorBoard drops events of a killed run after it, the others continue the same run.
            is_new: False to continue the runs of ``trackers.json``.

        Raises:
            UserError: a tracker cannot be started.
        """
        names = dict.fromkeys(experiment.runtime.track)
        if not names:
            yield
            return
        self.step = step
        self.runs = {} if is_new else self._read()
        known, before, added = {*self.runs}, dict(os.environ), dict[str, str]()
        try:
            try:
                for name in names:
                    self._start(name, step)
            finally:
                added = {name: value for name, value in os.environ.items() if before.get(name) != value}
            files.write_text(self.folder.trackers, json.dumps(self.runs, indent=1) + "\n")
            new = [name for name in names if name not in known]
            self._each(lambda name, tracker: tracker.store_init_configuration(flat(to_dict(experiment))), new)
            yield
            self.image("results", self.folder.results, self.step)
        finally:
            self._each(lambda name, tracker: tracker.finish())
            self.trackers = {}
            _restore_environment(before, added)

    def line(self, line: Mapping[str, Any]) -> None:
        """Log a line of ``metrics.jsonl``."""
        self.step = line["step"]
        values = scalars(line)
        self._each(lambda name, tracker: tracker.log(_named_for(name, values), step=line["step"]))

    def image(self, title: str, path: Path, step: int) -> None:
        """Log a figure of the run."""
        if not self.trackers or not path.exists():
            return
        with Image.open(path) as file:
            figure = file.convert("RGB")
        figure.thumbnail((MAX_SIDE, MAX_SIDE))
        self._each(lambda name, tracker: _log_image(name, tracker, title, figure, path, step))

    def _start(self, name: str, step: int) -> None:
        known = self.runs.get(name)
        run = known or uuid.uuid4().hex[:8]
        title = self.folder.path.resolve().name
        options: dict[str, dict[str, Any]] = {
            "tensorboard": {"purge_step": step + 1} if step else {},
            "wandb": {"name": title, "id": run, "resume": "allow"},
            "mlflow": {"run_id": known} if known else {"run_name": title},
            "trackio": {"name": f"{title}-{run}", "resume": "allow"},
        }
        try:
            with _own_streams():
                tracker = self.runtime.start_tracker(name, PROJECT, self.folder.tensorboard, options[name])
                if name == "mlflow":
                    run = tracker.tracker.info.run_id
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"The tracker {name} could not be started: {reason}") from error
        self.trackers[name], self.runs[name] = tracker, run

    def _each(self, log: Callable[[str, Any], None], names: Sequence[str] | None = None) -> None:
        """Call ``log`` with every tracker, or those of ``names``; one that fails is dropped."""
        for name, tracker in [*self.trackers.items()]:
            if names is not None and name not in names:
                continue
            try:
                with _own_streams(), self.runtime.own_state():
                    log(name, tracker)
            except Exception as error:
                del self.trackers[name]
                reason = " ".join(str(error).split())
                logger.warning("%s failed, nothing more is logged to it (%s): training continues", name, reason)

    def _read(self) -> dict[str, str]:
        """Tracker -> its run, of ``trackers.json``; a damaged file begins new runs."""
        try:
            known = json.loads(self.folder.trackers.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be read (%s): trackers begin new runs", self.folder.trackers, error)
            return {}
        return {name: run for name, run in known.items() if isinstance(run, str)} if isinstance(known, dict) else {}


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line of ``metrics.jsonl``, with names for trackers.

    >>> scalars({"kind": "step", "step": 20, "epoch": 1, "loss": 3.0, "terms": {"giou": 0.5}, "lr": 1e-4})
    {'train/loss': 3.0, 'train/loss_giou': 0.5, 'train/lr': 0.0001, 'epoch': 1}
    """
    if line["kind"] == "evaluation":
        values = {f"val/{name}": line.get(key) for key, name in SCORES.items()}
        for name, scores in (line.get("per_class") or {}).items():
            values[f"val_per_class/AP {name.replace('/', '_')}"] = scores.get("ap")
    else:
        terms = {f"train/loss_{term}": value for term, value in (line.get("terms") or {}).items()}
        others = {f"train/{name}": line.get(name) for name in ("lr", "grad_norm", "images_per_s", "skipped")}
        values = {"train/loss": line.get("loss"), **terms, **others}
    values["epoch"] = line.get("epoch")
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level with dotted names; lists as text."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = json.dumps(value) if isinstance(value, list) else value
    return found


def _named_for(name: str, values: dict[str, float]) -> dict[str, float]:
    """Names with the characters that MLflow allows."""
    if name != "mlflow":
        return values
    return {re.sub(r"[^\w\-. :/]", "_", key): value for key, value in values.items()}


def _log_image(name: str, tracker: Any, title: str, figure: Image.Image, path: Path, step: int) -> None:
    if name == "tensorboard":
        tracker.log_images({title: np.asarray(figure)[None]}, step=step, dataformats="NHWC")
    elif name == "wandb":
        tracker.log_images({title: [figure]}, step=step)
    elif name == "mlflow":
        tracker.log_artifact(str(path))
    else:
        import trackio  # type: ignore[import-not-found,unused-ignore]

        tracker.log({title: trackio.Image(np.asarray(figure))}, step=step)


def _own_streams() -> AbstractContextManager[None]:
    """A context with new random generators, for the names that trackers draw; those of the program do not advance."""
    return random_streams(int.from_bytes(os.urandom(4), "big"))


def _restore_environment(before: Mapping[str, str], added: Mapping[str, str]) -> None:
    """Undo the changes that starting the trackers made to the environment of the process."""
    for name, value in added.items():
        if os.environ.get(name) == value:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]
