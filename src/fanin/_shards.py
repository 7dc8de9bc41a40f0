"""Which elements of the whole tensor a process holds: index vectors, found without communication."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ._errors import InvalidValueError, ModelError

Index = range | npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Shard:
    """The part of a tensor that lives here.

    Args:
        local: the plain tensor to write, of shape (len(axis 0), len(axis 1), ...).
        axes: its indices along each dim of the whole tensor.
        shape: of the whole tensor.
    """

    local: Tensor
    axes: tuple[Index, ...]
    shape: tuple[int, ...]

    @cached_property
    def rows(self) -> Index:
        """Indices along dim 0; a 0-D or 1-D tensor is the single row 0."""
        return self.axes[0] if len(self.shape) > 1 else range(1)

    @cached_property
    def columns(self) -> Index:
        """Flat indices in the remaining dims."""
        if len(self.shape) < 2:
            return self.axes[0] if self.axes else range(1)
        return _flat(self.axes[1:], self.shape[1:])

    def slices(self, dim: int, start: int, stop: int) -> list[Shard]:
        """What lives here of ``start:stop`` along ``dim``, in the slice's own coordinates.

        One shard, but for indices that leave and enter the slice again; an empty one for none.
        """
        shape = (*self.shape[:dim], stop - start, *self.shape[dim + 1 :])
        return [
            Shard(s.local, _with(s.axes, dim, vector(s.axes[dim]) - start), shape)
            for s in self.within(dim, start, stop)
        ]

    def within(self, dim: int, start: int, stop: int) -> list[Shard]:
        """The same in the whole's coordinates."""
        index = vector(self.axes[dim])
        return [
            Shard(
                self.local.narrow(dim, first, length),
                _with(self.axes, dim, index[first : first + length]),
                self.shape,
            )
            for first, length in _stretches((index >= start) & (index < stop))
        ]


@dataclass(frozen=True, eq=False)
class IndexVectors:
    """A tensor that holds a grid of a whole tensor's elements, as tensor parallel ranks do.

    Args:
        shape: of the whole tensor.
        axes: for each dim the indices that live here, in the order in which they lie.

    Raises:
        InvalidValueError: not one vector a dim, or an index beyond the shape.

    >>> odd_rows = IndexVectors((4, 3), ([1, 3], range(3)))
    >>> from fanin.distributions import Normal
    >>> from fanin._fill import fill_
    >>> whole = fill_(torch.empty(4, 3), Normal(1.0), key="w")
    >>> torch.equal(fill_(torch.empty(2, 3), Normal(1.0), key="w", held=odd_rows), whole[1::2])
    True
    """

    shape: tuple[int, ...]
    axes: Sequence[Sequence[int] | Index]

    def __post_init__(self) -> None:
        shape = _shape(self.shape)
        axes = tuple(map(_index, self.axes))
        bad = [d for d, (a, n) in enumerate(zip(axes, shape, strict=False)) if not _within(a, n)]
        if len(axes) != len(shape) or bad:
            raise InvalidValueError(
                f"a tensor of shape {list(shape)} needs {len(shape)} index vectors, each of indices from 0 to "
                f"its length - 1; got {len(axes)}{f', wrong along dims {bad}' if bad else ''}."
            )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "axes", axes)

    def shards(self, tensor: Tensor) -> list[Shard]:
        """The whole of ``tensor``, as one shard."""
        axes = cast("tuple[Index, ...]", self.axes)
        lengths = tuple(map(len, axes))
        if tuple(tensor.shape) != lengths:
            raise ModelError(
                f"these index vectors are of lengths {lengths}, the tensor is of shape {tuple(tensor.shape)}."
            )
        return [Shard(tensor, axes, self.shape)]


