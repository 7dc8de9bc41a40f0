"""A matrix product whose bits do not depend on the order in which it is summed.

BLAS sums in an order that changes with the machine and its threads. Cut into slices of few enough
bits, every product and every partial sum is an integer that a double holds exactly, so that any
order gives the same sum; only the slices' results are then added, in a fixed order.

Source: Ozaki, Ogita, Oishi & Rump 2012, "Error-free transformations of matrix multiplication",
Numerical Algorithms 59, section 3.
"""

from __future__ import annotations

import numpy as np

from .philox import Array

MANTISSA = 53
SLICES = 3  # part of the law: another number rounds otherwise


def product(a: Array, b: Array) -> Array:
    """``a @ b`` for real or complex doubles.

    The error is below 2^-58 K times the largest elements of the row of ``a`` and of the column of
    ``b``, for K <= 2^12, plus the rounding of a sum of three doubles.

    Args:
        a: M x K.
        b: K x N, K >= 1.

    >>> product(np.array([[1.0, 2.0]]), np.array([[3.0], [0.5]]))
    array([[4.]])
    """
    if np.isrealobj(a) and np.isrealobj(b):
        return _real_product(a, b)
    return from_parts(
        _real_product(a.real, b.real) - _real_product(a.imag, b.imag),
        _real_product(a.real, b.imag) + _real_product(a.imag, b.real),
    )


def times(a: Array, b: Array) -> Array:
    """``a * b`` element by element; numpy's own complex product is fused on some machines."""
    if np.isrealobj(a) and np.isrealobj(b):
        return a * b
    return from_parts(a.real * b.real - a.imag * b.imag, a.real * b.imag + a.imag * b.real)


def divided(a: Array, real: Array) -> Array:
    """``a / real`` element by element, each part rounded once."""
    return a / real if np.isrealobj(a) else from_parts(a.real / real, a.imag / real)


def squares(a: Array) -> Array:
    """|a|^2 element by element."""
    return a * a if np.isrealobj(a) else a.real * a.real + a.imag * a.imag


def from_parts(real: Array, imaginary: Array) -> Array:
    """The complex array of two real ones."""
    value = np.empty(real.shape, np.complex128)
    value.real, value.imag = real, imaginary
    return value


def _real_product(a: Array, b: Array) -> Array:
    # The longest of the exact sums below has SLICES K terms.
    bits = (MANTISSA - (SLICES * a.shape[1] - 1).bit_length()) // 2
    left, right = _slices(a, 1, bits), _slices(b, 0, bits)
    total = 0.0
    # Slices i and j with the same i + j share a unit. Those beyond the last slice's are left out.
    for order in range(SLICES - 1, -1, -1):
        rows = np.concatenate(left[: order + 1], axis=1)
        columns = np.concatenate(right[order::-1], axis=0)
        total = total + rows @ columns
    return np.asarray(total)


def _slices(x: Array, axis: int, bits: int) -> list[Array]:
    """Matrices of ``bits``-bit integers times a power of two, which add up to x but for its end."""
    largest = np.maximum(x.max(axis=axis, keepdims=True), -x.min(axis=axis, keepdims=True))
    _, exponent = np.frexp(largest)
    pieces = []
    for i in range(SLICES):
        # Adding and subtracting this rounds to multiples of 2^(exponent - bits).
        big = np.ldexp(1.5, exponent - i * (bits + 1) + MANTISSA - 1 - bits)
        piece = (x + big) - big
        pieces.append(piece)
        x = x - piece
    return pieces
