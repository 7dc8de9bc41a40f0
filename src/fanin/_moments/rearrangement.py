"""How tables are read after a view: axes regrouped, cut and put side by side.

Plans that depend on the atoms alone, so each is made once.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from . import alignment
from .strata import Atom, Dim, Dims, Index, lengths, refinement, size, whole


@lru_cache(maxsize=65536)
def reshaping(dims: Dims, shape: tuple[int, ...]) -> tuple[Dims, Dims, Dims, Dims]:
    """How tables on ``dims`` are read on axes of the lengths ``shape``.

    Axes fall into blocks, between which both shapes have a boundary.

    Returns:
        The blocks' atoms, the same coarsened where no common refinement exists, the refinement,
        and the refinement's atoms dealt out to the new axes.
    """
    blocks: list[Dim] = []
    coarse: list[Dim] = []
    finer: list[Dim] = []
    new: list[Dim] = []
    for olds, targets in blocks_of(dims, shape):
        flat: Dim = tuple(atom for dim in olds for atom in dim)
        alike: Dim = tuple((sum(atom),) for atom in flat)
        target: Dim = tuple((n,) for n in targets if n > 1)
        for basis in (flat, alike, whole(math.prod(targets))):
            refined = refinement(basis, target) if len(target) > 1 else basis
            if refined is not None:
                break
        assert refined is not None, (dims, shape)
        blocks.append(flat)
        coarse.append(basis)
        finer.append(refined)
        atoms = list(refined)
        for n in targets:
            dim: Dim = ()
            while size(dim) < n:
                dim = (*dim, atoms.pop(0))
            new.append(dim)
    return tuple(blocks), tuple(coarse), tuple(finer), tuple(new)


def blocks_of(dims: Dims, shape: tuple[int, ...]) -> list[tuple[Dims, tuple[int, ...]]]:
    """(old axes, new lengths) between the boundaries that both shapes have."""
    found, i, j = [], 0, 0
    while i < len(dims) or j < len(shape):
        olds, news = dims[i : i + 1], shape[j : j + 1]
        while math.prod(lengths(olds)) != math.prod(news):
            if math.prod(lengths(olds)) < math.prod(news):
                olds = dims[i : i + len(olds) + 1]
            else:
                news = shape[j : j + len(news) + 1]
        found.append((olds, news))
        i, j = i + len(olds), j + len(news)
    return found


@lru_cache(maxsize=65536)
def expansion(dims: Dims, shape: tuple[int, ...]) -> tuple[Dims, Dims]:
    """Axes padded in front to the rank of ``shape``, and broadcast to it."""
    padded = ((),) * (len(shape) - len(dims)) + dims
    return padded, tuple(dim or whole(n) for dim, n in zip(padded, shape, strict=True))


class Pick(NamedTuple):
    """Which part of an atom is kept: the new atom, the rows of its tables, its segments."""

    atom: Atom
    rows: Index
    kept: Index


@lru_cache(maxsize=65536)
def cutting(dim: Dim, start: int, stop: int, step: int) -> tuple[Dim, tuple[Pick | None, ...]]:
    """How ``[start:stop:step]`` cuts an axis: a `Pick` an atom, None where all of it stays.

    Returns:
        The atoms that the axis is to be written on first, refined by the step or merged where
        positions are no box of the atoms, and what is kept of them.
    """
    positions = np.arange(start, stop, step)
    picks = _picked(dim, positions)
    if picks is None and step > 1 and size(dim) % step == 0:
        finer = refinement(dim, (*whole(size(dim) // step), *whole(step)))
        picks = None if finer is None else _picked(finer, positions)
        if finer is not None and picks is not None:
            return finer, picks
    if picks is not None:
        return dim, picks
    one = alignment.one_atom(dim)
    picks = _picked(one, positions)
    assert picks is not None, (dim, start, stop, step)
    return one, picks


def _picked(dim: Dim, positions: Index) -> tuple[Pick | None, ...] | None:
    """What positions keep of every atom; None where they are no box of them."""
    coordinates = np.unravel_index(positions, [sum(atom) for atom in dim]) if dim else ()
    kept = [np.unique(c) for c in coordinates]
    if math.prod(map(len, kept)) != len(positions):
        return None
    return tuple(_pick(atom, c) for atom, c in zip(dim, kept, strict=True))


def _pick(atom: Atom, positions: Index) -> Pick | None:
    if len(positions) == sum(atom):
        return None
    owner = np.searchsorted(np.cumsum(atom), positions, side="right")
    kept, counts = np.unique(owner, return_counts=True)
    return Pick(tuple(counts.tolist()), own_rows(kept, len(atom)), kept)


def own_rows(segments: Index, s: int) -> Index:
    """The classes of an atom of s segments that lie within some of them, in their own order."""
    return np.concatenate([segments, s + (segments[:, None] * s + segments[None]).ravel()])


@lru_cache(maxsize=65536)
def common_tail(dims: Dims) -> Dim:
    """The longest inner factors that all these axes can be written with; often none."""
    tails = sorted({dim[1:] for dim in dims}, key=size, reverse=True)
    return next((t for t in tails if all(with_tail(dim, t) is not None for dim in dims)), ())


@lru_cache(maxsize=65536)
def with_tail(dim: Dim, tail: Dim) -> Dim | None:
    """An axis as one first atom and ``tail``; None where that would lose something.

    >>> with_tail(((12,), (64,)), ((64,),)), with_tail(((64,),), ((64,),))
    (((12,), (64,)), ((1,), (64,)))
    """
    if dim[1:] == tail and dim:
        return dim
    if dim == tail:
        return ((1,), *tail)
    if len(dim) > 1 or size(dim) % size(tail) or not tail:
        return None
    finer = refinement(dim, (*whole(size(dim) // size(tail)), *tail))
    return finer if finer is not None and finer[1:] == tail else None


@lru_cache(maxsize=65536)
def joining(
    parts: tuple[Dims, ...], dim: int, counts: tuple[int, ...]
) -> tuple[Dims, list[Index], int]:
    """Axes of tensors side by side on axis ``dim``, of which they share all atoms but the first.

    Args:
        parts: their axes.
        dim: which one.
        counts: segments of each one's first atom there.

    Returns:
        The axes of the whole, each part's classes in the joint atom, and how many there are.
    """
    first = parts[0]
    atom: Atom = tuple(n for dims in parts for n in dims[dim][0])
    ends = np.cumsum([0, *counts]).tolist()
    rows = [own_rows(np.arange(i, j), len(atom)) for i, j in pairwise(ends)]
    dims = (*first[:dim], (atom, *first[dim][1:]), *first[dim + 1 :])
    return dims, rows, len(atom) + len(atom) ** 2
