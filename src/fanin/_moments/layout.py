"""The same elements on other axes, parts of them, and several tensors side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from . import alignment, rearrangement, strata
from .abstract import Abstract
from .axes import aligned, closer, fitted, limited, merge_dim, tidy, uniform
from .independent import mixed_noise
from .strata import Atom, Dims

MAX_PARTS = 32  # joined at once
MAX_COPIED = 1 << 20  # elements of known numbers that a view may copy


def permuted(x: Abstract, order: Sequence[int]) -> Abstract:
    """Axes in another order."""
    order = tuple(order)
    if order == tuple(range(len(x.dims))):
        return x
    dims, axes = _moved(x.dims, order)
    return Abstract(
        dims,
        x.mean.transpose(axes),
        x.q.transpose(axes),
        known=None if x.known is None else x.known.transpose(order),
        allowed=None if x.allowed is None else _ranked(x.allowed, len(order)).transpose(order),
        noise=x.noise,
    )


@lru_cache(maxsize=65536)
def _moved(dims: Dims, order: tuple[int, ...]) -> tuple[Dims, tuple[int, ...]]:
    starts = np.cumsum([0, *map(len, dims)])
    axes = tuple(int(a) for d in order for a in range(starts[d], starts[d + 1]))
    return tuple(dims[d] for d in order), axes


def _ranked(array: npt.NDArray, rank: int) -> npt.NDArray:
    """With axes of length 1 in front, as broadcasting has it."""
    return array if array.ndim >= rank else array.reshape((1,) * (rank - array.ndim) + array.shape)


def reshaped(x: Abstract, shape: Sequence[int]) -> Abstract:
    """The same elements on other axes; atoms are split where the new axes cut through them."""
    shape = tuple(map(int, shape))
    if shape == x.shape:
        return x
    blocks, coarse, finer, dims = rearrangement.reshaping(x.dims, shape)
    mean, q = x.mean, x.q
    if coarse != blocks or finer != coarse:
        one = _coarsened(Abstract(blocks, mean, q), coarse)
        one = fitted(one, finer)
        mean, q = one.mean, one.q
    return limited(
        Abstract(
            dims, mean, q,
            known=_as_shape(x.known, shape),
            allowed=_as_shape(x.allowed, shape),
            noise=x.noise,
        )
    )  # fmt: skip


def _coarsened(x: Abstract, dims: Dims) -> Abstract:
    """``x`` on coarser axes: segments averaged out, or all atoms merged into one."""
    for d, dim in enumerate(dims):
        if x.dims[d] != dim:
            x = x if len(dim) == len(x.dims[d]) else merge_dim(x, d)
            x = uniform(x, [d])
    return x


def _as_shape(array: npt.NDArray | None, shape: tuple[int, ...]) -> npt.NDArray | None:
    """Reshaped; None where it has other elements, or many that would be copied."""
    if array is None or array.size != math.prod(shape):
        return None
    if array.size > MAX_COPIED and not array.flags.c_contiguous:
        return None
    return array.reshape(shape)


def expanded(x: Abstract, shape: Sequence[int]) -> Abstract:
    """Broadcast to ``shape``."""
    shape = tuple(map(int, shape))
    if shape == x.shape:
        return x
    dims, wide = rearrangement.expansion(x.dims, shape)
    q, mean = alignment.fit(dims, wide).wide(x.q, x.mean)
    known = None if x.known is None else np.broadcast_to(x.known, shape)
    allowed = None if x.allowed is None else np.broadcast_to(x.allowed, shape)
    return Abstract(wide, mean, q, known=known, allowed=allowed, noise=x.noise)


def cut(x: Abstract, dim: int, start: int, stop: int, step: int = 1) -> Abstract:
    """``x[start:stop:step]`` on one axis."""
    n = x.shape[dim]
    if (start, stop, step) == (0, n, 1):
        return x
    index = (slice(None),) * dim + (slice(start, stop, step),)
    known = x.known[index] if x.known is not None else None
    allowed = None if x.allowed is None else _ranked(x.allowed, len(x.dims))
    if allowed is not None and allowed.shape[dim] == n:
        allowed = allowed[index]
    fit, picks = rearrangement.cutting(x.dims[dim], start, stop, step)
    if fit != x.dims[dim]:
        finer = len(fit) > len(x.dims[dim])
        x = fitted(x, (*x.dims[:dim], fit, *x.dims[dim + 1 :])) if finer else merge_dim(x, dim)
    q, mean = x.q, x.mean
    axis = sum(map(len, x.dims[:dim]))
    new: list[Atom] = []
    for atom, pick in zip(fit, picks, strict=True):
        if pick is None:
            new.append(atom)
            axis += 1
        elif sum(pick.atom) == 1:
            q, mean = q.take(pick.rows[0], axis), mean.take(pick.kept[0], axis)
        else:
            q, mean = q.take(pick.rows, axis), mean.take(pick.kept, axis)
            new.append(pick.atom)
            axis += 1
    dims = (*x.dims[:dim], tuple(new), *x.dims[dim + 1 :])
    return Abstract(dims, mean, q, known=known, allowed=allowed, noise=x.noise)


def resized(x: Abstract, dim: int, n: int) -> Abstract:
    """An axis of another length with the same statistics, segments averaged out."""
    if strata.size(x.dims[dim]) == n:
        return x
    x = uniform(merge_dim(x, dim), [dim]).plain()
    axis = sum(map(len, x.dims[:dim]))
    old, new = x.dims[dim], strata.whole(n)
    dims = (*x.dims[:dim], new, *x.dims[dim + 1 :])
    if old and not new:
        mean, q = np.asarray(x.mean.take(0, axis)), np.asarray(x.q.take(0, axis))
        return Abstract(dims, mean, q, noise=x.noise)
    if new and not old:
        return fitted(x, dims)
    return Abstract(dims, x.mean, x.q, noise=x.noise)


def concatenated(xs: Sequence[Abstract], dim: int) -> Abstract:
    """Tensors side by side on one axis, each a segment or more; independent of each other."""
    xs = [x for x in xs if x.known is None or x.known.size]
    while len(xs) > MAX_PARTS:
        xs = [concatenated(xs[i : i + MAX_PARTS], dim) for i in range(0, len(xs), MAX_PARTS)]
    if len(xs) == 1:
        return xs[0]
    known = _joined([x.known for x in xs], dim)
    allowed = _joined([x.allowed for x in xs], dim)
    parts = _side_by_side(xs, dim)
    axis = sum(map(len, parts[0].dims[:dim]))
    out = _alike(parts, dim, axis) or limited(tidy(_beside(parts, dim, axis), axes=[axis]))
    noise = mixed_noise(*((x.second_moment * math.prod(x.shape), x.noise) for x in xs))
    return Abstract(out.dims, out.mean, out.q, known=known, allowed=allowed, noise=noise)


def _alike(parts: Sequence[Abstract], dim: int, axis: int) -> Abstract | None:
    """The whole where every part is one segment and nothing tells two of them apart."""
    first, *rest = parts
    if first.mean.shape[axis] > 1:
        return None
    for x in rest:
        if x.q.shape != first.q.shape or x.mean.shape != first.mean.shape:
            return None
        if not ((x.q == first.q).all() and (x.mean == first.mean).all()):
            return None
    lines, between = first.q.swapaxes(0, axis), first.outer().swapaxes(0, axis)[1]
    lengths = [sum(x.atoms[axis]) for x in parts]
    if max(lengths) > 1 and np.abs(lines[1] - between).max() > 1e-9 * np.abs(lines[0]).max():
        return None
    head = ((sum(lengths),), *first.dims[dim][1:])
    q = np.stack([lines[0], between]).swapaxes(0, axis)
    return Abstract((*first.dims[:dim], head, *first.dims[dim + 1 :]), first.mean, q)


def _beside(parts: Sequence[Abstract], dim: int, axis: int) -> Abstract:
    """Each part's own pairs in its own classes, products of means between them."""
    counts = tuple(x.mean.shape[axis] for x in parts)
    dims, rows, classes = rearrangement.joining(tuple(x.dims for x in parts), dim, counts)
    mean = np.concatenate([x.mean for x in parts], axis)
    shape = [*parts[0].q.shape]
    shape[axis] = classes
    out = Abstract(dims, mean, np.zeros(shape))
    if mean.any():
        out.q = out.outer()
    lines = out.q.swapaxes(0, axis)
    for x, own in zip(parts, rows, strict=True):
        lines[own] = x.q.swapaxes(0, axis)
    return out


