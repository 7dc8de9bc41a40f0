"""Grouped products: every row meets the weights of the group it was routed to."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from . import strata
from .contract import biased, collected, product
from .domain import Abstract, limited, merge_dim, permuted, uniform
from .labels import matmul_labels
from .registry import backward, forward

ROWS = ("t", "c"), ("c", "o"), ("t", "o")


def _sizes(offs: Abstract | None, rows: int, groups: int) -> npt.NDArray[np.float64]:
    """Rows of each group: of the known offsets, else as equal as may be."""
    if offs is not None and offs.known is not None:
        ends = np.minimum(np.asarray(offs.known, float).reshape(-1), rows)
        return np.diff(np.concatenate([[0.0], ends]))
    return np.full(groups, rows / groups)


def _collision(sizes: npt.NDArray[np.float64]) -> float:
    """How probable it is that two different rows are of one group."""
    n = float(sizes.sum())
    return float((sizes * np.maximum(sizes - 1.0, 0.0)).sum()) / max(n * (n - 1.0), 1e-300)


def _of_group(weight: Abstract, *, alike: bool) -> Abstract:
    """Moments of one group's matrix, or between two groups' matrices."""
    weight = uniform(merge_dim(weight, 0), [0])
    index = 0 if alike else 1
    if not weight.dims[0]:
        return Abstract(weight.dims[1:], weight.mean, weight.q, noise=weight.noise)
    q, mean = np.asarray(weight.q[index]), np.asarray(weight.mean[0])
    return Abstract(weight.dims[1:], mean, q, noise=weight.noise)


def routed(x: Abstract, weight: Abstract, sizes: npt.NDArray[np.float64]) -> Abstract:
    """Rows times their group's matrix: two rows share it with the probability of a collision."""
    y = product(x, _of_group(weight, alike=True), ROWS)
    apart = product(x, _of_group(weight, alike=False), ROWS)
    if not y.dims[0]:
        return y
    p = _collision(sizes)
    mixed = p * y.q + (1 - p) * apart.q
    atoms = y.dims[0]
    alike = np.ones((), bool)
    for atom in atoms:
        alike = np.logical_and.outer(alike, np.arange(len(strata.pairs(atom))) < len(atom))
    alike = alike.reshape(alike.shape + (1,) * (y.q.ndim - alike.ndim))
    return Abstract(y.dims, y.mean, np.where(alike, y.q, mixed), noise=y.noise)


def routed_weight_grad(
    grad: Abstract, x: Abstract, groups: int, sizes: npt.NDArray[np.float64]
) -> Abstract:
    """dL/dW_e = sum over the group's rows of x g: n_e pairs alike, n_e (n_e - 1) within a group."""
    terms = product(
        uniform(merge_dim(x, 0), [0]),
        uniform(merge_dim(grad, 0), [0]),
        (("t", "c"), ("t", "o"), ("t", "c", "o")),
    )
    n = float(sizes.sum())
    alike = terms.q[0] if terms.dims[0] else terms.q
    apart = terms.q[1] if terms.dims[0] else np.zeros_like(terms.q)
    within = _collision(sizes) * n * (n - 1.0)
    own = (n * alike + within * apart) / groups
    mean = (terms.mean[0] if terms.dims[0] else terms.mean) * (n / groups)
    if groups == 1:
        return limited(Abstract(((), *terms.dims[1:]), mean, own, noise=terms.noise))
    between = (n * (n - 1.0) - within) * apart / (groups * (groups - 1.0))
    dims = (strata.whole(groups), *terms.dims[1:])
    return limited(Abstract(dims, mean[None], np.stack([own, between]), noise=terms.noise))


@forward("_grouped_mm")
def grouped_mm(
    x: Abstract, mat2: Abstract, offs: Abstract | None = None, bias: Abstract | None = None
) -> Abstract:
    """Rows sorted by group times one matrix a group; or groups of columns, or of the inner axis."""
    ranks = len(x.dims), len(mat2.dims)
    if ranks == (3, 3):
        return biased(product(x, mat2, matmul_labels(3, 3)), bias)
    if ranks == (2, 3):
        return biased(routed(x, mat2, _sizes(offs, x.shape[0], mat2.shape[0])), bias)
    if ranks == (3, 2):
        sizes = _sizes(offs, mat2.shape[1], x.shape[0])
        return _turned(routed(_turned(mat2), _turned(x), sizes))
    groups = offs.shape[0] if offs is not None else 1
    return routed_weight_grad(mat2, _turned(x), groups, _sizes(offs, x.shape[1], groups))


@backward("_grouped_mm")
def grouped_mm_backward(
    grad: Abstract,
    x: Abstract,
    mat2: Abstract,
    offs: Abstract | None = None,
    bias: Abstract | None = None,
) -> dict[str, Abstract]:
    """Rows: dL/dx meets the same group's matrix transposed, dL/dW sums the group's rows."""
    ranks = len(x.dims), len(mat2.dims)
    if ranks == (3, 3):
        turned = _turned(mat2), _turned(x)
        gx, gw = (
            product(a, b, matmul_labels(3, 3)) for a, b in ((grad, turned[0]), (turned[1], grad))
        )
    elif ranks == (2, 3):
        sizes = _sizes(offs, x.shape[0], mat2.shape[0])
        gx = routed(grad, _turned(mat2), sizes)
        gw = routed_weight_grad(grad, x, mat2.shape[0], sizes)
    elif ranks == (3, 2):
        sizes = _sizes(offs, mat2.shape[1], x.shape[0])
        gw = _turned(routed(_turned(grad), x, sizes))
        gx = _turned(routed_weight_grad(_turned(grad), _turned(mat2), x.shape[0], sizes))
    else:
        sizes = _sizes(offs, x.shape[1], grad.shape[0])
        gx = _turned(routed(mat2, _turned(grad), sizes))
        gw = routed(_turned(x), grad, sizes)
    found = {"x": gx, "mat2": gw}
    return found if bias is None else {**found, "bias": collected(grad, bias.shape)}


def _turned(x: Abstract) -> Abstract:
    """The last two axes exchanged."""
    rank = len(x.dims)
    return permuted(x, (*range(rank - 2), rank - 1, rank - 2))
