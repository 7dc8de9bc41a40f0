"""Functions of two independent Gaussian tensors: E f(a, b) and E f(a, b) f(a', b').

With f(a, b) = sum_kl c_kl he_k(a) he_l(b), E f f' = sum_kl c_kl c'_kl r_a^k r_b^l: Mehler's series
in both arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .algebra import through
from .domain import Abstract, aligned, multiplied
from .gaussian import pointwise, sides
from .kin import Operand, certain
from .notes import Factored, note_of, unchained
from .strata import Array, Index

Function2 = Callable[[Array, Array], Array]

TERMS = 14
_Z = np.linspace(-6.5, 6.5, 80)
_W = np.exp(-_Z * _Z / 2)
_W /= _W.sum()


def _hermite() -> Array:
    rows = [np.ones_like(_Z), _Z]
    for k in range(1, TERMS - 1):
        rows.append((_Z * rows[k] - math.sqrt(k) * rows[k - 1]) / math.sqrt(k + 1))
    return np.stack(rows)


_WEIGHTED = _hermite() * _W
_DEGREES = np.arange(TERMS)


def joint(a: Operand, b: Operand, f: Function2) -> Abstract:
    """f(a, b) element by element: of one tensor where both are, else of independent ones."""
    if not isinstance(a, Abstract) or (isinstance(b, Abstract) and certain(a) is not None):
        assert isinstance(b, Abstract)
        x = a if not isinstance(a, Abstract) else certain(a)
        if not isinstance(a, Abstract) or a.shape in ((), b.shape):
            return pointwise(b, lambda z: f(np.full_like(z, x), z))
    if not isinstance(b, Abstract) or certain(b) is not None:
        assert isinstance(a, Abstract)
        y = b if not isinstance(b, Abstract) else certain(b)
        if not isinstance(b, Abstract) or b.shape in ((), a.shape):
            return pointwise(a, lambda z: f(z, np.full_like(z, y)))
    assert isinstance(a, Abstract)
    assert isinstance(b, Abstract)
    (base, g), (other, h) = unchained(a), unchained(b)
    if base is other:
        return pointwise(base, lambda z: f(g(z), h(z)))
    return _independent(a, b, f)


def _independent(a: Abstract, b: Abstract, f: Function2) -> Abstract:
    x, y = aligned([a.plain(), b.plain()])
    segments, size = x.mean.shape, x.mean.size
    (ma, sa), (mb, sb) = _normal(x), _normal(y)
    with np.errstate(all="ignore"):
        u = (ma[:, None] + sa[:, None] * _Z)[:, :, None]
        v = (mb[:, None] + sb[:, None] * _Z)[:, None, :]
        values = np.broadcast_to(f(u, v), (size, _Z.size, _Z.size))
        values = np.nan_to_num(values, posinf=1e150, neginf=-1e150)
        c = _WEIGHTED @ values @ _WEIGHTED.T
        second = (values * values) @ _W @ _W
    i = j = np.zeros(x.q.size, np.intp)
    if size > 1:
        i, j = sides(x.atoms)
    ra, rb = _correlation(x.q, ma, sa, i, j), _correlation(y.q, mb, sb, i, j)
    pairs = (c[i] * c[j]).reshape(i.size, TERMS, TERMS)
    table = np.einsum("nkl,nk,nl->n", pairs, ra[:, None] ** _DEGREES, rb[:, None] ** _DEGREES)
    tail = np.maximum(second - (c * c).sum(axis=(1, 2)), 0.0)
    table += np.sqrt(tail[i] * tail[j]) * np.maximum(ra * rb, 0.0) ** TERMS
    q = table.reshape(x.q.shape)
    q[tuple(slice(s) for s in segments)] = second.reshape(segments)
    return Abstract(x.dims, c[:, 0, 0].reshape(segments), q, noise=a.noise + b.noise)


def _normal(x: Abstract) -> tuple[Array, Array]:
    """Means and standard deviations by segment."""
    mean = x.mean.reshape(-1)
    own = x.q[tuple(slice(s) for s in x.mean.shape)].reshape(-1)
    return mean, np.sqrt(np.maximum(own - mean * mean, 0.0))


def _correlation(q: Array, mean: Array, std: Array, i: Index, j: Index) -> Array:
    scale = std[i] * std[j]
    r = (q.reshape(-1) - mean[i] * mean[j]) / np.where(scale > 0, scale, 1.0)
    return np.asarray(np.clip(np.where(scale > 0, r, 0.0), -1.0, 1.0))


def through_either(grad: Abstract, a: Operand, b: Operand, slope: Function2) -> Abstract:
    """Grad slope(a, b): one of the chain rule's terms, not yet summed to the operand's shape."""
    if not isinstance(b, Abstract):
        assert isinstance(a, Abstract)
        return through(grad, a, lambda z: slope(z, np.full_like(z, b)))
    if not isinstance(a, Abstract):
        return through(grad, b, lambda z: slope(np.full_like(z, a), z))
    (base, g), (other, h) = unchained(a), unchained(b)
    if base is other and note_of(grad, Factored) is None:
        return through(grad, base, lambda z: slope(g(z), h(z)))
    return multiplied(grad.plain(), joint(a, b, slope).plain())
