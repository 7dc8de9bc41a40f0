"""Rules of Fourier transforms; of a complex tensor q is Re E z z'*.

Of a transform over n indices four sums of the old q are enough: over the diagonal, over all pairs,
over the pairs with index 0, and at (0, 0). Index 0 is a segment of its own before and after, so that
a constant stays apart from what varies, and a transform and its inverse give back what was there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from . import strata
from .boxes import Box, embedded
from .domain import (
    Abstract,
    coarsen,
    cut,
    fitted,
    limited,
    measured,
    merge_dim,
    multiplied,
    scaled,
    tidy,
)
from .maps import carried
from .registry import backward, forward
from .shuffles import roll
from .strata import Array, Atom

Shapes = Sequence[tuple[int, ...]]
Size = int | Sequence[int] | None


# one axis -----------------------------------------------------------------------------------------


def _with_zero(x: Abstract, dim: int) -> Abstract:
    """Axis ``dim`` as one atom on which index 0 is a segment."""
    x = merge_dim(x, dim)
    n = x.shape[dim]
    atom = x.dims[dim][0] if x.dims[dim] else (1,)
    if n == 1:
        return fitted(x, (*x.dims[:dim], (atom,), *x.dims[dim + 1 :]))
    return fitted(x, (*x.dims[:dim], (strata.union(atom, (1, n - 1)),), *x.dims[dim + 1 :]))


@lru_cache(maxsize=1024)
def _sums(atom: Atom) -> Array:
    """Rows that sum a table over its diagonal, all pairs, the pairs with index 0, and (0, 0)."""
    s, n = len(atom), np.array(atom, float)
    pairs = strata.pairs(atom)
    diagonal = np.concatenate([n, np.zeros(s * s)])
    first = np.zeros(s + s * s)
    first[0] = 1.0
    with_first = np.zeros((s, s))
    with_first[:, 0] = n
    with_first[0, 0] -= 1.0
    return np.stack(
        [diagonal, pairs, first + np.concatenate([np.zeros(s), with_first.ravel()]), first]
    )


@lru_cache(maxsize=1024)
def _transform(atom: Atom, length: int) -> tuple[Array, Array]:
    """Tables of an unnormalised transform, of which ``length`` indices are kept."""
    n = sum(atom)
    diagonal, total, row, corner = _sums(atom)
    m = np.array(atom, float)
    first = np.zeros(len(atom))
    first[0] = 1.0
    if length == 1:
        return total[None], m[None]
    rest = (n * diagonal - total) / (n - 1)
    cross = (n * row - total) / (n - 1)
    apart = np.zeros_like(total)
    if n > 2:
        apart = (n * n * corner + 2 * total - n * diagonal - 2 * n * row) / ((n - 1) * (n - 2))
    means = np.stack([m, (n * first - m) / (n - 1)])
    return np.stack([total, rest, total, cross, cross, apart]), means


def transformed(x: Abstract, dim: int, scale: float, length: int | None = None) -> Abstract:
    """The transform over one axis, times ``scale``; its first ``length`` indices."""
    x = _with_zero(x, dim)
    n = x.shape[dim]
    keep = n if length is None else length
    table, means = _transform(x.dims[dim][0], keep)
    new = strata.whole(keep) if keep < 2 else ((1, keep - 1),)
    return carried(x, dim, table * (scale * scale), means * scale, (new,))


def real_from_half(x: Abstract, dim: int, n: int, scale: float) -> Abstract:
    """The real signal of length n whose transform's first half is given."""
    x = _with_zero(resized_half(x, dim, n), dim)
    if n == 1:
        return scaled(tidy_axis(x, dim), scale).plain()
    axis = x.axes([dim])[0]
    s = len(x.dims[dim][0])
    two = coarsen(x, axis, (1, s - 1)) if s > 2 else x
    atom: Atom = (1, n - 1)
    wide = Abstract((*x.dims[:dim], (atom,), *x.dims[dim + 1 :]), two.mean, two.q, noise=x.noise)
    return tidy_axis(transformed(wide, dim, scale), dim)


def tidy_axis(x: Abstract, dim: int) -> Abstract:
    """Segments of one axis joined where nothing tells them apart."""
    return tidy(x, axes=x.axes([dim]))


