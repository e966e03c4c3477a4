"""Vectors as a numba type: the channels of a head, or one quantity of several samples, as one value.

LLVM cuts ``<n x float>`` into the registers this CPU has and keeps it there; from loops over arrays numba makes code
that is three times slower. A ``Row`` can be loaded from and stored at an address, and takes part in arithmetic with
rows of its kind and with numbers.
"""
# numba gives types to what it compiles, and calls an intrinsic without the first parameter of its Python function:
# mypy: allow-untyped-defs, allow-untyped-decorators, disable-error-code="call-arg, var-annotated, operator"

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

LANES = 16
"""Samples whose places and weights are computed together."""


class Row(types.Type):
    """``width`` numbers as one LLVM vector."""

    def __init__(self, element: Any, width: int) -> None:
        super().__init__(name=f"Row({element}, {width})")
        self.element = element
        self.width = width


@register_model(Row)
class RowModel(models.PrimitiveModel):
    def __init__(self, manager, row):
        super().__init__(manager, row, ir.VectorType(manager.lookup(row.element).get_value_type(), row.width))


INDEX = types.int32


def _splat(builder, scalar, width):
    """The same number in all lanes."""
    vector = ir.VectorType(scalar.type, width)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width))


def _call(builder, name, result, *arguments, fastmath=()):
    """An LLVM intrinsic for vectors by its mangled name: llvmlite cannot name those."""
    kind = arguments[-1].type
    letter = "f" if isinstance(kind.element, ir.FloatType | ir.DoubleType) else "i"
    bits = {"float": 32, "double": 64}.get(str(kind.element)) or kind.element.width
    function = ir.FunctionType(result, [argument.type for argument in arguments])
    called = cgutils.get_or_insert_function(builder.module, function, f"llvm.{name}.v{kind.count}{letter}{bits}")
    return builder.call(called, arguments, fastmath=fastmath)


def _pointer(builder, address, kind):
    return builder.inttoptr(address, kind.as_pointer())


