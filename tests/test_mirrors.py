"""Which layers can start in mirror images, and what such stacks do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fanin
from fanin import _activations
from fanin._analysis import analyse
from fanin._mirrors import slope
from fanin._nonlinearity import as_nonlinearity
from fanin._roles import facts_of
from fanin.distributions import LooksLinear

LINEAR_IN_PAIRS = {
    "relu": 1.0,
    "gelu": 1.0,
    "silu": 1.0,
    "leaky_relu": 1.01,
    "hardswish": 1.0,
    "softplus": 1.0,
}


def mirrors_of(net, x):
    return {
        p.name: p.mirror for p in facts_of(net, analyse(net, x)).params if p.name.endswith("weight")
    }


def mlp(act=nn.ReLU, widths=(16, 24, 32, 5)):
    layers = []
    for n, m in zip(widths, widths[1:]):
        layers += [nn.Linear(n, m), act()]
    return nn.Sequential(*layers[:-1])


def chosen(net, x):
    return {n: (m.outputs, m.inputs) for n, m in mirrors_of(net, x).items() if m is not None}


@pytest.mark.parametrize("name", sorted(_activations.names()))
def test_slope_is_that_of_a_pair(name):
    """C is f(x) - f(-x) over x wherever it is taken, or that is no constant."""
    try:
        f = as_nonlinearity(name)
    except (ValueError, TypeError):
        pytest.skip("needs parameters")
    x = torch.linspace(0.05, 15.0, 41, dtype=torch.float64).numpy()
    ratio = (f.f(x) - f.f(-x)) / x
    c = slope(f)
    if c:
        assert ratio == pytest.approx(c, rel=1e-6)
        assert LINEAR_IN_PAIRS.get(name) in (None, pytest.approx(c))
    elif not (f.odd or f.gated):
        assert ratio.max() - ratio.min() > 1e-6 or ratio[0] <= 0


def test_a_stack():
    assert chosen(mlp(), torch.randn(4, 16)) == {
        "0.weight": (True, False), "2.weight": (True, True), "4.weight": (False, True)
    }  # fmt: skip


@pytest.mark.parametrize("act", [nn.Tanh, nn.ELU, nn.Sigmoid, nn.ReLU6])
def test_other_functions(act):
    assert not chosen(mlp(act), torch.randn(4, 16))


def test_odd_widths_break_the_chain():
    assert chosen(mlp(widths=(16, 25, 32, 8, 5)), torch.randn(4, 16)) == {
        "2.weight": (True, False), "4.weight": (True, True), "6.weight": (False, True)
    }  # fmt: skip


def test_convolutions_and_flattening():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(),
        nn.Linear(12 * 16, 10),
    )  # fmt: skip
    assert chosen(net, torch.randn(2, 3, 8, 8)) == {
        "0.weight": (True, False), "3.weight": (True, True), "7.weight": (False, True)
    }  # fmt: skip


class Does(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between, n=16, wide=16):
        super().__init__()
        self.a, self.b, self.between = nn.Linear(16, n), nn.Linear(wide, 8), between

    def forward(self, x):
        return self.between(self, x)


BREAKS = {
    "a residual sum": lambda self, x: self.b(F.relu(self.a(x)) + x),
    "a norm": lambda self, x: self.b(F.layer_norm(F.relu(self.a(x)), (16,))),
    "a second reader": lambda self, x: self.b(h := F.relu(self.a(x))) * h.sum(),
    "an output": lambda self, x: (self.b(h := F.relu(self.a(x))), h),
    "channels in another order": lambda self, x: self.b(
        F.relu(self.a(x)).reshape(-1, 4, 4).mT.reshape(-1, 16)
    ),
    "max-pooling": lambda self, x: self.b(F.max_pool1d(F.relu(self.a(x)), 3, 1, 1)),
    "the sum before is read too": lambda self, x: self.b(F.relu(h := self.a(x))) + h.sum(),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_keeps_halves_from_meeting(name):
    assert not chosen(Does(BREAKS[name]), torch.randn(6, 16))


class InOut(nn.Module):
    """A dense layer that keeps its weight as (in, out), as transformers' Conv1D does."""

    def __init__(self, n, m):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n, m))

    def forward(self, x):
        return x @ self.weight


def test_weights_lie_as_out_in():
    net = nn.Sequential(InOut(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    assert chosen(net, torch.randn(2, 16)) == {"2.weight": (True, False), "4.weight": (False, True)}


def test_shared_and_grouped_weights():
    shared = nn.Linear(16, 16)
    net = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(16, 4))
    assert not chosen(net, torch.randn(2, 16))
    net = nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Conv1d(8, 8, 3, groups=2))
    assert not chosen(net, torch.randn(2, 4, 16))


@pytest.mark.parametrize("act", [nn.ReLU, nn.GELU, nn.SiLU, lambda: nn.LeakyReLU(0.2)])
def test_deep_stacks_are_isometries(act):
    """40 layers keep the signal, its directions and the gradient; here Gaussian weights do not."""
    torch.manual_seed(0)
    net, x = mlp(act, (64, *[64] * 40, 64)), torch.randn(128, 64)
    plan = fanin.initialize_(net, x)
    assert isinstance(plan["20.weight"].distribution, LooksLinear)
    x.requires_grad_()
    h = net[:-2](x)
    h.backward(g := torch.randn_like(h))
    assert x.grad is not None
    # 32 differences of variance 2, on 64 inputs
    assert float(x.grad.square().mean() / g.square().mean()) == pytest.approx(1.0, rel=0.1)
    with torch.no_grad():
        z = net[:-2](x)
        cosine = F.cosine_similarity(x[:32] @ x[32:64].T, z[:32] @ z[32:64].T, 0).mean()
        assert float(z.square().mean()) == pytest.approx(1.0, rel=0.1)
        assert (
            float(cosine) > 0.6
        )  # inner products: half of the directions is left by 32 of 64 columns


def test_predictions_know_of_the_pairs():
    torch.manual_seed(0)
    net, x = mlp(nn.ReLU, (64, *[64] * 20, 10)), torch.randn(256, 64)
    fanin.initialize_(net, x)
    report = fanin.probe(net, x)
    for layer in report.layers:
        assert layer.predicted is not None
        assert layer.predicted.act_rms == pytest.approx(layer.measured.act_rms, rel=0.1)
        assert layer.predicted.grad_rms == pytest.approx(layer.measured.grad_rms, rel=0.15)
        assert abs(layer.predicted.correlation - layer.measured.correlation) < 0.4


def test_shallow_stacks_stay_as_they_were():
    """Below ten layers nothing is lost on the way, and all units may start different."""
    plan = fanin.plan(mlp(), torch.randn(4, 16))
    assert not any(isinstance(row.distribution, LooksLinear) for row in plan)