@dataclass(frozen=True)
class FlatRange:
    """A 1-D tensor that holds consecutive elements of a whole tensor, flattened, as ZeRO's ranks do.

    Args:
        shape: of the whole tensor.
        start: flat, row-major index of the first element.

    Raises:
        InvalidValueError: a start that is not in [0, number of elements].

    >>> from fanin.distributions import Normal
    >>> from fanin._fill import fill_
    >>> whole = fill_(torch.empty(4, 3), Normal(1.0), key="w")
    >>> part = fill_(torch.empty(5), Normal(1.0), key="w", held=FlatRange((4, 3), start=2))
    >>> torch.equal(part, whole.flatten()[2:7])
    True
    """

    shape: tuple[int, ...]
    start: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _shape(self.shape))
        if not 0 <= self.start <= math.prod(self.shape):
            raise InvalidValueError(
                f"start must lie in [0, {math.prod(self.shape)}], shape {list(self.shape)}; got {self.start!r}."
            )

    def shards(self, tensor: Tensor) -> list[Shard]:
        """``tensor`` in boxes: pieces of a row, whole rows, pieces of a row."""
        stop = self.start + tensor.numel()
        if tensor.dim() != 1 or stop > math.prod(self.shape):
            raise ModelError(
                f"a flat range of {list(self.shape)} from {self.start} fits a 1-D tensor of at most "
                f"{math.prod(self.shape) - self.start} elements; got shape {tuple(tensor.shape)}."
            )
        found, place = [], 0
        for axes in _boxes(self.start, stop, self.shape):
            lengths = [len(axis) for axis in axes]
            part = tensor.narrow(0, place, math.prod(lengths)).view(lengths)
            found.append(Shard(part, axes, self.shape))
            place += math.prod(lengths)
        return found


Held = IndexVectors | FlatRange


def shards_of(tensor: Tensor, held: Held | None = None) -> list[Shard]:
    """What ``tensor`` holds, in boxes; ``held`` says it where the tensor itself does not.

    Raises:
        ModelError: as `index_of`; or ``held`` does not fit the tensor.
    """
    if held is None:
        return [index_of(tensor)]
    if is_dtensor(tensor):
        raise ModelError("a DTensor says itself which elements it holds; leave it out of held.")
    return held.shards(tensor)


def index_of(tensor: Tensor) -> Shard:
    """The elements of the whole tensor that ``tensor`` holds on this rank.

    Args:
        tensor: a plain tensor, or a DTensor with Shard and Replicate placements on any mesh.

    Raises:
        ModelError: a placement that does not say which elements are here, such as Partial.

    >>> shard = index_of(torch.zeros(4, 2, 3))
    >>> shard.rows, shard.columns, shard.shape
    (range(0, 4), range(0, 6), (4, 2, 3))
    """
    shape = tuple(tensor.shape)
    if not is_dtensor(tensor):
        return Shard(tensor, tuple(map(range, shape)), shape)
    _check_placements(tensor)
    with torch.no_grad():
        local = tensor.to_local()  # type: ignore[attr-defined]
    axes = tuple(_axis(tensor, dim) for dim in range(len(shape)))
    if tuple(map(len, axes)) != tuple(local.shape):
        raise ModelError(
            f"this rank holds a piece of shape {tuple(local.shape)}, its placements "
            f"{tensor.placements} of {shape} say {tuple(map(len, axes))}. "  # type: ignore[attr-defined]
            "Initialise before sharding, or shard with torch.distributed.tensor.distribute_tensor."
        )
    return Shard(local, axes, shape)


def is_dtensor(tensor: Tensor) -> bool:
    """Whether ``tensor`` is distributed over a mesh; never imports what tells."""
    # A process that never imported DTensor, which is slow to import, cannot hold one.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _axis(tensor: Any, dim: int) -> Index:
    """The indices along one dim: what an arange of that length becomes when placed likewise."""
    from torch.distributed.tensor import Replicate, distribute_tensor  # noqa: PLC0415 - slow to import

    placements = [_along(p, dim, tensor) for p in tensor.placements]
    length = tensor.shape[dim]
    if all(isinstance(p, Replicate) for p in placements):
        return range(length)
    try:
        # A mesh of GPUs moves what is placed on it; the numbers come back to the CPU.
        piece = distribute_tensor(
            torch.arange(length, device="cpu"), tensor.device_mesh, placements, src_data_rank=None
        )
    except TypeError as error:
        raise ModelError(
            f"torch {torch.__version__} cannot place indices without communication (distribute_tensor has "
            "no src_data_rank). Use a newer torch, or initialise before sharding."
        ) from error
    except AssertionError as error:
        raise ModelError(
            f"torch cannot split dim {dim} of length {length} as {tensor.placements} say. "
            "Initialise before sharding, or choose a length that the mesh divides."
        ) from error
    return as_range(piece.to_local().cpu().numpy())


def _check_placements(tensor: Any) -> None:
    from torch.distributed.tensor import Replicate  # noqa: PLC0415 - slow to import

    for placement in tensor.placements:
        if not isinstance(placement, Replicate) and not hasattr(placement, "dim"):
            raise ModelError(
                f"placement {placement} does not say which elements are here; got {tensor.placements}. "
                "A Partial tensor holds summands: redistribute it to Shard or Replicate first."
            )


