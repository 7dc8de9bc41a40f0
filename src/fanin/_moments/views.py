"""Rules of ops that keep every number: copies, other axes, axes in another order, repetitions.

Nothing is lost: an axis remembers the factors that it was made of. The gradient of a view is the
view back; of a repetition the sum over the copies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import maps, rearrangement, strata
from .algebra import unbroadcast
from .domain import Abstract, expanded, full, measured, permuted, reshaped, summed
from .notes import viewed
from .registry import backward, forward
from .strata import Dims

MAX_FOLLOWED = 1 << 17  # elements of a view whose places are followed

_COPIES = (
    "alias", "alias_copy", "bfloat16", "clone", "conj", "conj_physical", "_conj", "_conj_physical",
    "contiguous", "cpu", "cuda", "double", "float", "half", "lift", "lift_fresh", "lift_fresh_copy",
    "positive", "requires_grad", "resolve_conj", "resolve_neg", "to", "_to_copy", "type_as",
    "_pin_memory", "pin_memory", "_to_cpu",
)  # fmt: skip


@forward(*_COPIES)
def copy(x: Abstract, dtypes: Sequence[str] = ("",)) -> Abstract:
    """The same tensor; known numbers that become truth values are measured again."""
    if dtypes[0] == "bool" and x.known is not None and x.known.dtype != bool:
        return measured(x.known != 0)
    return x


@forward("detach", "detach_copy")
def detach(x: Abstract) -> Abstract:
    """The same numbers, as another tensor: no gradient finds its way back."""
    return viewed(x.with_(chain=None), x)


@backward("detach", "detach_copy")
def detached_back() -> dict[str, Any]:
    """None."""
    return {}


@backward(*_COPIES)
def copied_back(grad: Abstract) -> dict[str, Any]:
    """The gradient itself."""
    return {"x": grad}


# other axes ---------------------------------------------------------------------------------------

_RESHAPES = (
    "view", "reshape", "_unsafe_view", "_reshape_alias", "_reshape_copy", "view_as", "reshape_as",
    "flatten", "unflatten", "squeeze", "unsqueeze", "ravel", "atleast_1d", "atleast_2d", "atleast_3d",
    "view_copy", "squeeze_copy", "unsqueeze_copy",
)  # fmt: skip


@forward(*_RESHAPES)
def reshape(x: Abstract, shapes: Sequence[tuple[int, ...]]) -> Abstract:
    """Atoms dealt out to other axes, split where an axis cuts through them.

    A view of the same memory as another dtype with more or fewer elements keeps only the average.
    """
    if math.prod(x.shape) != math.prod(shapes[0]):
        return full(shapes[0], x.second_moment, x.average_mean)
    return viewed(regrouped(x, shapes[0]), x)


def regrouped(x: Abstract, shape: tuple[int, ...]) -> Abstract:
    """``x`` on other axes; where their factors do not meet, pairs are followed one by one."""
    blocks, coarse, _, _ = rearrangement.reshaping(x.dims, shape)
    if blocks == coarse or math.prod(shape) > MAX_FOLLOWED:
        return reshaped(x, shape)
    known = None if x.known is None else x.known.reshape(shape)
    out = Abstract(blocks, x.mean, x.q, noise=x.noise)
    parts = rearrangement.blocks_of(x.dims, shape)
    for b, (_, targets) in reversed(list(enumerate(parts))):
        if blocks[b] != coarse[b]:
            linear = maps.shifting(math.prod(targets), 0)
            out = maps.mapped(out, b, linear, tuple(map(strata.whole, targets)))
    return reshaped(out, shape).with_(known=known)


@backward(*_RESHAPES)
def reshape_back(grad: Abstract, x: Abstract) -> dict[str, Any]:
    """The gradient on the argument's axes."""
    if math.prod(x.shape) != math.prod(grad.shape):
        return {}
    return {"x": viewed(regrouped(grad, x.shape), grad)}


# axes in another order ----------------------------------------------------------------------------


def swapped(rank: int, a: int, b: int) -> list[int]:
    """The order in which two axes have changed places."""
    order = list(range(rank))
    if rank:
        order[a % rank], order[b % rank] = order[b % rank], order[a % rank]
    return order


def inverse(order: Sequence[int]) -> list[int]:
    """Of a permutation."""
    return np.argsort(order).tolist()


def _turned(x: Abstract, order: Sequence[int]) -> Abstract:
    return viewed(permuted(x, order), x)


@forward("transpose", "swapaxes", "swapdims", "transpose_copy")
def transpose(
    x: Abstract, dim0: int = 0, dim1: int = 0, axis0: int | None = None, axis1: int | None = None
) -> Abstract:
    """Two axes change places; ``swapaxes`` calls them axis0 and axis1."""
    first, second = (dim0, dim1) if axis0 is None or axis1 is None else (axis0, axis1)
    return _turned(x, swapped(len(x.dims), first, second))


