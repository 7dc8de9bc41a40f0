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
from typing import NamedTuple

import torch
from torch import Tensor

CAP = 2**16  # elements of one tensor that are looked at for the cosine
RUN = 64  # features taken together: a few cache lines
FEW = 2**11  # enough for a fourth moment that is needed to one digit
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
        kurtosis: E x^4 / (E x^2)^2, from a few elements.
    """

    op: str = ""
    units: int = 0
    range: tuple[float, float] | None = None
    dead: bool = False
    masked: bool = False
    kurtosis: bool = False


Number = Tensor | float  # a 0-dim tensor, where looking at it would mean to wait


class Sums(NamedTuple):
    """What one tensor of ``n`` elements tells.

    Args:
        named: ``squares``: sum x^2; ``total``: sum x; ``cosines``: |sum_b x_b/|x_b||^2;
            ``samples``: how many are not zero; ``scale``: what x was divided by before; and
            where wanted ``units`` met, ``alive`` ones among them, the fraction ``saturated``,
            elements ``masked``, and the ``seconds`` and ``fourths`` of a ``few`` elements.
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
    """Measures tensors one after the other, with as few kernels as will do."""

    def __init__(self) -> None:
        self._weights: dict[tuple[torch.device, torch.dtype, int], tuple[Tensor, Tensor]] = {}

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
        named, total_F = self._over_rows(taken.rows)
        if taken.rows.numel() < value.numel():
            named |= {"squares": _squares(value), "total": value.sum()}
        if wanted.dead:
            size_F = total_F if wanted.op in POSITIVE else taken.rows.abs().sum(0)
            extra["units"], extra["alive"] = _alive(size_F, wanted.units, taken)
        if wanted.range:
            extra["saturated"] = _saturated(taken.rows, wanted.range, extra.get("scale"))
        if wanted.kurtosis:
            flat = taken.rows.view(-1)
            few = flat[:: math.ceil(len(flat) / FEW)].double().square()
            extra |= {"few": float(len(few)), "seconds": few.sum(), "fourths": few.dot(few)}
        return _ready(value, named | extra)

    def backward(self, grad: Tensor) -> Sums:
        """The gradient's sum of squares."""
        named: dict[str, Number] = {}
        grad = _scaled(grad.detach(), named)
        named["squares"] = _squares(grad)
        return _ready(grad, named)

    def _over_rows(self, rows_BF: Tensor) -> tuple[dict[str, Number], Tensor]:
        """Sums over samples, and each feature's total; in float64, unless float32 can do it."""
        if rows_BF.device.type == "cpu" and rows_BF.dtype is not torch.float64:
            named, total_F = self._sums(rows_BF.float())
            squares, cosines, b = (float(named[n]) for n in ("squares", "cosines", "samples"))
            if _is_safe(squares / rows_BF.numel()) and not cosines > b + _NEAR * b * (b - 1):
                return named, total_F
        return self._sums(rows_BF.double())

    def _sums(self, x_BF: Tensor) -> tuple[dict[str, Number], Tensor]:
        norm_B = torch.linalg.vector_norm(x_BF, dim=1)
        weight_2B, inverse_B = self._weight(norm_B)
        cosine_F, total_F = (weight_2B @ x_BF).unbind()
        named: dict[str, Number] = {
            "squares": norm_B.dot(norm_B),
            "total": total_F.sum(),
            "cosines": cosine_F.dot(cosine_F),
            "samples": inverse_B.dot(norm_B),
        }
        return named, total_F

    def _weight(self, norm_B: Tensor) -> tuple[Tensor, Tensor]:
        """Rows 1/|x_b| and 1, and the first alone; the same memory at every call."""
        key = (norm_B.device, norm_B.dtype, len(norm_B))
        if key not in self._weights:
            weight_2B = norm_B.new_ones((2, len(norm_B)))
            self._weights[key] = weight_2B, weight_2B[0]
        weight_2B, inverse_B = self._weights[key]
        torch.clamp_min(norm_B, _LEAST, out=inverse_B).reciprocal_()
        return weight_2B, inverse_B


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


def _saturated(rows: Tensor, limits: tuple[float, float], scale: Number | None) -> Tensor:
    """Fraction of elements beyond `EDGE` of the range around its middle."""
    low, high = limits
    rows = rows if scale is None else rows * scale
    return ((rows - (low + high) / 2).abs_() > EDGE * (high - low) / 2).sum() / rows.numel()


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
