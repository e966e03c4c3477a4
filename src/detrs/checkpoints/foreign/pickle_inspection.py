"""Static inspection of the pickles in PyTorch files: what they would build is worked out, and nothing is built.

A pickle is a program for a stack machine. :func:`inspect` runs this machine on descriptions of values, and accepts
only what ``torch.save`` writes for state dicts: containers, numbers, strings and dense tensors inside their storage.
Afterwards ``torch.load(weights_only=True)`` can neither run code nor allocate more memory than the file contains.
"""

import io
import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MAX_PICKLE_BYTES = 8_000_000
"""A state dict of 1,000 tensors with the state of its optimizer has a pickle of 300 kB."""
MAX_OPCODES = 500_000
MAX_COPIED = 1_000_000
"""Entries and characters that all calls together may copy. A pickle can give one large value to many calls."""
MAX_AXES = 64
"""Of a tensor, as in PyTorch."""
PROTOCOL = 2
"""The protocol of ``torch.save``, and the only one that ``torch.load(weights_only=True)`` reads completely."""

STORAGE_BYTES = {
    **dict.fromkeys(("torch.DoubleStorage", "torch.LongStorage", "torch.ComplexFloatStorage"), 8),
    **dict.fromkeys(("torch.FloatStorage", "torch.IntStorage"), 4),
    **dict.fromkeys(("torch.HalfStorage", "torch.BFloat16Storage", "torch.ShortStorage"), 2),
    **dict.fromkeys(("torch.CharStorage", "torch.ByteStorage", "torch.BoolStorage"), 1),
}
"""Storage type -> bytes of an element."""
CONTAINERS = frozenset({"collections.OrderedDict", "collections.Counter", "argparse.Namespace"})
TENSORS = frozenset({"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"})
PARAMETER = "torch._utils._rebuild_parameter"
PLAIN = frozenset({"torch.Size", "torch.device", "_codecs.encode", "builtins.set", "__builtin__.set"})
DTYPES = frozenset(
    f"torch.{name}"
    for name in ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
)
ALLOWED = frozenset({*STORAGE_BYTES, *CONTAINERS, *TENSORS, PARAMETER, *PLAIN, *DTYPES})
"""All names that a pickle may refer to."""
OTHER_TENSORS = {
    "torch._utils._rebuild_sparse_tensor": "sparse tensors",
    "torch._utils._rebuild_qtensor": "quantized tensors",
    "torch._utils._rebuild_meta_tensor_no_storage": "tensors without values (device 'meta')",
    "torch._utils._rebuild_wrapper_subclass": "tensors of a subclass",
    "torch._tensor._rebuild_from_type_v2": "tensors of a subclass",
    "torch._utils._rebuild_parameter_with_state": "parameters with attributes",
    "torch._utils._rebuild_tensor_v3": "tensors of an unusual dtype",
}
"""Harmless names that do not belong to a state dict of dense tensors."""

CONSTANTS = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
    | {"SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "INT", "LONG", "LONG4", "FLOAT"}
    | {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}
)
"""Opcodes that push their argument."""
FIXED: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
"""Opcodes that push a value without an argument."""


class RejectedError(ValueError):
    """The pickle is not accepted; the text completes "'file' ..."."""


class Global(NamedTuple):
    """A reference to a class or function by its name; it is not imported."""

    name: str


class Storage(NamedTuple):
    """The memory of tensors, which the file contains beside the pickle."""

    key: str
    num_elements: int
    element_bytes: int

    @property
    def num_bytes(self) -> int:
        return self.num_elements * self.element_bytes


class TensorEntry(NamedTuple):
    """A dense tensor that lies inside its storage."""

    shape: tuple[int, ...]


@dataclass(eq=False)
class Container:
    """An ``OrderedDict``, ``Counter`` or ``Namespace``."""

    kind: str
    items: dict[Any, Any] = field(default_factory=dict)


class Plain(NamedTuple):
    """A value without influence, such as a ``torch.device``."""

    name: str


