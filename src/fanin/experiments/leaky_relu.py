r"""LeakyReLU under kaiming_uniform: whatever the slope, the second moment stays 1.

f(u) = u for u > 0, a u below. For u ~ N(0, q):

    E f(u)   = (1 - a) sqrt(q / (2 pi))
    E f(u)^2 = q (1 + a^2) / 2

so weights uniform on +-bound with bound = sqrt(3 / fan_in) gain and gain = sqrt(2 / (1 + a^2))
give E f^2 = 1 from E x^2 = 1, layer after layer. torch.nn.Linear draws its weights with a = sqrt(5),
gain 1/sqrt(3): right for no activation that follows it.

Source: He et al. 2015, eqs. 10 and 15. Legend: B batch, O units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from .._fans import Fan
from .._fill import fill_
from .._tables import sparkline
from ..distributions import Uniform
from ..initializers import KaimingUniform
from ._figures import BLUE, GREEN, VERMILION, draw
from ._result import Progress, Result, Table, silent
from ._sandbox import sandbox

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SLOPES = (0.0, 0.01, 0.2, 1.0, math.sqrt(5.0))
WIDTH = 512
BATCH = 512
DEPTH = 10
BINS = 24  # characters of a histogram in the table
REACH = 3.0  # histograms span +-REACH


@dataclass(frozen=True)
class Case:
    """One slope, followed through the layers.

    Args:
        slope: a.
        bound: of the uniform weights.
        weights: of the first layer, flattened.
        weight_std: measured over the first layer's weights.
        activations: of the first layer, flattened.
        second_moments: E f^2 after each layer, measured.
    """

    slope: float
    bound: float
    weights: Tensor
    activations: Tensor
    second_moments: tuple[float, ...]

    @property
    def gain(self) -> float:
        """sqrt(2 / (1 + a^2))."""
        return math.sqrt(2 / (1 + self.slope**2))

    @property
    def q(self) -> float:
        """E u^2 before the first activation: gain^2 E x^2, with E x^2 = 1."""
        return self.gain**2

    @property
    def mean_theory(self) -> float:
        """(1 - a) sqrt(q / (2 pi))."""
        return (1 - self.slope) * math.sqrt(self.q / (2 * math.pi))

    @property
    def second_theory(self) -> float:
        """The formula q (1 + a^2) / 2."""
        return self.q * (1 + self.slope**2) / 2


def measure(
    slope: float, *, seed: int, width: int = WIDTH, batch: int = BATCH, depth: int = DEPTH
) -> Case:
    """Send N(0, 1) through ``depth`` square layers with kaiming_uniform's weights."""
    initializer = KaimingUniform("fan_in", "leaky_relu", slope)
    distribution = initializer(Fan(width, width))
    assert isinstance(distribution, Uniform)
    x_BO = torch.randn(batch, width, generator=torch.Generator().manual_seed(seed))
    first_weights = first_activations = x_BO
    seconds = []
    for layer in range(depth):
        w_OO = fill_(
            torch.empty(width, width), distribution, key=f"leaky-relu.{layer}.weight", seed=seed
        )
        x_BO = leaky_relu(x_BO @ w_OO.T, slope)
        seconds.append(float(x_BO.double().square().mean()))
        if layer == 0:
            first_weights, first_activations = w_OO, x_BO
    return Case(
        slope,
        distribution.high,
        first_weights.flatten(),
        first_activations.flatten(),
        tuple(seconds),
    )


def density(case: Case, at: Tensor) -> Tensor:
    """Of f(u), u ~ N(0, q), away from 0 (a slope of 0 piles half of the units up there)."""
    std = math.sqrt(case.q)
    scale = torch.where(at > 0, 1.0, case.slope) * std
    normal = torch.exp(-0.5 * (at / scale) ** 2) / (scale * math.sqrt(2 * math.pi))
    return torch.where(scale > 0, normal, 0.0)


