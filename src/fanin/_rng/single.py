"""Words -> 32-bit floats. Every operation is rounded on its own: no fused multiply-add, no libm.

What each function writes with + - * / sqrt is what a kernel must do, in this order, to the bit. The
CPU kernels are these very functions, called on a `vector.Vector` in place of an array.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .coefficients import COS_32, LN2, LOG_32, QUANTILE_2, QUANTILE_3, SIN_32
from .philox import Array

F32 = np.float32
Rational = tuple[tuple[float, ...], tuple[float, ...]]
_UNIT = F32(2.0**-31)
_HALF = F32(0.5)
_ONE = F32(1.0)


def polynomial(coefficients: Sequence[float], x: Array) -> Array:
    """Horner's rule, a multiplication and an addition a step."""
    value = np.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = value * x + x.dtype.type(c)
    return value


def clip(x: Array, least: Any, greatest: Any) -> Array:
    """Within the bounds; what equals a bound stays, zeros of either sign too, where numpy's versions differ."""
    x = np.where(x < least, least, x)
    return np.where(x > greatest, greatest, x)


def signed_uniform(word: Array) -> Array:
    """int32(word) / 2^31, in [-1, 1]; 1 comes from rounding and is for the caller to clamp."""
    return word.view(np.int32).astype(F32) * _UNIT


def radius(word: Array) -> Array:
    """sqrt(-2 ln u) with u = (h + 1/2) / 2^31, h the upper 31 bits.

    Near u = 1 the logarithm's argument 1 + t is taken from the integer complement of h, so that
    small radii keep their relative accuracy.
    """
    h = (word >> np.uint32(1)).view(np.int32)
    bits = (h.astype(F32) + _HALF).view(np.uint32)
    exponent = (bits - np.uint32(0x3F2AAAAB)).view(np.int32) >> np.int32(23)
    mantissa = (bits - (exponent.view(np.uint32) << np.uint32(23))).view(F32)
    complement = (np.int32(0x7FFFFFFF) - h).astype(F32) + _HALF
    t = np.where(exponent == np.int32(31), complement * -_UNIT, mantissa - _ONE)
    log = (exponent - np.int32(31)).astype(F32) * F32(LN2) + (t * t * polynomial(LOG_32, t) + t)
    return np.sqrt(log * F32(-2.0))


def direction(word: Array) -> tuple[Array, Array]:
    """A point of the unit circle: the lower 30 bits an angle within a quarter, the upper 2 which."""
    y = (word << np.uint32(2)).view(np.int32).astype(F32) * _UNIT
    square = y * y
    sine = polynomial(SIN_32, square) * y
    cosine = polynomial(COS_32, square)
    cosine = (cosine.view(np.uint32) ^ (word & np.uint32(0x80000000))).view(F32)
    swap = (word & np.uint32(0x40000000)) != np.uint32(0)
    return np.where(swap, cosine, sine), np.where(swap, sine, cosine)


def box_muller(even: Array, odd: Array) -> tuple[Array, Array]:
    """Two independent standard normals from two words (Box & Muller 1958, eq. 1)."""
    r = radius(even)
    a, b = direction(odd)
    return r * a, r * b


def truncated(word: Array, cut: float, inside: float, outside: float) -> Array:
    """The standard normal given |z| <= cut <= 3, by its quantile; rounding past it is the caller's to clamp.

    Args:
        word: random words.
        cut: in sigmas.
        inside: P(|Z| <= cut).
        outside: P(|Z| > cut), which 1 - inside would know too roughly.
    """
    table = QUANTILE_2 if cut <= 2.0 else QUANTILE_3
    return quantile(word, table, F32(inside * 2.0**-31), F32(outside))


def quantile(word: Array, table: Rational, scale: Any, outside: Any) -> Array:
    """`truncated` with the rational to use, and inside / 2^31 and outside in 32 bits."""
    k = word.view(np.int32)
    size = np.where(k >= np.int32(0), k, ~k)
    y = (size.astype(F32) + _HALF) * scale
    beyond = outside + ((np.int32(0x7FFFFFFF) - size).astype(F32) + _HALF) * scale
    g = beyond * (_ONE + y)
    upper, lower = table
    z = polynomial(upper, g) * y / polynomial(lower, g)
    return np.where(k >= np.int32(0), z, -z)


def bfloat16(x: Array) -> Array:
    """The bits of x rounded to bfloat16, to nearest even; x is no NaN."""
    bits = x.view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype(np.uint16)


def float16(x: Array) -> Array:
    """The bits of x rounded to float16, to nearest even; what is too large becomes infinite; x is no NaN.

    Below 2^-14 the sum with 1/2 rounds to multiples of 2^-24, the step of subnormals.
    """
    bits = x.view(np.uint32)
    size = bits & np.uint32(0x7FFFFFFF)
    even = (size >> np.uint32(13)) & np.uint32(1)
    normal = ((size + np.uint32(0xFFF) + even) >> np.uint32(13)) - np.uint32(0x1C000)
    normal = np.where(size < np.uint32(0x477FF000), normal, np.uint32(0x7C00))
    small = (size.view(F32) + _HALF).view(np.uint32) - np.uint32(0x3F000000)
    half = np.where(size < np.uint32(0x38800000), small, normal)
    return (((bits >> np.uint32(16)) & np.uint32(0x8000)) | half).astype(np.uint16)
