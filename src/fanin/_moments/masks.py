"""Which keys a row of attention logits may read, as averages over classes of rows and keys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from . import strata
from .domain import Abstract, measured
from .strata import Array, Atom, Dims, Index

LEVELS = 5  # of the number of allowed keys, beyond the first
MOST_RUNS = 8
MOST_ROWS = 96  # sampled

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Flat:
    """Several atoms as one list of classes and one of segments.

    Args:
        left: class -> segment of the first index.
        right: class -> segment of the second.
        same: whether a class holds pairs of the same index.
        own: segment -> the class of its pairs of the same index.
        pairs: pairs in each class.
        sizes: indices in each segment.
        split: classes x (same index, different indices), of 0 and 1: a product with it sums each.
        sides: classes x (segments of the first index, of the second).
        blocks: classes x (segments of both).
    """

    left: Index
    right: Index
    same: npt.NDArray[np.bool_]
    own: Index
    pairs: Array
    sizes: Array
    split: Array
    sides: Array
    blocks: Array


@lru_cache(maxsize=4096)
def flat(atoms: tuple[Atom, ...]) -> Flat:
    """The classes of several atoms, row-major."""
    left = right = own = np.zeros(1, np.intp)
    same, pairs, sizes = np.ones(1, bool), np.ones(1), np.ones(1)
    for atom in atoms:
        s = len(atom)
        n = s + s * s
        left = np.add.outer(left * s, strata.left(atom)).ravel()
        right = np.add.outer(right * s, strata.right(atom)).ravel()
        own = np.add.outer(own * n, np.arange(s)).ravel()
        same = np.logical_and.outer(same, np.arange(n) < s).ravel()
        pairs = np.multiply.outer(pairs, strata.pairs(atom)).ravel()
        sizes = np.multiply.outer(sizes, np.array(atom, float)).ravel()
    first, second = np.eye(sizes.size)[left], np.eye(sizes.size)[right]
    return Flat(
        left, right, same, own, pairs, sizes,
        np.stack([same, ~same], axis=1).astype(float),
        np.concatenate([first, second], axis=1),
        (first[:, :, None] * second[:, None]).reshape(left.size, -1),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Packed:
    """A mask by what it says, so that equal masks share their analysis."""

    bits: bytes
    shape: tuple[int, ...]

    def __hash__(self) -> int:
        return hash((self.bits, self.shape))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Packed) and (self.bits, self.shape) == (other.bits, other.shape)

    @property
    def mask(self) -> Mask:
        """The mask; a row without any key reads all of them, as torch's largest negative gives."""
        bits = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=math.prod(self.shape))
        mask = bits.reshape(self.shape).astype(bool)
        return mask | ~mask.any(axis=-1, keepdims=True)


def packed(allowed: Mask, rank: int, dim: int, keys: int) -> tuple[Packed, list[int]]:
    """A mask without the axes along which it is the same.

    Args:
        allowed: broadcasts to the logits.
        rank: of the logits.
        dim: their key axis.
        keys: its length.

    Returns:
        The mask with its keys last, and which axes of the logits the others are.
    """
    allowed = allowed.reshape((1,) * (rank - allowed.ndim) + allowed.shape)
    for axis, stride in enumerate(allowed.strides):
        if stride == 0:
            allowed = allowed.take([0], axis)
    rows = [axis for axis in range(rank) if axis != dim and allowed.shape[axis] > 1]
    allowed = np.moveaxis(allowed, dim, -1)
    lengths = [n for axis, n in enumerate(allowed.shape[:-1]) if n > 1]
    allowed = np.broadcast_to(allowed.reshape(*lengths, -1), (*lengths, keys))
    return Packed(np.packbits(allowed).tobytes(), allowed.shape), rows


@lru_cache(maxsize=64)
def strata_of(mask: Packed) -> tuple[Atom, ...]:
    """Per axis of rows its segments: neighbours that may read about as many keys.

    A causal sequence of 1024 falls into 1, 3, 12, 48, 192 and 768 rows.
    """
    counts = mask.mask.mean(axis=-1) * mask.shape[-1]
    found = []
    for axis, n in enumerate(counts.shape):
        profile = counts.mean(axis=tuple(a for a in range(counts.ndim) if a != axis))
        span = profile.max() / profile.min()
        base = max(2.0, span ** (1 / LEVELS))
        level = np.ceil(np.log(profile / profile.min()) / math.log(base) - 1e-9)
        cuts = np.flatnonzero(np.diff(level)) + 1
        found.append(_lengths(cuts, n) if cuts.size < MOST_RUNS else (n,))
    return tuple(found)


def _lengths(cuts: Index, n: int) -> Atom:
    return tuple(np.diff([0, *cuts.tolist(), n]).tolist())


@dataclass(frozen=True, eq=False)
class Pattern:
    """Row-normalised weights W of a mask, averaged.

    Args:
        pairs: E[W W'], (classes of rows) x (classes of keys).
        single: E[W], (segments of rows) x (segments of keys).
        counts: 1 / E[1/n], n the number of allowed keys, by segment of rows.
    """

    pairs: Array
    single: Array
    counts: Array


