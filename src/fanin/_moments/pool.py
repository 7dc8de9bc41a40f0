"""Rules of average pooling: linear maps axis by axis, exact at edges too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from . import maps
from .domain import Abstract, averaged, expanded, scaled
from .images import imaged
from .maps import Linear, resampled
from .notes import reduced
from .registry import backward, forward

Shapes = Sequence[tuple[int, ...]]
Size = int | Sequence[int]


def sizes_of(value: Size | None, count: int, default: Sequence[int] = ()) -> list[int]:
    """One number an axis."""
    given = [value] if isinstance(value, int) else list(value or ())
    given = given or list(default)
    return given * count if len(given) == 1 else given


def rank_of(op: str) -> int:
    """How many axes an op pools: the digit before the d in its name."""
    return int(op[op.index("d", op.index("pool")) - 1])


@lru_cache(maxsize=1024)
def covering(n: int, out: int) -> tuple[tuple[int, int], ...]:
    """(start, stop) of every window."""
    return tuple((k * n // out, -(-(k + 1) * n // out)) for k in range(out))


@lru_cache(maxsize=1024)
def adaptive_mean(n: int, out: int) -> Linear:
    """Means over windows that cover the axis."""
    spans = covering(n, out)
    longest = max(j - i for i, j in spans)
    at = np.stack(
        [np.where(i + np.arange(longest) < j, i + np.arange(longest), -1) for i, j in spans]
    )
    weights = np.array([[1.0 / (j - i)] for i, j in spans])
    return maps.from_taps(at, weights, n)


# the mean -----------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def averaging(n: int, out: int, window: tuple[int, int, int], divisor: str) -> Linear:
    """Means of windows of one axis.

    Args:
        n: its length.
        out: how many windows.
        window: their size, stride and padding.
        divisor: ``padded`` counts the padding, not what ``ceil_mode`` adds beyond it; ``there`` only
            elements; ``none`` sums.
    """
    size, stride, padding = window
    begins = np.arange(out) * stride - padding
    at = np.add.outer(begins, np.arange(size))
    there = (at >= 0) & (at < n)
    padded = np.minimum(begins + size, n + padding) - begins
    count = {"padded": padded, "there": there.sum(axis=1), "none": np.ones(out)}[divisor]
    weights = there / np.maximum(count, 1)[:, None]
    return maps.from_taps(np.where(there, at, -1), weights, n)


_AVERAGE = ("avg_pool1d", "avg_pool2d", "avg_pool3d", "mkldnn_avg_pool2d")


def _averages(
    x: Abstract,
    shape: tuple[int, ...],
    *,
    kernel_size: Size,
    stride: Size | None,
    padding: Size,
    divisor: str,
    op: str,
) -> list[tuple[int, Linear]]:
    """(axis, map) of every pooled axis."""
    rank = rank_of(op)
    size = sizes_of(kernel_size, rank)
    step, pad = sizes_of(stride, rank, size), sizes_of(padding, rank, [0])
    first = len(x.dims) - rank
    return [
        (
            first + k,
            averaging(x.shape[first + k], shape[first + k], (size[k], step[k], pad[k]), divisor),
        )
        for k in range(rank)
    ]


def _divisor(count_include_pad: bool, divisor_override: int | None) -> str:
    if divisor_override:
        return "none"
    return "padded" if count_include_pad else "there"


@forward(*_AVERAGE)
def avg_pool(
    x: Abstract,
    *,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    shapes: Shapes,
    op: str,
) -> Abstract:
    """The mean of every window, axis by axis."""
    divisor = _divisor(count_include_pad, divisor_override)
    axes = _averages(
        x,
        shapes[0],
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        divisor=divisor,
        op=op,
    )
    out = x
    for dim, linear in axes:
        out = resampled(out, dim, linear)
    if divisor_override:
        return scaled(out, 1.0 / divisor_override).plain()
    return imaged(out, x, axes)


@backward(*_AVERAGE)
def avg_pool_back(
    grad: Abstract,
    x: Abstract,
    *,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    op: str,
) -> dict[str, Any]:
    """The gradient shared out over each window."""
    divisor = _divisor(count_include_pad, divisor_override)
    axes = _averages(
        x,
        grad.shape,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        divisor=divisor,
        op=op,
    )
    out = grad
    for dim, linear in axes:
        out = resampled(out, dim, linear.transposed)
    if divisor_override:
        return {"x": scaled(out, 1.0 / divisor_override).plain()}
    return {"x": imaged(out, grad, [(dim, linear.transposed) for dim, linear in axes])}


_ADAPTIVE = (
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d", "mkldnn_adaptive_avg_pool2d",
)  # fmt: skip


@forward(*_ADAPTIVE)
def adaptive_avg_pool(x: Abstract, *, shapes: Shapes, op: str) -> Abstract:
    """Means over windows that cover the axes; over all of them, if there is one."""
    first = len(x.dims) - rank_of(op)
    dims = range(first, len(x.dims))
    if all(shapes[0][d] == 1 for d in dims):
        count = math.prod(x.shape[d] for d in dims)
        return reduced(averaged(x, dims, keep=True), x, count)
    for d in dims:
        if x.shape[d] != shapes[0][d]:
            x = resampled(x, d, adaptive_mean(x.shape[d], shapes[0][d]))
    return x


@backward(*_ADAPTIVE)
def adaptive_avg_pool_back(grad: Abstract, x: Abstract, op: str) -> dict[str, Any]:
    """The gradient shared out over each window."""
    first = len(x.dims) - rank_of(op)
    dims = range(first, len(x.dims))
    if all(grad.shape[d] == 1 for d in dims):
        count = math.prod(x.shape[d] for d in dims)
        return {"x": scaled(expanded(grad, x.shape), 1.0 / count)}
    for d in dims:
        if x.shape[d] != grad.shape[d]:
            grad = resampled(grad, d, adaptive_mean(x.shape[d], grad.shape[d]).transposed)
    return {"x": grad}
