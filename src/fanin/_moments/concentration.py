"""How far a softmax of n Gaussian logits concentrates: E sum_j A_j A'_j for two rows of weights.

For logits z_j ~ N(0, v), iid, and S = sum_k exp(z_k), 1/S^2 = int s exp(-s S) ds gives

    P = E sum_j A_j^2 = n int s L_2(s) L_0(s)^(n-1) ds,   L_k(s) = E[exp(k z) exp(-s exp(z))],

exact for any v, where the log-normal closed form exp(v)/(n-1+exp(v)) is 64 % too high at v = 2.9.
Two rows whose logits correlate by r have E A_j A'_j = g(r), a power series in r with g(0) = 1/n^2,
g(1) = P/n, and by Price's theorem g'(0) = v (1-P)^2 / (n (n-1)); in between P(n, h(r) v) with h of
that slope meets Monte Carlo within 1.5 %.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from .strata import Array

MAX_VARIANCE = 36.0
_ROOTS = np.linspace(0.0, math.sqrt(MAX_VARIANCE), 49)  # of the logits' variance
_LOG_N = np.linspace(0.0, 14.0, 71)
_Z = np.linspace(-8.0, 8.0, 97)
_W = np.exp(-_Z * _Z / 2)
_W /= _W.sum()
_STEP = 0.375
_S = np.exp(np.arange(-62.0, 46.0, _STEP))


@lru_cache(maxsize=1)
def _tables() -> tuple[Array, Array, Array]:
    """On the grid (root of the variance, ln n): slope, retention and the integral of 1 - P."""
    n = np.maximum(np.exp(_LOG_N), 1.0 + 1e-6)
    slope, retention, spread = [], [], []
    for root in _ROOTS:
        p, ratio, kept = _row(root * root, n)
        v = max(root * root, 1e-300)
        slope.append(np.log(ratio) / v if root else np.ones_like(n))
        retention.append(kept if root else np.ones_like(n))
        spread.append(1.0 - p)
    steps = np.diff(_ROOTS)[:, None]
    weighted = np.stack(spread) * 2 * _ROOTS[:, None]
    areas = (weighted[1:] + weighted[:-1]) / 2 * steps
    integral = np.concatenate([np.zeros((1, n.size)), np.cumsum(areas, axis=0)])
    return np.stack(slope), np.stack(retention), integral


def _row(v: float, n: Array) -> tuple[Array, Array, Array]:
    """P; E A_1^2 / E A_1 A_2; and what is left of a gradient's variance, over P (1 - P)."""
    grown = np.exp(math.sqrt(v) * _Z)
    kernel = np.exp(-_S[:, None] * grown) * _W
    zeroth, first, second, third, fourth = (kernel @ grown**k for k in range(5))
    log = np.log(np.maximum(zeroth, 1e-300))
    once, twice = np.exp(np.outer(n - 1, log)), np.exp(np.outer(n - 2, log))
    ds = _S * _STEP
    alike = once @ (ds * _S * second)
    apart = twice @ (ds * _S * first**2)
    p, rest = n * alike, n * (n - 1) * apart
    cubes = n * (once @ (ds * _S**2 / 2 * third))
    squares = n * (once @ (ds * _S**3 / 6 * fourth)) + n * (n - 1) * (
        twice @ (ds * _S**3 / 6 * second**2)
    )
    return p, alike / apart, np.maximum(p - 2 * cubes + squares, 0.0) / (p * rest)


def _looked_up(table: Array, n: Array, v: Array) -> Array:
    """Bilinear in (root of v, ln n)."""
    row = np.sqrt(np.minimum(np.maximum(v, 0.0), MAX_VARIANCE)) / (_ROOTS[1] - _ROOTS[0])
    column = np.minimum(np.log(np.maximum(n, 1.0)), _LOG_N[-1]) / (_LOG_N[1] - _LOG_N[0])
    i = np.minimum(row.astype(np.intp), _ROOTS.size - 2)
    j = np.minimum(column.astype(np.intp), _LOG_N.size - 2)
    a, b = row - i, column - j
    flat, at = table.reshape(-1), i * _LOG_N.size + j
    low, high = flat.take(at), flat.take(at + _LOG_N.size)
    low = low + b * (flat.take(at + 1) - low)
    high = high + b * (flat.take(at + (_LOG_N.size + 1)) - high)
    return np.asarray(low + a * (high - low))


