"""Words -> floats for the GPU kernel: `single` and `double` once more, in Triton.

Each function does what the one of the same name does there, operation by operation, so that the
bits are the same. Three things would break them, and are kept out: fused multiply-add (the launch
switches fusion off), Triton's fast square root and division in 32 bits (hence ``sqrt_rn`` and
``div_rn``), and its constants, which take the precision of the tensor that they meet. Importing
this file imports triton.
"""

# Triton's language, not Python's: every argument is a tensor or a constexpr.
# ruff: noqa: ANN001, ANN202, PLR0917
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from . import coefficients as table

_LN2 = tl.constexpr(table.LN2)
_UNIT = tl.constexpr(2.0**-31)
_UNIT_64 = tl.constexpr(2.0**-63)
_WORD = tl.constexpr(2.0**32)

_LOG_32, _SIN_32, _COS_32 = map(tl.constexpr, (table.LOG_32, table.SIN_32, table.COS_32))
_LOG_64, _SIN_64, _COS_64 = map(tl.constexpr, (table.LOG_64, table.SIN_64, table.COS_64))
_UPPER_2, _LOWER_2 = map(tl.constexpr, table.QUANTILE_2)
_UPPER_3, _LOWER_3 = map(tl.constexpr, table.QUANTILE_3)
_CENTRE_UPPER, _CENTRE_LOWER = map(tl.constexpr, table.QUANTILE_CENTRE)
_TAIL_UPPER, _TAIL_LOWER = map(tl.constexpr, table.QUANTILE_TAIL)
_FAR_UPPER, _FAR_LOWER = map(tl.constexpr, table.QUANTILE_FAR_TAIL)


@triton.jit
def signed(word):
    return word.to(tl.int32, bitcast=True)


@triton.jit
def inverted(word):
    """``~word``, which older interpreters refuse."""
    return word ^ 0xFFFFFFFF


@triton.jit
def polynomial(x, coefficients: tl.constexpr, degree: tl.constexpr):
    """Horner's rule, a multiplication and an addition a step."""
    value = tl.full(x.shape, coefficients[degree], x.dtype)
    for k in tl.static_range(degree):
        value = value * x + coefficients[degree - 1 - k]
    return value


@triton.jit
def clip(x, least, greatest):
    above = tl.where(x < least, least, x)
    return tl.where(above > greatest, greatest, above)


@triton.jit
def philox(c0, row, k0, k1, s2, s3):
    """The four words of each block: Philox4x32-10 of the counters (c0, row, s2, s3)."""
    c1, c2, c3 = row, s2, s3
    for turn in tl.static_range(10):
        high_0, low_0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high_1, low_1 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1 = high_1 ^ c1 ^ (k0 + (turn * 0x9E3779B9 & 0xFFFFFFFF)), low_1
        c2, c3 = high_0 ^ c3 ^ (k1 + (turn * 0xBB67AE85 & 0xFFFFFFFF)), low_0
    return c0, c1, c2, c3


# 32 bits


@triton.jit
def signed_uniform_32(word):
    return signed(word).to(tl.float32) * _UNIT


@triton.jit
def radius_32(word):
    h = signed(word >> 1)
    bits = (h.to(tl.float32) + 0.5).to(tl.uint32, bitcast=True)
    exponent = signed(bits - 0x3F2AAAAB) >> 23
    mantissa = (bits - (exponent.to(tl.uint32, bitcast=True) << 23)).to(tl.float32, bitcast=True)
    complement = (0x7FFFFFFF - h).to(tl.float32) + 0.5
    t = tl.where(exponent == 31, complement * -_UNIT, mantissa - 1.0)
    log = (exponent - 31).to(tl.float32) * _LN2 + (t * t * polynomial(t, _LOG_32, 8) + t)
    return tl.sqrt_rn(log * -2.0)


@triton.jit
def direction_32(word):
    y = signed(word << 2).to(tl.float32) * _UNIT
    square = y * y
    sine = polynomial(square, _SIN_32, 3) * y
    cosine = polynomial(square, _COS_32, 4)
    turned = cosine.to(tl.uint32, bitcast=True) ^ (word & 0x80000000)
    cosine = turned.to(tl.float32, bitcast=True)
    swap = (word & 0x40000000) != 0
    return tl.where(swap, cosine, sine), tl.where(swap, sine, cosine)


@triton.jit
def box_muller_32(even, odd):
    r = radius_32(even)
    a, b = direction_32(odd)
    return r * a, r * b


