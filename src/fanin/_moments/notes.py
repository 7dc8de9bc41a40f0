"""What rules tell each other of a tensor beyond its moments: that it is a view, or a row's statistic.

A norm written out is four ops or more: ``x * rsqrt(mean(x ** 2) + eps)``. Each leaves word in
`Abstract.note`: the mean says of which tensor and function it is a mean, views pass it on, functions
of it compose in its `chain`; so the product knows that it divides x by x's own root mean square,
whatever way that was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from .domain import Abstract, Function
from .lines import Line
from .strata import Array

T = TypeVar("T")
_PROBE = np.array([0.0, 1.0, -2.0, 0.5])


def identity(z: Array) -> Array:
    """z."""
    return z


@dataclass(frozen=True, eq=False, slots=True)
class Reduction:
    """A mean (or sum) of f(of) over some axes.

    Args:
        of: the tensor.
        count: how many elements of it one element here averages.
        f: a function of its elements, times the count for a sum.
        centred: whether the mean over the same axes is taken out of ``of`` first: a variance.
    """

    of: Abstract
    count: int
    f: Function
    centred: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Centred:
    """``of`` less its mean over ``count`` elements."""

    of: Abstract
    count: int


@dataclass(frozen=True, eq=False, slots=True)
class View:
    """The same numbers as ``of``, on other axes, broadcast or not."""

    of: Abstract


@dataclass(frozen=True, eq=False, slots=True)
class Mapped:
    """Linear in ``of``, of the same shape, with nothing random between: a pooling of stride 1, a norm.

    Args:
        of: the tensor.
        cross: makes E[out of'] by classes of the output's axes, both orders averaged.
    """

    of: Abstract
    cross: Callable[[], Array]


@dataclass(frozen=True, eq=False, slots=True)
class Filtered:
    """``of``, every channel on its own convolved with a filter of zero mean: as large as that channel is."""

    of: Abstract


@dataclass(frozen=True, eq=False, slots=True)
class Factored:
    """A gradient: ``source`` times f(base)."""

    source: Abstract
    base: Abstract
    f: Function


@dataclass(frozen=True, eq=False, slots=True)
class Larger:
    """The larger of two tensors, element by element."""

    of: tuple[Abstract, Abstract]

    def other(self, x: Abstract) -> Abstract | None:
        """The one that is not x, if x is one of them, or was computed once more like it."""
        for part, rest in (self.of, self.of[::-1]):
            if x is part or (
                x.dims == part.dims
                and np.array_equal(x.mean, part.mean)
                and np.array_equal(x.q, part.q)
            ):
                return rest
        return None


def unchained(x: Abstract) -> tuple[Abstract, Function]:
    """(b, f) with x = f(b): its chain, or x itself."""
    return x.chain or (x, identity)


def viewed(out: Abstract, x: Abstract) -> Abstract:
    """``out``, with the note that it holds the numbers of ``x`` on other axes.

    Every rule of a view returns this: reshape, permute, unsqueeze, expand.
    """
    if out is x:
        return x
    return out.with_(note=(View(x),))


def reduced(out: Abstract, x: Abstract, count: int, factor: float = 1.0) -> Abstract:
    """``out``, with the note that it is ``factor`` times a mean of ``count`` elements of ``x``.

    Args:
        out: moments of the mean or sum.
        x: what is averaged.
        count: elements of ``x`` per element of ``out``.
        factor: 1 for a mean, ``count`` for a sum.
    """
    base, f = unchained(x)
    inner = note_of(base, Reduction)
    line = linear(f)
    if inner is not None and line is not None and not inner.centred:
        slope, offset = line
        g = inner.f
        note = Reduction(inner.of, inner.count * count, lambda z: factor * (slope * g(z) + offset))
    else:
        note = Reduction(base, count, f if factor == 1.0 else lambda z: factor * f(z))
    return out.with_(note=(note,))


def centred_reduction(out: Abstract, x: Abstract, count: int, factor: float = 1.0) -> Abstract:
    """``out``, with the note that it is ``factor`` times the variance of ``count`` elements of x."""
    note = Reduction(unchained(x)[0], count, lambda z: factor * z * z, centred=True)
    return out.with_(note=(note,))


def note_of(x: Abstract, kind: type[T]) -> T | None:
    """The first note of that type, if ``x`` has one."""
    if not x.note:
        return None
    return next((note for note in x.note if isinstance(note, kind)), None)


def relations(x: Abstract) -> list[Mapped]:
    """Every tensor in which ``x`` is noted to be linear."""
    return [note for note in x.note or () if isinstance(note, Mapped)]


def origin(x: Abstract) -> Abstract:
    """The tensor of which ``x`` is a view, or x."""
    while (view := note_of(x, View)) is not None:
        x = view.of
        if x.chain is not None and x.chain[0] is not x:
            break
    return x


def statistic(t: Abstract) -> tuple[Reduction, Abstract, Function] | None:
    """(its note, the reduction s, g) where t = g(s) of a noted reduction, through any views."""
    base, g = unchained(t)
    note = note_of(base, Reduction)
    if note is not None:
        return note, base, g
    view = note_of(base, View)
    found = statistic(view.of) if view is not None else None
    if found is None:
        return None
    note, s, h = found
    return note, s, h if g is identity else lambda z: g(h(z))


def concerns(note: Reduction, x: Abstract) -> bool:
    """Whether the reduction is one of ``x``, which may itself be centred, viewed or a function."""
    base = origin(unchained(x)[0])
    if origin(note.of) is base:
        return True
    middle = note_of(base, Centred)
    return note.centred and middle is not None and origin(note.of) is origin(middle.of)


def linear(f: Function) -> tuple[float, float] | None:
    """(slope, offset) of a straight line, else None."""
    if f is identity:
        return 1.0, 0.0
    if isinstance(f, Line):
        return f.slope, f.offset
    with np.errstate(all="ignore"):
        at = np.asarray(f(_PROBE), float)
    slope, offset = float(at[1] - at[0]), float(at[0])
    line = offset + slope * _PROBE
    slack = 1e-9 * np.abs(line) + 1e-12 * (abs(slope) + abs(offset))
    return (slope, offset) if bool((np.abs(at - line) <= slack).all()) else None


def square(f: Function) -> float | None:
    """a where f(z) = a z^2, else None."""
    with np.errstate(all="ignore"):
        at = np.asarray(f(_PROBE), float)
    a = float(at[1])
    curve = a * (_PROBE * _PROBE)
    slack = 1e-9 * np.abs(curve) + 1e-12 * abs(a)
    return a if bool((np.abs(at - curve) <= slack).all()) else None


def reductions(dims: Iterable[int] | int | None, rank: int) -> list[int]:
    """Axes as torch means them: None or none for all, negative ones counted from the end.

    >>> reductions((-1, 0), 3)
    [0, 2]
    """
    if dims is None:
        return list(range(rank))
    given = [dims] if isinstance(dims, int) else list(dims)
    return sorted({d % rank for d in given}) if given and rank else list(range(rank))
