"""Rules of padding, sliding windows, diagonals and strides: every number read at known places.

Zeros are segments. What is read twice is the same number, so that pairs of windows that overlap
keep their shared elements (`maps`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from . import maps, strata
from .boxes import Box, embedded, moved, outside
from .domain import (
    Abstract,
    added,
    constant,
    cut,
    full,
    limited,
    merge_dim,
    multiplied,
    permuted,
    reshaped,
)
from .maps import Linear, mapped
from .registry import backward, forward
from .strata import Dims

Shapes = Sequence[tuple[int, ...]]

MAX_STRIDED = 1 << 16  # elements of a strided view whose places are followed


# padding ------------------------------------------------------------------------------------------

_PADS = (
    "pad", "_pad_enum", "_pad_circular", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d",
    "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d",
)  # fmt: skip
_ENUM = ("reflect", "replicate", "circular", "constant")
_MODES = {"reflection": "reflect", "replication": "replicate", "_pad_circular": "circular"}


def _mode(op: str, mode: str | int) -> str:
    named = next((m for prefix, m in _MODES.items() if op.startswith(prefix)), None)
    if op == "constant_pad_nd":
        return "constant"
    return named or (mode if isinstance(mode, str) else _ENUM[mode])


def _sides(rank: int, pad: Sequence[int]) -> list[tuple[int, int, int]]:
    """(axis, before, after); the last axis comes first in ``pad``."""
    return [(rank - 1 - k, pad[2 * k], pad[2 * k + 1]) for k in range(len(pad) // 2)]


def _padded_box(x: Abstract, sides: Sequence[tuple[int, int, int]]) -> Box:
    starts, shape = [0] * len(x.dims), list(x.shape)
    for dim, before, after in sides:
        starts[dim] = before
        shape[dim] += before + after
    stops = tuple(i + n for i, n in zip(starts, x.shape, strict=True))
    return Box(tuple(shape), tuple(starts), stops, (1,) * len(shape))


@forward(*_PADS)
def pad(
    x: Abstract,
    *,
    pad: Sequence[int] = (),
    padding: Sequence[int] = (),
    mode: str | int = "constant",
    value: float | None = None,
    op: str = "pad",
) -> Abstract:
    """More indices at both ends: a number, or what the mode reads there; fewer where negative."""
    sides = _sides(len(x.dims), pad or padding)
    for dim, before, after in sides:
        n = x.shape[dim]
        x = cut(x, dim, max(0, -before), n - max(0, -after))
    sides = [(dim, max(0, i), max(0, j)) for dim, i, j in sides]
    mode = _mode(op, mode)
    if mode != "constant":
        for dim, before, after in sides:
            x = _read(x, dim, extending(x.shape[dim], before, after, mode))
        return x
    box = _padded_box(x, sides)
    inside = embedded(x, box)
    if not value or not math.isfinite(value) or box.shape == x.shape:
        return inside
    return limited(added(inside, multiplied(constant(box.shape, value), outside(box))))


@backward(*_PADS)
def pad_back(
    grad: Abstract,
    x: Abstract,
    *,
    pad: Sequence[int] = (),
    padding: Sequence[int] = (),
    mode: str | int = "constant",
    op: str = "pad",
) -> dict[str, Any]:
    """What was inside; an element that was read several times gets the sum."""
    sides = _sides(len(x.dims), pad or padding)
    mode = _mode(op, mode)
    for dim, before, after in sides:
        n = x.shape[dim]
        kept = n - max(0, -before) - max(0, -after)
        if mode != "constant":
            linear = extending(kept, max(0, before), max(0, after), mode)
            grad = _read(grad, dim, linear.transposed)
        else:
            grad = cut(grad, dim, max(0, before), max(0, before) + kept)
        if kept < n:
            starts = [0] * len(grad.dims)
            shape = list(grad.shape)
            starts[dim], shape[dim] = max(0, -before), n
            stops = tuple(i + m for i, m in zip(starts, grad.shape, strict=True))
            grad = embedded(grad, Box(tuple(shape), tuple(starts), stops, (1,) * len(shape)))
    return {"x": grad}


def _read(x: Abstract, dim: int, linear: Linear) -> Abstract:
    """A map that does nothing is left out, and so are the segments of a single atom's factors."""
    if linear.height == linear.width and np.array_equal(linear.rows, linear.columns):
        return x
    return mapped(x, dim, linear)


@lru_cache(maxsize=4096)
def extending(n: int, before: int, after: int, mode: str) -> Linear:
    """Where each index of an axis padded by reflection, replication or going round reads."""
    at = np.arange(-before, n + after)
    if mode == "circular":
        return maps.picks(at % n, n)
    if mode == "replicate":
        return maps.picks(np.clip(at, 0, n - 1), n)
    at = np.abs(at)
    return maps.picks(np.where(at < n, at, 2 * (n - 1) - at), n)


