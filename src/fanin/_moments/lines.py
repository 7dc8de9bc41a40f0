"""Straight lines as functions that say so: what is scaled, shifted or negated needs no quadrature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .strata import Array

Function = Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class Line:
    """slope z + offset.

    >>> composed(Line(2.0), Line(-1.0, 3.0))
    Line(slope=-2.0, offset=6.0)
    """

    slope: float = 1.0
    offset: float = 0.0

    def __call__(self, z: Array) -> Array:
        """At z."""
        return self.slope * z + self.offset if self.offset else self.slope * z


def composed(f: Function, g: Function) -> Function:
    """f(g(z)); of two lines a line."""
    if isinstance(f, Line) and isinstance(g, Line):
        return Line(f.slope * g.slope, f.slope * g.offset + f.offset)
    return lambda z: f(g(z))
