"""Functions of Gaussian tensors: E f(x) and E f(x) f(x') from E x and E x x'.

For z, z' standard normal with correlation r and f(z) = sum_k c_k he_k(z) in normalised Hermite
polynomials, E f(z) f(z') = sum_k c_k c'_k r^k (Mehler). Sources: Daniely, Frostig & Singer 2016,
"Toward deeper understanding of neural networks", section 4; Poole et al. 2016.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from . import strata
from .domain import Abstract, Function, joint_weights
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


_WEIGHTED_T = np.ascontiguousarray((_hermite() * _W).T)
_R = 1.0 - np.linspace(0.0, 1.0, 257) ** 2


def _steps() -> Array:
    """What degrees beyond the series keep of their mass at correlation r, for f with a jump.

    There c_k^2 falls as k^-1.5; a kink's falls as k^-2.5 and leaves next to nothing beyond.
    """
    k = np.arange(TERMS, 4000.0)
    kept = np.array([(k**-1.5 * np.exp(k * math.log(max(r, 1e-9)))).sum() for r in _R])
    return kept / kept[0]


_TAIL = _steps()[::-1]


def pointwise(x: Abstract, f: Function) -> Abstract:
    """f(x) element by element, x Gaussian; functions in a row meet as one function of the first.

    Args:
        x: the argument.
        f: float64 array -> float64 array.
    """
    base, g = x.chain or (x, None)
    h = f if g is None else _composed(f, g)
    mean, std, values = _evaluated(base, h)
    first, q = _moments(base, mean, std, values)
    noise = base.noise * _elasticity(base, mean, std, values) ** 2 if base.noise else 0.0
    return Abstract(base.dims, first, q, chain=(base, h), allowed=x.allowed, noise=noise)


def _composed(f: Function, g: Function) -> Function:
    return lambda z: f(g(z))


def moments(x: Abstract, f: Function) -> tuple[Array, Array]:
    """E f(x) by segments, and E f(x) f(x') by classes."""
    return _moments(x, *_evaluated(x, f))


def _evaluated(x: Abstract, f: Function) -> tuple[Array, Array, Array]:
    """Means, standard deviations and f on the grid, by segments."""
    mean = x.mean.reshape(-1)
    own = _own(x)
    variance = np.maximum(own - mean * mean, 0.0)
    variance[variance <= 1e-24 * own] = 0.0
    std = np.sqrt(variance)
    with np.errstate(all="ignore"):
        values = f(mean[:, None] + std[:, None] * _Z)
        if np.shape(values) != (mean.size, _Z.size):
            values = np.broadcast_to(values, (mean.size, _Z.size))
        if not math.isfinite(values.sum()):
            values = np.nan_to_num(values, posinf=1e150, neginf=-1e150)
    return mean, std, values


def _moments(x: Abstract, mean: Array, std: Array, values: Array) -> tuple[Array, Array]:
    with np.errstate(all="ignore"):
        c = values @ _WEIGHTED_T
        second = (values * values) @ _W
        if mean.size == 1:
            table = _pairs_alike(x.q, mean[0], std[0] * std[0], c[0], second[0])
        else:
            table = _pairs(x, mean, std, c, second)
    return c[:, 0].reshape(x.mean.shape), table


def _elasticity(x: Abstract, mean: Array, std: Array, values: Array) -> float:
    """d ln E f(a x)^2 / d ln a^2 at a = 1, by Stein's lemma."""
    with np.errstate(all="ignore"):
        squares = values * values * _W
        tilt = mean / np.maximum(std, 1e-150)
        growth = squares @ (_Z * _Z - 1.0) + tilt * (squares @ _Z)
        shares = joint_weights(strata.shares, tuple(x.atoms))
        rate = float(growth @ shares) / float(squares.sum(axis=1) @ shares) / 2
    return rate if math.isfinite(rate) else 0.0


def _own(x: Abstract) -> Array:
    """E x^2 by segments."""
    if x.mean.size == 1:
        return x.q.reshape(-1)[:1]
    return x.q[tuple(slice(s) for s in x.mean.shape)].reshape(-1)


def _pairs_alike(q: Array, mean: float, variance: float, c: Array, second: float) -> Array:
    if variance <= 0:
        return np.full(q.shape, second)
    r = np.minimum(np.maximum((q.reshape(-1) - mean * mean) / variance, -1.0), 1.0)
    squares = c * c
    table = _powers(r) @ squares
    beyond = second - float(squares.sum())
    if beyond > 1e-14 * second:
        table += beyond * _high_degrees(r)
    table[0] = second
    return table.reshape(q.shape)


def _powers(r: Array) -> Array:
    """r^0, r^1, ..., one column a degree."""
    columns = np.empty((r.size, TERMS))
    columns[:, 0] = 1.0
    columns[:, 1:] = r[:, None]
    return np.asarray(np.cumprod(columns, axis=1))


def _high_degrees(r: Array) -> Array:
    """What the terms beyond the series count for: something near r = 1 only."""
    return np.interp(r, _R[::-1], _TAIL, left=0.0)


@lru_cache(maxsize=4096)
def sides(atoms: tuple[Atom, ...]) -> tuple[Index, Index]:
    """Flat segments of the first and of the second index of each class."""
    flat = np.arange(math.prod(map(len, atoms))).reshape(tuple(map(len, atoms)))
    first, second = (
        flat[np.ix_(*(side(a) for a in atoms))].reshape(-1) for side in (strata.left, strata.right)
    )
    return first, second


def _pairs(x: Abstract, mean: Array, std: Array, c: Array, second: Array) -> Array:
    shape = x.mean.shape
    i, j = sides(tuple(x.atoms))
    scale = std[i] * std[j]
    r = np.where(
        scale > 0, (x.q.reshape(-1) - mean[i] * mean[j]) / np.where(scale > 0, scale, 1.0), 0.0
    )
    r = np.clip(r, -1.0, 1.0)
    table = np.einsum("nk,nk,nk->n", _powers(r), c[i], c[j])
    tail = np.maximum(second - (c * c).sum(axis=1), 0.0)
    table += np.sqrt(tail[i] * tail[j]) * _high_degrees(r)
    table = table.reshape(x.q.shape)
    table[tuple(slice(s) for s in shape)] = second.reshape(shape)
    return table