@backward("transpose", "swapaxes", "swapdims", "transpose_copy")
def transpose_back(
    grad: Abstract, dim0: int = 0, dim1: int = 0, axis0: int | None = None, axis1: int | None = None
) -> dict[str, Any]:
    """The same exchange."""
    return {"x": transpose(grad, dim0, dim1, axis0, axis1)}


@forward("t", "t_copy", "mT", "mH", "adjoint", "matrix_H")
def matrix_transpose(x: Abstract) -> Abstract:
    """The last two axes change places."""
    return _turned(x, swapped(len(x.dims), -1, -2)) if len(x.dims) > 1 else x


@backward("t", "t_copy", "mT", "mH", "adjoint", "matrix_H")
def matrix_transpose_back(grad: Abstract) -> dict[str, Any]:
    """The same exchange."""
    return {"x": matrix_transpose(grad)}


@forward("numpy_T")
def reversed_axes(x: Abstract) -> Abstract:
    """All axes in reverse."""
    return _turned(x, range(len(x.dims))[::-1])


@backward("numpy_T")
def reversed_axes_back(grad: Abstract) -> dict[str, Any]:
    """All axes in reverse."""
    return {"x": reversed_axes(grad)}


@forward("permute", "permute_copy")
def permute(x: Abstract, dims: Sequence[int]) -> Abstract:
    """Axes in the order ``dims``."""
    return _turned(x, [d % len(x.dims) for d in dims])


@backward("permute", "permute_copy")
def permute_back(grad: Abstract, dims: Sequence[int]) -> dict[str, Any]:
    """The inverse order."""
    return {"x": _turned(grad, inverse([d % len(dims) for d in dims]))}


def _moving(rank: int, source: int | Sequence[int], destination: int | Sequence[int]) -> list[int]:
    sources = [source] if isinstance(source, int) else source
    targets = [destination] if isinstance(destination, int) else destination
    taken = {t % rank: s % rank for s, t in zip(sources, targets, strict=True)}
    rest = iter([d for d in range(rank) if d not in taken.values()])
    return [taken[d] if d in taken else next(rest) for d in range(rank)]


@forward("movedim", "moveaxis")
def movedim(x: Abstract, source: int | Sequence[int], destination: int | Sequence[int]) -> Abstract:
    """Some axes in other places, the rest in order."""
    return _turned(x, _moving(len(x.dims), source, destination))


@backward("movedim", "moveaxis")
def movedim_back(
    grad: Abstract, source: int | Sequence[int], destination: int | Sequence[int]
) -> dict[str, Any]:
    """The inverse order."""
    return {"x": _turned(grad, inverse(_moving(len(grad.dims), source, destination)))}


# repetitions --------------------------------------------------------------------------------------


@forward("expand", "expand_as", "expand_copy", "broadcast_to")
def expand(x: Abstract, shapes: Sequence[tuple[int, ...]]) -> Abstract:
    """Broadcast: along the new indices all numbers are the same."""
    return viewed(expanded(x, shapes[0]), x)


@backward("expand", "expand_as", "expand_copy", "broadcast_to")
def expand_back(grad: Abstract, x: Abstract) -> dict[str, Any]:
    """The sum over the copies."""
    return {"x": unbroadcast(grad, x.shape)}


def _interleaved(shape: Sequence[int], repeats: Sequence[int], *, outer: bool) -> list[int]:
    """(r, n) of every axis in a row, or (n, r)."""
    pairs = zip(repeats, shape, strict=True) if outer else zip(shape, repeats, strict=True)
    return [n for pair in pairs for n in pair]


def repeated(x: Abstract, repeats: Sequence[int], *, outer: bool = True) -> Abstract:
    """Every axis repeated as a whole, or each of its indices on the spot."""
    lengths = (1,) * (len(repeats) - len(x.dims)) + x.shape
    if max(repeats, default=1) == 1:
        return viewed(reshaped(x, lengths), x)
    narrow = reshaped(x, _interleaved(lengths, [1] * len(repeats), outer=outer))
    wide = expanded(narrow, _interleaved(lengths, repeats, outer=outer))
    return reshaped(wide, [n * r for n, r in zip(lengths, repeats, strict=True)])


def unrepeated(
    grad: Abstract, shape: Sequence[int], repeats: Sequence[int], *, outer: bool = True
) -> Abstract:
    """The sum over the copies."""
    lengths = [1] * (len(repeats) - len(shape)) + list(shape)
    wide = reshaped(grad, _interleaved(lengths, repeats, outer=outer))
    copies = range(0 if outer else 1, 2 * len(repeats), 2)
    return reshaped(summed(wide, copies), shape)


@forward("repeat", "tile")
def repeat(x: Abstract, repeats: Sequence[int] = (), dims: Sequence[int] = ()) -> Abstract:
    """Copies one after another: a new first factor of the axis along which nothing changes."""
    return repeated(x, _repeats(x, repeats or dims))


