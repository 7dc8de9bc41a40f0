"""A matrix product whose bits do not depend on the order in which it is summed.

BLAS sums in an order that changes with the machine and its threads. Cut into slices of few enough
bits, every product and every partial sum is an integer that a double holds exactly, so that any
order gives the same sum; only the slices' results are then added, in a fixed order.

Source: Ozaki, Ogita, Oishi & Rump 2012, "Error-free transformations of matrix multiplication",
Numerical Algorithms 59, section 3.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .philox import Array

MANTISSA = 53
SLICES = 3


def product(a: Array, b: Array) -> Array:
    """``a @ b`` for real or complex doubles.

    Args:
        a: M x K.
        b: K x N, K >= 1.

    The error is below 2^-60 K times the largest elements of the row of ``a`` and of the column of
    ``b``, plus the rounding of a sum of doubles.

    >>> product(np.array([[1.0, 2.0]]), np.array([[3.0], [0.5]]))
    array([[4.]])
    """
    if np.isrealobj(a) and np.isrealobj(b):
        return _real_product(a, b)
    ar, ai, br, bi = (np.ascontiguousarray(part) for part in (a.real, a.imag, b.real, b.imag))
    return _complex(
        _real_product(ar, br) - _real_product(ai, bi),
        _real_product(ar, bi) + _real_product(ai, br),
    )


def times(a: Array, b: Array) -> Array:
    """``a * b`` element by element; numpy's own complex product fuses on some machines."""
    if np.isrealobj(a) and np.isrealobj(b):
        return a * b
    return _complex(a.real * b.real - a.imag * b.imag, a.real * b.imag + a.imag * b.real)


def combine(scale: Callable[[Array], Array], x: Array) -> Array:
    """A real scaling applied to x, or to the real and the imaginary part of a complex x."""
    return scale(x) if np.isrealobj(x) else _complex(scale(x.real), scale(x.imag))


def _complex(real: Array, imaginary: Array) -> Array:
    value = np.empty(real.shape, np.complex128)
    value.real, value.imag = real, imaginary
    return value


def _real_product(a: Array, b: Array) -> Array:
    bits = (MANTISSA - (a.shape[1] - 1).bit_length()) // 2
    left, right = _slices(a, 1, bits), _slices(b, 0, bits)
    total = np.zeros((a.shape[0], b.shape[1]))
    # Smallest terms first; those below the last slice's precision are left out.
    for order in range(SLICES - 1, -1, -1):
        for i in range(order + 1):
            total += left[i] @ right[order - i]
    return total


def _slices(x: Array, axis: int, bits: int) -> list[Array]:
    """Matrices that add up to x but for its last bits, each of ``bits`` bits."""
    _, exponent = np.frexp(np.max(np.abs(x), axis=axis, keepdims=True, initial=0.0))
    pieces = []
    for i in range(SLICES):
        # Adding and subtracting this rounds to multiples of 2^(exponent - bits).
        big = np.ldexp(1.5, exponent - i * (bits + 1) + MANTISSA - 1 - bits)
        piece = (x + big) - big
        pieces.append(piece)
        x = x - piece
    return pieces
