"""Sparse linear maps along one axis: what they do to means and pair moments, exactly.

y_a = sum_i w_ai x_i. Over the ordered pairs (a, b) of one class of the new axis the average of
E y_a y_b is a weighted sum of the old classes' q: the weight of class c is the average over (a, b)
of sum w_ai w_bj, over the (i, j) in c. Resampling, average pooling, padding, shifts, windows and
indexing by known numbers are such maps, and their gradients the transposed ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from weakref import ref
from zlib import crc32

import numpy as np
import numpy.typing as npt

from . import strata
from .domain import Abstract, limited, merge_dim, uniform
from .strata import Array, Atom, Dim, Dims, Index

RUNS = 8  # segments of a new axis, where positions differ
MAX_ENTRIES = 1 << 21  # of a map; larger ones are approximated by their callers
MAX_KEPT = 512  # maps of known numbers
MAX_FACTORS = 3  # atoms of the old axis
_GAIN = 2.5e-3  # share of the total that a further segment must explain


@dataclass(frozen=True, eq=False, slots=True)
class Linear:
    """A matrix by its entries, each place at most once.

    Args:
        rows: of each entry, in the flat new axis.
        columns: in the flat old axis.
        weights: their values.
        height: length of the new axis.
        width: length of the old axis.
    """

    rows: Index
    columns: Index
    weights: Array
    height: int
    width: int

    @property
    def transposed(self) -> Linear:
        """The gradient's map."""
        return _transposed(self)


@lru_cache(maxsize=4096)
def _transposed(linear: Linear) -> Linear:
    return Linear(linear.columns, linear.rows, linear.weights, linear.width, linear.height)


