"""Sliding windows: how many elements they hold, how much two of them share, what their means are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from . import maps, order
from .maps import Linear
from .pool import covering
from .strata import Array, Index

Ints = tuple[int, ...]


class Windows(NamedTuple):
    """The windows of some axes.

    Args:
        lengths: of the axes.
        counts: windows on each.
        sizes: elements of a window along each axis, on average; beyond the edges are none.
        inverses: the average of one over these.
        density: where the largest lies among standard normals, over all windows.
        overlaps: for windows that differ on some axes the covariance of their largest from elements
            that both hold, over the variance of one; averaged over the pairs.
        means: per axis the mean over a window, as a map.
    """

    lengths: tuple[int, ...]
    counts: tuple[int, ...]
    sizes: tuple[float, ...]
    inverses: tuple[float, ...]
    density: Array
    overlaps: Mapping[tuple[bool, ...], float]
    means: tuple[Linear, ...]


@lru_cache(maxsize=1024)
def sliding(lengths: Ints, counts: Ints, kernel: Ints, steps: tuple[Ints, Ints, Ints]) -> Windows:
    """Windows of one size; ``steps`` are strides, paddings and dilations, a number an axis."""
    strides, paddings, dilations = steps
    places = [
        np.add.outer(np.arange(count) * stride - padding, np.arange(size) * dilation)
        for count, size, stride, padding, dilation in zip(
            counts, kernel, strides, paddings, dilations, strict=True
        )
    ]
    return _windows(lengths, places, strides)


@lru_cache(maxsize=1024)
def covering_all(lengths: Ints, counts: Ints) -> Windows:
    """Windows that cover the axes, whatever their lengths."""
    places = []
    for n, out in zip(lengths, counts, strict=True):
        spans = covering(n, out)
        longest = max(j - i for i, j in spans)
        at = [[i + k if i + k < j else -1 for k in range(longest)] for i, j in spans]
        places.append(np.array(at))
    strides = tuple(max(n // out, 1) for n, out in zip(lengths, counts, strict=True))
    return _windows(lengths, places, strides)


def _windows(lengths: Ints, places: Sequence[Index], strides: Ints) -> Windows:
    """From the indices of each window's elements, a row a window; those beyond the axis are none."""
    there = [(at >= 0) & (at < n) for at, n in zip(places, lengths, strict=True)]
    valid = [np.maximum(t.sum(axis=1), 1) for t in there]
    means = tuple(
        maps.from_taps(np.where(t, at, -1), t / v[:, None], n)
        for at, t, v, n in zip(places, there, valid, lengths, strict=True)
    )
    counts = tuple(len(at) for at in places)
    middle = [at[len(at) // 2][t[len(at) // 2]] for at, t in zip(places, there, strict=True)]
    taps = [tuple((at - at[0]).tolist()) for at in middle]
    patterns = product((False, True), repeat=len(lengths))
    return Windows(
        lengths,
        counts,
        tuple(float(v.mean()) for v in valid),
        tuple(float((1.0 / v).mean()) for v in valid),
        _density(valid),
        {differ: _overlap(differ, counts, taps, strides) for differ in patterns},
        means,
    )


def _density(valid: Sequence[npt.NDArray[np.integer]]) -> Array:
    """Where the largest lies: the average over windows of all sizes, smaller ones at the edges."""
    counts = np.ones(1)
    for v in valid:
        counts = np.multiply.outer(counts, v).ravel()
    sizes, often = np.unique(counts, return_counts=True)
    parts = [k * order.largest(float(n)) for n, k in zip(sizes, often / often.sum(), strict=True)]
    return np.asarray(np.sum(parts, axis=0))


def _overlap(differ: tuple[bool, ...], counts: Ints, taps: Sequence[Ints], strides: Ints) -> float:
    """`Windows.overlaps` for one pattern of axes."""
    n = math.prod(len(t) for t in taps)
    options: list[list[tuple[int, float]]] = []
    for apart, k, t, stride in zip(differ, counts, taps, strides, strict=True):
        near = range(1, min(k, max(t) // stride + 1)) if apart else ()
        held = [
            (len({p + offset * stride for p in t} & set(t)), 2.0 * (k - offset) / (k * (k - 1)))
            for offset in near
        ]
        options.append(held if apart else [(len(t), 1.0)])
    return sum(
        math.prod(p for _, p in pair)
        * order.shared(float(n), float(math.prod(held for held, _ in pair)))
        for pair in product(*options)
    )
