"""The main demonstration: two deep networks that PyTorch's default cannot train, and fanin's plan can.

In a plain stack of L layers, two images' similarity c and the gradient's size change by a factor
chi = sigma_w^2 E f'(u)^2 per layer (Schoenholz et al. 2017, eqs. 4-6). torch.nn.Linear's default has
sigma_w^2 = 1/3, so chi is at most 1/3: similarities go to 1 and gradients to 0 as 3^(-L). The plan
takes chi = 1 and orthogonal matrices, which keep every direction's length as well as the mean one
(Saxe et al. 2014; Pennington et al. 2017).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from .._api import initialize_
from .._probe import probe
from .._report import Finding, Signal, SignalReport
from .._tables import sparkline
from ._digits import CHANCE, Digits, load_digits
from ._figures import BLUE, GREY, VERMILION, draw
from ._networks import mlp
from ._result import Cell, Progress, Result, Table, portion, silent
from ._sandbox import sandbox
from ._training import Training, train

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LR, MOMENTUM, BATCH = 0.003, 0.9, 128
COLUMNS = 30  # characters of a sparkline by depth
CURVE = 20  # characters of a loss curve
MARKS = 4  # losses shown along the way
PROBED = 256  # images that the probe sees
DEFAULT, FANIN = "default", "fanin"
LEAST_NORMAL = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Network:
    """A plain stack and how it is trained.

    Args:
        name: for tables and titles.
        depth: linear layers.
        width: units of each hidden layer.
        activation: between the layers.
        steps: of descent.
    """

    name: str
    depth: int
    width: int
    activation: type[nn.Module]
    steps: int = 200

    def make(self, seed: int) -> nn.Sequential:
        """As PyTorch's constructors leave it after ``torch.manual_seed(seed)``."""
        torch.default_generator.manual_seed(seed)
        return mlp(self.depth, self.width, self.activation)


NETWORKS = (
    Network("tanh, 200 layers of width 100", 200, 100, nn.Tanh),
    Network("ReLU, 30 layers of width 128", 30, 128, nn.ReLU),
)


@dataclass(frozen=True)
class Trial:
    """One network from one start: what the probe saw at step 0, and the training.

    Args:
        network: which one.
        start: ``default`` or ``fanin``.
        signals: after each activation, from the first layer to the last.
        findings: of the probe.
        plan: the first weight's reasons; empty for the default.
        training: what came of it.
    """

    network: Network
    start: str
    signals: tuple[Signal, ...]
    findings: tuple[Finding, ...]
    plan: str
    training: Training

    @property
    def act_rms(self) -> list[float | None]:
        """Root mean square of the activations, by depth."""
        return [s.act_rms for s in self.signals]

    @property
    def correlation(self) -> list[float | None]:
        """Mean cosine between the activations of two images, by depth."""
        return [s.correlation for s in self.signals]

    @property
    def grad_rms(self) -> list[float | None]:
        """Root mean square of the loss's gradient by the activations, by depth."""
        return [s.grad_rms for s in self.signals]


def trial(network: Network, start: str, digits: Digits, *, seed: int, progress: Progress) -> Trial:
    """Build, initialise, probe, train."""
    model = network.make(seed)
    x, y = digits.x_train[:PROBED], digits.y_train[:PROBED]
    plan = ""
    if start == FANIN:
        plan = "; ".join(initialize_(model, x, seed=seed)["0.weight"].reasons)
    progress(0.0, f"{network.name}, {start}: probing")
    report = probe(model, x, loss_fn=lambda logits: cross_entropy(logits, y))
    training = train(
        model,
        digits,
        lambda parameters: torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM),
        steps=network.steps,
        batch=BATCH,
        seed=seed,
        progress=portion(progress, 0.05, 1.0),
        label=f"{network.name}, {start}",
    )
    return Trial(
        network,
        start,
        _by_depth(model, report, network.activation),
        report.findings,
        plan,
        training,
    )


def _by_depth(
    model: nn.Module, report: SignalReport, activation: type[nn.Module]
) -> tuple[Signal, ...]:
    layers = [
        report.modules[name]
        for name, module in model.named_modules()
        if isinstance(module, activation)
    ]
    return tuple(layer.measured for layer in layers if layer.measured is not None)


