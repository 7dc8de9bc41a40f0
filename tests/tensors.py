"""Moments of tensors that are not trivial: correlated along axes, with a mean, with segments."""

from __future__ import annotations

import itertools

from fanin._moments.domain import Abstract, added, concatenated, full, shifted


def correlated(*shape: int, mean: float = 0.0, scale: float = 1.0) -> Abstract:
    """Independent parts that each vary along some axes only, for every set of axes."""
    x = full(shape, 0.5 * scale)
    for k, varies in enumerate(itertools.product((False, True), repeat=len(shape))):
        if not all(varies):
            part = [n if own else 1 for n, own in zip(shape, varies, strict=True)]
            x = added(x, full(part, scale * (0.05 + 0.03 * (k % 5))))
    return shifted(x, mean).plain() if mean else x.plain()


def stratified(*shape: int, dim: int = 0) -> Abstract:
    """Two segments on one axis that differ in mean and correlation."""
    n = shape[dim]
    first = [*shape[:dim], n // 3, *shape[dim + 1 :]]
    rest = [*shape[:dim], n - n // 3, *shape[dim + 1 :]]
    return concatenated([correlated(*first, mean=0.3, scale=2.0), correlated(*rest)], dim)
