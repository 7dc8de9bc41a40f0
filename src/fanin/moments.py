"""Rules of moments for ops that fanin does not know, and the pieces to write them with.

A tensor is known by E[x] and E[x x'] (`Abstract`). A rule says what an op does to them; it is found
under the op's name. docs/moments.md has the formulas and examples.
"""

from __future__ import annotations

from . import _moments as _rules  # noqa: F401 - registers fanin's own
from ._moments.algebra import plus, through, times, unbroadcast
from ._moments.domain import (
    Abstract,
    averaged,
    constant,
    contracted,
    expanded,
    full,
    measured,
    permuted,
    reshaped,
    scaled,
    shifted,
    summed,
)  # fmt: skip
from ._moments.gaussian import pointwise
from ._moments.pointwise import elementwise
from ._moments.registry import backward, forward

__all__ = [
    "Abstract", "averaged", "backward", "constant", "contracted", "elementwise", "expanded", "forward",
    "full", "measured", "permuted", "plus", "pointwise", "reshaped", "scaled", "shifted", "summed",
    "through", "times", "unbroadcast",
]  # fmt: skip
