"""Householder reflectors straight from Gaussian vectors, and the product of all: the specification.

Axes: M coordinates, N reflectors, P reflectors of a panel, C columns of the product.

Sources: Stewart 1980, "The efficient generation of random orthogonal matrices", SIAM J. Numer.
Anal. 17, section 3; Mezzadri 2007, "How to generate random matrices from the classical compact
groups" (the phases).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from .parts import over, squares, times
from .philox import Array

LANES = 256  # part of the law: in so many parts sums of squares are taken
BLOCK = 64  # reflectors made at a time: those of 8192 coordinates fit into the cache
PANEL = 3 * BLOCK  # reflectors in one array: as many as matrix products like best

_BELOW = np.tri(BLOCK, k=-1, dtype=np.bool_)

Normals = Callable[[Array, Array], Array]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Reflectors:
    """H_k = I - tau_k v_k v_k*, k < N, each on the coordinates from k on.

    Args:
        size: M.
        panels: P x (M - first), the vectors as rows: v_k from coordinate ``first`` on, the panel's
            first k; 0 before k, 1 at k.
        tau: N.
        phases: N, of modulus 1: they turn the product's columns so that its law is Haar's.
    """

    size: int
    panels: list[Array]
    tau: Array
    phases: Array

    def vector(self, k: int) -> Array:
        """v_k from coordinate k on."""
        r = k % PANEL
        return self.panels[k // PANEL][r, r:]

    def columns(self, which: Array) -> Array:
        """Columns of H_0 H_1 ... H_(N-1) diag(phases): one reflector after another, last one first.

        Sums are taken in the order of the coordinates. What a column becomes does not depend on
        which others are asked for.

        Args:
            which: C numbers below N, ascending.

        Returns:
            C x M: the columns as rows.
        """
        y = np.zeros((which.size, self.size), self.phases.dtype)
        y[np.arange(which.size), which] = self.phases[which]
        for k in range(which[-1], -1, -1):
            v, rest = self.vector(k)[None], y[np.searchsorted(which, k) :, k:]
            # A running sum has one order only; numpy's sums have whichever is fastest.
            inner = np.cumsum(times(v.conj(), rest), axis=1)[:, -1:]
            rest -= times(v, self.tau[k] * inner)
        return y


def draw_reflectors(
    m: int, n: int, normals: Normals, dtype: type = np.float64, threads: int = 1
) -> Reflectors:
    """The reflectors that would send Gaussian vectors to the axes.

    Args:
        m: coordinates.
        n: reflectors, 1 <= n <= m.
        normals: (rows, columns) -> standard normals; reflector k is made of row k, from column k on.
        dtype: of the normals: np.float64 or np.complex128.
        threads: how many to draw with.
    """
    tau: Array = np.empty(n)
    phases: Array = np.empty(n, dtype)
    panels: list[Array] = [np.zeros((min(PANEL, n - k), m - k), dtype) for k in range(0, n, PANEL)]

    def draw(start: int) -> None:
        stop, skipped = min(start + BLOCK, n), start % PANEL
        x = normals(np.arange(start, stop), np.arange(start, m))
        panel = panels[start // PANEL][skipped : skipped + BLOCK, skipped:]
        panel[...], tau[start:stop], phases[start:stop] = _reflectors(x, start)

    each(draw, range(0, n, BLOCK), threads)
    return Reflectors(m, panels, tau, phases)


def _reflectors(x: Array, first: int) -> tuple[Array, Array, Array]:
    """(v, tau, phases) of Gaussian rows that begin at coordinate ``first``; row r counts from there + r on."""
    height = len(x)
    np.copyto(x[:, :height], 0.0, where=_BELOW[:height, :height])
    head = np.diagonal(x)
    size, norm = np.sqrt(squares(head)), np.sqrt(_sums_of_squares(x, first))
    phase = over(head, size)
    v = times(x, over(phase.conj(), size + norm)[:, None])
    np.fill_diagonal(v, 1.0)
    return v, 1.0 + size / norm, -phase


def _sums_of_squares(x: Array, first: int) -> Array:
    """|x|^2 of each row: the coordinates that leave the same remainder in order, then by halves."""
    terms, sums = squares(x), np.zeros((len(x), LANES))
    for start in range(-(first % LANES), x.shape[1], LANES):
        part = terms[:, max(start, 0) : start + LANES]
        skipped = max(-start, 0)
        sums[:, skipped : skipped + part.shape[1]] += part
    half = LANES // 2
    while half:
        sums[:, :half] += sums[:, half : 2 * half]
        half //= 2
    return sums[:, 0]


def each(work: Callable[[T], R], items: Iterable[T], threads: int) -> list[R]:
    """The work done for every item, by so many threads."""
    items = list(items)
    if threads == 1 or len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, items))
