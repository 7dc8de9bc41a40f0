r"""The standard normal, whole or restricted to a window [low, high], without cancellation.

Everything rests on two quantities that stay near 1 however far out the window lies:

    mills(a)   = \int_0^oo exp(-a t - t^2/2) dt      = (1 - Phi(a)) / phi(a),  a >= 0
    mass(a, w) = \int_0^w  exp(-a t - t^2/2) dt      = (Phi(a + w) - Phi(a)) / phi(a)

so no probability is ever the difference of two numbers close to 0 or to 1. Positions are measured
from the window's point nearest to zero (its anchor): ``low`` in the right tail, ``high`` in the
left tail, 0 where the window holds the mode.

Sources: Laplace's continued fraction for Mills' ratio (Abramowitz & Stegun 1964, 26.2.14);
moments of a truncated normal: Johnson, Kotz & Balakrishnan 1994, vol. 1, section 13.10.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

HALF_MASS = math.sqrt(math.pi / 2)  # mills(0)
_FRACTION_FROM, _FRACTION_TERMS = 5.0, 40  # relative error < 1e-16 from 5 sigmas on
_FAR = 45.0  # exp(-45) of the mass is below the last bit of any moment
_NEWTON_STEPS = 50  # a bound for safety; it ends after about 6

_erfc_object = np.frompyfunc(math.erfc, 1, 1)
_quantile_object = np.frompyfunc(NormalDist().inv_cdf, 1, 1)


def erfc(x: Array) -> Array:
    """The complementary error function, elementwise, as accurate as the C library's."""
    return np.asarray(_erfc_object(x), dtype=np.float64)


def cdf(x: Array) -> Array:
    """Phi(x), with full relative accuracy in the left tail."""
    return 0.5 * erfc(-x / math.sqrt(2.0))


def ppf(u: Array) -> Array:
    """The inverse of Phi on [0, 1]; infinite at the ends."""
    inside = (u > 0.0) & (u < 1.0)
    quantile = np.asarray(_quantile_object(np.where(inside, u, 0.5)), dtype=np.float64)
    return np.where(inside, quantile, np.where(u > 0.5, np.inf, -np.inf))


def step_cdf(x: Array, at: float) -> Array:
    """The cdf of all mass at one point; NaN stays NaN."""
    return np.where(np.isnan(x), np.nan, (x >= at).astype(np.float64))


@lru_cache(maxsize=4)
def _legendre(n: int) -> tuple[Array, Array]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return (nodes + 1.0) / 2.0, weights / 2.0


def mills(a: Array) -> Array:
    """Mills' ratio (1 - Phi(a)) / phi(a) for a >= 0.

    >>> mills(np.array([0.0, 20.0])).round(12).tolist()
    [1.253314137316, 0.049875925982]
    """
    far = a >= _FRACTION_FROM
    near = np.where(far, 0.0, a)
    out = HALF_MASS * np.exp(near * near / 2.0) * erfc(near / math.sqrt(2.0))
    if far.any():
        x = a[far]
        tail = x
        for k in range(_FRACTION_TERMS, 0, -1):
            tail = x + k / tail
        out[far] = 1.0 / tail
    return out


def mass(a: Array, width: Array) -> Array:
    """The mass of [a, a + width] divided by phi(a), for a >= 0 and 0 <= width <= oo."""
    a, width = np.broadcast_arrays(a, width)
    drop = width * (a + width / 2.0)  # -log of phi(a + width) / phi(a)
    narrow = drop < 1.0
    out = np.empty_like(drop)
    wide = ~narrow
    if wide.any():
        out[wide] = mills(a[wide]) - np.exp(-drop[wide]) * mills(a[wide] + width[wide])
    if narrow.any():
        x, w = a[narrow], width[narrow]
        total = np.zeros_like(x)
        for node, weight in zip(*_legendre(12), strict=True):
            t = w * node
            total += weight * np.exp(-t * (x + t / 2.0))
        out[narrow] = w * total
    return out


def _one(x: float) -> Array:
    return np.array([x])


def window_cdf(low: float, high: float, x: Array, below: Array, above: Array) -> Array:
    """P(Z <= x | low <= Z <= high) for a standard normal Z.

    Args:
        low: lower bound in sigmas, -oo allowed.
        high: upper bound in sigmas, > low, oo allowed.
        x: positions in sigmas, inside the window.
        below: ``x - low``, as exactly as the caller knows it.
        above: ``high - x``, likewise.
    """
    if low >= 0.0:
        return mass(_one(low), below) / mass(_one(low), _one(high - low))
    if high <= 0.0:
        density = np.exp(-above * (above / 2.0 - high))
        return density * mass(above - high, below) / mass(_one(-high), _one(high - low))
    left, right = mass(_one(0.0), np.array([-low, high]))
    negative = x <= 0.0
    beyond = np.where(negative, 0.0, x)
    depth = np.where(negative, -x, 0.0)
    lower = np.exp(-depth * depth / 2.0) * mass(depth, np.where(negative, below, 0.0))
    return np.where(negative, lower, left + mass(_one(0.0), beyond)) / (left + right)


