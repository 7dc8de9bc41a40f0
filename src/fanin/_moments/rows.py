"""A tensor's rows: their means taken out, their level divided out.

A row is what some axes hold, its level the mean of its squares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from . import strata
from .alignment import filled
from .domain import (
    Abstract,
    Function,
    added,
    aligned,
    along,
    averaged,
    mean_over,
    multiplied,
    over_pairs,
    weighed,
)
from .gaussian import pointwise
from .strata import Array, Atom, Index

_ZERO = np.zeros(1, np.intp)
SHARED = 0.03  # of a row's level that may be its own mean's before that is followed by itself


def with_mean(x: Abstract, dims: Sequence[int], own: float, mean: float) -> Abstract:
    """own x + mean m, m the mean of x over the axes ``dims``: q = own^2 E x x' + ... + mean^2 E m m'."""
    right = left = x.q
    axes = x.axes(dims)
    both = weighed(x.q, x.atoms, axes, over_pairs)
    average = weighed(x.mean, x.atoms, axes, strata.shares)
    if all(len(x.atoms[axis]) == 1 for axis in axes):
        right = left = both
    else:
        for axis in axes:
            right = along(right, axis, _half(x.atoms[axis], right=True))
            left = along(left, axis, _half(x.atoms[axis], right=False))
    q = own * own * x.q + own * mean * (left + right) + mean * mean * both
    return Abstract(x.dims, own * x.mean + mean * average, q, noise=x.noise)


@lru_cache(maxsize=4096)
def _half(atom: Atom, *, right: bool) -> Array:
    """A matrix that averages a table of classes over the first or the second index alone."""
    s, n = len(atom), sum(atom)
    first, second = strata.left(atom), strata.right(atom)
    if not right:
        first, second = second, first
    weights = np.zeros((s, s + s * s))
    columns = np.arange(s + s * s)
    weights[first, columns] = np.array(atom)[second] / n
    weights[np.arange(s), np.arange(s)] = 1 / n
    inner = s + np.arange(s) * (s + 1)
    weights[np.arange(s), inner] = (np.array(atom) - 1) / n
    return weights[first]


def centred(x: Abstract, dims: Sequence[int]) -> Abstract:
    """x less its mean over the axes ``dims``, exactly."""
    return with_mean(x, dims, 1.0, -1.0)


def level(x: Abstract, dims: Sequence[int]) -> Array:
    """E mean(x^2) over the axes ``dims``, by segments of the others."""
    own = x.q[tuple(map(slice, x.mean.shape))]
    return weighed(own, x.atoms, x.axes(dims), strata.shares)


def levelled(
    x: Abstract, dims: Sequence[int], g: Function, *, common: bool
) -> tuple[Abstract, Abstract]:
    """x g(v), v its rows' mean squares; and g(v).

    Within a row exact for g = v^(-1/2). A row that shares a part m with all its numbers has a level
    that varies with it: then m g(m^2 + w) and (x - m) g(m^2 + w), m Gaussian, w the rest's level.

    Args:
        x: the tensor.
        dims: a row's axes.
        g: a function of the level.
        common: whether rows may share a part; not where their means are taken out.
    """
    v = np.maximum(level(x, dims), 0.0)
    m = averaged(x.plain(), dims, keep=True)
    if common and m.second_moment > SHARED * _mean(v):
        return _split(x, dims, g, m)
    with np.errstate(all="ignore"):
        values = filled(g(v), v.shape)
    out = Abstract(x.dims, x.mean * values, x.q * paired(values, x), noise=x.noise)
    out.q = out.q * dissimilarity(out, dims)
    narrow = values.reshape(m.mean.shape)
    return out, Abstract(m.dims, narrow, filled(paired(narrow, m), m.q.shape))


def _split(x: Abstract, dims: Sequence[int], g: Function, m: Abstract) -> tuple[Abstract, Abstract]:
    c = centred(x.plain(), dims)
    w = np.maximum(level(c, dims), 0.0).reshape(-1, 1)
    scale = pointwise(m, lambda z: g(z * z + w)).plain()
    shared = pointwise(m, lambda z: z * g(z * z + w)).plain()
    c.q = c.q * dissimilarity(c, dims)
    return added(shared, multiplied(c, scale)).with_(noise=x.noise), scale


def _mean(table: Array) -> float:
    return float(np.add.reduce(table, axis=None)) / table.size


def freedom(x: Abstract, dims: Sequence[int]) -> float:
    """How many independent numbers a row holds: (E mean x^2)^2 over the mean of squared pairs."""
    return _freedom(x, dims, _mean(level(x, dims)))


def _freedom(x: Abstract, dims: Sequence[int], size: float) -> float:
    squares = weighed(x.q * x.q, x.atoms, x.axes(dims), over_pairs)
    pairs = _mean(squares[tuple(map(slice, x.mean.shape))])
    return size * size / pairs if pairs > 0 else np.inf


def dissimilarity(x: Abstract, dims: Sequence[int]) -> Array:
    """1 - (1 - rho^2) / (2 n) by class: what two rows of norm 1 lose because their norms vary apart.

    rho is the rows' cosine, n how many independent numbers a row holds (Fisher 1915: the mean of a
    sample correlation).
    """
    alike = weighed(x.q, x.atoms, x.axes(dims), strata.same)
    size = _mean(level(x, dims))
    n = _freedom(x, dims, size)
    if not size > 0 or not np.isfinite(n):
        return np.ones(())
    cosine = np.minimum(np.maximum(alike / size, -1.0), 1.0) if x.uniform else _cosines(x, alike)
    return np.asarray(1.0 - min(1.0 / n, 1.0) * (1.0 - cosine * cosine) / 2)


def _cosines(x: Abstract, alike: Array) -> Array:
    own = alike[
        tuple(slice(len(a) if n > 1 else 1) for n, a in zip(alike.shape, x.atoms, strict=True))
    ]
    scale = paired(1 / np.sqrt(np.maximum(own, 1e-300)), x)
    return np.asarray(np.clip(alike * scale, -1.0, 1.0))


def paired(values: Array, like: Abstract) -> Array:
    """v v' by class, of numbers by segment; axes of length 1 stay so."""
    if values.size == 1:
        return np.asarray(values * values).reshape((1,) * values.ndim)
    left, right = _places(values.shape, like.atoms)
    flat = values.reshape(-1)
    return np.asarray(flat[left] * flat[right])


