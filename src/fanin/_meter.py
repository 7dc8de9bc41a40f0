"""From recorded ops to layers: keep each op's sums on its device, fetch all at once, finish them.

`error_bar` follows the finite-width law: over draws of weights, log(mean x^2) after a layer of
n units varies by (E x^4 / (E x^2)^2 - 1) / n on its own, and these variances add up along the
depth (Hanin & Nica 2020, arXiv 1812.05994: 5/n per ReLU layer, 2/n per linear one). B samples of
mean cosine c share the draws, so one layer adds 1/B + (1 - 1/B) c^2 of that.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ._measure import BOUNDED, KILLERS, Sums, backward_sums, forward_sums
from ._record import INPUT, Op
from ._report import Layer, Signal

_CHANNELS_FIRST = ("conv", "batch_norm", "group_norm", "max_pool", "avg_pool", "adaptive_")
_CHANNELS_LAST = frozenset(
    ("linear", "layer_norm", "rms_norm", "embedding", "lstm", "matmul", "softmax")
)
_WEIGHTS = frozenset(("linear", "embedding", "bilinear"))
_NORMS = frozenset(("layer_norm", "rms_norm", "group_norm", "batch_norm"))
_MIXERS = frozenset(("matmul", "scaled_dot_product_attention", "softmax", "lstm"))
_MASKS = frozenset(("masked_fill", "where"))
_MARGIN = 2.0**10  # above the least normal number: elements far below the rms count too


@dataclass(frozen=True, slots=True)
class Seen:
    """What the numbers of one op do not tell.

    Args:
        units: the dim of ``shape`` along which units lie.
        weighted: it is a product with parameters.
    """

    op: str
    module: str
    shape: tuple[int, ...]
    units: int
    sources: tuple[int, ...]
    weighted: bool

    @property
    def width(self) -> int:
        """Number of units."""
        return self.shape[self.units] if self.shape else 1


Reduced = tuple[Tensor, int]  # sums on their device, and over how many elements


class Meter:
    """Takes ops from a `Recorder`; its hooks take their gradients during the backward pass."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.outputs: dict[str, int] = {}
        self.dtypes: dict[torch.dtype, None] = {}
        self._forward: list[Reduced] = []
        self._grads: dict[int, Reduced] = {}

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers measured, the one with the shortest range."""
        return max(self.dtypes, key=lambda d: torch.finfo(d).tiny, default=torch.float32)

    def on_op(self, op: Op) -> None:
        """Measure one op's output now, and its gradient when it comes."""
        shape = tuple(op.value.shape)
        weighted = bool(op.params) and (op.op in _WEIGHTS or op.op.startswith("conv"))
        seen = Seen(op.op, op.module, shape, self._units(op), op.sources, weighted)
        self.seen.append(seen)
        self.dtypes[op.output.dtype] = None
        # Neither the recorder nor `preserved` need see the ops that measure.
        with torch._C._DisableTorchDispatch(), torch.no_grad():  # noqa: SLF001 - all modes at once
            self._forward.append(_measured(op, seen.units))
        if op.output.requires_grad:
            op.output.register_hook(self._hook(op.index))

    def on_output(self, name: str, index: int) -> None:
        """A module returned what op ``index`` made."""
        self.outputs[name] = index

    def _hook(self, index: int) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            if grad.layout is torch.strided and grad.numel():
                with torch._C._DisableTorchDispatch(), torch.no_grad():  # noqa: SLF001
                    self._grads[index] = backward_sums(grad)

        return hook

    def _units(self, op: Op) -> int:
        """The dim of the units: channels after a convolution, else features."""
        last = max(op.value.ndim - 1, 0)
        if op.op.startswith(_CHANNELS_FIRST):
            return min(1, last)
        if op.op in _CHANNELS_LAST:
            return last
        source = next((self.seen[s] for s in op.sources if s != INPUT), None)
        if source is not None and len(source.shape) == op.value.ndim:
            return source.units
        return 1 if op.value.ndim > 3 else last

    # afterwards ------------------------------------------------------------------------------

    def layers(self, scale: float) -> tuple[tuple[Layer, ...], int]:
        """One `Layer` per op, and how many figures left the dtype's range.

        Args:
            scale: the gradient was multiplied by it.
        """
        forward = [
            _Forward(Sums(*v), n)
            for v, (_, n) in zip(_fetched(v for v, _ in self._forward), self._forward, strict=True)
        ]
        fetched = _fetched(v for v, _ in self._grads.values())
        grads = {
            i: largest * math.sqrt(squares / n)
            for (i, (_, n)), (squares, largest) in zip(self._grads.items(), fetched, strict=True)
        }
        bars = error_bars(self.seen, [f.cosine for f in forward], [f.kurtosis for f in forward])
        layers = tuple(
            Layer(
                seen.module,
                seen.op,
                seen.shape,
                measured=replace(
                    f.signal, grad_rms=grads[i] / scale if i in grads else None, error_bar=bars[i]
                ),
            )
            for i, (seen, f) in enumerate(zip(self.seen, forward, strict=True))
        )
        return layers, _lost((f.rms for f in forward), self.dtype) + _lost(
            grads.values(), self.dtype
        )