def from_taps(sources: npt.NDArray[np.integer], weights: npt.NDArray, width: int) -> Linear:
    """Row a has the weights[a, k] at columns sources[a, k]; equal places add up, zeros drop out.

    Args:
        sources: (rows, taps); outside of 0..width-1 a tap counts as nothing.
        weights: of the same shape, or broadcast to it.
        width: length of the old axis.
    """
    height, taps = sources.shape
    rows = np.repeat(np.arange(height), taps)
    columns, values = sources.ravel(), np.broadcast_to(weights, sources.shape).ravel()
    kept = (columns >= 0) & (columns < width) & (values != 0)
    flat, inverse = np.unique(rows[kept] * width + columns[kept], return_inverse=True)
    total = np.bincount(inverse, values[kept], flat.size).astype(float)
    return Linear(flat // width, flat % width, total, height, width)


def picks(sources: npt.NDArray[np.integer], width: int) -> Linear:
    """New position a reads the old position ``sources[a]``; negative ones read nothing."""
    flat = np.asarray(sources).ravel()
    rows = np.flatnonzero((flat >= 0) & (flat < width))
    return Linear(rows, flat[rows].astype(np.intp), np.ones(rows.size), flat.size, width)


def picks_of(sources: npt.NDArray[np.integer], width: int) -> Linear:
    """`picks`, one object for equal numbers, so that its tables are kept; negative ones count back."""
    key = (fingerprint(sources), width)
    found = _PICKS.get(key)
    if found is None:
        if len(_PICKS) > MAX_KEPT:
            _PICKS.clear()
        found = _PICKS[key] = picks(np.asarray(sources, np.int64) % max(width, 1), width)
    return found


def fingerprint(array: npt.NDArray) -> Fingerprint:
    """What tells arrays of numbers apart, remembered as long as the array lives."""
    found = _FINGERPRINTS.get(id(array))
    if found is not None and found[0]() is array:
        return found[1]
    print_ = (crc32(array.tobytes()), array.shape, array.dtype.str, int(array.sum()))
    if len(_FINGERPRINTS) > 8 * MAX_KEPT:
        _FINGERPRINTS.clear()
    _FINGERPRINTS[id(array)] = (ref(array), print_)
    return print_


Fingerprint = tuple[int, tuple[int, ...], str, int]
_PICKS: dict[tuple[Fingerprint, int], Linear] = {}
_FINGERPRINTS: dict[int, tuple[ref[npt.NDArray], Fingerprint]] = {}


@lru_cache(maxsize=4096)
def shifting(n: int, shift: int) -> Linear:
    """Position a reads a - shift, round the end."""
    return picks((np.arange(n) - shift) % n, n)


# how tables change --------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def pair_sums(linear: Linear, old: Dim, new: Dim) -> Array:
    """Sum of w_ai w_bj over (a, b) in a new class and (i, j) in an old one.

    Axes are the atoms of ``new``, then those of ``old``. Sums over all pairs that share the indices
    of some atoms are sums of squares; classes follow by inclusion and exclusion.
    """
    atoms = (*new, *old)
    coordinates = [*_coordinates(linear.rows, new), *_coordinates(linear.columns, old)]
    segments = [
        np.repeat(np.arange(len(atom)), atom)[c] for atom, c in zip(atoms, coordinates, strict=True)
    ]
    table = np.empty([len(strata.pairs(atom)) for atom in atoms])
    for free in product((False, True), repeat=len(atoms)):
        table[_slices(atoms, free)] = _shared(linear.weights, atoms, coordinates, segments, free)
    for axis, atom in enumerate(atoms):
        lines, s = np.moveaxis(table, axis, 0), len(atom)
        lines[s + np.arange(s) * (s + 1)] -= lines[:s]
    return table


def _coordinates(flat: Index, dim: Dim) -> list[Index]:
    return [np.asarray(c) for c in np.unravel_index(flat, [sum(a) for a in dim])] if dim else []


def _slices(atoms: tuple[Atom, ...], free: tuple[bool, ...]) -> tuple[slice, ...]:
    return tuple(
        slice(len(atom), None) if own else slice(0, len(atom))
        for atom, own in zip(atoms, free, strict=True)
    )


def _shared(
    weights: Array,
    atoms: tuple[Atom, ...],
    coordinates: list[Index],
    segments: list[Index],
    free: tuple[bool, ...],
) -> Array:
    """Sums over pairs that share the indices of the atoms that are not ``free``, by segments."""
    inside = [k for k, own in enumerate(free) if not own]
    outside = [k for k, own in enumerate(free) if own]
    group = _joint([coordinates[k] for k in inside], [sum(atoms[k]) for k in inside])
    owner = _joint([segments[k] for k in inside], [len(atoms[k]) for k in inside])
    column = _joint([segments[k] for k in outside], [len(atoms[k]) for k in outside])
    owners = math.prod(len(atoms[k]) for k in inside)
    columns = math.prod(len(atoms[k]) for k in outside)
    names, first, group = np.unique(
        np.broadcast_to(group, weights.shape), return_index=True, return_inverse=True
    )
    sums = np.bincount(group * columns + column, weights, names.size * columns)
    sums = sums.reshape(names.size, columns)
    owner = np.broadcast_to(owner, weights.shape)[first]
    table = np.stack([sums[owner == k].T @ sums[owner == k] for k in range(owners)])
    counts = [len(atoms[k]) for k in outside]
    table = table.reshape([*(len(atoms[k]) for k in inside), *counts, *counts])
    a, b = len(inside), len(outside)
    places: dict[int, tuple[int, ...]] = {k: (i,) for i, k in enumerate(inside)}
    places |= {k: (a + i, a + b + i) for i, k in enumerate(outside)}
    order = [axis for k in range(len(atoms)) for axis in places[k]]
    shape = [len(a) ** 2 if own else len(a) for a, own in zip(atoms, free, strict=True)]
    return table.transpose(order).reshape(shape)


def _joint(parts: list[Index], counts: list[int]) -> Index:
    out = np.zeros((), np.intp)
    for part, n in zip(parts, counts, strict=True):
        out = out * n + part
    return out


def from_margins(rows: Array, columns: Array, squares: Array, old: Atom, new: Atom) -> Array:
    """`pair_sums` of a dense map from one atom to one other, by its sums.

    Args:
        rows: (positions of ``new``, segments of ``old``): sums of each row.
        columns: (segments of ``new``, positions of ``old``): sums of each column.
        squares: (segments of ``new``, segments of ``old``): sums of squares.
        old: the atom that it reads.
        new: the atom that it makes.
    """
    s, t = len(new), len(old)
    owner_new = np.repeat(np.eye(s), new, axis=0)
    owner_old = np.repeat(np.eye(t), old, axis=0)
    totals = owner_new.T @ rows
    table = np.empty((s + s * s, t + t * t))
    table[:s, :t] = squares
    table[:s, t:] = np.einsum("as,ai,aj->sij", owner_new, rows, rows).reshape(s, -1)
    table[s:, :t] = np.einsum("si,ti,ik->stk", columns, columns, owner_old).reshape(-1, t)
    table[s:, t:] = np.einsum("si,tj->stij", totals, totals).reshape(s * s, -1)
    table[s + np.arange(s) * (s + 1)] -= table[:s]
    table[:, t + np.arange(t) * (t + 1)] -= table[:, :t]
    return table


@lru_cache(maxsize=4096)
def transfer(linear: Linear, old: Dim, new: Dim) -> tuple[Array, Array]:
    """Matrices from old to new classes, and from old to new segments, atoms flattened."""
    sums = pair_sums(linear, old, new)
    counts = _outer([strata.pairs(atom) for atom in new])
    table = sums.reshape(counts.size, -1) / np.maximum(counts, 1.0)[:, None]
    lengths = _outer([np.array(atom, float) for atom in new])
    segment = [
        _joint_segments(flat, dim) for flat, dim in ((linear.rows, new), (linear.columns, old))
    ]
    width = math.prod(map(len, old))
    means = np.bincount(segment[0] * width + segment[1], linear.weights, lengths.size * width)
    return table, means.reshape(lengths.size, width) / lengths[:, None]


def _outer(vectors: list[Array]) -> Array:
    out = np.ones(())
    for v in vectors:
        out = np.multiply.outer(out, v)
    return out.reshape(-1)


def _joint_segments(flat: Index, dim: Dim) -> Index:
    parts = [
        np.repeat(np.arange(len(atom)), atom)[c]
        for atom, c in zip(dim, _coordinates(flat, dim), strict=True)
    ]
    return np.broadcast_to(_joint(parts, [len(atom) for atom in dim]), flat.shape)


@lru_cache(maxsize=1024)
def crossing(linear: Linear, old: Dim, new: Dim) -> Array:
    """A matrix from old to new classes for E[(w x)_a x_b], averaged with E[x_a (w x)_b].

    Half of what `transfer` has for w + 1 beyond those for w and for 1.
    """
    n = linear.height
    one = picks(np.arange(n), n)
    flat = np.concatenate([linear.rows * n + linear.columns, np.arange(n) * (n + 1)])
    flat, inverse = np.unique(flat, return_inverse=True)
    weights = np.bincount(inverse, np.concatenate([linear.weights, one.weights]), flat.size).astype(
        float
    )
    both = Linear(flat // n, flat % n, weights, n, n)
    tables = [transfer(m, old, new)[0] for m in (both, linear, one)]
    return np.asarray((tables[0] - tables[1] - tables[2]) / 2)


@lru_cache(maxsize=4096)
def natural(linear: Linear, old: Dim) -> Dim:
    """The new axis as one atom, with segments where what its positions read differs."""
    if linear.height < 2:
        return ()
    owner = _joint_segments(linear.columns, old)
    parts = math.prod(map(len, old))
    where = linear.rows * parts + owner
    size = linear.height * parts
    signature = np.stack(
        [
            np.bincount(where, linear.weights, size).reshape(-1, parts),
            np.bincount(where, linear.weights**2, size).reshape(-1, parts),
        ],
        axis=2,
    ).reshape(linear.height, -1)
    return (runs(signature.astype(float)),)


def runs(signature: Array, most: int = RUNS) -> Atom:
    """Segments of like positions: exact ones if few, else those that explain the most variance.

    Args:
        signature: (positions, numbers): what a position is like.
        most: how many segments.

    >>> runs(np.array([[0.0], [1.0], [1.0], [0.0], [0.0]]))
    (1, 2, 2)
    """
    signature = signature / np.maximum(np.abs(signature).max(axis=0), 1e-300)
    changes = np.flatnonzero(np.abs(np.diff(signature, axis=0)).max(axis=1) > 1e-9) + 1
    ends = [0, *changes.tolist(), len(signature)]
    if len(ends) - 1 > most:
        ends = _tree(signature, most)
    return tuple(q - p for p, q in pairwise(ends))


def _tree(signature: Array, most: int) -> list[int]:
    """Boundaries found one after the other, each where it explains most, as a regression tree."""
    sums = np.concatenate([np.zeros((1, signature.shape[1])), np.cumsum(signature, axis=0)])
    least = _GAIN * float((signature**2).sum())

    def best(p: int, q: int) -> tuple[float, int, int, int]:
        if q - p < 2:
            return 0.0, p, p, q
        left = (sums[p + 1 : q] - sums[p]) ** 2
        right = (sums[q] - sums[p + 1 : q]) ** 2
        n = np.arange(1, q - p)[:, None]
        gain = (left / n + right / (q - p - n)).sum(axis=1) - ((sums[q] - sums[p]) ** 2).sum() / (
            q - p
        )
        k = int(np.argmax(gain))
        return float(gain[k]), p, p + 1 + k, q

    parts = [best(0, len(signature))]
    while len(parts) < most:
        gain, p, k, q = top = max(parts)
        if gain <= least:
            break
        parts.remove(top)
        parts += [best(p, k), best(k, q)]
    return sorted({0, *(q for _, _, _, q in parts)})


# applying them ------------------------------------------------------------------------------------


def mapped(
    x: Abstract, dim: int, linear: Linear, new: Dims | None = None, *, span: int = 1
) -> Abstract:
    """``linear`` applied to one axis, or to ``span`` neighbouring axes read as one.

    Args:
        x: the tensor.
        dim: the axis, the first one of ``span``.
        linear: the map, from their joint length.
        new: axes that replace them; by default one, with the segments that the map calls for.
        span: how many axes; 0 for a new axis from nothing.
    """
    one, old = joined(x, dim, span)
    new = (natural(linear, old),) if new is None else new
    table, means = transfer(linear, old, tuple(atom for d in new for atom in d))
    return carried(one, dim, table, means, new)


def resampled(x: Abstract, dim: int, linear: Linear) -> Abstract:
    """`mapped` for maps whose rows differ only near the ends: no segments but what the axis has."""
    alike = all(len(atom) == 1 for atom in x.dims[dim])
    return mapped(x, dim, linear, (strata.whole(linear.height),) if alike else None)


def joined(x: Abstract, dim: int, span: int) -> tuple[Abstract, Dim]:
    """Neighbouring axes as one, row-major, of few enough atoms; and its atoms."""
    old = tuple(atom for d in x.dims[dim : dim + span] for atom in d)
    one = Abstract((*x.dims[:dim], old, *x.dims[dim + span :]), x.mean, x.q, noise=x.noise)
    if len(old) > MAX_FACTORS:
        one = merge_dim(uniform(one, [dim]), dim)
    return one, one.dims[dim]


def carried(x: Abstract, dim: int, table: Array, means: Array, new: Dims) -> Abstract:
    """Axis ``dim`` replaced by others, its tables multiplied by these matrices."""
    count = len(x.dims[dim])
    atoms = [atom for d in new for atom in d]
    axis = sum(map(len, x.dims[:dim]))
    q = _applied(table, x.q, axis, count, [len(strata.pairs(atom)) for atom in atoms])
    mean = _applied(means, x.mean, axis, count, [len(atom) for atom in atoms])
    return limited(Abstract((*x.dims[:dim], *new, *x.dims[dim + 1 :]), mean, q, noise=x.noise))


def _applied(matrix: Array, table: Array, axis: int, count: int, shape: list[int]) -> Array:
    before, after = table.shape[:axis], table.shape[axis + count :]
    joint = table.reshape(math.prod(before), matrix.shape[1], math.prod(after))
    return np.matmul(matrix, joint).reshape(*before, *shape, *after)
