"""Reads exported files in the format of ONNX, and runs them with ONNX Runtime.

An ONNX file contains no code, but it can refer to other files, which are not read here: external data is rejected.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from detrs.checkpoints.detector import TrainedDetector
from detrs.checkpoints.exported import KEY, Tensors, read_contents, signature
from detrs.errors import UserError
from detrs.files import open_regular, unreadable

if TYPE_CHECKING:
    import onnx
    import onnxruntime

DIGEST_KEY = "detrs_sha256"
"""Name of the digest of the graph in the metadata."""
MAX_BYTES = 2**31 - 1
"""Limit of a protobuf message."""
START = b"\x08"
"""First byte of ONNX files: field 1, the version of the format."""
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "pkg.onnxscript.torch_lib", "pkg.onnxscript.torch_lib.common")
"""Domains of operators that ONNX Runtime has, or that are defined in the file itself."""
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""Device type -> execution provider."""
ERRORS_ONLY = 3
"""Severity of messages of ONNX Runtime."""


def load_onnx(path: Path) -> TrainedDetector:
    """Read a detector that ``detrs.export`` wrote in the format of ONNX.

    Raises:
        UserError: the file is not such a file, is damaged, or refers to other files; or a package is not installed.
    """
    onnx, _ = packages()
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise UserError(f"'{path}' is larger than 2 GiB. Expected an ONNX file in one part.")
            content = file.read()
    except OSError as error:
        raise unreadable(path, error, "Expected an ONNX file") from error
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # the class depends on the version of protobuf
        raise UserError(f"'{path}' is not an ONNX file, or it is damaged. Export the checkpoint again.") from error
    properties = {entry.key: entry.value for entry in model.metadata_props}
    if not model.graph.node:
        raise UserError(f"'{path}' is not an ONNX file, or it is damaged. Export the checkpoint again.")
    check_self_contained(model, path)
    if KEY not in properties:
        raise UserError(
            f"'{path}' has no metadata of detrs. Expected a file that 'detrs export' wrote; those of other programs do "
            "not contain their classes and preprocessing."
        )
    contents = read_contents(properties[KEY], str(path), "onnx")
    if properties.get(DIGEST_KEY) != digest(model):
        raise UserError(
            f"'{path}' is damaged, or another program changed it after the export, so that its measured differences "
            "from the checkpoint do not apply. Export the checkpoint again."
        )
    names = tuple(each.name for each in model.graph.input), tuple(each.name for each in model.graph.output)
    if names != tuple(signature(contents.info)):
        raise UserError(
            f"'{path}' has other inputs or outputs than those in its metadata. Export the checkpoint again."
        )
    return contents.detector(OnnxRunner(content, str(path)), str(path))


def packages() -> tuple[Any, Any]:
    """onnx and ONNX Runtime.

    Raises:
        UserError: one is not installed.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"ONNX files need the packages onnx and onnxruntime ({error}): pip install 'detrs[export]'"
        ) from error
    return onnx, onnxruntime


def digest(model: "onnx.ModelProto") -> str:
    """SHA-256 of the graph, its functions and operator sets; without the metadata of the model."""
    parts = [model.graph, *model.functions, *model.opset_import]
    found = hashlib.sha256()
    for part in parts:
        found.update(part.SerializeToString(deterministic=True))
    return found.hexdigest()


def check_self_contained(model: "onnx.ModelProto", path: Path) -> None:
    """Check that a model refers to nothing outside the file.

    Raises:
        UserError: it has external data, or operators that another program must supply.
    """
    for tensor in tensors_of(model):
        if tensor.data_location == tensor.EXTERNAL or tensor.external_data:
            raise UserError(
                f"'{path}' refers to external data ('{tensor.name}'), which is not read: other files could be opened "
                "in this way. Expected a single file, as 'detrs export' writes it."
            )
    own = {function.domain for function in model.functions}
    for entry in model.opset_import:
        if entry.domain not in (*DOMAINS, *own):
            raise UserError(
                f"'{path}' needs operators of '{entry.domain}', which ONNX Runtime does not have. Expected a file that "
                "'detrs export' wrote."
            )


def tensors_of(message: Any) -> Iterator["onnx.TensorProto"]:
    """All tensors in a message, also those in attributes, subgraphs and functions."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        is_single = hasattr(value, "DESCRIPTOR")
        for each in (value,) if is_single else value:
            yield from tensors_of(each)


class OnnxRunner:
    """Runs a model with ONNX Runtime, with as many threads as PyTorch uses.

    Args:
        content: the file.
        source: its path, for messages.

    Raises:
        UserError: ONNX Runtime does not accept the model.
    """

    def __init__(self, content: bytes, source: str) -> None:
        self.content, self.source = content, source
        self.made_for: tuple[torch.device, int] | None = None
        self._session: onnxruntime.InferenceSession | None = None
        self.session(torch.device("cpu"))

    def check_device(self, device: torch.device) -> None:
        _, runtime = packages()
        if device.type not in PROVIDERS:
            raise UserError(f"ONNX files run on cpu and cuda, not on '{device.type}'. Choose --device cpu.")
        if PROVIDERS[device.type] not in runtime.get_available_providers():
            raise UserError(
                "The installed ONNX Runtime has no CUDA. Choose --device cpu, or replace the package: pip uninstall "
                "onnxruntime, then pip install onnxruntime-gpu."
            )

    def session(self, device: torch.device) -> "onnxruntime.InferenceSession":
        """The session for a device and the current number of threads; the last one is kept."""
        key = device, torch.get_num_threads()
        if self._session is None or key != self.made_for:
            self.check_device(device)
            _, runtime = packages()
            options = runtime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = key[1], 1
            options.log_severity_level = ERRORS_ONLY
            provider: Any = PROVIDERS[device.type]
            if device.type == "cuda":
                provider = provider, {"device_id": device.index or 0}
            try:
                self._session = runtime.InferenceSession(self.content, options, providers=[provider])
            except Exception as error:  # ONNX Runtime has one class per code of its errors, without a common base
                raise UserError(f"ONNX Runtime cannot use '{self.source}': {first_line(error)}") from error
            self.made_for = key
        return self._session

    def __call__(self, inputs: Tensors) -> Tensors:
        device = inputs["images"].device
        session = self.session(device)
        names = [output.name for output in session.get_outputs()]
        try:
            found = session.run(names, {name: tensor.cpu().numpy() for name, tensor in inputs.items()})
        except Exception as error:
            size = " x ".join(map(str, inputs["images"].shape))
            raise UserError(
                f"ONNX Runtime cannot run '{self.source}' on images of {size}: {first_line(error)}"
            ) from error
        return {name: _tensor(value).to(device) for name, value in zip(names, found, strict=True)}


def _tensor(value: Any) -> Tensor:
    return torch.from_numpy(value)


def first_line(error: Exception) -> str:
    """The first line of an error of ONNX Runtime, as a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".") + "."
