"""Rules of resizing images and reading them between pixels: linear maps axis by axis.

A new pixel is a weighted sum of old ones; two of them share what both read. Weights as torch has
them: ``aten/src/ATen/native/UpSample.h`` and ``UpSampleKernel.cpp`` (antialiased filters).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from . import maps, strata
from .domain import Abstract, contracted, full, measured, merge_dim, uniform
from .maps import Linear, carried, resampled
from .registry import backward, forward
from .strata import Array
from .views import repeated, unrepeated

Shapes = Sequence[tuple[int, ...]]


# one axis -----------------------------------------------------------------------------------------


def _cubic(z: Array, a: float) -> Array:
    z = np.abs(z)
    near = ((a + 2) * z - (a + 3)) * z * z + 1
    far = ((a * z - 5 * a) * z + 8 * a) * z - 4 * a
    return np.asarray(np.where(z <= 1, near, np.where(z < 2, far, 0.0)))


def _triangle(z: Array) -> Array:
    return np.asarray(np.maximum(1.0 - np.abs(z), 0.0))


def _lanczos(z: Array) -> Array:
    return np.asarray(np.where(np.abs(z) < 3, np.sinc(z) * np.sinc(z / 3), 0.0))


@lru_cache(maxsize=1024)
def nearest(n: int, out: int, scale: float, *, exact: bool) -> Linear:
    """Every new position reads one old one."""
    at = np.floor((np.arange(out) + (0.5 if exact else 0.0)) * scale)
    return maps.picks(np.clip(at, 0, n - 1).astype(int), n)


@lru_cache(maxsize=1024)
def between(n: int, out: int, scale: float, *, align: bool, cubic: bool) -> Linear:
    """Every new position reads two neighbours, or four."""
    at = np.arange(out) * scale if align else (np.arange(out) + 0.5) * scale - 0.5
    if not align and not cubic:
        at = np.maximum(at, 0.0)
    low = np.floor(at).astype(int)
    taps = low[:, None] + (np.arange(-1, 3) if cubic else np.arange(2))
    distance = taps - at[:, None]
    weights = _cubic(distance, -0.75) if cubic else _triangle(distance)
    return maps.from_taps(np.clip(taps, 0, n - 1), weights, n)


_FILTERS: dict[str, tuple[float, Callable[[Array], Array]]] = {
    "bilinear": (1.0, _triangle),
    "bicubic": (2.0, lambda z: _cubic(z, -0.5)),
    "lanczos": (3.0, _lanczos),
}


@lru_cache(maxsize=1024)
def antialiased(n: int, out: int, scale: float, kind: str) -> Linear:
    """A filter as wide as a new pixel, normalised."""
    radius, weight = _FILTERS[kind]
    wide = max(scale, 1.0)
    center = scale * (np.arange(out) + 0.5)
    first = np.maximum((center - radius * wide + 0.5).astype(int), 0)
    last = np.minimum((center + radius * wide + 0.5).astype(int), n)
    taps = first[:, None] + np.arange(int((last - first).max()))
    weights = weight((taps - center[:, None] + 0.5) / wide)
    weights = np.where(taps < last[:, None], weights, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    return maps.from_taps(np.where(taps < last[:, None], taps, -1), weights, n)


# images -------------------------------------------------------------------------------------------

_NEAREST = tuple(
    f"{name}{d}d" for name in ("upsample_nearest", "_upsample_nearest_exact") for d in (1, 2, 3)
)
_LINEAR = ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d")
_SMOOTH = ("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_lanczos2d_aa")


def _factors(given: dict[str, Any], rank: int) -> list[float | None]:
    """Scale factors by axis, where the caller gave them."""
    if given.get("scale_factors"):
        return list(given["scale_factors"])
    names = {1: ("scales",), 2: ("scales_h", "scales_w"), 3: ("scales_d", "scales_h", "scales_w")}
    return [given.get(name) for name in names[rank]]


def _axes(
    given: dict[str, Any], op: str, x: Abstract, shape: tuple[int, ...]
) -> list[tuple[int, Linear]]:
    """(axis, map) of every axis whose length changes, or that is read between pixels."""
    rank = len(x.dims) - 2
    found = []
    for dim, factor in zip(range(2, 2 + rank), _factors(given, rank), strict=True):
        n, out = x.shape[dim], shape[dim]
        align = bool(given.get("align_corners"))
        scale = 1.0 / factor if factor else n / out
        if align:
            scale = (n - 1) / (out - 1) if out > 1 else 0.0
        if op in _SMOOTH:
            linear = antialiased(n, out, scale, op.split("_")[2].removesuffix("2d"))
        elif op in _LINEAR:
            linear = between(n, out, scale, align=align, cubic="cubic" in op)
        else:
            linear = nearest(n, out, scale, exact="exact" in op)
        found.append((dim, linear))
    return found


def _whole_factors(
    given: dict[str, Any], op: str, x: Abstract, shape: tuple[int, ...]
) -> list[int] | None:
    """How often every pixel is repeated, where that is a whole number."""
    factors = _factors(given, len(x.dims) - 2)
    pairs = list(zip(x.shape[2:], shape[2:], strict=True))
    if op not in _NEAREST or any(out % n for n, out in pairs):
        return None
    counts = [out // n for n, out in pairs]
    if any(f is not None and f != r for f, r in zip(factors, counts, strict=True)):
        return None
    return [1, 1, *counts]


@forward(*_NEAREST, *_LINEAR, *_SMOOTH)
def upsample(x: Abstract, op: str, shapes: Shapes, **given: Any) -> Abstract:
    """Pixels repeated, or weighted sums of neighbours."""
    counts = _whole_factors(given, op, x, shapes[0])
    if counts is not None:
        return repeated(x, counts, outer=False).plain()
    for dim, linear in _axes(given, op, x, shapes[0]):
        x = resampled(x, dim, linear)
    return x.plain()


@backward(*_NEAREST, *_LINEAR, *_SMOOTH)
def upsample_back(grad: Abstract, x: Abstract, op: str, **given: Any) -> dict[str, Any]:
    """Every pixel gets the weighted sum of those that read it."""
    counts = _whole_factors(given, op, x, grad.shape)
    if counts is not None:
        return {"x": unrepeated(grad, x.shape, counts, outer=False)}
    for dim, linear in _axes(given, op, x, grad.shape):
        grad = resampled(grad, dim, linear.transposed)
    return {"x": grad}


# anywhere -----------------------------------------------------------------------------------------

_GRIDS = ("grid_sampler", "grid_sampler_2d", "grid_sampler_3d", "_grid_sampler_2d_cpu_fallback",
          "cudnn_grid_sampler")  # fmt: skip
_TWO_TAPS = (2.0 / 3.0, 1.0 / 3.0)  # E[a^2 + b^2] and E[2 a b] of weights a + b = 1, a uniform


def _cubic_taps() -> tuple[float, float]:
    """E of the sum of squares of four cubic weights, and 1 less it."""
    t = (np.arange(400) + 0.5) / 400
    weights = _cubic(np.arange(-1, 3)[:, None] - t, -0.75)
    squares = float((weights**2).sum(axis=0).mean())
    return squares, 1.0 - squares


def _reading(mode: int) -> tuple[float, float]:
    """How much of one read's square is one pixel's, and how much two pixels'."""
    return {0: _TWO_TAPS, 1: (1.0, 0.0)}.get(mode) or _cubic_taps()