def _side_by_side(xs: Sequence[Abstract], dim: int) -> list[Abstract]:
    """On common axes, and on axis ``dim`` with one first atom each and the same others."""
    tail = rearrangement.common_tail(tuple(x.dims[dim] for x in xs))
    parts = []
    for x in xs:
        head = rearrangement.with_tail(x.dims[dim], tail)
        one = x if head is not None else merge_dim(x, dim)
        head = head or one.dims[dim] or ((1,),)
        parts.append(fitted(one, (*x.dims[:dim], head, *x.dims[dim + 1 :])))
    while sum(len(x.dims[dim][0]) for x in parts) > max(MAX_PARTS, len(parts)):
        most = max(range(len(parts)), key=lambda k: len(parts[k].dims[dim][0]))
        count = len(parts[most].dims[dim][0])
        parts[most] = closer(parts[most], parts[most].axes([dim])[0], max(1, count // 2))
    rest = {(*x.dims[:dim], *x.dims[dim + 1 :]) for x in parts}
    return parts if len(rest) == 1 else aligned(parts, but=dim)


def _joined(arrays: Sequence[npt.NDArray | None], dim: int) -> npt.NDArray | None:
    if any(array is None for array in arrays):
        return None
    try:
        return np.concatenate(arrays, dim)  # type: ignore[arg-type]
    except ValueError:
        return None
