"""Statistics of one tensor, right over the whole range of float64 and without waiting for the device.

Axes: B samples (dim 0), F features (all other dims), U units (channels, else the last dim).

Rms and mean come from all elements. A sum of squares of float32 numbers underflows in float32 from
1e-23 on and overflows from 1e19 on, so it is taken in float64; on a CPU, where float32 is five
times faster and looking at a result is free, only where the float32 result says that it must be.
Sums of float64 numbers, which underflow from 1e-162 on, are taken of x over its largest number.

The cosine between samples, always in float64, and the fractions of dead and saturated elements
come from at most about `CAP` elements: a constant stride over the features that shares no factor
with their number, so that every channel and position is met equally often.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

CAP = 2**16  # elements of one tensor that are looked at for the cosine
_SAFE = (1e-30, 1e30)  # mean squares that float32 sums hold with all their digits
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
    """What one tensor of ``n`` elements tells; tensors, unless looking at them is free.

    Args:
        named: ``squares``: sum x^2; ``total``: sum x; ``cosines``: |sum_b x_b/|x_b||^2;
            ``samples``: how many are not zero; ``scale``: what x was divided by before; and
            where wanted ``dead``, ``saturated``, ``masked``, ``kurtosis``.
    """

    n: int
    named: dict[str, Tensor] | dict[str, float]


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
    if value.ndim == 0:
        value = value.view(1, 1)
    dims = tuple(range(1, value.ndim))
    if not value.is_contiguous():
        dims = tuple(sorted(dims, key=lambda d: -value.stride()[d]))
        value = value.permute(0, *dims)
    shape, rows = tuple(value.shape[1:]), value.reshape(value.shape[0], -1)
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
        named: dict[str, Tensor] = {}
        value = value.detach()
        if wanted.masked:
            hidden = value == -math.inf
            value, named["masked"] = value.masked_fill(hidden, 0.0), hidden.sum()
        value = _scaled(value, named)
        taken = sample(value)
        named["squares"], named["total"] = _squares(value), value.sum()
        x_BF = taken.rows.double()
        norm_B = torch.linalg.vector_norm(x_BF, dim=1)
        weight_2B = self._weight(norm_B)
        cosine_F, total_F = weight_2B @ x_BF
        named["cosines"], named["samples"] = cosine_F.dot(cosine_F), weight_2B[0].dot(norm_B)
        if wanted.dead:
            size_F = total_F if wanted.op in POSITIVE else x_BF.abs().sum(0)
            named["dead"] = _dead(size_F, wanted.units, taken)
        if wanted.range:
            named["saturated"] = _saturated(taken.rows, wanted.range, named.get("scale"))
        if wanted.kurtosis:
            few = x_BF.view(-1)[:: math.ceil(x_BF.numel() / FEW)].square()
            named["kurtosis"] = few.dot(few) * len(few) / few.sum().square()
        return _ready(value, named)

    def backward(self, grad: Tensor) -> Sums:
        """The gradient's sum of squares."""
        named: dict[str, Tensor] = {}
        grad = _scaled(grad.detach(), named)
        named["squares"] = _squares(grad)
        return _ready(grad, named)

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


def _ready(value: Tensor, named: dict[str, Tensor]) -> Sums:
    if value.device.type == "cpu":
        return Sums(value.numel(), {name: float(number) for name, number in named.items()})
    return Sums(value.numel(), named)


def _scaled(value: Tensor, named: dict[str, Tensor]) -> Tensor:
    """``value``; in float64 divided by its largest number, which becomes ``named["scale"]``."""
    if value.dtype is not torch.float64:
        return value
    largest = value.abs().amax()
    named["scale"] = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return value / named["scale"]


def _flat(value: Tensor) -> Tensor:
    """All elements in memory order, where that saves a copy."""
    if not value.is_contiguous():
        value = value.permute(sorted(range(value.ndim), key=lambda d: -value.stride()[d]))
    return value.reshape(-1)


def _squares(value: Tensor) -> Tensor:
    """Sum x^2."""
    if value.device.type == "cpu":
        flat = _flat(value)
        flat = flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
        squares = flat.dot(flat)
        if flat.dtype is torch.float64 or _SAFE[0] < float(squares) / len(flat) < _SAFE[1]:
            return squares
        flat = flat.double()
        return flat.dot(flat)
    return torch.linalg.vector_norm(value, dtype=torch.float64).square()


def _saturated(rows: Tensor, limits: tuple[float, float], scale: Tensor | None) -> Tensor:
    """Fraction of elements beyond `EDGE` of the range around its middle."""
    low, high = limits
    rows = rows if scale is None else rows * scale
    return ((rows - (low + high) / 2).abs_() > EDGE * (high - low) / 2).sum() / rows.numel()


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
