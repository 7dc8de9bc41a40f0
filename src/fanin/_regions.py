"""Where in a whole a view looks, as a box, and the nodes that read such a part or write it.

A view of memory is sizes, strides and an offset. If every stride is a multiple of a stride of the
whole, the view is a box of the whole with some of its axes split: ``x.view(B, T, H, D)[:, :, 0]``
is heads 0 to 1 of ``x`` of shape (B, T, H * D) seen as (B, T, H, D).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from ._graph import Ref

Emit = Callable[..., int]  # (op, shape, **args) -> index of the node's output


@dataclass(frozen=True, slots=True)
class Box:
    """A part of a whole.

    Args:
        factors: the whole's shape with its axes split as far as the view needs it.
        starts: per factor, the first index.
        stops: per factor, one after the last index.
        steps: per factor.
        order: factors that the view's axes run along, outermost first; the others have one index.
        whole: whether it is all of it.
    """

    factors: tuple[int, ...]
    starts: tuple[int, ...]
    stops: tuple[int, ...]
    steps: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the box."""
        runs = zip(self.starts, self.stops, self.steps, strict=True)
        return tuple(len(range(*run)) for run in runs)

    @property
    def whole(self) -> bool:
        """Whether it is all there is."""
        return self.shape == self.factors

    @property
    def axes(self) -> tuple[int, ...]:
        """The factors with the view's first, in its order."""
        return (*self.order, *(i for i in range(len(self.factors)) if i not in self.order))


class _Piece(NamedTuple):
    """A run along one axis of the whole: every ``step``-th index, ``count`` of them."""

    axis: int
    step: int
    count: int


@lru_cache(maxsize=4096)
def box(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    sizes: tuple[int, ...],
    steps: tuple[int, ...],
    offset: int,
) -> Box | None:
    """The box of a whole (``shape``, ``strides``) that a view (``sizes``, ``steps``) looks at.

    Args:
        shape: of the whole.
        strides: of the whole.
        sizes: of the view.
        steps: its strides.
        offset: of its first element from the whole's.

    Returns:
        None where there is none: elements seen twice, or runs that cross the ends of an axis.

    >>> box((4, 6), (6, 1), (4, 3), (6, 1), 3).starts
    (0, 3)
    """
    axes = sorted((i for i, n in enumerate(shape) if n > 1), key=lambda i: -strides[i])
    nested = all(strides[a] >= shape[b] * strides[b] for a, b in pairwise(axes))
    if not nested or 0 in sizes or any(strides[i] <= 0 for i in axes):
        return None
    first = {}
    for i in axes:
        first[i], offset = divmod(offset, strides[i])
    if offset:
        return None
    pieces: list[_Piece] = []
    for n, step in zip(sizes, steps, strict=True):
        if n > 1:
            found = _pieces(n, step, axes, shape, strides)
            if found is None:
                return None
            pieces += found
    return _assembled(shape, first, pieces)


