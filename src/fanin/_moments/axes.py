"""Axes that tensors share: atoms split, merged, coarsened, and kept within a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from . import alignment, strata
from .abstract import Abstract, along
from .strata import Array, Atom, Dims

MAX_ATOMS = 9
MAX_NUMBERS = 1 << 15
MAX_SEGMENTS = 10  # of one atom


def fitted(x: Abstract, dims: Dims) -> Abstract:
    """``x`` on axes of which its own are coarser, or of length 1: the same moments, written out."""
    if x.dims == dims:
        return x
    q, mean = alignment.fit(x.dims, dims).wide(x.q, x.mean)
    return Abstract(dims, mean, q, noise=x.noise)


def merge_dim(x: Abstract, dim: int) -> Abstract:
    """One atom on an axis; segments of all but its first atom are averaged out.

    ``chain``, ``known``, ``allowed`` and ``note`` stay: the numbers are the same.
    """
    atoms = x.dims[dim]
    if len(atoms) < 2:
        return x
    axis = x.axes([dim])[0]
    q, mean = x.q, x.mean
    while len(atoms) > 1:
        a, b, *rest = atoms
        if len(b) > 1:
            b, matrix, means = strata.coarsening(b, (len(b),))
            q, mean = along(q, axis + 1, matrix), along(mean, axis + 1, means)
        a, matrix, means = strata.merged(a, b)
        q = q.reshape(*q.shape[:axis], -1, *q.shape[axis + 2 :])
        q = along(q, axis, matrix)
        mean = mean.reshape(*mean.shape[:axis], -1, *mean.shape[axis + 2 :])
        atoms = (a, *rest)
    dims = (*x.dims[:dim], atoms, *x.dims[dim + 1 :])
    return x.with_(dims=dims, q=q, mean=mean, chain=None)


def coarsen(x: Abstract, axis: int, groups: tuple[int, ...] | None = None) -> Abstract:
    """Neighbouring segments of one atom averaged together; all of them by default.

    Args:
        x: the tensor.
        axis: of ``q``: which atom.
        groups: how many segments go together, in order.
    """
    atom = x.atoms[axis]
    if len(atom) == 1:
        return x
    coarse, matrix, means = strata.coarsening(atom, groups or (len(atom),))
    dims, position = [], 0
    for dim in x.dims:
        dims.append(tuple(coarse if position + i == axis else a for i, a in enumerate(dim)))
        position += len(dim)
    return x.with_(
        dims=tuple(dims), q=along(x.q, axis, matrix), mean=along(x.mean, axis, means), chain=None
    )


def uniform(x: Abstract, dims: Iterable[int] | None = None) -> Abstract:
    """No segments on the axes ``dims``, all of them by default."""
    for axis in x.axes(range(len(x.dims)) if dims is None else dims):
        x = coarsen(x, axis)
    return x


def limited(x: Abstract) -> Abstract:
    """Within the budget of atoms and numbers: small atoms merged, then like segments averaged."""
    if (
        x.q.ndim <= MAX_ATOMS
        and x.q.size <= MAX_NUMBERS
        and max(x.mean.shape, default=0) <= MAX_SEGMENTS
    ):
        return x
    while x.q.ndim > MAX_ATOMS:
        dim = max(range(len(x.dims)), key=lambda d: len(x.dims[d]))
        if len(x.dims[dim]) < 2:
            break
        x = merge_dim(x, dim)
    for axis in range(x.q.ndim):
        while x.mean.shape[axis] > MAX_SEGMENTS:
            x = closer(x, axis, x.mean.shape[axis] - MAX_SEGMENTS)
    while x.q.size > MAX_NUMBERS:
        axis = int(np.argmax(x.mean.shape))
        if x.mean.shape[axis] == 1:
            break
        x = closer(x, axis, max(1, x.mean.shape[axis] // 4))
    return x


def closer(x: Abstract, axis: int, excess: int = 1) -> Abstract:
    """Neighbouring segments that are most alike averaged two by two, at most ``excess`` pairs."""
    atom = x.atoms[axis]
    table = np.moveaxis(x.q, axis, 0)[: len(atom)].reshape(len(atom), -1)
    change = np.abs(np.diff(table, axis=0)).max(axis=1) * np.minimum(atom[:-1], atom[1:])
    pairs: set[int] = set()
    for k in np.argsort(change).tolist():
        if len(pairs) < excess and not {k - 1, k + 1} & pairs:
            pairs.add(k)
    starts = [k for k in range(len(atom)) if k - 1 not in pairs]
    return coarsen(x, axis, tuple(2 if k in pairs else 1 for k in starts))


def tidy(x: Abstract, tolerance: float = 1e-6, axes: Iterable[int] | None = None) -> Abstract:
    """Neighbouring segments joined where nothing tells them apart, on all atoms or on ``axes``."""
    for axis in range(x.q.ndim) if axes is None else axes:
        s = x.mean.shape[axis]
        if s == 1:
            continue
        scale = tolerance * max(float(x.q.max()), -float(x.q.min()))
        lines = x.q.swapaxes(0, axis)
        same = lines[:s].reshape(s, -1)
        if not (np.abs(same[1:] - same[:-1]).max(axis=1) <= scale).any():
            continue
        blocks = lines[s:].reshape(s, s, *lines.shape[1:])
        means = x.mean.swapaxes(0, axis)
        groups = [1]
        for k in range(1, s):
            near = (
                np.abs(same[k] - same[k - 1]).max() <= scale
                and np.abs(means[k] - means[k - 1]).max() <= math.sqrt(tolerance * scale)
                and _alike_outside(blocks, k, scale)
                and np.abs(blocks[k, k - 1] - _inside(blocks, x.atoms[axis], k)).max() <= scale
            )
            groups = [*groups[:-1], groups[-1] + 1] if near else [*groups, 1]
        if len(groups) < s:
            x = coarsen(x, axis, tuple(groups))
    return x


def _alike_outside(blocks: Array, k: int, scale: float) -> bool:
    """Whether segments k and k - 1 have the same pairs with every other segment."""
    difference = np.abs(blocks[k] - blocks[k - 1])
    difference[[k - 1, k]] = 0.0
    return float(difference.max()) <= scale


def _inside(blocks: Array, atom: Atom, k: int) -> Array:
    """Pairs within segment k or k - 1, whichever has any."""
    if atom[k] > 1 and atom[k - 1] > 1 and not np.allclose(blocks[k, k], blocks[k - 1, k - 1]):
        return np.full(blocks[k, k].shape, np.inf)
    inner = k if atom[k] > 1 else k - 1
    return blocks[inner, inner] if atom[inner] > 1 else blocks[k, k - 1]


def aligned(xs: Sequence[Abstract], but: int | None = None) -> list[Abstract]:
    """Tensors on common axes, as broadcasting has it; axis ``but`` (of equal ranks) left alone."""
    plan = alignment.common(tuple(x.dims for x in xs), but)
    out = []
    for x, merges, dims in zip(xs, plan.merges, plan.target, strict=True):
        own = merge_dims(_padded(x, len(dims)), merges)
        fit = fitted(own, dims)
        if x.allowed is not None and fit is not own:
            fit.allowed = x.allowed
        out.append(fit)
    return out


def _padded(x: Abstract, rank: int) -> Abstract:
    if len(x.dims) == rank:
        return x
    return x.with_(dims=((),) * (rank - len(x.dims)) + x.dims)


def merge_dims(x: Abstract, dims: tuple[int, ...]) -> Abstract:
    for d in dims:
        x = merge_dim(x, d)
    return x


def met(a: Abstract, b: Abstract) -> tuple[Dims, tuple[Array, Array], tuple[Array, Array]]:
    """Common axes, and both tensors' (q, mean) on them, that broadcast against each other."""
    if a.dims == b.dims:
        return a.dims, (a.q, a.mean), (b.q, b.mean)
    plan = alignment.common((a.dims, b.dims))
    tables = []
    for x, merges, own, fit in zip((a, b), plan.merges, plan.merged, plan.fits, strict=True):
        one = merge_dims(_padded(x, len(own)), merges) if merges else x
        tables.append(fit.narrow(one.q, one.mean))
    return plan.target[0], tables[0], tables[1]
