"""Rules of the largest, the k largest, the sorted, the middle along axes.

Values are order statistics (`order`); gradients go to the places where these stood, which are
anywhere. A softmax is log-normal here, not Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from . import order, strata
from .algebra import plus
from .concentration import participation
from .domain import (
    Abstract,
    full,
    limited,
    merge_dim,
    reshaped,
    summed,
    uniform,
)
from .indexing import integers
from .maxpool import passed_to_largest
from .notes import reductions
from .parts import with_axis
from .registry import BACKWARD, FORWARD, backward, forward
from .sliding import covering_all
from .strata import Array, Atom

Dim = int | Sequence[int] | None
Shapes = Sequence[tuple[int, ...]]
BLOCKS = 8  # of neighbouring ranks, told apart as segments


def gaussian_part(x: Abstract) -> Abstract:
    """``x`` as a function of Gaussians: a softmax as exp(z) / n, its logits' moments read back.

    The variance of z is the mean of the logits' and of ln(n^2 E A^2), between which the largest
    shares lie: the four largest within 5 % for logits of variance up to 2, 10 % up to 4.
    """
    if x.chain is not None or not x.note or x.note[0] != "softmax" or not (x.q > 0).all():
        return x
    n = 1.0 / max(x.average_mean, 1e-300)
    q = np.log(x.q * n * n)
    own = max(float(q.reshape(-1)[0]), 1e-12)
    v = (own + _logit_variance(round(n), own)) / 2
    base = Abstract(x.dims, np.zeros_like(x.mean), q * (v / own))
    return x.with_(chain=(base, lambda z: np.exp(np.minimum(z - v / 2, 80.0)) / n))


def _logit_variance(n: int, own: float) -> float:
    """Of the logits whose softmax has n^2 E A^2 = exp(own)."""
    grid = np.linspace(0.0, 6.0, 121) ** 2
    squares = np.log(n * participation(np.full_like(grid, n), grid))
    return float(np.interp(own, squares, grid))


# the largest --------------------------------------------------------------------------------------


def _kept(out: Abstract, x: Abstract, dims: Sequence[int], *, keep: bool) -> Abstract:
    if not keep:
        return out
    return reshaped(out, [1 if d in dims else n for d, n in enumerate(x.shape)])


def _extreme(x: Abstract, dims: Sequence[int], sign: int, *, keep: bool) -> Abstract:
    return _kept(order.extreme(gaussian_part(x), dims, sign), x, dims, keep=keep)


@forward("max", "min")
def largest(
    x: Abstract,
    *,
    dim: int | None = None,
    keepdim: bool = False,
    other: Abstract | None = None,
    op: str = "max",
    shapes: Shapes = (),
    dtypes: Sequence[str] = (),
) -> Any:
    """The largest of an axis and where it is, or of all; of two tensors, element by element."""
    if other is not None:
        name = "maximum" if op == "max" else "minimum"
        return FORWARD[name](x=x, other=other, op=name, shapes=shapes, dtypes=dtypes)
    sign = 1 if op == "max" else -1
    dims = reductions(dim, len(x.dims))
    value = _extreme(x, dims, sign, keep=keepdim)
    if dim is None:
        return value
    return [value, integers(value.shape, x.shape[dims[0]])]


@forward("amax", "amin")
def amax(x: Abstract, dim: Dim = None, keepdim: bool = False, op: str = "amax") -> Abstract:
    """The largest over axes."""
    return _extreme(x, reductions(dim, len(x.dims)), 1 if op == "amax" else -1, keep=keepdim)


@forward("aminmax")
def aminmax(x: Abstract, dim: int | None = None, keepdim: bool = False) -> list[Abstract]:
    """The smallest and the largest."""
    dims = reductions(dim, len(x.dims))
    return [_extreme(x, dims, sign, keep=keepdim) for sign in (-1, 1)]


def to_one_of(grad: Abstract, x: Abstract, dims: Sequence[int]) -> Abstract:
    """The gradient of a row's largest, at one element of the row."""
    narrow = [1 if d in dims else n for d, n in enumerate(x.shape)]
    windows = covering_all(tuple(x.shape[d] for d in dims), (1,) * len(dims))
    return passed_to_largest(reshaped(grad, narrow), x, list(dims), windows)


