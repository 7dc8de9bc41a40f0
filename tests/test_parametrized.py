"""Plans for weights that modules compute from others: prediction and scaling reach what is computed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import fanin
from fanin._capture import capture
from fanin._check import propagated
from fanin._inputs import as_inputs
from fanin._parametrized import logical, unscalable

PARAMETRIZATIONS = nn.utils.parametrizations
WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": PARAMETRIZATIONS.weight_norm,
    "weight_norm of the whole": lambda m: PARAMETRIZATIONS.weight_norm(m, dim=None),
    "spectral_norm": PARAMETRIZATIONS.spectral_norm,
    "hook of weight_norm": nn.utils.weight_norm,
    "hook of spectral_norm": nn.utils.spectral_norm,
    "symmetric": lambda m: nn.utils.parametrize.register_parametrization(m, "weight", Doubled()) or m,
}  # fmt: skip
NORMALISED = [name for name in WAYS if "spectral" in name]


class Doubled(nn.Module):
    """One of a user's own."""

    def forward(self, x):
        return 2 * x

    def right_inverse(self, w):
        return w / 2


def model(way: str) -> nn.Sequential:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(
            WAYS[way](nn.Linear(128, 256)), nn.ReLU(), WAYS[way](nn.Linear(256, 200)), nn.ReLU(), nn.Linear(200, 300)
        ).eval()  # fmt: skip


def inputs() -> torch.Tensor:
    return torch.randn(256, 128, generator=torch.Generator().manual_seed(1))


def measured(net: nn.Sequential, x: torch.Tensor) -> list[float]:
    """Rms of each layer's output."""
    found = []
    with torch.no_grad():
        for layer in net:
            x = layer(x)
            found.append(x.square().mean().sqrt().item())
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scheme", ["kaiming", "auto"])
def test_predicted_under_a_plan(way, scheme):
    """What is predicted is what a filled model computes, within the 3 % that one draw is off by."""
    net, x = model(way), inputs()
    plan = fanin.plan(net, x, scheme=scheme)
    predicted = [
        layer.predicted.act_rms
        for layer in fanin.check(net, x, plan=plan).layers
        if layer.predicted
    ]
    plan.fill_(net, seed=3)
    if way in NORMALISED:
        settle(net, x)
    assert predicted == pytest.approx(measured(net, x)[-len(predicted) :], rel=0.06)


def settle(net: nn.Sequential, x: torch.Tensor) -> None:
    """Power iteration, so that the singular vectors are those of the new weights."""
    net.train()
    with torch.no_grad():
        for _ in range(100):
            net(x)
    net.eval()


@pytest.mark.parametrize("way", [way for way in WAYS if way not in NORMALISED])
def test_scaling_reaches_the_signal(way):
    """Every layer but the head puts out what auto asks for, a rms of 1 before its rectifier."""
    net, x = model(way), inputs()
    fanin.plan(net, x, scheme="auto").fill_(net, seed=3)
    found = measured(net, x)
    assert found[0] == pytest.approx(1.0, rel=0.1)
    assert found[2] == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("way", NORMALISED)
def test_what_is_divided_by_its_norm_keeps_its_scale(way):
    """Its rows are not scaled: nothing would change."""
    net, x = model(way), inputs()
    assert unscalable(net) == {"0.weight", "2.weight"}
    plan = fanin.plan(net, x, scheme="auto")
    assert not any("predicted output rms" in why for why in plan["0.weight"].reasons)


@pytest.mark.parametrize("way", WAYS)
def test_the_computed_weight_is_the_parameter(way):
    """Its gradient has the plan's name; the model's other values keep their indices."""
    net, x = model(way), inputs()
    graph = capture(net, as_inputs(x))
    made = logical(net, graph, {"0.weight", "2.weight"})
    assert made.values[: len(graph.values)] == graph.values
    assert len(made.nodes) == len(graph.nodes)
    signals = propagated(net, graph, fanin.plan(net, x, scheme="kaiming"))
    grads = {n: signals.grads.get(i) for n, i in signals.graph.parameters.items()}
    assert grads["0.weight"] is not None
    assert math.isfinite(grads["0.weight"].second_moment)


def test_without_a_plan_nothing_is_replaced():
    net, x = model("weight_norm"), inputs()
    graph = capture(net, as_inputs(x))
    assert propagated(net, graph).graph is graph
