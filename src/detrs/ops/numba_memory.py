"""Loads and stores of SIMD vectors at addresses, for kernels that numba compiles."""
# numba infers the types of what it compiles, and calls an intrinsic without the first parameter of its Python function:
# mypy: allow-untyped-defs, allow-untyped-decorators

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from detrs.ops.numba_simd import Vector, broadcast, shuffle

LANES = 16
"""Elements of the vectors that ``load_masked``, ``load_pairs`` and ``load_quads`` return."""


def _pointer(builder, address, kind):
    return builder.inttoptr(address, kind.as_pointer())


def _first(lanes, count, builder):
    """A mask of the first ``count`` elements; the upper half of ``count`` must be 0."""
    numbers = ir.Constant(ir.VectorType(ir.IntType(32), lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, broadcast(builder, builder.trunc(count, ir.IntType(32)), lanes))


def _masked(builder, name, result, *arguments):
    """``llvm.masked.load`` or ``llvm.masked.store``."""
    vector = arguments[0].type if name == "store" else result
    letter = {"float": "f32", "double": "f64"}[str(vector.element)]
    function = ir.FunctionType(result, [argument.type for argument in arguments])
    mangled = f"llvm.masked.{name}.v{vector.count}{letter}.p0"
    return builder.call(cgutils.get_or_insert_function(builder.module, function, mangled), arguments)


@intrinsic(prefer_literal=True)
def load_vector(context, address, storage, width):
    """The vector at an address (in bytes, aligned to one element), stored as ``storage``.

    ``storage`` is a literal: float64, float32, int32, or float16 and bfloat16, which are widened to float32.
    """
    kind = storage.literal_value
    vector = Vector({"float64": types.float64, "int32": types.int32}.get(kind, types.float32), width.literal_value)

    def generate(context, builder, signature, arguments):
        result = context.get_value_type(vector)
        stored = {"float16": ir.HalfType(), "bfloat16": ir.IntType(16)}.get(kind, result.element)
        source = _pointer(builder, arguments[0], ir.VectorType(stored, vector.width))
        loaded = builder.load(source, align=2 if kind in ("float16", "bfloat16") else vector.alignment)
        if kind == "float16":
            return builder.fpext(loaded, result)
        if kind == "bfloat16":  # the upper half of a float32
            bits = ir.VectorType(ir.IntType(32), vector.width)
            shift = ir.Constant(bits, [16] * vector.width)
            return builder.bitcast(builder.shl(builder.zext(loaded, bits), shift), result)
        return loaded

    return vector(types.int64, storage, width), generate


@intrinsic
def store_vector(context, address, vector):
    def generate(context, builder, signature, arguments):
        address, stored = arguments
        builder.store(stored, _pointer(builder, address, stored.type), align=vector.alignment)
        return context.get_dummy_value()

    return types.void(types.int64, vector), generate


@intrinsic
def load_masked(context, address, count, fill):
    """The first ``count`` elements at an address, and ``fill`` in the others."""
    vector = Vector(fill, LANES)

    def generate(context, builder, signature, arguments):
        address, count, fill = arguments
        result, align = context.get_value_type(vector), ir.IntType(32)(vector.alignment)
        source, mask = _pointer(builder, address, result), _first(LANES, count, builder)
        return _masked(builder, "load", result, source, align, mask, broadcast(builder, fill, LANES))

    return vector(types.int64, types.int64, fill), generate


@intrinsic
def store_masked(context, address, vector, count):
    """Stores the first ``count`` elements."""

    def generate(context, builder, signature, arguments):
        address, stored, count = arguments
        target, mask = _pointer(builder, address, stored.type), _first(vector.width, count, builder)
        _masked(builder, "store", ir.VoidType(), stored, target, ir.IntType(32)(vector.alignment), mask)
        return context.get_dummy_value()

    return types.void(types.int64, vector, types.int64), generate


@intrinsic
def load_pairs(context, address, count, fill):
    """``count`` pairs (x, y) at an address, as a vector of x and a vector of y, and ``fill`` in the other elements."""
    vector = Vector(fill, LANES)

    def generate(context, builder, signature, arguments):
        address, count, fill = arguments
        kind = ir.VectorType(context.get_value_type(vector).element, 2 * LANES)
        source, align = _pointer(builder, address, kind), ir.IntType(32)(vector.alignment)
        mask = _first(2 * LANES, builder.shl(count, count.type(1)), builder)
        pairs = _masked(builder, "load", kind, source, align, mask, broadcast(builder, fill, 2 * LANES))
        vectors = [shuffle(builder, pairs, pairs, range(axis, 2 * LANES, 2)) for axis in range(2)]
        return context.make_tuple(builder, signature.return_type, vectors)

    return types.UniTuple(vector, 2)(types.int64, types.int64, fill), generate


@intrinsic
def load_gathered(context, address, index, scalar):
    """The elements at an address with these numbers (int32)."""
    vector = Vector(scalar, LANES)

    def generate(context, builder, signature, arguments):
        address, index, _ = arguments
        result, wide = context.get_value_type(vector), ir.VectorType(ir.IntType(64), LANES)
        offset = builder.mul(builder.sext(index, wide), ir.Constant(wide, [vector.alignment] * LANES))
        kind = ir.VectorType(result.element.as_pointer(), LANES)
        sources = builder.inttoptr(builder.add(broadcast(builder, address, LANES), offset), kind)
        letter = {"float": "f32", "double": "f64"}[str(result.element)]
        mask = ir.Constant(ir.VectorType(ir.IntType(1), LANES), [1] * LANES)
        given = sources, ir.IntType(32)(vector.alignment), mask, ir.Constant(result, ir.Undefined)
        function = ir.FunctionType(result, [argument.type for argument in given])
        name = f"llvm.masked.gather.v{LANES}{letter}.v{LANES}p0"
        return builder.call(cgutils.get_or_insert_function(builder.module, function, name), given)

    return vector(types.int64, index, scalar), generate


@intrinsic
def store_pairs(context, address, x, y, count):
    """The inverse of ``load_pairs``."""

    def generate(context, builder, signature, arguments):
        address, xs, ys, count = arguments
        pairs = shuffle(builder, xs, ys, [lane + LANES * axis for lane in range(LANES) for axis in (0, 1)])
        target, align = _pointer(builder, address, pairs.type), ir.IntType(32)(x.alignment)
        mask = _first(2 * LANES, builder.shl(count, count.type(1)), builder)
        _masked(builder, "store", ir.VoidType(), pairs, target, align, mask)
        return context.get_dummy_value()

    return types.void(types.int64, x, x, types.int64), generate


@intrinsic
def load_quads(context, address, scalar):
    """LANES times four elements at an address, as four vectors: all first, second, third and fourth ones."""
    vector = Vector(scalar, LANES)

    def generate(context, builder, signature, arguments):
        kind = ir.VectorType(context.get_value_type(vector).element, 4 * LANES)
        quads = builder.load(_pointer(builder, arguments[0], kind), align=vector.alignment)
        vectors = [shuffle(builder, quads, quads, range(part, 4 * LANES, 4)) for part in range(4)]
        return context.make_tuple(builder, signature.return_type, vectors)

    return types.UniTuple(vector, 4)(types.int64, scalar), generate


@intrinsic
def prefetch(context, address):
    """Prefetches the cache line at an address."""

    def generate(context, builder, signature, arguments):
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        called = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(called, [builder.inttoptr(arguments[0], byte), flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def pointer(context, address):
    """An address as the pointer that ``carray`` takes."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@intrinsic
def fetch_and_add(context, address, amount):
    """Atomically adds to the int64 at an address, and returns the previous number."""

    def generate(context, builder, signature, arguments):
        address, amount = arguments
        return builder.atomic_rmw("add", _pointer(builder, address, amount.type), amount, "monotonic")

    return types.int64(types.int64, types.int64), generate
