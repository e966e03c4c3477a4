"""Reads exported programs of ``torch.export`` (.pt2), after a check that they contain nothing that could run code.

``torch.export.load`` unpickles some of the parts that an archive can have, evaluates strings of the graph as
expressions (``sympy.sympify``), looks up functions by their names, and writes Python code that contains names of the
graph. Files of ``detrs.export`` need none of this beyond operators of PyTorch and arithmetic of sizes. So before the
archive is loaded, every part and every string in its graph must match a pattern that admits only these.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from detrs.checkpoints.detector import TrainedDetector
from detrs.checkpoints.exported import KEY, Tensors, read_contents, signature
from detrs.errors import UserError
from detrs.files import open_regular, unreadable
from detrs.ops import suppression  # noqa: F401 (registers an operator of programs)

MODEL = "models/model.json"
EXTRA = f"extra/{KEY}"
RECORDS = re.compile(
    r"archive_format|archive_version|byteorder|models/model\.json|extra/detrs|\.data/\w+|data/sample_inputs/model\.pt|"
    r"data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
)
"""Parts of an archive: the graph, raw tensors and JSON. Others are pickles, compiled code or unknown."""
SAMPLE_INPUTS = "data/sample_inputs/model.pt"
"""A pickle; empty in files of ``detrs.export``."""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*|")
"""Names in the graph; they become part of Python code."""
OPERATOR = re.compile(
    r"torch\.ops\.(aten\.(?!from_file)\w+|detrs\.not_suppressed|torchvision\.(nms|roi_align))(\.\w+)?|_operator\.(add|sub|mul|neg|floordiv|truediv|mod|pow|eq|ne|lt|le|"
    r"gt|ge|getitem|and_|or_)|torch\.(sym_\w+|_check\w*)|math\.(ceil|floor|trunc)"
)
"""Functions that a graph can call. Not the kernels of detrs, which trust their callers with the bounds of tensors."""
EXPRESSION = re.compile(
    r"(?:'[a-z]{1,4}\d+'|\b(?:Symbol|Integer|Rational|Float|Add|Mul|Pow|Max|Min|FloorDiv|PythonMod|Mod|CleanDiv|CeilToInt|"
    r"FloorToInt|CeilDiv|IntTrueDiv|FloatTrueDiv|TruncToInt|TruncToFloat|ToFloat|PowByNatural|Where|Identity|And|Or|Not|"
    r"Equality|Unequality|LessThan|StrictLessThan|GreaterThan|StrictGreaterThan|positive|nonnegative|integer|real|"
    r"precision|True|False|true|false|[a-z]{1,4}\d+|\d+(?:\.\d+)?)\b|[-+*/(),= ])*"
)
"""Arithmetic of symbolic sizes, as sympy writes it."""
TEXT = re.compile(r"[^\\\x00-\x1f]*")
"""Arguments of operators, such as the message of an assertion; Python code has their ``repr``."""
VERSION = re.compile(r"[\w.+]*")
NOT_FINITE = re.compile(r"-?Infinity|NaN")
"""Numbers that JSON does not have."""
PATTERNS = {
    "expr_str": EXPRESSION,
    "target": OPERATOR,
    "as_string": TEXT,
    "torch_version": VERSION,
    "as_float": NOT_FINITE,
    "as_floats": NOT_FINITE,
}
"""Key in the graph -> what its text must match; otherwise it is a name."""


def is_program(start: bytes, path: Path) -> bool:
    """Whether a file is an archive of ``torch.export``: a ZIP archive with its own record of the format."""
    if not start.startswith(b"PK\x03\x04"):
        return path.suffix == ".pt2"
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.partition("/")[2] == "archive_format" for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return path.suffix == ".pt2"


def load_program(path: Path) -> TrainedDetector:
    """Read a detector that ``detrs.export`` wrote in the format of ``torch.export``.

    Raises:
        UserError: the file is not such a file, is damaged, or has parts that could run code.
    """
    try:
        with open_regular(path) as file:
            content = file.read()
    except OSError as error:
        raise unreadable(path, error, "Expected a .pt2 file") from error
    text = check_archive(content, path)
    contents = read_contents(text, str(path), "torch")
    try:
        program = torch.export.load(io.BytesIO(content))
    except Exception as error:  # of any class: the loader asserts, indexes and parses
        raise UserError(f"'{path}' is damaged, or this version of PyTorch cannot read it. Export it again.") from error
    names = tuple(signature(contents.info).outputs)
    return contents.detector(ProgramRunner(program, names, str(path)), str(path))


def check_archive(content: bytes, path: Path) -> str:
    """Check that an archive contains nothing that could run code, and that it is complete.

    Returns:
        The metadata.

    Raises:
        UserError: it contains something else, or is damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
            names = {info.filename.partition("/")[2]: info for info in infos}
            if len(names) != len(infos) or len({info.filename.partition("/")[0] for info in infos}) != 1:
                raise _unsafe(path, "parts with the same name")
            if EXTRA not in names:
                raise UserError(
                    f"'{path}' has no metadata of detrs. Expected a file that 'detrs export --format torch' wrote."
                )
            for name, info in names.items():
                if not RECORDS.fullmatch(name) or info.compress_type != zipfile.ZIP_STORED:
                    raise _unsafe(path, f"the part '{name:.80}'")
            if archive.testzip() is not None:
                raise _damaged(path)
            if names[SAMPLE_INPUTS].file_size:
                raise _unsafe(path, "pickled inputs")
            for name in names:
                if name.endswith("_config.json"):
                    check_tensors(json.loads(archive.read(names[name])), path)
            check_graph(json.loads(archive.read(names[MODEL])), path)
            return archive.read(names[EXTRA]).decode()
    except UserError:
        raise
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, RecursionError, EOFError, OSError) as error:
        raise _damaged(path) from error