def trials(
    digits: Digits, networks: tuple[Network, ...], *, seed: int, progress: Progress
) -> tuple[Trial, ...]:
    """Both networks from both starts; the two starts see the same images in the same order."""
    total = 2 * sum(n.depth for n in networks)
    done, found = 0, []
    for network in networks:
        for start in (DEFAULT, FANIN):
            part = portion(progress, done / total, (done + network.depth) / total)
            found.append(trial(network, start, digits, seed=seed, progress=part))
            done += network.depth
    return tuple(found)


def run(
    *,
    out: Path,
    seed: int = 0,
    progress: Progress = silent,
    networks: tuple[Network, ...] = NETWORKS,
) -> Result:
    """Train all four, say why the default fails, draw the figure."""
    digits = load_digits()
    with sandbox(seed, flush_denormal=True):
        found = trials(digits, networks, seed=seed, progress=portion(progress, 0.0, 0.97))
    progress(0.97, "drawing")
    figures, notes = draw("main", out, (10.0, 5.8), lambda figure: _paint(figure, found))
    return Result("main", _summary(found), _tables(found), figures, (*_notes(found, seed), *notes))


def _summary(found: tuple[Trial, ...]) -> str:
    before, after = ([t for t in found if t.start == start] for start in (DEFAULT, FANIN))
    left = sorted({f.code for t in after for f in t.findings})
    return (
        f"From PyTorch's default the two networks end at {_accuracies(before)} test accuracy; guessing "
        f"gives 10 %. After fanin.initialize_(model, x) the same networks, with the same data and "
        f"optimizer, reach {_accuracies(after)}, and fanin.probe finds {', '.join(left) or 'nothing wrong'}."
    )


def _accuracies(found: Iterable[Trial]) -> str:
    return " and ".join(_percent(t.training.test_accuracy) for t in found)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"


def _notes(found: Iterable[Trial], seed: int) -> tuple[str, ...]:
    plans = {t.network.name: t.plan for t in found if t.plan}
    return (
        *(f"fanin's plan for {name}: {plan}." for name, plan in plans.items()),
        (
            "Similarity is the mean cosine between two images' activations, gradient that of the loss by the "
            "activations. In a plain stack 1 - similarity (once small) and the gradient's square shrink by "
            "chi = sigma_w^2 E f'(u)^2 a layer (Schoenholz et al. 2017); PyTorch's default has sigma_w^2 = 1/3."
        ),
        (
            "Orthogonal matrices keep every direction, which at 200 layers Gaussian ones of the same variance "
            "do not (Saxe et al. 2014; Pennington et al. 2017)."
        ),
        f"SGD, lr {LR}, momentum {MOMENTUM}, batch {BATCH}, seed {seed}; loss at chance is ln 10 = {CHANCE:.3f}.",
        (
            f"Runs with torch.set_flush_denormal(True), and puts the flag back: numbers below {LEAST_NORMAL:.2g} "
            "count as zero. The default's gradients sink under that, and denormals make a CPU several times "
            "slower."
        ),
    )


# tables --------------------------------------------------------------------------------------


def _tables(found: tuple[Trial, ...]) -> tuple[Table, ...]:
    tables = []
    for network in dict.fromkeys(t.network for t in found):
        mine = [t for t in found if t.network == network]
        tables += [_findings(t) for t in mine if t.start == DEFAULT]
        tables += [_signal(network, mine), _training(network, mine)]
    return tuple(tables)


def _findings(t: Trial) -> Table:
    rows = [
        row
        for f in t.findings
        for row in (
            (f.code, f"{f.message} (module {f.where or 'all'})"),
            ("  why", f.why),
            ("  fix", f.fix),
        )
    ]
    return Table(
        f"{t.network.name}: why PyTorch's default fails",
        ("finding", "what fanin.probe found"),
        tuple(rows),
    )


def _signal(network: Network, found: list[Trial]) -> Table:
    quantities = (
        ("activation rms", "act_rms", True),
        ("similarity", "correlation", False),
        ("gradient rms", "grad_rms", True),
    )
    return Table(
        f"{network.name}: before training, from the first layer to the last",
        ("quantity", "start", "first", "last", "by depth"),
        tuple(
            _profile(
                title,
                t.start,
                getattr(t, field),
                [v for o in found for v in getattr(o, field)],
                log,
            )
            for title, field, log in quantities
            for t in found
        ),
    )


