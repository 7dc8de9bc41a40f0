"""Words -> floats for the CPU kernels: `single` and `double` once more, an element at a time.

Each function does what the one of the same name does there, operation by operation, so that the
bits are the same; LLVM turns the loops around them into vector code. Importing this file imports
numba. Integers are given their width at each step: what numba widens to 64 bits runs at half speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from . import coefficients as table

jit = njit(nogil=True, error_model="numpy", forceinline=True)

U32, I32, U64, F32, F64 = np.uint32, np.int32, np.uint64, np.float32, np.float64

_LOW_HALF = U64(0xFFFFFFFF)
_UNIT = F32(2.0**-31)
_UNIT_64 = 2.0**-63
_WORD = 2.0**32
_LN2 = F32(table.LN2)
_LN2_64 = table.LN2


def _bitcast(source: Any, target: Any) -> Any:
    """The bits of a ``source`` number read as a ``target`` number."""

    @intrinsic
    def cast(_: Any, x: Any) -> Any:  # noqa: ARG001 - numba names what it passes
        def codegen(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(source), codegen

    return cast


bits_32, float_32 = _bitcast(types.float32, types.uint32), _bitcast(types.uint32, types.float32)
bits_64, float_64 = _bitcast(types.float64, types.uint64), _bitcast(types.uint64, types.float64)


@intrinsic
def _prefer_512_bits(_: Any) -> Any:
    """Ask LLVM for the widest vectors in this function: on AVX-512 its default is half of them."""

    def codegen(context: Any, builder: Any, _: Any, __: Any) -> Any:
        # llvmlite's own `add` knows no attributes with values.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), codegen


wide: Any = _prefer_512_bits


def _polynomial(coefficients: Sequence[float], real: type) -> Callable:
    """Horner's rule written out: a loop within a loop would keep LLVM from making vector code."""
    text = f"real({float(real(coefficients[-1]))!r})"
    for c in coefficients[-2::-1]:
        text = f"({text} * x + real({float(real(c))!r}))"
    return jit(eval(f"lambda x: {text}", {"real": real}))  # noqa: S307 - our own numbers


_log_32, _sin_32, _cos_32 = (
    _polynomial(t, F32) for t in (table.LOG_32, table.SIN_32, table.COS_32)
)
_log_64, _sin_64, _cos_64 = (
    _polynomial(t, F64) for t in (table.LOG_64, table.SIN_64, table.COS_64)
)
_upper_2, _lower_2 = (_polynomial(t, F32) for t in table.QUANTILE_2)
_upper_3, _lower_3 = (_polynomial(t, F32) for t in table.QUANTILE_3)
_centre_upper, _centre_lower = (_polynomial(t, F64) for t in table.QUANTILE_CENTRE)
_tail_upper, _tail_lower = (_polynomial(t, F64) for t in table.QUANTILE_TAIL)
_far_upper, _far_lower = (_polynomial(t, F64) for t in table.QUANTILE_FAR_TAIL)


@jit
def philox(words: Any, tile: Any, tiles: Any, key: Any) -> Any:
    """The words of ``tiles`` tiles from number ``tile`` on, in the order of their columns.

    The upper halves of the 64-bit containers keep what the products leave there, and are masked
    before the next product: the form that vector units multiply fastest.
    """
    wide()
    row, k0, k1, s2, s3 = key
    for t in range(tiles):
        out = words[64 * t : 64 * t + 64]
        base = U64(tile + t) * U64(16)
        for j in range(16):
            c0, c1, c2, c3 = base + U64(j), row, s2, s3
            for turn in range(10):
                p0 = (c0 & _LOW_HALF) * U64(0xD2511F53)
                p1 = (c2 & _LOW_HALF) * U64(0xCD9E8D57)
                c0 = (p1 >> U64(32)) ^ c1 ^ ((k0 + U64(turn) * U64(0x9E3779B9)) & _LOW_HALF)
                c2 = (p0 >> U64(32)) ^ c3 ^ ((k1 + U64(turn) * U64(0xBB67AE85)) & _LOW_HALF)
                c1, c3 = p1, p0
            out[j], out[16 + j], out[32 + j], out[48 + j] = U32(c0), U32(c1), U32(c2), U32(c3)


@jit
def clip(x: Any, least: Any, greatest: Any) -> Any:
    above = least if x < least else x  # noqa: FURB136 - numba's max treats NaN in its own way
    return greatest if above > greatest else above  # noqa: FURB136


# 32 bits


@jit
def signed_uniform_32(word: Any) -> Any:
    return F32(I32(word)) * _UNIT


@jit
def radius_32(word: Any) -> Any:
    h = I32(word >> U32(1))
    bits = bits_32(F32(h) + F32(0.5))
    exponent = I32(I32(U32(bits - U32(0x3F2AAAAB))) >> 23)
    mantissa = float_32(U32(bits - U32(U32(exponent) << U32(23))))
    complement = F32(I32(0x7FFFFFFF - h)) + F32(0.5)
    t = complement * -_UNIT if exponent == 31 else mantissa - F32(1.0)
    log = F32(I32(exponent - 31)) * _LN2 + (t * t * _log_32(t) + t)
    return math.sqrt(log * F32(-2.0))


