"""Rows 66 to 99: image files."""

import io
import os
import socket
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from catalogue import Case
from dataset import FEW, HEIGHT, MANY, WIDTH, Folder, one_step, prepared, reading
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from rows_annotations import case

from detrs.data import images
from detrs.data.loader import evaluation_batches

PNG = b"\x89PNG\r\n\x1a\n"


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def noise(mode: str = "RGB", seed: int = 0) -> Image.Image:
    shape = (HEIGHT, WIDTH) if mode == "L" else (HEIGHT, WIDTH, 3)
    image = Image.fromarray(np.random.default_rng(seed).integers(30, 220, shape, dtype=np.uint8))
    return image if mode in ("L", "RGB") else image.convert(mode)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, color: int, rows: bytes, interlace: int = 0) -> bytes:
    """A PNG file by hand."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlace)
    return PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def interlaced() -> bytes:
    """Adam7, which Pillow reads but does not write."""
    pixels, rows = np.asarray(noise("L")), b""
    for x, y, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        rows += b"".join(b"\0" + row.tobytes() for row in pixels[y::dy, x::dx])
    return png(WIDTH, HEIGHT, 8, 0, rows, interlace=1)


def sixteen(values: np.ndarray) -> bytes:
    return png(WIDTH, HEIGHT, 16, 0, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))


def first(data: bytes | Callable[[], bytes], images: int = FEW, check: Any = None, name: str = "") -> Any:
    """``make`` of a case whose first image has other bytes, and perhaps another name."""

    def prepare(folder: Folder) -> None:
        if name:
            folder.first.unlink()
            folder.data["images"][0]["file_name"] = name
            folder.write()
        folder.first.write_bytes(data() if callable(data) else data)

    return prepared(prepare, images=images, check=check)


def sized(data: Callable[[], bytes], height: int, width: int, check: Any = None) -> Any:
    """As ``first``, for an image of another size."""

    def prepare(folder: Folder) -> None:
        folder.declare(height, width)
        folder.write()
        folder.first.write_bytes(data())

    return prepared(prepare, check=check)


def near(expected: Callable[[], Any], tolerance: float = 0.0) -> Any:
    """The first image equals an array (H, W, 3) up to a mean difference."""

    def check(dataset: Any, folder: Folder) -> None:
        pixels = dataset[0].image.permute(1, 2, 0).numpy().astype(float)
        difference = np.abs(pixels - np.asarray(expected(), dtype=float)).mean()
        assert difference <= tolerance, f"the pixels differ by {difference:.1f}"

    return check


def gray(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def transparent() -> bytes:
    """Black with an alpha of 0: white after composition."""
    return encoded(Image.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 0)))


def transparent_palette() -> bytes:
    image = Image.new("P", (WIDTH, HEIGHT), 1)
    image.putpalette([200, 0, 0, 0, 90, 0])
    return encoded(image, transparency=1)


def white() -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), 255)


def one_bright_pixel(folder: Folder) -> None:
    """The same 16-bit scene twice, the second time with one bright pixel."""
    for number, brightest in enumerate((900, 60_000)):
        values = np.tile(np.linspace(100, 900, WIDTH).astype(int), (HEIGHT, 1))
        values[0, 0] = brightest
        (folder.images / f"train {number}.png").write_bytes(sixteen(values))


def equal_gray(dataset: Any, folder: Folder) -> None:
    a, b = dataset[0].image[:, 1:], dataset[1].image[:, 1:]
    assert torch.equal(a, b), f"equal values give different gray: {a.float().mean():.1f}, {b.float().mean():.1f}"


def float_tiff(high: float) -> Callable[[], bytes]:
    def make() -> bytes:
        return encoded(
            Image.fromarray(np.linspace(0, high, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)), "TIFF"
        )

    return make


def frames(format: str) -> Callable[[], bytes]:
    return lambda: encoded(noise(), format, save_all=True, append_images=[noise(seed=1)])


def oriented(orientation: int) -> Any:
    """An image and a box after EXIF rotation."""

    def prepare(folder: Folder) -> None:
        upright = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        upright[7:30, 6:36] = 255
        back = (None, None, 0, 3, 1, 5, 2, 6, 4)[orientation]  # inverse transposes, as in Pillow's numbering
        stored = Image.fromarray(upright)
        stored = stored if back is None else stored.transpose(Image.Transpose(back))
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored.save(folder.first, exif=exif)
        folder.data["annotations"][0]["bbox"] = [6, 7, 30, 23]
        folder.write()

    def check(dataset: Any, folder: Folder) -> None:
        sample = dataset[0]
        x1, y1, x2, y2 = sample.boxes[0].int().tolist()
        assert bool((sample.image[:, y1:y2, x1:x2] == 255).all()) and int(sample.image.sum()) == 255 * 3 * 30 * 23

    return prepared(prepare, check=check)


def exif_orientation(value: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        exif = Image.Exif()
        exif[0x0112] = value
        return encoded(noise(), "JPEG", exif=exif)

    return make


def broken_exif() -> bytes:
    return encoded(noise(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x03" * 3)


def profile() -> bytes:
    return encoded(noise(), icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes())


def resized(dataset: Any, folder: Folder) -> None:
    """The sides stay at least one pixel in the batches."""
    for batch in evaluation_batches(dataset, (64, 96), 1):
        assert min(batch.images.shape[2:]) >= 1 and max(batch.images.shape[2:]) <= 96


def bomb(width: int, height: int) -> Callable[[], bytes]:
    """A PNG of some kB that declares, and contains, many pixels."""
    return lambda: png(width, height, 1, 0, b"\0" * min(height * (width // 8 + 1), 10_000_000))


def text_bomb() -> bytes:
    info = PngInfo()
    info.add_text("comment", "x" * 100_000_000, zip=True)
    return encoded(noise(), pnginfo=info)


def boxed(brand: bytes) -> bytes:
    return b"\x00\x00\x00\x20ftyp" + brand + bytes(60)


FORMATS = {
    "HEIC": boxed(b"heic"),
    "AVIF": boxed(b"avif"),
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"></svg>',
    "PDF": b"%PDF-1.7\n" + bytes(50),
    "GIF": b"GIF89a" + bytes(50),
}


def unreadable(root: Path) -> Callable[[], list[str]]:
    """No permission to read the first image, also for the superuser."""
    folder = Folder(root / "set")
    folder.write()

    def denied(path: Any, mode: str = "r") -> Any:
        if Path(path) == folder.first:
            raise PermissionError(13, "Permission denied", path)
        return open(path, mode)

    def call() -> list[str]:
        vars(images)["open"] = denied  # before the builtin
        try:
            return reading(folder)()
        finally:
            del vars(images)["open"]

    return call


def directory(folder: Folder) -> None:
    folder.first.unlink()
    folder.first.mkdir()


def pipe(folder: Folder) -> None:
    folder.first.unlink()
    os.mkfifo(folder.first)


def unix_socket(folder: Folder) -> None:
    folder.first.unlink()
    before = os.getcwd()
    os.chdir(folder.images)  # the path of a socket has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(folder.first.name)
    finally:
        os.chdir(before)


def device(folder: Folder) -> None:
    folder.first.unlink()
    folder.first.symlink_to("/dev/zero")


def link(target: Callable[[Folder], Path | str]) -> Any:
    def prepare(folder: Folder) -> None:
        content = folder.first.read_bytes()
        folder.first.unlink()
        where = target(folder)
        if isinstance(where, Path):
            where.parent.mkdir(exist_ok=True)
            where.write_bytes(content)
        folder.first.symlink_to(where)

    return prepare


def renamed(stored: str, listed: str | None = None) -> Any:
    def prepare(folder: Folder) -> None:
        target = folder.images / stored
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.first.rename(target)
        folder.data["images"][0]["file_name"] = listed or stored
        folder.write()

    return prepared(prepare)


def vanishes(root: Path) -> Callable[[], list[str]]:
    """An image that vanishes after the check."""
    from run_tiny import experiment, training

    from detrs.data import open_dataset

    train, val = Folder(root / "set", MANY), Folder(root / "set", 3, "val")
    train.write()
    val.write()

    def call() -> list[str]:
        sets = open_dataset(str(train.root), "train"), open_dataset(str(train.root), "val")
        (train.images / "train 1.png").unlink()
        whole = experiment(schedule={"epochs": 1}, data={"batch_size": 10, "resize_to": (32, 40)})
        for _ in training(whole, root / "run", train_set=sets[0], val_set=sets[1]):
            pass
        return []

    return call


def crowded_folder(count: int) -> Any:
    def prepare(folder: Folder) -> None:
        for number in range(count):
            os.close(os.open(folder.images / f"{number:07}.jpg", os.O_CREAT))

    return prepared(prepare)


def constant(root: Path) -> Callable[[], list[str]]:
    """Black images give a finite loss."""
    for split, count in (("train", 4), ("val", 2)):
        folder = Folder(root / "set", count, split)
        for number in range(count):
            Image.new("RGB", (WIDTH, HEIGHT), (split == "val",) * 3).save(folder.images / f"{split} {number}.png")
        folder.write()
    return lambda: one_step(root / "set", root / "run", {})


NAMES = [
    "a b.png",
    "100%25.png",
    "#1?.png",
    "line\nbreak.png",
    "x" * 251 + ".png",
    "/".join(["d" * 200] * 19) + "/x.png",
]
NFC, NFD = (unicodedata.normalize(form, "Zürich.png") for form in ("NFC", "NFD"))
HTML, LFS, XML = (
    b"<!DOCTYPE html><html>404",
    b"version https://git-lfs.github.com/spec/v1\noid",
    b"<?xml version='1.0'?>",
)
JPEG = encoded(noise(), "JPEG", quality=95, subsampling=0)
CORRUPT = JPEG[:-900] + bytes(100) + JPEG[-800:]

CASES = [
    case(66, "missing", "S", prepared(lambda folder: folder.first.unlink(), images=MANY), "1 x ", "train 0.png"),
    case(66, "many missing", "E", prepared(lambda folder: folder.first.unlink()), "train 0.png", "of 4"),
    case(67, "zero bytes", "S", first(b"", MANY), "1 x ", "train 0.png", "empty"),
    case(68, "web page", "S", first(HTML, MANY), "train 0.png", "a web page"),
    case(68, "LFS pointer", "S", first(LFS, MANY), "train 0.png", "git lfs pull"),
    case(68, "XML", "S", first(XML, MANY), "train 0.png", "XML"),
    case(69, "truncated JPEG", "S", first(JPEG[:-700], MANY), "train 0.png", "truncated"),
    case(70, "corrupt entropy data", "A", first(CORRUPT)),
    case(71, "bytes after the end", "A", first(JPEG + bytes(1000), check=near(lambda: gray(noise()), 4))),
    case(72, "CMYK", "A", first(lambda: encoded(noise("CMYK"), "JPEG", quality=95),
                                check=near(lambda: gray(noise("CMYK")), 4))),
    case(73, "gray", "A", first(lambda: encoded(noise("L")), check=near(lambda: gray(noise("L"))))),
    case(73, "one bit", "A", first(lambda: encoded(noise("1")), check=near(lambda: gray(noise("1"))))),
    case(73, "gray with alpha", "A", first(lambda: encoded(noise("LA")), check=near(lambda: gray(noise("LA"))))),
    case(74, "palette with transparency", "A", first(transparent_palette, check=near(white))),
    case(75, "RGBA", "A", first(transparent, check=near(white))),
    case(76, "16 bits", "A", prepared(one_bright_pixel, check=equal_gray)),
    case(77, "float TIFF in [0, 1]", "A", first(float_tiff(1.0))),
    case(77, "float TIFF up to 300", "E", first(float_tiff(300.0)), "train 0.png", "float"),
    case(78, "TIFF with two frames", "W", first(frames("TIFF"), check=near(lambda: gray(noise()))), "frame"),
    case(78, "GIF", "E", first(lambda: encoded(noise(), "GIF")), "train 0.png", "GIF"),
    case(78, "MPO", "W", first(frames("MPO")), "frame"),
    *(case(79, f"EXIF {value}", "A", oriented(value)) for value in range(2, 9)),
    case(80, "broken EXIF", "A", first(broken_exif)),
    case(80, "EXIF orientation 9", "A", first(exif_orientation(9))),
    case(81, "ICC profile", "A", first(profile, check=near(lambda: gray(noise())))),
    case(82, "1 x 1", "A", sized(lambda: encoded(Image.new("RGB", (1, 1))), 1, 1, resized)),
    case(83, "30000 x 10", "A", sized(lambda: encoded(Image.new("L", (30_000, 10))), 10, 30_000, resized)),
    case(83, "3000 x 1", "A", sized(lambda: encoded(Image.new("L", (3000, 1))), 1, 3000, resized)),
    case(84, "more than 100 megapixels", "R", sized(bomb(11_000, 10_000), 10_000, 11_000), "110,000,000"),
    case(85, "decompression bomb", "R", sized(bomb(20_000, 20_000), 20_000, 20_000), "100,000,000 pixels"),
    case(86, "text bomb", "R", first(text_bomb), "train 0.png"),
    *(case(87, name, "E", first(data), "train 0.png", name) for name, data in FORMATS.items()),
    case(88, "JPEG named png", "A", first(JPEG, check=near(lambda: gray(noise()), 4))),
    case(89, "progressive JPEG", "A", first(lambda: encoded(noise(), "JPEG", progressive=True))),
    case(89, "interlaced PNG", "A", first(interlaced, check=near(lambda: gray(noise("L"))))),
    Case(90, "black images", "A", constant),
    Case(91, "no permission", "E", unreadable, ("train 0.png", "ermission")),
    case(92, "folder", "E", prepared(directory), "train 0.png", "a folder"),
    case(92, "named pipe", "E", prepared(pipe), "train 0.png", "not a regular file"),
    case(92, "socket", "E", prepared(unix_socket), "train 0.png", "not a regular file"),
    case(92, "device", "E", prepared(device), "train 0.png", "not a regular file"),
    case(93, "link inside", "A", prepared(link(lambda folder: folder.root / "real" / "a.png"))),
    case(93, "link to another folder", "A", prepared(link(lambda folder: folder.root.parent / "elsewhere" / "a.png"))),
    case(93, "dangling link", "S", prepared(link(lambda folder: "gone.png"), images=MANY), "train 0.png"),
    case(93, "loop of links", "S", prepared(link(lambda folder: folder.first.name), images=MANY), "train 0.png"),
    case(94, "NFD file, NFC name", "A", renamed(NFD, NFC)),
    case(94, "NFC file, NFD name", "A", renamed(NFC, NFD)),
    case(95, "name that is not UTF-8", "A", renamed("caf\udce9.png")),
    *(case(96, f"odd name {number}", "A", renamed(name)) for number, name in enumerate(NAMES)),
    Case(97, "vanishes in training", "S", vanishes, ("train 1.png",)),
    case(99, "2,000 other files", "A", crowded_folder(2000)),
    Case(99, "100,000 other files", "A", crowded_folder(100_000), slow=True),
]  # fmt: skip
