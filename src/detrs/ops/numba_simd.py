"""SIMD vectors as a numba type.

LLVM lowers ``<n x float>`` to the registers of the CPU and keeps it there; loops over arrays compile to code that is
three times slower. A ``Vector`` supports arithmetic with vectors of its type and with scalars. ``numba_memory.py`` has
its loads and stores.
"""
# numba infers the types of what it compiles, and calls an intrinsic without the first parameter of its Python function:
# mypy: allow-untyped-defs, allow-untyped-decorators, disable-error-code="call-arg, var-annotated, operator"

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model


class Vector(types.Type):
    """``width`` elements as one LLVM vector."""

    def __init__(self, element: Any, width: int) -> None:
        super().__init__(name=f"Vector({element}, {width})")
        self.element = element
        self.width = width

    @property
    def alignment(self) -> int:
        """Bytes of one element: loads and stores require no more."""
        return int(self.element.bitwidth) // 8


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        element = manager.lookup(vector.element).get_value_type()
        super().__init__(manager, vector, ir.VectorType(element, vector.width))


# Helpers that emit LLVM code


def shuffle(builder, left, right, order):
    """The elements of ``left`` and ``right``, numbered one after the other, in the given order."""
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(order)), list(order))
    return builder.shuffle_vector(left, right, mask)


def broadcast(builder, scalar, width):
    """The same scalar in all elements."""
    vector = ir.VectorType(scalar.type, width)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.IntType(32)(0))
    return shuffle(builder, first, first, [0] * width)


def _call(builder, name, result, *arguments, fastmath=()):
    """Calls an LLVM intrinsic for vectors by its mangled name, which llvmlite cannot construct."""
    kind = arguments[-1].type
    letter = "f" if isinstance(kind.element, ir.FloatType | ir.DoubleType) else "i"
    bits = {"float": 32, "double": 64}.get(str(kind.element)) or kind.element.width
    function = ir.FunctionType(result, [argument.type for argument in arguments])
    called = cgutils.get_or_insert_function(builder.module, function, f"llvm.{name}.v{kind.count}{letter}{bits}")
    return builder.call(called, arguments, fastmath=fastmath)


def _reduce_sum(builder, vector):
    element = vector.type.element
    return _call(builder, "vector.reduce.fadd", element, element(0.0), vector, fastmath=("reassoc", "nsz"))


# Arithmetic


def _as_vectors(context, builder, signature, arguments):
    """The arguments of an arithmetic operation as vectors of one type."""
    vector = next(kind for kind in signature.args if isinstance(kind, Vector))
    for kind, argument in zip(signature.args, arguments, strict=True):
        if isinstance(kind, Vector):
            yield argument
        else:
            yield broadcast(builder, context.cast(builder, argument, kind, vector.element), vector.width)


def _result(left, right):
    return left if isinstance(left, Vector) else right


@intrinsic
def add_vectors(context, left, right):
    def generate(context, builder, signature, arguments):
        left, right = _as_vectors(context, builder, signature, arguments)
        is_integer = isinstance(signature.return_type.element, types.Integer)
        return (builder.add if is_integer else builder.fadd)(left, right)

    return _result(left, right)(left, right), generate


@intrinsic
def subtract_vectors(context, left, right):
    def generate(context, builder, signature, arguments):
        return builder.fsub(*_as_vectors(context, builder, signature, arguments))

    return _result(left, right)(left, right), generate


@intrinsic
def multiply_vectors(context, left, right):
    def generate(context, builder, signature, arguments):
        left, right = _as_vectors(context, builder, signature, arguments)
        is_integer = isinstance(signature.return_type.element, types.Integer)
        return (builder.mul if is_integer else builder.fmul)(left, right)

    return _result(left, right)(left, right), generate


def _is_arithmetic(left, right):
    return (isinstance(left, Vector) or isinstance(right, Vector)) and all(
        isinstance(kind, Vector | types.Number) for kind in (left, right)
    )


@overload(operator.add)
def _add(left, right):
    return (lambda left, right: add_vectors(left, right)) if _is_arithmetic(left, right) else None


@overload(operator.sub)
def _subtract(left, right):
    return (lambda left, right: subtract_vectors(left, right)) if _is_arithmetic(left, right) else None


@overload(operator.mul)
def _multiply(left, right):
    return (lambda left, right: multiply_vectors(left, right)) if _is_arithmetic(left, right) else None


@intrinsic
def multiply_add(context, total, factor, vector):
    """``total + factor * vector`` for a scalar ``factor``, fused where the CPU can."""

    def generate(context, builder, signature, arguments):
        total, factor, terms = arguments
        return _call(builder, "fmuladd", terms.type, broadcast(builder, factor, vector.width), terms, total)

    return vector(vector, vector.element, vector), generate


@intrinsic
def fused(context, factor, vector, total):
    """``factor * vector + total`` for a vector and vectors or scalars, fused where the CPU can."""

    def generate(context, builder, signature, arguments):
        factor, terms, total = _as_vectors(context, builder, signature, arguments)
        return _call(builder, "fmuladd", terms.type, factor, terms, total)

    return vector(factor, vector, total), generate