@backward("amax", "amin", "median", "nanmedian", "kthvalue", "mode")
def amax_back(grad: Abstract, x: Abstract, dim: Dim = None) -> dict[str, Any]:
    """At one element of each row."""
    return {"x": to_one_of(grad, x, reductions(dim, len(x.dims)))}


@backward("max", "min")
def largest_back(
    grad: Abstract,
    x: Abstract,
    *,
    dim: int | None = None,
    other: Abstract | None = None,
    op: str = "max",
    output: Abstract | None = None,
) -> Mapping[str, Any]:
    """At one element of each row; of two tensors, to the larger."""
    if other is not None:
        name = "maximum" if op == "max" else "minimum"
        return dict(BACKWARD[name](grad=grad, x=x, other=other, op=name, output=output))
    return {"x": to_one_of(grad, x, reductions(dim, len(x.dims)))}


@backward("aminmax")
def aminmax_back(
    grads: Sequence[Abstract | None], x: Abstract, dim: int | None = None
) -> dict[str, Any]:
    """Each at one element of the row."""
    dims = reductions(dim, len(x.dims))
    parts = [to_one_of(grad, x, dims).plain() for grad in grads if grad is not None]
    return {"x": parts[0] if len(parts) == 1 else plus(parts[0], parts[1])}


# one rank -----------------------------------------------------------------------------------------


def _at_rank(x: Abstract, dims: Sequence[int], k: float, *, keep: bool) -> Abstract:
    """The k-th smallest over axes, between two ranks their mixture."""
    w = _between(math.prod(x.shape[d] for d in dims), k)
    return _kept(order.extreme(gaussian_part(x), dims, 1, w), x, dims, keep=keep)


def _between(n: int, k: float) -> Array:
    """Weights of the k-th smallest of n, for k between two ranks of their mixture."""
    low, t = math.floor(k), k - math.floor(k)
    w = order.ranked(n, n + 1 - low, n + 1 - low)
    return (1 - t) * w + t * order.ranked(n, n - low, n - low) if t > 1e-9 else w