def _pieces(
    n: int, step: int, axes: list[int], shape: tuple[int, ...], strides: tuple[int, ...]
) -> list[_Piece] | None:
    """The runs along axes of the whole that one axis of the view consists of."""
    place = next((j for j, i in enumerate(axes) if strides[i] <= step), None)
    if place is None or step % strides[axes[place]]:
        return None
    axis = axes[place]
    run = step // strides[axis]
    if (n - 1) * run < shape[axis]:
        return [_Piece(axis, run, n)]
    fits, left = divmod(shape[axis], run)
    outer = axes[place - 1] if place else None
    if left or n % fits or outer is None or strides[outer] != shape[axis] * strides[axis]:
        return None
    more = _pieces(n // fits, strides[outer], axes, shape, strides)
    return None if more is None else [*more, _Piece(axis, run, fits)]


def _assembled(shape: tuple[int, ...], first: dict[int, int], pieces: list[_Piece]) -> Box | None:
    factors: list[int] = []
    starts: list[int] = []
    stops: list[int] = []
    steps: list[int] = []
    at: dict[_Piece, int] = {}
    for axis, n in enumerate(shape):
        start = first.get(axis, 0)
        mine = sorted((p for p in pieces if p.axis == axis), key=lambda p: -p.step)
        if len(mine) < 2:
            run, count = (mine[0].step, mine[0].count) if mine else (1, 1)
            if mine:
                at[mine[0]] = len(factors)
            factors.append(n)
            starts.append(start)
            stops.append(start + (count - 1) * run + 1)
            steps.append(run)
            continue
        above = n
        for piece in (*mine, _Piece(axis, 1, 1)):
            if piece.step == above == 1:
                break
            size, left = divmod(above, piece.step)
            digit = start // piece.step
            start %= piece.step
            if left or digit + piece.count > size:
                return None
            if piece in mine:
                at[piece] = len(factors)
            factors.append(size)
            starts.append(digit)
            stops.append(digit + piece.count)
            steps.append(1)
            above = piece.step
    if len(at) != len(pieces) or any(b > n for b, n in zip(stops, factors, strict=True)):
        return None
    return Box(
        tuple(factors), tuple(starts), tuple(stops), tuple(steps), tuple(at[p] for p in pieces)
    )


def read(emit: Emit, whole: int, shape: tuple[int, ...], view: tuple[int, ...], seen: Box) -> int:
    """Nodes that take a box out of a whole.

    Args:
        emit: writes down a node.
        whole: index of the whole's value.
        shape: of the whole.
        view: shape of the result.
        seen: the box.
    """
    index, now = _shaped(emit, whole, shape, seen.factors)
    runs = zip(seen.factors, seen.starts, seen.stops, seen.steps, strict=True)
    for dim, (n, start, stop, step) in enumerate(runs):
        if (start, stop, step) != (0, n, 1):
            now = (*now[:dim], len(range(start, stop, step)), *now[dim + 1 :])
            index = emit("slice", now, x=Ref(index), dim=dim, start=start, end=stop, step=step)
    index, now = _permuted(emit, index, now, seen.axes)
    return _shaped(emit, index, now, view)[0]


def write(
    emit: Emit, whole: int, shape: tuple[int, ...], value: int, view: tuple[int, ...], seen: Box
) -> int:
    """Nodes that put a value into a box of a whole; gives the index of the new whole.

    Args:
        emit: writes down a node.
        whole: index of the whole's value before.
        shape: of the whole.
        value: index of what is written.
        view: its shape.
        seen: the box.
    """
    split = tuple(seen.shape[i] for i in seen.axes)
    index, now = _shaped(emit, value, view, split)
    back = tuple(seen.axes.index(i) for i in range(len(split)))
    index, now = _permuted(emit, index, now, back)
    if not seen.whole:
        before, _ = _shaped(emit, whole, shape, seen.factors)
        index = emit(
            "view_write",
            seen.factors,
            x=Ref(before),
            value=Ref(index),
            starts=seen.starts,
            stops=seen.stops,
            steps=seen.steps,
        )
    return _shaped(emit, index, seen.factors, shape)[0]


def _shaped(
    emit: Emit, index: int, shape: tuple[int, ...], wanted: tuple[int, ...]
) -> tuple[int, tuple[int, ...]]:
    if shape == wanted:
        return index, wanted
    return emit("view", wanted, x=Ref(index), size=wanted), wanted


def _permuted(
    emit: Emit, index: int, shape: tuple[int, ...], order: tuple[int, ...]
) -> tuple[int, tuple[int, ...]]:
    if order == tuple(range(len(order))):
        return index, shape
    now = tuple(shape[i] for i in order)
    return emit("permute", now, x=Ref(index), dims=order), now


def unplaced(shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> dict[str, Any]:
    """Arguments of ``as_strided`` for a view that is no box."""
    return {"size": shape, "stride": strides, "storage_offset": offset}