@intrinsic
def floor(context, vector):
    def generate(context, builder, signature, arguments):
        return _call(builder, "floor", arguments[0].type, *arguments)

    return vector(vector), generate


@intrinsic
def maximum(context, left, right):
    """Element by element; ``right`` where ``left`` is NaN. One instruction of x86, which ``llvm.maxnum`` is not."""

    def generate(context, builder, signature, arguments):
        left, right = _as_vectors(context, builder, signature, arguments)
        return builder.select(builder.fcmp_ordered(">", left, right), left, right)

    return _result(left, right)(left, right), generate


@intrinsic
def minimum(context, left, right):
    """Element by element; ``right`` where ``left`` is NaN."""

    def generate(context, builder, signature, arguments):
        left, right = _as_vectors(context, builder, signature, arguments)
        return builder.select(builder.fcmp_ordered("<", left, right), left, right)

    return _result(left, right)(left, right), generate


@intrinsic
def where_between(context, vector, low, high, inside, outside):
    """``inside`` where ``low <= vector <= high``, ``outside`` elsewhere and for NaN."""

    def generate(context, builder, signature, arguments):
        vector, low, high, inside, outside = _as_vectors(context, builder, signature, arguments)
        is_inside = builder.and_(builder.fcmp_ordered("<=", low, vector), builder.fcmp_ordered("<=", vector, high))
        return builder.select(is_inside, inside, outside)

    return vector(vector, low, high, inside, outside), generate


@intrinsic
def where_zero(context, vector, inside, outside):
    """``inside`` where an element is 0, ``outside`` elsewhere and for NaN."""

    def generate(context, builder, signature, arguments):
        vector, inside, outside = arguments
        is_zero = builder.fcmp_ordered("==", vector, ir.Constant(vector.type, [0.0] * vector.type.count))
        return builder.select(is_zero, inside, outside)

    return inside(vector, inside, outside), generate


@intrinsic
def to_int32(context, vector):
    """Whole numbers as integers."""
    integers = Vector(types.int32, vector.width)

    def generate(context, builder, signature, arguments):
        return builder.fptosi(arguments[0], context.get_value_type(integers))

    return integers(vector), generate


@intrinsic
def exp2_of_integers(context, vector):
    """``2 ** vector`` of whole numbers, by the bits of the exponent."""

    def generate(context, builder, signature, arguments):
        mantissa, bias = {32: (23, 127), 64: (52, 1023)}[vector.element.bitwidth]
        kind = ir.VectorType(ir.IntType(vector.element.bitwidth), vector.width)
        exponent = builder.add(builder.fptosi(arguments[0], kind), ir.Constant(kind, [bias] * vector.width))
        return builder.bitcast(builder.shl(exponent, ir.Constant(kind, [mantissa] * vector.width)), arguments[0].type)

    return vector(vector), generate


@intrinsic(prefer_literal=True)
def splat(context, scalar, width):
    """The same scalar in all elements."""
    vector = Vector(types.unliteral(scalar), width.literal_value)

    def generate(context, builder, signature, arguments):
        return broadcast(builder, arguments[0], vector.width)

    return vector(types.unliteral(scalar), width), generate


# Reductions


@intrinsic
def reduce_max(context, vector):
    """The largest element; NaN is ignored."""

    def generate(context, builder, signature, arguments):
        return _call(builder, "vector.reduce.fmax", arguments[0].type.element, *arguments)

    return vector.element(vector), generate


@intrinsic
def reduce_sum(context, vector):
    def generate(context, builder, signature, arguments):
        return _reduce_sum(builder, arguments[0])

    return vector.element(vector), generate


@intrinsic
def reduce_sums(context, a, b, c, d):
    """The sums of four vectors as one vector of four: cheaper than four sums, because they share the last steps."""

    def generate(context, builder, signature, arguments):
        def added(left, right, first, second):
            return builder.fadd(shuffle(builder, left, right, first), shuffle(builder, left, right, second))

        vectors, count = list(arguments), a.width
        while count > 4 and count % 2 == 0:  # fold the upper half onto the lower one
            count //= 2
            vectors = [added(vector, vector, range(count), range(count, 2 * count)) for vector in vectors]
        if count == 4:
            ab, cd = (added(*pair, (0, 4, 2, 6), (1, 5, 3, 7)) for pair in (vectors[:2], vectors[2:]))
            return added(ab, cd, (0, 1, 4, 5), (2, 3, 6, 7))  # ab is a01 b01 a23 b23
        result = ir.Constant(context.get_value_type(signature.return_type), ir.Undefined)
        for lane, vector in enumerate(vectors):
            result = builder.insert_element(result, _reduce_sum(builder, vector), ir.IntType(32)(lane))
        return result

    return Vector(a.element, 4)(a, b, c, d), generate
