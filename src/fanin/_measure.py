"""Statistics of one tensor, true over the whole range of float64.

Axes: B samples (dim 0), F features (all other dims), U units (channels, else the last dim).

A sum of squares of float32 numbers underflows in float32 from 1e-23 on and overflows from 1e19 on,
and float32 cannot tell a cosine of 1 - 1e-8 from 1, so sums are taken in float64. On a CPU float32
is five times faster and looking at a result is free: there float64 is used where the float32
result says that it must be. Sums of float64 numbers, which underflow from 1e-162 on, are taken of
x over its largest number.

Rms and mean come from all elements; the cosine between samples and the fractions of dead and
saturated elements from at most about `CAP`: short runs of neighbouring features at a constant
stride that shares no factor with their number, so that all channels and positions have their turn.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]

CAP = 2**18  # elements of one tensor that are looked at for the cosine
RUN = 64  # features taken together: a few cache lines
_SAFE = (1e-30, 1e30)  # mean squares that float32 sums hold with all their digits
_NEAR = 0.999  # up to this cosine float32's error of 1e-7 is of no account
_LEAST = 1e-37  # a norm of 0 counts as this, so that 0/0 is 0

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
    """

    op: str = ""
    units: int = 0
    range: tuple[float, float] | None = None
    dead: bool = False
    masked: bool = False


Number = Tensor | float  # a 0-dim tensor, where looking at it would mean to wait


class Sums(NamedTuple):
    """What one tensor of ``n`` elements tells.

    Args:
        named: ``squares``: sum x^2; ``total``: sum x; ``cosines``: |sum_b x_b/|x_b||^2;
            ``samples``: how many are not zero; ``scale``: what x was divided by before; and
            where wanted ``units`` met, ``alive`` ones among them, the fraction ``saturated``,
            and elements ``masked``.
    """

    n: int
    named: dict[str, Number]


class Sample(NamedTuple):
    """A tensor as B x F, perhaps every ``stride``-th run of its features.

    Args:
        rows: B x F, a view where torch can give one.
        run: features in a run.
        stride: in runs.
        shape: the features' dims in the order in which ``rows`` has them.
        dims: which dims of the tensor those are.
    """

    rows: Tensor
    run: int
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
        return Sample(rows, 1, 1, shape, dims)
    if rows.shape[0] > CAP // 8:
        rows = rows[:: math.ceil(rows.shape[0] * 8 / CAP)]
    run = math.gcd(rows.shape[1], RUN)
    runs = rows.shape[1] // run
    stride = math.ceil(rows.numel() / CAP)
    while math.gcd(stride, runs) > 1:
        stride += 1
    rows = rows.view(len(rows), runs, run)[:, ::stride].reshape(len(rows), -1)
    return Sample(rows, run, stride, shape, dims)


class Bench:
    """Measures tensors one after the other, with as few calls as will do."""

    def __init__(self) -> None:
        self._weights: dict[tuple[torch.dtype, int], tuple[Tensor, Array]] = {}

    def forward(self, value: Tensor, wanted: Wanted) -> Sums:
        """Everything that one op's output tells.

        Args:
            value: samples along dim 0, not empty.
            wanted: what to look for.
        """
        extra: dict[str, Number] = {}
        value = value.detach()
        if wanted.masked:
            hidden = value == -math.inf
            value, extra["masked"] = value.masked_fill(hidden, 0.0), hidden.sum()
        value = _scaled(value, extra)
        taken = sample(value)
        named, total_F = self._sums(taken.rows)
        if taken.rows.numel() < value.numel():
            named |= {"squares": _squares(value), "total": value.sum()}
        if wanted.dead:
            size_F = total_F if wanted.op in POSITIVE else taken.rows.abs().sum(0)
            extra["units"], extra["alive"] = _alive(size_F, wanted.units, taken)
        if wanted.range:
            extra["saturated"] = _saturated(taken.rows, wanted.range, extra.get("scale"))
        return _ready(value, named | extra)

    def backward(self, grad: Tensor) -> Sums:
        """The gradient's sum of squares."""
        named: dict[str, Number] = {}
        grad = _scaled(grad.detach(), named)
        named["squares"] = _squares(grad)
        return _ready(grad, named)

    def _sums(self, rows_BF: Tensor) -> tuple[dict[str, Number], Tensor]:
        """Sums over samples, and each feature's total."""
        if rows_BF.device.type != "cpu":
            return _sums_there(rows_BF.double())
        if rows_BF.dtype is not torch.float64:
            named, total_F = self._sums_here(rows_BF.float())
            alike = named["samples"] * (1 + _NEAR * (named["samples"] - 1))
            if _is_safe(named["squares"] / rows_BF.numel()) and not named["cosines"] > alike:
                return {**named}, total_F
        named, total_F = self._sums_here(rows_BF.double())
        return {**named}, total_F

    def _sums_here(self, x_BF: Tensor) -> tuple[dict[str, float], Tensor]:
        """On a CPU; NumPy for what is short, because a call of it costs a third of torch's."""
        norm_B = torch.linalg.vector_norm(x_BF, dim=1).numpy().astype(np.float64)
        weight_2B, array_2B = self._weight(x_BF)
        with np.errstate(over="ignore", invalid="ignore"):
            np.divide(1.0, np.maximum(norm_B, _LEAST), out=array_2B[0], casting="same_kind")
            sum_2F = weight_2B @ x_BF
            cosine_F, total_F = sum_2F.numpy()
            named = {
                "squares": float(norm_B @ norm_B),
                "total": float(total_F.sum()),
                "cosines": float(cosine_F @ cosine_F),
                "samples": float(np.count_nonzero(norm_B)),
            }
        return named, sum_2F[1]

    def _weight(self, x_BF: Tensor) -> tuple[Tensor, Array]:
        """A matrix of two rows, the second one ones; the same memory at every call."""
        key = (x_BF.dtype, len(x_BF))
        if key not in self._weights:
            ones = x_BF.new_ones((2, len(x_BF)))
            self._weights[key] = ones, ones.numpy()
        return self._weights[key]