@jit
def direction_32(word: Any) -> Any:
    y = F32(I32(U32(word << U32(2)))) * _UNIT
    square = y * y
    sine = _sin_32(square) * y
    cosine = float_32(U32(bits_32(_cos_32(square)) ^ (word & U32(0x80000000))))
    swap = (word & U32(0x40000000)) != 0
    return (cosine, sine) if swap else (sine, cosine)


@jit
def _folded(word: Any, inside: Any, outside: Any) -> Any:
    """(y, g, whether z > 0) of `single.truncated`."""
    k = I32(word)
    size = k if k >= 0 else I32(~k)
    scale = F32(inside * 2.0**-31)
    y = (F32(size) + F32(0.5)) * scale
    beyond = F32(outside) + (F32(I32(0x7FFFFFFF - size)) + F32(0.5)) * scale
    return y, beyond * (F32(1.0) + y), k >= 0


@jit
def truncated_2(word: Any, inside: Any, outside: Any) -> Any:
    y, g, positive = _folded(word, inside, outside)
    z = _upper_2(g) * y / _lower_2(g)
    return z if positive else -z


@jit
def truncated_3(word: Any, inside: Any, outside: Any) -> Any:
    y, g, positive = _folded(word, inside, outside)
    z = _upper_3(g) * y / _lower_3(g)
    return z if positive else -z


# 64 bits


@jit
def signed_uniform_64(high: Any, low: Any) -> Any:
    # Both products are exact, so that the sum rounds once, as the conversion of an integer does.
    return (F64(I32(high)) * _WORD + F64(low)) * _UNIT_64


@jit
def _log(x: Any, complement: Any) -> Any:
    bits = bits_64(x)
    exponent = I32(np.int64(U64(bits - U64(0x3FE5555555555555))) >> 52)
    mantissa = float_64(U64(bits - (U64(exponent) << U64(52))))
    t = -complement if exponent == 0 else mantissa - 1.0
    return F64(exponent) * _LN2_64 + (t * t * _log_64(t) + t)


@jit
def radius_64(high: Any, low: Any) -> Any:
    h = I32(high >> U32(1))
    u = (F64(h) * _WORD + (F64(low) + 0.5)) * _UNIT_64
    rest, below = I32(0x7FFFFFFF - h), U32(~low)
    complement = (F64(rest) * _WORD + (F64(below) + 0.5)) * _UNIT_64
    return math.sqrt(_log(u, complement) * -2.0)


@jit
def direction_64(high: Any, low: Any) -> Any:
    angle = F64(I32(U32(high << U32(2)))) + F64(low) * 2.0**-30
    y = angle * 2.0**-31
    square = y * y
    sine = _sin_64(square) * y
    cosine = _cos_64(square)
    cosine = -cosine if (high & U32(0x80000000)) != 0 else cosine
    swap = (high & U32(0x40000000)) != 0
    return (cosine, sine) if swap else (sine, cosine)


@jit
def window(high: Any, low: Any, below: Any, inside: Any, above: Any) -> Any:
    """`draws._between`: the quantile at a uniform point between two probabilities."""
    n = U32(high ^ U32(0x80000000))
    u = (F64(n) * _WORD + (F64(low) + 0.5)) * 2.0**-64
    rest = (F64(U32(~n)) * _WORD + (F64(U32(~low)) + 0.5)) * 2.0**-64
    offset = (below - above) * 0.5 + signed_uniform_64(high, low) * (0.5 * inside)
    return _quantile(below + u * inside, above + rest * inside, offset)


@jit
def _quantile(below: Any, above: Any, q: Any) -> Any:
    g = 0.180625 - q * q
    centre = _centre_upper(g) / _centre_lower(g) * q
    tail, body = (below, above) if below < above else (above, below)
    depth = math.sqrt(-_log(tail, body))
    near, far = clip(depth, 0.0, 5.0) - 1.6, clip(depth, 5.0, math.inf) - 5.0
    near_size, far_size = _tail_upper(near) / _tail_lower(near), _far_upper(far) / _far_lower(far)
    size = near_size if depth <= 5.0 else far_size
    outer = -size if q < 0.0 else size
    return centre if abs(q) <= 0.425 else outer


# Rounding to 16 bits, to nearest even, from the bits of a 32-bit float


@jit
def to_bfloat16(x: Any) -> Any:
    bits = bits_32(x)
    rounded = U32(bits + U32(U32(0x7FFF) + (U32(bits >> U32(16)) & U32(1))))
    return np.uint16(U32(rounded >> U32(16)) if not math.isnan(x) else U32(0x7FC0))


@jit
def to_float16(x: Any) -> Any:
    """Below 2^-14 the sum with 1/2 rounds to multiples of 2^-24, the step of subnormals."""
    bits = bits_32(x)
    sign, size = U32(bits >> U32(16)) & U32(0x8000), U32(bits & U32(0x7FFFFFFF))
    normal = U32(size + U32(U32(0xFFF) + (U32(size >> U32(13)) & U32(1))))
    normal = U32(U32(normal >> U32(13)) - U32(0x1C000))
    normal = normal if size < U32(0x477FF000) else U32(0x7C00)
    small = U32(bits_32(float_32(size) + F32(0.5)) - U32(0x3F000000))
    half = small if size < U32(0x38800000) else normal
    return np.uint16(U32(sign | half) if not math.isnan(x) else U32(0x7E00))
