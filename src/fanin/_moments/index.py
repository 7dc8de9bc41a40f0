"""Rules of reading at indices: ``x[i, :, j]``, gather, take, masks; and of indices themselves.

Gradients are added up at the places that were read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from . import strata
from .algebra import unbroadcast
from .boxes import Box, embedded
from .domain import (
    Abstract,
    cut,
    expanded,
    full,
    measured,
    merge_dim,
    permuted,
    reshaped,
    uniform,
)
from .indexing import coincidence, gathered, given_back, integers, is_mask, places, scattered, taken
from .maps import carried, joined
from .registry import BACKWARD, FORWARD, backward, forward
from .strata import Array, Dims

Shapes = Sequence[tuple[int, ...]]
Places = list[tuple[int, Abstract]]  # (axis, indices into it)


# x[i, :, j] ---------------------------------------------------------------------------------------


class Reading:
    """What ``x[indices]`` reads: some axes of x as one, at the indices' common shape.

    Args:
        x: the tensor.
        indices: per axis its indices, None for all; truth values stand for several axes.
        shape: of the result, that says how many places an unknown mask leaves.
    """

    def __init__(
        self, x: Abstract, indices: Sequence[Abstract | None], shape: tuple[int, ...]
    ) -> None:
        self.places: Places = []
        self.mask = False
        axis = 0
        for given in indices:
            if given is None:
                axis += 1
            elif is_mask(given):
                axis += self._from_mask(given, axis)
            else:
                self.places.append((axis, given))
                axis += 1
        axes = [a for a, _ in self.places]
        together = axes == list(range(axes[0], axes[0] + len(axes)))
        self.at = axes[0] if together else 0
        rest = [d for d in range(len(x.dims)) if d not in axes]
        self.order = [*rest[: self.at], *axes, *rest[self.at :]]
        self.lengths = [x.shape[a] for a in axes]
        rank = len(shape) - len(rest)
        self.shape = shape[self.at : self.at + rank]

    def _from_mask(self, mask: Abstract, axis: int) -> int:
        rank = len(mask.dims)
        if mask.known is None:
            self.mask = True
            self.places += [(axis + k, mask) for k in range(rank)]
        else:
            for k, where in enumerate(np.nonzero(mask.known)):
                self.places.append((axis + k, measured(where)))
        return rank

    @property
    def joint(self) -> Abstract | None:
        """All indices as one into the joint axis, where they are known or there is only one."""
        if len(self.places) == 1 and not self.mask:
            return self.places[0][1]
        if self.mask:
            return None
        flat = np.zeros((), np.int64)
        for (_, given), n in zip(self.places, self.lengths, strict=True):
            known = places(given)
            if known is None:
                return None
            flat = flat * n + known % max(n, 1)
        return measured(flat)

    def sums(self) -> tuple[Dims, Array]:
        """For unknown indices: the probability of each old class by new class, and the new axes.

        A mask reads every place at most once; indices into different axes are independent.
        """
        new: Dims = tuple(map(strata.whole, self.shape))
        atoms = [atom for dim in new for atom in dim]
        shape = [len(strata.pairs(atom)) for atom in atoms]
        if self.mask:
            equal = np.zeros(shape)
            equal[(0,) * len(shape)] = 1.0
            return new, np.stack([equal.reshape(-1), 1.0 - equal.reshape(-1)], 1)
        table = np.ones((math.prod(shape), 1))
        for (_, given), n in zip(self.places, self.lengths, strict=True):
            if n > 1:
                p = _chance(given, n, self.shape)
                table = np.stack([table * p, table * (1 - p)], 2).reshape(table.shape[0], -1)
        return new, table


def _chance(index: Abstract, n: int, shape: tuple[int, ...]) -> Array:
    """The probability that two places hold the same index, a column over the classes of ``shape``."""
    return expanded(coincidence(index, n), shape).q.reshape(-1, 1)


@forward("index", "_unsafe_index")
def index(x: Abstract, indices: Sequence[Abstract | None], shapes: Shapes) -> Abstract:
    """Two results are one number as often as their indices agree."""
    if all(i is None for i in indices):
        return x.plain()
    at = _same_place(x, indices)
    if at is not None:
        return cast("Abstract", FORWARD["select"](x=x, dim=1, index=at, op="select"))
    reading = Reading(x, indices, shapes[0])
    turned = permuted(x, reading.order)
    joint = reading.joint
    if joint is not None:
        return taken(turned, reading.at, joint, len(reading.places))
    new, table = reading.sums()
    one = _pairwise(turned, reading)
    means = np.ones((1, 1))
    return carried(one, reading.at, table, means, new)


def _same_place(x: Abstract, indices: Sequence[Abstract | None]) -> int | None:
    """The position that ``x[arange(n), [i, i, ...]]`` reads in every row: pooling at a known token."""
    if len(indices) != 2 or len(x.dims) < 2 or indices[0] is None or indices[1] is None:
        return None
    rows, columns = indices[0].known, indices[1].known
    if rows is None or columns is None or {rows.dtype.kind, columns.dtype.kind} != {"i"}:
        return None
    if rows.shape != x.shape[:1] or columns.shape != rows.shape or columns.size == 0:
        return None
    if (columns != columns[0]).any() or not np.array_equal(rows, np.arange(len(rows))):
        return None
    return int(columns[0]) % x.shape[1]


def _pairwise(x: Abstract, reading: Reading) -> Abstract:
    """The axes that are read as one: of two classes for a mask, else two an axis."""
    span = len(reading.places)
    if reading.mask:
        one, _ = joined(x, reading.at, span)
        return uniform(merge_dim(one, reading.at), [reading.at])
    for d in range(reading.at, reading.at + span):
        x = uniform(merge_dim(x, d), [d])
    return joined(x, reading.at, span)[0]


@backward("index", "_unsafe_index")
def index_back(grad: Abstract, x: Abstract, indices: Sequence[Abstract | None]) -> dict[str, Any]:
    """The gradients added up at the places that were read."""
    if all(i is None for i in indices):
        return {"x": grad}
    at = _same_place(x, indices)
    if at is not None:
        return dict(BACKWARD["select"](grad=grad, x=x, dim=1, index=at, op="select"))
    return {"x": added_up(grad, Reading(x, indices, grad.shape))}


def added_up(grad: Abstract, reading: Reading) -> Abstract:
    """What flows back to the tensor that was read."""
    joint = reading.joint
    if joint is not None:
        back = given_back(grad, reading.at, joint, reading.lengths)
    else:
        back = _transposed(grad, reading)
    return permuted(back, np.argsort(reading.order).tolist())


def _transposed(grad: Abstract, reading: Reading) -> Abstract:
    """Sums over pairs: the table of the reading, by the pairs of new and of old classes."""
    span = len(reading.shape)
    for d in range(reading.at, reading.at + span):
        grad = uniform(merge_dim(grad, d), [d])
    one = joined(grad, reading.at, span)[0]
    new, table = reading.sums()
    if len(one.dims[reading.at]) != sum(map(len, new)):
        new = (one.dims[reading.at],)
        table = np.stack([table[0], table[1:].mean(axis=0)])
    counts = _pairs([atom for dim in new for atom in dim])
    n = math.prod(reading.lengths)
    lengths = [n] if reading.mask else reading.lengths
    old: Dims = tuple(map(strata.whole, lengths))
    per = _pairs([atom for dim in old for atom in dim])
    means = np.full((1, 1), math.prod(reading.shape) / n)
    back = carried(one, reading.at, (table * counts[:, None]).T / per[:, None], means, old)
    if reading.mask:
        shape = (*back.shape[: reading.at], *reading.lengths, *back.shape[reading.at + 1 :])
        back = reshaped(back, shape)
    return back


def _pairs(atoms: Sequence[strata.Atom]) -> Array:
    out = np.ones(())
    for atom in atoms:
        out = np.multiply.outer(out, strata.pairs(atom))
    return out.reshape(-1)


# one axis -----------------------------------------------------------------------------------------


@forward("index_select")
def index_select(x: Abstract, dim: int, index: Abstract) -> Abstract:
    """Indices of one axis, maybe several times."""
    if not x.dims:
        return x.plain()
    return taken(x, dim % len(x.dims), _row(index))


def _row(index: Abstract) -> Abstract:
    return index if len(index.dims) == 1 else reshaped(index, (math.prod(index.shape),))


@backward("index_select")
def index_select_back(grad: Abstract, x: Abstract, dim: int, index: Abstract) -> dict[str, Any]:
    """Added up at these indices."""
    if not x.dims:
        return {"x": grad}
    dim %= len(x.dims)
    return {"x": given_back(grad, dim, _row(index), [x.shape[dim]])}


@forward("gather")
def gather(x: Abstract, dim: int, index: Abstract) -> Abstract:
    """Every position reads its own index of one axis."""
    if not x.dims:
        return reshaped(x, index.shape)
    dim %= len(x.dims)
    for d, n in enumerate(index.shape):
        x = cut(x, d, 0, n) if d != dim else x
    return gathered(x, dim, index)


@backward("gather")
def gather_back(grad: Abstract, x: Abstract, dim: int, index: Abstract) -> dict[str, Any]:
    """Added up at these indices."""
    if not x.dims:
        return {"x": reshaped(grad, ())}
    dim %= len(x.dims)
    return {"x": widened(scattered(grad, dim, index, x.shape[dim]), x.shape)}


def widened(x: Abstract, shape: tuple[int, ...]) -> Abstract:
    """``x`` in the first corner of a longer tensor of zeros."""
    if x.shape == shape:
        return x
    return embedded(x, Box(shape, (0,) * len(shape), x.shape, (1,) * len(shape)))


def _along(x: Abstract, indices: Abstract, dim: int | None) -> tuple[Abstract, Abstract, int]:
    """Flattened where no axis is given; the other axes broadcast against each other."""
    if dim is None:
        return reshaped(x, (math.prod(x.shape),)), _row(indices), 0
    dim %= len(x.dims)
    pairs = list(zip(x.shape, indices.shape, strict=True))
    wide = [n if d == dim else max(n, m) for d, (n, m) in enumerate(pairs)]
    long = [m if d == dim else max(n, m) for d, (n, m) in enumerate(pairs)]
    return expanded(x, wide), expanded(indices, long), dim


@forward("take_along_dim")
def take_along_dim(x: Abstract, indices: Abstract, dim: int | None = None) -> Abstract:
    """``gather`` with broadcasting."""
    wide, where, axis = _along(x, indices, dim)
    return gathered(wide, axis, where)


@backward("take_along_dim")
def take_along_dim_back(
    grad: Abstract, x: Abstract, indices: Abstract, dim: int | None = None
) -> dict[str, Any]:
    """Added up at these indices."""
    wide, where, axis = _along(x, indices, dim)
    total = scattered(grad, axis, where, wide.shape[axis])
    if dim is None:
        return {"x": reshaped(total, x.shape)}
    return {"x": unbroadcast(total, x.shape)}


@forward("take")
def take(x: Abstract, index: Abstract) -> Abstract:
    """Places of the flat tensor."""
    return taken(reshaped(x, (math.prod(x.shape),)), 0, index)


@backward("take")
def take_back(grad: Abstract, x: Abstract, index: Abstract) -> dict[str, Any]:
    """Added up at these places."""
    flat = given_back(grad, 0, index, [math.prod(x.shape)])
    return {"x": reshaped(flat, x.shape)}


@forward("masked_select")
def masked_select(x: Abstract, mask: Abstract, shapes: Shapes) -> Abstract:
    """The elements under the mask, in a row; an unknown mask takes any."""
    wide = np.broadcast_shapes(x.shape, mask.shape)
    return index(expanded(x, wide), [_as_mask(expanded(mask, wide))], shapes)


def _as_mask(mask: Abstract) -> Abstract:
    """Surely taken for truth values."""
    if mask.known is not None:
        return mask.with_(known=mask.known.astype(bool))
    return mask if is_mask(mask) else full(mask.shape, 0.5, 0.5)


@backward("masked_select")
def masked_select_back(grad: Abstract, x: Abstract, mask: Abstract) -> dict[str, Any]:
    """Each back to its place."""
    wide = np.broadcast_shapes(x.shape, mask.shape)
    found = index_back(grad, expanded(x, wide), [_as_mask(expanded(mask, wide))])
    return {"x": unbroadcast(found["x"], x.shape)}


# indices themselves -------------------------------------------------------------------------------


@forward("nonzero", "argwhere")
def nonzero(x: Abstract, shapes: Shapes) -> Abstract:
    """Indices of elements that are not 0, a row each; unknown ones are uniform on every axis."""
    if x.known is not None:
        return measured(np.argwhere(x.known))
    sizes = x.shape or (1,)
    mean = sum((n - 1) / 2 for n in sizes) / len(sizes)
    square = sum((n - 1) * (2 * n - 1) / 6 for n in sizes) / len(sizes)
    return full(shapes[0], square, mean)


@forward("nonzero_numpy")
def nonzero_numpy(x: Abstract, shapes: Shapes) -> list[Abstract]:
    """The same, a tensor an axis."""
    if x.known is not None:
        return [measured(where) for where in np.nonzero(x.known)]
    return [integers(shape, n) for shape, n in zip(shapes, x.shape, strict=True)]


@forward("bucketize", "searchsorted")
def searchsorted(
    shapes: Shapes, boundaries: Abstract | None = None, sorted_sequence: Abstract | None = None
) -> Abstract:
    """How many boundaries lie below: uniform."""
    sequence = boundaries if boundaries is not None else sorted_sequence
    assert sequence is not None
    return integers(shapes[0], sequence.shape[-1] + 1)
