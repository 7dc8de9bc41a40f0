"""Rules of max pooling.

The largest of a window is an order statistic (`order`) of what varies within it; windows that
overlap share candidates. Its gradient goes to one element of each window, the likelier the larger
that is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import order, strata
from .boxes import chosen, like, share, zeros
from .domain import Abstract, aligned, limited, merge_dim, uniform
from .gaussian import moments
from .indexing import integers
from .maps import mapped
from .notes import Factored, unchained
from .pool import Size, rank_of, sizes_of
from .registry import backward, forward
from .sliding import Windows, covering_all, sliding
from .strata import Array

Shapes = Sequence[tuple[int, ...]]


# the largest --------------------------------------------------------------------------------------


def _windows(
    x: Abstract,
    shape: tuple[int, ...],
    *,
    op: str,
    kernel_size: Size,
    stride: Size | None,
    padding: Size,
    dilation: Size,
) -> tuple[list[int], Windows]:
    """The pooled axes, and their windows."""
    rank = rank_of(op)
    dims = list(range(len(x.dims) - rank, len(x.dims)))
    sizes = sizes_of(kernel_size, rank)
    steps = (
        tuple(sizes_of(stride, rank, sizes)),
        tuple(sizes_of(padding, rank, [0])),
        tuple(sizes_of(dilation, rank, [1])),
    )
    lengths, counts = tuple(x.shape[d] for d in dims), tuple(shape[d] for d in dims)
    return dims, sliding(lengths, counts, tuple(sizes), steps)


def pooled(x: Abstract, dims: Sequence[int], windows: Windows) -> Abstract:
    """The largest of every window."""
    n = math.prod(windows.sizes)
    groups = order.grouped(x, dims, windows.sizes)
    found = order.select(groups, windows.density, n)
    i, j = groups.left, groups.right
    present = [k for k, d in enumerate(dims) if groups.base.dims[d]]
    moved = np.moveaxis(groups.base.q, groups.axes, range(len(groups.axes)))
    tables = np.empty((2,) * len(present) + found.same.shape)
    for differ in np.ndindex(*(2,) * len(present)):
        apart = [False] * len(dims)
        for k, own in zip(present, differ, strict=True):
            apart[k] = bool(own)
        if not any(apart) or any(a and windows.counts[k] < 2 for k, a in enumerate(apart)):
            tables[differ] = found.same
            continue
        weights: Array = np.ones(())
        for k, own in zip(present, differ, strict=True):
            alike = 0.0 if own else 1.0 / windows.sizes[k]
            weights = np.multiply.outer(weights, np.array([alike, 1.0 - alike]))
        elements = np.asarray(np.tensordot(weights, moved, len(present)))
        covariance = elements - groups.mean[i] * groups.mean[j]
        both = windows.overlaps[tuple(apart)] * np.sqrt(found.own[i] * found.own[j])
        rho = _own_correlation(groups)
        tables[differ] = found.mean[i] * found.mean[j] + both * rho
        tables[differ] += order.met(found.between, covariance, i, j)
    return _on_windows(groups, tables, found.mean, dims, windows.counts)


def _own_correlation(groups: order.Groups) -> Array:
    own = np.sqrt(np.maximum(groups.variance - groups.common, 1e-300))
    return np.clip((groups.near - groups.inner) / (own[groups.left] * own[groups.right]), -1.0, 1.0)


def _on_windows(
    groups: order.Groups, tables: Array, mean: Array, dims: Sequence[int], counts: Sequence[int]
) -> Abstract:
    """Tables with the pooled axes in front, on the result's axes."""
    base = groups.base
    out = list(base.dims)
    for d, n in zip(dims, counts, strict=True):
        out[d] = strata.whole(n)
    q = np.moveaxis(tables, range(len(groups.axes)), groups.axes)
    means = mean.reshape([n for k, n in enumerate(base.mean.shape) if k not in groups.axes])
    means = np.expand_dims(means, groups.axes)
    for axis, d in reversed(list(zip(groups.axes, [d for d in dims if base.dims[d]], strict=True))):
        if not out[d]:
            q, means = np.asarray(q.take(0, axis)), np.asarray(means.take(0, axis))
    return limited(Abstract(tuple(out), means, q, noise=base.noise))


_MAX = (
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "mkldnn_max_pool2d", "mkldnn_max_pool3d",
)  # fmt: skip


@forward(*_MAX)
def max_pool(
    x: Abstract,
    *,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    shapes: Shapes,
    op: str,
) -> list[Abstract]:
    """The largest of every window, and where it was."""
    dims, windows = _windows(
        x,
        shapes[0],
        op=op,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
    )
    places = math.prod(x.shape[d] for d in dims)
    return [pooled(x, dims, windows), *(integers(shape, places) for shape in shapes[1:])]


@backward(*_MAX)
def max_pool_back(
    grad: Abstract,
    x: Abstract,
    *,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    op: str,
) -> dict[str, Any]:
    """To one element of each window."""
    dims, windows = _windows(
        x,
        grad.shape,
        op=op,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
    )
    return {"x": passed_to_largest(grad, x, dims, windows)}


def passed_to_largest(
    grad: Abstract, x: Abstract, dims: Sequence[int], windows: Windows
) -> Abstract:
    """Every window's gradient at one element of it.

    Between windows an element is chosen with probability 1 / n each: the mean's transpose. Within a
    window exactly one is; two channels choose the same one as often as their numbers correlate.
    """
    n = max(math.prod(windows.sizes), 1.0)
    for d in dims:
        grad = uniform(merge_dim(grad, d), [d])
    even = grad
    for k, d in enumerate(dims):
        even = mapped(even, d, windows.means[k].transposed, (strata.whole(x.shape[d]),))
    even, extra = aligned([even, _concentrated(grad, x, dims, windows, n)])
    out = limited(Abstract(even.dims, even.mean, even.q + extra.q, noise=grad.noise))
    return _likelier_if_large(out, x, dims, windows, n)


