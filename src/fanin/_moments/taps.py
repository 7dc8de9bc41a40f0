"""Which taps of a kernel read which positions: counted exactly, pair by pair of outputs.

A tap k of output position p reads input position s p + d k - pad, or nothing outside. An unfolded
tensor x'[p, k] is x there, else 0, so a convolution is a product of x' and the kernel summed over
taps. Its pairs (p, k), (p', k') read the same input, different ones or none; how many do which is
what padding, stride, dilation and overlap come down to.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from . import strata
from .strata import Array, Atom, Dim, Index

MOST_SEGMENTS = 4  # of an axis under a kernel


class Taps(NamedTuple):
    """One spatial axis of a convolution.

    Args:
        size: input positions.
        out: output positions.
        kernel: taps.
        stride: between output positions; between input ones where ``transposed``.
        pad: zeros before the first input, or outputs cut off.
        dilation: between taps.
        transposed: whether an input writes to outputs s p + d k - pad.
    """

    size: int
    out: int
    kernel: int
    stride: int = 1
    pad: int = 0
    dilation: int = 1
    transposed: bool = False

    def reads(self) -> Index:
        """(outputs) x (taps) -> input position, -1 for none."""
        p, k = np.arange(self.out)[:, None], np.arange(self.kernel)[None]
        if self.transposed:
            at, rest = np.divmod(p + self.pad - self.dilation * k, self.stride)
            return np.where((rest == 0) & (at >= 0) & (at < self.size), at, -1)
        at = self.stride * p + self.dilation * k - self.pad
        return np.where((at >= 0) & (at < self.size), at, -1)


class Unfolding(NamedTuple):
    """How tables of an axis become those of its output positions and taps.

    Args:
        positions: atoms of the output positions.
        taps: atoms of the kernel.
        pairs: (classes of positions x classes of taps) x (classes of the axis): mean number of pairs.
        singles: (segments of positions x taps) x (segments of the axis): mean number of positions.
        shape: the atoms' classes.
        segments: the atoms' segments.
        same: whether the tables stay what they are, as under one tap without padding.
    """

    positions: Dim
    taps: Dim
    pairs: Array
    singles: Array
    shape: tuple[int, ...]
    segments: tuple[int, ...]
    same: bool


@lru_cache(maxsize=4096)
def unfolding(dim: Dim, taps: Taps) -> Unfolding:
    """The plan of one axis, which must be one atom or none."""
    atom = dim[0] if dim else (1,)
    positions = _outputs(atom, taps)
    counts = _counted(atom, positions, taps)
    s, a = len(positions), len(atom)
    spread = strata.pairs(positions), strata.pairs((taps.kernel,))
    pairs = counts.pairs / np.maximum(np.multiply.outer(*spread), 1e-300)[:, :, None]
    singles = counts.singles / (np.array(positions, float)[:, None] * taps.kernel)
    out_dim, tap_dim = (positions,) if taps.out > 1 else (), strata.whole(taps.kernel)
    shape: tuple[int, ...] = (s + s * s, 2)
    segments: tuple[int, ...] = (s, 1)
    if not tap_dim:
        pairs, shape, segments = pairs[:, :1], shape[:1], segments[:1]
    if not out_dim:
        pairs, shape, segments = pairs[:1], shape[1:], segments[1:]
    columns = a + a * a if dim else 1
    pairs = pairs[:, :, :columns].reshape(-1, columns)
    same = all(np.array_equal(x, np.eye(len(x))) for x in (pairs, singles))
    same = same and len(shape) == len(dim)
    return Unfolding(out_dim, tap_dim, pairs, singles, shape, segments, same)


def _outputs(atom: Atom, taps: Taps) -> Atom:
    """Segments of the output positions: where the middle tap passes from one input segment to the next."""
    if len(atom) == 1:
        return (taps.out,)
    ends = np.cumsum(atom)[:-1].astype(float)
    middle = taps.dilation * (taps.kernel - 1) / 2
    if taps.transposed:
        cuts = taps.stride * ends - taps.pad + middle
    else:
        cuts = (ends + taps.pad - middle) / taps.stride
    inside = sorted({int(c) for c in np.ceil(cuts) if 0 < c < taps.out})
    return tuple(np.diff([0, *inside, taps.out]).tolist())


class _Counts(NamedTuple):
    pairs: Array  # (classes of positions) x (same tap, different) x (classes of the axis)
    singles: Array  # (segments of positions) x (segments of the axis)


def _counted(atom: Atom, positions: Atom, taps: Taps) -> _Counts:
    """Index pairs by class. Two taps of one output never read the same input, nor one tap of two."""
    s, a = len(positions), len(atom)
    reads = taps.reads()
    where = np.append(np.repeat(np.arange(a), atom), a)[reads]  # a: nothing
    owner = np.repeat(np.arange(s), positions)
    seen = np.stack([where == j for j in range(a)], axis=-1).astype(
        float
    )  # positions, taps, segments
    per_tap = np.stack([seen[owner == i].sum(axis=0) for i in range(s)])  # i, k, a
    singles = per_tap.sum(axis=1)
    at_once = seen.sum(axis=1)
    own = np.stack([at_once[owner == i].T @ at_once[owner == i] for i in range(s)])  # i, a, b
    hits = np.zeros((s, taps.size))
    np.add.at(
        hits, (np.broadcast_to(owner[:, None], reads.shape)[reads >= 0], reads[reads >= 0]), 1.0
    )
    overlap = np.stack([hits[:, part] @ hits[:, part].T for part in _parts(atom)])  # a, i, j
    pairs = np.zeros((s + s * s, 2, a + a * a))
    for i in range(s):
        pairs[i, 0, :a] = singles[i]
        pairs[i, 1, a:] = (own[i] - np.diag(singles[i])).ravel()
        for j in range(s):
            row = s + i * s + j
            alike = per_tap[i].T @ per_tap[j] - (np.diag(singles[i]) if i == j else 0.0)
            shared = overlap[:, i, j] - (singles[i] if i == j else 0.0)
            total = np.outer(singles[i], singles[j]) - (own[i] if i == j else 0.0)
            pairs[row, 0, a:] = alike.ravel()
            pairs[row, 1, :a] = shared
            pairs[row, 1, a:] = (total - alike - np.diag(shared)).ravel()
    return _Counts(pairs, singles)


def _parts(atom: Atom) -> list[slice]:
    ends = np.cumsum((0, *atom)).tolist()
    return [slice(p, q) for p, q in itertools.pairwise(ends)]