def _profile(
    title: str, start: str, values: list[float | None], scale: list[float | None], log: bool
) -> tuple[Cell, ...]:
    """One row; both starts share the bars' scale."""
    known = [v for v in scale if v is not None and (v > 0 or not log)]
    ends = [min(known), max(known)] if log else [0.0, 1.0]
    bars = sparkline([*ends, *_thinned(values, COLUMNS)], log=log)[len(ends) :]
    return title, start, values[0], values[-1], bars


def _thinned(values: list[float | None], count: int) -> list[float | None]:
    """At most ``count`` of the values, evenly, the first and the last among them."""
    if len(values) <= count:
        return values
    return [values[i * (len(values) - 1) // (count - 1)] for i in range(count)]


def _training(network: Network, found: list[Trial]) -> Table:
    marks = [network.steps * (i + 1) // MARKS for i in range(MARKS)]
    return Table(
        f"{network.name}: training loss, mean of 10 steps",
        ("start", "step 1", *(str(m) for m in marks), "test acc", "loss curve"),
        tuple(
            (
                t.start,
                t.training.losses[0],
                *(t.training.around(m) for m in marks),
                t.training.test_accuracy,
                _curve(t.training, network.steps),
            )
            for t in found
        ),
        {"step 1": ".3f", **{str(m): ".3f" for m in marks}, "test acc": ".1%"},
    )


def _curve(training: Training, steps: int) -> str:
    marks = (max(1, steps * (i + 1) // CURVE) for i in range(CURVE))
    return sparkline([0.0, 1.2 * CHANCE, *(training.around(m) for m in marks)])[2:]


# figure --------------------------------------------------------------------------------------

LOOK = {DEFAULT: (VERMILION, "PyTorch default"), FANIN: (BLUE, "fanin.initialize_")}


def _paint(figure: Figure, found: tuple[Trial, ...]) -> None:
    networks = list(dict.fromkeys(t.network for t in found))
    grid = figure.subplots(len(networks), 3, squeeze=False)
    for axes, network in zip(grid, networks, strict=True):
        mine = [t for t in found if t.network == network]
        _paint_loss(axes[0], mine)
        _paint_rms(axes[1], mine)
        _paint_similarity(axes[2], mine)
        axes[0].set_title(network.name)
    grid[0, 0].legend(loc="best")


def _paint_loss(axis: Axes, found: list[Trial]) -> None:
    for t in found:
        colour, label = LOOK[t.start]
        steps = range(1, len(t.training.losses) + 1)
        axis.plot(steps, [t.training.around(s, 5) for s in steps], color=colour, label=label)
    axis.axhline(CHANCE, color=GREY, linewidth=0.8, linestyle=":")
    axis.set_ylim(0, 2.9)
    axis.set_xlabel("training step")
    axis.set_ylabel("cross-entropy")


def _paint_rms(axis: Axes, found: list[Trial]) -> None:
    for t in found:
        colour, _ = LOOK[t.start]
        depth = range(1, len(t.signals) + 1)
        axis.plot(depth, _drawable(t.act_rms), color=colour)
        axis.plot(depth, _drawable(t.grad_rms), "--", color=colour)
    if min(t.grad_rms[0] or 0.0 for t in found) < LEAST_NORMAL:
        axis.axhline(LEAST_NORMAL, color=GREY, linewidth=0.8, linestyle=":")
        axis.text(
            len(found[0].signals),
            LEAST_NORMAL,
            "least normal float32",
            ha="right",
            va="bottom",
            color=GREY,
            size=9,
        )
    axis.plot([], [], color=GREY, label="activation")
    axis.plot([], [], "--", color=GREY, label="gradient")
    axis.set_yscale("log")
    axis.set_title("size of the signal")
    axis.set_xlabel("layer")
    axis.set_ylabel("root mean square")
    axis.legend(loc="lower right")


def _paint_similarity(axis: Axes, found: list[Trial]) -> None:
    for t in found:
        axis.plot(range(1, len(t.signals) + 1), _drawable(t.correlation), color=LOOK[t.start][0])
    axis.set_ylim(-0.05, 1.08)
    axis.set_title("similarity of two images")
    axis.set_xlabel("layer")
    axis.set_ylabel("mean cosine")


def _drawable(values: Iterable[float | None]) -> list[float]:
    """Unknown and vanished values leave a gap."""
    return [v or math.nan for v in values]
