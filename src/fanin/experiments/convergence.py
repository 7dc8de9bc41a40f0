"""Training from each initializer: a 30-layer MLP and a 30-layer CNN with ReLU, SGD and Adam.

Loss is cross-entropy on the digits; chance is ln 10 = 2.303. A signal that keeps its size (Kaiming)
is needed before anything can be learnt; one that keeps its directions too learns faster at this
depth. Behind ReLU that takes more than orthogonal matrices: mirror images of them.

Sources: Glorot & Bengio 2010 (Xavier), He et al. 2015 (Kaiming), Saxe et al. 2014 (orthogonal),
Xiao et al. 2018 (delta-orthogonal), Balduzzi et al. 2017 (mirror images).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from .._api import initialize_
from .._tables import sparkline
from ._digits import CHANCE, Digits, load_digits
from ._figures import BLUE, GREEN, GREY, ORANGE, PINK, VERMILION, draw
from ._networks import convnet, mlp
from ._result import Cell, Progress, Result, Table, portion, silent
from ._sandbox import sandbox
from ._training import MakeOptimizer, Training, train

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DEPTH = 30
LOOK = {
    "PyTorch default": (VERMILION, "-"),
    "Xavier": (ORANGE, "--"),
    "Kaiming": (PINK, "-."),
    "orthogonal": (GREEN, ":"),
    "fanin auto": (BLUE, "-"),
}
CURVE = 16  # characters of a loss curve in the table

STARTS: Mapping[str, str | None] = {
    "PyTorch default": None,
    "Xavier": "xavier",
    "Kaiming": "kaiming",
    "orthogonal": "orthogonal",
    "fanin auto": "auto",
}
OPTIMIZERS: Mapping[str, MakeOptimizer] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
}


@dataclass(frozen=True)
class Network:
    """What is trained, and for how long.

    Args:
        name: for the tables.
        make: builds it as PyTorch's constructors leave it.
        steps: of descent.
        batch: images a step.
        effort: seconds a run, roughly, for the progress bar alone.
    """

    name: str
    make: Callable[[], nn.Module]
    steps: int
    batch: int
    effort: float


NETWORKS = (
    Network(f"MLP, {DEPTH} layers of width 128", lambda: mlp(DEPTH, 128, nn.ReLU), 200, 128, 2.5),
    Network(f"CNN, {DEPTH} layers of 24 channels", lambda: convnet(DEPTH, 24), 100, 64, 5.0),
)


@dataclass(frozen=True)
class Trial:
    """One run: which network, which start, which optimizer, what came of it."""

    network: Network
    start: str
    optimizer: str
    training: Training


def trial(
    network: Network, start: str, optimizer: str, digits: Digits, *, seed: int, progress: Progress
) -> Trial:
    """Build, initialise and train one network."""
    torch.default_generator.manual_seed(seed)
    model = network.make()
    scheme = STARTS[start]
    if scheme is not None:
        initialize_(model, digits.x_train[: network.batch], scheme=scheme, seed=seed)
    training = train(
        model,
        digits,
        OPTIMIZERS[optimizer],
        steps=network.steps,
        batch=network.batch,
        seed=seed,
        progress=progress,
        label=f"{network.name.split(',')[0]}, {start}, {optimizer}",
    )
    return Trial(network, start, optimizer, training)


def trials(
    digits: Digits, networks: tuple[Network, ...], *, seed: int, progress: Progress
) -> tuple[Trial, ...]:
    """Every network from every start with every optimizer."""
    cases = [(n, s, o) for n in networks for o in OPTIMIZERS for s in STARTS]
    total = sum(n.effort for n, _, _ in cases)
    done, found = 0.0, []
    for network, start, optimizer in cases:
        part = portion(progress, done / total, (done + network.effort) / total)
        found.append(trial(network, start, optimizer, digits, seed=seed, progress=part))
        done += network.effort
    return tuple(found)


def run(
    *,
    out: Path,
    seed: int = 0,
    progress: Progress = silent,
    networks: tuple[Network, ...] = NETWORKS,
) -> Result:
    """Train all twenty, print a table each network, draw the curves."""
    digits = load_digits()
    with sandbox(seed, flush_denormal=True):
        found = trials(digits, networks, seed=seed, progress=portion(progress, 0.0, 0.98))
    progress(0.98, "drawing")
    figures, notes = draw(
        "convergence", out, (10.0, 6.4), lambda figure: _paint(figure, found, networks)
    )
    return Result(
        "convergence",
        _summary(found),
        tuple(_table(network, [t for t in found if t.network is network]) for network in networks),
        figures,
        (
            f"Loss at chance is ln 10 = {CHANCE:.3f}. SGD: lr 0.01, momentum 0.9; Adam: lr 0.001. "
            + "; ".join(f"{n.name}: {n.steps} steps of {n.batch}" for n in networks)
            + f". One seed, {seed}: where a network learns at all, another seed can move the loss by "
            "a factor of two (fanin demo convergence --seed 1).",
            (
                "Xavier is Glorot & Bengio 2010, Kaiming He et al. 2015, orthogonal Saxe et al. 2014; "
                "fanin auto starts both from orthogonal matrices in mirror images (Balduzzi et al. 2017), in the CNN at "
                "the centre tap (Xiao et al. 2018)."
            ),
            "Training counts denormals as zero (torch.set_flush_denormal), and puts the flag back.",
            *notes,
        ),
    )


def _summary(found: tuple[Trial, ...]) -> str:
    stuck = [t for t in found if not t.training.train_loss < CHANCE - 0.1]
    default = [t for t in found if STARTS[t.start] is None]
    auto = [t for t in found if STARTS[t.start] == "auto"]
    return (
        f"From PyTorch's default {sum(t in stuck for t in default)} of {len(default)} runs stay at chance; "
        f"from Xavier {sum(t in stuck for t in found if t.start == 'Xavier')}; "
        f"from fanin's plan {sum(t in stuck for t in auto)} of {len(auto)}, whose training losses end at "
        f"{', '.join(f'{t.training.train_loss:.2f}' for t in auto)}."
    )


def _table(network: Network, found: list[Trial]) -> Table:
    return Table(
        f"{network.name}: after {network.steps} steps",
        ("optimizer", "start", "train loss", "train acc", "test acc", "loss curve"),
        tuple(_row(t) for t in found),
        {"train loss": ".3f", "train acc": ".1%", "test acc": ".1%"},
    )


def _row(t: Trial) -> tuple[Cell, ...]:
    r = t.training
    return (
        t.optimizer,
        t.start,
        r.train_loss,
        r.train_accuracy,
        r.test_accuracy,
        sparkline([0.0, *(r.around(r_step) for r_step in _marks(len(r.losses)))])[1:],
    )


def _marks(steps: int) -> list[int]:
    return [max(1, steps * (i + 1) // CURVE) for i in range(CURVE)]


def _paint(figure: Figure, found: tuple[Trial, ...], networks: tuple[Network, ...]) -> None:
    grid = figure.subplots(len(networks), len(OPTIMIZERS), sharey=True, squeeze=False)
    figure.suptitle("Training loss from each initializer, 30 layers with ReLU", fontweight="bold")
    for axes, network in zip(grid, networks, strict=True):
        axes[0].set_ylabel("cross-entropy, mean of 10 steps")
        for axis, optimizer in zip(axes, OPTIMIZERS, strict=True):
            _paint_curves(
                axis, [t for t in found if (t.network, t.optimizer) == (network, optimizer)]
            )
            axis.set_title(f"{network.name.split(',')[0]}, {optimizer}")
            axis.set_xlabel(f"step (batch {network.batch})")
            axis.set_ylim(0, 3)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6)


def _paint_curves(axis: Axes, found: list[Trial]) -> None:
    axis.axhline(CHANCE, color=GREY, linewidth=0.8, label="chance")
    for t in found:
        colour, dash = LOOK[t.start]
        steps = range(1, len(t.training.losses) + 1)
        means = [t.training.around(step) for step in steps]
        # in the MLP the plan's line equals the dotted orthogonal one: broad, and under it
        broad = {"linewidth": 3.4, "zorder": 2} if t.start == "fanin auto" else {"zorder": 3}
        axis.plot(steps, means, dash, color=colour, label=t.start, **broad)