# windows ------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def windows(n: int, count: int, size: int, *, step: int, pad: int = 0, dilation: int = 1) -> Linear:
    """Element k of window w reads w step + k dilation - pad; new axis (count, size), row-major."""
    at = np.arange(count)[:, None] * step + np.arange(size)[None] * dilation - pad
    return maps.picks(np.where((at >= 0) & (at < n), at, -1), n)


@forward("unfold", "unfold_copy")
def unfold(x: Abstract, dimension: int, size: int, step: int, shapes: Shapes) -> Abstract:
    """Windows of an axis; the place within them is a new last axis."""
    dim = dimension % len(x.dims) if x.dims else 0
    if not x.dims:
        return reshaped(x, shapes[0])
    count, n = shapes[0][dim], x.shape[dim]
    if size == step and count * size == n:
        wide = reshaped(x, (*x.shape[:dim], count, size, *x.shape[dim + 1 :]))
    else:
        wide = mapped(x, dim, windows(n, count, size, step=step), _two(count, size))
    return moved(wide, dim + 1, len(wide.dims) - 1)


def _two(count: int, size: int) -> Dims:
    return strata.whole(count), strata.whole(size)


@backward("unfold", "unfold_copy")
def unfold_back(
    grad: Abstract, x: Abstract, dimension: int, size: int, step: int
) -> dict[str, Any]:
    """Every element gets the sum over the windows that hold it."""
    dim = dimension % len(x.dims) if x.dims else 0
    if not x.dims:
        return {"x": reshaped(grad, ())}
    count, n = grad.shape[dim], x.shape[dim]
    wide = moved(grad, len(grad.dims) - 1, dim + 1)
    if size == step and count * size == n:
        return {"x": reshaped(wide, x.shape)}
    return {"x": mapped(wide, dim, windows(n, count, size, step=step).transposed, span=2)}


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    given = [value] if isinstance(value, int) else list(value)
    return given[0], given[-1]


def _columns(
    shape: Sequence[int],
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int],
    padding: int | Sequence[int],
    stride: int | Sequence[int],
) -> list[tuple[int, int, Linear]]:
    """(windows, size, map) of the last two axes of an image of that shape."""
    found = []
    four = zip(*map(_pair, (kernel_size, dilation, padding, stride)), strict=True)
    for n, (k, d, p, s) in zip(shape[-2:], four, strict=True):
        count = (n + 2 * p - d * (k - 1) - 1) // s + 1
        found.append((count, k, windows(n, count, k, step=s, pad=p, dilation=d)))
    return found


@forward("im2col")
def im2col(
    x: Abstract,
    *,
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    stride: int | Sequence[int] = 1,
    shapes: Shapes,
) -> Abstract:
    """Windows as columns: (n, c kh kw, windows); zeros beyond the edge are averaged in."""
    (oh, kh, high), (ow, kw, wide) = _columns(x.shape, kernel_size, dilation, padding, stride)
    r = len(x.dims)
    y = mapped(x, r - 2, high, _two(oh, kh))
    y = mapped(y, r, wide, _two(ow, kw))
    return reshaped(permuted(y, [*range(r - 2), r - 1, r + 1, r - 2, r]), shapes[0])


@backward("im2col")
def im2col_back(
    grad: Abstract,
    x: Abstract,
    *,
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    stride: int | Sequence[int] = 1,
) -> dict[str, Any]:
    """Columns added up where their windows overlap."""
    back = _folded(grad, x.shape, _columns(x.shape, kernel_size, dilation, padding, stride))
    return {"x": back}


def _folded(
    x: Abstract, shape: tuple[int, ...], columns: list[tuple[int, int, Linear]]
) -> Abstract:
    (oh, kh, high), (ow, kw, wide) = columns
    *batch, _, _ = shape
    r = len(shape)
    split = reshaped(x, (*batch, kh, kw, oh, ow))
    y = permuted(split, [*range(r - 2), r, r - 2, r + 1, r - 1])
    y = mapped(y, r, wide.transposed, span=2)
    return mapped(y, r - 2, high.transposed, span=2)


@forward("col2im")
def col2im(
    x: Abstract,
    *,
    output_size: Sequence[int],
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    stride: int | Sequence[int] = 1,
    shapes: Shapes,
) -> Abstract:
    """Columns added up where their windows overlap."""
    return _folded(x, shapes[0], _columns(output_size, kernel_size, dilation, padding, stride))


@backward("col2im")
def col2im_back(
    grad: Abstract,
    x: Abstract,
    *,
    output_size: Sequence[int],
    kernel_size: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    stride: int | Sequence[int] = 1,
) -> dict[str, Any]:
    """Windows of the gradient as columns."""
    del output_size
    columns = im2col(
        grad, kernel_size=kernel_size, dilation=dilation, padding=padding, stride=stride,
        shapes=[x.shape],
    )  # fmt: skip
    return {"x": columns}


# diagonals and strides ----------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _diagonal(rows: int, columns: int, offset: int) -> Linear:
    i, j = max(0, -offset), max(0, offset)
    at = np.arange(max(0, min(rows - i, columns - j)))
    return maps.picks((at + i) * columns + at + j, rows * columns)


