"""Statistics of many tensors, true over the whole range of float64.

Axes: K tensors of one shape, B samples (dim 0), F features (all other dims), U units (channels,
else the last dim).

A sum of squares of float32 numbers underflows in float32 from 1e-23 on and overflows from 1e19 on,
and float32 cannot tell a cosine of 1 - 1e-8 from 1, so sums are taken in float64. On a CPU float32
is five times faster and looking at a result is free: there float64 is used where the float32
result says that it must be. Sums of float64 numbers, which underflow from 1e-162 on, are taken of
x over its largest number.

The rms comes from all elements; the mean, the cosine between samples and the fractions of dead and
saturated elements from at most about `CAP`: short runs of neighbouring features at a constant
stride that shares no factor with their number, so that all channels and positions have their turn.
These are copied, and measured several tensors at a time: twenty short calls cost more than the
arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

CAP = 2**16  # elements of one tensor that are copied
SLAB = 2**18  # elements that are measured at a time
MOST = 32  # slabs at a time
RUN = 64  # features taken together: a few cache lines
_SAFE = (1e-30, 1e30)  # mean squares that float32 sums hold with all their digits
_NEAR = 0.999  # up to this cosine float32's error of 1e-7 is of no account
# A norm of 0 counts as this, so that 0/0 is 0.
_LEAST = {torch.float32: 1e-37, torch.float64: 1e-300}
EDGE = 0.97  # saturated: beyond this of the half range, from the middle


class Wanted(NamedTuple):
    """What to measure beside rms, mean and cosine.

    Args:
        units: the dim along which units lie, to count those that are zero throughout; else None.
        positive: no element is negative.
        range: of a bounded function.
        masked: -inf means that an element takes no part.
    """

    units: int | None = None
    positive: bool = False
    range: tuple[float, float] | None = None
    masked: bool = False


Number = Tensor | float  # a 0-dim tensor, where looking at it would mean to wait


@dataclass(slots=True)
class Sums:
    """What one tensor tells.

    Args:
        n: its elements.
        m: those that were copied.
        named: ``squares``: sum x^2 over all n; ``total``: sum x over m; ``cosines``:
            |sum_b x_b/|x_b||^2; ``samples``: how many are not zero; where wanted, ``units`` met
            and ``alive`` ones among them, the fraction ``saturated``, and how many of n are
            ``masked``; ``scale``: what x was divided by before.
    """

    n: int
    m: int
    named: dict[str, Number] = field(default_factory=dict)


class Layout(NamedTuple):
    """How a tensor lies in a row of B x F numbers.

    Args:
        run: features in a run.
        stride: in runs; 1 if all are taken.
        shape: the features' dims in memory order.
        dims: which dims of the tensor those are.
    """

    run: int
    stride: int
    shape: tuple[int, ...]
    dims: tuple[int, ...]


def sample(value: Tensor) -> tuple[Tensor, Layout]:
    """``value`` as B x F with at most about `CAP` elements, a view where torch can give one."""
    if value.ndim == 0:
        value = value.view(1, 1)
    dims = tuple(range(1, value.ndim))
    if not value.is_contiguous():
        dims = tuple(sorted(dims, key=lambda d: -value.stride()[d]))
        value = value.permute(0, *dims)
    shape, rows = tuple(value.shape[1:]), value.reshape(value.shape[0], -1)
    if rows.numel() <= CAP:
        return rows, Layout(1, 1, shape, dims)
    if rows.shape[0] > CAP // 8:
        rows = rows[:: math.ceil(rows.shape[0] * 8 / CAP)]
    run = math.gcd(rows.shape[1], RUN)
    runs = rows.shape[1] // run
    stride = math.ceil(rows.numel() / CAP)
    while math.gcd(stride, runs) > 1:
        stride += 1
    return rows.unflatten(1, (runs, run))[:, ::stride], Layout(run, stride, shape, dims)


@dataclass(slots=True)
class _Slab:
    """Memory for K tensors that are measured alike, and what is known of those in it."""

    memory: Tensor
    layout: Layout
    wanted: Wanted
    sums: list[Sums] = field(default_factory=list)


class Bench:
    """Collects tensors and measures them a slab at a time."""

    def __init__(self) -> None:
        self._slabs: dict[tuple[object, ...], _Slab] = {}
        self._waiting: list[tuple[list[str], Tensor, list[Sums]]] = []

    def forward(self, value: Tensor, wanted: Wanted) -> Sums:
        """Take an op's output; what comes back is complete after `finish`.

        Args:
            value: samples along dim 0, not empty.
            wanted: what to look for.
        """
        value = value.detach()
        named: dict[str, Number] = {}
        if wanted.masked:
            hidden = value == -math.inf
            value, named["masked"] = value.masked_fill(hidden, 0.0), _seen(hidden.sum())
        if value.dtype is torch.float64:
            if wanted.range:
                named["saturated"] = _seen(_saturated(value.view(1, 1, -1), wanted.range)[0])
            value, wanted = _scaled(value, named), wanted._replace(range=None)
        rows, layout = sample(value)
        if layout.stride > 1:
            named["squares"] = _squares(value)
        sums = Sums(value.numel(), rows.numel(), named)
        slab = self._slab(rows, layout, wanted)
        slab.memory[len(slab.sums)].view_as(rows).copy_(rows)
        slab.sums.append(sums)
        if len(slab.sums) == len(slab.memory):
            self._measure(slab)
        return sums

    def backward(self, grad: Tensor) -> Sums:
        """The gradient's sum of squares."""
        named: dict[str, Number] = {}
        grad = grad.detach()
        if grad.dtype is torch.float64:
            grad = _scaled(grad, named)
        named["squares"] = _squares(grad)
        return Sums(grad.numel(), grad.numel(), named)

    def finish(self) -> None:
        """Measure what is left, and complete all `Sums` handed out, with one wait per device."""
        for slab in self._slabs.values():
            self._measure(slab)
        for names, columns, sums in self._waiting:
            for column, one in zip(columns.T.tolist(), sums, strict=True):
                one.named = {**dict(zip(names, column, strict=True)), **one.named}
        self._waiting.clear()

    def _slab(self, rows: Tensor, layout: Layout, wanted: Wanted) -> _Slab:
        wide = rows.dtype is torch.float64 or rows.device.type != "cpu"
        key = (rows.device, wide, rows.shape, layout, wanted)
        slab = self._slabs.get(key)
        if slab is None and len(self._slabs) == MOST:
            for full in self._slabs.values():
                self._measure(full)
            self._slabs.clear()
        if slab is None:
            shape = (max(1, SLAB // rows.numel()), len(rows), rows.numel() // len(rows))
            dtype = torch.float64 if wide else torch.float32
            slab = _Slab(torch.empty(shape, dtype=dtype, device=rows.device), layout, wanted)
            self._slabs[key] = slab
        return slab

    def _measure(self, slab: _Slab) -> None:
        if not slab.sums:
            return
        x_KBF, sums = slab.memory[: len(slab.sums)], slab.sums
        names, columns = _columns(x_KBF, slab)
        if x_KBF.dtype is torch.float32:
            size = x_KBF[0].numel()
            for i, (squares, _, cosines, b, *_) in enumerate(columns.T.tolist()):
                alike = cosines > b + _NEAR * b * (b - 1)
                if alike or not _SAFE[0] < squares / size < _SAFE[1]:
                    columns[:, i] = _columns(x_KBF[i : i + 1].double(), slab)[1][:, 0]
        self._waiting.append((names, columns, sums))
        slab.sums = []


def _columns(x_KBF: Tensor, slab: _Slab) -> tuple[list[str], Tensor]:
    """The sums of K tensors, a column each, and the rows' names."""
    norm_KB = torch.linalg.vector_norm(x_KBF, dim=2)
    weight_K2B = torch.stack(
        (norm_KB.clamp_min(_LEAST[norm_KB.dtype]).reciprocal(), torch.ones_like(norm_KB)), 1
    )
    cosine_KF, total_KF = torch.bmm(weight_K2B, x_KBF).unbind(1)
    rows = {
        "squares": norm_KB.double().square().sum(1),
        "total": total_KF.sum(1),
        "cosines": cosine_KF.square().sum(1),
        "samples": norm_KB.count_nonzero(1),
    }
    if slab.wanted.units is not None:
        size_KF = total_KF if slab.wanted.positive else x_KBF.abs().sum(1)
        rows["units"], rows["alive"] = _alive(size_KF, slab.wanted.units, slab.layout)
    if slab.wanted.range:
        rows["saturated"] = _saturated(x_KBF, slab.wanted.range)
    return list(rows), torch.stack([row.double() for row in rows.values()])


def _saturated(x_KBF: Tensor, limits: tuple[float, float]) -> Tensor:
    """Fraction of elements beyond `EDGE` of the range around its middle."""
    middle, half = (limits[0] + limits[1]) / 2, (limits[1] - limits[0]) / 2
    beyond_KBF = (x_KBF - middle if middle else x_KBF).abs() > EDGE * half
    return beyond_KBF.count_nonzero((1, 2)) / x_KBF[0].numel()


def _alive(size_KF: Tensor, units: int, layout: Layout) -> tuple[Tensor, Tensor]:
    """How many units were met, and how many of them are not zero throughout.

    Args:
        size_KF: 0 exactly for features that are zero throughout.
        units: the dim of the tensor along which units lie.
        layout: of the tensor.
    """
    at = layout.dims.index(units) if units in layout.dims else len(layout.shape) - 1
    if len(layout.shape) < 2:
        met, size_KU = size_KF.shape[1], size_KF
    elif layout.stride == 1:
        met, inner = layout.shape[at], math.prod(layout.shape[at + 1 :])
        size_KU = size_KF.unflatten(1, (-1, met, inner)).sum((1, 3))
    else:
        inner = math.prod(layout.shape[at + 1 :])
        feature_F = torch.arange(math.prod(layout.shape), device=size_KF.device)
        feature_F = feature_F.view(-1, layout.run)[:: layout.stride].reshape(-1)
        unit_F = (feature_F // inner) % layout.shape[at]
        met = len(unit_F.unique())
        size_KU = size_KF.new_zeros((len(size_KF), layout.shape[at])).index_add_(1, unit_F, size_KF)
    alive_K = size_KU.count_nonzero(1)
    return torch.full_like(alive_K, met), alive_K


def _scaled(value: Tensor, named: dict[str, Number]) -> Tensor:
    """``value`` over its largest number, which becomes ``named["scale"]``."""
    largest = value.abs().amax()
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    named["scale"] = _seen(scale)
    return value / scale


def _squares(value: Tensor) -> Number:
    """Sum x^2."""
    if value.device.type != "cpu":
        return torch.linalg.vector_norm(value, dtype=torch.float64).square()
    if not value.is_contiguous():
        value = value.permute(sorted(range(value.ndim), key=lambda d: -value.stride()[d]))
    flat = value.reshape(-1)
    flat = flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
    squares = float(flat.dot(flat))
    if flat.dtype is torch.float64 or _SAFE[0] < squares / len(flat) < _SAFE[1]:
        return squares
    flat = flat.double()
    return float(flat.dot(flat))


def _seen(number: Tensor) -> Number:
    """As a number, where that costs no waiting."""
    return float(number) if number.device.type == "cpu" else number