def window_ppf(low: float, high: float, u: Array) -> Array:
    """The quantile of Z given low <= Z <= high, as its signed distance from the anchor."""
    if low >= 0.0:
        return _tail_ppf(low, high - low, u, 1.0 - u)
    if high <= 0.0:
        return -_tail_ppf(-high, high - low, 1.0 - u, u)
    left, right = mass(_one(0.0), np.array([-low, high]))
    share, rest = left / (left + right), right / (left + right)
    negative = u <= share
    out = np.empty_like(u)
    out[negative] = -_tail_ppf(0.0, -low, (share - u[negative]) / share, u[negative] / share)
    over = u[~negative]
    out[~negative] = _tail_ppf(0.0, high, (over - share) / rest, (1.0 - over) / rest)
    return out


def _tail_ppf(a: float, width: float, u: Array, v: Array) -> Array:
    """The t in [0, width] with P(Z <= a + t) = u and P(Z > a + t) = v = 1 - u, given the window.

    The density falls on [a, a + width], a >= 0, so the cdf is concave and the log survival too:
    Newton's steps are monotone upwards from a lower bound, downwards from an upper bound.
    """
    total = float(mass(_one(a), _one(width))[0])
    out = np.full_like(u, width)
    small = u <= 0.5
    if small.any():
        goal = u[small] * total  # the density is at most 1, so t is no less than this

        def rise(t: Array) -> Array:
            return (goal - mass(_one(a), t)) * np.exp(t * (a + t / 2.0))

        out[small] = _monotone(rise, goal)
    large = ~small & (v > 0.0)
    if large.any():
        rest = v[large]

        def fall(t: Array) -> Array:
            beyond = mass(a + t, np.maximum(width - t, 0.0))
            survival = beyond * np.exp(-t * (a + t / 2.0)) / total
            return beyond * np.log(np.where(survival > 0.0, survival / rest, 1.0))

        out[large] = _monotone(fall, _survival_bound(a, width, total, rest))
    return np.clip(out, 0.0, width)


def _survival_bound(a: float, width: float, total: float, v: Array) -> Array:
    """No less than the t with P(Z > a + t) = v, and close to it.

    The survival is at most exp(-a t - t^2/2), and at most what a density gives that grows at the
    constant rate a + width from the far end inwards, where it really grows at less.
    """
    depth = np.sqrt(-2.0 * np.log(v))
    bound = depth * (depth / (a + np.hypot(a, depth)))
    drop = width * (a + width / 2.0)
    if drop > 700.0:  # the far end's density is nil
        return bound
    rate = a + width
    return np.minimum(bound, width - np.log1p(rate * total * v * math.exp(drop)) / rate)


def _monotone(step: Callable[[Array], Array], start: Array) -> Array:
    """Add ``step`` until it is so small that, the error being squared, the next one is nil."""
    t = start
    for _ in range(_NEWTON_STEPS):
        change = step(t)
        t = t + change
        if np.all(np.abs(change) <= 1e-13 * np.abs(t)):
            break
    return t


@lru_cache(maxsize=4096)
def window_moments(low: float, high: float) -> tuple[float, float]:
    """(mean as signed distance from the anchor, std) of Z given low <= Z <= high, Z ~ N(0, 1).

    Args:
        low: lower bound in sigmas, -oo allowed.
        high: upper bound in sigmas, > low, oo allowed.

    >>> mean, std = window_moments(-2.0, 2.0)
    >>> round(std, 12)
    0.879625661034
    """
    if high <= 0.0:
        mean, std = window_moments(-high, -low)
        return -mean, std
    if low >= 0.0:
        t, p = _panel(low, high - low)
        return _mean_std(t, p / p.sum())
    left, right = _panel(0.0, -low), _panel(0.0, high)
    t, p = np.concatenate([-left[0], right[0]]), np.concatenate([left[1], right[1]])
    total = float(p.sum())
    return _mean_astride(low, high, total), _mean_std(t, p / total)[1]


def _mean_std(t: Array, p: Array) -> tuple[float, float]:
    scale = float(np.abs(t).max())  # so that squares of tiny positions do not underflow
    unit = t / scale
    mean = float(unit @ p)
    return scale * mean, scale * math.sqrt(float((unit - mean) ** 2 @ p))


def _mean_astride(low: float, high: float, total: float) -> float:
    """(phi(low) - phi(high)) / mass by expm1, exact also where the window is nearly symmetric."""
    near, far = min(-low, high), max(-low, high)
    if near == far:
        return 0.0
    size = math.exp(-near * near / 2.0) * -math.expm1(-(far - near) * (far + near) / 2.0) / total
    return size if high > -low else -size


def _panel(a: float, width: float) -> tuple[Array, Array]:
    """Positions and quadrature weights of exp(-a t - t^2/2) on [0, width], cut where it is nil."""
    width = min(width, 2.0 * _FAR / (a + math.hypot(a, math.sqrt(2.0 * _FAR))))
    nodes, weights = _legendre(64)
    t = width * nodes
    return t, width * weights * np.exp(-t * (a + t / 2.0))
