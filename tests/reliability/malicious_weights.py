"""Malicious weight files and folders, given at every entrance for checkpoints: code, archives with code, bombs."""

import argparse
import functools
import json
import os
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors.torch
import torch
from attacks import Call, limit_memory, script, torch_zip, zip_bomb
from PIL import Image
from rows_checkpoints import save_tiny

import detrs
from detrs import cli
from detrs.checkpoints import format, hub
from detrs.checkpoints.convert import convert_checkpoint
from detrs.data import digits
from detrs.errors import UserError

MANY = 2**40


class State:
    """Pickles as an object whose ``__setstate__`` would get a command."""

    def __init__(self, command: str) -> None:
        self.command = command


def pickled(program: bytes) -> Callable[[Path], Any]:
    """A .pth file with a hand-written pickle."""
    return lambda path: torch_zip(path, b"\x80\x02" + program + b".")


def text(value: str) -> bytes:
    """The instruction BINUNICODE."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def tensor(count: int, size: int, stride: int, key: str = "0") -> bytes:
    """Instructions that build a float tensor in a storage of ``count`` elements."""
    number = struct.pack("<q", count)
    storage = (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + b"\x8a\x08" + number + b"tQ"
    )
    sizes = b"\x8a\x08" + struct.pack("<q", size) + b"\x85" + b"\x8a\x08" + struct.pack("<q", stride) + b"\x85"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + sizes + hooks + b"tR"


def legacy_bomb(path: Path) -> None:
    """The older format, with a storage of 4 TB."""
    parts = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    content = b"\x80\x02}" + text("w") + tensor(MANY, MANY, 1).replace(b"tQ", b"NtQ", 1) + b"s."
    path.write_bytes(b"".join([*parts, content, pickle.dumps(["0"], 2)]) + struct.pack("<q", MANY))


def with_storage(program: bytes) -> Callable[[Path], Any]:
    """A .pth file with a hand-written pickle and a storage of four numbers."""

    def write(path: Path) -> None:
        pickled(program)(path)
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("archive/data/0", bytes(16))

    return write


def many_entries(path: Path) -> None:
    """An archive with 80,000 entries."""
    with zipfile.ZipFile(path, "w") as file:
        for number in range(80_000):
            file.writestr(zipfile.ZipInfo(f"archive/{number}"), b"")


def safetensors_bomb(path: Path) -> None:
    """A header of 60 MB, deeply nested."""
    header = b'{"a":' + b"[" * 60_000_000
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def safetensors_claim(path: Path) -> None:
    """A tensor of 4 TB in 16 bytes."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [MANY], "data_offsets": [0, 4 * MANY]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))


CLAIMED = 10**8
RESNET50 = dict(zip(range(1, 5), (3, 4, 6, 3), strict=True))
"""Stage -> blocks."""


def blocks(pattern: str) -> dict[str, list[int]]:
    """Names and shapes by which the number of blocks of a ResNet-50 is derived."""
    return {pattern.format(stage, i): [0] for stage, count in RESNET50.items() for i in range(count)}


def official() -> dict[str, list[int]]:
    """The names that DETR and Deformable DETR share, without elements."""
    layers = {f"transformer.{kind}.layers.0.norm1.weight": [256, 0] for kind in ("encoder", "decoder")}
    others = {"transformer.decoder.layers.0.linear1.weight": [256, 0], "query_embed.weight": [100, 0]}
    return {
        "backbone.0.body.conv1.weight": [0],
        **blocks("backbone.0.body.layer{}.{}.conv3.weight"),
        **layers,
        **others,
    }


