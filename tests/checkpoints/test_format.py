import json
import os
import random
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from detrs.checkpoints import format
from detrs.checkpoints.format import load, read_meta, save
from detrs.errors import UserError
from detrs.files import remove_partial


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "z.weight": torch.randn(7, 11, generator=generator),
        "a.half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "flag": torch.tensor([True, False, True]),
        "count": torch.tensor(13),
        "empty": torch.empty(0, 3),
        "exact": torch.randn(2, 3, 5, dtype=torch.float64, generator=generator),
    }


META = {
    "detrs": "0.1.0",
    "classes": {"names": ["Zelle", "血小板", "é"], "category_ids": [3, 1, 8]},
    "scores": {"ap": 0.25},
}


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "best.safetensors"


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


class TestRoundTrip:
    def test_what_is_saved_is_loaded(self, path: Path) -> None:
        save(path, tensors(), META)
        checkpoint = load(path)
        assert_same(checkpoint.tensors, tensors())
        assert checkpoint.meta == {**META, "format": 2}
        assert read_meta(path) == checkpoint.meta

    def test_any_safetensors_reader_opens_it(self, path: Path) -> None:
        save(path, tensors(), META)
        assert_same(dict(sorted(safetensors.torch.load_file(path).items())), dict(sorted(tensors().items())))

    def test_the_same_content_is_the_same_file(self, path: Path) -> None:
        save(path, tensors(), META)
        first = path.read_bytes()
        save(path, tensors(), META)
        assert path.read_bytes() == first

    def test_nothing_at_all(self, path: Path) -> None:
        save(path, {}, {})
        assert load(path) == ({}, {"format": 2})

    def test_overlapping_tensors_are_stored_as_independent_copies(self, path: Path) -> None:
        base = torch.randn(5, 7)
        views = {
            "base": base,
            "row": base[2],
            "transposed": base.t(),
            "every_second": base[:, ::2],
            "flat": base.view(-1),
        }
        save(path, views, {})
        loaded = load(path).tensors
        assert_same(loaded, views)
        loaded["row"].zero_()
        assert torch.equal(loaded["base"], base)

    def test_identical_tensors_are_stored_once(self, path: Path) -> None:
        """As the state of a DETR: one head, registered once per decoder layer."""
        head = torch.nn.Linear(101, 91)
        model = torch.nn.ModuleDict({"heads": torch.nn.ModuleList([head] * 6), "body": torch.nn.Linear(13, 7)})
        state = model.state_dict()
        assert len(state) == 14
        save(path, state, {})
        size = 4 * (101 * 91 + 91 + 13 * 7 + 7)
        assert size < path.stat().st_size < size + 4000
        loaded = load(path)
        assert_same(loaded.tensors, state)
        assert loaded.meta == {"format": 2}
        assert sorted(safetensors.torch.load_file(path)) == [
            "body.bias", "body.weight", "heads.0.bias", "heads.0.weight",
        ]  # fmt: skip
        header, _ = split(path)
        aliases = json.loads(header["__metadata__"]["detrs"])["aliases"]
        assert aliases["heads.5.weight"] == "heads.0.weight" and len(aliases) == 10

    def test_tied_views_and_transposes_are_told_apart(self, path: Path) -> None:
        square = torch.randn(5, 5)
        tensors = {"a": square, "t": square.t(), "t_again": square.t(), "bits": square.view(torch.int32)}
        save(path, tensors, {})
        assert_same(load(path).tensors, tensors)
        assert sorted(safetensors.torch.load_file(path)) == ["a", "bits", "t"]

    def test_parameters_are_saved_without_their_gradient(self, path: Path) -> None:
        save(path, {"weight": torch.nn.Parameter(torch.ones(3))}, {})
        assert not load(path).tensors["weight"].requires_grad

    def test_meta_that_json_cannot_hold_leaves_the_old_file(self, path: Path) -> None:
        save(path, tensors(), META)
        before = path.read_bytes()
        for bad in (float("nan"), object()):
            with pytest.raises((ValueError, TypeError)):
                save(path, tensors(1), {"bad": bad})
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]

    def test_meta_is_read_without_the_tensors(self, path: Path) -> None:
        save(path, {"large": torch.zeros(40_000_000, dtype=torch.uint8)}, META)
        os.truncate(path, 40_000_000)  # the header is intact, so only the size of the file shows it
        with pytest.raises(UserError, match="has 40,000,000 bytes, but should have 40,000,"):
            read_meta(path)


