"""Hostile and damaged files: pickles that run code, forged checkpoints, settings that name code, mutations."""

import json
import os
import pickle
import random
import resource
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import run_tiny
import torch
from rows_checkpoints import save_tiny

from detrs import config, models
from detrs.checkpoints import format
from detrs.devices import pick_device
from detrs.errors import UserError
from detrs.predictor import load
from detrs.schema import from_dict, to_dict

HOSTILE_SETTINGS: list[tuple[str, Any]] = [
    ("_target_", "os.system"),
    ("_target_", {"_target_": "os.system", "_args_": ["id"]}),
    ("model._target_", "builtins.eval"),
    ("model.__class__", "os.system"),
    ("model._attn_implementation_internal", "evil/repo"),
    ("model.auto_map", {"AutoModel": "evil--code.Model"}),
    ("model.trust_remote_code", True),
    ("model.kind", "os.system"),
    ("model.kind", "detrs.models.detr.DETRConfig"),
    ("model.kind", "__import__('os').system('id')"),
    ("model.kind", ["DETRConfig"]),
    ("model.kind", None),
    ("model.backbone", "!!python/object/apply:os.system [id]"),
    ("model.backbone.name", "../../etc/passwd"),
    ("model.backbone.name", "hf-hub:evil/model"),
    ("model.backbone.name", "local-dir:/tmp/evil"),
    ("model.dim", "${oc.env:HOME}"),
    ("model.dim", {"$ref": "file:///etc/passwd"}),
    ("model.dim", 10**40),
    ("model.dim", "x" * 10_000_000),
    ("model.classification", {"kind": "subprocess.Popen"}),
    ("data.resize_to", "__import__('os')"),
    ("criterion.__init__", {"__globals__": {}}),
    ("runtime.device", "$(touch canary)"),
    ("seed", {"__reduce__": ["os.system", "id"]}),
]
"""Setting -> value: 25 attempts to make settings name code, paths or addresses."""


def hostile_experiment(setting: str, value: Any, path: Path, values: dict[str, Any]) -> Path:
    """``experiment.json`` with one hostile value."""
    values = json.loads(json.dumps(values))
    *sections, name = setting.split(".")
    inner = values
    for section in sections:
        inner = inner[section]
    inner[name] = value
    path.write_text(json.dumps(values))
    return path


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def torch_zip(path: Path, data: bytes, name: str = "archive") -> None:
    """A .pth file by hand, with any pickle in it."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}/data.pkl", data)
        file.writestr(f"{name}/version", "3\n")


def zip_bomb(path: Path) -> None:
    """700 MB of zeros, a thousand times as large as the file."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("archive/data.pkl", "w") as entry:
        for _ in range(70):
            entry.write(bytes(10_000_000))


def script(path: Path, code: str) -> None:
    """The layout of a TorchScript archive."""
    torch_zip(path, b"\x80\x02}.")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/code/__torch__.py", code)


def size_lie(path: Path) -> None:
    """A tensor whose storage claims 4 GB."""
    torch.save({"w": torch.zeros(4)}, path)
    path.write_bytes(path.read_bytes().replace(b"K\x04", b"J\xff\xff\xff\x3f"[:2]))


PICKLES = [
    *("os.system", "builtins.eval", "builtins.exec", "torch.hub", "legacy pickle", "nested in zip", "in a list"),
    *("SETITEM on a tensor", "size lie", "deep nesting", "zip bomb", "TorchScript"),
]
"""Names of the malicious files."""
MAX_MIB = 500.0
"""Memory that a hostile file may take."""
ENTRANCES = ("checkpoint", "backbone")
"""Where a weight file is given: ``detrs.load``, ``--model.backbone.weights``."""


def pickles(canary: Path) -> dict[str, Callable[[Path], Any]]:
    """Name -> function that writes a malicious file; each would create ``canary`` if it ran."""
    command = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w')"

    def write(value: Any, protocol: int = 2) -> Callable[[Path], Any]:
        return lambda path: torch_zip(path, pickle.dumps(value, protocol))

    hub = pickle.dumps(Call(torch.hub.load_state_dict_from_url, "http://127.0.0.1:9/x"), 2)
    set_item = b"\x80\x02ctorch\nTensor\nq\x00)R(K\x00K\x01u."
    deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
    return {
        "os.system": write(Call(os.system, command)),
        "builtins.eval": write(Call(eval, code)),
        "builtins.exec": write(Call(exec, code)),
        "torch.hub": lambda path: torch_zip(path, hub),
        "legacy pickle": lambda path: path.write_bytes(pickle.dumps(Call(os.system, command))),
        "nested in zip": write({"model": {"w": Call(os.system, command)}}),
        "in a list": write([Call(os.system, command)] * 3, 4),
        "SETITEM on a tensor": lambda path: torch_zip(path, set_item),
        "size lie": size_lie,
        "deep nesting": lambda path: torch_zip(path, deep),
        "zip bomb": zip_bomb,
        "TorchScript": lambda path: script(path, code),
    }