def run(*, out: Path, seed: int = 0, progress: Progress = silent, width: int = WIDTH) -> Result:
    """The table of moments, histograms in text, and the figure."""
    cases = []
    with sandbox(seed, flush_denormal=False):
        for i, slope in enumerate(SLOPES):
            progress(0.9 * i / len(SLOPES), f"slope {slope:.3g}")
            cases.append(measure(slope, seed=seed, width=width))
        progress(0.9, "drawing")
        figures, notes = draw("leaky-relu", out, (10.0, 4.6), lambda figure: _paint(figure, cases))
        tables = (_moments_table(cases), _histogram_table(cases))
    last = [case.second_moments[-1] for case in cases]
    return Result(
        "leaky-relu",
        f"With gain sqrt(2/(1 + a^2)) the second moment of LeakyReLU stays near 1 whatever the slope: "
        f"after {DEPTH} layers it is between {min(last):.2f} and {max(last):.2f}. The mean does not vanish "
        "unless a = 1, which is why the second moment, not the variance, has to be kept.",
        tables,
        figures,
        (
            (
                "Formulas: bound = gain sqrt(3/fan_in), gain = sqrt(2/(1 + a^2)); E f = (1 - a) sqrt(q/2pi), "
                "E f^2 = q (1 + a^2)/2 (He et al. 2015 eqs. 10, 15)."
            ),
            (
                "Slope 2.24 = sqrt(5) is what torch.nn.Linear passes to kaiming_uniform_, whatever activation "
                "follows: gain 1/sqrt(3) = 0.577, where a ReLU needs 1.414."
            ),
            f"Seed {seed}, width {width}, batch {BATCH} of N(0, 1).",
            *notes,
        ),
    )


def _moments_table(cases: list[Case]) -> Table:
    last = f"E f^2, {DEPTH}"
    return Table(
        f"Weights, f(u) after layer 1, E f^2 after layers 1 and {DEPTH} (theory 1)",
        ("slope", "gain", "bound", "std w", "theory", "E f", "theory", "E f^2, 1", last),
        tuple(
            (
                c.slope,
                c.gain,
                c.bound,
                float(c.weights.double().std()),
                c.bound / math.sqrt(3),
                float(c.activations.double().mean()),
                c.mean_theory,
                c.second_moments[0],
                c.second_moments[-1],
            )
            for c in cases
        ),
        {
            "slope": ".3g",
            "std w": ".4f",
            "theory": ".4f",
            "E f": ".4f",
            "E f^2, 1": ".3f",
            last: ".3f",
        },
    )


def _histogram_table(cases: list[Case]) -> Table:
    top = max(c.bound for c in cases)
    return Table(
        f"Histograms, log scale: weights on +-{top:.2g}, activations on +-{REACH:g}",
        ("slope", "weights", "activations of layer 1"),
        tuple(
            (c.slope, _histogram(c.weights, top), _histogram(c.activations, REACH)) for c in cases
        ),
        {"slope": ".3g"},
    )


def _histogram(values: Tensor, reach: float) -> str:
    """Bars on a log scale of two decades below the highest."""
    counts = torch.histc(values, BINS, -reach, reach).tolist()
    floor = max(counts) / 100
    return sparkline([floor, *(max(c, floor) for c in counts)], log=True)[1:]


def _paint(figure: Figure, cases: list[Case]) -> None:
    figure.suptitle(
        "LeakyReLU under kaiming_uniform: every slope keeps E f² = 1", fontweight="bold"
    )
    grid = figure.subplots(2, len(cases), sharey="row", sharex="row")
    for (above, below), case in zip(grid.T, cases, strict=True):
        _paint_weights(above, case)
        _paint_activations(below, case)
    grid[0, 0].set_ylabel("density of weights")
    grid[1, 0].set_ylabel("density of\nactivations (log)")
    grid[1, 0].legend(loc="upper left", handlelength=1.2)


def _paint_weights(axis: Axes, case: Case) -> None:
    axis.hist(case.weights.numpy(), bins=60, density=True, color=BLUE, alpha=0.55)
    axis.plot([-case.bound, case.bound], [1 / (2 * case.bound)] * 2, color=VERMILION)
    axis.set_title("√5 (nn.Linear)" if case.slope == SLOPES[-1] else f"slope {case.slope:g}")
    axis.set_xlabel("weight")


def _paint_activations(axis: Axes, case: Case) -> None:
    at = torch.linspace(-4, 4, 401)
    axis.hist(
        case.activations.numpy(),
        bins=81,
        range=(-4, 4),
        density=True,
        color=GREEN,
        alpha=0.55,
        label="measured",
    )
    axis.plot(at.numpy(), density(case, at).numpy(), color=VERMILION, label="theory")
    axis.set_yscale("log")
    axis.set_ylim(1e-3, 100)
    axis.set_xlabel(f"f(u): E f² = {case.second_moments[0]:.3f}")
