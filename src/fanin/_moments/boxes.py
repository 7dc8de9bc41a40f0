"""Boxes of a tensor: numbers placed in zeros, written over others, or taking turns with others.

A box is a range of every axis. Placing is concatenation with zeros, so that it is exact: segments
say where the box is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from . import alignment, rearrangement, strata
from .domain import (
    Abstract,
    added,
    aligned,
    constant,
    cut,
    expanded,
    fitted,
    full,
    limited,
    merge_dim,
    multiplied,
    permuted,
    reshaped,
    resized,
    tidy,
)
from .strata import Dim, Index


class Box(NamedTuple):
    """A range of every axis of a tensor of that shape."""

    shape: tuple[int, ...]
    starts: tuple[int, ...]
    stops: tuple[int, ...]
    steps: tuple[int, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """The shape of what is inside."""
        return tuple(len(range(*r)) for r in zip(*self[1:], strict=True))


def box_on(shape: Sequence[int], dim: int, start: int, stop: int, step: int = 1) -> Box:
    """A range of one axis and all of the others."""
    starts, stops, steps = [0] * len(shape), list(shape), [1] * len(shape)
    starts[dim], stops[dim], steps[dim] = start, stop, step
    return Box(tuple(shape), tuple(starts), tuple(stops), tuple(steps))


class Frame(NamedTuple):
    """How an axis is written inside a longer one.

    Args:
        fit: atoms that the axis is written on first.
        framed: atoms of the longer axis; one of them has segments before and after.
        place: which one.
        rows: the classes of ``fit`` in it.
        kept: the segments of ``fit`` in it.
    """

    fit: Dim
    framed: Dim
    place: int
    rows: Index
    kept: Index


@lru_cache(maxsize=16384)
def frame(dim: Dim, n: int, start: int, step: int) -> Frame | None:
    """How an axis is written as every ``step``-th index from ``start`` on of an axis of length n.

    None where that is no box: a step that does not divide n, or not from end to end.
    """
    length = strata.size(dim)
    if step > 1 and length > 1:
        if n % step or start >= step or length != n // step:
            return None
        return Frame(
            dim, (*dim, _around(start, (1,), step)), len(dim), *_inside((), start, step, 1)
        )
    inner = strata.size(dim[1:])
    if start % inner or n % inner:
        dim, inner = alignment.one_atom(dim), 1
    head = dim[0] if dim else (1,)
    framed = (_around(start // inner, head, n // inner), *dim[1:])
    return Frame((head, *dim[1:]), framed, 0, *_inside(head, start // inner, n // inner, len(head)))


def _around(start: int, atom: tuple[int, ...], n: int) -> tuple[int, ...]:
    parts = (start, *atom, n - start - sum(atom))
    return tuple(p for p in parts if p)


def _inside(atom: tuple[int, ...], start: int, n: int, s: int) -> tuple[Index, Index]:
    total = s + (start > 0) + (n - start - sum(atom or (1,)) > 0)
    kept = np.arange(s) + (start > 0)
    return rearrangement.own_rows(kept, total), kept


def placed(x: Abstract, dim: int, n: int, start: int, step: int = 1) -> Abstract:
    """``x`` on every ``step``-th index of a longer axis, zeros elsewhere."""
    if x.shape[dim] == n:
        return x
    how = frame(x.dims[dim], n, start, step)
    if how is None:
        raise ValueError(f"every {step}th of {n} from {start} on is no box of {x.shape[dim]}")
    here = x.dims[dim]
    if len(how.fit) < len(here):
        x = merge_dim(x, dim)
    x = fitted(x, (*x.dims[:dim], how.fit, *x.dims[dim + 1 :]))
    first = sum(map(len, x.dims[:dim]))
    axis = first + how.place
    q, mean = x.q, x.mean
    if len(how.framed) > len(how.fit):
        q, mean = np.expand_dims(q, axis), np.expand_dims(mean, axis)
        if q.shape[axis] == 1:
            q = np.repeat(q, 2, axis)
    s = len(how.framed[how.place])
    wide_q = np.zeros((*q.shape[:axis], s + s * s, *q.shape[axis + 1 :]))
    wide_mean = np.zeros((*mean.shape[:axis], s, *mean.shape[axis + 1 :]))
    wide_q.swapaxes(0, axis)[how.rows] = q.swapaxes(0, axis)
    wide_mean.swapaxes(0, axis)[how.kept] = mean.swapaxes(0, axis)
    dims = (*x.dims[:dim], how.framed, *x.dims[dim + 1 :])
    return Abstract(dims, wide_mean, wide_q, noise=x.noise)


def embedded(x: Abstract, box: Box) -> Abstract:
    """``x`` inside the box, zeros outside."""
    for dim, (n, start, step) in enumerate(zip(box.shape, box.starts, box.steps, strict=True)):
        x = placed(x, dim, n, start, step)
    return limited(x)


@lru_cache(maxsize=4096)
def outside(box: Box) -> Abstract:
    """1 outside the box and 0 inside, on axes that broadcast to its shape."""
    ranges = zip(box.shape, box.starts, box.stops, box.steps, strict=True)
    ones = Abstract(((),) * len(box.shape), np.ones(()), np.ones(()))
    for dim, (n, start, stop, step) in enumerate(ranges):
        if len(range(start, stop, step)) < n:
            length = strata.whole(len(range(start, stop, step)))
            part = fitted(ones, (*ones.dims[:dim], length, *ones.dims[dim + 1 :]))
            ones = placed(part, dim, n, start, step)
    out = Abstract(ones.dims, 1.0 - ones.mean, ones.q)
    return out.with_(q=out.outer())


def fits(box: Box) -> bool:
    """Whether every range of it can be written with segments."""
    ranges = zip(box.shape, box.starts, box.stops, box.steps, strict=True)
    return all(
        frame(strata.whole(len(range(i, j, k))), n, i, k) is not None
        for n, i, j, k in ranges
        if len(range(i, j, k)) < n
    )


def written(base: Abstract, value: Abstract, box: Box) -> Abstract:
    """``base`` with ``value`` in the box."""
    value = as_shape(value, box.lengths)
    if box.lengths == box.shape:
        return value.plain()
    inside = embedded(value, box)
    if not base.q.any():
        return inside
    return limited(tidy(added(inside, multiplied(base, outside(box)))))


def as_shape(x: Abstract, shape: tuple[int, ...]) -> Abstract:
    """``x`` on axes of that shape: reshaped if it has as many elements, else broadcast."""
    if math.prod(x.shape) == math.prod(shape):
        return reshaped(x, shape)
    return expanded(x, shape)


def boxed(x: Abstract, box: Box) -> Abstract:
    """What is inside the box."""
    for dim, r in enumerate(zip(*box[1:], strict=True)):
        x = cut(x, dim, *r)
    return x


# mixtures -----------------------------------------------------------------------------------------


def chosen(u: Abstract, a: Abstract, b: Abstract) -> Abstract:
    """``a`` where u = 1, ``b`` where u = 0; u is independent of both.

    q = E[u u'] q_a + E[(1 - u)(1 - u')] q_b + E[u (1 - u')] E a E b' + E[(1 - u) u'] E b E a'.
    """
    u, a, b = aligned([u, a, b])
    left, right = u.lifted(strata.left), u.lifted(strata.right)
    neither = 1.0 - left - right + u.q
    q = u.q * a.q + neither * b.q
    if a.mean.any() and b.mean.any():
        q = q + (left - u.q) * a.lifted(strata.left) * b.lifted(strata.right)
        q = q + (right - u.q) * b.lifted(strata.left) * a.lifted(strata.right)
    mean = u.mean * a.mean + (1.0 - u.mean) * b.mean
    return limited(Abstract(u.dims, mean, q, noise=max(a.noise, b.noise)))


def share(shape: Sequence[int], p: float) -> Abstract:
    """1 with probability p, else 0, independently everywhere."""
    return full(shape, p, p)


def zeros(shape: Sequence[int]) -> Abstract:
    """Nothing at all."""
    return constant(shape, 0.0)


def like(x: Abstract, shape: Sequence[int]) -> Abstract:
    """The statistics of ``x`` on axes of other lengths, or of another number."""
    if len(x.dims) != len(shape):
        return full(shape, x.second_moment, x.average_mean).with_(noise=x.noise)
    for dim, n in enumerate(shape):
        x = resized(x, dim, n)
    return x.plain()


def moved(x: Abstract, source: int, target: int) -> Abstract:
    """One axis in another place."""
    order = [d for d in range(len(x.dims)) if d != source]
    order.insert(target, source)
    return permuted(x, order)
