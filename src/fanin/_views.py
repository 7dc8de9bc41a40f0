"""What views look at: shape, strides and offset of their results, and which box of the whole.

A function gets the op's arguments and returns (shape, strides, offset) where the result shares
memory with the first, (shape, dtype) where it is a copy, None where it is the same tensor, or a
list of them. `NotImplementedError` sends the op to torch's kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

Shared = tuple[Sequence[int], Sequence[int], int]
Copied = tuple[Sequence[int], torch.dtype]
Seen = Shared | Copied | list[Shared] | None

VIEWS: dict[str, Callable[..., Seen]] = {}


def _view(*names: str) -> Callable[[Callable[..., Seen]], Callable[..., Seen]]:
    def register(function: Callable[..., Seen]) -> Callable[..., Seen]:
        VIEWS.update(dict.fromkeys(names, function))
        return function

    return register


@lru_cache(maxsize=65536)
def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a tensor without gaps in C order.

    >>> contiguous((2, 3, 4))
    (12, 4, 1)
    """
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


@lru_cache(maxsize=65536)
def _whole(shape: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
    """``sizes`` with its -1 filled in."""
    if -1 not in sizes:
        if math.prod(sizes) != math.prod(shape):
            raise RuntimeError(
                f"a tensor of shape {list(shape)} has no view of shape {list(sizes)}"
            )
        return sizes
    rest = math.prod(n for n in sizes if n != -1)
    total = math.prod(shape)
    if rest == 0 or total % rest:
        raise RuntimeError(f"a tensor of shape {list(shape)} has no view of shape {list(sizes)}")
    return tuple(total // rest if n == -1 else n for n in sizes)


@lru_cache(maxsize=65536)
def restrided(
    shape: tuple[int, ...], strides: tuple[int, ...], sizes: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Strides under which the same memory has shape ``sizes``; None where it has to be copied.

    Source: ATen, computeStride in TensorUtils.cpp.
    """
    if strides == contiguous(shape):
        return contiguous(sizes)
    if 0 in shape:
        return strides if shape == sizes else contiguous(sizes)
    found = [0] * len(sizes)
    at = len(sizes) - 1
    step = strides[-1] if strides else 1
    inside = filled = 1
    for i in range(len(shape) - 1, -1, -1):
        inside *= shape[i]
        if i == 0 or (shape[i - 1] != 1 and strides[i - 1] != inside * step):
            while at >= 0 and (filled < inside or sizes[at] == 1):
                found[at] = filled * step
                filled *= sizes[at]
                at -= 1
            if filled != inside:
                return None
            if i > 0:
                step, inside, filled = strides[i - 1], 1, 1
    return tuple(found) if at == -1 else None


def _at(dim: int, axes: int) -> int:
    if not -axes <= dim < axes:
        raise IndexError(f"axis {dim} is out of range for a tensor with {axes} axes")
    return dim % axes


# reshapes -----------------------------------------------------------------------------------------


@_view("view")
def _to_view(x: Tensor, size: Any, *_: Any) -> Seen:
    if isinstance(size, torch.dtype):
        raise NotImplementedError
    shape = tuple(x.shape)
    sizes = _whole(shape, tuple(size))
    strides = restrided(shape, x.stride(), sizes)
    if strides is None:
        raise RuntimeError(
            "view size is not compatible with input tensor's size and stride (at least one dimension "
            "spans across two contiguous subspaces). Use .reshape(...) instead."
        )
    return sizes, strides, x.storage_offset()


def _to_reshape(x: Tensor, sizes: Sequence[int]) -> Seen:
    shape = tuple(x.shape)
    sizes = _whole(shape, tuple(sizes))
    strides = restrided(shape, x.stride(), sizes)
    return (sizes, x.dtype) if strides is None else (sizes, strides, x.storage_offset())


_view("reshape")(_to_reshape)


@_view("flatten")
def _flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1, *_: Any) -> Seen:
    if not isinstance(start_dim, int) or not isinstance(end_dim, int):
        raise NotImplementedError
    shape = tuple(x.shape)
    if not shape:
        return _to_reshape(x, (1,))
    start, end = _at(start_dim, len(shape)), _at(end_dim, len(shape))
    if start == end:
        return None
    return _to_reshape(x, (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]))


@_view("unflatten")
def _unflatten(x: Tensor, dim: int, sizes: Sequence[int], *_: Any) -> Seen:
    if not isinstance(dim, int):
        raise NotImplementedError
    shape = tuple(x.shape)
    dim = _at(dim, len(shape))
    return _to_reshape(x, (*shape[:dim], *_whole((shape[dim],), tuple(sizes)), *shape[dim + 1 :]))


@_view("view_as", "reshape_as")
def _view_as(x: Tensor, other: Tensor) -> Seen:
    return _to_reshape(x, tuple(other.shape))


@_view("contiguous")
def _contiguous(x: Tensor, *, memory_format: Any = torch.contiguous_format) -> Seen:
    if memory_format is torch.contiguous_format:
        return None if x.is_contiguous() else (x.shape, x.dtype)
    return None if x.is_contiguous(memory_format=memory_format) else (x.shape, x.dtype)


@_view("squeeze")
def _squeeze(x: Tensor, dim: Any = None) -> Seen:
    shape, strides = x.shape, x.stride()
    n = len(shape)
    if dim is None:
        axes = set(range(n))
    elif isinstance(dim, int):
        axes = {dim % n} if n else set()
    else:
        axes = {d % n for d in dim} if n else set()
    keep = [i for i in range(n) if i not in axes or shape[i] != 1]
    return [shape[i] for i in keep], [strides[i] for i in keep], x.storage_offset()  # type: ignore[return-value]


@_view("unsqueeze")
def _unsqueeze(x: Tensor, dim: int) -> Seen:
    shape, strides = list(x.shape), list(x.stride())
    dim = _at(dim, len(shape) + 1)
    strides.insert(dim, shape[dim] * strides[dim] if dim < len(shape) else 1)
    shape.insert(dim, 1)
    return shape, strides, x.storage_offset()


# orders -------------------------------------------------------------------------------------------


def _permuted(x: Tensor, order: Sequence[int]) -> Seen:
    shape, strides = x.shape, x.stride()
    return [shape[i] for i in order], [strides[i] for i in order], x.storage_offset()  # type: ignore[return-value]


@_view("permute")
def _permute(x: Tensor, dims: Sequence[int]) -> Seen:
    return _permuted(x, [_at(d, x.dim()) for d in dims])


@_view("transpose", "swapaxes", "swapdims")
def _transpose(x: Tensor, a: int, b: int) -> Seen:
    if not isinstance(a, int):
        raise NotImplementedError
    order = list(range(x.dim()))
    if not order:
        return None
    a, b = _at(a, len(order)), _at(b, len(order))
    order[a], order[b] = order[b], order[a]
    return _permuted(x, order)


@_view("t", "numpy_T")
def _t(x: Tensor) -> Seen:
    return _permuted(x, range(x.dim())[::-1])


@_view("mT", "adjoint")
def _mt(x: Tensor) -> Seen:
    if x.is_complex():
        raise NotImplementedError
    return _transpose(x, -2, -1)


@_view("movedim", "moveaxis")
def _movedim(x: Tensor, source: Any, destination: Any) -> Seen:
    n = x.dim()
    of = [_at(d, n) for d in ([source] if isinstance(source, int) else source)]
    to = [_at(d, n) for d in ([destination] if isinstance(destination, int) else destination)]
    order = [i for i in range(n) if i not in of]
    for place, axis in sorted(zip(to, of, strict=True)):
        order.insert(place, axis)
    return _permuted(x, order)


# parts --------------------------------------------------------------------------------------------


@_view("select")
def _select(x: Tensor, dim: int, index: int) -> Seen:
    if not isinstance(dim, int):
        raise NotImplementedError
    shape, strides = list(x.shape), list(x.stride())
    dim = _at(dim, len(shape))
    n = shape.pop(dim)
    if not -n <= index < n:
        raise IndexError(f"index {index} is out of bounds for axis {dim} with size {n}")
    step = strides.pop(dim)
    return shape, strides, x.storage_offset() + (index % n) * step


@_view("slice")
def _slice(x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None,
           step: int = 1) -> Seen:  # fmt: skip
    shape, strides = list(x.shape), list(x.stride())
    dim = _at(dim, len(shape))
    first, last, _ = slice(start, end).indices(shape[dim])
    shape[dim] = max(0, -(-(last - first) // step))
    offset = x.storage_offset() + first * strides[dim]
    strides[dim] *= step
    return shape, strides, offset


@_view("narrow")
def _narrow(x: Tensor, dim: int, start: Any, length: int) -> Seen:
    if isinstance(start, Tensor):
        raise NotImplementedError
    shape, strides = list(x.shape), x.stride()
    dim = _at(dim, len(shape))
    start += shape[dim] if start < 0 else 0
    shape[dim] = length
    return shape, strides, x.storage_offset() + start * strides[dim]


def _parts(x: Tensor, sizes: Sequence[int], dim: int) -> Seen:
    shape, strides, offset = list(x.shape), x.stride(), x.storage_offset()
    if sum(sizes) != shape[dim]:
        raise RuntimeError(f"axis {dim} of size {shape[dim]} cannot be split into {list(sizes)}")
    found: list[Shared] = []
    for n in sizes:
        shape[dim] = n
        found.append((tuple(shape), strides, offset))
        offset += n * strides[dim]
    return found


@_view("split")
def _split(x: Tensor, size: Any, dim: int = 0) -> Seen:
    dim = _at(dim, x.dim())
    if not isinstance(size, int):
        return _parts(x, size, dim)
    n = x.shape[dim]
    if size == 0:
        return _parts(x, [0], dim)
    return _parts(x, [min(size, n - i) for i in range(0, max(n, 1), size)], dim)


@_view("split_with_sizes")
def _split_with_sizes(x: Tensor, sizes: Sequence[int], dim: int = 0) -> Seen:
    return _parts(x, sizes, _at(dim, x.dim()))


@_view("chunk")
def _chunk(x: Tensor, chunks: int, dim: int = 0) -> Seen:
    return _split(x, -(-x.shape[dim] // chunks), dim)


@_view("unbind")
def _unbind(x: Tensor, dim: int = 0) -> Seen:
    if not isinstance(dim, int):
        raise NotImplementedError
    return [_select(x, dim, i) for i in range(x.shape[dim])]  # type: ignore[misc]


# repetitions --------------------------------------------------------------------------------------


@_view("expand", "broadcast_to")
def _expand(x: Tensor, size: Sequence[int], **_: Any) -> Seen:
    shape, strides = x.shape, x.stride()
    lead = len(size) - len(shape)
    sizes = list(size)
    steps = [0] * len(sizes)
    for i, n in enumerate(shape, lead):
        if sizes[i] == -1:
            sizes[i] = n
        elif sizes[i] != n and n != 1:
            raise RuntimeError(
                f"a tensor of shape {list(shape)} cannot be expanded to {list(size)}"
            )
        steps[i] = strides[i - lead] if sizes[i] == n else 0
    return sizes, steps, x.storage_offset()


@_view("expand_as")
def _expand_as(x: Tensor, other: Tensor) -> Seen:
    return _expand(x, other.shape)


# the same numbers ---------------------------------------------------------------------------------


@_view("detach", "alias", "lift_fresh")
def _alias(x: Tensor) -> Seen:
    return x.shape, x.stride(), x.storage_offset()


@_view("to")
def _to(x: Tensor, *given: Any, **named: Any) -> Seen:
    dtype = named.get("dtype")
    copy = named.get("copy", False)
    for value in given:
        if isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, Tensor):
            dtype = value.dtype
    flags = [value for value in given if isinstance(value, bool)]
    if copy or (len(flags) > 1 and flags[1]):
        return x.shape, dtype or x.dtype
    return None if dtype is None or dtype is x.dtype else (x.shape, dtype)