def _inside(grid: Abstract, padding_mode: int) -> float:
    """The share of coordinates within the image, as far as zeros lie beyond it; Gaussian ones."""
    if padding_mode != 0:
        return 1.0
    m, v = grid.average_mean, max(grid.second_moment - grid.average_mean**2, 1e-12)
    if grid.known is not None:
        return float((np.abs(grid.known) <= 1).mean())
    low, high = ((edge - m) / math.sqrt(2 * v) for edge in (-1.0, 1.0))
    return 0.5 * (math.erf(high) - math.erf(low))


@forward(*_GRIDS)
def grid_sampler(
    x: Abstract,
    grid: Abstract,
    *,
    interpolation_mode: int = 0,
    padding_mode: int = 0,
    shapes: Shapes,
) -> Abstract:
    """Pixels read anywhere: neighbours weighted by uniform distances.

    The pixels of a row read one height, those of a column one place in it, as they do after a shift,
    a zoom, a flow that varies slowly; two rows, two columns independently.
    """
    one, other = _reading(interpolation_mode)
    p = _inside(grid, padding_mode)
    for dim in range(2, len(x.dims)):
        out = shapes[0][dim]
        y = uniform(merge_dim(x, dim), [dim])
        n = y.shape[dim]
        same, apart = [p * one, p * other], [p * p / n, p * p * (1 - 1 / n)]
        table = np.array([same, apart] if out > 1 else [same])
        table = table if n > 1 else table.sum(axis=1, keepdims=True)
        x = carried(y, dim, table, np.full((1, 1), p), (strata.whole(out),))
    return x