def _diagonal_of(x: Abstract, offset: int, dim1: int, dim2: int) -> tuple[list[int], Linear]:
    """The order that puts two axes last, and what their diagonal reads."""
    r = len(x.dims)
    dim1, dim2 = dim1 % r, dim2 % r
    order = [*(d for d in range(r) if d not in (dim1, dim2)), dim1, dim2]
    return order, _diagonal(x.shape[dim1], x.shape[dim2], offset)


@forward("diagonal", "diagonal_copy", "linalg_diagonal")
def diagonal(x: Abstract, op: str, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Abstract:
    """Where two axes have the same index; a new last axis."""
    if op == "linalg_diagonal" and (dim1, dim2) == (0, 1):
        dim1, dim2 = -2, -1
    order, linear = _diagonal_of(x, offset, dim1, dim2)
    return mapped(permuted(x, order), len(order) - 2, linear, span=2)


@backward("diagonal", "diagonal_copy", "linalg_diagonal")
def diagonal_back(
    grad: Abstract, x: Abstract, *, op: str, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> dict[str, Any]:
    """The gradient on the diagonal, zeros elsewhere."""
    if op == "linalg_diagonal" and (dim1, dim2) == (0, 1):
        dim1, dim2 = -2, -1
    order, linear = _diagonal_of(x, offset, dim1, dim2)
    last = [x.shape[d] for d in order[-2:]]
    wide = mapped(grad, len(order) - 2, linear.transposed, _two(*last))
    return {"x": permuted(wide, np.argsort(order).tolist())}


@forward("diag")
def diag(x: Abstract, diagonal: int = 0) -> Abstract:
    """A matrix's diagonal, or a matrix of zeros but for a vector on its diagonal."""
    if len(x.dims) == 2:
        return mapped(x, 0, _diagonal(*x.shape, diagonal), span=2)
    n = x.shape[0] + abs(diagonal)
    return mapped(x, 0, _diagonal(n, n, diagonal).transposed, _two(n, n))


@backward("diag")
def diag_back(grad: Abstract, x: Abstract, diagonal: int = 0) -> dict[str, Any]:
    """The other way round."""
    if len(x.dims) == 1:
        return {"x": mapped(grad, 0, _diagonal(*grad.shape, diagonal), span=2)}
    return {"x": mapped(grad, 0, _diagonal(*x.shape, diagonal).transposed, _two(*x.shape))}


@forward("diag_embed")
def diag_embed(x: Abstract, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Abstract:
    """The last axis on the diagonal of two new ones, zeros elsewhere."""
    r, n = len(x.dims) + 1, x.shape[-1] + abs(offset)
    wide = mapped(x, r - 2, _diagonal(n, n, offset).transposed, _two(n, n))
    order = [*(d for d in range(r) if d not in (dim1 % r, dim2 % r)), dim1 % r, dim2 % r]
    return permuted(wide, np.argsort(order).tolist())


@backward("diag_embed")
def diag_embed_back(
    grad: Abstract, offset: int = 0, dim1: int = -2, dim2: int = -1
) -> dict[str, Any]:
    """The diagonal."""
    order, linear = _diagonal_of(grad, offset, dim1, dim2)
    return {"x": mapped(permuted(grad, order), len(order) - 2, linear, span=2)}


@lru_cache(maxsize=1024)
def _strided(
    total: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> Linear | None:
    if math.prod(size) > MAX_STRIDED:
        return None
    at = np.full(size, offset)
    for axis, (n, step) in enumerate(zip(size, stride, strict=True)):
        shape = [1] * len(size)
        shape[axis] = n
        at = at + (np.arange(n) * step).reshape(shape)
    return maps.picks(np.where(at < total, at, -1), total)


@forward("as_strided", "as_strided_copy")
def as_strided(
    x: Abstract, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Abstract:
    """Any places of the flat tensor, taken as contiguous; the average where there are too many."""
    total = math.prod(x.shape)
    linear = _strided(total, tuple(size), tuple(stride), storage_offset or 0)
    if linear is None or len(size) > 4:
        return full(size, x.second_moment, x.average_mean)
    return mapped(x, 0, linear, tuple(map(strata.whole, size)), span=len(x.dims))


@backward("as_strided", "as_strided_copy")
def as_strided_back(
    grad: Abstract,
    x: Abstract,
    size: Sequence[int],
    stride: Sequence[int],
    storage_offset: int | None = None,
) -> dict[str, Any]:
    """Every element gets the sum over the places that read it."""
    total = math.prod(x.shape)
    linear = _strided(total, tuple(size), tuple(stride), storage_offset or 0)
    if linear is None or len(x.dims) > 4:
        often = math.prod(size) / total
        return {"x": full(x.shape, often * grad.second_moment, often * grad.average_mean)}
    flat = merge_dim(reshaped(grad, (math.prod(size),)), 0)
    return {"x": mapped(flat, 0, linear.transposed, tuple(map(strata.whole, x.shape)))}
