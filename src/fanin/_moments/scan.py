"""Rules of running sums, products, maxima: position a knows all before it.

Positions differ, so that the axis falls into segments; a running sum of independent numbers grows as
the root of the position, of their mean as the position.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from . import maps, order, strata
from .concentration import log_sum_covariance, log_sum_mean
from .domain import Abstract, limited, merge_dim, scaled, uniform
from .indexing import integers
from .maps import carried, mapped, runs
from .registry import backward, forward
from .strata import Array, Atom, Dims, Index

LONGEST = 96  # positions of an axis that are followed one by one


@lru_cache(maxsize=1024)
def _prefix(old: Atom, *, reverse: bool) -> tuple[Array, Array, Dims]:
    """Tables of running sums from the front or from the back, and the new axis."""
    n = sum(old)
    of = np.repeat(np.eye(len(old)), old, axis=0)
    rows = np.cumsum(of[::-1], axis=0)[::-1] if reverse else np.cumsum(of, axis=0)
    new = runs(rows)
    owner = np.repeat(np.eye(len(new)), new, axis=0)
    columns = np.cumsum(owner, axis=0) if reverse else np.cumsum(owner[::-1], axis=0)[::-1]
    squares = owner.T @ rows
    sums = maps.from_margins(rows, columns.T, squares, old, new)
    assert rows.shape[0] == n
    return (
        sums / np.maximum(strata.pairs(new), 1.0)[:, None],
        squares / np.array([new]).T,
        ((new,),),
    )


def _running(x: Abstract, dim: int, *, reverse: bool) -> Abstract:
    x = merge_dim(x, dim)
    if not x.dims[dim]:
        return x.plain()
    table, means, new = _prefix(x.dims[dim][0], reverse=reverse)
    return carried(x, dim, table, means, new)


@forward("cumsum")
def cumsum(x: Abstract, dim: int) -> Abstract:
    """Running sums: a linear map of ones below the diagonal."""
    return _running(x, dim % len(x.dims), reverse=False) if x.dims else x.plain()


@backward("cumsum")
def cumsum_back(grad: Abstract, dim: int) -> dict[str, Any]:
    """Running sums from the back."""
    return {"x": _running(grad, dim % len(grad.dims), reverse=True) if grad.dims else grad}


# what is not linear -------------------------------------------------------------------------------


def _line(x: Abstract, dim: int) -> tuple[Abstract, int, Array, Array, float]:
    """Axis ``dim`` as one uniform atom; near and far tables; its mean, one number."""
    one = uniform(merge_dim(x, dim))
    axis = one.axes([dim])[0]
    near, far = (np.asarray(one.q.take(k, axis)) for k in (0, 1))
    return one, axis, near, far, float(one.mean.reshape(-1)[0])


def _positions(n: int) -> Array:
    """1..n, or as many of them as are followed."""
    return np.linspace(1.0, n, min(n, LONGEST))


def _from_positions(
    x: Abstract, dim: int, *, mean: Array, q: Callable[[Index, Index], Array]
) -> Abstract:
    """An axis made of positions of which means and pair moments are known.

    Args:
        x: the tensor, on whose other axes there are no segments.
        dim: the axis.
        mean: by position.
        q: (first position, second position) -> E y y', a last axis for the other classes; the same
            position given twice means one element.
    """
    n, followed = x.shape[dim], mean.size
    parts = runs(mean[:, None])
    ends = np.cumsum([0, *parts])
    at = np.arange(followed)
    table = np.asarray(q(at[:, None], at[None]), float)
    s = len(parts)
    rows = []
    spans = list(pairwise(ends.tolist()))
    for i, j in spans:
        rows.append(table[np.arange(i, j), np.arange(i, j)].mean(axis=0))
    for i, j in spans:
        for k, m in spans:
            block = table[i:j, k:m]
            count = block.shape[0] * block.shape[1]
            total = block.sum(axis=(0, 1))
            if i == k and count > j - i:
                total = total - table[np.arange(i, j), np.arange(i, j)].sum(axis=0)
                count -= j - i
            rows.append(total / count)
    lengths = np.diff(np.round(ends * (n / followed)).astype(int))
    atom = tuple(int(m) for m in lengths)
    axis = x.axes([dim])[0]
    shape = [c for k, c in enumerate(x.q.shape) if k != axis]
    out = np.moveaxis(np.stack(rows).reshape(s + s * s, *shape), 0, axis)
    means = np.array([mean[i:j].mean() for i, j in spans])
    center = means.reshape([s if k == axis else 1 for k in range(x.q.ndim)])
    dims = (*x.dims[:dim], (atom,), *x.dims[dim + 1 :])
    return limited(Abstract(dims, center, out, noise=x.noise))


@forward("cumprod")
def cumprod(x: Abstract, dim: int) -> Abstract:
    """Of independent factors: E y_a y_b' = (E x x')^a (E x)^(b - a), a before b."""
    dim %= max(len(x.dims), 1)
    if not x.dims or not x.dims[dim]:
        return x.plain()
    one, _, near, _, m = _line(x, dim)
    at = _positions(x.shape[dim])

    def pair(i: Index, j: Index) -> Array:
        first, second = np.minimum(at[i], at[j]), np.maximum(at[i], at[j])
        base = near.reshape(-1)
        return _power(base, first[..., None]) * _power(np.array(m), (second - first)[..., None])

    return _from_positions(one, dim, mean=_power(np.array(m), at), q=pair)


def _power(base: Array, exponent: Array) -> Array:
    """base^exponent, with the sign of a whole exponent for negative bases."""
    sign = np.where(base < 0, np.where(np.round(exponent) % 2 == 1, -1.0, 1.0), 1.0)
    return np.asarray(sign * np.abs(base) ** exponent)


@backward("cumprod")
def cumprod_back(grad: Abstract, x: Abstract, dim: int) -> dict[str, Any]:
    """Sums over the later positions of g times all their other factors."""
    dim %= max(len(x.dims), 1)
    if not x.dims or not x.dims[dim]:
        return {"x": grad}
    n = x.shape[dim]
    root = math.sqrt(max(x.second_moment, 0.0))
    later = min(n, LONGEST)
    at, k = np.arange(n)[:, None], np.arange(later)[None]
    taps = np.where(at + k < n, at + k, -1)
    return {"x": mapped(grad, dim, maps.from_taps(taps, root ** (at + k), n))}


@forward("logcumsumexp")
def logcumsumexp(x: Abstract, dim: int) -> Abstract:
    """Ln of sums of a log-normals, on top of what all have in common (`concentration`)."""
    dim %= max(len(x.dims), 1)
    if not x.dims or not x.dims[dim]:
        return x.plain()
    one, _, near, far, m = _line(x, dim)
    at = _positions(x.shape[dim])
    own = np.maximum(float(near.reshape(-1)[0] - far.reshape(-1)[0]), 0.0)
    mean = m + log_sum_mean(at, np.full_like(at, own))
    apart = np.maximum(near - far, 0.0).reshape(-1)
    common = far.reshape(-1) - m * m

    def pair(i: Index, j: Index) -> Array:
        late = np.maximum(at[i], at[j])[..., None]
        cov = log_sum_covariance(late, np.full(late.shape, own), apart)
        return (mean[i] * mean[j])[..., None] + common + cov

    return _from_positions(one, dim, mean=np.asarray(mean), q=pair)


@backward("logcumsumexp")
def logcumsumexp_back(grad: Abstract, x: Abstract, dim: int) -> dict[str, Any]:
    """g_a times the share of x_i among a, about 1 / a, summed over a from i on."""
    dim %= max(len(x.dims), 1)
    if not x.dims or not x.dims[dim]:
        return {"x": grad}
    n = x.shape[dim]
    _, _, near, far, _ = _line(x, dim)
    own = max(float(near.reshape(-1)[0] - far.reshape(-1)[0]), 0.0)
    return {"x": scaled(mapped(grad, dim, _shares(n)), math.exp(min(own, 8.0) / 2)).plain()}


@lru_cache(maxsize=256)
def _shares(n: int) -> maps.Linear:
    at = np.arange(n)[:, None]
    taps = at + np.arange(n)[None]
    return maps.from_taps(np.where(taps < n, taps, -1), 1.0 / (taps + 1.0), n)


@forward("cummax", "cummin")
def cummax(x: Abstract, dim: int, op: str) -> list[Abstract]:
    """The largest of the first a; what two positions have in common grows with a / b."""
    dim %= max(len(x.dims), 1)
    sign = 1.0 if op == "cummax" else -1.0
    if not x.dims or not x.dims[dim]:
        return [x.plain(), integers(x.shape, 1)]
    one, _, near, far, m = _line(x, dim)
    at = _positions(x.shape[dim])
    spread = np.array([order.spread_of(order.largest(float(a))) for a in at])
    apart = np.maximum(near - far, 0.0).reshape(-1)
    own = apart[0]
    mean = m + sign * math.sqrt(own) * spread[:, 0]
    common = far.reshape(-1) - m * m
    rho = apart / own if own > 0 else np.zeros_like(apart)

    def pair(i: Index, j: Index) -> Array:
        first, second = np.minimum(at[i], at[j]), np.maximum(at[i], at[j])
        least, most = 1.0 / second, spread[np.maximum(i, j), 1]
        # Cov of the largest of a and of b: 1 / b for a = 1; the power meets Monte Carlo within 0.01.
        rise = ((first - 1.0) / np.maximum(second - 1.0, 1.0)) ** 0.72
        held = (own * np.where(second > 1, least + (most - least) * rise, 1.0))[..., None]
        return (mean[i] * mean[j])[..., None] + common + held * rho

    values = _from_positions(one, dim, mean=mean, q=pair)
    return [values, integers(x.shape, x.shape[dim])]


@backward("cummax", "cummin")
def cummax_back(grad: Abstract) -> dict[str, Any]:
    """Every position's gradient at one element before it: as many as there are elements."""
    return {"x": uniform(grad).plain()}
