"""Rules of ops that take tensors apart and put them together: slices, splits, joins, writes.

A part that lies in a range of indices is a segment, so that cutting what was joined gives back what
it was. Gradients of parts are embedded in zeros, of joins cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from .algebra import unbroadcast
from .boxes import (
    Box,
    as_shape,
    box_on,
    boxed,
    chosen,
    embedded,
    fits,
    outside,
    share,
    written,
    zeros,
)
from .domain import Abstract, concatenated, cut, full, multiplied, reshaped, resized
from .notes import viewed
from .registry import backward, forward

Shapes = Sequence[tuple[int, ...]]


def _range(n: int, start: int | None, end: int | None, step: int = 1) -> tuple[int, int, int]:
    return slice(start, end, step).indices(n)


def without(x: Abstract, dim: int) -> Abstract:
    """``x`` without an axis of length 1."""
    return reshaped(x, (*x.shape[:dim], *x.shape[dim + 1 :]))


def with_axis(x: Abstract, dim: int) -> Abstract:
    """``x`` with a new axis of length 1."""
    return reshaped(x, (*x.shape[:dim], 1, *x.shape[dim:]))


# one part -----------------------------------------------------------------------------------------


@forward("slice", "slice_copy")
def slice_(
    x: Abstract, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Abstract:
    """``x[start:end:step]`` on one axis."""
    dim %= len(x.dims)
    return cut(x, dim, *_range(x.shape[dim], start, end, step))


@backward("slice", "slice_copy")
def slice_back(
    grad: Abstract,
    x: Abstract,
    *,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> dict[str, Any]:
    """The gradient embedded in zeros."""
    dim %= len(x.dims)
    return {"x": _embedded(grad, box_on(x.shape, dim, *_range(x.shape[dim], start, end, step)))}


def _embedded(grad: Abstract, box: Box) -> Abstract:
    if fits(box):
        return embedded(grad, box)
    p = math.prod(box.lengths) / math.prod(box.shape)
    whole = grad
    for dim, n in enumerate(box.shape):
        whole = resized(whole, dim, n)
    return chosen(share(box.shape, p), whole, zeros(box.shape))


@forward("narrow", "narrow_copy")
def narrow(x: Abstract, dim: int, start: int | Abstract, length: int) -> Abstract:
    """``length`` indices from ``start`` on; from an unknown start on, any of them."""
    dim %= len(x.dims)
    if isinstance(start, Abstract):
        if start.known is None:
            return resized(x, dim, length)
        start = int(start.known)
    start %= x.shape[dim] or 1
    return cut(x, dim, start, start + length)


@backward("narrow", "narrow_copy")
def narrow_back(
    grad: Abstract, x: Abstract, dim: int, start: int | Abstract, length: int
) -> dict[str, Any]:
    """The gradient embedded in zeros."""
    dim %= len(x.dims)
    n = x.shape[dim]
    if isinstance(start, Abstract):
        start = 0 if start.known is None else int(start.known)
    start %= n or 1
    return {"x": _embedded(grad, box_on(x.shape, dim, start, start + length))}


@forward("select", "select_copy")
def select(x: Abstract, dim: int, index: int) -> Abstract:
    """One index of an axis, and the axis gone."""
    dim %= len(x.dims)
    index %= x.shape[dim]
    return without(cut(x, dim, index, index + 1), dim)


@backward("select", "select_copy")
def select_back(grad: Abstract, x: Abstract, dim: int, index: int) -> dict[str, Any]:
    """The gradient at that index, zeros at the others."""
    dim %= len(x.dims)
    index %= x.shape[dim]
    return {"x": embedded(with_axis(grad, dim), box_on(x.shape, dim, index, index + 1))}


# all parts ----------------------------------------------------------------------------------------

_SPLITS = (
    "chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split",
    "unsafe_split_with_sizes", "hsplit", "vsplit", "dsplit", "split_copy", "split_with_sizes_copy",
)  # fmt: skip


def _split_axis(op: str, dim: int, rank: int) -> int:
    fixed = {"hsplit": 0 if rank == 1 else 1, "vsplit": 0, "dsplit": 2}
    return fixed.get(op, dim % rank)


@forward(*_SPLITS)
def split(x: Abstract, shapes: Shapes, op: str = "split", dim: int = 0) -> list[Abstract]:
    """Consecutive parts of an axis, as long as the outputs are."""
    dim = _split_axis(op, dim, len(x.dims))
    ends = list(accumulate((shape[dim] for shape in shapes), initial=0))
    parts = [cut(x, dim, i, i + shape[dim]) for i, shape in zip(ends, shapes, strict=False)]
    return [part.plain() if part is x else part for part in parts]


@backward(*_SPLITS)
def split_back(
    x: Abstract, grads: Sequence[Abstract | None], shapes: Shapes, op: str = "split", dim: int = 0
) -> dict[str, Any]:
    """The parts' gradients side by side, zeros where none flows."""
    dim = _split_axis(op, dim, len(x.dims))
    return {"x": _side_by_side(grads, shapes, dim)}


