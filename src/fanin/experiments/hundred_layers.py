r"""A signal through 100 layers, under seven initializers, beside mean-field theory.

Layer l computes z = W f(z_before) + b with n units. For large n a pre-activation is normal with
variance q, and two inputs' pre-activations have correlation c, where (Poole et al. 2016;
Schoenholz et al. 2017, eqs. 2-5)

    q' = sigma_w^2 E f(sqrt(q) z)^2 + sigma_b^2,        sigma_w^2 = n Var(W_ij)
    c' = (sigma_w^2 E f(u) f(v) + sigma_b^2) / q',      u, v ~ N(0, q) with correlation c

from q = sigma_w^2 + sigma_b^2 at layer 1, whose inputs are N(0, 1). Legend: B batch, N units.

Sources of the initializers: Glorot & Bengio 2010 (uniform 1/sqrt(n), Xavier), He et al. 2015
(Kaiming), Saxe et al. 2014 (orthogonal).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._fans import Fan
from .._fill import fill_
from ..distributions import Distribution, Normal, Orthogonal, Uniform
from ..initializers import KaimingNormal, TorchDefault, XavierUniform
from ._figures import CYCLE, DASHES, draw
from ._mean_field import Expected, expected_path
from ._result import Cell, Progress, Result, Table, portion, silent
from ._sandbox import sandbox

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 512
BATCH = 512
DEPTH = 100
SHOWN = (1, 10, 50, 100)
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}


@dataclass(frozen=True)
class Start:
    """An initializer for one square layer.

    Args:
        name: for the tables.
        weight: what the weights are drawn from.
        bias: what the biases are drawn from; None for no bias.
        relu_gain: times the weights where ReLU follows, for the start that knows the activation.
    """

    name: str
    weight: Distribution
    bias: Distribution | None = None
    relu_gain: float = 1.0

    def gain(self, activation: str) -> float:
        """The factor on the weights."""
        return self.relu_gain if activation == "relu" else 1.0

    def sigmas(self, activation: str, width: int) -> tuple[float, float]:
        """(sigma_w^2, sigma_b^2): n times the weights' variance, and the biases' variance."""
        std = self.weight.std_for((width, width)) * self.gain(activation)
        return width * std**2, self.bias.std_for((width,)) ** 2 if self.bias else 0.0


def starts(width: int) -> tuple[Start, ...]:
    """The seven initializers, for layers of ``width`` x ``width``."""
    fan, bound = Fan(width, width), 1 / math.sqrt(width)
    return (
        Start("N(0, 1)", Normal(1.0)),
        Start("U(-1, 1)/sqrt(n)", Uniform(-bound, bound)),
        Start("PyTorch default", TorchDefault()(fan), bias=Uniform(-bound, bound)),
        Start("Xavier uniform", XavierUniform()(fan)),
        Start("Xavier x 5/3", XavierUniform()(fan).scaled(5 / 3)),
        Start("Kaiming normal", KaimingNormal("fan_in", "relu")(fan)),
        Start("orthogonal", Orthogonal(1.0), relu_gain=math.sqrt(2.0)),
    )


@dataclass(frozen=True)
class Trajectory:
    """Measured std of the activations and mean cosine between two inputs' activations, by layer."""

    stds: tuple[float, ...]
    cosines: tuple[float, ...]


def measure(
    start: Start,
    *,
    seed: int,
    progress: Progress,
    width: int = WIDTH,
    batch: int = BATCH,
    depth: int = DEPTH,
) -> dict[str, Trajectory]:
    """Send N(0, 1) through ``depth`` layers, once with each activation and the same weights."""
    x_BN = torch.randn(batch, width, generator=torch.Generator().manual_seed(seed))
    signals = dict.fromkeys(ACTIVATIONS, x_BN)
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ACTIVATIONS}
    for layer in range(depth):
        key = f"{start.name}.{layer}"
        w_NN = _weights(start, width, f"{key}.weight", seed)
        b_N = (
            fill_(torch.empty(width), start.bias, key=f"{key}.bias", seed=seed)
            if start.bias
            else None
        )
        for name, function in ACTIVATIONS.items():
            z_BN = torch.nn.functional.linear(signals[name], w_NN * start.gain(name), b_N)
            signals[name] = function(z_BN)
            seen[name].append(_observe(signals[name]))
        progress((layer + 1) / depth, f"{start.name}, layer {layer + 1}")
    return {name: Trajectory(*zip(*pairs, strict=True)) for name, pairs in seen.items()}


def _weights(start: Start, width: int, key: str, seed: int) -> Tensor:
    """Drawn by fanin's engine; orthogonal ones as the QR factor of its normals (Mezzadri 2007).

    ``fill_(w, Orthogonal())`` has the same law and, beyond that, the same bits on every machine,
    which takes a second for each of the hundred matrices; QR takes a fiftieth of that.
    """
    if not isinstance(start.weight, Orthogonal):
        return fill_(torch.empty(width, width), start.weight, key=key, seed=seed)
    z = fill_(torch.empty(width, width, dtype=torch.float64), Normal(1.0), key=key, seed=seed)
    q, r = torch.linalg.qr(z)
    return (start.weight.gain * q * r.diagonal().sign()).float()


def _observe(x_BN: Tensor) -> tuple[float, float]:
    """(std over all elements, mean cosine over all pairs of rows), in float64."""
    x_BN = x_BN.double()
    rows_BN = x_BN / x_BN.norm(dim=1, keepdim=True)
    batch = len(x_BN)
    cosine = (rows_BN.sum(0).square().sum() - batch) / (batch * (batch - 1))
    return float(x_BN.std()), float(cosine)


