"""Statistics of one tensor, in float64 and without waiting for the device.

Axes: B samples (dim 0), F features (all other dims), U units (channels, else the last dim).

Sums of squares of float32 numbers underflow in float32 from 1e-23 on, in float64 never; those of
float64 numbers do from 1e-162 on, so they are divided by their largest first. Beyond `CAP`
elements a tensor is sampled by a constant stride over its features that shares no factor with
their number, so that every channel and position is met equally often.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

CAP = 2**18  # elements of one tensor that are looked at

# Functions that give exact zeros; of these the first three never give negative numbers.
POSITIVE = frozenset(("relu", "relu6", "hardsigmoid"))
KILLERS = POSITIVE | {
    "threshold",
    "clamp",
    "maximum",
    "where",
    "hardswish",
    "hardshrink",
    "softshrink",
}
# Bounded functions: (lowest, highest) value; None where the call says it.
BOUNDED: dict[str, tuple[float, float] | None] = {
    "tanh": (-1.0, 1.0),
    "sigmoid": (0.0, 1.0),
    "softsign": (-1.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "erf": (-1.0, 1.0),
    "hardtanh": None,
    "relu6": (0.0, 6.0),
}
EDGE = 0.97  # of the half range, from the middle


class Sums(NamedTuple):
    """Where the sums of one tensor stand in the vector that `forward_sums` returns."""

    squares: float  # sum (x / scale)^2
    total: float  # sum x / scale
    cosines: float  # |sum_b x_b / |x_b||^2
    samples: float  # samples that are not zero throughout
    fourths: float  # sum (x / scale)^4
    scale: float
    dead: float
    saturated: float
    masked: float  # elements that a mask set to -inf: they count for nothing


class Sample(NamedTuple):
    """A tensor as B x F, perhaps every ``stride``-th feature of it.

    Args:
        rows: B x F, a view where torch can give one.
        stride: between the features taken.
        shape: the features' dims in the order in which ``rows`` has them.
        dims: which dims of the tensor those are.
    """

    rows: Tensor
    stride: int
    shape: tuple[int, ...]
    dims: tuple[int, ...]


def sample(value: Tensor) -> Sample:
    """``value`` as B x F with at most about `CAP` elements; features in memory order."""
    value = value.detach()
    if value.ndim == 0:
        value = value.reshape(1, 1)
    dims = tuple(sorted(range(1, value.ndim), key=lambda d: -value.stride()[d]))
    ordered = value.permute(0, *dims)
    shape = tuple(ordered.shape[1:])
    rows = ordered.reshape(value.shape[0], -1)
    if value.numel() <= CAP:
        return Sample(rows, 1, shape, dims)
    if rows.shape[0] > CAP // 8:
        rows = rows[:: math.ceil(rows.shape[0] * 8 / CAP)]
    stride = max(1, math.ceil(rows.numel() / CAP))
    while math.gcd(stride, rows.shape[1]) > 1:
        stride += 1
    return Sample(rows[:, ::stride], stride, shape, dims)


def forward_sums(
    value: Tensor,
    op: str,
    units: int,
    limits: tuple[float, float] | None,
    *,
    kills: bool,
    masks: bool = False,
) -> tuple[Tensor, int]:
    """Everything that one op's output tells, as a vector laid out like `Sums`, and its length.

    Args:
        value: the output, samples along dim 0, not empty.
        op: the field's name of the op.
        units: the dim along which units lie.
        limits: range of a bounded function, else None.
        kills: whether zeros mean that a unit is switched off.
        masks: whether -inf means that an element does not take part.

    Returns:
        (a float64 vector on the tensor's device, number of elements looked at).
    """
    taken = sample(value)
    masked = (taken.rows == -math.inf) if masks else None
    x, scale = widened(taken.rows if masked is None else taken.rows.masked_fill(masked, 0.0))
    squares_BF = x.square()
    squares_B = squares_BF.sum(1)
    inverse_B = torch.where(squares_B > 0, squares_B.rsqrt(), 0.0)
    mean_F = inverse_B @ x
    flat = squares_BF.view(-1)
    none, zero = scale.new_full((), math.nan), scale.new_zeros(())
    dead = _dead(x, op, units, taken) if kills else none
    saturated = _saturated(taken.rows, limits) if limits else none
    sums = (
        squares_B.sum(), x.sum(), mean_F.dot(mean_F), squares_B.count_nonzero(), flat.dot(flat),
        scale, dead, saturated, zero if masked is None else masked.sum(),
    )  # fmt: skip
    return torch.stack([s.to(x.dtype) for s in sums]), x.numel()


def backward_sums(grad: Tensor) -> tuple[Tensor, int]:
    """(sum (g / scale)^2, scale) of a gradient, and how many elements were looked at."""
    x, scale = widened(sample(grad).rows)
    flat = x.reshape(-1)
    return torch.stack((flat.dot(flat), scale)), flat.numel()


def widened(rows: Tensor) -> tuple[Tensor, Tensor]:
    """``rows`` in float64, float64 itself divided by its largest number, and that divisor."""
    if rows.dtype is not torch.float64:
        return rows.double(), torch.ones((), dtype=torch.float64, device=rows.device)
    largest = torch.linalg.vector_norm(rows, math.inf)
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return rows / scale, scale


def _dead(x: Tensor, op: str, units: int, taken: Sample) -> Tensor:
    """Fraction of units whose numbers are all zero."""
    size_F = (x if op in POSITIVE else x.abs()).sum(0)
    at = taken.dims.index(units) if units in taken.dims else len(taken.shape) - 1
    if not taken.shape:
        return (size_F == 0).double().mean()
    width, inner = taken.shape[at], math.prod(taken.shape[at + 1 :])
    column = torch.arange(0, math.prod(taken.shape), taken.stride, device=x.device)[: len(size_F)]
    unit = (column // inner) % width
    size_U = size_F.new_zeros(width).index_add_(0, unit, size_F)
    met_U = size_F.new_zeros(width).index_add_(0, unit, torch.ones_like(size_F))
    return ((size_U == 0) & (met_U > 0)).sum() / (met_U > 0).sum()


def _saturated(rows: Tensor, limits: tuple[float, float]) -> Tensor:
    """Fraction of elements beyond `EDGE` of the range around its middle."""
    low, high = limits
    half = (high - low) / 2
    return ((rows - (low + high) / 2).abs() > EDGE * half).double().mean()