def tilt(n: Array, v: Array) -> Array:
    """t with E A_j^2 / E A_j A_k = exp(t v): 1 for small variances, less for large ones.

    >>> float(tilt(np.array(16.0), np.array(3.0)).round(2))
    0.56
    """
    return _looked_up(_tables()[0], n, v)


def participation(n: Array, v: Array) -> Array:
    """P = E sum_j A_j^2.

    >>> float(participation(np.array(64.0), np.array(3.0)).round(3))
    0.118
    """
    odds = np.exp(np.minimum(v, MAX_VARIANCE) * tilt(n, v))
    return np.asarray(odds / (odds + np.maximum(n - 1.0, 0.0)))


def effective(n: Array, v: Array, shared: Array, least: Array | None = None) -> Array:
    """The variance at which one row's P is two rows' E sum_j A_j A'_j.

    Args:
        n: number of keys.
        v: variance of the logits within a row.
        shared: covariance of the two rows' logits of one key, of different keys subtracted.
        least: `freedom` of them, where it is known.
    """
    v = np.minimum(v, MAX_VARIANCE)
    r = np.minimum(np.maximum(shared / np.maximum(v, 1e-30), -1.0), 1.0)
    if least is None:
        least = freedom(n, v)
    return np.asarray(v * (least * r + (1 - least) * np.sign(r) * np.abs(r) ** (2 + v / 3)))


def freedom(n: Array, v: Array) -> Array:
    """((1 - P) / (1 - 1/n))^2: how much of an uncorrelated row's shares may still move."""
    apart = np.maximum(1.0 - 1.0 / np.maximum(n, 1.0), 1e-12)
    share = np.minimum(np.maximum((1.0 - participation(n, v)) / apart, 0.0), 1.0)
    return np.asarray(share * share)


def retention(n: Array, v: Array, shared: Array, least: Array | None = None) -> Array:
    """E sum_j A_j A'_j (1 - A_j)(1 - A'_j), the mean gradient taken out, over K (1 - K).

    K = E sum_j A_j A'_j. For one row E[S_2 - 2 S_3 + S_2^2] / (P (1 - P)) with S_k = sum_j A_j^k,
    for uncorrelated rows ((1 - P) / (1 - 1/n))^2, between them linear in the correlation.
    """
    r = np.minimum(np.maximum(shared / np.maximum(v, 1e-30), 0.0), 1.0)
    if least is None:
        least = freedom(n, v)
    return np.asarray(least + (_looked_up(_tables()[1], n, v) - least) * r)


def log_sum_mean(n: Array, v: Array) -> Array:
    """E ln sum_j exp(z_j) = ln n + 1/2 int_0^v (1 - P(n, u)) du.

    >>> float(log_sum_mean(np.array(64.0), np.array(1.0)).round(2))
    4.65
    """
    return np.asarray(np.log(np.maximum(n, 1.0)) + _looked_up(_tables()[2], n, v) / 2)


def log_sum_covariance(n: Array, v: Array, shared: Array) -> Array:
    """Cov(ln S, ln S') = v int_0^r K(u) du for rows that correlate by r, by Gauss-Legendre."""
    nodes, weights = np.polynomial.legendre.leggauss(4)
    r = np.clip(shared / np.maximum(v, 1e-30), -1.0, 1.0)
    total = np.zeros(np.broadcast_shapes(np.shape(n), np.shape(v), np.shape(r)))
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        total = total + weight * participation(n, effective(n, v, r * v * node))
    return np.asarray(v * r * total)
