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
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ._activations import names, nonlinearity
from ._measure import Bench, Sums, Wanted
from ._quadrature import expectation
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
# Functions that give exact zeros; the first ones never give negative numbers.
_POSITIVE = frozenset(("relu", "relu6", "hardsigmoid"))
_KILLERS = _POSITIVE | {
    "threshold", "clamp", "maximum", "where", "hardswish", "hardshrink", "softshrink"
}  # fmt: skip
# Bounded functions and their range. relu6 has its floor at 0, where it is not saturated but off.
_RANGES = {
    "tanh": (-1.0, 1.0),
    "sigmoid": (0.0, 1.0),
    "softsign": (-1.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "erf": (-1.0, 1.0),
    "relu6": (-6.0, 6.0),
}
_MARGIN = 2.0**10  # above the least normal number: elements far below the rms count too


class Seen(NamedTuple):
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


class Meter:
    """Takes ops from a `Recorder`; its hooks take their gradients during the backward pass.

    Attributes:
        seen: one entry per op.
        outputs: FQN of a module -> the op that made what it returned last.
        dtypes: of the ops' outputs.
        edges: where gradients first appear on the signal's way: a backward pass to there reaches
            every op, and computes no gradient of a weight.
    """

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.outputs: dict[str, int] = {}
        self.dtypes: dict[torch.dtype, None] = {}
        self.edges: list[GradientEdge] = []
        self._bench = Bench()
        self._forward: list[Sums | None] = []
        self._grads: dict[int, Sums] = {}
        self._with_grad: set[int] = set()
        self._input: Sums | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers measured, the one with the shortest range."""
        return max(self.dtypes, key=lambda d: torch.finfo(d).tiny, default=torch.float32)

    def on_op(self, op: Op) -> None:
        """Measure one op's output now, and its gradient when it comes."""
        weighted = bool(op.params) and (op.op in _WEIGHTS or op.op.startswith("conv"))
        units = self._units(op)
        self.seen.append(Seen(op.op, op.module, tuple(op.value.shape), units, op.sources, weighted))
        self.dtypes[op.output.dtype] = None
        # Neither the recorder nor `preserved` need see the ops that measure.
        with torch._C._DisableTorchDispatch():  # noqa: SLF001 - both modes at once
            wanted = self._wanted(op, units)
            self._forward.append(
                self._bench.forward(op.value, wanted) if op.value.numel() else None
            )
        if op.output.requires_grad:
            op.output.register_hook(self._hook(op.index))
            self._with_grad.add(op.index)
            if op.op.startswith("embedding") or not self._with_grad.intersection(op.sources):
                self.edges.append(get_gradient_edge(op.output))

    def on_output(self, name: str, index: int) -> None:
        """A module returned what op ``index`` made."""
        self.outputs[name] = index

    def on_input(self, value: Tensor) -> None:
        """Measure what the model is given."""
        self._input = self._bench.forward(value, Wanted())

    def _hook(self, index: int) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            if grad.layout is torch.strided and grad.numel():
                with torch._C._DisableTorchDispatch():  # noqa: SLF001
                    self._grads[index] = self._bench.backward(grad)

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

    def _wanted(self, op: Op, units: int) -> Wanted:
        by_bool = op.op == "mul" and any(getattr(a, "dtype", None) is torch.bool for a in op.args)
        # Attention adds its mask, -inf where nothing is to be seen, to the scores.
        added = op.op == "add" and len(op.sources) == 1 and not op.params
        return Wanted(
            units if by_bool or op.op in _KILLERS else None,
            op.op in _POSITIVE,
            _range(op),
            added or op.op in _MASKS or op.aten == "baddbmm",
        )

    # afterwards ------------------------------------------------------------------------------

    def input(self) -> Signal | None:
        """What `on_input` got."""
        self._bench.finish()
        return None if self._input is None else _figures([self._input])[0].signal()

    def layers(self, scale: float) -> tuple[tuple[Layer, ...], int]:
        """One `Layer` per op, and how many figures left the dtype's range.

        Args:
            scale: the gradient was multiplied by it.
        """
        self._bench.finish()
        forward = _figures(self._forward)
        grads = {i: f.rms for i, f in zip(self._grads, _figures(self._grads.values()), strict=True)}
        bars = error_bars(self.seen, [f.cosine for f in forward], [f.rms for f in forward])
        layers = tuple(
            Layer(
                seen.module,
                seen.op,
                seen.shape,
                measured=f.signal(grads[i] / scale if i in grads else None, bars[i]),
            )
            for i, (seen, f) in enumerate(zip(self.seen, forward, strict=True))
        )
        return layers, _lost((f.rms for f in forward), self.dtype) + _lost(
            grads.values(), self.dtype
        )


@dataclass(frozen=True)
class _Figures:
    """The sums of one tensor as numbers; all NaN for an empty one."""

    n: float = 1.0
    m: float = 1.0
    squares: float = math.nan
    total: float = math.nan
    cosines: float = math.nan
    samples: float = 0.0
    scale: float = 1.0
    units: float | None = None
    alive: float = 0.0
    saturated: float | None = None
    masked: float = 0.0

    @property
    def count(self) -> float:
        """Elements that no mask took out."""
        return max(1.0, self.n - self.masked)

    @property
    def rms(self) -> float:
        """sqrt(mean x^2)."""
        return self.scale * math.sqrt(self.squares / self.count)

    @property
    def cosine(self) -> float | None:
        """Mean over a != b of x_a . x_b / (|x_a| |x_b|) = (|sum_a x_a/|x_a||^2 - B) / (B (B - 1))."""
        if math.isnan(self.cosines) or math.isnan(self.samples) or round(self.samples) < 2:
            return None
        b = round(self.samples)
        return min(1.0, max(-1.0, (self.cosines - b) / (b * (b - 1))))

    @property
    def dead(self) -> float | None:
        """Fraction of units that are zero throughout, where it was asked for."""
        return None if self.units is None else 1 - self.alive / self.units

    def signal(self, grad_rms: float | None = None, error_bar: float | None = None) -> Signal:
        """The record that the report keeps."""
        return Signal(
            act_rms=self.rms,
            act_mean=self.scale * self.total / self.m * self.n / self.count,
            correlation=self.cosine,
            grad_rms=grad_rms,
            dead=self.dead,
            saturated=self.saturated,
            error_bar=error_bar,
        )


def _figures(sums: Iterable[Sums | None]) -> list[_Figures]:
    """All sums as numbers; those still on a device with one transfer each."""
    found = list(sums)
    figures: list[dict[str, Any]] = [dict(s.named) if s else {} for s in found]
    places: dict[torch.device, list[tuple[int, str]]] = defaultdict(list)
    for i, named in enumerate(figures):
        for name, value in named.items():
            if type(value) is Tensor:
                places[value.device].append((i, name))
    for where in places.values():
        numbers = torch.stack([figures[i][name].double() for i, name in where]).tolist()
        for (i, name), number in zip(where, numbers, strict=True):
            figures[i][name] = number
    return [
        _Figures(s.n, s.m, **f) if s else _Figures() for s, f in zip(found, figures, strict=True)
    ]


def _range(op: Op) -> tuple[float, float] | None:
    """Range of the function, if it is bounded."""
    if op.op == "hardtanh":
        low, high = op.args[1:3] if len(op.args) > 2 else (-1.0, 1.0)
        return float(low), float(high)
    return _RANGES.get(op.op)


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


@lru_cache(maxsize=256)
def kurtosis(name: str, q: float) -> float | None:
    """E f(u)^4 / (E f(u)^2)^2 for u ~ N(0, q); None for a function that the core does not know.

    >>> kurtosis("relu", 1.0)
    6.0
    """
    if name not in names():
        return None
    f = nonlinearity(name)
    second = expectation(lambda u: f.f(u) ** 2, q, f.kinks)
    fourth = expectation(lambda u: f.f(u) ** 4, q, f.kinks)
    return None if f.gated else round(fourth / second**2, 6)


def error_bars(
    seen: list[Seen], cosines: list[float | None], rms: list[float]
) -> list[float | None]:
    """Relative standard error of each rms over draws of the weights: half that of the mean square.

    Args:
        seen: the ops, in execution order.
        cosines: mean cosine between samples, per op.
        rms: per op.

    Returns:
        None from where products of signals make the law fail, until a norm resets it.
    """
    variances: list[float | None] = []
    before: list[float | None] = []  # the variance of the input, at a layer with weights
    for op, cosine in zip(seen, cosines, strict=True):
        sources = [s for s in op.sources if s != INPUT]
        known = [v for s in sources if (v := variances[s]) is not None]
        base = max(known, default=0.0) if len(known) == len(sources) else None
        samples = max(1, op.shape[0]) if op.shape else 1
        shared = 1 / samples + (1 - 1 / samples) * (1.0 if cosine is None else cosine) ** 2
        before.append(base if op.weighted else None)
        if op.op in _NORMS:
            variances.append(0.0)
        elif base is None or (op.op in _MIXERS and not op.weighted):
            variances.append(None)
        elif op.weighted:
            variances.append(base + 2 * shared / op.width)
        else:
            start = before[sources[0]] if len(sources) == 1 else None
            tails = None if start is None else _tails(op.op, rms[sources[0]])
            own = None if start is None or tails is None else (tails - 1) * shared / op.width
            variances.append(base if start is None or own is None else start + own)
    return [None if v is None else math.sqrt(v) / 2 for v in variances]


def _tails(name: str, rms: float) -> float | None:
    """`kurtosis` at the nearest power of sqrt(2) to the mean square, which changes it little."""
    if not 1e-6 < rms < 1e6:
        rms = 1e-6 if rms < 1 else 1e6
    return kurtosis(name, 2.0 ** (round(4 * math.log2(rms)) / 2))
