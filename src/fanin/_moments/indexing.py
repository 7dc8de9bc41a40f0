"""Reading and adding at indices, known or not.

Two readings are the same number with the probability that their indices are equal. For known
indices that is counted, pair class by pair class; for unknown ones it follows from the moments of
the indices themselves: uniform on 0..n-1 with correlation r they are equal with probability
r + (1 - r) / n, which is 0 for r = -1 / (n - 1), drawn without replacement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from . import maps, strata
from .domain import (
    Abstract,
    added,
    aligned,
    expanded,
    full,
    limited,
    merge_dim,
    multiplied,
    reshaped,
    summed,
    uniform,
)
from .strata import Dims

MAX_FOLLOWED = 1 << 19  # known indices that are counted one by one

Known = npt.NDArray[np.integer]


def integers(shape: Sequence[int], n: int, *, distinct: int | None = None) -> Abstract:
    """Unknown indices, uniform on 0..n-1; all different along axis ``distinct``."""
    mean = (n - 1) / 2
    x = full(shape, (n - 1) * (2 * n - 1) / 6, mean)
    if distinct is not None and x.dims[distinct] and n > 1:
        axis = x.axes([distinct])[0]
        place = [0] * x.q.ndim
        place[axis] = 1
        x.q[tuple(place)] = mean * mean - (n + 1) / 12
    return x


def is_mask(x: Abstract) -> bool:
    """Whether it holds truth values rather than indices: x^2 = x throughout."""
    if x.known is not None:
        return bool(x.known.dtype == bool)
    m = x.average_mean
    return 0.0 <= m <= 1.0 and abs(x.second_moment - m) <= 1e-9


def places(index: Abstract) -> Known | None:
    """Known indices, negative ones counting back, where there are few enough to follow."""
    if index.known is None or index.known.size > MAX_FOLLOWED:
        return None
    return index.known if index.known.dtype != bool else index.known.astype(np.int64)


# how often two indices are the same ---------------------------------------------------------------


def coincidence(index: Abstract, n: int) -> Abstract:
    """The probability that two indices are equal, by the class of their places; ``mean`` is 1.

    An axis along which indices are only broadcast has length 1.
    """
    if index.known is not None:
        core = _core(index.known)
        if core.size <= MAX_FOLLOWED:
            return _counted(core, n)
    x = uniform(index)
    mean = float(x.mean.reshape(()))
    variance = float(x.q.reshape(-1)[0]) - mean * mean
    if variance <= 1e-12 * max(mean * mean, 1.0):
        return Abstract(x.dims, np.ones_like(x.mean), np.ones_like(x.q))
    r = np.clip((x.q - mean * mean) / variance, -1.0, 1.0)
    q = np.clip(r + (1 - r) / n, 0.0, 1.0)
    return Abstract(x.dims, np.ones_like(x.mean), q)


def _core(known: npt.NDArray) -> npt.NDArray:
    """Without the copies along broadcast axes."""
    index = tuple(
        slice(0, 1) if step == 0 else slice(None)
        for step, n in zip(known.strides, known.shape, strict=True)
    )
    return known[index]


_COUNTED: dict[tuple[maps.Fingerprint, int], Abstract] = {}


def _counted(known: Known, n: int) -> Abstract:
    key = (maps.fingerprint(known), n)
    found = _COUNTED.get(key)
    if found is None:
        dims: Dims = tuple(map(strata.whole, known.shape))
        flat = tuple(atom for dim in dims for atom in dim)
        old = strata.whole(n)
        sums = maps.pair_sums(maps.picks_of(known, n), old, flat)
        same = sums[..., 0] if old else sums
        counts = np.ones(())
        for atom in flat:
            counts = np.multiply.outer(counts, strata.pairs(atom))
        found = Abstract(dims, np.ones((1,) * len(flat)), same / np.maximum(counts, 1.0))
        if len(_COUNTED) > maps.MAX_KEPT:
            _COUNTED.clear()
        _COUNTED[key] = found
    return found


# one index for neighbouring axes ------------------------------------------------------------------


def taken(x: Abstract, dim: int, index: Abstract, span: int = 1) -> Abstract:
    """Axes ``dim`` .. read as one, at these places; the index's axes replace them."""
    n = math.prod(x.shape[dim : dim + span])
    known = places(index)
    if known is not None:
        new = tuple(map(strata.whole, known.shape))
        linear = maps.picks_of(known, n)
        return maps.mapped(x, dim, linear, new if len(new) != 1 else None, span=span)
    p = coincidence(index, n)
    rank = len(p.dims)
    wide = _inserted(p, dim, len(x.dims) - span)
    same, apart = _same_or_apart(x, dim, span)
    rows: Dims = ((),) * rank
    same, apart = (
        Abstract((*y.dims[:dim], *rows, *y.dims[dim:]), y.mean, y.q) for y in (same, apart)
    )
    return _blended(wide, same, apart).with_(noise=x.noise)


