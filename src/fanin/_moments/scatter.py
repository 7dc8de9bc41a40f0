"""Rules of writing and adding at indices.

Adding is linear: sums over the elements that meet at one place. Writing replaces a share of the
elements; which ones is known, or uniform.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import maps, strata
from .boxes import chosen, like, share, zeros
from .domain import (
    Abstract,
    added,
    constant,
    cut,
    limited,
    measured,
    multiplied,
    reshaped,
    scaled,
)
from .index import widened
from .indexing import MAX_FOLLOWED, gathered, scattered
from .order import largest_of
from .registry import backward, forward

MAX_MARKED = 1 << 22  # elements of a tensor whose written places are marked one by one

Source = Abstract | float


def plus(a: Abstract, b: Abstract) -> Abstract:
    """Their sum; nothing is added to zeros."""
    return limited(added(a, b)) if a.q.any() else b


# one index for every position ---------------------------------------------------------------------


def _marked(x: Abstract, dim: int, index: Abstract) -> Abstract:
    """1 where ``scatter`` writes, else 0."""
    if index.known is not None and math.prod(x.shape) <= MAX_MARKED:
        mark = np.zeros(x.shape)
        inner = tuple(slice(0, n) if d != dim else slice(None) for d, n in enumerate(index.shape))
        np.put_along_axis(mark[inner], index.known.astype(np.int64) % x.shape[dim], 1.0, dim)
        return measured(mark).plain()
    found = widened(scattered(constant(index.shape, 1.0), dim, index, x.shape[dim]), x.shape)
    p = min(found.average_mean, 1.0)
    # Twice at one place counts once.
    return Abstract(found.dims, np.minimum(found.mean, 1.0), np.minimum(found.q, p))


def _source(src: Source | None, value: Source | None) -> Source:
    given = src if src is not None else value
    assert given is not None
    return given


def as_tensor(source: Source, shape: tuple[int, ...]) -> Abstract:
    """A number as a tensor of that shape."""
    return source if isinstance(source, Abstract) else constant(shape, float(source))


@forward("scatter")
def scatter(
    x: Abstract,
    dim: int,
    index: Abstract,
    *,
    src: Source | None = None,
    value: Source | None = None,
    reduce: str | None = None,
) -> Abstract:
    """``x`` with ``src`` at these indices of one axis."""
    source = _source(src, value)
    if not x.dims:
        return reshaped(as_tensor(source, ()), ())
    dim %= len(x.dims)
    if reduce == "add":
        return scatter_add(x, dim, index, as_tensor(source, index.shape))
    mark = _marked(x, dim, index)
    new = like(source, x.shape) if isinstance(source, Abstract) else constant(x.shape, source)
    if reduce == "multiply":
        new = multiplied(x, new)
    return chosen(mark, new, x)


@backward("scatter")
def scatter_back(
    grad: Abstract,
    x: Abstract,
    dim: int,
    index: Abstract,
    *,
    src: Source | None = None,
    reduce: str | None = None,
) -> dict[str, Any]:
    """Where nothing was written to ``x``, there to ``src``."""
    dim %= max(len(x.dims), 1)
    if reduce == "add":
        return scatter_add_back(grad, dim, index, src) if x.dims else {"x": grad}
    kept = complement(_marked(x, dim, index)) if x.dims else zeros(())
    found: dict[str, Any] = {"x": limited(multiplied(grad, kept))}
    if isinstance(src, Abstract):
        found["src"] = _read(grad, dim, index, src)
    return found


def complement(u: Abstract) -> Abstract:
    """1 - u."""
    q = 1.0 - u.lifted(strata.left) - u.lifted(strata.right) + u.q
    return Abstract(u.dims, 1.0 - u.mean, q)


def _read(grad: Abstract, dim: int, index: Abstract, src: Abstract) -> Abstract:
    """The gradient at these indices, zeros for what ``src`` has beyond them."""
    for d, n in enumerate(index.shape):
        grad = cut(grad, d, 0, n) if d != dim else grad
    return widened(gathered(grad, dim, index), src.shape)


@forward("scatter_add")
def scatter_add(x: Abstract, dim: int, index: Abstract, src: Abstract) -> Abstract:
    """``x`` plus the sums of ``src`` over equal indices."""
    if not x.dims:
        return plus(x, reshaped(src, ()))
    dim %= len(x.dims)
    for d, n in enumerate(index.shape):
        src = cut(src, d, 0, n)
    return plus(x, widened(scattered(src, dim, index, x.shape[dim]), x.shape))


@backward("scatter_add")
def scatter_add_back(
    grad: Abstract, dim: int, index: Abstract, src: Abstract | float | None = None
) -> dict[str, Any]:
    """To ``x`` all of it, to ``src`` what stands at its indices."""
    if not isinstance(src, Abstract):
        return {"x": grad}
    if not grad.dims:
        return {"x": grad, "src": reshaped(grad, src.shape)}
    return {"x": grad, "src": _read(grad, dim % len(grad.dims), index, src)}


@forward("scatter_reduce")
def scatter_reduce(
    x: Abstract,
    dim: int,
    index: Abstract,
    src: Abstract,
    *,
    reduce: str,
    include_self: bool = True,
) -> Abstract:
    """Sum, mean, product, largest or smallest of what meets at an index.

    A mean over d elements has weights 1 / d each; the largest of them is taken at the mean d.
    """
    if not x.dims:
        return reshaped(x, ())
    dim %= len(x.dims)
    n = x.shape[dim]
    meeting = index.shape[dim] / n
    if reduce == "sum":
        return scatter_add(x if include_self else zeros(x.shape), dim, index, src)
    if reduce == "mean":
        return _mean_of(x, dim, index, src, include_self=include_self)
    if reduce in {"amax", "amin"}:
        count = meeting + include_self
        return largest_of(like(src, x.shape), max(count, 1.0), sign=1 if reduce == "amax" else -1)
    power = like(src, x.shape)
    product = Abstract(power.dims, power.mean**meeting, np.maximum(power.q, 0.0) ** meeting)
    return multiplied(x, product) if include_self else product


def _mean_of(
    x: Abstract, dim: int, index: Abstract, src: Abstract, *, include_self: bool
) -> Abstract:
    n, known = x.shape[dim], index.known
    column = None if known is None else _column(known, dim)
    if column is None:
        factor = 1.0 / max(index.shape[dim] / n + include_self, 1.0)
        total = scatter_add(x if include_self else zeros(x.shape), dim, index, src)
        return scaled(total, factor).plain()
    column = column.astype(np.int64) % n
    counts = np.bincount(column, minlength=n)
    divisor = np.maximum(counts + include_self, 1)
    back = maps.picks_of(column, n).transposed
    linear = maps.Linear(back.rows, back.columns, 1.0 / divisor[back.rows], n, column.size)
    for d, m in enumerate(index.shape):
        src = cut(src, d, 0, m)
    total = widened(maps.mapped(src, dim, linear), x.shape)
    kept = 1.0 / divisor if include_self else (counts == 0).astype(float)
    if not kept.any() or not x.q.any():
        return total
    shape = [n if d == dim else 1 for d in range(len(x.dims))]
    return plus(multiplied(x, measured(kept.reshape(shape)).plain()), total)


def _column(known: np.ndarray, dim: int) -> np.ndarray | None:
    """The indices along ``dim`` where they are the same at all other positions."""
    lines = np.moveaxis(known, dim, 0)
    first = lines.reshape(lines.shape[0], -1)[:, 0]
    alike = all(
        step == 0 or n == 1 for step, n in zip(lines.strides[1:], lines.shape[1:], strict=True)
    )
    if alike or (known.size <= MAX_FOLLOWED and (first == lines.T).all()):
        return np.asarray(first)
    return None


@backward("scatter_reduce")
def scatter_reduce_back(
    grad: Abstract,
    x: Abstract,
    dim: int,
    index: Abstract,
    src: Abstract,
    *,
    reduce: str,
    include_self: bool = True,
) -> dict[str, Any]:
    """Of a sum all of it, of a mean the share of one, of the largest to one of those that met."""
    if not x.dims:
        return {"x": grad, "src": reshaped(grad, src.shape)}
    dim %= len(x.dims)
    meeting = max(index.shape[dim] / x.shape[dim] + include_self, 1.0)
    read = _read(grad, dim, index, src)
    if reduce == "sum":
        return {"x": grad if include_self else zeros(x.shape), "src": read}
    if reduce == "mean":
        own = scaled(grad, 1.0 / meeting).plain() if include_self else zeros(x.shape)
        return {"x": own, "src": scaled(read, 1.0 / meeting).plain()}
    p = 1.0 / meeting
    own = multiplied(grad, share(x.shape, p)) if include_self else zeros(x.shape)
    return {"x": own, "src": multiplied(read, share(src.shape, p))}
