r"""fan_in keeps the forward variance, fan_out the backward one; only square layers can have both.

A layer z = W relu(x) whose weights are independent with variance s^2 gives

    Var(z)  = fan_in  * s^2 * E relu(x)^2   = (fan_in  s^2 / 2) Var(x)
    Var(gx) = fan_out * s^2 * E relu'(x)^2 Var(gz) = (fan_out s^2 / 2) Var(gz)

so s^2 = 2/fan_in keeps the signal, s^2 = 2/fan_out keeps the gradient, and Glorot & Bengio's mean
of the two fans keeps neither exactly. Legend: B batch, I inputs, O outputs.

Source: Glorot & Bengio 2010, eqs. 5-12; He et al. 2015, eqs. 10 and 14.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .._fans import MODES, Fan
from .._fill import fill_
from .._layouts import fan_of
from ..initializers import VarianceScaling
from ._figures import BLUE, VERMILION, draw
from ._result import Progress, Result, Table, portion, silent
from ._sandbox import sandbox

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS = (256, 1024, 128, 512, 64)
SHOWN_MODES = MODES[:3]
BATCH = 512
GRID = 32  # pixels per side of the convolutions' input
CROP = 4  # pixels per side left out: at a border fewer terms are summed


@dataclass(frozen=True)
class Step:
    """One layer of the stack: how the variance changes, measured and as the fans say.

    Args:
        fan: of the layer.
        forward: Var(z)/Var(x), measured.
        backward: Var(gx)/Var(gz), measured.
        variance: of the weights.
    """

    fan: Fan
    forward: float
    backward: float
    variance: float

    @property
    def forward_theory(self) -> float:
        """fan_in s^2 / 2."""
        return self.fan.fan_in * self.variance / 2

    @property
    def backward_theory(self) -> float:
        """fan_out s^2 / 2."""
        return self.fan.fan_out * self.variance / 2


def stack(
    mode: str, *, seed: int, widths: tuple[int, ...] = WIDTHS, batch: int = BATCH
) -> tuple[Step, ...]:
    """Send N(0, 1) forward through ReLU layers with variance 2/fan, and N(0, 1) back."""
    generator = torch.Generator().manual_seed(seed)
    initializer = VarianceScaling(2.0, mode, "normal")
    fans = [Fan(i, o) for i, o in pairwise(widths)]
    weights = [
        fill_(torch.empty(o, i), initializer(fan), key=f"fan-modes.{layer}.weight", seed=seed)
        for layer, (fan, (i, o)) in enumerate(zip(fans, pairwise(widths), strict=True))
    ]
    signals = [torch.randn(batch, widths[0], generator=generator)]
    for w_OI in weights:
        signals.append(signals[-1].relu() @ w_OI.T)
    gradients = [torch.randn(batch, widths[-1], generator=generator)]
    for w_OI, x_BI in zip(reversed(weights), reversed(signals[:-1]), strict=True):
        gradients.insert(0, (gradients[0] @ w_OI) * (x_BI > 0))
    return tuple(
        Step(fan, _ratio(z, x), _ratio(gx, gz), 2.0 / fan.by_mode(mode))
        for fan, (x, z), (gx, gz) in zip(fans, pairwise(signals), pairwise(gradients), strict=True)
    )


@dataclass(frozen=True)
class Kernel:
    """A layer with a stride, groups or a transpose, under one convention of counting its fans.

    Args:
        name: as PyTorch writes it.
        convention: ``exact`` or ``torch``.
        fan: by that convention.
        forward: Var(y)/Var(x) with weights of variance 1/fan_in, measured away from borders.
        backward: Var(gx)/Var(gy) with weights of variance 1/fan_out.
    """

    name: str
    convention: str
    fan: Fan
    forward: float
    backward: float


KERNELS: tuple[tuple[str, Callable[[], nn.Module]], ...] = (
    ("Conv2d(32, 64, 3)", lambda: nn.Conv2d(32, 64, 3, padding=1, bias=False)),
    ("Conv2d(32, 64, 4, stride=2)", lambda: nn.Conv2d(32, 64, 4, stride=2, padding=1, bias=False)),
    ("Conv2d(64, 64, 3, groups=8)", lambda: nn.Conv2d(64, 64, 3, padding=1, groups=8, bias=False)),
    (
        "ConvTranspose2d(64, 32, 4, stride=2)",
        lambda: nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1, bias=False),
    ),
)


def kernel(
    name: str, make: Callable[[], nn.Module], convention: str, *, seed: int, batch: int = 8
) -> Kernel:
    """Measure one layer under one convention: forward with fan_in, backward with fan_out."""
    module = make()
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    fan = fan_of(module, convention=convention)
    assert isinstance(fan, Fan)
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, _channels(module), GRID, GRID)
    ratios = []
    for mode in ("fan_in", "fan_out"):
        with torch.no_grad():
            fill_(
                weight,
                VarianceScaling(1.0, mode, "normal")(fan),
                key=f"fan-modes.{name}",
                seed=seed,
            )
        x = torch.randn(shape, generator=generator, requires_grad=True)
        y = module(x)
        g = torch.randn(y.shape, generator=generator)
        (gx,) = torch.autograd.grad(y, x, g)
        ratios.append((_ratio(_inside(y), x), _ratio(_inside(gx), g)))
    return Kernel(name, convention, fan, ratios[0][0], ratios[1][1])


def _channels(module: nn.Module) -> int:
    channels = module.in_channels
    assert isinstance(channels, int)
    return channels


def _inside(x: Tensor) -> Tensor:
    return x[..., CROP:-CROP, CROP:-CROP]


def _ratio(numerator: Tensor, denominator: Tensor) -> float:
    """Of second moments, in float64."""
    top, bottom = (t.detach().double().square().mean() for t in (numerator, denominator))
    return float(top / bottom)


def run(*, out: Path, seed: int = 0, progress: Progress = silent) -> Result:
    """Both tables and the figure."""
    with sandbox(seed, flush_denormal=False):
        stacks = {}
        for i, mode in enumerate(SHOWN_MODES):
            progress(i / 6, f"a ReLU stack with {mode}")
            stacks[mode] = stack(mode, seed=seed)
        kernels = list(_kernels(seed, portion(progress, 0.5, 0.9)))
    progress(0.9, "drawing")
    figures, notes = draw("fan-modes", out, (9.0, 3.6), lambda figure: _paint(figure, stacks))
    return Result(
        "fan-modes",
        _summary(stacks, kernels),
        (_stack_table(stacks), _kernel_table(kernels)),
        figures,
        (
            (
                "Formulas: Var(z) = fan_in s^2/2 Var(x) and Var(gx) = fan_out s^2/2 Var(gz) through a ReLU "
                "(Glorot & Bengio 2010 eqs. 5-12; He et al. 2015 eqs. 10, 14)."
            ),
            (
                "Exact fans count the terms that a unit really sums: a transposed convolution sums "
                "C_in k^2/stride^2 of them, and its weight has the axes swapped."
            ),
            f"Seed {seed}, batch {BATCH} of N(0, 1); convolutions measured {CROP} pixels away from borders.",
            *notes,
        ),
    )


def _kernels(seed: int, progress: Progress) -> Iterable[Kernel]:
    cases = [(name, make, c) for name, make in KERNELS for c in ("exact", "torch")]
    for i, (name, make, convention) in enumerate(cases):
        progress(i / len(cases), f"{name}, {convention} fans")
        yield kernel(name, make, convention, seed=seed)


def _summary(stacks: dict[str, tuple[Step, ...]], kernels: list[Kernel]) -> str:
    forward, backward = (_total(stacks[m]) for m in ("fan_in", "fan_out"))
    wrong = max((k for k in kernels if k.convention == "torch"), key=lambda k: abs(k.forward - 1))
    return (
        f"Through {len(WIDTHS) - 1} ReLU layers of widths {' -> '.join(map(str, WIDTHS))}, fan_in changes the "
        f"signal's variance by x{forward[0]:.2f} and the gradient's by x{forward[1]:.2f}; fan_out by "
        f"x{backward[0]:.2f} and x{backward[1]:.2f}. With the exact fans every convolution gives 1; with "
        f"the fans torch.nn.init reads off the shape, {wrong.name} gives {wrong.forward:.2f}."
    )


def _total(steps: tuple[Step, ...]) -> tuple[float, float]:
    forward = backward = 1.0
    for step in steps:
        forward, backward = forward * step.forward, backward * step.backward
    return forward, backward


def _stack_table(stacks: dict[str, tuple[Step, ...]]) -> Table:
    return Table(
        "ReLU layers, weights N(0, 2/fan): change of variance per layer",
        ("mode", "fan_in", "fan_out", "Var z/Var x", "theory", "Var gx/Var gz", "theory"),
        tuple(
            (
                mode,
                int(s.fan.fan_in),
                int(s.fan.fan_out),
                s.forward,
                s.forward_theory,
                s.backward,
                s.backward_theory,
            )
            for mode, steps in stacks.items()
            for s in steps
        ),
    )


def _kernel_table(kernels: list[Kernel]) -> Table:
    return Table(
        "Convolutions: Var y/Var x under 1/fan_in, Var gx/Var gy under 1/fan_out",
        ("layer", "fans", "fan_in", "fan_out", "y/x", "gx/gy"),
        tuple(
            (k.name, k.convention, int(k.fan.fan_in), int(k.fan.fan_out), k.forward, k.backward)
            for k in kernels
        ),
    )


def _paint(figure: Figure, stacks: dict[str, tuple[Step, ...]]) -> None:
    """Variance relative to where the signal (forward) or the gradient (backward) enters."""
    axes = figure.subplots(1, len(stacks), sharey=True)
    figure.suptitle("fan_in keeps the signal, fan_out keeps the gradient", fontweight="bold")
    for axis, (mode, steps) in zip(axes, stacks.items(), strict=True):
        for name, colour, marker, dash, real, theory in _lines(steps):
            axis.plot(real, marker, color=colour, markersize=7, label=f"{name}, measured")
            axis.plot(theory, dash, color=colour, label=f"{name}, theory")
        axis.set_yscale("log", base=2)
        axis.set_xticks(range(len(WIDTHS)), [str(w) for w in WIDTHS])
        axis.set_xlabel("width of each layer, input to output")
        axis.set_title(f"variance 2/{mode}")
    axes[0].set_ylabel("variance, relative to\nwhere it enters")
    axes[0].legend(loc="best")


def _lines(steps: tuple[Step, ...]) -> list[tuple[str, str, str, str, list[float], list[float]]]:
    back = steps[::-1]
    return [
        (
            "signal",
            BLUE,
            "o",
            "-",
            _run(s.forward for s in steps),
            _run(s.forward_theory for s in steps),
        ),
        (
            "gradient",
            VERMILION,
            "s",
            "--",
            _run(s.backward for s in back)[::-1],
            _run(s.backward_theory for s in back)[::-1],
        ),
    ]


def _run(ratios: Iterable[float]) -> list[float]:
    """Running product, from 1."""
    totals = [1.0]
    for ratio in ratios:
        totals.append(totals[-1] * ratio)
    return totals