@backward(*_GRIDS)
def grid_sampler_back(
    grad: Abstract,
    x: Abstract,
    grid: Abstract,
    *,
    interpolation_mode: int = 0,
    padding_mode: int = 0,
    align_corners: bool = False,
) -> dict[str, Any]:
    """To the pixels that were read; to coordinates g times the slope between neighbours."""
    one, other = _reading(interpolation_mode)
    p = _inside(grid, padding_mode)
    back = grad
    for dim in range(2, len(grad.dims)):
        y = uniform(merge_dim(back, dim), [dim])
        out, n = y.shape[dim], x.shape[dim]
        met = out * (out - 1) * p * p / (n * n)
        same, apart = [out * p * one / n, met], [out * p * other / max(n * (n - 1), 1), met]
        table = np.array([same, apart] if n > 1 else [same])[:, : 2 if out > 1 else 1]
        back = carried(y, dim, table, np.full((1, 1), out * p / n), (strata.whole(n),))
    slope = 0.0 if interpolation_mode == 1 else _slope(x, one, other, align_corners=align_corners)
    return {"x": back, "grid": full(grid.shape, x.shape[1] * grad.second_moment * p * slope)}


def _slope(x: Abstract, one: float, other: float, *, align_corners: bool) -> float:
    """E of the squared derivative by a coordinate of -1..1, averaged over the coordinates.

    Along its own axis the difference of two neighbours, along the others as they are read.
    """
    for d in range(len(x.dims)):
        x = uniform(merge_dim(x, d), [d])
    axes = x.axes(range(2, len(x.dims)))
    table = np.moveaxis(x.q, axes, range(len(axes))).reshape(*(2,) * len(axes), -1)[..., 0]
    lengths = [n for n in x.shape[2:] if n > 1]
    total = 0.0
    for own, n in enumerate(lengths):
        value = table
        for k in range(len(lengths)):
            value = np.tensordot([2.0, -2.0] if k == own else [one, other], value, (0, 0))
        total += float(value) * ((n - align_corners) / 2) ** 2
    return max(total, 0.0) / max(len(x.dims) - 2, 1)


def _base(size: Sequence[int], align_corners: bool) -> Array:
    """(.., 3 or 4): the coordinates that theta multiplies, 1 last."""
    axes = [
        np.linspace(-1, 1, n) * (1.0 if align_corners or n == 1 else (n - 1) / n)
        if n > 1
        else np.zeros(1)
        for n in size[2:]
    ]
    mesh = np.meshgrid(*axes, indexing="ij")
    return np.stack([*mesh[::-1], np.ones(tuple(size[2:]))], -1)


_AFFINE = ("affine_grid_generator", "cudnn_affine_grid_generator")


@forward(*_AFFINE)
def affine_grid(theta: Abstract, size: Sequence[int], align_corners: bool = False) -> Abstract:
    """Theta times the pixels' coordinates."""
    base = measured(_base(size, align_corners)).plain()
    space = [f"s{k}" for k in range(len(size) - 2)]
    return contracted(theta, ["n", "i", "j"], base, [*space, "j"], ["n", *space, "i"])


@backward(*_AFFINE)
def affine_grid_back(
    grad: Abstract, size: Sequence[int], align_corners: bool = False
) -> dict[str, Any]:
    """Sums over the pixels of g times their coordinates."""
    base = measured(_base(size, align_corners)).plain()
    space = [f"s{k}" for k in range(len(size) - 2)]
    return {"theta": contracted(grad, ["n", *space, "i"], base, [*space, "j"], ["n", "i", "j"])}