def predict(
    start: Start, activation: str, *, width: int = WIDTH, depth: int = DEPTH
) -> tuple[Expected, ...]:
    """The same by mean-field theory."""
    sigma_w2, sigma_b2 = start.sigmas(activation, width)
    orthogonal = isinstance(start.weight, Orthogonal)
    return tuple(
        expected_path(
            activation, sigma_w2, sigma_b2, depth=depth, width=width, orthogonal=orthogonal
        )
    )


@dataclass(frozen=True)
class Comparison:
    """One initializer, measured and predicted, by activation."""

    start: Start
    measured: Mapping[str, Trajectory]
    expected: Mapping[str, tuple[Expected, ...]]


def compare(*, seed: int, progress: Progress) -> tuple[Comparison, ...]:
    """Measure and predict all seven initializers."""
    known = starts(WIDTH)
    found = []
    with sandbox(seed, flush_denormal=False):
        for i, start in enumerate(known):
            part = portion(progress, i / len(known), (i + 1) / len(known))
            measured = measure(start, seed=seed, progress=part)
            found.append(
                Comparison(start, measured, {name: predict(start, name) for name in ACTIVATIONS})
            )
    return tuple(found)


def run(*, out: Path, seed: int = 0, progress: Progress = silent) -> Result:
    """A table for each activation, and the figure."""
    found = compare(seed=seed, progress=portion(progress, 0.0, 0.96))
    progress(0.96, "drawing")
    figures, notes = draw("100-layers", out, (10.0, 6.6), lambda figure: _paint(figure, found))
    return Result(
        "100-layers",
        _summary(found),
        tuple(_table(activation, found) for activation in ACTIVATIONS),
        figures,
        (
            (
                "Theory: q' = sigma_w^2 E f(sqrt(q) z)^2 + sigma_b^2, and c' = (sigma_w^2 E f(u) f(v) + "
                "sigma_b^2)/q' for the similarity (Poole et al. 2016; Schoenholz et al. 2017)."
            ),
            (
                f'"off by" counts standard errors of finite width between the std at layer {DEPTH} and the '
                "theory: with ReLU the log of E f^2 wanders as 5 L/n, so a factor of "
                f"{math.exp(math.sqrt(5 * DEPTH / WIDTH) / 2):.2f} in std is one of them."
            ),
            (
                "nan: the signal overflowed float32, which ends at 3.4e38. Denormals are kept here, so the "
                "last layers of a vanishing signal can be seen."
            ),
            (
                f"n = {WIDTH} units, batch {BATCH} of N(0, 1), seed {seed}. Orthogonal has gain 1 for tanh, "
                "sqrt(2) for ReLU; Kaiming has gain sqrt(2) for both."
            ),
            *notes,
        ),
    )


def _summary(found: tuple[Comparison, ...]) -> str:
    (default,) = [c.measured for c in found if c.start.name == "PyTorch default"]
    tanh, relu = default["tanh"], default["relu"]
    return (
        "PyTorch's default is the one to look at twice: its std settles at "
        f"{tanh.stds[-1]:.3f} (tanh) and {relu.stds[-1]:.3f} (ReLU) and looks healthy, because the bias "
        f"holds it up; but any two inputs end with similarity {tanh.cosines[-1]:.4f} and "
        f"{relu.cosines[-1]:.4f}: the network says the same about everything."
    )


def _table(activation: str, found: tuple[Comparison, ...]) -> Table:
    return Table(
        f"{activation}: std of the activations, and similarity of two inputs at layer {DEPTH}",
        ("initializer", *(f"layer {i}" for i in SHOWN), "similarity", "off by"),
        tuple(row for c in found for row in _rows(c, activation)),
        {"similarity": ".4f", "off by": "+.1f"},
    )


def _rows(c: Comparison, activation: str) -> tuple[tuple[Cell, ...], tuple[Cell, ...]]:
    """What was measured, and under it the theory."""
    measured, expected = c.measured[activation], c.expected[activation]
    last = measured.stds[-1]
    off = expected[-1].standard_errors(last) if math.isfinite(last) else None
    return (
        (c.start.name, *(measured.stds[i - 1] for i in SHOWN), measured.cosines[-1], off),
        ("  theory", *(expected[i - 1].std for i in SHOWN), expected[-1].cosine, None),
    )


def _paint(figure: Figure, found: tuple[Comparison, ...]) -> None:
    grid = figure.subplots(2, len(ACTIVATIONS), sharex=True, sharey="row")
    figure.suptitle("100 layers: measured (dots) on mean-field theory (lines)", fontweight="bold")
    for axes, activation in zip(grid.T, ACTIVATIONS, strict=True):
        for i, c in enumerate(found):
            measured, expected = c.measured[activation], c.expected[activation]
            look = {"color": CYCLE[i], "label": c.start.name, "linestyle": DASHES[i % len(DASHES)]}
            _paint_path(axes[0], measured.stds, [e.std for e in expected], look)
            _paint_path(axes[1], measured.cosines, [e.cosine for e in expected], look)
        axes[0].set_yscale("log")
        axes[0].set_ylim(1e-8, 1e6)
        axes[0].set_title(activation)
        axes[1].set_ylim(-0.05, 1.08)
        axes[1].set_xlabel("layer")
    grid[0, 0].set_ylabel("std of activations")
    grid[1, 0].set_ylabel("similarity of two inputs\n(mean cosine)")
    grid[1, 0].text(50, 0.04, "all others: as different as they came in", ha="center")
    grid[1, 1].text(50, 0.88, "all without biases: on one curve", ha="center")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)


def _paint_path(
    axis: Axes, real: tuple[float, ...], theory: list[float], look: dict[str, Any]
) -> None:
    layers = range(1, len(theory) + 1)
    axis.plot(layers, theory, linewidth=1.2, **look)
    axis.plot(layers[4::8], real[4::8], "o", markersize=3.5, color=look["color"])