class TestMode:
    @pytest.mark.skipif(os.name != "posix", reason="modes are a matter of POSIX")
    @pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
    def test_the_file_has_the_mode_of_the_umask(self, path: Path, umask: None, mask: int, mode: int) -> None:
        os.umask(mask)
        save(path, tensors(), META)
        assert stat.S_IMODE(path.stat().st_mode) == mode


class TestDamage:
    def refuse(self, path: Path, content: bytes) -> str:
        path.write_bytes(content)
        with pytest.raises(UserError) as refused:
            load(path)
        message = str(refused.value)
        assert str(path) in message
        assert "weights_only" not in message
        assert "\n" not in message
        return message

    def test_every_mutation_is_refused(self, path: Path) -> None:
        """Truncations, extensions, flips, swaps and overwritten stretches in the length, the header and the data."""
        save(path, tensors(), META)
        good = path.read_bytes()
        header_end = 8 + int.from_bytes(good[:8], "little")
        draw = random.Random(0)
        mutants = []
        for region in (range(8), range(8, header_end), range(header_end, len(good))):
            for _ in range(40):
                at = draw.choice(region)
                flipped = bytearray(good)
                flipped[at] ^= 1 << draw.randrange(8)
                other = bytearray(good)
                other[at] = draw.randrange(256)
                mutants += [bytes(flipped), bytes(other)]
        for _ in range(40):
            cut, at = draw.randrange(len(good)), draw.randrange(len(good) - 16)
            mutants += [
                good[:cut],
                good + good[cut : cut + 9],
                good[:at] + bytes(9) + good[at + 9 :],
                good[:at] + good[at + 1 :],
                good[:at] + good[at + 8 : at + 16] + good[at : at + 8] + good[at + 16 :],
            ]
        mutants = [mutant for mutant in mutants if mutant != good]
        assert len(mutants) > 400
        for mutant in mutants:
            self.refuse(path, mutant)
        path.write_bytes(good)
        assert_same(load(path).tensors, tensors())

    def test_every_byte_of_a_small_file(self, path: Path) -> None:
        save(path, {"w": torch.tensor([1.0, 2.0])}, {"name": "x"})
        good = path.read_bytes()
        for at in range(len(good)):
            self.refuse(path, good[:at] + bytes([good[at] ^ 0x20]) + good[at + 1 :])
            self.refuse(path, good[:at])

    def test_the_damaged_tensor_is_named(self, path: Path) -> None:
        save(path, tensors(), META)
        good = path.read_bytes()
        data = tensors()["exact"].numpy().tobytes()
        at = good.index(data) + 17
        message = self.refuse(path, good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        assert "exact" in message
        assert "z.weight" not in message

    def test_the_header_of_another_checkpoint(self, path: Path) -> None:
        """Both parts are intact, but of different files."""
        save(path, tensors(0), META)
        first = path.read_bytes()
        save(path, tensors(1), META)
        second = path.read_bytes()
        header_end = 8 + int.from_bytes(first[:8], "little")
        assert first[:8] == second[:8]
        assert "wrong SHA-256 of" in self.refuse(path, first[:header_end] + second[header_end:])

    def test_forged_headers_are_refused(self, path: Path) -> None:
        """Headers with a valid hash and invalid content."""
        save(path, tensors(), META)
        good = path.read_bytes()
        header_end = 8 + int.from_bytes(good[:8], "little")
        header = json.loads(good[8:header_end])
        forgeries = [
            {**header, "z.weight": {**header["z.weight"], "dtype": "F99"}},
            {**header, "z.weight": {**header["z.weight"], "shape": [7, 12]}},
            {**header, "z.weight": {**header["z.weight"], "shape": [2**62, 2**62]}},
            {**header, "z.weight": {**header["z.weight"], "data_offsets": [0, -1]}},
            {name: entry for name, entry in header.items() if name != "empty"},
            {**header, "more": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}},
        ]
        for entries in forgeries:
            envelope = json.loads(header["__metadata__"]["detrs"])
            self.refuse(path, forged(entries, envelope) + good[header_end:])
        envelope = json.loads(header["__metadata__"]["detrs"])
        for wrong in (
            [], {}, {"meta": []}, {**envelope, "meta": []}, {**envelope, "sha256": []}, {**envelope, "aliases": 3},
            {**envelope, "aliases": {"z.weight": "flag"}}, {**envelope, "aliases": {"z.weight": "z.weight"}},
            {**envelope, "aliases": {"other": "z.weight"}}, {**envelope, "aliases": {"flag": ["z.weight"]}},
            {"meta": envelope["meta"]},
        ):  # fmt: skip
            self.refuse(path, forged(header, wrong) + good[header_end:])
        self.refuse(path, forged(header, json.loads("[" * 500 + "]" * 500)) + good[header_end:])
        deep = b'{"__metadata__":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
        self.refuse(path, len(deep).to_bytes(8, "little") + deep)

    def test_every_other_spelling_of_the_header_is_refused(self, path: Path) -> None:
        """The JSON has the same content: white space, order, escapes, repeated and additional keys."""
        save(path, tensors(), META)
        header, data = split(path)
        good = path.read_bytes()
        metadata = header.pop("__metadata__")
        text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":"))
        assert enclosed(text.encode()) + data == good
        spellings = [
            json.dumps({"__metadata__": metadata, **header}),
            json.dumps({**header, "__metadata__": metadata}, separators=(",", ":")),
            json.dumps({"__metadata__": metadata, **dict(sorted(header.items(), reverse=True))}, separators=(",", ":")),
            json.dumps({"__metadata__": dict(reversed(metadata.items())), **header}, separators=(",", ":")),
            json.dumps({"__metadata__": {**metadata, "more": "x"}, **header}, separators=(",", ":")),
            text.replace("z.weight", "\\u007a.weight", 1),
            text.replace('"flag"', '"\\u0066lag"'),
            text.replace('"count":', '"count":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"count":'),
            text + "        ",
            text.replace(metadata["detrs_sha256"], metadata["detrs_sha256"].upper()),
        ]
        for spelling in spellings:
            assert spelling != text
            assert "damaged" in self.refuse(path, enclosed(spelling.encode()) + data)

    def test_two_thousand_mutations(self, path: Path) -> None:
        save(path, tensors(), META)
        good = path.read_bytes()
        draw = random.Random(1)
        for _ in range(2000):
            mutant = bytearray(good)
            for _ in range(draw.choice((1, 1, 2, 8))):
                mutant[draw.randrange(len(good))] ^= draw.randrange(1, 256)
            if mutant != good:
                self.refuse(path, bytes(mutant))

    def test_a_damaged_length_allocates_nothing(self, path: Path) -> None:
        save(path, tensors(), META)
        good = path.read_bytes()
        for length in (format.MAX_HEADER_BYTES + 1, 2**40, 2**63):
            assert "truncated or damaged" in self.refuse(path, length.to_bytes(8, "little") + good[8:])


