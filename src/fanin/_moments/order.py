"""The largest, the k-th, the middle of several numbers: order statistics of correlated Gaussians.

n numbers of a group share a part of variance c and vary by d = v - c each on their own, so that the
largest is m + sqrt(c) z + sqrt(d) y with y the largest of n standard normals. Functions that rise
commute with it: max relu(x) = relu(max x), which is why it is taken before the function
(`domain.Abstract.chain`); others are sorted on the grid. Two groups whose own parts correlate by r
have covariance V kappa(r), from Hoeffding's formula

    Cov(max x, max x') = int int [F2(s, t; r)^n - F(s)^n F(t)^n] ds dt,

and groups that share some of their numbers likewise. Source: David & Nagaraja 2003, "Order
Statistics", chapters 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from . import strata
from .domain import Abstract, Function, limited, merge_dim, uniform
from .gaussian import TERMS
from .notes import linear, unchained
from .strata import Array, Atom, Index

_STEP = 0.05
_Z = np.arange(-7.0, 7.0 + _STEP / 2, _STEP)
_CDF = np.array([0.5 * math.erfc(-z / math.sqrt(2)) for z in _Z])
_UPPER = _CDF[::-1]
_PDF = np.exp(-_Z * _Z / 2) * (_STEP / math.sqrt(2 * math.pi))
_COMMON = _Z[::5]
_COMMON_PDF = np.exp(-_COMMON * _COMMON / 2)
_COMMON_PDF /= _COMMON_PDF.sum()
_DEGREES = np.arange(1.0, TERMS)
_NODES, _NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(9)
_NODE_WEIGHTS = _NODE_WEIGHTS / _NODE_WEIGHTS.sum()
MAX_RANKED = 4096  # numbers among which ranks are exact; among more they are quantiles


# densities on the grid ----------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def largest(n: float) -> Array:
    """Weights on the grid of the largest of n standard normals."""
    w = _PDF * np.exp((n - 1) * np.log(np.maximum(_CDF, 1e-300)))
    return np.asarray(w / w.sum())


@lru_cache(maxsize=4096)
def ranked(n: int, first: int, last: int) -> Array:
    """Weights of the average of the ranks ``first`` .. ``last`` of n, 1 for the largest."""
    if n > MAX_RANKED:
        inside = np.minimum(_UPPER * n, last) - np.minimum(_UPPER * n, first - 1)
        w = np.maximum(-np.diff(inside, append=inside[-1:]), 0.0)
        return np.asarray(w / w.sum()) if w.sum() > 0 else largest(float(n))
    above, below = np.log(np.maximum(_UPPER, 1e-300)), np.log(np.maximum(_CDF, 1e-300))
    w = np.zeros_like(_Z)
    for k in range(first - 1, last):
        choose = math.lgamma(n) - math.lgamma(k + 1) - math.lgamma(n - k)
        w += np.exp(choose + k * above + (n - 1 - k) * below)
    w *= _PDF
    return np.asarray(w / w.sum())


def spread_of(w: Array) -> tuple[float, float]:
    """Mean and variance."""
    mean = float(w @ _Z)
    return mean, max(float(w @ (_Z * _Z)) - mean * mean, 0.0)


# how two groups' largest vary together ------------------------------------------------------------

_COARSE = slice(None, None, 4)
_RHO = np.linspace(0.0, 1.0, 11)


@lru_cache(maxsize=1)
def _joint_cdf() -> Array:
    """P(x < s, x' < t) on a coarse grid, one table a correlation."""
    z = _Z[_COARSE]
    weights = _PDF / _PDF.sum()
    tables = []
    for rho in _RHO[:-1]:
        at = (z[:, None] - math.sqrt(rho) * _Z) / math.sqrt(1 - rho)
        below = np.interp(at, _Z, _CDF)
        tables.append((below * weights) @ below.T)
    cdf = _CDF[_COARSE]
    return np.stack([*tables, np.minimum.outer(cdf, cdf)])


@lru_cache(maxsize=1024)
def _kappa(n: float) -> Array:
    joint = _joint_cdf()
    covariance = (joint**n - joint[0] ** n).sum(axis=(1, 2))
    return np.asarray(covariance / covariance[-1])


def kappa(n: float, rho: Array) -> Array:
    """Cov(max x, max x') over the variance of one, where the numbers correlate by rho."""
    table = _kappa(float(n))
    at_most = np.clip(rho, 0.0, 1.0)
    falling = np.minimum(rho, 0.0) * (table[1] / _RHO[1])
    return np.asarray(np.interp(at_most, _RHO, table) + falling)


@lru_cache(maxsize=4096)
def shared(n: float, common: float) -> float:
    """Cov over the variance, where ``common`` of each group's n numbers are the same ones."""
    if common <= 0:
        return 0.0
    joint = _joint_cdf()
    apart, alike = joint[0], joint[-1]
    whole = (alike**n - apart**n).sum()
    return float((apart ** (n - common) * alike**common - apart**n).sum() / whole)


# one group's result -------------------------------------------------------------------------------


class Groups(NamedTuple):
    """Numbers in groups along some axes, and how they vary.

    Args:
        base: Gaussian, those axes as one uniform atom each.
        f: rises or falls; the numbers are f(base).
        axes: of ``q``, that the groups lie along.
        near: E x x' at the same place in the group, by the classes of the other atoms.
        inner: at different places in the group.
        left, right: segments of those classes.
        mean, variance, common: by segment.
    """

    base: Abstract
    f: Function
    axes: tuple[int, ...]
    near: Array
    inner: Array
    left: Index
    right: Index
    mean: Array
    variance: Array
    common: Array


def grouped(x: Abstract, dims: Sequence[int], sizes: Sequence[float]) -> Groups:
    """``x`` in groups of ``sizes`` along the axes ``dims``."""
    base, f = unchained(x)
    for d in dims:
        base = uniform(merge_dim(base, d), [d])
    present = [
        (base.axes([d])[0], size) for d, size in zip(dims, sizes, strict=True) if base.dims[d]
    ]
    axes = tuple(axis for axis, _ in present)
    near, inner = base.q, np.zeros(())
    weights = np.ones(())
    for _, size in present:
        weights = np.multiply.outer(weights, np.array([1.0, max(size - 1.0, 0.0)]))
    moved = np.moveaxis(base.q, axes, range(len(axes)))
    near = moved[(0,) * len(axes)]
    total = float(weights.sum()) - 1.0
    every = np.tensordot(weights, moved, len(axes))
    inner = (every - near) / total if total > 0 else near
    atoms = [a for k, a in enumerate(base.atoms) if k not in axes]
    mean = base.mean.reshape([n for k, n in enumerate(base.mean.shape) if k not in axes])
    own = tuple(slice(len(a)) for a in atoms)
    left, right = _segments(atoms, strata.left), _segments(atoms, strata.right)
    square = mean * mean
    variance, common = np.maximum(near[own] - square, 0.0), inner[own] - square
    return Groups(
        base, f, axes, near, inner, left, right,
        mean.reshape(-1), variance.reshape(-1), np.minimum(common.reshape(-1), variance.reshape(-1)),
    )  # fmt: skip


def _segments(atoms: Sequence[Atom], side: object) -> Index:
    shape = [len(a) for a in atoms]
    flat = np.arange(math.prod(shape)).reshape(shape)
    assert callable(side)
    return np.asarray(flat[np.ix_(*(side(a) for a in atoms))]) if atoms else flat


class Selected(NamedTuple):
    """The selected number of every group.

    Args:
        same: E y y' of one group, by the classes of the other atoms.
        mean: by segment.
        own: variance that is the group's own, by segment.
        between: cov of two groups' elements -> E y y', broadcasting over the classes.
    """

    same: Array
    mean: Array
    own: Array
    between: Betweens


class Betweens(NamedTuple):
    """What two different groups have in common: the selected numbers' means given the shared part."""

    coefficients: Array
    common: Array
    slope: float | None


def select(groups: Groups, w: Array, n: float, sign: int = 1, *, top: bool = True) -> Selected:
    """The number with weights ``w`` on the grid, of n in a group.

    Args:
        groups: the numbers.
        w: where it lies among standard normals; for sign -1, the mirror image.
        n: how many they are.
        sign: 1 for the largest, -1 for the smallest.
        top: whether it is the largest or smallest; else own parts correlate as the numbers do.
    """
    line = linear(groups.f)
    i, j = groups.left, groups.right
    own_part = np.maximum(groups.variance - groups.common, 0.0)
    rho = _ratio(groups.near - groups.inner, own_part[i] * own_part[j])
    shape = kappa(n, rho) if top else rho
    e, v = spread_of(w)
    if line is not None:
        slope, offset = line
        side = sign if slope >= 0 else -sign
        mean = slope * (groups.mean + side * np.sqrt(own_part) * e) + offset
        own = slope * slope * own_part * v
        shared_part = slope * slope * (groups.inner - groups.mean[i] * groups.mean[j])
        between = Betweens(mean[:, None], groups.common, slope)
    else:
        coefficients, own = _through(groups, own_part, w, sign)
        mean = coefficients[:, 0]
        between = Betweens(coefficients, np.maximum(groups.common, 0.0), None)
        shared_part = met(between, groups.inner - groups.mean[i] * groups.mean[j], i, j)
    same = mean[i] * mean[j] + shared_part + np.sqrt(own[i] * own[j]) * shape
    return Selected(np.asarray(same), mean, own, between)


def met(between: Betweens, covariance: Array, i: Index, j: Index) -> Array:
    """The covariance of two groups' results, from that of their elements."""
    return met_between(between, between, covariance, i, j)


def met_between(a: Betweens, b: Betweens, covariance: Array, i: Index, j: Index) -> Array:
    """The covariance of one group's result and another one's of another rank."""
    if a.slope is not None:
        return np.asarray(a.slope**2 * covariance)
    r = _ratio(covariance, a.common[i] * b.common[j])
    products = a.coefficients[i, 1:] * b.coefficients[j, 1:]
    return np.asarray((products * r[..., None] ** _DEGREES).sum(axis=-1))


def _ratio(covariance: Array, product: Array) -> Array:
    scale = np.sqrt(product)
    return np.clip(
        np.where(scale > 0, covariance / np.where(scale > 0, scale, 1.0), 0.0), -1.0, 1.0
    )


def _through(groups: Groups, own: Array, w: Array, sign: int) -> tuple[Array, Array]:
    """Hermite coefficients in the shared part of the mean given it, and the variance beyond."""
    common = np.maximum(groups.common, 0.0)
    own = np.minimum(own, groups.variance)
    at = groups.mean[:, None, None] + np.sqrt(common)[:, None, None] * _COMMON[:, None]
    at = at + np.sqrt(own)[:, None, None] * _Z
    with np.errstate(all="ignore"):
        values = np.nan_to_num(groups.f(at), posinf=1e150, neginf=-1e150)
    values = np.broadcast_to(values, at.shape)
    steps = np.diff(values, axis=2)
    if (steps >= 0).all():
        weights = w if sign > 0 else w[::-1]
    elif (steps <= 0).all():
        weights = w[::-1] if sign > 0 else w
    else:
        values, weights = _sorted(values, w if sign > 0 else w[::-1])
    given = (values * weights).sum(axis=2)
    beyond = (values * values * weights).sum(axis=2) - given * given
    return (given * _COMMON_PDF) @ _hermite().T, np.maximum(beyond @ _COMMON_PDF, 0.0)


def _sorted(values: Array, w: Array) -> tuple[Array, Array]:
    """Values in rising order, and the weights that ``w`` puts on these ranks."""
    order = np.argsort(values, axis=2)
    ranks = np.cumsum((_PDF / _PDF.sum())[order], axis=2)
    total = np.interp(ranks, _CDF, np.cumsum(w))
    weights = np.diff(total, axis=2, prepend=0.0)
    weights[..., -1] += 1.0 - total[..., -1]
    return np.take_along_axis(values, order, 2), weights


@lru_cache(maxsize=1)
def _hermite() -> Array:
    rows = [np.ones_like(_COMMON), _COMMON]
    for k in range(1, TERMS - 1):
        rows.append((_COMMON * rows[k] - math.sqrt(k) * rows[k - 1]) / math.sqrt(k + 1))
    return np.stack(rows)


# whole axes ---------------------------------------------------------------------------------------


def extreme(x: Abstract, dims: Sequence[int], sign: int = 1, w: Array | None = None) -> Abstract:
    """The largest (smallest for sign -1) over whole axes, that go; or what ``w`` selects."""
    sizes = [float(x.shape[d]) for d in dims]
    n = math.prod(sizes)
    groups = grouped(x, dims, sizes)
    chosen = select(groups, largest(n) if w is None else w, n, sign, top=w is None)
    left = tuple(dim for d, dim in enumerate(groups.base.dims) if d not in dims)
    mean = chosen.mean.reshape([len(a) for dim in left for a in dim])
    return limited(Abstract(left, mean, chosen.same, noise=x.noise))


def largest_of(x: Abstract, n: float, sign: int = 1) -> Abstract:
    """The largest of n independent tensors like ``x``."""
    mean = x.mean.reshape(-1)
    own = np.maximum(x.q[tuple(slice(len(a)) for a in x.atoms)].reshape(-1) - mean * mean, 0.0)
    i, j = _segments(x.atoms, strata.left), _segments(x.atoms, strata.right)
    e, v = spread_of(largest(float(n)))
    rho = _ratio(x.q - mean[i] * mean[j], own[i] * own[j])
    center = mean + sign * np.sqrt(own) * e
    q = center[i] * center[j] + np.sqrt(own[i] * own[j]) * v * kappa(n, rho)
    return Abstract(x.dims, center.reshape(x.mean.shape), np.asarray(q), noise=x.noise)


def chance(n: float, z: Array, r: float) -> Array:
    """P(a number is the largest of n, given its own z), with correlation r within the group."""
    r = min(max(r, 0.0), 1.0 - 1e-9)
    center, width = r * z, math.sqrt(r * (1 - r))
    at = (z[..., None] - center[..., None] - width * _NODES) / math.sqrt(1 - r)
    below = np.interp(at, _Z, _CDF) ** (n - 1)
    return np.asarray(below @ _NODE_WEIGHTS)
