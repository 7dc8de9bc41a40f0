"""Statistics of one tensor, in float64 and without waiting for the device.

Axes: B samples (dim 0), F features (all other dims), U units (channels, else the last dim).

Sums of squares of float32 numbers underflow in float32 from 1e-23 on, in float64 never; those of
float64 numbers do from 1e-162 on, so these are divided by their largest first. Beyond `CAP`
elements a tensor is sampled by a constant stride over its features that shares no factor with
their number, so that every channel and position is met equally often.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

CAP = 2**18  # elements of one tensor that are looked at
_LEAST = 1e-300  # a norm of 0 counts as this, so that 0/0 is 0
FEW = 2**12  # enough for a fourth moment that is needed to one digit

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
# Bounded functions and their range. relu6 has its floor at 0, where it is not saturated but off.
BOUNDED = {
    "tanh": (-1.0, 1.0),
    "sigmoid": (0.0, 1.0),
    "softsign": (-1.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "erf": (-1.0, 1.0),
    "relu6": (-6.0, 6.0),
}
EDGE = 0.97  # of the half range, from the middle


class Wanted(NamedTuple):
    """What to measure beside rms, mean and cosine.

    Args:
        op: the field's name.
        units: the dim along which units lie.
        range: of a bounded function.
        dead: zeros mean that a unit is switched off.
        masked: -inf means that an element takes no part.
        kurtosis: E x^4 / (E x^2)^2, from a few elements.
    """

    op: str = ""
    units: int = 0
    range: tuple[float, float] | None = None
    dead: bool = False
    masked: bool = False
    kurtosis: bool = False


class Sums(NamedTuple):
    """What one tensor tells, still on its device; ``n`` elements were looked at.

    Args:
        always: sum x^2, sum x, |sum_b x_b/|x_b||^2, samples that are not zero; x over ``scale``.
        extra: ``scale``, ``dead``, ``saturated``, ``masked``, ``kurtosis``, where there are any.
    """

    always: Tensor
    n: int
    extra: dict[str, Tensor]


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
        value = value.view(1, 1)
    if value.is_contiguous():
        dims, shape = tuple(range(1, value.ndim)), tuple(value.shape[1:])
        rows = value.view(value.shape[0], -1)
    else:
        dims = tuple(sorted(range(1, value.ndim), key=lambda d: -value.stride()[d]))
        ordered = value.permute(0, *dims)
        shape, rows = tuple(ordered.shape[1:]), ordered.reshape(value.shape[0], -1)
    if rows.numel() <= CAP:
        return Sample(rows, 1, shape, dims)
    if rows.shape[0] > CAP // 8:
        rows = rows[:: math.ceil(rows.shape[0] * 8 / CAP)]
    stride = math.ceil(rows.numel() / CAP)
    while math.gcd(stride, rows.shape[1]) > 1:
        stride += 1
    return Sample(rows[:, ::stride], stride, shape, dims)


class Bench:
    """Measures tensors one after the other, with as few kernels as will do."""

    def __init__(self) -> None:
        self._weights: dict[tuple[torch.device, int], Tensor] = {}

    def forward(self, value: Tensor, wanted: Wanted) -> Sums:
        """Everything that one op's output tells.

        Args:
            value: samples along dim 0, not empty.
            wanted: what to look for.
        """
        taken = sample(value)
        extra: dict[str, Tensor] = {}
        rows = taken.rows
        if wanted.masked:
            hidden = rows == -math.inf
            rows, extra["masked"] = rows.masked_fill(hidden, 0.0), hidden.sum()
        x_BF = _wide(rows, extra)
        norm_B = torch.linalg.vector_norm(x_BF, dim=1)
        weight_2B = self._weight(norm_B)
        cosine_F, total_F = weight_2B @ x_BF
        always = (
            norm_B.dot(norm_B), total_F.sum(), cosine_F.dot(cosine_F), weight_2B[0].dot(norm_B)
        )  # fmt: skip
        if wanted.dead:
            size_F = total_F if wanted.op in POSITIVE else x_BF.abs().sum(0)
            extra["dead"] = _dead(size_F, wanted.units, taken)
        if wanted.range:
            low, high = wanted.range
            beyond = (rows - (low + high) / 2).abs_() > EDGE * (high - low) / 2
            extra["saturated"] = beyond.sum() / rows.numel()
        if wanted.kurtosis:
            few = x_BF.view(-1)[:: math.ceil(x_BF.numel() / FEW)].square()
            extra["kurtosis"] = few.dot(few) * len(few) / few.sum().square()
        return Sums(torch.stack(always), x_BF.numel(), extra)

    def backward(self, grad: Tensor) -> Sums:
        """The gradient's sum of squares."""
        rows = sample(grad).rows
        extra: dict[str, Tensor] = {}
        if rows.dtype is torch.float64:
            rows = _wide(rows, extra)
        norm = torch.linalg.vector_norm(rows, dtype=torch.float64)
        return Sums(norm.square().view(1), rows.numel(), extra)

    def _weight(self, norm_B: Tensor) -> Tensor:
        """Rows 1/|x_b|, 0 for a sample of zeros, and 1; the same memory at every call."""
        key = (norm_B.device, len(norm_B))
        if key not in self._weights:
            self._weights[key] = torch.ones(
                (2, *norm_B.shape), dtype=torch.float64, device=norm_B.device
            )
        weight_2B = self._weights[key]
        torch.reciprocal(norm_B.clamp_min(_LEAST), out=weight_2B[0])
        return weight_2B


def _wide(rows: Tensor, extra: dict[str, Tensor]) -> Tensor:
    """``rows`` in float64; float64 itself divided by its largest number, ``extra["scale"]``."""
    if rows.dtype is not torch.float64:
        return rows.double()
    largest = torch.linalg.vector_norm(rows, math.inf)
    extra["scale"] = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return rows / extra["scale"]


def _dead(size_F: Tensor, units: int, taken: Sample) -> Tensor:
    """Fraction of units whose numbers are all zero; ``size_F`` is 0 exactly for such features."""
    if len(taken.shape) < 2:
        return (size_F == 0).sum() / len(size_F)
    at = taken.dims.index(units) if units in taken.dims else len(taken.shape) - 1
    width, inner = taken.shape[at], math.prod(taken.shape[at + 1 :])
    if taken.stride == 1:
        return (size_F.view(-1, width, inner).sum((0, 2)) == 0).sum() / width
    unit_F = torch.arange(0, math.prod(taken.shape), taken.stride, device=size_F.device)
    unit_F = (unit_F // inner) % width
    size_U = size_F.new_zeros(width).index_add_(0, unit_F, size_F)
    met_U = size_F.new_zeros(width).index_add_(0, unit_F, torch.ones_like(size_F))
    return ((size_U == 0) & (met_U > 0)).sum() / (met_U > 0).sum()
