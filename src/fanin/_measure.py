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
    """Measures tensors one after the other in the same memory: fresh pages cost more than sums."""

    def __init__(self) -> None:
        self._memory: dict[torch.device, Tensor] = {}
        self._ones: dict[tuple[torch.device, int], Tensor] = {}

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
        x_BF = self._wide(rows, extra)
        norm_B = torch.linalg.vector_norm(x_BF, dim=1)
        inverse_B = norm_B.reciprocal().nan_to_num_(nan=math.nan, posinf=0.0)
        cosine_F, total_F = torch.stack((inverse_B, self._one(norm_B))) @ x_BF
        always = torch.stack(
            (norm_B.dot(norm_B), total_F.sum(), cosine_F.dot(cosine_F), inverse_B.dot(norm_B))
        )
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
        return Sums(always, x_BF.numel(), extra)

    def backward(self, grad: Tensor) -> Sums:
        """The gradient's sum of squares."""
        extra: dict[str, Tensor] = {}
        flat = self._wide(sample(grad).rows, extra).view(-1)
        return Sums(flat.dot(flat).view(1), flat.numel(), extra)

    def _wide(self, rows: Tensor, extra: dict[str, Tensor]) -> Tensor:
        """``rows`` in float64; float64 itself divided by its largest number, ``extra["scale"]``."""
        memory = self._memory.get(rows.device)
        if memory is None or memory.numel() < rows.numel():
            size = max(CAP, rows.numel())
            memory = torch.empty(size, dtype=torch.float64, device=rows.device)
            self._memory[rows.device] = memory
        x = memory[: rows.numel()].view(rows.shape).copy_(rows)
        if rows.dtype is torch.float64:
            largest = torch.linalg.vector_norm(x, math.inf)
            extra["scale"] = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
            x.div_(extra["scale"])
        return x

    def _one(self, like: Tensor) -> Tensor:
        key = (like.device, len(like))
        if key not in self._ones:
            self._ones[key] = torch.ones_like(like)
        return self._ones[key]


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
