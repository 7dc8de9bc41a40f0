"""Gaussian tensors with given moments: sums of parts that vary along some axes and are shared on others.

x = E x + a sum over sets of atoms of tensors that vary along the set, correlated across segments; their
covariances come from the pair table by inclusion and exclusion.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from .strata import Array, Atom, Index


class Part(NamedTuple):
    """One term of the sum.

    Args:
        root: (combinations of segments) x (independent sources).
        sources: shape of what is drawn: the sources, then the varying atoms' lengths.
        segments: the combinations' shape, then the varying atoms' lengths.
        reads: where each position reads.
    """

    root: Array
    sources: tuple[int, ...]
    segments: tuple[int, ...]
    reads: tuple[Index, ...]


def draw(
    atoms: tuple[Atom, ...], mean: Array, covariance: Array, rng: np.random.Generator
) -> Array:
    """One tensor, an axis an atom."""
    center, parts = _parts(atoms, mean.tobytes(), covariance.tobytes())
    value = center.copy()
    for part in parts:
        z = rng.standard_normal(part.sources)
        mixed = (part.root @ z.reshape(len(z), -1)).reshape(part.segments)
        value += mixed[part.reads]
    return value


@lru_cache(maxsize=64)
def _parts(atoms: tuple[Atom, ...], mean: bytes, covariance: bytes) -> tuple[Array, list[Part]]:
    segments = tuple(map(len, atoms))
    where = [np.repeat(np.arange(len(atom)), atom) for atom in atoms]
    center = np.frombuffer(mean).reshape(segments)[np.ix_(*where)]
    table = np.frombuffer(covariance).reshape([s + s * s for s in segments])
    parts = [_part(table, atoms, varies, where) for varies in product((0, 1), repeat=len(atoms))]
    return center, [part for part in parts if part.root.size]


def _part(
    table: Array, atoms: tuple[Atom, ...], varies: tuple[int, ...], where: list[Index]
) -> Part:
    """What varies along the atoms marked 1, at every position."""
    segments = tuple(map(len, atoms))
    for axis, (s, own) in enumerate(zip(segments, varies, strict=True)):
        lines = np.moveaxis(table, axis, 0)
        blocks = lines[s:].reshape(s, s, *lines.shape[1:])
        if own:
            alike = np.zeros_like(blocks)
            i = np.arange(s)
            alike[i, i] = lines[:s] - blocks[i, i]
            blocks = alike
        table = np.moveaxis(blocks.reshape(s * s, *lines.shape[1:]), 0, axis)
    rank, total = len(atoms), math.prod(segments)
    pairs = table.reshape([n for s in segments for n in (s, s)])
    order = [*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)]
    matrix = pairs.transpose(order).reshape(total, total)
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    kept = values > 1e-14 * max(float(np.abs(values).max()), 1e-300)
    lengths = tuple(sum(atom) if own else 1 for atom, own in zip(atoms, varies, strict=True))
    index = [_on_axis(segment, axis, rank) for axis, segment in enumerate(where)]
    index += [
        _on_axis(np.arange(len(w)) * own, a, rank)
        for a, (w, own) in enumerate(zip(where, varies, strict=True))
    ]
    root = vectors[:, kept] * np.sqrt(values[kept])
    return Part(root, (root.shape[1], *lengths), (*segments, *lengths), tuple(index))


def _on_axis(index: Index, axis: int, rank: int) -> Index:
    return index.reshape((1,) * axis + (-1,) + (1,) * (rank - axis - 1))
