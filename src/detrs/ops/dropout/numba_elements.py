"""Elements of tensors in kernels that numba compiles: conversions of half precision, and the hash of dropout.

LLVM turns loops over these scalar operations into vectors.
"""
# numba infers the types of what it compiles, and calls an intrinsic without the first parameter of its Python function:
# mypy: allow-untyped-defs, allow-untyped-decorators

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from detrs.ops.dropout.reference import FIRST, GOLDEN, MULTIPLIERS, SECOND

I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)


@intrinsic(prefer_literal=True)
def widen(context, element, storage):
    """An element as it is computed with. Half precision is stored as its 16 bits, and computed in float32."""
    kind = storage.literal_value
    real = types.float32 if kind in ("float16", "bfloat16") else element

    def generate(context, builder, signature, arguments):
        bits = arguments[0]
        if kind == "float16":
            return builder.fpext(builder.bitcast(bits, ir.HalfType()), ir.FloatType())
        if kind == "bfloat16":  # the upper half of a float32
            return builder.bitcast(builder.shl(builder.zext(bits, I32), I32(16)), ir.FloatType())
        return bits

    return real(element, storage), generate


@intrinsic(prefer_literal=True)
def narrow(context, real, storage):
    """The inverse of ``widen``, rounded to the nearest, or the even one of two."""
    kind = storage.literal_value
    element = types.uint16 if kind in ("float16", "bfloat16") else real

    def generate(context, builder, signature, arguments):
        number = arguments[0]
        if kind == "float16":
            return builder.bitcast(builder.fptrunc(number, ir.HalfType()), I16)
        if kind == "bfloat16":
            bits = builder.bitcast(number, I32)
            is_odd = builder.and_(builder.lshr(bits, I32(16)), I32(1))
            rounded = builder.add(bits, builder.add(is_odd, I32(0x7FFF)))
            is_nan = builder.fcmp_unordered("uno", number, number)  # rounding could turn its bits into zero
            return builder.trunc(builder.lshr(builder.select(is_nan, I32(0x7FC00000), rounded), I32(16)), I16)
        return number

    return element(real, storage), generate


@intrinsic
def key_of_row(context, seed, row):
    """The two words from which the columns of a row are hashed; see ``reference.kept``."""

    def generate(context, builder, signature, arguments):
        seed, row = arguments
        key = builder.add(builder.mul(builder.add(row, I64(1)), I64(GOLDEN)), seed)
        for shift, multiplier in ((30, FIRST), (27, SECOND)):
            key = builder.mul(builder.xor(key, builder.lshr(key, I64(shift))), I64(multiplier))
        return builder.xor(key, builder.lshr(key, I64(31)))

    return types.int64(types.int64, types.int64), generate


@intrinsic
def is_kept(context, key, column, threshold):
    """Whether dropout keeps the element of a column; see ``reference.kept``."""

    def generate(context, builder, signature, arguments):
        key, column, threshold = arguments
        low, high = builder.trunc(key, I32), builder.trunc(builder.lshr(key, I64(32)), I32)
        x = builder.add(builder.trunc(column, I32), low)
        x = builder.mul(builder.xor(x, builder.lshr(x, I32(16))), I32(MULTIPLIERS[0]))
        x = builder.mul(builder.xor(builder.xor(x, builder.lshr(x, I32(15))), high), I32(MULTIPLIERS[1]))
        x = builder.xor(x, builder.lshr(x, I32(16)))
        return builder.icmp_unsigned(">=", x, builder.trunc(threshold, I32))

    return types.boolean(types.int64, types.int64, types.int64), generate