CROSS = "transformer.decoder.layers.0.cross_attn"
DEFORMABLE = {
    **official(),
    "class_embed.0.weight": [91, 0],
    **{f"input_proj.{level}.0.weight": [256, 0, 1, 1] for level in range(3)},
    f"{CROSS}.sampling_offsets.weight": [0],
}
HUGE_SHAPES: dict[str, dict[str, list[int]]] = {
    "DETR": {
        **official(),
        "transformer.decoder.layers.0.multihead_attn.in_proj_weight": [0],
        "class_embed.weight": [CLAIMED, 0],
    },
    "Deformable DETR": {
        **DEFORMABLE,
        "transformer.level_embed": [CLAIMED, 0],
        f"{CROSS}.attention_weights.weight": [32 * CLAIMED, 0],
    },
    "Anchor DETR": {
        **blocks("backbone.body.layer{}.{}.conv3.weight"),
        "backbone.body.conv1.weight": [0],
        "transformer.pattern.weight": [3, 0],
        "transformer.adapt_pos2d.0.weight": [0],
        "transformer.position.weight": [300, 0],
        "transformer.class_embed.0.weight": [CLAIMED, 0],
        "transformer.decoder_layers.0.cross_attn.in_proj_weight": [9, 9, 0],
        "transformer.decoder_layers.0.ffn.linear1.weight": [9, 0],
    },
    "Faster R-CNN": {
        **blocks("backbone.body.layer{}.{}.conv3.weight"),
        "roi_heads.box_predictor.cls_score.weight": [CLAIMED, 0],
        "rpn.head.cls_logits.weight": [3, 256, 0],
    },
}
"""Official layouts with tensors without elements, whose shapes claim 10^8 classes or levels."""


def huge_shapes(detector: str) -> Callable[[Path], Any]:
    header = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in HUGE_SHAPES[detector].items()
    }

    def write(path: Path) -> None:
        content = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(content)) + content)

    return write


def text_as_heads(path: Path) -> None:
    """``nheads`` is text, which would be repeated 10^9 times."""
    shapes = {**DEFORMABLE, "transformer.level_embed": [10**9, 0], f"{CROSS}.attention_weights.weight": [32, 0]}
    torch.save({"model": {name: torch.empty(shape) for name, shape in shapes.items()}, "args": {"nheads": "8"}}, path)


def many_calls(function: bytes, argument: bytes, call: bytes, count: int = 20_000) -> Callable[[Path], Any]:
    """A pickle that gives one large value to many calls, and keeps all results."""
    values = argument + b"q\x00" + function + b"q\x01" + text("latin1") + b"q\x02"
    return pickled(b"(" + values + b"](" + call * count + b"et")


def numbers(count: int, value: bytes = b"") -> bytes:
    """Instructions that push different integers, each followed by ``value``."""
    return b"".join(b"J" + struct.pack("<i", 300 + i) + value for i in range(count))


def many_axes(path: Path) -> None:
    """A tensor with 150,000 axes, whose sizes are multiplied."""
    sizes = b"(" + (b"\x8a\x06" + b"\xff" * 5 + b"\x7f") * 150_000 + b"tq\x00"
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04tQ"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    pickled(
        sizes
        + b"}"
        + text("w")
        + b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"K\x00h\x00h\x00"
        + hooks
        + b"tRs"
    )(path)


def sparse_tail(path: Path) -> None:
    """A small safetensors file, followed by 4 GB that take no space on the disk."""
    safetensors.torch.save_file({"fc.weight": torch.ones(2)}, path)
    os.truncate(path, 4 * 2**30)


def sparse_own(path: Path) -> None:
    """A checkpoint of detrs with a last tensor that ends 4 GB later."""
    save_tiny(path)
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    table = json.loads(content[8 : 8 + length])
    metadata = table.pop(format.METADATA)
    last = max(table.values(), key=lambda entry: entry["data_offsets"][1])
    last["data_offsets"][1] += 4 * 2**30
    header = format._header_bytes(metadata["detrs"], table)
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + last["data_offsets"][1])


