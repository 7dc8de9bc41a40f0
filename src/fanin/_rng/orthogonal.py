"""Orthogonal and unitary matrices, uniformly distributed, from the engine's normals.

`Reflectors.columns` says what the doubles are, bit by bit. Numbers of 32 bits and fewer are those
doubles rounded to multiples of `STEP`, and need not be computed that way: matrix products give the
same doubles to within `DOUBT`, whatever the order in which they sum, so that only elements that lie
within `DOUBT` of the middle between two multiples are left open. Their columns, about one in a
hundred, are computed as the doubles are (Ziv's strategy).

Sources: Ziv 1991, "Fast evaluation of elementary mathematical functions with correctly rounded last
bit", ACM Trans. Math. Softw. 17; Schreiber & Van Loan 1989, "A storage-efficient WY representation
for products of Householder transformations", SIAM J. Sci. Stat. Comput. 10; Puglisi 1992,
"Modification of the Householder method based on the compact WY representation", same journal 13.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .backend import PORTABLE, SERIAL_BELOW
from .parts import times
from .philox import Array
from .reflectors import PANEL, Normals, Reflectors, draw_reflectors, each

STEP = 2.0**-28  # part of the law: what matrices of 32 bits are rounded to multiples of
DOUBT = 2.0**-46  # five times the largest difference found between the two ways; docs/engine.md
DIRECT = 2**14  # elements, up to which the kernel beats matrix products
AT_ONCE = 2**15  # elements to round at a time: they fit into the cache
LOADING_PAYS = 2**25  # products, 0.1 s of the specification's columns
STEP_COSTS = 2**13  # products, computed in the time that a reflector takes there anyway

_BIG = 1.5 * 2.0**52 * STEP  # adding and subtracting it rounds to multiples of STEP, ties to even
_asked = {"products": 0}
_setting = Lock()  # held while torch's settings, which all threads share, are changed

Columns = Callable[[Reflectors, Array, int], Array]


def haar(
    m: int,
    n: int,
    normals: Normals,
    dtype: type = np.float64,
    *,
    gain: float = 1.0,
    reproducible: bool = True,
    threads: int = 1,
) -> Array:
    """``gain`` times an m x n matrix with orthonormal columns, uniform over all of them (Haar).

    Args:
        m: rows.
        n: columns, 1 <= n <= m.
        normals: (rows, columns) -> standard normals in 64 bits, complex if ``dtype`` is.
        dtype: of the result: np.float32, np.float64, np.complex64 or np.complex128.
        gain: every singular value.
        reproducible: the same bits on every machine; else in arithmetic of ``dtype``, whose
            rounding depends on the machine and on torch's threads.
        threads: how many to compute with.

    Returns:
        m x n, column after column in memory.
    """
    wide = np.result_type(dtype, np.float64).type
    threads = threads if m * n >= SERIAL_BELOW else 1
    reflectors = draw_reflectors(m, n, normals, wide, threads)
    if not reproducible:
        q = _product(reflectors, dtype)
        q *= (reflectors.phases * gain).astype(dtype)[:, None]
    elif dtype is wide:
        q = _columns(reflectors, np.arange(n), threads)
        q *= gain
    elif m * n <= DIRECT and (compiled := _kernel(n, m, n)):
        q = _narrow(compiled(reflectors, np.arange(n), threads), gain)
    else:
        q = _rounded(_product(reflectors, wide), reflectors, gain, threads)
    return q.T


def _rounded(q: Array, reflectors: Reflectors, gain: float, threads: int) -> Array:
    """Columns, as rows, in 32 bits; ``q`` is within DOUBT of what they are before the phases."""
    out: Array = np.empty(q.shape, _narrow(q[:0], gain).dtype)

    def some(c: slice) -> Array:
        turned = times(q[c], reflectors.phases[c, None])
        near = _nearest(turned)
        out[c] = near * gain
        return (np.abs((turned - near).view(np.float64)) > STEP / 2 - DOUBT).any(axis=1)

    width = max(1, AT_ONCE // q.shape[1])
    chunks = [slice(k, k + width) for k in range(0, len(q), width)]
    which = np.flatnonzero(np.concatenate(each(some, chunks, threads)))
    if which.size:
        out[which] = _narrow(_columns(reflectors, which, threads), gain)
    return out


def _narrow(q: Array, gain: float) -> Array:
    """Doubles to multiples of STEP, times ``gain``, in 32 bits."""
    return (_nearest(q) * gain).astype(np.complex64 if np.iscomplexobj(q) else np.float32)


def _nearest(q: Array) -> Array:
    """The nearest multiples of STEP, of each part."""
    parts = q.view(np.float64)
    return ((parts + _BIG) - _BIG).view(q.dtype)


def _product(reflectors: Reflectors, dtype: type) -> Array:
    """H_0 H_1 ... by matrix products in ``dtype``; its columns as rows.

    The product of the last panels is the identity but in its last rows and columns, so that a
    panel's own columns need no product with it.
    """
    n, m = reflectors.tau.size, reflectors.size
    q: Array = np.empty((n, m), dtype)
    out = torch.from_numpy(q)
    starts = range(0, n, PANEL)
    with _whole_precision() if np.finfo(dtype).bits == 32 else nullcontext():
        for start, panel in zip(reversed(starts), reversed(reflectors.panels), strict=True):
            v = torch.from_numpy(panel).to(out.dtype)
            tau = torch.from_numpy(reflectors.tau[start : start + PANEL]).to(out.dtype)
            _apply(v, tau, out[start:, start:])
    return q


@contextmanager
def _whole_precision() -> Iterator[None]:
    """No products in bfloat16, even where autocast or set_float32_matmul_precision ask for them."""
    mkldnn: Any = torch.backends.mkldnn
    with _setting:
        before, mkldnn.enabled = mkldnn.enabled, False
        try:
            with torch.autocast("cpu", enabled=False):
                yield
        finally:
            mkldnn.enabled = before


def _apply(v: Tensor, tau: Tensor, q: Tensor) -> None:
    """Transposed ``q``, set from row and column P on only, becomes (I - V T V*) diag(I, q).

    T's inverse is striu(V* V) + diag(1 / tau) (Puglisi 1992, section 2).

    Args:
        v: P x M, V transposed.
        tau: P.
        q: N x M, columns as rows.
    """
    p = len(v)
    inverse = torch.triu(v.conj() @ v.T, 1)
    inverse.diagonal().copy_(1.0 / tau)
    w = torch.cat([v[:, :p].mH, q[p:, p:] @ v[:, p:].mH])
    w = torch.linalg.solve_triangular(inverse.T, w, upper=False, left=False)
    q[:, :p] = -(w @ v[:, :p])
    q[:p, p:] = -(w[:p] @ v[:, p:])
    q[:p, :p].diagonal().add_(1.0)
    q[p:, p:].addmm_(w[p:], v[:, p:], alpha=-1.0)


def _columns(reflectors: Reflectors, which: Array, threads: int) -> Array:
    compiled = _kernel(which.size, reflectors.size, int(which[-1]) + 1)
    return compiled(reflectors, which, threads) if compiled else reflectors.columns(which)


def _kernel(columns: int, m: int, n: int) -> Columns | None:
    """`Reflectors.columns` compiled, once enough has been asked for in this process."""
    if os.environ.get(PORTABLE, "0") not in ("", "0"):
        return None
    _asked["products"] += n * (columns * m + STEP_COSTS)
    return None if _asked["products"] < LOADING_PAYS else _load()


@cache
def _load() -> Columns | None:
    try:
        from .reflector_kernel import columns  # noqa: PLC0415 - it imports llvmlite
    except (ImportError, OSError):
        return None
    try:
        agrees = all(_agrees(columns, dtype) for dtype in (np.float64, np.complex128))
        why = "" if agrees else "it gave other bits than the specification"
    except (OSError, RuntimeError) as error:
        why = str(error)
    if why:
        warnings.warn(
            f"the kernel of orthogonal matrices does not work here ({why}), so numpy computes "
            "instead: the same numbers, more slowly.",
            RuntimeWarning,
            stacklevel=2,
        )
    return None if why else columns


def _agrees(columns: Columns, dtype: type) -> bool:
    """Whether a new kernel gives the specification's bits: a processor may be one never tried."""

    def numbers(i: Array, j: Array) -> Array:
        angle = 1.0 + i[:, None] + 37.0 * j
        return np.cos(angle) if dtype is np.float64 else np.cos(angle) + 1j * np.sin(2.0 * angle)

    reflectors = draw_reflectors(40, 20, numbers, dtype)
    every = np.arange(20)
    found, expected = columns(reflectors, every, 1), reflectors.columns(every)
    return found.tobytes() == expected.tobytes()
