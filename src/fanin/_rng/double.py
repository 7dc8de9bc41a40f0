"""Words -> 64-bit floats: the same draws as `single`, with 32 more random bits below each word.

A pair is (high words, low words). As in `single`, every operation is rounded on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .coefficients import (
    COS_64,
    LN2,
    LOG_64,
    QUANTILE_CENTRE,
    QUANTILE_FAR_TAIL,
    QUANTILE_TAIL,
    SIN_64,
)
from .philox import Array
from .single import Rational, polynomial

F64 = np.float64
Pair = tuple[Array, Array]
_UNIT = 2.0**-63
_WORD = 2.0**32
_TAIL_SERIES = (1.0, -1.0, 3.0, -15.0, 105.0, -945.0, 10395.0, -135135.0)
_NEWTON_STEPS = 3


def signed_uniform(pair: Pair) -> Array:
    """The 64-bit integer of both words / 2^63, in [-1, 1]."""
    high, low = pair
    # Both products are exact, so that the sum rounds once, as the conversion of an integer does.
    return (high.view(np.int32).astype(F64) * _WORD + low.astype(F64)) * _UNIT


def log(x: Array, complement: Array) -> Array:
    """The natural logarithm of x > 0, given 1 - x too, each known to full relative accuracy."""
    bits = x.view(np.uint64)
    exponent = (bits - np.uint64(0x3FE5555555555555)).view(np.int64) >> np.int64(52)
    mantissa = (bits - (exponent.view(np.uint64) << np.uint64(52))).view(F64)
    exponent = exponent.astype(np.int32)
    t = np.where(exponent == np.int32(0), -complement, mantissa - 1.0)
    return exponent.astype(F64) * LN2 + (t * t * polynomial(LOG_64, t) + t)


def radius(pair: Pair) -> Array:
    """sqrt(-2 ln u) with u = (h + 1/2) / 2^63, h the upper 31 bits, then the low word."""
    high, low = pair
    h = high >> np.uint32(1)
    u = (h.astype(F64) * _WORD + (low.astype(F64) + 0.5)) * _UNIT
    rest, below = np.uint32(0x7FFFFFFF) - h, ~low
    complement = (rest.astype(F64) * _WORD + (below.astype(F64) + 0.5)) * _UNIT
    return np.sqrt(log(u, complement) * -2.0)


def direction(pair: Pair) -> tuple[Array, Array]:
    """A point of the unit circle; the low word continues the angle of the high one."""
    high, low = pair
    angle = (high << np.uint32(2)).view(np.int32).astype(F64) + low.astype(F64) * 2.0**-30
    y = angle * 2.0**-31
    square = y * y
    sine = polynomial(SIN_64, square) * y
    cosine = polynomial(COS_64, square)
    cosine = np.where((high & np.uint32(0x80000000)) != np.uint32(0), -cosine, cosine)
    swap = (high & np.uint32(0x40000000)) != np.uint32(0)
    return np.where(swap, cosine, sine), np.where(swap, sine, cosine)


def box_muller(even: Pair, odd: Pair) -> tuple[Array, Array]:
    """Two independent standard normals from two pairs of words (Box & Muller 1958, eq. 1)."""
    r = radius(even)
    a, b = direction(odd)
    return r * a, r * b


def open_uniform(pair: Pair) -> tuple[Array, Array]:
    """(u, 1 - u), u in (0, 1), both to full relative accuracy; u grows with the signed word."""
    high, low = pair
    n = high ^ np.uint32(0x80000000)
    u = (n.astype(F64) * _WORD + (low.astype(F64) + 0.5)) * 2.0**-64
    rest = ((~n).astype(F64) * _WORD + ((~low).astype(F64) + 0.5)) * 2.0**-64
    return u, rest


def between(pair: Pair, below: Any, inside: Any, above: Any) -> Array:
    """The normal's quantile at a uniform point of a window, given the probabilities of and around it."""
    u, rest = open_uniform(pair)
    offset = (below - above) * 0.5 + signed_uniform(pair) * (0.5 * inside)
    return quantile(below + u * inside, above + rest * inside, offset)


def quantile(below: Array, above: Array, q: Array) -> Array:
    """The z with Phi(z) = below, given ``above`` = 1 - below and q = below - 1/2 as well.

    Source: Wichura 1988, algorithm AS 241, PPND16.
    """
    centre = _rational(QUANTILE_CENTRE, 0.180625 - q * q) * q
    tail, body = np.minimum(below, above), np.maximum(below, above)
    depth = np.sqrt(-log(tail, body))
    near = _rational(QUANTILE_TAIL, np.minimum(depth, 5.0) - 1.6)
    size = _rarely(
        depth > 5.0, lambda: _rational(QUANTILE_FAR_TAIL, np.maximum(depth, 5.0) - 5.0), near
    )
    return np.where(np.abs(q) <= 0.425, centre, np.where(q < 0.0, -size, size))


def far_quantile(u: Array, rest: Array, a: float, ratio: float) -> Array:
    """The z > a >= 30 with P(Z > z) = P(Z > a) (1 - u + u ratio), where tails leave the doubles.

    Newton's method on d = z - a for ln P(Z > a) - ln P(Z > a + d) = L, the tail by its asymptotic
    series (Abramowitz & Stegun 26.2.12).

    Args:
        u: in (0, 1).
        rest: 1 - u.
        a: the bound nearer to zero, in sigmas.
        ratio: P(Z > b) / P(Z > a), b the farther bound.
    """
    target = -log(rest + u * ratio, u * (1.0 - ratio))
    d = 2.0 * target / (np.sqrt(2.0 * target + a * a) + a)
    start = _tail_series(np.full(1, a))
    for _ in range(_NEWTON_STEPS):
        z = a + d
        series = _tail_series(z)
        excess = d / a
        log_excess = log(1.0 + excess, -excess)
        log_series = log(series / start, (start - series) / start)
        value = d * (a + 0.5 * d) + log_excess - log_series - target
        d = d - value * series / z
    return a + np.maximum(d, 0.0)


def _tail_series(z: Array) -> Array:
    """P(Z > z) z / density = 1 - 1/z^2 + 3/z^4 - 15/z^6 + ..."""
    return polynomial(_TAIL_SERIES, 1.0 / (z * z))


def _rarely(condition: Any, exception: Callable[[], Array], usual: Array) -> Array:
    """``np.where(condition, exception(), usual)``, the exception computed only where there is one."""
    if not isinstance(condition, np.ndarray):
        return condition.rarely(exception, usual)
    return np.where(condition, exception(), usual) if condition.any() else usual


def _rational(table: Rational, x: Array) -> Array:
    upper, lower = table
    return polynomial(upper, x) / polynomial(lower, x)