@backward("repeat", "tile")
def repeat_back(
    grad: Abstract, x: Abstract, repeats: Sequence[int] = (), dims: Sequence[int] = ()
) -> dict[str, Any]:
    """The sum over the copies."""
    return {"x": unrepeated(grad, x.shape, _repeats(x, repeats or dims))}


def _repeats(x: Abstract, given: Sequence[int]) -> list[int]:
    return [1] * (len(x.dims) - len(given)) + list(given)


@forward("repeat_interleave")
def repeat_interleave(
    x: Abstract | None = None,
    repeats: int | Abstract = 1,
    dim: int | None = None,
    shapes: Sequence[tuple[int, ...]] = (),
) -> Abstract:
    """Every index ``repeats`` times on the spot: a new last factor; a tensor of counts as an index.

    Counts alone give the indices that they stand for.
    """
    if x is None:
        assert isinstance(repeats, Abstract)
        return _counted(repeats, shapes[0])
    if dim is None:
        x, dim = reshaped(x, (math.prod(x.shape),)), 0
    dim %= len(x.dims)
    if isinstance(repeats, int):
        return repeated(x, [repeats if d == dim else 1 for d in range(len(x.dims))], outer=False)
    return maps.mapped(x, dim, _copies(repeats, x.shape[dim], shapes[0][dim]))


@backward("repeat_interleave")
def repeat_interleave_back(
    grad: Abstract,
    x: Abstract | None = None,
    repeats: int | Abstract = 1,
    dim: int | None = None,
) -> dict[str, Any]:
    """The sum over the copies."""
    if x is None:
        return {}
    flat = (math.prod(x.shape),) if dim is None else x.shape
    dim = (dim or 0) % len(flat)
    if isinstance(repeats, int):
        counts = [repeats if d == dim else 1 for d in range(len(flat))]
        return {"x": reshaped(unrepeated(grad, flat, counts, outer=False), x.shape)}
    back = maps.mapped(grad, dim, _copies(repeats, flat[dim], grad.shape[dim]).transposed)
    return {"x": reshaped(back, x.shape)}


def _counted(repeats: Abstract, shape: tuple[int, ...]) -> Abstract:
    """The indices 0..n-1, each as often as its count says; equally often if that is unknown."""
    n = repeats.shape[0]
    if repeats.known is not None:
        return measured(np.repeat(np.arange(n), repeats.known.astype(int)))
    return full(shape, (n - 1) * (2 * n - 1) / 6, (n - 1) / 2)


def _copies(repeats: Abstract, n: int, length: int) -> maps.Linear:
    """Which index each copy is of; counts that are not known are all the same."""
    if repeats.known is not None:
        counts = np.broadcast_to(repeats.known.astype(int).ravel(), n)
        return maps.picks_of(np.repeat(np.arange(n), counts), n)
    return maps.picks_of(np.arange(length) * n // length, n)


# real and complex ---------------------------------------------------------------------------------


@forward("view_as_real", "view_as_real_copy")
def view_as_real(x: Abstract) -> Abstract:
    """(Re, Im) as a last axis; the noise is circular: half of the covariance each, none across."""
    cov = (x.q - x.outer()) / 2
    mean = np.stack([x.mean, np.zeros_like(x.mean)], -1)
    dims: Dims = (*x.dims, ((1, 1),))
    q = np.zeros((*x.q.shape, 6))
    q[..., 0] = q[..., 2] = cov + x.outer()
    q[..., 1] = q[..., 5] = cov
    known = None if x.known is None else np.stack([x.known.real, x.known.imag], -1)
    return Abstract(dims, mean, q, known=known, noise=x.noise)


@forward("view_as_complex", "view_as_complex_copy")
def view_as_complex(x: Abstract) -> Abstract:
    """E z z'* is the sum of both parts' E x x'; its imaginary part averages out."""
    known = None if x.known is None else x.known[..., 0] + 1j * x.known[..., 1]
    *dims, last = x.dims
    if last == ((2,),):
        return Abstract(tuple(dims), x.mean[..., 0], 2 * x.q[..., 0], known=known, noise=x.noise)
    atom = last[0]
    same = x.q[..., : len(atom)] @ np.array(atom, float)
    return Abstract(tuple(dims), x.mean[..., 0], same, known=known, noise=x.noise)


@backward("view_as_real", "view_as_real_copy")
def view_as_real_back(grad: Abstract) -> dict[str, Any]:
    """Both parts' gradients as one complex one."""
    return {"x": view_as_complex(grad)}


@backward("view_as_complex", "view_as_complex_copy")
def view_as_complex_back(grad: Abstract) -> dict[str, Any]:
    """Both parts of the complex gradient."""
    return {"x": view_as_real(grad)}