class Inspection(NamedTuple):
    """What a pickle describes."""

    value: Any
    """Python values, :class:`Container`, :class:`TensorEntry`, :class:`Plain`."""
    storages: dict[str, Storage]
    end: int
    """Position after the pickle in the data."""


def inspect(data: bytes, start: int = 0) -> Inspection:
    """Inspect the pickle at ``start``; ``data`` may continue after it.

    Raises:
        RejectedError: The pickle refers to code, is damaged, or holds something that is not in a state dict.
    """
    machine = _Machine()
    file = io.BytesIO(data)
    file.seek(start)
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if number == MAX_OPCODES:
                raise RejectedError(f"has more than {MAX_OPCODES:,} pickle instructions. Expected a state dict.")
            machine.run(opcode.name, argument)
        if machine.protocol != PROTOCOL:
            raise RejectedError(
                f"uses pickle protocol {machine.protocol}, but torch.save writes protocol {PROTOCOL}. Save it again "
                "with torch.save(model.state_dict(), path)."
            )
        (value,) = machine.stack
    except RejectedError:
        raise
    except (ValueError, LookupError, TypeError, OverflowError, AttributeError) as error:
        raise RejectedError("is damaged: its pickle is invalid. Download it again.") from error
    return Inspection(value, machine.storages, file.tell())


