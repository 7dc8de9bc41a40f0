"""Rules of sums, means, products and counts over axes.

A sum over n numbers has n E x^2 + n (n - 1) E x x' in its square: what they have in common adds up
as n^2. Means and sums leave word of what they average (`notes.Reduction`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from .algebra import unbroadcast
from .boxes import like
from .domain import (
    Abstract,
    averaged,
    concatenated,
    constant,
    cut,
    expanded,
    full,
    limited,
    measured,
    merge_dim,
    multiplied,
    reshaped,
    scaled,
    summed,
    uniform,
)
from .indexing import given_back, integers, is_mask
from .maps import Linear, from_taps, mapped
from .notes import reduced, reductions, viewed
from .registry import backward, forward
from .strata import Array

Dim = int | Sequence[int] | None
Shapes = Sequence[tuple[int, ...]]


# sums and means -----------------------------------------------------------------------------------


def _count(x: Abstract, dims: Sequence[int]) -> int:
    return math.prod(x.shape[d] for d in dims)


@forward("mean", "nanmean")
def mean(x: Abstract, dim: Dim = None, keepdim: bool = False) -> Abstract:
    """E m m' = E x x' averaged over the pairs of the rows."""
    dims = reductions(dim, len(x.dims))
    return reduced(averaged(x, dims, keep=keepdim), x, _count(x, dims))


@forward("sum", "nansum")
def sum_(x: Abstract, dim: Dim = None, keepdim: bool = False) -> Abstract:
    """N times the mean."""
    dims = reductions(dim, len(x.dims))
    n = _count(x, dims)
    return reduced(summed(x, dims, keep=keepdim), x, n, float(n))


@forward("sum_to_size")
def sum_to_size(x: Abstract, shapes: Shapes) -> Abstract:
    """Sums over the axes that are longer than wanted."""
    return unbroadcast(x, shapes[0])


def over_rows(grad: Abstract, x: Abstract, dims: Sequence[int]) -> Abstract:
    """The gradient of a row's statistic at every element of the row."""
    narrow = tuple(1 if d in dims else n for d, n in enumerate(x.shape))
    kept = viewed(reshaped(grad, narrow), grad)
    return viewed(expanded(kept, x.shape), kept)


@backward("mean", "nanmean")
def mean_back(grad: Abstract, x: Abstract, dim: Dim = None) -> dict[str, Any]:
    """G / n everywhere in the row."""
    dims = reductions(dim, len(x.dims))
    return {"x": scaled(over_rows(grad, x, dims), 1.0 / _count(x, dims))}


@backward("sum", "nansum")
def sum_back(grad: Abstract, x: Abstract, dim: Dim = None) -> dict[str, Any]:
    """The same g everywhere in the row."""
    return {"x": over_rows(grad, x, reductions(dim, len(x.dims)))}


@backward("sum_to_size")
def sum_to_size_back(grad: Abstract, x: Abstract) -> dict[str, Any]:
    """Broadcast again."""
    return {"x": viewed(expanded(grad, x.shape), grad)}


# products -----------------------------------------------------------------------------------------


def rows_of(x: Abstract, dims: Sequence[int]) -> tuple[Abstract, Array, Array]:
    """Axes ``dims`` without segments, and E x x', E x of one place of them by the other classes."""
    for d in dims:
        x = uniform(merge_dim(x, d), [d])
    axes = tuple(x.axes(dims))
    near = np.moveaxis(x.q, axes, range(len(axes)))[(0,) * len(axes)]
    return x, near, np.asarray(x.mean.squeeze(axes))


@forward("prod")
def prod(x: Abstract, dim: Dim = None, keepdim: bool = False) -> Abstract:
    """Powers of the moments, the n factors independent: E y y' = (E x x')^n."""
    dims = reductions(dim, len(x.dims))
    n = _count(x, dims)
    one, near, center = rows_of(x, dims)
    left = tuple(d for k, d in enumerate(one.dims) if k not in dims)
    out = Abstract(left, center**n, near**n, noise=n * n * x.noise)
    if keepdim:
        out = reshaped(out, [1 if d in dims else m for d, m in enumerate(x.shape)])
    return out


@backward("prod")
def prod_back(grad: Abstract, x: Abstract, dim: Dim = None) -> dict[str, Any]:
    """G times the n - 1 other factors."""
    dims = reductions(dim, len(x.dims))
    n = _count(x, dims)
    one, near, center = rows_of(x, dims)
    axes = one.axes(dims)
    square = Abstract(
        tuple(d for k, d in enumerate(one.dims) if k not in dims), center, near
    ).outer()
    table = np.empty((2,) * len(axes) + near.shape)
    table[...] = near ** (n - 2) * square if n > 1 else 0.0
    table[(0,) * len(axes)] = near ** (n - 1)
    rest = Abstract(
        one.dims,
        np.expand_dims(center ** (n - 1), tuple(axes)),
        np.moveaxis(table, range(len(axes)), axes),
    )
    return {"x": limited(multiplied(over_rows(grad, x, dims), rest))}