@lru_cache(maxsize=4096)
def _places(shape: tuple[int, ...], atoms: tuple[Atom, ...]) -> tuple[Index, Index]:
    """Class -> where its first and its second index's number stands."""
    flat = np.arange(math.prod(shape)).reshape(shape)
    first, second = (
        flat[np.ix_(*(_ZERO if n == 1 else side(a) for n, a in zip(shape, atoms, strict=True)))]
        for side in (strata.left, strata.right)
    )
    return first, second


def levelled_backward(
    grad: Abstract,
    hat: Abstract,
    scale: Abstract,
    dims: Sequence[int],
    *,
    share: float,
    free: float,
) -> Abstract:
    """The gradient of x g(v): g(v) (grad - x^ mean(grad x^)), x^ of level e = -2 d ln g / d ln v.

    Its moments are (G - 2 G X^ / n + X^ mean_over(G X^)) E g^2: a gradient loses its part along x.
    For g = v^(-1/2), E 1/v is that of a chi square of as many degrees of freedom as a row has.

    Args:
        grad: the gradient of the product, centred where x is.
        hat: x g(v), of any level.
        scale: g(v).
        dims: a row's axes.
        share: e, 1 for v^(-1/2).
        free: degrees of freedom (`freedom`).
    """
    size = _mean(level(hat, dims))
    if not size > 0:
        return multiplied(grad.plain(), scale)
    unit = Abstract(hat.dims, hat.mean * (share / size) ** 0.5, hat.q * (share / size))
    g, x = aligned([grad.plain(), unit])
    along_x = mean_over(Abstract(x.dims, x.mean, g.q * x.q), dims)
    boost = (free / max(free - 2, free / 2)) ** share if np.isfinite(free) else 1.0
    q = boost * (g.q - 2 * _projected(g, x, dims) + x.q * along_x)
    return multiplied(Abstract(g.dims, g.mean, q, noise=grad.noise), scale)


def _projected(g: Abstract, hat: Abstract, dims: Sequence[int]) -> Array:
    """E[g x^' mean(g' x^')]: tables of g and x^ as matrices over a row, multiplied, over n.

    On an axis of n alike positions such a matrix has the eigenvalues s + (n-1) d and s - d. Segments
    on a row's axes are taken as alike.
    """
    axes = hat.axes(dims)
    n = math.prod(sum(hat.atoms[axis]) for axis in axes)
    if any(len(hat.atoms[axis]) > 1 for axis in axes):
        return np.asarray(g.q * _mean(level(hat, dims)) / n)
    others = [axis for axis in range(hat.q.ndim) if axis not in axes]
    own = weighed(hat.q, hat.atoms, others, strata.same)
    order = (*others, *axes)
    there, back = _spectrum(tuple(sum(hat.atoms[axis]) for axis in axes))
    first = g.q.transpose(order).reshape(-1, len(there)) @ there
    second = own.reshape(-1, len(there)) @ there
    product = first * second / n @ back
    shape = [g.q.shape[axis] for axis in order]
    return product.reshape(shape).transpose(np.argsort(order))


@lru_cache(maxsize=4096)
def _spectrum(lengths: tuple[int, ...]) -> tuple[Array, Array]:
    """From classes of alike positions on axes of those lengths to eigenvalues, and back; transposed."""
    there: Array = np.ones((1, 1))
    back: Array = there
    for n in lengths:
        one = np.array([[1.0, 1.0], [n - 1.0, -1.0]])
        there, back = np.asarray(np.kron(there, one)), np.asarray(np.kron(back, one / n))
    return there, back
