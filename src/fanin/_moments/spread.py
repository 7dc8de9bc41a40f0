"""Statistics of rows: variances, standard deviations, vector norms, cosines.

Each leaves word of what it is a statistic of (`notes.Reduction`), so that a norm written out is
recognised when the row is divided by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .algebra import plus, unbroadcast
from .arithmetic import Gradients
from .domain import Abstract, Function, averaged, expanded, multiplied, scaled, summed
from .gaussian import pointwise
from .norm import standardised
from .notes import centred_reduction, reduced, reductions, viewed
from .registry import backward, forward
from .rows import centred, paired
from .strata import Array

_log_gamma = np.vectorize(math.lgamma, otypes=[float])
Dim = int | Sequence[int] | None


def _count(x: Abstract, dims: Sequence[int]) -> int:
    return math.prod(x.shape[d] for d in dims)


def rooted(s: Abstract, power: float, f: Function) -> Abstract:
    """f(s) = s^power of a positive tensor by the moments of a Gamma of its mean and variance.

    E s^a = theta^a Gamma(k + a) / Gamma(k): exact for sums of squares of independent Gaussians.
    """
    own = tuple(slice(len(a)) for a in s.atoms)
    mean = np.maximum(s.mean, 0.0)
    variance = np.maximum(s.q[own] - mean * mean, 1e-12 * mean * mean + 1e-300)
    k = np.clip(mean * mean / variance, 1e-6, 1e12)
    first, second = (_gamma_power(mean, k, a) for a in (power, 2 * power))
    spread = np.maximum(second - first * first, 0.0)
    deviation = np.sqrt(spread / variance)
    q = np.array(paired(first, s) + (s.q - s.outer()) * paired(deviation, s))
    q[own] = second
    return Abstract(s.dims, first, q, chain=(s, f), noise=s.noise * power * power)


def _gamma_power(mean: Array, k: Array, a: float) -> Array:
    log = np.where(
        k > 1e6, 0.0, _log_gamma(np.minimum(k, 1e6) + a) - _log_gamma(np.minimum(k, 1e6))
    )
    log = log - np.where(k > 1e6, 0.0, a * np.log(k))
    return np.asarray(mean**a * np.exp(log)) if a >= 0 else np.asarray(np.exp(log) / mean**-a)


# variances ----------------------------------------------------------------------------------------


def _correction(correction: float | None, unbiased: bool | None) -> float:
    if correction is not None:
        return float(correction)
    return 1.0 if unbiased is None or unbiased else 0.0


@forward("var")
def var(
    x: Abstract, dim: Dim = None, correction: float | None = None, unbiased: bool | None = None,
    keepdim: bool = False,
) -> Abstract:  # fmt: skip
    """Sum (x - m)^2 / (n - correction): E exactly, pairs as of Gaussian x."""
    dims = reductions(dim, len(x.dims))
    n = _count(x, dims)
    factor = n / max(n - _correction(correction, unbiased), 1e-9)
    c = centred(x.plain(), dims)
    squares = pointwise(c, np.square)
    out = averaged(squares, dims, keep=keepdim)
    out = Abstract(out.dims, factor * out.mean, factor * factor * out.q, noise=x.noise)
    return centred_reduction(out, x, n, factor)


def _squarely(z: Array) -> Array:
    return np.sqrt(np.maximum(z, 0.0))


@forward("std")
def std(
    x: Abstract, dim: Dim = None, correction: float | None = None, unbiased: bool | None = None,
    keepdim: bool = False,
) -> Abstract:  # fmt: skip
    """The root of `var`: `rooted`."""
    return rooted(var(x, dim, correction, unbiased, keepdim), 0.5, _squarely)


def _mean(x: Abstract, dim: Dim, keepdim: bool) -> Abstract:
    dims = reductions(dim, len(x.dims))
    return reduced(averaged(x, dims, keep=keepdim), x, _count(x, dims))


@forward("var_mean", "std_mean")
def with_mean(
    op: str, x: Abstract, *, dim: Dim = None, correction: float | None = None,
    unbiased: bool | None = None, keepdim: bool = False,
) -> list[Abstract]:  # fmt: skip
    """`var` or `std`, and the mean."""
    rule = var if op == "var_mean" else std
    return [rule(x, dim, correction, unbiased, keepdim), _mean(x, dim, keepdim)]


def _spread_out(grad: Abstract, x: Abstract, dims: Sequence[int]) -> Abstract:
    """The gradient of a statistic at every element that it was taken of."""
    if grad.shape == x.shape:
        return grad
    if len(grad.dims) != len(x.dims):
        left = iter(grad.dims)
        narrow = tuple(() if d in dims else next(left) for d in range(len(x.dims)))
        grad = viewed(Abstract(narrow, grad.mean, grad.q, noise=grad.noise), grad)
    return viewed(expanded(grad, x.shape), grad)


@backward("var", "std", "var_mean", "std_mean")
def var_backward(
    op: str, x: Abstract, *, grads: Sequence[Abstract | None], dim: Dim = None,
    correction: float | None = None, unbiased: bool | None = None,
) -> Gradients:  # fmt: skip
    """2 g (x - m) / (n - correction), over 2 std for a standard deviation; g / n for the mean."""
    dims = reductions(dim, len(x.dims))
    n = _count(x, dims)
    found = None
    if grads[0] is not None:
        rest = max(n - _correction(correction, unbiased), 1e-9)
        if op.startswith("std"):
            c = scaled(standardised(x, dims, 0.0).out, (n * rest) ** -0.5)
        else:
            c = scaled(centred(x.plain(), dims), 2 / rest)
        found = multiplied(_spread_out(grads[0], x, dims), c.plain())
    if len(grads) > 1 and grads[1] is not None:
        mean = scaled(_spread_out(grads[1], x, dims), 1 / n)
        found = mean if found is None else plus(found, mean)
    return {} if found is None else {"x": found}


# vector norms -------------------------------------------------------------------------------------


@forward("linalg_vector_norm")
def vector_norm(
    x: Abstract,
    ord: float = 2.0,  # noqa: A002 - ATen's name
    dim: Dim = None,
    keepdim: bool = False,
) -> Abstract:
    """(sum |x|^p)^(1/p); the largest |x| for p = inf."""
    dims = reductions(dim, len(x.dims))
    n, p = _count(x, dims), float(ord)
    if not math.isfinite(p):
        return _extreme(x, dims, keepdim, largest=p > 0)
    if p == 0:
        return scaled(averaged(pointwise(x, lambda z: (z != 0) * 1.0), dims, keep=keepdim), n)
    inner = pointwise(x, np.square if p == 2 else np.abs if p == 1 else lambda z: np.abs(z) ** p)
    s = reduced(summed(inner, dims, keep=keepdim), inner, n, float(n))
    return s if p == 1 else rooted(s, 1 / p, lambda z: np.maximum(z, 0.0) ** (1 / p))


def _extreme(x: Abstract, dims: Sequence[int], keepdim: bool, *, largest: bool) -> Abstract:
    """The largest or smallest |x| of n, of independent Gaussians about 0."""
    n = _count(x, dims)
    z = np.linspace(0.0, 9.0, 4001)
    below = np.clip(np.cumsum(np.exp(-z * z / 2)), 0.0, None)
    below /= below[-1]
    share = np.diff(below**n if largest else 1 - (1 - below) ** n, prepend=0.0)
    first, second = float(share @ z), float(share @ (z * z))
    scale = x.second_moment
    out = averaged(x, dims, keep=keepdim)
    level = first * math.sqrt(max(scale, 0.0))
    q = np.full(out.q.shape, level * level)
    q[tuple(slice(len(a)) for a in out.atoms)] = second * scale
    return Abstract(out.dims, np.full(out.mean.shape, level), q)


@backward("linalg_vector_norm")
def vector_norm_backward(
    grad: Abstract,
    x: Abstract,
    output: Abstract,
    ord: float = 2.0,  # noqa: A002 - ATen's name
    dim: Dim = None,
) -> Gradients:
    """g sign(x) (|x| / norm)^(p - 1): g x / |x| for p = 2."""
    dims = reductions(dim, len(x.dims))
    n, p = _count(x, dims), float(ord)
    wide = _spread_out(grad, x, dims)
    if p == 2:
        slope = scaled(standardised(x, dims, 0.0, centre=False).out, n**-0.5)
    elif not math.isfinite(p):
        slope = _chosen(x, n)
    elif p == 0:
        return {}
    else:
        level = max(output.second_moment, 1e-300) ** 0.5
        slope = pointwise(x, lambda z: np.sign(z) * (np.abs(z) / level) ** (p - 1))
    return {"x": multiplied(wide, slope.plain())}


def _chosen(x: Abstract, n: int) -> Abstract:
    """The sign of one number of each row, at its place: the largest."""
    q = np.zeros(x.q.shape)
    q[tuple(slice(len(atom)) for atom in x.atoms)] = 1 / n
    return Abstract(x.dims, np.zeros(x.mean.shape), q)


def _order(p: float | str | None, ord: float | str | None) -> float:  # noqa: A002 - ATen's name
    """The vector norm that it is: of a matrix the Frobenius norm."""
    given = p if p is not None else ord
    return 2.0 if given in {None, "fro"} else float(given)


@forward("norm", "linalg_norm", "linalg_matrix_norm", "frobenius_norm")
def norm(
    x: Abstract, p: float | str | None = None, ord: float | str | None = None,  # noqa: A002
    dim: Dim = None, keepdim: bool = False,
) -> Abstract:  # fmt: skip
    """`vector_norm`; of a matrix the Frobenius norm."""
    return vector_norm(x, _order(p, ord), dim, keepdim)


@backward("norm", "linalg_norm", "linalg_matrix_norm", "frobenius_norm")
def norm_backward(
    grad: Abstract, x: Abstract, *, output: Abstract, p: float | str | None = None,
    ord: float | str | None = None, dim: Dim = None,  # noqa: A002 - ATen's name
) -> Gradients:  # fmt: skip
    """As `vector_norm_backward`."""
    return vector_norm_backward(grad, x, output, _order(p, ord), dim)


# cosines ------------------------------------------------------------------------------------------


@forward("cosine_similarity")
def cosine_similarity(x1: Abstract, x2: Abstract, dim: int = 1, eps: float = 1e-8) -> Abstract:
    """sum x y / (|x| |y|)."""
    x1, x2, dim = _ranked(x1, x2, dim)
    a, b = (standardised(x, [dim], eps * eps, centre=False).out for x in (x1, x2))
    return averaged(multiplied(a, b), [dim])


@backward("cosine_similarity")
def cosine_similarity_backward(
    grad: Abstract, x1: Abstract, x2: Abstract, dim: int = 1, eps: float = 1e-8
) -> Gradients:
    """g y / (|x| |y|) less its part along x, and the same for y."""
    shapes = {"x1": x1.shape, "x2": x2.shape}
    x1, x2, dim = _ranked(x1, x2, dim)
    found = {}
    for name, x, y in (("x1", x1, x2), ("x2", x2, x1)):
        hat = standardised(y, [dim], eps * eps, centre=False).out
        wide = _spread_out(grad, hat if len(hat.dims) >= len(x.dims) else x, [dim])
        inner = scaled(multiplied(wide, hat.plain()), 1 / x.shape[dim])
        back = standardised(x, [dim], eps * eps, centre=False).backward(inner)
        found[name] = unbroadcast(back, shapes[name])
    return found


def _ranked(a: Abstract, b: Abstract, dim: int) -> tuple[Abstract, Abstract, int]:
    """Both with as many axes, and ``dim`` counted from the first."""
    rank = max(len(a.dims), len(b.dims))
    a, b = (
        x
        if len(x.dims) == rank
        else x.with_(dims=((),) * (rank - len(x.dims)) + x.dims, chain=None)
        for x in (a, b)
    )
    return a, b, dim % rank
