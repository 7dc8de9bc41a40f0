"""Which elements of the whole tensor a process holds: index vectors, found without communication."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ._errors import ModelError

Index = range | npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Shard:
    """The part of a tensor that lives here.

    Args:
        local: the plain tensor to write, of shape (len(rows), ...) with len(columns) elements a row;
            a 0-D or 1-D one has the single row 0.
        rows: its indices along dim 0 of the whole tensor.
        columns: its flat indices in the remaining dims of the whole tensor.
        shape: of the whole tensor.
    """

    local: Tensor
    rows: Index
    columns: Index
    shape: tuple[int, ...]


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
        if len(shape) < 2:
            return Shard(tensor, range(1), range(tensor.numel()), shape)
        return Shard(tensor, range(shape[0]), range(math.prod(shape[1:])), shape)
    _check_placements(tensor)
    with torch.no_grad():
        local = tensor.to_local()  # type: ignore[attr-defined]
    axes = [_axis(tensor, dim) for dim in range(len(shape))]
    if tuple(map(len, axes)) != tuple(local.shape):
        raise ModelError(
            f"this rank holds a piece of shape {tuple(local.shape)}, its placements "
            f"{tensor.placements} of {shape} say {tuple(map(len, axes))}. "  # type: ignore[attr-defined]
            "Initialise before sharding, or shard with torch.distributed.tensor.distribute_tensor."
        )
    if len(shape) < 2:
        return Shard(local, range(1), axes[0] if axes else range(1), shape)
    return Shard(local, axes[0], _flat(axes[1:], shape[1:]), shape)


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
    return piece.to_local().cpu().numpy()


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
    if all(isinstance(a, range) for a in axes):
        return range(math.prod(shape))
    flat = np.zeros((), np.int64)
    for axis, length in zip(axes, shape, strict=True):
        flat = flat[..., None] * length + np.asarray(axis)
    return flat.reshape(-1)
