"""Orthogonal and unitary matrices, uniformly distributed, from the engine's normals.

The same bits on every machine and with any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .philox import Array
from .product import divided, product, squares, times

BLOCK = 128  # part of the law: another number rounds otherwise

Normals = Callable[[Array, Array], Array]


def haar(m: int, n: int, normals: Normals) -> Array:
    """An m x n matrix with orthonormal columns, uniform over all of them (Haar).

    Stewart's method: the reflector that would send a Gaussian vector to the first axis is drawn
    directly, so that no matrix has to be factored. The columns of H_0 H_1 ... H_(n-1) are then
    turned to make R's diagonal positive, without which the law is not Haar (Mezzadri 2007). A
    block of reflectors acts as I - V T V* (Schreiber & Van Loan 1989).

    Args:
        m: rows.
        n: columns, 1 <= n <= m.
        normals: (rows, columns) -> 64-bit normals, real or complex. Reflector k is made of row k,
            from column k on.

    Source: Stewart 1980, "The efficient generation of random orthogonal matrices", section 3.
    """
    starts = range(0, n, BLOCK)
    blocks = [_reflectors(k, min(k + BLOCK, n), m, normals) for k in starts]
    phases = np.concatenate([phase for _, _, phase in blocks])
    q = np.eye(m, n, dtype=phases.dtype)
    for start, (v, tau, _) in zip(reversed(starts), reversed(blocks), strict=True):
        rest = q[start:, start:]
        adjoint = v.conj().T
        t = _triangle(product(adjoint, v), tau)
        rest -= product(v, product(t, product(adjoint, rest)))
    return times(q, phases)


def _reflectors(start: int, stop: int, m: int, normals: Normals) -> tuple[Array, Array, Array]:
    """I - tau v v* number ``start`` to ``stop``: v as columns with v_k = 1, tau, and the phases."""
    x = np.triu(normals(np.arange(start, stop), np.arange(start, m)))
    head = np.diagonal(x)
    size, norm = np.sqrt(squares(head)), np.sqrt(_total(squares(x)))
    phase = divided(head, size)
    v = divided(times(x, phase.conj()[:, None]), (size + norm)[:, None])
    np.fill_diagonal(v, 1.0)
    return v.T, 1.0 + size / norm, -phase


def _triangle(gram: Array, tau: Array) -> Array:
    """T of I - V T V*: the inverse of striu(V* V) + diag(1 / tau), by back substitution.

    Source: Puglisi 1992, "Modification of the Householder method based on the compact WY
    representation", SIAM J. Sci. Stat. Comput. 13, section 2.
    """
    t = np.eye(len(tau), dtype=gram.dtype)
    for k in range(len(tau) - 1, -1, -1):
        t[k, k:] = times(t[k, k:], tau[k])
        t[:k, k:] -= times(gram[:k, k, None], t[k, k:])
    return t


def _total(x: Array) -> Array:
    """The sum of each row by halves: an order that no vector unit can change."""
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        x = np.concatenate([x[:, :half] + x[:, half : 2 * half], x[:, 2 * half :]], axis=1)
    return x[:, 0]