def _concentrated(
    grad: Abstract, x: Abstract, dims: Sequence[int], windows: Windows, n: float
) -> Abstract:
    """What one choice a window adds to even shares, by class; the axes are the argument's."""
    groups = order.grouped(x, dims, windows.sizes)
    alone = tuple(() if d in dims else dim for d, dim in enumerate(groups.base.dims))
    rho = Abstract(
        alone, groups.mean.reshape([len(a) for d in alone for a in d]), _own_correlation(groups)
    )
    own = tuple(() if d in dims else dim for d, dim in enumerate(grad.dims))
    axes = grad.axes(dims)
    mean = np.asarray(grad.mean.squeeze(tuple(axes)))
    table = np.moveaxis(grad.q, axes, range(len(axes)))[(0,) * len(axes)]
    rho, here = aligned([rho, Abstract(own, mean, table)])
    least = math.prod(windows.inverses)
    agree = least + (1.0 - least) * 2.0 / math.pi * np.arcsin(np.clip(rho.q, -1.0, 1.0))
    shape = [2 if x.shape[d] > 1 else 1 for d in dims]
    tables = np.zeros((*shape, *here.q.shape))
    for differ in np.ndindex(*shape):
        often, even, pairs = 1.0, 1.0, 1.0
        for k, apart in enumerate(differ):
            length, inverse = windows.lengths[k], windows.inverses[k]
            often *= windows.counts[k] / (length * (length - 1.0) if apart else length)
            even *= 1.0 - inverse if apart else inverse
            pairs *= windows.sizes[k] - 1.0 if apart else 1.0
        chosen = (1.0 - agree) * pairs / max(n - 1.0, 1e-9) if any(differ) else agree
        tables[differ] = often * here.q * (chosen - even)
    out = list(here.dims)
    places = [sum(map(len, here.dims[:d])) for d in dims]
    for d in dims:
        out[d] = strata.whole(x.shape[d])
    kept = [k for k, d in enumerate(dims) if out[d]]
    tables = tables.reshape([2] * len(kept) + list(here.q.shape))
    targets = [places[k] + i for i, k in enumerate(kept)]
    q = np.moveaxis(tables, range(len(kept)), targets)
    return Abstract(tuple(out), np.zeros([len(a) for d in out for a in d]), q)


def _likelier_if_large(
    grad: Abstract, x: Abstract, dims: Sequence[int], windows: Windows, n: float
) -> Abstract:
    """With the note that it is concentrated on large elements, for the function before the pool."""
    base, _ = unchained(x)
    if x.chain is None or base.dims != x.dims or n <= 1:
        return grad
    groups = order.grouped(base, dims, windows.sizes)
    variance, common = float(groups.variance.mean()), float(groups.common.mean())
    center, width = float(groups.mean.mean()), math.sqrt(max(variance, 1e-300))

    def root_chance(z: Array) -> Array:
        return np.sqrt(n * order.chance(n, (z - center) / width, common / max(variance, 1e-300)))

    mean, q = moments(base, root_chance)
    given, weight = aligned([grad, Abstract(base.dims, mean, q)])
    source = Abstract(
        given.dims,
        given.mean / np.maximum(weight.mean, 1e-12),
        given.q / np.maximum(weight.q, 1e-12),
        noise=grad.noise,
    )
    return grad.with_(note=(Factored(source, base, root_chance),))


# sizes that depend on the input -------------------------------------------------------------------


_ADAPTIVE_MAX = ("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
_FRACTIONAL = ("fractional_max_pool2d", "fractional_max_pool3d")


def _adaptive_windows(x: Abstract, shape: tuple[int, ...], op: str) -> tuple[list[int], Windows]:
    dims = list(range(len(x.dims) - rank_of(op), len(x.dims)))
    return dims, covering_all(tuple(x.shape[d] for d in dims), tuple(shape[d] for d in dims))


@forward(*_ADAPTIVE_MAX, *_FRACTIONAL)
def adaptive_max_pool(x: Abstract, *, shapes: Shapes, op: str) -> list[Abstract]:
    """The largest of windows that cover the axes."""
    dims, windows = _adaptive_windows(x, shapes[0], op)
    places = math.prod(x.shape[d] for d in dims)
    return [pooled(x, dims, windows), *(integers(shape, places) for shape in shapes[1:])]


@backward(*_ADAPTIVE_MAX, *_FRACTIONAL)
def adaptive_max_pool_back(grad: Abstract, x: Abstract, op: str) -> dict[str, Any]:
    """To one element of each window."""
    return {"x": passed_to_largest(grad, x, *_adaptive_windows(x, grad.shape, op))}


@forward("max_unpool2d", "max_unpool3d")
def max_unpool(x: Abstract, shapes: Shapes) -> Abstract:
    """Each number at one place of a larger tensor, zeros elsewhere."""
    p = math.prod(x.shape) / math.prod(shapes[0])
    return chosen(share(shapes[0], min(p, 1.0)), like(x, shapes[0]), zeros(shapes[0]))


@backward("max_unpool2d", "max_unpool3d")
def max_unpool_back(grad: Abstract, x: Abstract) -> dict[str, Any]:
    """The gradient at these places."""
    return {"x": like(grad, x.shape)}
