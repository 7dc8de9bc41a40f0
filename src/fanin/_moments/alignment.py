"""How the tables of two tensors meet: which classes of one belong to which of the other.

Plans for products, sums and contractions. They depend on the atoms alone, so each is made once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from . import strata
from .strata import Array, Atom, Dim, Dims, Index

KEPT = 16384  # plans of each kind


class Fit(NamedTuple):
    """How tables are written on finer axes: first indices are repeated, then axes inserted.

    Args:
        takes: (axis, old classes, their shape, old segments, their shape) of each refined atom; the
            axis counts the new atoms before it.
        pairs: the shape of ``q`` then, 1 on the axes that are new.
        segments: the shape of ``mean``.
        wide_pairs, wide_segments: the same, broadcast.
    """

    takes: tuple[tuple[int, Index, tuple[int, ...], Index, tuple[int, ...]], ...]
    pairs: tuple[int, ...]
    segments: tuple[int, ...]
    wide_pairs: tuple[int, ...]
    wide_segments: tuple[int, ...]

    def narrow(self, q: Array, mean: Array) -> tuple[Array, Array]:
        """Tables that broadcast to the finer axes."""
        if q.shape == self.pairs and not self.takes:
            return q, mean
        for axis, classes, new, segments, parts in self.takes:
            q = _taken(q, axis, classes, new)
            mean = _taken(mean, axis, segments, parts)
        return q.reshape(self.pairs), mean.reshape(self.segments)

    def wide(self, q: Array, mean: Array) -> tuple[Array, Array]:
        """Tables on the finer axes."""
        q, mean = self.narrow(q, mean)
        if self.pairs == self.wide_pairs:
            return q, mean
        return filled(q, self.wide_pairs), filled(mean, self.wide_segments)


def filled(table: Array, shape: tuple[int, ...]) -> Array:
    """Broadcast to ``shape``; for small tables sooner done than `np.broadcast_to`."""
    if table.shape == shape:
        return table
    out = np.empty(shape)
    out[...] = table
    return out


def _taken(table: Array, axis: int, index: Index, shape: tuple[int, ...]) -> Array:
    return table.take(index, axis).reshape(*table.shape[:axis], *shape, *table.shape[axis + 1 :])


@lru_cache(maxsize=KEPT)
def fit(dims: Dims, finer: Dims) -> Fit:
    """How tables on ``dims`` are written on ``finer``, of which they are coarser or have length 1."""
    takes = []
    pairs: list[int] = []
    segments: list[int] = []
    inserted = 0  # new axes so far: they are no axes of the table yet
    for dim, target in zip(dims, finer, strict=True):
        start = len(pairs)
        pairs += [len(strata.pairs(atom)) if dim else 1 for atom in target]
        segments += [len(atom) if dim else 1 for atom in target]
        if not dim:
            inserted += len(target)
        elif dim != target:
            axis = start - inserted
            for of_pairs, of_segments in zip(*strata.spread(dim, target), strict=True):
                takes.append(
                    (axis, of_pairs.ravel(), of_pairs.shape, of_segments.ravel(), of_segments.shape)
                )
                axis += of_pairs.ndim
    atoms = [atom for dim in finer for atom in dim]
    return Fit(
        tuple(takes),
        tuple(pairs),
        tuple(segments),
        tuple(len(strata.pairs(atom)) for atom in atoms),
        tuple(map(len, atoms)),
    )


class Common(NamedTuple):
    """How tensors come to common axes.

    Args:
        merges: per tensor the axes that are made one atom first.
        merged: per tensor its axes then.
        target: per tensor the axes that it is written on.
        fits: per tensor the way from ``merged`` to ``target``.
    """

    merges: tuple[tuple[int, ...], ...]
    merged: tuple[Dims, ...]
    target: tuple[Dims, ...]
    fits: tuple[Fit, ...]


@lru_cache(maxsize=KEPT)
def common(dims: tuple[Dims, ...], but: int | None = None) -> Common:
    """Axes for tensors that broadcast against each other; of axis ``but`` each keeps its own."""
    rank = max(map(len, dims))
    own = [((),) * (rank - len(d)) + d for d in dims]
    merges: list[list[int]] = [[] for _ in dims]
    target = [list(d) for d in own]
    merged = [list(d) for d in own]
    for axis in range(rank):
        if axis == but:
            continue
        here = [d[axis] for d in own]
        joint = _joint(tuple(here))
        if joint is None:
            here = [one_atom(d) for d in here]
            joint = _union(here)
        for i, dim in enumerate(here):
            if dim != own[i][axis]:
                merges[i].append(axis)
            merged[i][axis] = dim
            target[i][axis] = joint
    given, wanted = tuple(map(tuple, merged)), tuple(map(tuple, target))
    fits = tuple(fit(own, finer) for own, finer in zip(given, wanted, strict=True))
    return Common(tuple(map(tuple, merges)), given, wanted, fits)


def _joint(dims: tuple[Dim, ...]) -> Dim | None:
    """Atoms that refine all of them; None where they do not meet, or only in too many pieces."""
    found = list(dict.fromkeys(dim for dim in dims if dim))
    if not found:
        return ()
    target: Dim | None = found[0]
    for dim in found[1:]:
        target = strata.refinement(target, dim) if target else None
    if target is None or len(target) > max(map(len, found)) + 2:
        return None
    return target


def one_atom(dim: Dim) -> Dim:
    """An axis merged to one atom that keeps the segments of its first."""
    if len(dim) < 2:
        return dim
    inner = strata.size(dim[1:])
    return (tuple(n * inner for n in dim[0]),)


def _union(dims: list[Dim]) -> Dim:
    atom: Atom | None = None
    for dim in dims:
        if dim:
            atom = dim[0] if atom is None else strata.union(atom, dim[0])
    return (atom,) if atom else ()


# contractions -------------------------------------------------------------------------------------


class Tables(NamedTuple):
    """A sum over shared labels as one product of matrices, for ``q`` or for ``mean``.

    Args:
        order_a, order_b: the operands' axes: those of both that stay, own, summed, summed alone;
            and those of both that stay, summed, own, summed alone. None where they are so.
        shape_a, shape_b: the same groups as one axis each, without what nothing is summed alone in.
        alone_a, alone_b: weights of what is summed alone; None for nothing.
        weights: of the classes that are summed in both.
        shape: the atoms of the result.
        order: its axes as ``out`` has them; None where they are so.
    """

    order_a: tuple[int, ...] | None
    order_b: tuple[int, ...] | None
    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]
    alone_a: Array | None
    alone_b: Array | None
    weights: Array
    shape: tuple[int, ...]
    order: tuple[int, ...] | None

    def product(self, a: Array, b: Array) -> Array:
        """The contraction of two tables."""
        a = (a if self.order_a is None else a.transpose(self.order_a)).reshape(self.shape_a)
        b = (b if self.order_b is None else b.transpose(self.order_b)).reshape(self.shape_b)
        a = a if self.alone_a is None else a @ self.alone_a
        b = b if self.alone_b is None else b @ self.alone_b
        out = np.matmul(a, b * self.weights).reshape(self.shape)
        return out if self.order is None else out.transpose(self.order)


class Contraction(NamedTuple):
    """A product of two tensors summed over labels.

    Args:
        merges: per operand the axes that are made one atom first.
        merged: per operand its axes then.
        target: per operand the axes that it is written on.
        q: the product of the pair tables.
        mean: the product of the means.
        terms: how many each sum has.
        dims: axes of the result.
    """

    merges: tuple[tuple[int, ...], tuple[int, ...]]
    merged: tuple[Dims, Dims]
    target: tuple[Dims, Dims]
    q: Tables
    mean: Tables
    terms: float
    dims: Dims


@lru_cache(maxsize=KEPT)
def contraction(
    a: Dims, of_a: tuple[str, ...], b: Dims, of_b: tuple[str, ...], out: tuple[str, ...]
) -> Contraction:
    """The plan of an einsum of two operands in which no operand repeats a label."""
    merges: tuple[list[int], list[int]] = ([], [])
    merged, target = (list(a), list(b)), (list(a), list(b))
    for label in of_a:
        if label not in of_b:
            continue
        i, j = of_a.index(label), of_b.index(label)
        if not a[i] or not b[j]:
            continue
        joint = _joint((a[i], b[j]))
        here = [a[i], b[j]]
        if joint is None:
            here = [one_atom(d) for d in here]
            joint = _union(here)
        for side, (axis, dim) in enumerate(zip((i, j), here, strict=True)):
            if dim != (a, b)[side][axis]:
                merges[side].append(axis)
            merged[side][axis] = dim
            target[side][axis] = joint
    left = dict(zip(of_a, target[0], strict=True))
    right = dict(zip(of_b, target[1], strict=True))
    dims = {label: left.get(label) or right.get(label) or () for label in (*of_a, *of_b)}
    gone = [label for label in dims if label not in out]
    return Contraction(
        (tuple(merges[0]), tuple(merges[1])),
        (tuple(merged[0]), tuple(merged[1])),
        (tuple(target[0]), tuple(target[1])),
        _tables(left, right, out, pairs=True),
        _tables(left, right, out, pairs=False),
        float(math.prod(strata.size(dims[label]) for label in gone)),
        tuple(dims[label] for label in out),
    )


def _tables(
    left: dict[str, Dim], right: dict[str, Dim], out: tuple[str, ...], *, pairs: bool
) -> Tables:
    both = [label for label in left if left[label] and right.get(label)]
    stays, summed = [x for x in both if x in out], [x for x in both if x not in out]
    own_a, alone_a = _split([x for x in left if x not in both], out)
    own_b, alone_b = _split([x for x in right if x not in both], out)
    places = {entry: i for i, entry in enumerate([
        *((x, t) for x in (*stays, *own_a) for t in range(len(left[x]))),
        *((x, t) for x in own_b for t in range(len(right[x]))),
    ])}  # fmt: skip
    atoms = {x: left.get(x) or right.get(x) or () for x in (*left, *right)}
    count = strata.pairs if pairs else _lengths
    groups_a, groups_b = (stays, own_a, summed, alone_a), (stays, summed, own_b, alone_b)
    sums_a, sums_b = any(left[x] for x in alone_a), any(right[x] for x in alone_b)
    return Tables(
        _unless_sorted(_axes(left, groups_a)),
        _unless_sorted(_axes(right, groups_b)),
        tuple(_weights(left, group, count).size for group in groups_a[: 4 if sums_a else 3]),
        tuple(_weights(right, group, count).size for group in groups_b[: 4 if sums_b else 3]),
        _weights(left, alone_a, count) if sums_a else None,
        _weights(right, alone_b, count) if sums_b else None,
        _weights(left, summed, count)[:, None],
        tuple(len(count(atoms[x][t])) for x, t in places),
        _unless_sorted(tuple(places[x, t] for x in out for t in range(len(atoms[x])))),
    )


def _unless_sorted(order: tuple[int, ...]) -> tuple[int, ...] | None:
    """An order of axes; None where it changes nothing."""
    return None if order == tuple(range(len(order))) else order


def _split(labels: list[str], out: tuple[str, ...]) -> tuple[list[str], list[str]]:
    return [x for x in labels if x in out], [x for x in labels if x not in out]


def _axes(of: dict[str, Dim], groups: tuple[list[str], ...]) -> tuple[int, ...]:
    starts = dict(zip(of, accumulate(map(len, of.values()), initial=0), strict=False))
    return tuple(starts[x] + i for group in groups for x in group for i in range(len(of[x])))


def _weights(of: dict[str, Dim], labels: list[str], count: Callable[[Atom], Array]) -> Array:
    """How many pairs of indices, or indices, each entry of a table over these axes stands for."""
    out = np.ones(())
    for label in labels:
        for atom in of[label]:
            out = np.multiply.outer(out, count(atom))
    return out.reshape(-1)


def _lengths(atom: Atom) -> Array:
    return np.array(atom, float)


# sums ---------------------------------------------------------------------------------------------


class Sum(NamedTuple):
    """A weighted sum over some axes of a table.

    Args:
        order: its axes, those that go last.
        weights: of what goes; None where nothing does.
        shape: of the result.
    """

    order: tuple[int, ...]
    weights: Array | None
    shape: tuple[int, ...]

    def of(self, table: Array) -> Array:
        """The sum."""
        if self.weights is None:
            return table
        return (table.transpose(self.order).reshape(-1, self.weights.size) @ self.weights).reshape(
            self.shape
        )


@lru_cache(maxsize=KEPT)
def weighing(atoms: tuple[Atom, ...], axes: tuple[int, ...], of: Callable[[Atom], Array]) -> Sum:
    """The plan of an average over some axes of a table, that stay with length 1.

    Args:
        atoms: of the table.
        axes: which of them are averaged.
        of: atom -> weights of its classes, or of its segments.
    """
    sizes = [of(atom).size for atom in atoms]
    weights = np.ones(())
    for axis in axes:
        weights = np.multiply.outer(weights, of(atoms[axis]))
    order = (*(a for a in range(len(atoms)) if a not in axes), *axes)
    shape = tuple(1 if a in axes else n for a, n in enumerate(sizes))
    return Sum(order, weights.reshape(-1) if axes else None, shape)


class Reduction(NamedTuple):
    """A sum over axes of a tensor: of ``q``, of ``mean``, and the axes that are left."""

    q: Sum
    mean: Sum
    dims: Dims


@lru_cache(maxsize=KEPT)
def reduction(dims: Dims, gone: tuple[int, ...], keep: bool) -> Reduction:
    """The plan of a sum over the axes ``gone``, that stay with length 1 where ``keep``."""
    left = tuple(() if d in gone else dim for d, dim in enumerate(dims) if keep or d not in gone)
    named = {str(d): dim for d, dim in enumerate(dims)}
    lost = [str(d) for d in gone]
    groups = [d for d in named if d not in lost], lost
    sums = []
    for count in (strata.pairs, _lengths):
        weights = _weights(named, lost, count) if any(named[d] for d in lost) else None
        shape = tuple(len(count(atom)) for dim in left for atom in dim)
        sums.append(Sum(_axes(named, groups), weights, shape))
    return Reduction(sums[0], sums[1], left)