# counts -------------------------------------------------------------------------------------------


def indicator(x: Abstract) -> Abstract:
    """1 where ``x`` is not 0: a mask itself; real numbers never are 0."""
    if x.known is not None:
        return measured(x.known != 0).plain()
    return x.plain() if is_mask(x) else constant(x.shape, 1.0 if x.q.any() else 0.0)


@forward("any", "all")
def any_or_all(x: Abstract, dim: Dim = None, keepdim: bool = False, op: str = "any") -> Abstract:
    """Powers of the chances, the n elements independent."""
    dims = reductions(dim, len(x.dims))
    n = _count(x, dims)
    one, near, p = rows_of(indicator(x), dims)
    left = tuple(d for k, d in enumerate(one.dims) if k not in dims)
    if op == "all":
        center, q = p**n, near**n
    else:
        none = (
            Abstract(left, (1.0 - p) ** n, near).outer() ** 0.5
            if not one.uniform
            else (1.0 - p) ** n
        )
        center = 1.0 - (1.0 - p) ** n
        q = 1.0 - 2.0 * none + np.maximum(1.0 - 2.0 * _lifted(p, near) + near, 0.0) ** n
    out = Abstract(left, np.asarray(center), np.asarray(q))
    return reshaped(out, [1 if d in dims else m for d, m in enumerate(x.shape)]) if keepdim else out


def _lifted(p: Array, near: Array) -> Array:
    return np.broadcast_to(p.mean(), near.shape)


@forward("count_nonzero")
def count_nonzero(x: Abstract, dim: Dim = None) -> Abstract:
    """The sum of the indicator."""
    return summed(indicator(x), reductions(dim, len(x.dims)))


@forward("bincount")
def bincount(x: Abstract, weights: Abstract | None = None, *, shapes: Shapes) -> Abstract:
    """How often each number occurs, or the sum of its weights; unknown numbers are uniform."""
    n = shapes[0][0]
    if weights is not None:
        return given_back(weights, 0, x, [n])
    if x.known is not None:
        return measured(np.bincount(x.known.astype(np.int64), minlength=n)).plain()
    return _multinomial(math.prod(x.shape), n)


def _multinomial(count: int, bins: int) -> Abstract:
    """Counts of ``count`` numbers in equally likely bins."""
    p = 1.0 / bins
    pair = count * (count - 1) * p * p
    out = full((bins,), pair + count * p, count * p)
    return Abstract(out.dims, out.mean, np.where(np.arange(out.q.size) < 1, out.q, pair))


@forward("histc")
def histc(x: Abstract, shapes: Shapes) -> Abstract:
    """How many numbers fall into each bin, as if those were equally likely."""
    return _multinomial(math.prod(x.shape), shapes[0][0])


@forward("_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "_unique")
def unique(x: Abstract, shapes: Shapes) -> list[Abstract]:
    """The values, which of them each element is, how often each occurs."""
    values, *rest = shapes
    count = max(values[0], 1) if values else 1
    found = [like(x, values)]
    if rest:
        found.append(integers(rest[0], count))
    found += [constant(shape, math.prod(x.shape) / count) for shape in rest[1:]]
    return found


# differences --------------------------------------------------------------------------------------


def _with_ends(
    x: Abstract, dim: int, prepend: Abstract | None, append: Abstract | None
) -> Abstract:
    parts = [part for part in (prepend, x, append) if part is not None]
    return concatenated(parts, dim) if len(parts) > 1 else x


@lru_cache(maxsize=1024)
def _steps(length: int, n: int) -> Linear:
    return from_taps(
        np.arange(length - n)[:, None] + np.arange(n + 1),
        np.array([(-1.0) ** (n - k) * math.comb(n, k) for k in range(n + 1)]),
        length,
    )


@forward("diff")
def diff(
    x: Abstract,
    n: int = 1,
    dim: int = -1,
    prepend: Abstract | None = None,
    append: Abstract | None = None,
) -> Abstract:
    """x[i + 1] - x[i], n times."""
    dim %= len(x.dims)
    long = _with_ends(x, dim, prepend, append)
    return mapped(long, dim, _steps(long.shape[dim], n))


@backward("diff")
def diff_back(
    grad: Abstract,
    x: Abstract,
    *,
    n: int = 1,
    dim: int = -1,
    prepend: Abstract | None = None,
    append: Abstract | None = None,
) -> dict[str, Any]:
    """The transposed differences, cut at what was put at the ends."""
    dim %= len(x.dims)
    ends = [0 if part is None else part.shape[dim] for part in (prepend, append)]
    length = x.shape[dim] + sum(ends)
    back = mapped(grad, dim, _steps(length, n).transposed)
    stop = ends[0] + x.shape[dim]
    found = {"x": cut(back, dim, ends[0], stop)}
    if prepend is not None:
        found["prepend"] = cut(back, dim, 0, ends[0])
    if append is not None:
        found["append"] = cut(back, dim, stop, length)
    return found
