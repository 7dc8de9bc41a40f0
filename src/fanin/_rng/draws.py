"""The engine's interface: (stream, rows, columns, parameters) -> R x C values.

A faster backend replaces these functions and must return the same bits.
"""

from __future__ import annotations

import math

import numpy as np

from . import double, single
from .philox import Array, draw
from .probability import interval, tail_ratio
from .stream import Stream

RATIONAL_CUT = 3.0
FAR = 30.0


def normal(
    stream: Stream, rows: Array, columns: Array, std: float, mean: float, real: type
) -> Array:
    """z std + mean, z standard normal; product and sum rounded in turn, in ``real``.

    Args:
        stream: seed and name.
        rows: R indices along the first axis.
        columns: C flat indices in the rest.
        std: standard deviation, rounded to ``real`` first.
        mean: likewise.
        real: np.float32 or np.float64.
    """
    wide = real is np.float64
    transform = double.box_muller if wide else single.box_muller
    z = draw(stream, rows, columns, transform, low=wide)
    return z * real(std) + real(mean)


def uniform(
    stream: Stream, rows: Array, columns: Array, low: float, high: float, real: type
) -> Array:
    """Uniform in [low, high): the signed word scaled by half the width about the middle."""
    wide = real is np.float64
    to_unit = double.signed_uniform if wide else single.signed_uniform
    unit = draw(
        stream, rows, columns, lambda even, odd: (to_unit(even), to_unit(odd)), low=wide
    )
    half, middle = high / 2 - low / 2, high / 2 + low / 2
    least, greatest = inward(low, high, real)
    if float(greatest) >= high > float(least):
        greatest = np.nextafter(greatest, real(-math.inf))
    return np.clip(unit * real(half) + real(middle), least, max(least, greatest))


def truncated_normal(
    stream: Stream,
    rows: Array,
    columns: Array,
    sigma: float,
    cut: float,
    mean: float,
    real: type,
) -> Array:
    """z sigma + mean, z standard normal given |z| <= cut, never outside by a bit."""
    low, high = mean - cut * sigma, mean + cut * sigma
    if real is np.float64 or cut > RATIONAL_CUT:
        return bounded_normal(stream, rows, columns, mean, sigma, low, high, real)
    below, inside, above = interval(-cut, cut)

    def transform(even: Array, odd: Array) -> tuple[Array, Array]:
        return tuple(single.truncated(word, cut, inside, below + above) for word in (even, odd))

    z = draw(stream, rows, columns, transform)
    return np.clip(z * real(sigma) + real(mean), *inward(low, high, real))


def bounded_normal(
    stream: Stream,
    rows: Array,
    columns: Array,
    mean: float,
    std: float,
    low: float,
    high: float,
    real: type,
) -> Array:
    """A normal given low <= value <= high, by its quantile function in 64 bits, rounded once."""
    a, b = (low - mean) / std, (high - mean) / std

    def transform(even: double.Pair, odd: double.Pair) -> tuple[Array, Array]:
        return _between(even, a, b), _between(odd, a, b)

    z = draw(stream, rows, columns, transform, low=True)
    value = np.clip(z * std + mean, low, high)
    return np.clip(value.astype(real), *inward(low, high, real))


def _between(pair: double.Pair, a: float, b: float) -> Array:
    """The standard normal's quantile at a uniform point between Phi(a) and Phi(b)."""
    u, rest = double.open_uniform(pair)
    if a >= FAR:
        return double.far_quantile(u, rest, a, tail_ratio(a, b))
    if b <= -FAR:
        return -double.far_quantile(rest, u, -b, tail_ratio(-b, -a))
    below, inside, above = interval(a, b)
    return double.quantile(below + u * inside, above + rest * inside)


def inward(low: float, high: float, real: type) -> tuple[np.floating, np.floating]:
    """The least and the greatest ``real`` within [low, high]; both ends may be infinite.

    >>> inward(-0.1, 0.1, np.float32)
    (np.float32(-0.099999994), np.float32(0.099999994))
    """
    with np.errstate(over="ignore"):
        least, greatest = real(low), real(high)
    if float(least) < low:
        least = np.nextafter(least, real(math.inf))
    if float(greatest) > high:
        greatest = np.nextafter(greatest, real(-math.inf))
    return least, greatest
