"""Distances between rows: sums over an axis under a root."""

from __future__ import annotations

import math

import numpy as np

from .contract import collected
from .domain import Abstract, added, limited, multiplied, scaled, shifted, summed
from .gaussian import pointwise
from .registry import backward, forward
from .strata import Array

TINY = 1e-12


def _apart(a: Abstract, b: Abstract, eps: float = 0.0) -> Abstract:
    """a - b + eps, broadcast."""
    gap = added(a, b, 1.0, -1.0)
    return (shifted(gap, eps) if eps else gap).plain()


def norm_over(gap: Abstract, p: float) -> Abstract:
    """(sum |x|^p)^(1/p) over the last axis: the sum of many is near Gaussian, its root a function of it."""
    if p in {math.inf, 0.0}:
        raise NotImplementedError(f"the norm of order {p} is sampled")
    total = summed(pointwise(gap, lambda z: np.abs(z) ** p), [len(gap.dims) - 1])
    return pointwise(total, lambda s: np.maximum(s, 0.0) ** (1.0 / p)).plain()


def norm_gradient(grad: Abstract, gap: Abstract, p: float) -> Abstract:
    """g sign(x) |x|^(p-1) / norm^(p-1), the norm taken at E sum |x|^p."""
    if p in {math.inf, 0.0}:
        raise NotImplementedError(f"the norm of order {p} is sampled")
    total = summed(pointwise(gap, lambda z: np.abs(z) ** p), [len(gap.dims) - 1])
    inverse = _at_expectation(total, 1.0 / p - 1.0)

    def slope(z: Array) -> Array:
        return np.sign(z) * np.abs(z) ** (p - 1.0)

    wide = multiplied(grad, inverse)
    wide = wide.with_(dims=(*wide.dims, ()), chain=None)
    return multiplied(wide, pointwise(gap, slope).plain())


def _at_expectation(x: Abstract, power: float) -> Abstract:
    """(E x)^power, without spread."""
    out = Abstract(x.dims, np.maximum(x.mean, TINY) ** power, x.q)
    out.q = out.outer()
    return out


def _pairs(x1: Abstract, x2: Abstract) -> Abstract:
    """x1_i - x2_j for all i, j."""
    rows = x1.with_(dims=(*x1.dims[:-1], (), x1.dims[-1]), chain=None, known=None)
    columns = x2.with_(dims=(*x2.dims[:-2], (), *x2.dims[-2:]), chain=None, known=None)
    return limited(_apart(rows, columns))


@forward("cdist", "_cdist_forward", "_euclidean_dist")
def cdist(x1: Abstract, x2: Abstract, p: float = 2.0) -> Abstract:
    """|x1_i - x2_j|_p for all pairs of rows."""
    return norm_over(_pairs(x1, x2), float(p))


@backward("cdist", "_cdist_forward", "_euclidean_dist")
def cdist_backward(
    grad: Abstract, x1: Abstract, x2: Abstract, p: float = 2.0
) -> dict[str, Abstract]:
    """Every row's pulls towards the rows of the other set, summed."""
    pulls = norm_gradient(grad, _pairs(x1, x2), float(p))
    rank = len(pulls.dims)
    return {
        "x1": collected(summed(pulls, [rank - 2]), x1.shape),
        "x2": collected(scaled(summed(pulls, [rank - 3]), -1.0).plain(), x2.shape),
    }


@forward("pairwise_distance")
def pairwise_distance(
    x1: Abstract, x2: Abstract, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Abstract:
    """|x1 - x2 + eps|_p over the last axis."""
    y = norm_over(_apart(x1, x2, eps), float(p))
    return y.with_(dims=(*y.dims, ())) if keepdim else y


@backward("pairwise_distance")
def pairwise_distance_backward(
    grad: Abstract,
    x1: Abstract,
    x2: Abstract,
    *,
    p: float = 2.0,
    eps: float = 1e-6,
    keepdim: bool = False,
) -> dict[str, Abstract]:
    """Both ends are pulled along their difference."""
    grad = grad.with_(dims=grad.dims[:-1], chain=None) if keepdim else grad
    pulls = norm_gradient(grad, _apart(x1, x2, eps), float(p))
    return {
        "x1": collected(pulls, x1.shape),
        "x2": collected(scaled(pulls, -1.0).plain(), x2.shape),
    }
