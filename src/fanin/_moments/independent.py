"""Sums and products of independent tensors, and sums over axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from . import alignment, strata
from .abstract import Abstract, lift, over_pairs, weighed
from .axes import fitted, limited, merge_dims, met
from .lines import Line, composed
from .strata import Array, Dims


def added(a: Abstract, b: Abstract, sa: float = 1.0, sb: float = 1.0) -> Abstract:
    """sa a + sb b of independent tensors, broadcast.

    q = sa^2 q_a + sb^2 q_b + sa sb (E a E b' + E b E a').
    """
    dims, (qa, ma), (qb, mb) = met(a, b)
    qa, qb = (sa * sa) * qa, (sb * sb) * qb
    q = qa + qb
    if a.mean.any() and b.mean.any():
        q = q + (sa * sb) * _cross(dims, ma, mb)
    noise = 0.0
    if a.noise or b.noise:
        parts = (sa * sa * a.second_moment, a.noise), (sb * sb * b.second_moment, b.noise)
        noise = mixed_noise(*parts)
    return Abstract(dims, sa * ma + sb * mb, q, allowed=_both_allowed(a, b), noise=noise)


def _cross(dims: Dims, a: Array, b: Array) -> Array | float:
    """E a E b' + E b E a' by class."""
    if a.size == 1 and b.size == 1:
        return 2.0 * a.item(0) * b.item(0)
    a, b = np.broadcast_arrays(a, b)
    a, b = a.reshape(-1), b.reshape(-1)
    atoms = tuple(atom for dim in dims for atom in dim)
    i, j = lift(atoms, strata.left), lift(atoms, strata.right)
    return a[i] * b[j] + b[i] * a[j]


def mixed_noise(*parts: tuple[float, float]) -> float:
    total = sum(p for p, _ in parts)
    if not total > 0 or not math.isfinite(total):
        return max(n for _, n in parts)
    return sum((p / total) ** 2 * n for p, n in parts)


def _both_allowed(a: Abstract, b: Abstract) -> npt.NDArray[np.bool_] | None:
    if a.allowed is None or b.allowed is None:
        return b.allowed if a.allowed is None else a.allowed
    return a.allowed & b.allowed


def multiplied(a: Abstract, b: Abstract) -> Abstract:
    """a b of independent tensors, broadcast: q = q_a q_b."""
    dims, (qa, ma), (qb, mb) = met(a, b)
    allowed = _both_allowed(a, b)
    return Abstract(dims, ma * mb, qa * qb, allowed=allowed, noise=a.noise + b.noise)


def scaled(x: Abstract, factor: float) -> Abstract:
    """factor x; its chain is kept."""
    base, f = x.chain or (x, Line())
    return Abstract(
        x.dims,
        x.mean * factor,
        x.q * (factor * factor),
        chain=(base, composed(Line(factor), f)),
        allowed=x.allowed,
        noise=x.noise,
    )


def shifted(x: Abstract, offset: float) -> Abstract:
    """x + offset; its chain is kept."""
    base, f = x.chain or (x, Line())
    q = x.q + offset * (x.lifted(strata.left) + x.lifted(strata.right)) + offset * offset
    return Abstract(
        x.dims,
        x.mean + offset,
        q,
        chain=(base, composed(Line(1.0, offset), f)),
        allowed=x.allowed,
        noise=x.noise,
    )


def summed(x: Abstract, dims: Iterable[int], *, keep: bool = False) -> Abstract:
    """The sum over the axes ``dims``: classes weigh as many pairs as they have."""
    gone = {d % len(x.dims) for d in dims} if x.dims else set()
    plan = alignment.reduction(x.dims, tuple(sorted(gone)), keep)
    return Abstract(plan.dims, plan.mean.of(x.mean), plan.q.of(x.q), noise=x.noise)


def averaged(x: Abstract, dims: Iterable[int], *, keep: bool = False) -> Abstract:
    """The mean over the axes ``dims``."""
    dims = sorted(set(dims))
    n = math.prod(strata.size(x.dims[d]) for d in dims)
    total = summed(x, dims, keep=keep)
    return Abstract(total.dims, total.mean / n, total.q / (n * n), noise=x.noise)


def mean_over(x: Abstract, dims: Iterable[int]) -> Array:
    """E[m m'] by class, m the mean over the axes ``dims``; of the shape of ``q``."""
    return alignment.filled(weighed(x.q, x.atoms, x.axes(dims), over_pairs), x.q.shape)


def contracted(
    a: Abstract, of_a: Sequence[str], b: Abstract, of_b: Sequence[str], out: Sequence[str]
) -> Abstract:
    """A product of independent tensors summed over the labels that ``out`` lacks, as einsum.

    Args:
        a: a tensor.
        of_a: a label an axis, none twice.
        b: another.
        of_b: its labels.
        out: labels of the result.
    """
    plan = alignment.contraction(a.dims, tuple(of_a), b.dims, tuple(of_b), tuple(out))
    x, y = merge_dims(a, plan.merges[0]), merge_dims(b, plan.merges[1])
    if x.dims != plan.target[0]:
        x = fitted(x, plan.target[0])
    if y.dims != plan.target[1]:
        y = fitted(y, plan.target[1])
    q = plan.q.product(x.q, y.q)
    if x.mean.size == 1 and y.mean.size == 1:
        mean = np.full((1,) * q.ndim, x.mean.item(0) * y.mean.item(0) * plan.terms)
    else:
        mean = plan.mean.product(x.mean, y.mean)
    return limited(Abstract(plan.dims, mean, q, noise=a.noise + b.noise))