def split(path: Path) -> tuple[dict, bytes]:
    """The header of a file, parsed, and its data."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def enclosed(text: bytes) -> bytes:
    """A header with its length and padding."""
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def forged(header: dict, envelope: object) -> bytes:
    """A header with a valid hash and any JSON."""
    table = {name: entry for name, entry in header.items() if name != "__metadata__"}
    raw = format._header_bytes(json.dumps(envelope), table)
    return len(raw).to_bytes(8, "little") + raw


class TestOtherFiles:
    @pytest.mark.parametrize(
        ("content", "what"),
        [
            (b"", "an empty file"),
            (b"  \n", "an empty file"),
            (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not a checkpoint but a web page"),
            (b"\n\n<html>sign in</html>" + b" " * 900, "a web page"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
                r"git lfs pull.*Expected a \.safetensors file\.",
            ),
            (b"\x1f\x8b\x08\x00" + bytes(50), "gzip"),
            (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
            (b'{"model": "detr"}', "a JSON file"),
            (b"GIF89a" + bytes(50), "a GIF image"),
            (bytes(50), "is not a checkpoint, or it is damaged"),
            (b"abc", "is not a checkpoint, or it is damaged"),
        ],
    )
    def test_the_message_names_the_kind_of_file(self, path: Path, content: bytes, what: str) -> None:
        path.write_bytes(content)
        for read in (load, read_meta):
            with pytest.raises(UserError, match=what):
                read(path)

    @pytest.mark.parametrize("zipped", [True, False])
    def test_pth(self, path: Path, zipped: bool) -> None:
        torch.save({"weight": torch.ones(3)}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match=r"pickle|PyTorch's \.pth"):
            load(path)

    def test_safetensors_of_other_programs(self, path: Path) -> None:
        for metadata in (None, {"format": "pt"}):
            safetensors.torch.save_file(tensors(), path, metadata=metadata)
            with pytest.raises(UserError, match="without detrs metadata"):
                load(path)

    def test_missing_folder_and_link(self, tmp_path: Path) -> None:
        save(tmp_path / "best.safetensors", {}, {})
        with pytest.raises(UserError, match=r"no checkpoint .*bst.safetensors. Did you mean 'best.safetensors'"):
            load(tmp_path / "bst.safetensors")
        with pytest.raises(UserError, match="There is no checkpoint"):
            load(tmp_path / "nowhere" / "best.safetensors")
        with pytest.raises(UserError, match="is a folder"):
            load(tmp_path)
        (tmp_path / "link").symlink_to("gone.safetensors")
        with pytest.raises(UserError, match=r"dangling link to gone\.safetensors"):
            load(tmp_path / "link")

    def test_newer_format(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(format, "FORMAT", 7)
        save(path, tensors(), {"detrs": "9.8.7"})
        monkeypatch.undo()
        for read in (load, read_meta):
            with pytest.raises(UserError, match=r"format 7 \(written by detrs 9\.8\.7\).*reads format 2. Update detrs"):
                read(path)

    def test_older_format(self, path: Path) -> None:
        """Format 1 kept the hash of the header inside its JSON."""
        envelope = {"header_sha256": "0" * 64, "meta": {"detrs": "0.1.0", "format": 1}, "sha256": {}}
        text = json.dumps({"__metadata__": {"detrs": json.dumps(envelope)}}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        for read in (load, read_meta):
            with pytest.raises(UserError, match=r"format 1 \(written by detrs 0\.1\.0\).*reads format 2. Load it with"):
                read(path)


class TestNonFinite:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
    def test_is_refused_by_name(self, path: Path, value: float, dtype: torch.dtype) -> None:
        poisoned = torch.ones(3, 5, dtype=dtype)
        poisoned[1, 2] = value
        save(path, {"good": torch.ones(3), "decoder.bad": poisoned}, {}, allow_non_finite=True)
        with pytest.raises(UserError, match=r"NaN or infinity in decoder\.bad:"):
            load(path)
        loaded = load(path, allow_non_finite=True).tensors
        assert torch.equal(loaded["decoder.bad"].isfinite(), poisoned.isfinite())

    def test_five_names_are_enough(self, path: Path) -> None:
        save(path, {f"layer.{i}": torch.tensor(float("nan")) for i in range(8)}, {}, allow_non_finite=True)
        with pytest.raises(UserError, match=r"in layer\.0, layer\.1, layer\.2, layer\.3, layer\.4 and 3 more:"):
            load(path)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_is_not_written_over_a_good_file(self, path: Path, value: float) -> None:
        save(path, tensors(), META)
        before = path.read_bytes()
        with pytest.raises(format.NonFiniteError, match=r"Cannot save .*best\.safetensors: NaN or infinity in bad\."):
            save(path, {**tensors(), "bad": torch.tensor([1.0, value])}, META)
        assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


class TestInterruption:
    @pytest.mark.parametrize("call", ["fsync", "replace"])
    @pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), OSError(5, "Input/output error")])
    def test_a_failing_disk_keeps_the_old_file(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, call: str, fault: OSError
    ) -> None:
        save(path, tensors(0), META)

        def fail(*_: object) -> None:
            raise fault

        monkeypatch.setattr(os, call, fail)
        with pytest.raises(UserError, match=rf"{fault.strerror} \(it needs [\d,]+ bytes, [\d,]+ are free\)") as refused:
            save(path, tensors(1), META)
        assert str(path) in str(refused.value)
        monkeypatch.undo()
        assert_same(load(path).tensors, tensors(0))
        assert list(path.parent.iterdir()) == [path]

    def test_ctrl_c_leaves_nothing(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(path, tensors(), META)
        assert list(path.parent.iterdir()) == []

    def test_no_folder_and_no_permission(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"Cannot write the checkpoint .*No such file or directory. An existing"):
            save(tmp_path / "nowhere" / "best.safetensors", tensors(), META)
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match=r"Cannot write the checkpoint .*Not a directory"):
            save(tmp_path / "file" / "best.safetensors", tensors(), META)
        with pytest.raises(UserError, match="Cannot write the checkpoint"):
            save(Path("/proc/best.safetensors"), tensors(), META)


def in_child(work: Callable[[], int]) -> int:
    """Runs ``work`` in a forked process, which exits with what it returns; gives the process id."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return child