@triton.jit
def truncated(word, inside, outside, rational: tl.constexpr):
    """`single.truncated`; ``rational`` says up to which cut."""
    k = signed(word)
    size = tl.where(k >= 0, k, ~k)
    scale = (inside * _UNIT).to(tl.float32)
    y = (size.to(tl.float32) + 0.5) * scale
    beyond = outside.to(tl.float32) + ((0x7FFFFFFF - size).to(tl.float32) + 0.5) * scale
    g = beyond * (1.0 + y)
    if rational == 2:
        z = tl.div_rn(polynomial(g, _UPPER_2, 5) * y, polynomial(g, _LOWER_2, 4))
    else:
        z = tl.div_rn(polynomial(g, _UPPER_3, 8) * y, polynomial(g, _LOWER_3, 7))
    return tl.where(k >= 0, z, -z)


# 64 bits. Here Triton's own square root and division are correctly rounded.


@triton.jit
def signed_uniform_64(high, low):
    # Both products are exact, so that the sum rounds once, as the conversion of an integer does.
    return (signed(high).to(tl.float64) * _WORD + low.to(tl.float64)) * _UNIT_64


@triton.jit
def log(x, complement):
    bits = x.to(tl.uint64, bitcast=True)
    exponent = (bits - 0x3FE5555555555555).to(tl.int64, bitcast=True) >> 52
    mantissa = (bits - (exponent.to(tl.uint64, bitcast=True) << 52)).to(tl.float64, bitcast=True)
    t = tl.where(exponent == 0, -complement, mantissa - 1.0)
    return exponent.to(tl.float64) * _LN2 + (t * t * polynomial(t, _LOG_64, 19) + t)


@triton.jit
def radius_64(high, low):
    h = high >> 1
    u = (h.to(tl.float64) * _WORD + (low.to(tl.float64) + 0.5)) * _UNIT_64
    rest, below = 0x7FFFFFFF - h, inverted(low)
    complement = (rest.to(tl.float64) * _WORD + (below.to(tl.float64) + 0.5)) * _UNIT_64
    return tl.sqrt(log(u, complement) * -2.0)


@triton.jit
def direction_64(high, low):
    angle = signed(high << 2).to(tl.float64) + low.to(tl.float64) * (2.0**-30)
    y = angle * _UNIT
    square = y * y
    sine = polynomial(square, _SIN_64, 7) * y
    cosine = polynomial(square, _COS_64, 7)
    cosine = tl.where((high & 0x80000000) != 0, -cosine, cosine)
    swap = (high & 0x40000000) != 0
    return tl.where(swap, cosine, sine), tl.where(swap, sine, cosine)


@triton.jit
def box_muller_64(even, even_low, odd, odd_low):
    r = radius_64(even, even_low)
    a, b = direction_64(odd, odd_low)
    return r * a, r * b


@triton.jit
def window(high, low, below, inside, above):
    """`draws._between`: the quantile at a uniform point between two probabilities."""
    n = high ^ 0x80000000
    u = (n.to(tl.float64) * _WORD + (low.to(tl.float64) + 0.5)) * (2.0**-64)
    above_n, above_low = inverted(n).to(tl.float64), inverted(low).to(tl.float64)
    rest = (above_n * _WORD + (above_low + 0.5)) * (2.0**-64)
    offset = (below - above) * 0.5 + signed_uniform_64(high, low) * (0.5 * inside)
    return quantile(below + u * inside, above + rest * inside, offset)


@triton.jit
def quantile(below, above, q):
    g = 0.180625 - q * q
    centre = polynomial(g, _CENTRE_UPPER, 7) / polynomial(g, _CENTRE_LOWER, 7) * q
    lower = below < above
    tail, body = tl.where(lower, below, above), tl.where(lower, above, below)
    depth = tl.sqrt(-log(tail, body))
    near, far = tl.where(depth < 5.0, depth, 5.0) - 1.6, tl.where(depth > 5.0, depth, 5.0) - 5.0
    near_size = polynomial(near, _TAIL_UPPER, 7) / polynomial(near, _TAIL_LOWER, 7)
    far_size = polynomial(far, _FAR_UPPER, 7) / polynomial(far, _FAR_LOWER, 7)
    size = tl.where(depth <= 5.0, near_size, far_size)
    outer = tl.where(q < 0.0, -size, size)
    return tl.where(tl.abs(q) <= 0.425, centre, outer)


@triton.jit
def to_bfloat16(x):
    """To nearest even, by integers: the bits of a 32-bit float that is not NaN -> 16 bits."""
    bits = x.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
