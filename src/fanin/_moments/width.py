"""How far a tensor's mean square strays from its expectation because its width is finite."""

from __future__ import annotations

import numpy as np

from .domain import Abstract, joint_weights, once, over_pairs

_Z = np.linspace(-5.5, 5.5, 23)
_W = np.exp(-_Z * _Z / 2)
_W /= _W.sum()


@once
def fluctuation(x: Abstract) -> float:
    """Variance of (mean of x^2) / E[x^2] over draws: of n independent numbers (E x^4/(E x^2)^2 - 1)/n.

    For Gaussian x it is the mean over all pairs of 2 c^2 + 4 E x E x' c, with c their covariance
    (Isserlis); where x = f(z), the kurtosis comes from f and the pairs' share from their correlation.

    >>> from fanin._moments.domain import full
    >>> round(fluctuation(full((100,), 3.0)), 6)
    0.02
    """
    second = x.second_moment
    if not 0.0 < second < np.inf or not x.q.ndim:
        return 0.0
    outer = x.mean.item(0) ** 2 if x.uniform else x.outer()
    c = x.q - outer
    if x.chain is None:
        squares = 2.0 * c * (c + 2.0 * outer)
    else:
        r = np.abs(c) / max(float(np.abs(c).max()), 1e-300)
        squares = _excess(x) * (r + r * r) / 2
    weights = joint_weights(over_pairs, x.atoms)
    return max(0.0, float(squares.reshape(-1) @ weights)) / (second * second)


def _excess(x: Abstract) -> float:
    """Variance of f(z)^2 over single elements; segments averaged."""
    base, f = x.chain  # type: ignore[misc]
    mean = base.average_mean
    std = max(base.second_moment - mean * mean, 0.0) ** 0.5
    with np.errstate(all="ignore"):
        squares = np.square(np.broadcast_to(f(mean + std * _Z), _Z.shape))
        second = float(_W @ squares)
        return max(0.0, float(_W @ (squares * squares)) - second * second)