@pytest.mark.skipif(os.name != "posix", reason="limits and signals of POSIX")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
class TestKill:
    OLD, NEW = {"w": torch.zeros(50_000)}, {"w": torch.ones(50_000)}
    CUTS = (0, 1, 8, 200, 65_536, 100_001, 131_072, 199_999)
    """Bytes after which the system aborts the write."""

    def limited(self, path: Path, cut: int, action: signal.Handlers) -> int:
        import resource

        signal.signal(signal.SIGXFSZ, action)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (cut, resource.RLIM_INFINITY))
        try:
            save(path, self.NEW, {"step": 2})
        except UserError as error:
            return 3 if f"Cannot write the checkpoint {path}: File too large" in str(error) else 4
        return 5

    def test_killed_at_any_byte(self, path: Path) -> None:
        save(path, self.OLD, {"step": 1})
        good = path.read_bytes()
        for cut in (*self.CUTS, len(good) - 1):
            _, status = os.waitpid(in_child(lambda cut=cut: self.limited(path, cut, signal.SIG_DFL)), 0)
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXFSZ, (cut, status)
            assert path.read_bytes() == good
            assert remove_partial(path.parent) == 1
            assert list(path.parent.iterdir()) == [path]

    def test_out_of_space_at_any_byte(self, path: Path) -> None:
        save(path, self.OLD, {"step": 1})
        good = path.read_bytes()
        for cut in (*self.CUTS, len(good) - 1):
            _, status = os.waitpid(in_child(lambda cut=cut: self.limited(path, cut, signal.SIG_IGN)), 0)
            assert os.waitstatus_to_exitcode(status) == 3, cut
            assert path.read_bytes() == good
            assert list(path.parent.iterdir()) == [path]

    def test_killed_at_any_time(self, path: Path) -> None:
        """SIGKILL while two checkpoints replace each other: there is always one, and it is complete."""
        save(path, self.OLD, {"step": 1})

        def work() -> int:
            while True:
                save(path, self.NEW, {"step": 2})
                save(path, self.OLD, {"step": 1})

        draw = random.Random(0)
        for _ in range(6):
            child = in_child(work)
            time.sleep(draw.uniform(0.02, 0.1))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            tensors, meta = load(path)
            assert torch.equal(tensors["w"], (self.OLD, self.NEW)[meta["step"] - 1]["w"])
            assert remove_partial(path.parent) <= 1
            assert list(path.parent.iterdir()) == [path]