def _first(lanes, count, builder):
    """A mask of the first ``count`` lanes."""
    numbers = ir.Constant(ir.VectorType(ir.IntType(64), lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, _splat(builder, count, lanes))


def _masked(builder, name, result, *arguments):
    """``llvm.masked.load`` or ``llvm.masked.store``."""
    vector = arguments[0].type if name == "store" else result
    letter = {"float": "f32", "double": "f64"}[str(vector.element)]
    function = ir.FunctionType(result, [argument.type for argument in arguments])
    mangled = f"llvm.masked.{name}.v{vector.count}{letter}.p0"
    return builder.call(cgutils.get_or_insert_function(builder.module, function, mangled), arguments)


@intrinsic(prefer_literal=True)
def load_row(context, address, storage, width):
    """The row at an address (in bytes, aligned to one element), stored as ``storage`` says."""
    kind = storage.literal_value
    element = {"float64": types.float64, "int32": INDEX}.get(kind, types.float32)
    row = Row(element, width.literal_value)

    def generate(context, builder, signature, arguments):
        result = context.get_value_type(row)
        stored = {"float16": ir.HalfType(), "bfloat16": ir.IntType(16)}.get(kind, result.element)
        source = _pointer(builder, arguments[0], ir.VectorType(stored, row.width))
        loaded = builder.load(source, align=2 if kind in ("float16", "bfloat16") else row.element.bitwidth // 8)
        if kind == "float16":
            return builder.fpext(loaded, result)
        if kind == "bfloat16":  # the upper half of a float32
            bits = ir.VectorType(ir.IntType(32), row.width)
            return builder.bitcast(builder.shl(builder.zext(loaded, bits), ir.Constant(bits, [16] * row.width)), result)
        return loaded

    return row(types.int64, storage, width), generate


@intrinsic
def store_row(context, address, row):
    def generate(context, builder, signature, arguments):
        address, vector = arguments
        builder.store(vector, _pointer(builder, address, vector.type), align=row.element.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(types.int64, row), generate


@intrinsic
def prefetch(context, address):
    """Ask for the cache line at an address that will be read soon."""

    def generate(context, builder, signature, arguments):
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        called = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(called, [builder.inttoptr(arguments[0], byte), flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def load_lanes(context, address, count, rest):
    """The first ``count`` numbers at an address, and ``rest`` in the other lanes."""
    row = Row(rest, LANES)

    def generate(context, builder, signature, arguments):
        address, count, rest = arguments
        result = context.get_value_type(row)
        align = ir.IntType(32)(row.element.bitwidth // 8)
        source, mask = _pointer(builder, address, result), _first(LANES, count, builder)
        return _masked(builder, "load", result, source, align, mask, _splat(builder, rest, LANES))

    return row(types.int64, types.int64, rest), generate


@intrinsic
def store_lanes(context, address, row, count):
    """Store the first ``count`` lanes."""

    def generate(context, builder, signature, arguments):
        address, vector, count = arguments
        align = ir.IntType(32)(row.element.bitwidth // 8)
        target, mask = _pointer(builder, address, vector.type), _first(row.width, count, builder)
        _masked(builder, "store", ir.VoidType(), vector, target, align, mask)
        return context.get_dummy_value()

    return types.void(types.int64, row, types.int64), generate


@intrinsic
def load_pairs(context, address, count, rest):
    """``count`` pairs (x, y) at an address, as a row of x and a row of y, and ``rest`` in the other lanes."""
    row = Row(rest, LANES)

    def generate(context, builder, signature, arguments):
        address, count, rest = arguments
        kind = ir.VectorType(context.get_value_type(row).element, 2 * LANES)
        align = ir.IntType(32)(row.element.bitwidth // 8)
        mask = _first(2 * LANES, builder.shl(count, count.type(1)), builder)
        pairs = _masked(
            builder, "load", kind, _pointer(builder, address, kind), align, mask, _splat(builder, rest, 2 * LANES)
        )
        picked = ir.VectorType(ir.IntType(32), LANES)
        rows = [
            builder.shuffle_vector(pairs, pairs, ir.Constant(picked, list(range(axis, 2 * LANES, 2))))
            for axis in (0, 1)
        ]
        return context.make_tuple(builder, signature.return_type, rows)

    return types.UniTuple(row, 2)(types.int64, types.int64, rest), generate


@intrinsic
def load_quads(context, address, number):
    """LANES times four numbers at an address, as four rows of the first, second, third and fourth ones."""
    row = Row(number, LANES)

    def generate(context, builder, signature, arguments):
        kind = ir.VectorType(context.get_value_type(row).element, 4 * LANES)
        quads = builder.load(_pointer(builder, arguments[0], kind), align=row.element.bitwidth // 8)
        picked = ir.VectorType(ir.IntType(32), LANES)
        rows = [
            builder.shuffle_vector(quads, quads, ir.Constant(picked, list(range(which, 4 * LANES, 4))))
            for which in range(4)
        ]
        return context.make_tuple(builder, signature.return_type, rows)

    return types.UniTuple(row, 4)(types.int64, number), generate


@intrinsic
def store_pairs(context, address, x, y, count):
    """The opposite of ``load_pairs``."""

    def generate(context, builder, signature, arguments):
        address, x, y, count = arguments
        order = [lane + LANES * axis for lane in range(LANES) for axis in (0, 1)]
        pairs = builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(ir.IntType(32), 2 * LANES), order))
        align = ir.IntType(32)(signature.args[1].element.bitwidth // 8)
        mask = _first(2 * LANES, builder.shl(count, count.type(1)), builder)
        _masked(builder, "store", ir.VoidType(), pairs, _pointer(builder, address, pairs.type), align, mask)
        return context.get_dummy_value()

    return types.void(types.int64, x, x, types.int64), generate


def _rows(context, builder, signature, arguments):
    """The arguments of an arithmetic operation as vectors of one type."""
    row = next(kind for kind in signature.args if isinstance(kind, Row))
    for kind, argument in zip(signature.args, arguments, strict=True):
        if isinstance(kind, Row):
            yield argument
        else:
            yield _splat(builder, context.cast(builder, argument, kind, row.element), row.width)


def _result(left, right):
    return left if isinstance(left, Row) else right


@intrinsic
def add_rows(context, left, right):
    def generate(context, builder, signature, arguments):
        left, right = _rows(context, builder, signature, arguments)
        if isinstance(signature.return_type.element, types.Integer):
            return builder.add(left, right)
        return builder.fadd(left, right)

    return _result(left, right)(left, right), generate


@intrinsic
def subtract_rows(context, left, right):
    def generate(context, builder, signature, arguments):
        return builder.fsub(*_rows(context, builder, signature, arguments))

    return _result(left, right)(left, right), generate


@intrinsic
def multiply_rows(context, left, right):
    def generate(context, builder, signature, arguments):
        left, right = _rows(context, builder, signature, arguments)
        if isinstance(signature.return_type.element, types.Integer):
            return builder.mul(left, right)
        return builder.fmul(left, right)

    return _result(left, right)(left, right), generate


def _is_arithmetic(left, right):
    return (isinstance(left, Row) or isinstance(right, Row)) and all(
        isinstance(kind, Row | types.Number) for kind in (left, right)
    )


@overload(operator.add)
def _add(left, right):
    return (lambda left, right: add_rows(left, right)) if _is_arithmetic(left, right) else None


@overload(operator.sub)
def _subtract(left, right):
    return (lambda left, right: subtract_rows(left, right)) if _is_arithmetic(left, right) else None


@overload(operator.mul)
def _multiply(left, right):
    return (lambda left, right: multiply_rows(left, right)) if _is_arithmetic(left, right) else None


@intrinsic
def floor(context, row):
    def generate(context, builder, signature, arguments):
        return _call(builder, "floor", arguments[0].type, *arguments)

    return row(row), generate


@intrinsic
def larger(context, left, right):
    """Of each lane the larger number; NaN counts as smaller than all."""

    def generate(context, builder, signature, arguments):
        left, right = _rows(context, builder, signature, arguments)
        return _call(builder, "maxnum", left.type, left, right)

    return _result(left, right)(left, right), generate


@intrinsic
def smaller(context, left, right):
    """Of each lane the smaller number; NaN counts as larger than all."""

    def generate(context, builder, signature, arguments):
        left, right = _rows(context, builder, signature, arguments)
        return _call(builder, "minnum", left.type, left, right)

    return _result(left, right)(left, right), generate


@intrinsic
def between(context, row, low, high, inside, outside):
    """``inside`` where ``low <= row <= high``, otherwise (also for NaN) ``outside``."""

    def generate(context, builder, signature, arguments):
        row, low, high, inside, outside = _rows(context, builder, signature, arguments)
        is_inside = builder.and_(builder.fcmp_ordered("<=", low, row), builder.fcmp_ordered("<=", row, high))
        return builder.select(is_inside, inside, outside)

    return row(row, low, high, inside, outside), generate


@intrinsic
def to_index(context, row):
    """Whole numbers as integers."""
    indices = Row(INDEX, row.width)

    def generate(context, builder, signature, arguments):
        return builder.fptosi(arguments[0], context.get_value_type(indices))

    return indices(row), generate


@intrinsic
def power_of_two(context, row):
    """``2 ** row`` of whole numbers, put together from the bits of a float."""

    def generate(context, builder, signature, arguments):
        width, bits = row.width, row.element.bitwidth
        mantissa, bias = {32: (23, 127), 64: (52, 1023)}[bits]
        kind = ir.VectorType(ir.IntType(bits), width)
        exponent = builder.add(builder.fptosi(arguments[0], kind), ir.Constant(kind, [bias] * width))
        return builder.bitcast(builder.shl(exponent, ir.Constant(kind, [mantissa] * width)), arguments[0].type)

    return row(row), generate


@intrinsic
def multiply_add(context, total, factor, row):
    """``total + factor * row`` for a number ``factor``, fused where the CPU can."""

    def generate(context, builder, signature, arguments):
        total, factor, vector = arguments
        return _call(builder, "fmuladd", vector.type, _splat(builder, factor, row.width), vector, total)

    return row(row, row.element, row), generate


def _sum(builder, row):
    number = row.type.element
    return _call(builder, "vector.reduce.fadd", number, number(0.0), row, fastmath=("reassoc", "nsz"))


@intrinsic
def sum_of(context, row):
    def generate(context, builder, signature, arguments):
        return _sum(builder, arguments[0])

    return row.element(row), generate


@intrinsic
def sums_of(context, a, b, c, d):
    """The sums of four rows as one row of four: fewer steps than four sums, because the last ones are shared."""

    def generate(context, builder, signature, arguments):
        def picked(left, right, order):
            mask = ir.Constant(ir.VectorType(ir.IntType(32), len(order)), list(order))
            return builder.shuffle_vector(left, right, mask)

        def added(left, right, first, second):
            return builder.fadd(picked(left, right, first), picked(left, right, second))

        rows, count = list(arguments), a.width
        while count > 4 and count % 2 == 0:  # fold the upper half onto the lower one
            count //= 2
            rows = [added(row, row, range(count), range(count, 2 * count)) for row in rows]
        if count == 4:
            ab, cd = (added(*pair, (0, 4, 2, 6), (1, 5, 3, 7)) for pair in (rows[:2], rows[2:]))  # a01 b01 a23 b23
            return added(ab, cd, (0, 1, 4, 5), (2, 3, 6, 7))
        result = ir.Constant(context.get_value_type(signature.return_type), ir.Undefined)
        for lane, row in enumerate(rows):
            result = builder.insert_element(result, _sum(builder, row), ir.IntType(32)(lane))
        return result

    return Row(a.element, 4)(a, b, c, d), generate


@intrinsic
def largest(context, row):
    """NaN is passed over."""

    def generate(context, builder, signature, arguments):
        return _call(builder, "vector.reduce.fmax", arguments[0].type.element, *arguments)

    return row.element(row), generate


@intrinsic(prefer_literal=True)
def splat(context, number, width):
    """The same number in all lanes."""
    row = Row(types.unliteral(number), width.literal_value)

    def generate(context, builder, signature, arguments):
        return _splat(builder, arguments[0], row.width)

    return row(types.unliteral(number), width), generate


# Memory


@intrinsic
def pointer(context, address):
    """An address as what ``carray`` takes."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@intrinsic
def fetch_and_add(context, address, amount):
    """Add to the int64 at an address, and return what was there before, without another thread coming in between."""

    def generate(context, builder, signature, arguments):
        address, amount = arguments
        return builder.atomic_rmw("add", _pointer(builder, address, amount.type), amount, "monotonic")

    return types.int64(types.int64, types.int64), generate