class _Machine:
    """The stack machine of pickles. Invalid programs raise the errors that :func:`inspect` handles."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.protocol = 0
        self.copied = 0

    def run(self, opcode: str, argument: Any) -> None:
        """Run one instruction."""
        if opcode in CONSTANTS:
            self.stack.append(argument)
        elif opcode in FIXED:
            self.stack.append(FIXED[opcode]())
        elif opcode in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = self.stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[argument])
        elif method := getattr(self, f"_{opcode.lower()}", None):
            method(argument)
        else:
            raise RejectedError(f"has the pickle instruction {opcode}, which torch.save does not write.")

    def _stop(self, _: None) -> None:
        if self.marks:
            raise ValueError("open mark")

    def _frame(self, _: int) -> None:
        pass

    def _proto(self, protocol: int) -> None:
        self.protocol = protocol

    def _memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _mark(self, _: None) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _tuple(self, _: None) -> None:
        items = tuple(self._pop_mark())  # replaces self.stack
        self.stack.append(items)

    def _tuple1(self, _: None) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def _tuple2(self, _: None) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def _tuple3(self, _: None) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def _append(self, _: None) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: None) -> None:
        self._extend(self._pop_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError("not a list")
        self.stack[-1].extend(items)

    def _setitem(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _setitems(self, _: None) -> None:
        self._set(self._pop_mark())

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Container):
            target = target.items
        if type(target) is not dict:
            raise TypeError("not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def _global(self, names: str) -> None:
        module, name = names.split(" ", 1)
        self.stack.append(_reference(module, name))

    def _inst(self, names: str) -> None:
        self._pop_mark()
        self._global(names)
        raise RejectedError("has the pickle instruction INST, which torch.save does not write.")

    def _stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(_reference(_string(module), _string(name)))

    def _binpersid(self, _: None) -> None:
        kind, type_, key, location, num_elements, *view = self.stack.pop()
        self._copies(view)
        if kind != "storage" or not isinstance(type_, Global) or type_.name not in STORAGE_BYTES or any(view):
            raise ValueError("not a storage")
        if _string(location) == "meta":
            raise RejectedError("contains tensors without values (device 'meta'). Expected dense tensors.")
        storage = Storage(_string(key), _count(num_elements), STORAGE_BYTES[type_.name])
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError("contradicting storages")
        self.stack.append(storage)

    def _newobj(self, _: None) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        if cls.name not in CONTAINERS or arguments != ():
            raise ValueError("not a container")
        self.stack.append(Container(cls.name))

    def _build(self, _: None) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        attributes = state.items if isinstance(state, Container) else state
        if not isinstance(target, Container) or type(attributes) is not dict:
            raise ValueError("not a container with attributes")
        self._copies(attributes)
        if any(type(name) is not str or name.startswith("__") for name in attributes):
            raise ValueError("not an attribute")
        if target.kind == "argparse.Namespace":
            target.items.update(attributes)

    def _reduce(self, _: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        name = function.name
        if type(arguments) is not tuple:
            raise TypeError("not a tuple")
        self._copies(arguments, *arguments[:MAX_AXES])
        if name in TENSORS:
            value: Any = self._tensor(*arguments)
        elif name == PARAMETER:
            value, _requires_grad, hooks = arguments
            if not isinstance(value, TensorEntry) or not _is_empty(hooks):
                raise ValueError("not a parameter without hooks")
        elif name in CONTAINERS - {"argparse.Namespace"}:
            value = Container(name, dict(_pairs(*arguments)))
        elif name == "_codecs.encode":
            text, encoding = arguments
            if encoding not in ("latin1", "latin-1"):
                raise ValueError("not bytes")
            value = _string(text).encode("latin-1")
        elif name in PLAIN:
            value = _plain(name, *arguments)
        else:
            raise ValueError("not a function")
        self.stack.append(value)

    def _copies(self, *values: Any) -> None:
        """Count what a call copies."""
        for value in values:
            value = value.items if isinstance(value, Container) else value
            self.copied += len(value) if isinstance(value, str | bytes | tuple | list | dict) else 0
        if self.copied > MAX_COPIED:
            raise RejectedError(f"copies more than {MAX_COPIED:,} values in its pickle. Expected a state dict.")

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> TensorEntry:
        """``_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata])``."""
        if not isinstance(storage, Storage) or type(size) is not tuple or type(stride) is not tuple:
            raise TypeError("not a tensor")
        _requires_grad, hooks, metadata = (*rest, None, None, None)[:3]
        if not _is_empty(hooks) or metadata:
            raise ValueError("hooks")
        if len(size) > MAX_AXES:
            raise ValueError("too many axes")
        num_elements = math.prod(_count(length) for length in size)
        last = sum((length - 1) * _count(step) for length, step in zip(size, stride, strict=True))
        if num_elements and (_count(offset) + last >= storage.num_elements or num_elements > storage.num_elements):
            shape = " x ".join(map(str, size)) or "1"
            raise RejectedError(
                f"contains a tensor of {shape:.80} elements in a storage of {storage.num_elements:,}. "
                "Expected tensors that the file contains completely."
            )
        return TensorEntry(size)


def _reference(module: str, name: str) -> Global:
    full = f"{module}.{name}"
    if full in OTHER_TENSORS:
        raise RejectedError(f"contains {OTHER_TENSORS[full]}. Expected dense tensors.")
    if module.split(".")[0] == "ultralytics":
        raise RejectedError(
            f"contains code: {full[:120]!r}. It is of Ultralytics, whose architectures are not supported. Start from "
            "other weights: detrs checkpoint list."
        )
    if full not in ALLOWED:
        raise RejectedError(
            f"contains code: {full[:120]!r}. Code in weight files is never executed. Expected a state dict: save "
            "it with torch.save(model.state_dict(), path)."
        )
    return Global(full)


def _key(key: Any) -> str | int:
    if type(key) is not str and type(key) is not int:  # the hash of nested tuples can take years
        raise RejectedError(f"has a dictionary key of type {type(key).__name__}. Expected a state dict.")
    return key


def _string(text: Any) -> str:
    if type(text) is not str:
        raise TypeError("not a string")
    return text


def _count(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 2**48:
        raise ValueError("not a size")
    return number


def _is_empty(hooks: Any) -> bool:
    return not (hooks.items if isinstance(hooks, Container) else hooks)


def _pairs(items: Any = ()) -> list[tuple[str | int, Any]]:
    if isinstance(items, Container):
        items = items.items
    pairs = items.items() if type(items) is dict else items
    return [(_key(key), value) for key, value in pairs]


def _plain(name: str, *arguments: Any) -> Plain:
    for argument in arguments:
        entries = argument if type(argument) in (tuple, list) else [argument]
        if not all(type(entry) in (str, int, float, bool) for entry in entries):
            raise TypeError("not a plain value")
    return Plain(name)
