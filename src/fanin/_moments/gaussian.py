"""Functions of Gaussian tensors: E f(x) and E f(x) f(x') from E x and E x x'.

For z, z' standard normal with correlation r and f(z) = sum_k c_k he_k(z) in normalised Hermite
polynomials, E f(z) f(z') = sum_k c_k c'_k r^k (Mehler). Sources: Daniely, Frostig & Singer 2016,
"Toward deeper understanding of neural networks", section 4; Poole et al. 2016.

Sums of exponentials, step sizes and the like have one sign. Where a function asks most of a
Gaussian's far tails (1/x near 0, exp x far out), a tensor whose mean is not 0 is taken for
lognormal with the same moments, and its sign is its mean's: x = m exp(s z - s^2/2).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from . import strata
from .domain import Abstract, Function, joint_weights, scaled
from .lines import Line, composed
from .strata import Array, Atom, Index

TERMS = 21
_Z = np.linspace(-9.0, 9.0, 720)  # 0, where functions like to jump, lies between two points
_W = np.exp(-_Z * _Z / 2)
_W /= _W.sum()


def _hermite() -> Array:
    """he_k(z) / sqrt(k!) on the grid, one row a degree."""
    rows = [np.ones_like(_Z), _Z]
    for k in range(1, TERMS - 1):
        rows.append((_Z * rows[k] - math.sqrt(k) * rows[k - 1]) / math.sqrt(k + 1))
    return np.stack(rows)


_ALTERNATING = (-1.0) ** np.arange(TERMS)
_WEIGHTED_T = np.ascontiguousarray((_hermite() * _W).T)
_FAR = np.abs(_Z) > 3.5  # a Gaussian is there once in 2000 times
_SUMS = np.stack([_W, _W * _FAR, _W * (_Z * _Z - 1.0), _W * _Z], axis=1)  # of f^2: all at once
_MIDDLE = slice(*np.searchsorted(_Z, [-0.5, 0.5]))
UNUSUAL = 1e4  # times f^2 in the middle
MOST = 0.5  # of E f^2 from there: what f makes of the rest does not count any more
CENTRED = 0.2  # of the standard deviation: a mean below that gives no sign
_R = 1.0 - np.linspace(0.0, 1.0, 257) ** 2


def _steps() -> Array:
    """What degrees beyond the series keep of their mass at correlation r, for f with a jump.

    There c_k^2 falls as k^-1.5; a kink's falls as k^-2.5 and leaves next to nothing beyond.
    """
    k = np.arange(TERMS, 4000.0)
    kept = np.array([(k**-1.5 * np.exp(k * math.log(max(r, 1e-9)))).sum() for r in _R])
    return kept / kept[0]


_TAIL = _steps()[::-1]


class _Law(NamedTuple):
    """What x is taken for, by segments.

    Args:
        mean: E x.
        std: its standard deviation; of ln |x| where ``lognormal``.
        values: f on the grid of z.
        sums: E f^2, what of it comes from far out, E f^2 (z^2 - 1) and E f^2 z.
        lognormal: x = mean exp(std z - std^2/2), else x = mean + std z.
    """

    mean: Array
    std: Array
    values: Array
    sums: Array
    lognormal: bool

    def correlation(self, pairs: Array, i: Index, j: Index) -> Array:
        """Of z and z', by classes of segments i and j, from E x x'."""
        outer, scale = self.mean[i] * self.mean[j], self.std[i] * self.std[j]
        own = np.log(np.maximum(pairs / outer, 1e-300)) if self.lognormal else pairs - outer
        if not self.std.all():
            own, scale = np.where(scale > 0, own, 0.0), np.where(scale > 0, scale, 1.0)
        return np.asarray(np.minimum(np.maximum(own / scale, -1.0), 1.0))


@np.errstate(all="ignore")
def pointwise(x: Abstract, f: Function) -> Abstract:
    """f(x) element by element, x Gaussian; functions in a row meet as one function of the first.

    Args:
        x: the argument.
        f: float64 array -> float64 array.
    """
    base, g = x.chain or (x, None)
    h = f if g is None else composed(f, g)
    if isinstance(h, Line) and not h.offset:
        return scaled(base, h.slope).with_(allowed=x.allowed)
    law = _evaluated(base, h)
    first, q = _moments(base, law)
    noise = base.noise * _elasticity(base, law) ** 2 if base.noise else 0.0
    return Abstract(base.dims, first, q, chain=(base, h), allowed=x.allowed, noise=noise)


@np.errstate(all="ignore")
def moments(x: Abstract, f: Function) -> tuple[Array, Array]:
    """E f(x) by segments, and E f(x) f(x') by classes."""
    return _moments(x, _evaluated(x, f))


def _evaluated(x: Abstract, f: Function) -> _Law:
    """F on the grid, of a Gaussian unless that asks most of its tails."""
    mean = x.mean.reshape(-1)
    own = _own(x)
    variance = np.maximum(own - mean * mean, 0.0)
    variance[variance <= 1e-24 * own] = 0.0
    std = np.sqrt(variance)
    values = _on_grid(f, mean[:, None] + std[:, None] * _Z)
    squares = values * values
    sums = squares @ _SUMS
    if not _asks_tails(squares, sums) or not (np.abs(mean) > CENTRED * std).all():
        return _Law(mean, std, values, sums, lognormal=False)
    sigma = np.sqrt(np.log1p(variance / (mean * mean)))
    drawn = mean[:, None] * np.exp(sigma[:, None] * _Z - sigma[:, None] ** 2 / 2)
    values = _on_grid(f, drawn)
    return _Law(mean, sigma, values, (values * values) @ _SUMS, lognormal=True)


def _on_grid(f: Function, x: Array) -> Array:
    values = f(x)
    if np.shape(values) != x.shape:
        values = np.broadcast_to(values, x.shape)
    if not math.isfinite(np.add.reduce(values, axis=None)):
        values = np.nan_to_num(values, posinf=1e150, neginf=-1e150)
    return values


def _asks_tails(squares: Array, sums: Array) -> bool:
    """Whether a segment's E f^2 comes mostly from far out, or from where f is far from usual."""
    largest = np.maximum.reduce
    parts, rare = squares * _W, sums[:, 1]
    bound = UNUSUAL * largest(squares[:, _MIDDLE], axis=1)
    if (largest(squares, axis=1) > bound).any():
        unusual = (squares > bound[:, None]) & (bound[:, None] > 0)
        rare = np.where(unusual | _FAR, parts, 0.0).sum(axis=1)
    most = np.maximum(rare, largest(parts, axis=1))
    return bool((most > MOST * sums[:, 0]).any())


def _moments(x: Abstract, law: _Law) -> tuple[Array, Array]:
    mean, std, values, sums, lognormal = law
    c, second = values @ _WEIGHTED_T, sums[:, 0]
    if mean.size == 1 and not lognormal:
        table = _pairs_alike(x.q, mean[0], std[0] * std[0], c[0], second[0], values[0])
    else:
        table = _pairs(x, law, c, second)
    return c[:, 0].reshape(x.mean.shape), table


def _elasticity(x: Abstract, law: _Law) -> float:
    """d ln E f(a x)^2 / d ln a^2 at a = 1, by Stein's lemma."""
    if law.lognormal:
        return 1.0
    tilt = law.mean / np.maximum(law.std, 1e-150)
    growth = law.sums[:, 2] + tilt * law.sums[:, 3]
    shares = joint_weights(strata.shares, x.atoms)
    size = float(law.sums[:, 0] @ shares)
    rate = float(growth @ shares) / size / 2 if size else 0.0
    return rate if math.isfinite(rate) else 0.0


def _own(x: Abstract) -> Array:
    """E x^2 by segments."""
    if x.mean.size == 1:
        return x.q.reshape(-1)[:1]
    return x.q[tuple(slice(s) for s in x.mean.shape)].reshape(-1)


def _pairs_alike(
    q: Array, mean: float, variance: float, c: Array, second: float, values: Array
) -> Array:
    if variance <= 0:
        return np.full(q.shape, second)
    r = np.minimum(np.maximum((q.reshape(-1) - mean * mean) / variance, -1.0), 1.0)
    squares = c * c
    table = squares @ _powers(r)
    beyond = second - float(squares.sum())
    if beyond > 1e-14 * second:
        tail = _high_degrees(np.abs(r))
        if (r < 0).any():  # there the odd degrees count negatively
            opposite = float((values * values[::-1]) @ _W - _ALTERNATING @ squares)
            tail = np.where(r < 0, opposite / beyond * tail, tail)
        table += beyond * tail
    table[0] = second
    return table.reshape(q.shape)


def _powers(r: Array) -> Array:
    """r^0, r^1, ..., one row a degree."""
    rows = np.empty((TERMS, r.size))
    rows[0], rows[1:] = 1.0, r
    return np.asarray(np.multiply.accumulate(rows, axis=0, out=rows))


def _high_degrees(r: Array) -> Array:
    """What the terms beyond the series count for: something near |r| = 1 only."""
    return np.interp(r, _R[::-1], _TAIL, left=0.0)


@lru_cache(maxsize=4096)
def sides(atoms: tuple[Atom, ...]) -> tuple[Index, Index]:
    """Flat segments of the first and of the second index of each class."""
    flat = np.arange(math.prod(map(len, atoms))).reshape(tuple(map(len, atoms)))
    first, second = (
        flat[np.ix_(*(side(a) for a in atoms))].reshape(-1) for side in (strata.left, strata.right)
    )
    return first, second


def _pairs(x: Abstract, law: _Law, c: Array, second: Array) -> Array:
    shape = x.mean.shape
    i, j = sides(x.atoms)
    r = law.correlation(x.q.reshape(-1), i, j)
    series = np.ascontiguousarray(c.T)
    products = (series[:, :, None] * series[:, None]).reshape(TERMS, -1)
    table = np.einsum("kn,kn->n", _powers(r), products.take(i * len(second) + j, axis=1))
    tail = np.sqrt(np.maximum(second - np.einsum("kn,kn->n", series, series), 0.0))
    table += tail[i] * tail[j] * _high_degrees(r)
    table = table.reshape(x.q.shape)
    table[tuple(slice(s) for s in shape)] = second.reshape(shape)
    return table