def _along(placement: Any, dim: int, tensor: Any) -> Any:
    """The placement of dim 0 of a 1-D tensor that splits as ``placement`` splits ``dim``."""
    from torch.distributed.tensor import Replicate  # noqa: PLC0415
    from torch.distributed.tensor import Shard as Split  # noqa: PLC0415

    if isinstance(placement, Replicate) or placement.dim % tensor.dim() != dim:
        return Replicate()
    factor = getattr(placement, "split_factor", None)
    return Split(0) if factor is None else type(placement)(0, split_factor=factor)


def _flat(axes: Sequence[Index], shape: Sequence[int]) -> Index:
    """Row-major flat indices of the grid that the axes span in a tensor of this shape."""
    (first, *others), inner = axes, math.prod(shape[1:])
    if all(map(_dense, axes)) and others == list(map(range, shape[1:])):
        return range(first.start * inner, first.stop * inner)  # type: ignore[union-attr]
    flat = np.zeros((), np.int64)
    for axis, length in zip(axes, shape, strict=True):
        flat = flat[..., None] * length + vector(axis)
    return flat.reshape(-1)


def _dense(axis: Index) -> bool:
    return isinstance(axis, range) and axis.step == 1


def as_range(index: npt.NDArray[np.int64]) -> Index:
    """Consecutive indices as a range, which takes no memory; others as they are.

    >>> as_range(np.array([3, 4, 5]))
    range(3, 6)
    """
    if not index.size:
        return index
    first, last = int(index[0]), int(index[-1])
    consecutive = last - first == index.size - 1 and bool((np.diff(index) == 1).all())
    return range(first, last + 1) if consecutive else index


def _with(axes: tuple[Index, ...], dim: int, index: npt.NDArray[np.int64]) -> tuple[Index, ...]:
    return (*axes[:dim], as_range(index), *axes[dim + 1 :])


def vector(index: Index) -> npt.NDArray[np.int64]:
    """Indices as an array."""
    return np.arange(index.start, index.stop, index.step) if isinstance(index, range) else index


def _index(axis: Sequence[int] | Index) -> Index:
    if isinstance(axis, range) and axis.step == 1:
        return axis
    return as_range(np.asarray(axis, dtype=np.int64))


def _stretches(inside: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(position, length) of each run of True; (0, 0) where there is none.

    >>> _stretches(np.array([False, True, True, False, True]))
    [(1, 2), (4, 1)]
    """
    edges = np.flatnonzero(np.diff(inside.astype(np.int8), prepend=0, append=0))
    found = [(int(a), int(b - a)) for a, b in edges.reshape(-1, 2)]
    return found or [(0, 0)]


def _boxes(start: int, stop: int, shape: Sequence[int]) -> list[tuple[range, ...]]:
    """Boxes of a tensor that cover the flat indices start:stop, in order.

    >>> _boxes(2, 10, (4, 3))
    [(range(0, 1), range(2, 3)), (range(1, 3), range(0, 3)), (range(3, 4), range(0, 1))]
    """
    if len(shape) < 2:
        return [(range(start, stop),)] if shape else [()] * (stop - start)
    inner = math.prod(shape[1:])
    if start == stop:
        return [(range(0), *map(range, shape[1:]))]
    (first, low), (last, high) = divmod(start, inner), divmod(stop, inner)
    if first == last:
        return _in_row(first, low, high, shape)
    found = []
    if low:
        found += _in_row(first, low, inner, shape)
        first += 1
    if first < last:
        found.append((range(first, last), *map(range, shape[1:])))
    if high:
        found += _in_row(last, 0, high, shape)
    return found


def _in_row(row: int, low: int, high: int, shape: Sequence[int]) -> list[tuple[range, ...]]:
    return [(range(row, row + 1), *box) for box in _boxes(low, high, shape[1:])]


def _shape(given: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(map(int, given))
    if any(n < 0 for n in shape):
        raise InvalidValueError(f"a shape has no negative lengths; got {list(shape)}.")
    return shape


def _within(axis: Index, length: int) -> bool:
    if not len(axis):
        return True
    ends = (axis[0], axis[-1]) if isinstance(axis, range) else (axis.min(), axis.max())
    return ends[0] >= 0 and ends[1] < length