def large_header_in_a_part(path: Path) -> None:
    """A folder with the list of files of a model; the header of the file has 50 MB."""
    folder_of()(path)
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x.safetensors"}}))
    entry = b':{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(b'"%x"' % i + entry for i in range(900_000)) + b"}"
    (path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def folder_of(**settings: Any) -> Callable[[Path], Any]:
    """A folder of ``transformers`` with other settings and a small file of weights."""

    def write(path: Path) -> None:
        path.mkdir()
        values = {"model_type": "detr", "use_timm_backbone": True, "backbone": "resnet50", **settings}
        (path / "config.json").write_text(json.dumps(values))
        safetensors.torch.save_file({"model.input_projection.weight": torch.ones(2)}, path / "model.safetensors")

    return write


def nested_config(path: Path) -> None:
    folder_of()(path)
    (path / "config.json").write_text("[" * 1_000_000)


def large_config(path: Path) -> None:
    folder_of()(path)
    (path / "config.json").write_text('{"a": [' + "[]," * 6_000_000 + "1]}")


def pickle_in_folder(command: str) -> Callable[[Path], Any]:
    def write(path: Path) -> None:
        folder_of()(path)
        (path / "model.safetensors").unlink()
        torch_zip(path / "pytorch_model.bin", pickle.dumps({"w": Call(os.system, command)}, 2))

    return write


def files(canary: Path) -> dict[str, tuple[str, Callable[[Path], Any]]]:
    """Description -> name of the file or folder, and the function that writes it."""
    command = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w')"
    quoted = text(command)
    doubled = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
    pth: dict[str, Callable[[Path], Any]] = {
        "REDUCE os.system": lambda path: torch_zip(path, pickle.dumps({"model": Call(os.system, command)}, 2)),
        "REDUCE of nested eval": lambda path: torch_zip(path, pickle.dumps([Call(eval, code), [Call(exec, code)]], 2)),
        "STACK_GLOBAL": lambda path: torch_zip(path, pickle.dumps({"model": Call(os.system, command)}, 4)),
        "GLOBAL of Python 2": pickled(b"c__builtin__\neval\n" + text(code) + b"\x85R"),
        "INST": pickled(b"(" + quoted + b"ios\nsystem\n"),
        "OBJ": pickled(b"(cos\nsystem\n" + quoted + b"o"),
        "NEWOBJ": pickled(b"csubprocess\nPopen\n" + quoted + b"\x85\x81"),
        "BUILD with __setstate__": lambda path: torch_zip(path, pickle.dumps(State(command), 2)),
        "BUILD of an argparse type": pickled(b"cargparse\nNamespace\n)\x81}" + text("__class__") + b"cos\nsystem\nsb"),
        "hooks of a tensor": with_storage(
            b"}" + text("w") + tensor(4, 4, 1).replace(b")R", b")R" + quoted + b"cos\nsystem\ns") + b"s"
        ),
        "hooks without code": with_storage(
            b"}" + text("w") + tensor(4, 4, 1).replace(b")R", b")R" + quoted + b"K\x01s") + b"s"
        ),
        "torch._utils with a callable": pickled(b"ctorch._utils\n_rebuild_wrapper_subclass\n(cos\nsystem\nttR"),
        "codecs": pickled(b"c_codecs\nencode\n" + text(code) + text("os.system") + b"\x86R"),
        "bytearray of 1 TB": pickled(b"cbuiltins\nbytearray\n\x8a\x08" + struct.pack("<q", MANY) + b"\x85R"),
        "legacy pickle": lambda path: path.write_bytes(pickle.dumps({"model": Call(os.system, command)}, 2)),
        "legacy bomb": legacy_bomb,
        "TorchScript": lambda path: script(path, code),
        "zip bomb": zip_bomb,
        "many entries": many_entries,
        "stride 0": pickled(b"}" + text("w") + tensor(1, MANY, 0) + b"s"),
        "resized storage": with_storage(b"}" + text("w") + tensor(4, 10**11, 1) + b"s"),
        "memo bomb as a key": pickled(b"}K\x01" + doubled + b"K\x01s"),
        "memo bomb as a setting": with_storage(
            b"}"
            + text("model")
            + b"}"
            + text("w")
            + tensor(4, 4, 1)
            + b"ss"
            + text("args")
            + b"}"
            + text("a")
            + b"K\x01"
            + doubled
            + b"ss"
        ),
        "text as number of heads": text_as_heads,
        "many encoded texts": many_calls(b"c_codecs\nencode\n", text("x" * 4_000_000), b"h\x01h\x00h\x02\x86R"),
        "many sets": many_calls(b"c__builtin__\nset\n", b"](" + numbers(200_000) + b"e", b"h\x01h\x00\x85R"),
        "many sizes": many_calls(b"ctorch\nSize\n", b"(" + numbers(200_000) + b"t", b"h\x01h\x00\x85R"),
        "many dictionaries": many_calls(
            b"ccollections\nOrderedDict\n", b"}(" + numbers(200_000, b"N") + b"u", b"h\x01h\x00\x85R"
        ),
        "many namespaces": many_calls(
            b"cargparse\nNamespace\n",
            b"}(" + b"".join(text(f"{i:x}") + b"N" for i in range(200_000)) + b"u",
            b"h\x01)\x81h\x00b",
        ),
        "many axes": many_axes,
        "args": lambda path: torch.save({"args": argparse.Namespace(a=State(command)), "w": torch.ones(1)}, path),
    }
    other: dict[str, tuple[str, Callable[[Path], Any]]] = {
        "safetensors with a huge header": ("a.safetensors", safetensors_bomb),
        "safetensors with a false size": ("a.safetensors", safetensors_claim),
        **{f"huge shapes of {name}": ("a_dc5.safetensors", huge_shapes(name)) for name in HUGE_SHAPES},
        "safetensors with a sparse tail": ("a.safetensors", sparse_tail),
        "checkpoint with a sparse tensor": ("a.safetensors", sparse_own),
        "large header in a part": ("folder", large_header_in_a_part),
        "pickle as safetensors": ("a.safetensors", pth["REDUCE os.system"]),
        "pickle in a folder": ("folder", pickle_in_folder(command)),
        "nested config.json": ("folder", nested_config),
        "large config.json": ("folder", large_config),
        "config with a million layers": ("folder", folder_of(encoder_layers=10**6)),
        "config with a huge model": ("folder", folder_of(d_model=2**40, encoder_ffn_dim=2**60, decoder_ffn_dim=2**60)),
        "config with a path": ("folder", folder_of(backbone="../../evil", auto_map={"AutoModel": "evil--code.Model"})),
    }
    return {**{name: ("a.pth", write) for name, write in pth.items()}, **other}


FILES = tuple(files(Path("canary")))


def entrances(root: Path, path: Path) -> dict[str, Callable[[], Any]]:
    """Every function and command that takes a checkpoint."""
    Image.new("RGB", (32, 32)).save(root / "image.png")
    command = {
        "evaluate": ("evaluate", path, "--data", "digits"),
        "predict": ("predict", path, root / "image.png", "--output", root / "out"),
        "inspect": ("checkpoint", "inspect", path),
        "push": ("push", path, "owner/name", "--dry-run", root / "pushed"),
        "train without preset": ("train", "--weights", path, "--data", "digits", "--output", root / "run", "--quiet"),
        "train": ("train", "detr-tiny", "--data", "digits", "--weights", path, "--output", root / "run", "--quiet"),
    }
    result: dict[str, Callable[[], Any]] = {
        "load": lambda: detrs.load(str(path)),
        "convert": lambda: convert_checkpoint(str(path), "detrs", root / "converted"),
        "Hub": lambda: detrs.load("owner/name"),
    }
    for name, words in command.items():
        result[name] = functools.partial(cli.dispatch, list(map(str, words)))
    return result


def open_malicious(folder: str, name: str) -> list[list[Any]]:
    """Give one file to every entrance.

    Returns:
        Entrance, what happened, message and seconds of CPU time of each.
    """
    root = Path(folder)
    file, write = files(root / "canary")[name]
    path = root / file
    write(path)
    limit_memory()
    result: list[list[Any]] = []
    with (
        mock.patch.object(hub, "download", lambda repository: path),
        mock.patch.object(digits, "NUM_IMAGES", {"train": 8, "val": 2}),
    ):
        for entrance, call in entrances(root, path).items():
            began = time.process_time()
            try:
                call()
                kind, message = "accepted", ""
            except UserError as error:
                kind, message = "error", str(error)
            except Exception as error:
                kind, message = "traceback", repr(error)[:300]
            result.append([entrance, kind, message, time.process_time() - began])
    return result