def _side_by_side(grads: Sequence[Abstract | None], shapes: Shapes, dim: int) -> Abstract:
    flowing = [k for k, grad in enumerate(grads) if grad is not None]
    if len(flowing) == 1:
        shape = list(shapes[0])
        ends = list(accumulate((s[dim] for s in shapes), initial=0))
        shape[dim] = ends[-1]
        k = flowing[0]
        only = grads[k]
        assert only is not None
        return embedded(only, box_on(shape, dim, ends[k], ends[k + 1]))
    parts = [
        zeros(shape) if grad is None else grad for grad, shape in zip(grads, shapes, strict=True)
    ]
    return concatenated(parts, dim)


@forward("unbind", "unbind_copy")
def unbind(x: Abstract, dim: int = 0) -> list[Abstract]:
    """Every index of an axis on its own."""
    return [select(x, dim, k) for k in range(x.shape[dim % len(x.dims)])]


@backward("unbind", "unbind_copy")
def unbind_back(x: Abstract, grads: Sequence[Abstract | None], dim: int = 0) -> dict[str, Any]:
    """The gradients stacked, zeros where none flows."""
    dim %= len(x.dims)
    shape = (*x.shape[:dim], 1, *x.shape[dim + 1 :])
    parts = [None if grad is None else with_axis(grad, dim) for grad in grads]
    return {"x": _side_by_side(parts, [shape] * len(parts), dim)}


# joins --------------------------------------------------------------------------------------------


@forward("cat", "concat", "concatenate")
def cat(tensors: Sequence[Abstract], dim: int = 0) -> Abstract:
    """Tensors side by side, each a segment; independent of each other."""
    given = [x for x in tensors if not _empty(x)]
    return concatenated(given, dim % len(given[0].dims)) if given else tensors[0]


def _empty(x: Abstract) -> bool:
    return x.known is not None and x.known.size == 0


@backward("cat", "concat", "concatenate")
def cat_back(grad: Abstract, tensors: Sequence[Abstract], dim: int = 0) -> dict[str, Any]:
    """Each tensor's own part."""
    return {"tensors": _parts(grad, tensors, dim % len(grad.dims))}


def _parts(grad: Abstract, tensors: Sequence[Abstract], dim: int) -> list[Abstract | None]:
    parts: list[Abstract | None] = []
    start = 0
    for x in tensors:
        if _empty(x):
            parts.append(None)
        else:
            parts.append(cut(grad, dim, start, start + x.shape[dim]))
            start += x.shape[dim]
    return parts


@forward("stack")
def stack(tensors: Sequence[Abstract], dim: int = 0) -> Abstract:
    """Tensors along a new axis."""
    dim %= len(tensors[0].dims) + 1
    return concatenated([with_axis(x, dim) for x in tensors], dim)


@backward("stack")
def stack_back(grad: Abstract, tensors: Sequence[Abstract], dim: int = 0) -> dict[str, Any]:
    """Each tensor's own index."""
    return {"tensors": [select(grad, dim, k) for k in range(len(tensors))]}


_JOINS = ("hstack", "vstack", "row_stack", "dstack", "column_stack")