METADATA: list[tuple[str, Any]] = [
    *((key, None) for key in ("experiment", "classes", "preprocessing", "scores", "step", "epoch")),
    *((key, [1]) for key in ("experiment", "classes", "preprocessing", "scores", "step", "epoch")),
    *((key, "x") for key in ("experiment", "classes", "preprocessing", "scores", "step", "epoch")),
    ("preprocessing", {"resize_to": [0, 0], "mean": [0, 0, 0], "std": [1, 1, 1]}),
    ("preprocessing", {"resize_to": [10**9, 10**9], "mean": [0, 0, 0], "std": [1, 1, 1]}),
    ("preprocessing", {"resize_to": [64, 96], "mean": ["a", 0, 0], "std": [1, 1, 1]}),
    ("preprocessing", {"resize_to": [64, 96], "mean": [0, 0], "std": [1, 1, 1]}),
    ("preprocessing", {"resize_to": [64, 96], "mean": [0, 0, 0], "std": [0, 0, 0]}),
    ("preprocessing", {}),
    ("classes", {"names": ["a", "a"], "category_ids": [1, 2]}),
    ("classes", {"names": ["a", "b"], "category_ids": [1, "2"]}),
    ("classes", {"names": ["a", "b"]}),
    ("classes", {"names": None, "category_ids": [1, 2]}),
]
"""Metadata of a checkpoint -> value of another type, with a valid hash."""

GIGANTIC: list[tuple[str, Any]] = [
    ("decoder_layers", 10**6),
    ("encoder_layers", 10**6),
    ("dim", 2**20),
    ("ffn_dim", 2**30),
    ("num_queries", 2**40),
    ("num_points", 10**6),
    ("num_classes", 10**9),
]
"""Setting of the model -> value that needs gigabytes; the file itself stays small."""


def forge(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A checkpoint with valid hashes and other metadata."""
    save_tiny(path)
    tensors, meta = format.load(path)
    del meta["format"]
    change(meta)
    format.save(path, tensors, meta)
    return path


def forge_meta(path: Path, key: str, value: Any) -> Path:
    """``None`` removes the entry."""

    def change(meta: dict[str, Any]) -> None:
        if value is None:
            del meta[key]
        else:
            meta[key] = value

    return forge(path, change)


def forge_model(path: Path, key: str, value: Any) -> Path:
    return forge(path, lambda meta: meta["experiment"]["model"].update({key: value}))


def mutations(good: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Damaged copies of a file, each different from it: flips, truncations, swaps, zeros, edits of the header."""
    draw = random.Random(seed)
    header = 8 + struct.unpack("<Q", good[:8])[0]
    made = 0
    while made < count:
        at = draw.randrange(len(good))
        near = draw.randrange(header)
        mutant = bytearray(good)
        match made % 8:
            case 0 | 1:
                mutant[at] ^= 1 << draw.randrange(8)
            case 2:
                mutant[near] ^= 1 << draw.randrange(8)
            case 3:
                del mutant[at:]
            case 4:
                mutant[at : at + 64] = bytes(len(mutant[at : at + 64]))
            case 5:
                other = draw.randrange(len(good) - 16)
                at = min(at, len(good) - 16)
                mutant[at : at + 8], mutant[other : other + 8] = mutant[other : other + 8], mutant[at : at + 8]
            case 6:
                mutant[near:near] = good[at : at + 1 + draw.randrange(9)]
            case _:
                mutant += good[at : at + 1 + draw.randrange(99)]
        if bytes(mutant) != good:
            made += 1
            yield bytes(mutant)


def is_rejected(kind: str, message: str, mib: float) -> bool:
    """Whether a task ended with an error in words of the library, within the memory limit."""
    return kind == "error" and not any(part in message for part in ("weights_only", "Traceback")) and mib < MAX_MIB


def limit_memory(gib: int = 2) -> None:
    """No attack may take the machine down."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + gib * 2**30, resource.RLIM_INFINITY))


def open_pickle(folder: str, number: int, entrance: str) -> None:
    """Give a malicious file as a checkpoint, or as the weights of a backbone."""
    root = Path(folder)
    path = root / ("best.safetensors" if entrance == "checkpoint" else "backbone.pth")
    pickles(root / "canary")[PICKLES[number]](path)
    limit_memory()
    if entrance == "checkpoint":
        load(path)
    else:
        models.build(run_tiny.experiment(model={"backbone": {"weights": str(path)}}).model, pretrained=True)


def open_settings(folder: str, number: int) -> None:
    """Read hostile settings and build the model; nothing is imported that a harmless file does not import."""
    root = Path(folder)
    harmless = to_dict(run_tiny.EXPERIMENT)
    config.validate(from_dict(config.Experiment, harmless))
    models.build(run_tiny.EXPERIMENT.model)
    os.chdir(root)
    path = hostile_experiment(*HOSTILE_SETTINGS[number], root / "experiment.json", harmless)
    before = set(sys.modules)
    limit_memory()
    try:
        experiment = config.load(path)
        config.validate(experiment)
        pick_device(experiment.runtime.device)
        models.build(experiment.model)
    finally:
        assert set(sys.modules) == before, set(sys.modules) - before


def open_metadata(folder: str, number: int) -> None:
    path = forge_meta(Path(folder) / "best.safetensors", *METADATA[number])
    limit_memory()
    load(path)


def open_gigantic(folder: str, number: int) -> None:
    path = forge_model(Path(folder) / "best.safetensors", *GIGANTIC[number])
    limit_memory()
    load(path)


def open_mutations(folder: str, count: int) -> dict[str, Any]:
    """The number of damaged files that were rejected, and the others."""
    path = save_tiny(Path(folder) / "best.safetensors")
    detected, wrong = 0, []
    for number, mutant in enumerate(mutations(path.read_bytes(), count)):
        path.write_bytes(mutant)
        try:
            load(path)
        except UserError:
            detected += 1
        except Exception as error:
            wrong.append(f"{number}: {error!r:.200}")
        else:
            wrong.append(f"{number}: accepted")
    return {"detected": detected, "wrong": wrong[:9]}
