"""Products of real or complex numbers, each operation of their parts rounded on its own.

numpy's own complex product is fused on some machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .philox import Array

Parts = Sequence[Any]  # (real,) or (real, imaginary): arrays, or vectors of a kernel


def product(a: Parts, b: Parts) -> Parts:
    """``a b``."""
    if len(a) == 1:
        return (a[0] * b[0],)
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def conjugate(a: Parts) -> Parts:
    """``a`` with the other sign of its imaginary part."""
    return a if len(a) == 1 else (a[0], -a[1])


def parts(a: Array) -> Parts:
    """The parts of an array, as views."""
    return (a.real, a.imag) if np.iscomplexobj(a) else (a,)


def whole(a: Parts) -> Array:
    """The array of these parts."""
    if len(a) == 1:
        return np.asarray(a[0])
    value = np.empty(a[0].shape, np.complex128)
    value.real, value.imag = a
    return value


def times(a: Array, b: Array) -> Array:
    """``a b`` element by element, both real or both complex."""
    return whole(product(parts(a), parts(b)))


def over(a: Array, real: Array) -> Array:
    """``a / real`` element by element, each part rounded once."""
    return whole([part / real for part in parts(a)])


def squares(a: Array) -> Array:
    """|a|^2 element by element."""
    first, *second = (part * part for part in parts(a))
    return first + second[0] if second else first
