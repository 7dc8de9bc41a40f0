"""An axis as atoms, an atom as segments: the bookkeeping of which pairs of indices are alike.

An atom is a factor of an axis, so that a view that splits or merges axes loses nothing. Its length
is a sum of segments whose positions differ in their statistics: a class token before the patches,
the early positions of a causal sequence, the parts of a concatenation. An ordered pair of indices of
an atom with segments n_1..n_s belongs to one class: the same index, in segment i (s classes, first);
or different indices, from segments i and j (s^2 classes, row by row). One segment has two classes:
same, different.

Everything here is a function of small tuples, computed once and kept.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import accumulate

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]
Atom = tuple[int, ...]  # lengths of its segments
Dim = tuple[Atom, ...]  # row-major factors; none for an axis of length 1
Dims = tuple[Dim, ...]

UNPAIRED = 1e-30  # weight of a class without pairs, so that averages of nothing but it exist


def size(dim: Dim) -> int:
    """The length of an axis.

    >>> size(((1, 196), (3,)))
    591
    """
    return math.prod(map(sum, dim))


@lru_cache(maxsize=65536)
def lengths(dims: Dims) -> tuple[int, ...]:
    """The lengths of several axes."""
    return tuple(map(size, dims))


@lru_cache(maxsize=65536)
def flattened(dims: Dims) -> tuple[Atom, ...]:
    """The atoms of several axes, in order."""
    return tuple(atom for dim in dims for atom in dim)


@lru_cache(maxsize=65536)
def places(dims: Dims, wanted: tuple[int, ...]) -> tuple[int, ...]:
    """Where the atoms of the axes ``wanted`` stand among all atoms."""
    starts = [0, *accumulate(map(len, dims))]
    return tuple(a for d in wanted for a in range(starts[d], starts[d + 1]))


def whole(n: int) -> Dim:
    """An axis of length n whose positions are alike."""
    return ((n,),) if n > 1 else ()


@lru_cache(maxsize=65536)
def left(atom: Atom) -> Index:
    """Class -> segment of the first index."""
    s = len(atom)
    return np.concatenate([np.arange(s), np.repeat(np.arange(s), s)])


@lru_cache(maxsize=65536)
def right(atom: Atom) -> Index:
    """Class -> segment of the second index."""
    s = len(atom)
    return np.concatenate([np.arange(s), np.tile(np.arange(s), s)])


@lru_cache(maxsize=65536)
def pairs(atom: Atom) -> Array:
    """How many ordered pairs of indices each class has.

    >>> pairs((1, 3)).tolist()
    [1.0, 3.0, 0.0, 3.0, 3.0, 6.0]
    """
    n = np.array(atom, float)
    return np.concatenate([n, (np.outer(n, n) - np.diag(n)).ravel()])


@lru_cache(maxsize=65536)
def shares(atom: Atom) -> Array:
    """The fraction of indices in each segment."""
    n = np.array(atom, float)
    return n / n.sum()


@lru_cache(maxsize=65536)
def same(atom: Atom) -> Array:
    """Weights of the classes in an average over single indices."""
    return np.concatenate([shares(atom), np.zeros(len(atom) ** 2)])


@lru_cache(maxsize=65536)
def different(atom: Atom) -> Array:
    """Weights of the classes in an average over pairs of different indices."""
    weights = np.concatenate([np.zeros(len(atom)), np.maximum(pairs(atom)[len(atom) :], UNPAIRED)])
    return weights / weights.sum()


def classes(i: Index, j: Index, equal: npt.NDArray[np.bool_], segments: int) -> Index:
    """The class of pairs from segments i and j, of the same index where ``equal``."""
    return np.where(equal, i, segments + i * segments + j)


@lru_cache(maxsize=65536)
def union(a: Atom, b: Atom) -> Atom:
    """The coarsest atom that refines both.

    >>> union((1, 9), (4, 6))
    (1, 3, 6)
    """
    cuts = sorted({*accumulate(a), *accumulate(b)})
    return tuple(q - p for p, q in zip([0, *cuts], cuts, strict=False))


@lru_cache(maxsize=65536)
def refinement(a: Dim, b: Dim) -> Dim | None:
    """The coarsest atoms that refine both axes; None where their factors do not match."""
    sizes = _factors([sum(atom) for atom in a], [sum(atom) for atom in b])
    if sizes is None:
        return None
    out: Dim = tuple((n,) for n in sizes)
    for dim in (a, b):
        cuts = _aligned(dim, tuple(map(sum, out)))
        if cuts is None:
            return None
        out = tuple(union(p, q) for p, q in zip(out, cuts, strict=True))
    return out


def _factors(a: list[int], b: list[int]) -> list[int] | None:
    out = []
    while a and b:
        p, q = a.pop(), b.pop()
        if p % q == 0:
            out.append(q)
            a += [p // q] if p > q else []
        elif q % p == 0:
            out.append(p)
            b.append(q // p)
        else:
            return None
    return out[::-1]


def _aligned(dim: Dim, sizes: tuple[int, ...]) -> Dim | None:
    """The segments of ``dim`` on the finer factors ``sizes``; None where a boundary falls inside one."""
    out: list[Atom] = []
    position = 0
    for atom in dim:
        n = sum(atom)
        parts: list[int] = []
        while math.prod(parts) < n:
            parts.append(sizes[position])
            position += 1
        inner = n // parts[0]
        if any(segment % inner for segment in atom):
            return None
        out += [tuple(segment // inner for segment in atom), *((p,) for p in parts[1:])]
    return tuple(out)


@lru_cache(maxsize=65536)
def spread(dim: Dim, finer: Dim) -> tuple[list[Index], list[Index]]:
    """How a refined axis reads the coarser one's tables, one pair of arrays an atom of ``dim``.

    Returns:
        Per atom of ``dim`` an array (new classes...) of old classes, and an array
        (new segments...) of old segments; the axes are the new atoms'.
    """
    of_pairs, of_segments = [], []
    position = 0
    for atom in dim:
        parts: list[Atom] = []
        while math.prod(map(sum, parts)) < sum(atom):
            parts.append(finer[position])
            position += 1
        inner = sum(atom) // sum(parts[0])
        ends = np.cumsum(atom) // inner
        segment = np.searchsorted(ends, np.cumsum(parts[0]) - 1, side="right")
        rest = [len(pairs(p)) for p in parts[1:]]
        i, j = segment[left(parts[0])], segment[right(parts[0])]
        equal = np.ones((), bool)
        for part in parts:
            equal = np.logical_and.outer(equal, np.arange(len(pairs(part))) < len(part))
        shape = (-1,) + (1,) * len(rest)
        of_pairs.append(classes(i.reshape(shape), j.reshape(shape), equal, len(atom)))
        counts = tuple(len(p) for p in parts)
        of_segments.append(np.broadcast_to(segment.reshape((-1,) + (1,) * len(rest)), counts))
    return of_pairs, of_segments


@lru_cache(maxsize=65536)
def merged(a: Atom, b: Atom) -> tuple[Atom, Array, Array]:
    """Two neighbouring atoms as one: its segments, and matrices that average the tables.

    Only ``a`` may have several segments.

    Returns:
        The atom, (its classes) x (classes of a * classes of b), (its segments) x (segments of a).
    """
    (n,) = b
    atom = tuple(p * n for p in a)
    weights = np.maximum(np.outer(pairs(a), pairs(b)), UNPAIRED)
    s = len(a)
    equal = np.logical_and.outer(np.arange(s + s * s) < s, np.arange(2) < 1)
    target = classes(left(a)[:, None], right(a)[:, None], equal, s)
    matrix = np.zeros((s + s * s, weights.size))
    matrix[target.ravel(), np.arange(weights.size)] = weights.ravel()
    return atom, matrix / matrix.sum(axis=1, keepdims=True), np.eye(s)


@lru_cache(maxsize=65536)
def coarsening(atom: Atom, groups: tuple[int, ...]) -> tuple[Atom, Array, Array]:
    """Neighbouring segments as one; ``groups`` says how many go together.

    Returns:
        The coarser atom, (its classes) x (old classes), (its segments) x (old segments).

    >>> coarsening((1, 3), (2,))[0]
    (4,)
    """
    owner = np.repeat(np.arange(len(groups)), groups)
    lengths = np.zeros(len(groups), int)
    np.add.at(lengths, owner, atom)
    s = len(atom)
    equal = np.arange(s + s * s) < s
    target = classes(owner[left(atom)], owner[right(atom)], equal, len(groups))
    matrix = np.zeros((len(groups) + len(groups) ** 2, s + s * s))
    matrix[target, np.arange(s + s * s)] = np.maximum(pairs(atom), UNPAIRED)
    means = np.zeros((len(groups), s))
    means[owner, np.arange(s)] = atom
    averaging = matrix / matrix.sum(axis=1, keepdims=True)
    return tuple(lengths.tolist()), averaging, means / lengths[:, None]