def _sums_there(x_BF: Tensor) -> tuple[dict[str, Number], Tensor]:
    """On an accelerator: nothing is looked at, and calls are not waited for."""
    norm_B = torch.linalg.vector_norm(x_BF, dim=1)
    inverse_B = norm_B.clamp_min(_LEAST).reciprocal()
    cosine_F, total_F = inverse_B @ x_BF, x_BF.sum(0)
    named: dict[str, Number] = {
        "squares": norm_B.dot(norm_B),
        "total": total_F.sum(),
        "cosines": cosine_F.dot(cosine_F),
        "samples": norm_B.count_nonzero(),
    }
    return named, total_F


def _ready(value: Tensor, named: dict[str, Number]) -> Sums:
    if value.device.type == "cpu":
        return Sums(value.numel(), {name: float(number) for name, number in named.items()})
    return Sums(value.numel(), named)


def _is_safe(mean_square: float) -> bool:
    return _SAFE[0] < mean_square < _SAFE[1]


def _scaled(value: Tensor, named: dict[str, Number]) -> Tensor:
    """``value``; in float64 divided by its largest number, which becomes ``named["scale"]``."""
    if value.dtype is not torch.float64:
        return value
    largest = value.abs().amax()
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    named["scale"] = scale
    return value / scale


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
        if flat.dtype is torch.float64 or _is_safe(float(squares) / len(flat)):
            return squares
        flat = flat.double()
        return flat.dot(flat)
    return torch.linalg.vector_norm(value, dtype=torch.float64).square()


def _saturated(rows: Tensor, limits: tuple[float, float], scale: Number | None) -> Number:
    """Fraction of elements beyond `EDGE` of the range around its middle."""
    middle, half = (limits[0] + limits[1]) / 2, (limits[1] - limits[0]) / 2
    rows = rows if scale is None else rows * scale
    rows = rows - middle if middle else rows
    return (rows.abs() > EDGE * half).count_nonzero() / rows.numel()


def _alive(size_F: Tensor, units: int, taken: Sample) -> tuple[Number, Tensor]:
    """How many units were met, and how many of them are not zero throughout.

    Args:
        size_F: 0 exactly for features that are zero throughout.
        units: the dim of the tensor along which units lie.
        taken: what ``size_F`` was summed over.
    """
    if len(taken.shape) < 2:
        return float(len(size_F)), size_F.count_nonzero()
    at = taken.dims.index(units) if units in taken.dims else len(taken.shape) - 1
    width, inner = taken.shape[at], math.prod(taken.shape[at + 1 :])
    if taken.stride == 1:
        return float(width), size_F.view(-1, width, inner).sum((0, 2)).count_nonzero()
    feature_F = torch.arange(math.prod(taken.shape), device=size_F.device)
    feature_F = feature_F.view(-1, taken.run)[:: taken.stride].reshape(-1)
    unit_F = (feature_F // inner) % width
    size_U = size_F.new_zeros(width).index_add_(0, unit_F, size_F)
    met_U = size_F.new_zeros(width).index_add_(0, unit_F, torch.ones_like(size_F))
    return met_U.count_nonzero(), size_U.count_nonzero()