def _at_least(op: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """The shape on which these ops join a tensor, and the axis."""
    if op == "column_stack":
        return (shape if len(shape) > 1 else (math.prod(shape), 1)), 1
    if op == "hstack":
        return (shape or (1,)), int(len(shape) > 1)
    if op == "dstack":
        flat = {0: (1, 1, 1), 1: (1, *shape, 1), 2: (*shape, 1)}
        return flat.get(len(shape), shape), 2
    return (shape if len(shape) > 1 else (1, math.prod(shape))), 0


@forward(*_JOINS)
def join(tensors: Sequence[Abstract], op: str) -> Abstract:
    """Axes added as these ops do, then side by side."""
    shapes = [_at_least(op, x.shape) for x in tensors]
    wide = [reshaped(x, shape) for x, (shape, _) in zip(tensors, shapes, strict=True)]
    return concatenated(wide, shapes[0][1])


@backward(*_JOINS)
def join_back(grad: Abstract, tensors: Sequence[Abstract], op: str) -> dict[str, Any]:
    """Each tensor's own part on its own axes."""
    shapes = [_at_least(op, x.shape) for x in tensors]
    wide = [reshaped(x, shape) for x, (shape, _) in zip(tensors, shapes, strict=True)]
    parts = _parts(grad, wide, shapes[0][1])
    return {
        "tensors": [
            None if p is None else reshaped(p, x.shape) for p, x in zip(parts, tensors, strict=True)
        ]
    }


# writes -------------------------------------------------------------------------------------------


@forward("view_write")
def view_write(
    x: Abstract,
    value: Abstract,
    starts: Sequence[int] | None = None,
    stops: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> Abstract:
    """``x`` with ``value`` written into a box; into no box, by the share of elements it replaces."""
    box = _box(x.shape, starts, stops, steps)
    if box is not None:
        return written(x, value, box)
    return mixed(x, value, math.prod(value.shape) / math.prod(x.shape))


def _box(
    shape: tuple[int, ...],
    starts: Sequence[int] | None,
    stops: Sequence[int] | None,
    steps: Sequence[int] | None,
) -> Box | None:
    if starts is None or stops is None:
        return None
    box = Box(shape, tuple(starts), tuple(stops), tuple(steps or [1] * len(shape)))
    return box if fits(box) else None


def mixed(x: Abstract, value: Abstract, p: float) -> Abstract:
    """``x`` of which a share p of the elements is replaced."""
    if value.shape != x.shape:
        value = full(x.shape, value.second_moment, value.average_mean).with_(noise=value.noise)
    return chosen(share(x.shape, min(p, 1.0)), value, x)


@backward("view_write")
def view_write_back(
    grad: Abstract,
    x: Abstract,
    value: Abstract,
    *,
    starts: Sequence[int] | None = None,
    stops: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Outside the box to ``x``, inside to ``value``."""
    box = _box(x.shape, starts, stops, steps)
    if box is not None:
        return _written_back(grad, value, box)
    p = math.prod(value.shape) / math.prod(x.shape)
    inside = full(value.shape, grad.second_moment, grad.average_mean)
    return {"x": mixed(grad, zeros(grad.shape), p), "value": inside}


def _written_back(grad: Abstract, value: Abstract, box: Box) -> dict[str, Any]:
    inside = boxed(grad, box)
    if math.prod(value.shape) == math.prod(box.lengths):
        inside = reshaped(inside, value.shape)
    return {"x": multiplied(grad, outside(box)), "value": unbroadcast(inside, value.shape)}


@forward("slice_scatter")
def slice_scatter(
    x: Abstract,
    src: Abstract,
    *,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Abstract:
    """``x`` with ``src`` in a slice of it."""
    dim %= len(x.dims)
    n = x.shape[dim]
    return view_write(x, src, *box_on(x.shape, dim, *_range(n, start, end, step))[1:])


@backward("slice_scatter")
def slice_scatter_back(
    grad: Abstract,
    x: Abstract,
    src: Abstract,
    *,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> dict[str, Any]:
    """Outside the slice to ``x``, inside to ``src``."""
    dim %= len(x.dims)
    box = box_on(x.shape, dim, *_range(x.shape[dim], start, end, step))
    found = view_write_back(grad, x, src, starts=box.starts, stops=box.stops, steps=box.steps)
    return {"x": found["x"], "src": found["value"]}


@forward("select_scatter")
def select_scatter(x: Abstract, src: Abstract, dim: int, index: int) -> Abstract:
    """``x`` with ``src`` at one index of an axis."""
    dim %= len(x.dims)
    index %= x.shape[dim]
    return written(x, src, box_on(x.shape, dim, index, index + 1))


@backward("select_scatter")
def select_scatter_back(
    grad: Abstract, x: Abstract, src: Abstract, dim: int, index: int
) -> dict[str, Any]:
    """Elsewhere to ``x``, there to ``src``."""
    dim %= len(x.dims)
    index %= x.shape[dim]
    found = _written_back(grad, src, box_on(x.shape, dim, index, index + 1))
    return {"x": found["x"], "src": found["value"]}


__all__ = ["as_shape", "mixed", "view_write", "viewed", "with_axis", "without"]
