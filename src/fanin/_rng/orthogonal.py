"""Haar-distributed orthogonal and unitary matrices from the engine's normals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .philox import Array
from .product import product

BLOCK = 64


def haar(m: int, n: int, normals: Callable[[Array, Array], Array]) -> Array:
    """An m x n matrix with orthonormal columns, m >= n, uniform over all of them.

    Stewart's method: the reflector that would send a Gaussian column to e_k is drawn directly, so
    that no matrix has to be factored. Q = H_0 H_1 ... H_(n-1) times the signs (phases) that make
    R's diagonal positive, which is what makes the law exactly Haar (Mezzadri 2007). Blocks of
    reflectors are applied as I - V T V* (Schreiber & Van Loan 1989).

    Args:
        m: rows.
        n: columns, at most m.
        normals: (rows, columns) -> 64-bit normals, real or complex; reflector k is its row k,
            from column k on.

    Source: Stewart 1980, "The efficient generation of random orthogonal matrices", section 3.
    """
    starts = range(0, n, BLOCK)
    blocks = [_reflectors(start, min(start + BLOCK, n), m, normals) for start in starts]
    phases = np.concatenate([phase for _, _, phase in blocks])
    q = np.eye(m, n, dtype=phases.dtype)
    for start, (v, t, _) in zip(reversed(starts), reversed(blocks), strict=True):
        part = q[start:, start:]
        part -= product(v, product(t, product(v.conj().T, part)))
    return q * phases