@forward("median", "nanmedian")
def median(x: Abstract, dim: int | None = None, keepdim: bool = False) -> Any:
    """The middle one, of an even number the lower."""
    dims = reductions(dim, len(x.dims))
    n = math.prod(x.shape[d] for d in dims)
    value = _at_rank(x, dims, (n - 1) // 2 + 1, keep=keepdim)
    return value if dim is None else [value, integers(value.shape, n)]


@forward("kthvalue")
def kthvalue(x: Abstract, k: int, dim: int = -1, keepdim: bool = False) -> list[Abstract]:
    """The k-th smallest."""
    dims = reductions(dim, len(x.dims))
    value = _at_rank(x, dims, k, keep=keepdim)
    return [value, integers(value.shape, x.shape[dims[0]])]


@forward("mode")
def mode(x: Abstract, dim: int = -1, keepdim: bool = False) -> list[Abstract]:
    """Of numbers that are all different the smallest."""
    dims = reductions(dim, len(x.dims))
    value = _extreme(x, dims, -1, keep=keepdim)
    return [value, integers(value.shape, x.shape[dims[0]])]


@forward("quantile", "nanquantile")
def quantile(
    x: Abstract, q: float | Abstract, dim: int | None = None, keepdim: bool = False
) -> Abstract:
    """Between the two ranks around q (n - 1); several of them on a new first axis."""
    dims = reductions(dim, len(x.dims))
    n = math.prod(x.shape[d] for d in dims)
    if not isinstance(q, Abstract):
        return _at_rank(x, dims, 1 + q * (n - 1), keep=keepdim)
    middle = [0.5] * math.prod(q.shape)
    wanted = middle if q.known is None else [float(p) for p in q.known.ravel()]
    ranks = [1 + p * (n - 1) for p in wanted]
    if not q.shape or len(ranks) == 1:
        value = _at_rank(x, dims, ranks[0], keep=keepdim)
        return value if not q.shape else with_axis(value, 0)
    groups = order.grouped(gaussian_part(x), dims, [float(x.shape[d]) for d in dims])
    ends = [(n + 1 - math.ceil(k), n + 1 - math.floor(k)) for k in ranks]
    rows, means = _jointly(groups, n, [_between(n, k) for k in ranks], tuple(ends), 1)
    left = tuple(d for k, d in enumerate(groups.base.dims) if k not in dims)
    atom: Atom = (1,) * len(ranks)
    shape = [len(a) for d in left for a in d]
    mean = np.stack([m.reshape(shape) for m in means])
    out = limited(Abstract(((atom,), *left), mean, np.stack(rows), noise=x.noise))
    if not keepdim:
        return out
    return reshaped(out, [len(ranks), *(1 if d in dims else m for d, m in enumerate(x.shape))])


@backward("quantile", "nanquantile")
def quantile_back(
    grad: Abstract, x: Abstract, q: float | Abstract, dim: int | None = None
) -> dict[str, Any]:
    """At one element of each row, for every quantile."""
    several = isinstance(q, Abstract) and bool(q.shape)
    dims = reductions(dim, len(x.dims))
    return {"x": to_one_of(summed(grad, [0]) if several else grad, x, dims)}


# all ranks ----------------------------------------------------------------------------------------


def _blocks(count: int) -> list[tuple[int, int]]:
    """(first, last) of neighbouring ranks among the first ``count``."""
    ends = np.unique(np.round(np.linspace(0, count, min(count, BLOCKS) + 1)).astype(int))
    return [(int(i) + 1, int(j)) for i, j in pairwise(ends)]


@lru_cache(maxsize=1024)
def _rank_correlations(n: int, blocks: tuple[tuple[int, int], ...]) -> Array:
    """Corr of two different ranks of two blocks: sqrt(p (1 - q) / (q (1 - p))), p below q.

    Exact for uniform numbers; David & Nagaraja 2003, section 4.6.
    """
    p = np.arange(1, n + 1) / (n + 1)
    odds = np.sqrt(p / (1 - p))
    s = len(blocks)
    table = np.zeros((s, s))
    for a, (i, j) in enumerate(blocks):
        for b, (k, m) in enumerate(blocks):
            rows = _some(np.arange(i - 1, j))
            columns = _some(np.arange(k - 1, m))
            ratio = np.minimum.outer(odds[rows], odds[columns]) / np.maximum.outer(
                odds[rows], odds[columns]
            )
            apart = rows[:, None] != columns[None]
            table[a, b] = ratio[apart].mean() if apart.any() else 0.0
    return table


def _some(ranks: np.ndarray) -> np.ndarray:
    return ranks if ranks.size <= 64 else ranks[np.linspace(0, ranks.size - 1, 64).astype(int)]


def ordered(x: Abstract, dim: int, count: int, sign: int) -> Abstract:
    """The ``count`` largest along an axis in order (smallest for sign -1), in blocks of ranks."""
    n = x.shape[dim]
    if n == 1:
        return x.plain()
    blocks = _blocks(count)
    groups = order.grouped(gaussian_part(x), [dim], [float(n)])
    weights = [order.ranked(n, i, j) for i, j in blocks]
    rows, means = _jointly(groups, n, weights, tuple(blocks), sign)
    atom: Atom = tuple(last - first + 1 for first, last in blocks)
    return _with_ranks(groups, dim, atom, rows, means)


def _jointly(
    groups: order.Groups,
    n: int,
    weights: Sequence[Array],
    blocks: tuple[tuple[int, int], ...],
    sign: int,
) -> tuple[list[Array], list[Array]]:
    """Tables of several ranks: each one's own, then of every two, row by row; and their means."""
    chosen = [
        order.select(groups, w, n, sign, top=block == (1, 1))
        for w, block in zip(weights, blocks, strict=True)
    ]
    i, j = groups.left, groups.right
    mine = np.maximum(groups.variance - groups.common, 1e-300)
    rho = np.clip((groups.near - groups.inner) / np.sqrt(mine[i] * mine[j]), -1.0, 1.0)
    covariance = groups.inner - groups.mean[i] * groups.mean[j]
    mean, own = (np.stack(a) for a in zip(*((one.mean, one.own) for one in chosen), strict=True))
    shape = (len(chosen), len(chosen), *(1,) * np.ndim(i))
    together = mean[:, None, i] * mean[None, :, j]
    together = together + _rank_correlations(n, blocks).reshape(shape) * rho * np.sqrt(
        own[:, None, i] * own[None, :, j]
    )
    for a, first in enumerate(chosen):
        for b, second in enumerate(chosen):
            together[a, b] += order.met_between(first.between, second.between, covariance, i, j)
    rows = [*(one.same for one in chosen), *together.reshape(-1, *together.shape[2:])]
    return rows, [one.mean for one in chosen]


def _with_ranks(
    groups: order.Groups, dim: int, atom: Atom, rows: list[Array], means: list[Array]
) -> Abstract:
    base = groups.base
    axis = groups.axes[0]
    others = [c for k, c in enumerate(base.mean.shape) if k != axis]
    q = np.moveaxis(np.stack(rows), 0, axis)
    mean = np.moveaxis(np.stack([m.reshape(others) for m in means]), 0, axis)
    if sum(atom) == 1:
        dims = (*base.dims[:dim], (), *base.dims[dim + 1 :])
        at = (slice(None),) * axis + (0,)
        return Abstract(dims, np.asarray(mean[at]), np.asarray(q[at]), noise=base.noise)
    dims = (*base.dims[:dim], (atom,), *base.dims[dim + 1 :])
    return limited(Abstract(dims, mean, q, noise=base.noise))


@forward("topk")
def topk(x: Abstract, k: int, dim: int = -1, largest: bool = True) -> list[Abstract]:
    """The k largest in order, and their indices, all different."""
    if not x.dims:
        return [x.plain(), integers((), 1)]
    dim %= len(x.dims)
    values = ordered(x, dim, k, 1 if largest else -1)
    return [values, integers(values.shape, x.shape[dim], distinct=dim)]


@forward("sort", "msort")
def sort(x: Abstract, *, dim: int = -1, descending: bool = False, op: str = "sort") -> Any:
    """All numbers of an axis in order, and where they stood."""
    if not x.dims:
        return [x.plain(), integers((), 1)]
    dim = 0 if op == "msort" else dim % len(x.dims)
    n = x.shape[dim]
    values = ordered(x, dim, n, 1 if descending else -1)
    return values if op == "msort" else [values, integers(values.shape, n, distinct=dim)]


def put_back(grad: Abstract, dim: int, n: int) -> Abstract:
    """The gradients of k ranks at k different places of an axis of length n, zeros elsewhere."""
    k = grad.shape[dim]
    grad = uniform(merge_dim(grad, dim), [dim])
    if n == 1:
        return grad.plain()
    axis = sum(map(len, grad.dims[:dim]))
    if k == 1:
        same, apart = grad.q, np.zeros_like(grad.q)
        mean = np.expand_dims(grad.mean, axis)
    else:
        same, apart = (np.asarray(grad.q.take(c, axis)) for c in (0, 1))
        mean = grad.mean
    own = np.zeros(same.shape, bool)
    atoms = [a for d, dims in enumerate(grad.dims) if d != dim for a in dims]
    own[tuple(slice(len(a)) for a in atoms)] = True
    # In another row the same rank stands anywhere.
    anywhere = (k * same + k * (k - 1) * apart) / (n * n)
    here = np.where(own, k / n * same, anywhere)
    there = np.where(own, k * (k - 1) / (n * (n - 1)) * apart, anywhere)
    dims_out = (*grad.dims[:dim], strata.whole(n), *grad.dims[dim + 1 :])
    return Abstract(dims_out, mean * (k / n), np.stack([here, there], axis), noise=grad.noise)


@backward("topk", "sort", "msort")
def topk_back(grad: Abstract, x: Abstract, dim: int = -1, op: str = "topk") -> dict[str, Any]:
    """Each at the place where its number stood."""
    if not x.dims:
        return {"x": grad}
    dim = 0 if op == "msort" else dim % len(x.dims)
    return {"x": put_back(grad, dim, x.shape[dim])}


# places -------------------------------------------------------------------------------------------


@forward("argmax", "argmin")
def argmax(x: Abstract, shapes: Shapes, dim: int | None = None) -> Abstract:
    """Uniform."""
    n = math.prod(x.shape) if dim is None else x.shape[dim % max(len(x.dims), 1)]
    return integers(shapes[0], n)


@forward("argsort")
def argsort(x: Abstract, dim: int = -1) -> Abstract:
    """Uniform, all different along the axis."""
    if not x.dims:
        return full((), 0.0)
    return integers(x.shape, x.shape[dim % len(x.dims)], distinct=dim % len(x.dims))
