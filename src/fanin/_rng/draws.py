"""The engine's interface: (elements, parameters) -> R x C values.

A faster backend replaces these functions and must return the same bits.
"""

from __future__ import annotations

import math

import numpy as np

from . import double, single
from .philox import Array, Elements, draw, words
from .probability import interval, tail_ratio
from .stream import Stream

RATIONAL_CUT = 3.0  # sigmas: beyond, 32-bit words are too coarse for the tail
FAR = 30.0  # sigmas: beyond, tails leave the doubles
NEEDLE = 1e8  # sigmas: beyond, a tail is narrower than a double resolves
RANKED_AT_ONCE = 2**20


def normal(elements: Elements, std: float, mean: float, *, real: type) -> Array:
    """``z std + mean``, z standard normal; product and sum rounded in turn, in ``real``.

    Args:
        elements: which ones.
        std: standard deviation, rounded to ``real`` first.
        mean: likewise.
        real: np.float32 or np.float64.
    """
    wide = real is np.float64
    transform = double.box_muller if wide else single.box_muller
    z = draw(elements, transform, low=wide)
    return z * real(std) + real(mean)


def uniform(elements: Elements, low: float, high: float, *, real: type) -> Array:
    """Uniform in [low, high): the signed word times half the width, plus the middle.

    Args:
        elements: which ones.
        low: lower bound, never undercut.
        high: upper bound, never reached unless ``low`` and ``high`` round to the same number.
        real: np.float32 or np.float64.
    """
    wide = real is np.float64
    to_unit = double.signed_uniform if wide else single.signed_uniform
    unit = draw(elements, lambda even, odd: (to_unit(even), to_unit(odd)), low=wide)
    half, middle, least, greatest = uniform_numbers(low, high, real)
    return _clip(unit * half + middle, least, greatest)


def uniform_numbers(
    low: float, high: float, real: type
) -> tuple[np.floating, np.floating, np.floating, np.floating]:
    """(half the width, middle, least and greatest value) of a uniform draw in [low, high)."""
    least, greatest = inward(low, high, real)
    if float(greatest) >= high:
        greatest = np.nextafter(greatest, real(-math.inf))
    return real(high / 2 - low / 2), real(high / 2 + low / 2), least, greatest


def truncated_normal(
    elements: Elements, sigma: float, cut: float, mean: float, *, real: type
) -> Array:
    """``z sigma + mean``, z standard normal given |z| <= cut; never outside by a bit.

    In 32 bits and up to cut 3 z comes from a rational, else from the quantile in 64 bits.

    Args:
        elements: which ones.
        sigma: std of the parent.
        cut: in sigmas.
        mean: expectation.
        real: np.float32 or np.float64.
    """
    bounds = mean - cut * sigma, mean + cut * sigma
    if real is np.float64 or cut > RATIONAL_CUT:
        z = _window(elements, -cut, cut)
        return _clip((z * sigma + mean).astype(real), *inward(*bounds, real))
    tail, inside, _ = interval(-cut, cut)

    def transform(even: Array, odd: Array) -> list[Array]:
        return [single.truncated(word, cut, inside, 2 * tail) for word in (even, odd)]

    z = draw(elements, transform)
    return _clip(z * real(sigma) + real(mean), *inward(*bounds, real))


def bounded_normal(
    elements: Elements, mean: float, std: float, low: float, high: float, *, real: type
) -> Array:
    """A normal given low <= value <= high, by its quantile in 64 bits, rounded once.

    Args:
        elements: which ones.
        mean: of the parent.
        std: of the parent; 0 puts all at the point of [low, high] nearest to the mean.
        low: lower bound, -inf allowed.
        high: upper bound, inf allowed.
        real: np.float32 or np.float64.
    """
    anchor = min(max(mean, low), high)
    if is_point(mean, std, low, high):
        return np.full((elements.rows.size, elements.columns.size), anchor, real)
    z = _window(elements, (low - mean) / std, (high - mean) / std)
    value = single.clip(z * std + mean, low, high)
    return _clip(value.astype(real), *inward(low, high, real))


def is_point(mean: float, std: float, low: float, high: float) -> bool:
    """Whether a bounded normal is narrower than doubles resolve: all at the point nearest to the mean."""
    anchor = min(max(mean, low), high)
    return low >= high or abs(anchor - mean) >= NEEDLE * std


def ranked(elements: Elements) -> Array:
    """A 64-bit number an element, all different within a column: the word, then the row."""
    high = words(elements).astype(np.uint64) << np.uint64(32)
    return high | elements.rows.astype(np.uint64)[:, None]


def thresholds(stream: Stream, rows: int, columns: Array, count: int) -> Array:
    """Per column the number that exactly ``count`` of the ``rows`` ranked numbers are below."""
    least = np.zeros(columns.size, np.uint64)
    if count == 0:
        return least
    if count == rows:
        return ~least
    width = max(1, RANKED_AT_ONCE // rows)
    for c in (slice(k, k + width) for k in range(0, columns.size, width)):
        block = ranked(Elements(stream, np.arange(rows), columns[c]))
        least[c] = np.partition(block, count, axis=0)[count]
    return least


def _window(elements: Elements, a: float, b: float) -> Array:
    """The standard normal given a <= z <= b, in 64 bits."""

    def transform(even: double.Pair, odd: double.Pair) -> list[Array]:
        return [_between(pair, a, b) for pair in (even, odd)]

    return single.clip(draw(elements, transform, low=True), a, b)


def _between(pair: double.Pair, a: float, b: float) -> Array:
    """The standard normal's quantile at a uniform point between Phi(a) and Phi(b)."""
    if b > -FAR and a < FAR:
        return double.between(pair, *interval(a, b))
    u, rest = double.open_uniform(pair)
    if a >= FAR:
        return double.far_quantile(u, rest, a, tail_ratio(a, b))
    return -double.far_quantile(rest, u, -b, tail_ratio(-b, -a))


def _clip(value: Array, least: np.floating, greatest: np.floating) -> Array:
    """Within the bounds, where any number of this precision is."""
    return value if least > greatest else single.clip(value, least, greatest)


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
