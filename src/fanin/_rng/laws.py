"""Elementwise laws, ready to be drawn: each with its specification and its kernel's numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import SupportsFloat

import numpy as np

from . import draws, single
from .backend import NUMBERS, Draw
from .philox import Array, Elements
from .probability import interval

_ANYWHERE = (-math.inf, math.inf)


def normal(std: float, mean: float, real: type) -> Draw:
    """As `draws.normal`."""

    def portable(elements: Elements) -> Array:
        return draws.normal(elements, std, mean, real=real)

    return Draw(portable, real, f"normal_{_bits(real)}", _numbers(std, mean))


def uniform(low: float, high: float, real: type) -> Draw:
    """As `draws.uniform`."""

    def portable(elements: Elements) -> Array:
        return draws.uniform(elements, low, high, real=real)

    half, middle, *ends = draws.uniform_numbers(low, high, real)
    return Draw(portable, real, f"uniform_{_bits(real)}", _numbers(half, middle, *_within(ends)))


def truncated_normal(sigma: float, cut: float, mean: float, real: type) -> Draw:
    """As `draws.truncated_normal`."""

    def portable(elements: Elements) -> Array:
        return draws.truncated_normal(elements, sigma, cut, mean, real=real)

    ends = _within(draws.inward(mean - cut * sigma, mean + cut * sigma, real))
    tail, inside, above = interval(-cut, cut)
    if real is np.float64 or cut > draws.RATIONAL_CUT:
        window = tail, inside, above, -cut, cut, sigma, mean, *_ANYWHERE
        return Draw(portable, real, f"window_{_bits(real)}", _numbers(*window, *ends))
    law = "truncated_2" if cut <= 2.0 else "truncated_3"
    return Draw(portable, real, law, _numbers(inside, 2 * tail, sigma, mean, *ends))


def bounded_normal(
    mean: float, std: float, bounds: tuple[float, float], within: tuple[float, float], real: type
) -> Draw:
    """As `draws.bounded_normal`, then clipped to ``within``, the ends in the tensor's own dtype."""
    (low, high), (least, greatest) = bounds, within

    def portable(elements: Elements) -> Array:
        value = draws.bounded_normal(elements, mean, std, low, high, real=real)
        # Between bounds that the dtype can hold, rounding to it stays between them.
        return value if least > greatest else single.clip(value, real(least), real(greatest))

    if draws.is_point(mean, std, low, high):
        return Draw(portable, real)
    a, b = (low - mean) / std, (high - mean) / std
    if a >= draws.FAR or b <= -draws.FAR:
        return Draw(portable, real)
    numbers = *interval(a, b), a, b, std, mean, low, high, least, greatest
    return Draw(portable, real, f"window_{_bits(real)}", _numbers(*numbers))


def _within(ends: Sequence[SupportsFloat]) -> tuple[float, float]:
    """Bounds to clip to; none where no number lies between them."""
    least, greatest = map(float, ends)
    return _ANYWHERE if least > greatest else (least, greatest)


def _numbers(*given: SupportsFloat) -> tuple[float, ...]:
    """As many as every kernel takes."""
    return tuple(map(float, given)) + (0.0,) * (NUMBERS - len(given))


def _bits(real: type) -> int:
    return 64 if real is np.float64 else 32