def resized_half(x: Abstract, dim: int, n: int) -> Abstract:
    """As many frequencies as a real signal of length n has: cut, or zeros beyond."""
    return _to_length(x, dim, n // 2 + 1)


def _to_length(x: Abstract, dim: int, n: int) -> Abstract:
    """Cut, or zeros behind."""
    old = x.shape[dim]
    if old >= n:
        return cut(x, dim, 0, n)
    shape = (*x.shape[:dim], n, *x.shape[dim + 1 :])
    return embedded(x, Box(shape, (0,) * len(shape), x.shape, (1,) * len(shape)))


def _scale(n: int, norm: str | int | None, *, inverse: bool) -> float:
    """Of a transform over n indices: torch's names, or the numbers that ``_fft_c2c`` takes."""
    if norm in ("ortho", 1):
        return 1.0 / math.sqrt(n)
    if isinstance(norm, int):
        return 1.0 / n if norm == 2 else 1.0
    divides = (norm in (None, "backward")) == inverse
    return 1.0 / n if divides else 1.0


# all transforms -----------------------------------------------------------------------------------

_COMPLEX = ("fft_fft", "fft_ifft", "fft_fft2", "fft_ifft2", "fft_fftn", "fft_ifftn", "_fft_c2c")
_TO_HALF = (
    "fft_rfft",
    "fft_rfft2",
    "fft_rfftn",
    "fft_ihfft",
    "fft_ihfft2",
    "fft_ihfftn",
    "_fft_r2c",
)
_FROM_HALF = (
    "fft_irfft",
    "fft_irfft2",
    "fft_irfftn",
    "fft_hfft",
    "fft_hfft2",
    "fft_hfftn",
    "_fft_c2r",
)


class Transform:
    """Which axes an op transforms, to which lengths, how scaled.

    Args:
        op: ATen's name.
        rank: of its argument.
        given: its arguments.
    """

    def __init__(self, op: str, rank: int, given: dict[str, Any]) -> None:
        self.op = op
        dim, sizes = given.get("dim"), given.get("s", given.get("n"))
        if dim is None:
            count = len(sizes) if isinstance(sizes, (list, tuple)) else rank
            dims = [-1] if "n" in given else list(range(rank - count, rank))
        else:
            dims = [dim] if isinstance(dim, int) else list(dim)
        self.dims = [d % rank for d in dims]
        wanted = [sizes] if isinstance(sizes, int) else list(sizes or [])
        self.sizes: dict[int, int] = {
            d: n for d, n in zip(self.dims, wanted, strict=False) if n is not None and n > 0
        }
        self.norm = given.get("norm", given.get("normalization"))
        self.inverse = op.removeprefix("fft_").startswith("i")
        self.onesided = given.get("onesided", True)

    def scale(self, n: int) -> float:
        """Of a transform over n indices."""
        return _scale(n, self.norm, inverse=self.inverse)

    def prepared(self, x: Abstract, dims: Sequence[int]) -> Abstract:
        """Axes cut or filled with zeros to the lengths asked for."""
        for d in dims:
            if d in self.sizes:
                x = _to_length(x, d, self.sizes[d])
        return x

    def half(self, n: int) -> int:
        """How many frequencies of a real signal are kept."""
        return n // 2 + 1 if self.onesided else n


@forward(*_COMPLEX)
def fft(x: Abstract, op: str, **given: Any) -> Abstract:
    """Every frequency has the sum of all squares, index 0 the square of the sum."""
    how = Transform(op, len(x.dims), given)
    x = how.prepared(x, how.dims)
    for d in how.dims:
        x = transformed(x, d, how.scale(x.shape[d]))
    return limited(x)


@forward(*_TO_HALF)
def rfft(x: Abstract, op: str, **given: Any) -> Abstract:
    """The first half of the frequencies of the last axis, all of the others."""
    how = Transform(op, len(x.dims), given)
    x = how.prepared(x, how.dims)
    for k, d in enumerate(reversed(how.dims)):
        n = x.shape[d]
        x = transformed(x, d, how.scale(n), how.half(n) if k == 0 else n)
    return limited(x)


@forward(*_FROM_HALF)
def irfft(x: Abstract, op: str, shapes: Shapes, **given: Any) -> Abstract:
    """Back from the first half of the last axis' frequencies to real numbers."""
    how = Transform(op, len(x.dims), given)
    *others, last = how.dims
    x = how.prepared(x, others)
    for d in others:
        x = transformed(x, d, how.scale(x.shape[d]))
    n = shapes[0][last]
    return limited(real_from_half(x, last, n, how.scale(n)))


@backward(*_COMPLEX)
def fft_back(grad: Abstract, x: Abstract, op: str, **given: Any) -> dict[str, Any]:
    """The conjugate transform, scaled alike."""
    how = Transform(op, len(x.dims), given)
    for d in how.dims:
        grad = transformed(grad, d, how.scale(grad.shape[d]))
    return {"x": _fitted_back(grad, x, how.dims)}


def _fitted_back(grad: Abstract, x: Abstract, dims: Sequence[int]) -> Abstract:
    for d in dims:
        grad = _to_length(grad, d, x.shape[d])
    return limited(grad)


@backward(*_TO_HALF)
def rfft_back(grad: Abstract, x: Abstract, op: str, **given: Any) -> dict[str, Any]:
    """The real part of the sum over the kept frequencies: half of their squares."""
    how = Transform(op, len(x.dims), given)
    last = how.dims[-1]
    n = how.sizes.get(last, x.shape[last])
    for d in how.dims[:-1]:
        grad = transformed(grad, d, how.scale(grad.shape[d]))
    grad = _with_zero(grad, last)
    diagonal, _, _, corner = _sums(grad.dims[last][0])
    same, apart = diagonal / 2, np.zeros_like(diagonal)
    if n > 1:
        apart = (n * n * corner - n * diagonal) / (2 * n * (n - 1))
    first = np.zeros((1, len(grad.dims[last][0])))
    first[0, 0] = 1.0
    factor = how.scale(n)
    table = np.stack([same, apart]) if n > 1 else same[None]
    back = carried(grad, last, table * (factor * factor), first * factor, (strata.whole(n),))
    return {"x": _fitted_back(back, x, how.dims)}


@backward(*_FROM_HALF)
def irfft_back(grad: Abstract, x: Abstract, op: str, **given: Any) -> dict[str, Any]:
    """The transform's first half, twice what stands for two frequencies."""
    how = Transform(op, len(x.dims), given)
    *others, last = how.dims
    n = grad.shape[last]
    back = doubled(transformed(grad, last, how.scale(n), how.half(n)), last, n)
    for d in others:
        back = transformed(back, d, how.scale(back.shape[d]))
    return {"x": _fitted_back(back, x, how.dims)}


def doubled(x: Abstract, dim: int, n: int) -> Abstract:
    """Frequencies of a real signal of length n times two, but those that stand for themselves."""
    x = _with_zero(x, dim)
    twice = np.full(x.shape[dim], 2.0)
    twice[0] = 1.0
    if n % 2 == 0:
        twice[-1] = 1.0
    shape = [twice.size if d == dim else 1 for d in range(len(x.dims))]
    return multiplied(x, _weights(twice, shape, dim))


def _weights(values: Array, shape: Sequence[int], dim: int) -> Abstract:
    """Known numbers along one axis, index 0 a segment of its own."""
    x = measured(values.reshape(shape)).plain()
    if values.size < 2:
        return x
    first, rest = values[0], values[1:]
    mean = np.array([first, rest.mean()])
    inner = (rest.sum() ** 2 - (rest**2).sum()) / max(rest.size * (rest.size - 1), 1)
    q = np.array(
        [first**2, (rest**2).mean(), first**2, first * rest.mean(), first * rest.mean(), inner]
    )
    dims = tuple(((1, values.size - 1),) if d == dim else () for d in range(len(shape)))
    return Abstract(dims, mean, q)


@forward("fft_fftshift", "fft_ifftshift")
def fftshift(x: Abstract, dim: Size = None, op: str = "fft_fftshift") -> Abstract:
    """Axes shifted round by half their length."""
    dims = list(range(len(x.dims))) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    up = op == "fft_fftshift"
    return roll(x, [x.shape[d] // 2 if up else (x.shape[d] + 1) // 2 for d in dims], dims)


@backward("fft_fftshift", "fft_ifftshift")
def fftshift_back(grad: Abstract, dim: Size = None, op: str = "fft_fftshift") -> dict[str, Any]:
    """Shifted back."""
    other = "fft_ifftshift" if op == "fft_fftshift" else "fft_fftshift"
    return {"x": fftshift(grad, dim, other)}


@forward("fft_fftfreq", "fft_rfftfreq")
def frequencies(n: int, d: float = 1.0, op: str = "fft_fftfreq") -> Abstract:
    """Known numbers."""
    return measured(np.fft.fftfreq(n, d) if op == "fft_fftfreq" else np.fft.rfftfreq(n, d))