@dataclass(frozen=True)
class _Forward:
    """One op's sums as numbers, over ``n`` elements."""

    sums: Sums
    n: int

    @property
    def count(self) -> float:
        """Elements that no mask took out."""
        return max(1.0, self.n - self.sums.masked)

    @property
    def rms(self) -> float:
        """sqrt(mean x^2)."""
        return self.sums.scale * math.sqrt(self.sums.squares / self.count)

    @property
    def cosine(self) -> float | None:
        """Mean over a != b of x_a . x_b / (|x_a| |x_b|) = (|sum_a x_a/|x_a||^2 - B) / (B (B - 1))."""
        b = self.sums.samples
        if b < 2 or math.isnan(self.sums.cosines):
            return None
        return min(1.0, max(-1.0, (self.sums.cosines - b) / (b * (b - 1))))

    @property
    def kurtosis(self) -> float:
        """E x^4 / (E x^2)^2."""
        return self.sums.fourths * self.count / self.sums.squares**2 if self.sums.squares else 0.0

    @property
    def signal(self) -> Signal:
        """Without gradient and error bar."""
        return Signal(
            act_rms=self.rms,
            act_mean=self.sums.scale * self.sums.total / self.count,
            correlation=self.cosine,
            dead=_known(self.sums.dead),
            saturated=_known(self.sums.saturated),
        )


def measured_alone(value: Tensor) -> Signal:
    """Rms, mean and correlation of one tensor that no op made."""
    with torch.no_grad():
        vector, n = forward_sums(value, "", max(value.ndim - 1, 0), None, kills=False)
    return _Forward(Sums(*vector.tolist()), n).signal


def _measured(op: Op, units: int) -> Reduced:
    if not op.value.numel():
        return torch.full((len(Sums._fields),), math.nan, dtype=torch.float64), 1
    by_bool = op.op == "mul" and any(getattr(a, "dtype", None) is torch.bool for a in op.args)
    # Attention adds its mask, -inf where nothing is to be seen, to the scores.
    added = op.op == "add" and len(op.sources) == 1 and not op.params
    return forward_sums(
        op.value,
        op.op,
        units,
        _limits(op),
        kills=by_bool or op.op in KILLERS,
        masks=added or op.op in _MASKS or op.aten == "baddbmm",
    )


def _limits(op: Op) -> tuple[float, float] | None:
    """Range of the function, if it is bounded."""
    if op.op == "hardtanh":
        low, high = (
            (*op.args[1:3], *op.kwargs.values(), -1.0, 1.0)[:2] if op.args[1:] else (-1.0, 1.0)
        )
        return float(low), float(high)
    return BOUNDED.get(op.op)


def _fetched(vectors: Iterable[Tensor]) -> list[list[float]]:
    """All vectors as numbers, with one transfer per device."""
    places: dict[torch.device, list[tuple[int, Tensor]]] = defaultdict(list)
    for i, vector in enumerate(vectors):
        places[vector.device].append((i, vector))
    numbers: dict[int, list[float]] = {}
    for found in places.values():
        rows = torch.stack([v for _, v in found]).tolist()
        numbers |= dict(zip((i for i, _ in found), rows, strict=True))
    return [numbers[i] for i in range(len(numbers))]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _lost(rms: Iterable[float], dtype: torch.dtype) -> int:
    """How many of ``rms`` the dtype cannot be trusted with.

    An exact zero counts if other numbers are so small that a product of two of them vanishes;
    else a zero weight made it.
    """
    tiny = torch.finfo(dtype).tiny
    least = tiny * (_MARGIN if tiny < 1e-30 else 1.0)
    known = list(rms)
    small = any(0 < v < math.sqrt(tiny) for v in known)
    return sum(not math.isfinite(v) or 0 < v < least or (v == 0 and small) for v in known)


def error_bars(
    seen: list[Seen], cosines: list[float | None], kurtosis: list[float]
) -> list[float | None]:
    """Relative standard error of each rms over draws of the weights: half of that of the mean square.

    Args:
        seen: the ops, in execution order.
        cosines: mean cosine between samples, per op.
        kurtosis: E x^4 / (E x^2)^2, per op.

    Returns:
        None from where products of signals make the law fail, until a norm resets it.
    """
    variances: list[float | None] = []
    before: list[float | None] = []  # the variance of a layer's input
    for i, op in enumerate(seen):
        sources = [s for s in op.sources if s != INPUT]
        known = [v for s in sources if (v := variances[s]) is not None]
        base = max(known, default=0.0) if len(known) == len(sources) else None
        samples = op.shape[0] if op.shape else 1
        cosine = cosines[i]
        shared = 1 / samples + (1 - 1 / samples) * (1.0 if cosine is None else cosine) ** 2
        fan = sources[0] if len(sources) == 1 else None
        before.append(base if op.weighted else None)
        if op.op in _NORMS:
            variances.append(0.0)
        elif base is None or (op.op in _MIXERS and not op.weighted):
            variances.append(None)
        elif op.weighted:
            variances.append(base + 2 * shared / op.width)
        elif fan is not None and seen[fan].weighted and seen[fan].shape == op.shape:
            variances.append((before[fan] or 0.0) + max(0.0, kurtosis[i] - 1) * shared / op.width)
        else:
            variances.append(base)
    return [None if v is None else math.sqrt(v) / 2 for v in variances]