@lru_cache(maxsize=256)
def pattern(mask: Packed, rows: tuple[Atom, ...], key: Atom) -> Pattern:
    """Averages of W W' over pairs of rows and keys; large segments are sampled evenly.

    Args:
        mask: (rows..., keys).
        rows: an atom per axis of rows.
        key: the key axis.
    """
    chosen = [_sampled(atom, int(MOST_ROWS ** (1 / len(rows)))) for atom in rows]
    allowed = mask.mask[np.ix_(*(position for position, _, _ in chosen))]
    allowed = allowed.reshape(-1, mask.shape[-1]).astype(float)
    shares = allowed / allowed.sum(axis=1, keepdims=True)
    starts = np.cumsum([0, *key[:-1]])
    sums = np.add.reduceat(shares, starts, axis=1)
    masses = _masses(shares, sums, starts)
    segment, weight = np.zeros(1, np.intp), np.ones(1)
    pair = np.zeros((1, 1), np.intp)
    for (position, own, heavy), atom in zip(chosen, rows, strict=True):
        segment = np.add.outer(segment * len(atom), own).ravel()
        weight = np.multiply.outer(weight, heavy).ravel()
        classes = strata.classes(
            own[:, None], own[None], np.eye(position.size, dtype=bool), len(atom)
        )
        grid = pair[:, None, :, None] * len(strata.pairs(atom)) + classes[None, :, None, :]
        pair = grid.reshape(segment.size, segment.size)
    row, column = flat(rows), flat((key,))
    single = _grouped(segment, weight, sums, row.sizes.size) / column.sizes
    counts = 1 / _grouped(segment, weight, (shares**2).sum(axis=1)[:, None], row.sizes.size)[:, 0]
    density = _grouped(
        pair.ravel(), np.outer(weight, weight).ravel(),
        masses.reshape(pair.size, -1), row.pairs.size,
    ) / np.maximum(column.pairs, strata.UNPAIRED)  # fmt: skip
    apart = single[row.left][:, column.left] * single[row.right][:, column.right]
    missing = np.isnan(density) | (column.pairs == 0)
    return Pattern(np.where(missing, apart, density), single, counts)


def _sampled(atom: Atom, budget: int) -> tuple[Index, Index, Array]:
    """Positions evenly within each segment, their segments, and how many each stands for."""
    share = max(2, budget // len(atom))
    positions, segments, weights = [], [], []
    start = 0
    for k, n in enumerate(atom):
        count = min(n, share)
        positions.append(start + ((np.arange(count) + 0.5) * n / count).astype(np.intp))
        segments.append(np.full(count, k))
        weights.append(np.full(count, n / count))
        start += n
    return np.concatenate(positions), np.concatenate(segments), np.concatenate(weights)


def _masses(shares: Array, sums: Array, starts: Index) -> Array:
    """Per pair of rows the total of W W' over each class of key pairs."""
    n, s = sums.shape
    ends = [*starts[1:], shares.shape[1]]
    same = np.stack(
        [shares[:, a:b] @ shares[:, a:b].T for a, b in zip(starts, ends, strict=True)], -1
    )
    every = sums[:, None, :, None] * sums[None, :, None, :]
    every[..., np.arange(s), np.arange(s)] -= same
    return np.concatenate([same, every.reshape(n, n, s * s)], axis=-1)


def _grouped(group: Index, weight: Array, values: Array, groups: int) -> Array:
    """Weighted means by group; NaN where a group is empty."""
    total = np.zeros((groups, values.shape[1]))
    np.add.at(total, group, values * weight[:, None])
    heavy = np.bincount(group, weight, groups)[:, None]
    return np.where(heavy > 0, total / np.where(heavy > 0, heavy, 1.0), np.nan)


class Identity:
    """An array by which object it is."""

    __slots__ = ("array",)

    def __init__(self, array: npt.NDArray) -> None:
        self.array = array

    def __hash__(self) -> int:
        return id(self.array)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.array is other.array


BLOCKING = 64.0  # what is added to logits to rule out an entry is beyond this


@lru_cache(maxsize=16)
def _split(numbers: Identity, sign: float) -> Abstract | None:
    array = numbers.array
    if array.dtype.kind != "f" or array.size == 0:
        return None
    blocked = sign * array <= -BLOCKING
    if not blocked.any():
        return None
    return measured(np.where(blocked, 0.0, array)).with_(allowed=~blocked, known=None)


def additive(x: Abstract, sign: float = 1.0) -> Abstract:
    """A known mask that is added to logits: what it adds, and which entries it allows.

    Args:
        x: any tensor; comes back as it is where it blocks nothing.
        sign: -1 where it is subtracted.
    """
    if x.known is None:
        return x
    return _split(Identity(x.known), sign) or x


RUNS = 4  # of one axis, in a mask that is followed block by block


@lru_cache(maxsize=16)
def _blocks(numbers: Identity) -> Abstract | None:
    array = np.asarray(numbers.array)
    if array.dtype.kind not in "fb" or not 0 < array.size <= 1 << 18 or array.all():
        return None
    if not np.isin(array, (0, 1)).all():
        return None
    cuts = []
    for axis, n in enumerate(array.shape):
        steps = np.diff(array.astype(np.int8), axis=axis)
        at = np.flatnonzero(steps.any(axis=tuple(a for a in range(array.ndim) if a != axis))) + 1
        if len(at) >= RUNS:
            return None
        cuts.append([0, *at.tolist(), n])
    wide = [axis for axis, n in enumerate(array.shape) if n > 1]
    dims: Dims = tuple(
        (tuple(np.diff(c).tolist()),) if n > 1 else ()
        for c, n in zip(cuts, array.shape, strict=True)
    )
    mean = array[np.ix_(*(c[:-1] for c in cuts))].astype(float)
    mean = mean.reshape([len(cuts[axis]) - 1 for axis in wide])
    made = Abstract(dims, mean, mean)
    made.q = made.lifted(strata.left) * made.lifted(strata.right)
    return made


def in_blocks(x: Abstract) -> Abstract:
    """A known mask of zeros and ones by runs of rows and columns, exactly; any other tensor as it is.

    Padding that is multiplied away leaves rows of zeros, which a norm behind them tells from the rest.
    """
    return x if x.known is None else _blocks(Identity(x.known)) or x