def check_tensors(values: Any, path: Path) -> None:
    """Raise ``UserError`` if a tensor is stored as a pickle."""
    for entry in values["config"].values():
        if entry["use_pickle"] is not False or not re.fullmatch(r"(weight|tensor)_\d+", entry["path_name"]):
            raise _unsafe(path, "pickled tensors")


def check_graph(values: Any, path: Path) -> None:
    """Raise ``UserError`` if a string of a graph is neither a name, a known function nor arithmetic of sizes."""
    if values.get("guards_code"):
        raise _unsafe(path, "code of guards")
    for place, text in strings_of(values):
        if place in ("in_spec", "out_spec"):
            fits = not text or _is_plain(json.loads(text)[1])
        else:
            fits = bool(PATTERNS.get(place, NAME).fullmatch(text))
        if not fits:
            raise _unsafe(path, f"the text {text[:60]!r} in its graph")


def _is_plain(spec: Any) -> bool:
    """Whether a specification of inputs or outputs consists of tuples, lists and dictionaries."""
    context = spec["context"]
    return (
        spec["type"] in (None, "builtins.tuple", "builtins.list", "builtins.dict")
        and (context is None or all(NAME.fullmatch(name) for name in json.loads(context) or ()))
        and all(_is_plain(each) for each in spec["children_spec"])
    )


def strings_of(values: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """All strings in a JSON value, keys included, with the key under which they are."""
    if isinstance(values, str):
        yield place, values
    elif isinstance(values, dict):
        for key, value in values.items():
            yield "key", key
            yield from strings_of(value, key)
    elif isinstance(values, list):
        for value in values:
            yield from strings_of(value, place)


def _unsafe(path: Path, what: str) -> UserError:
    return UserError(
        f"'{path}' contains {what}, which 'detrs export' does not write and which could run code. It was not loaded."
    )


def _damaged(path: Path) -> UserError:
    return UserError(f"'{path}' is not a .pt2 file of torch.export, or it is damaged. Export the checkpoint again.")


class ProgramRunner:
    """Runs a program of ``torch.export``.

    Args:
        program: on the CPU.
        outputs: names of its outputs.
        source: path of the file, for messages.
    """

    def __init__(self, program: ExportedProgram, outputs: tuple[str, ...], source: str) -> None:
        self.program, self.outputs, self.source = program, outputs, source
        self.device = torch.device("cpu")
        self.module = program.module()

    def check_device(self, device: torch.device) -> None:
        """Programs run on every device."""

    def __call__(self, inputs: Tensors) -> Tensors:
        device = inputs["images"].device
        if device != self.device:
            from torch.export.passes import move_to_device_pass

            self.module, self.device = move_to_device_pass(self.program, device).module(), device
        found: Tensors = self.module(*inputs.values())
        return {name: found[name] for name in self.outputs}