def _inserted(p: Abstract, dim: int, rest: int) -> Abstract:
    """``p`` with ``dim`` axes of length 1 before it, and the rest after."""
    return Abstract((*((),) * dim, *p.dims, *((),) * (rest - dim)), p.mean, p.q)


def _same_or_apart(x: Abstract, dim: int, span: int) -> tuple[Abstract, Abstract]:
    """E x x' at one index of the joint axis, and at two different ones; without that axis."""
    one, _ = maps.joined(x, dim, span)
    one = uniform(merge_dim(one, dim), [dim])
    dims = (*one.dims[:dim], *one.dims[dim + 1 :])
    if not one.dims[dim]:
        whole = Abstract(dims, one.mean, one.q)
        return whole, whole
    axis = one.axes([dim])[0]
    mean = np.asarray(one.mean.take(0, axis))
    same, apart = (Abstract(dims, mean, np.asarray(one.q.take(k, axis))) for k in (0, 1))
    return same, apart


def _blended(p: Abstract, same: Abstract, apart: Abstract) -> Abstract:
    """P of the same, 1 - P of two different ones."""
    p, same, apart = aligned([p, same, apart])
    return limited(
        Abstract(p.dims, same.mean * np.ones_like(p.mean), p.q * same.q + (1 - p.q) * apart.q)
    )


def given_back(grad: Abstract, dim: int, index: Abstract, lengths: Sequence[int]) -> Abstract:
    """The transpose of `taken`: what was read at the same place is added up there.

    Args:
        grad: the index's axes from ``dim`` on.
        dim: where they start.
        index: the places in the joint axis.
        lengths: of the axes that they were read from.
    """
    n, span = math.prod(lengths), len(index.dims)
    known = places(index)
    new = tuple(map(strata.whole, lengths))
    if known is not None:
        back = maps.picks_of(known, n).transposed
        return maps.mapped(grad, dim, back, new if len(new) > 1 else None, span=span)
    p = _inserted(coincidence(index, n), dim, len(grad.dims) - span)
    where = list(range(dim, dim + span))
    total = _gathered_up(grad, p, where, n)
    out = _with_axis(*total, dim, n, noise=grad.noise)
    return out if len(new) == 1 else _split(out, dim, lengths)


def _gathered_up(
    grad: Abstract, p: Abstract, where: list[int], n: int
) -> tuple[Abstract, Abstract]:
    """Sums over pairs of equal and of different places, per pair of positions of the new axis."""
    rest = Abstract(p.dims, p.mean, 1.0 - p.q)
    equal = summed(multiplied(grad, p), where)
    apart = summed(multiplied(grad, rest), where)
    pairs = n * (n - 1)
    same = Abstract(equal.dims, equal.mean / n, equal.q / n)
    return same, Abstract(apart.dims, apart.mean / n, apart.q / pairs if pairs else apart.q * 0.0)


def _with_axis(same: Abstract, apart: Abstract, dim: int, n: int, *, noise: float) -> Abstract:
    """A new axis of which both tables are known."""
    dims = (*same.dims[:dim], strata.whole(n), *same.dims[dim:])
    if n == 1:
        return Abstract(dims, same.mean, same.q, noise=noise)
    axis = sum(map(len, same.dims[:dim]))
    q = np.stack([same.q, apart.q], axis)
    return Abstract(dims, np.expand_dims(same.mean, axis), q, noise=noise)


def _split(x: Abstract, dim: int, lengths: Sequence[int]) -> Abstract:
    return reshaped(x, (*x.shape[:dim], *lengths, *x.shape[dim + 1 :]))


# one index for every position ---------------------------------------------------------------------


def gathered(x: Abstract, dim: int, index: Abstract) -> Abstract:
    """y[.., i, ..] = x[.., index[.., i, ..], ..]: the other axes keep their places."""
    n = x.shape[dim]
    p = coincidence(index, n)
    same, apart = _same_or_apart(x, dim, 1)
    same, apart = (Abstract((*y.dims[:dim], (), *y.dims[dim:]), y.mean, y.q) for y in (same, apart))
    return _blended(expanded(p, index.shape), same, apart).with_(noise=x.noise)


def scattered(src: Abstract, dim: int, index: Abstract, n: int) -> Abstract:
    """The transpose of `gathered`: sums of ``src`` over equal indices, on an axis of length n."""
    p = coincidence(index, n)
    return _with_axis(*_gathered_up(src, p, [dim], n), dim, n, noise=src.noise)


def plus(a: Abstract, b: Abstract) -> Abstract:
    """Their sum; nothing is added to zeros."""
    return b if not a.q.any() and a.shape == b.shape else limited(added(a, b))
