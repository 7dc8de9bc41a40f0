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
from ._figures import BLACK, BLUE, DASHES, GREEN, ORANGE, PINK, SKY, VERMILION, draw
from ._mean_field import Expected, expected_path
from ._result import Cell, Progress, Result, Table, portion, silent
from ._sandbox import sandbox

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (BLACK, ORANGE, VERMILION, GREEN, SKY, PINK, BLUE)
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}


@dataclass(frozen=True)
class Size:
    """Of the experiment.

    Args:
        width: units of every layer, n.
        batch: inputs.
        depth: layers.
        shown: layers that the table shows.
    """

    width: int = 512
    batch: int = 512
    depth: int = 100
    shown: tuple[int, ...] = (1, 10, 50, 100)


FULL = Size()


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
    start: Start, size: Size = FULL, *, seed: int = 0, progress: Progress = silent
) -> dict[str, Trajectory]:
    """Send N(0, 1) through the layers, once with each activation and the same weights."""
    x_BN = torch.randn(size.batch, size.width, generator=torch.Generator().manual_seed(seed))
    signals = dict.fromkeys(ACTIVATIONS, x_BN)
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ACTIVATIONS}
    for layer in range(size.depth):
        key = f"100-layers.{start.name}.{layer}"
        w_NN = torch.empty(size.width, size.width)
        b_N = torch.zeros(size.width)
        fill_(w_NN, start.weight, key=f"{key}.weight", seed=seed)
        if start.bias:
            fill_(b_N, start.bias, key=f"{key}.bias", seed=seed)
        for name, function in ACTIVATIONS.items():
            z_BN = torch.nn.functional.linear(signals[name], w_NN * start.gain(name), b_N)
            signals[name] = function(z_BN)
            seen[name].append(_observe(signals[name]))
        progress((layer + 1) / size.depth, f"{start.name}, layer {layer + 1}")
    return {name: Trajectory(*zip(*pairs, strict=True)) for name, pairs in seen.items()}


def _observe(x_BN: Tensor) -> tuple[float, float]:
    """(std over all elements, mean cosine over all pairs of rows), in float64."""
    x_BN = x_BN.double()
    rows_BN = x_BN / x_BN.norm(dim=1, keepdim=True)
    batch = len(x_BN)
    cosine = (rows_BN.sum(0).square().sum() - batch) / (batch * (batch - 1))
    return float(x_BN.std()), float(cosine)


def predict(start: Start, activation: str, size: Size = FULL) -> tuple[Expected, ...]:
    """The same by mean-field theory."""
    path = expected_path(
        activation,
        *start.sigmas(activation, size.width),
        depth=size.depth,
        width=size.width,
        orthogonal=isinstance(start.weight, Orthogonal),
    )
    return tuple(path)


@dataclass(frozen=True)
class Comparison:
    """One initializer, measured and predicted, by activation."""

    start: Start
    measured: Mapping[str, Trajectory]
    expected: Mapping[str, tuple[Expected, ...]]


def compare(
    size: Size = FULL, *, seed: int = 0, progress: Progress = silent
) -> tuple[Comparison, ...]:
    """Measure and predict all seven initializers."""
    known = starts(size.width)
    found = []
    with sandbox(seed, flush_denormal=False):
        for i, start in enumerate(known):
            part = portion(progress, i / len(known), (i + 1) / len(known))
            measured = measure(start, size, seed=seed, progress=part)
            expected = {name: predict(start, name, size) for name in ACTIVATIONS}
            found.append(Comparison(start, measured, expected))
    return tuple(found)


def run(*, out: Path, seed: int = 0, progress: Progress = silent, size: Size = FULL) -> Result:
    """A table for each activation, and the figure."""
    found = compare(size, seed=seed, progress=portion(progress, 0.0, 0.96))
    progress(0.96, "drawing")
    figures, notes = draw("100-layers", out, (10.0, 6.6), lambda figure: _paint(figure, found))
    return Result(
        "100-layers",
        _summary(found),
        tuple(_table(activation, found, size.shown) for activation in ACTIVATIONS),
        figures,
        (
            (
                "Theory: q' = sigma_w^2 E f(sqrt(q) z)^2 + sigma_b^2, and c' = (sigma_w^2 E f(u) f(v) + "
                "sigma_b^2)/q' for the similarity (Poole et al. 2016; Schoenholz et al. 2017)."
            ),
            (
                f'"off by" counts standard errors of finite width between the std at the last layer and the '
                "theory: with ReLU the log of E f^2 wanders as 5 L/n, so a factor of "
                f"{math.exp(math.sqrt(5 * size.depth / size.width) / 2):.2f} in std is one of them."
            ),
            (
                "nan: the signal overflowed float32, which ends at 3.4e38. Denormals are kept here, so the "
                "last layers of a vanishing signal can be seen."
            ),
            (
                f"n = {size.width} units, batch {size.batch} of N(0, 1), seed {seed}. Orthogonal has gain 1 for tanh, "
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


def _table(activation: str, found: tuple[Comparison, ...], shown: tuple[int, ...]) -> Table:
    return Table(
        f"{activation}: std of the activations, and similarity of two inputs at the last layer",
        ("initializer", *(f"layer {i}" for i in shown), "similarity", "off by"),
        tuple(row for c in found for row in _rows(c, activation, shown)),
        {"similarity": ".4f", "off by": "+.1f"},
    )


def _rows(c: Comparison, activation: str, shown: tuple[int, ...]) -> tuple[tuple[Cell, ...], ...]:
    """What was measured, and under it the theory."""
    measured, expected = c.measured[activation], c.expected[activation]
    last = measured.stds[-1]
    off = expected[-1].standard_errors(last) if math.isfinite(last) else None
    return (
        (c.start.name, *(measured.stds[i - 1] for i in shown), measured.cosines[-1], off),
        ("  theory", *(expected[i - 1].std for i in shown), expected[-1].cosine, None),
    )


def _paint(figure: Figure, found: tuple[Comparison, ...]) -> None:
    grid = figure.subplots(2, len(ACTIVATIONS), sharex=True, sharey="row")
    figure.suptitle("100 layers: measured (dots) on mean-field theory (lines)", fontweight="bold")
    for axes, activation in zip(grid.T, ACTIVATIONS, strict=True):
        for i, c in enumerate(found):
            measured, expected = c.measured[activation], c.expected[activation]
            look = {
                "color": COLOURS[i],
                "label": c.start.name,
                "linestyle": DASHES[i % len(DASHES)],
            }
            _paint_path(axes[0], measured.stds, [e.std for e in expected], look)
            _paint_path(axes[1], measured.cosines, [e.cosine for e in expected], look)
        axes[0].set_yscale("log")
        axes[0].set_ylim(1e-8, 1e6)
        axes[0].set_title(activation)
        axes[1].set_ylim(-0.05, 1.08)
        axes[1].set_xlabel("layer")
    grid[0, 0].set_ylabel("std of activations")
    grid[1, 0].set_ylabel("similarity of two inputs\n(mean cosine)")
    for axis, height, text in (
        (grid[1, 0], 0.09, "all others: as different as they came in"),
        (grid[1, 1], 0.83, "all without biases: on one curve"),
    ):
        axis.text(0.55, height, text, ha="center", transform=axis.transAxes)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)


def _paint_path(
    axis: Axes, real: tuple[float, ...], theory: list[float], look: dict[str, Any]
) -> None:
    layers = range(1, len(theory) + 1)
    axis.plot(layers, theory, linewidth=1.2, **look)
    axis.plot(layers[4::8], real[4::8], "o", markersize=3.5, color=look["color"])
