"""LSUV: unit variance on real data, for shared weights and residual nets, and no half-written model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fanin


def outputs(net, x, kinds=(nn.Linear, nn.Conv2d)):
    found = {}
    handles = [
        m.register_forward_hook(lambda m, i, o, n=n: found.setdefault(n, []).append(float(o.std(unbiased=False))))
        for n, m in net.named_modules() if isinstance(m, kinds)
    ]  # fmt: skip
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    return found


def test_every_layer_has_unit_variance():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 10)
    )  # fmt: skip
    x = 3 + 2 * torch.randn(64, 3, 8, 8)
    fanin.lsuv_(net, x)
    for stds in outputs(net, x).values():
        assert stds[0] == pytest.approx(1.0, rel=0.01)


def test_shared_weights_settle_jointly():
    layer = nn.Linear(32, 32, bias=False)
    net = nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), layer)
    x = torch.randn(256, 32)
    fanin.lsuv_(net, x, tolerance=0.01)
    (stds,) = outputs(net, x).values()
    assert len(stds) == 3
    assert abs(sum(math.log(s) for s in stds)) / 3 < 0.02


def test_branches_share_the_stream():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(32, 64), nn.Linear(64, 32)

        def forward(self, x):
            return x + self.b(torch.relu(self.a(x)))

    net, x = nn.Sequential(*[Block() for _ in range(16)]), torch.randn(128, 32)
    plan = fanin.lsuv_(net, x)
    stds = outputs(net, x)
    assert stds["3.b"][0] == pytest.approx(1 / 4, rel=0.01)
    assert stds["3.a"][0] == pytest.approx(1.0, rel=0.01)
    assert any("lsuv" in reason for reason in plan["3.a.weight"].reasons)
    assert net(x).square().mean() < 3


def test_the_plan_gives_the_model():
    net, x = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)), torch.randn(32, 16)
    plan = fanin.lsuv_(net, x, seed=3)
    other = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))
    plan.fill_(other, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_a_failure_leaves_the_model_as_it_was():
    net = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(fanin.ModelError, match="standard deviation"):
        fanin.lsuv_(net, torch.zeros(8, 16))
    with pytest.raises(fanin.ModelError):
        fanin.lsuv_(net, torch.randn(8, 5))
    with pytest.raises(fanin.InvalidValueError, match="max_runs"):
        fanin.lsuv_(net, torch.randn(8, 16), max_runs=0)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_overrides_are_not_scaled():
    net, x = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)), torch.randn(32, 16)
    plan = fanin.lsuv_(net, x, overrides={"0.weight": fanin.distributions.Normal(0.3)})
    assert plan["0.weight"].std == 0.3


class Positioned(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.positions = nn.Linear(16, 16), nn.Parameter(torch.randn(8, 16))

    def forward(self, x):
        return self.layer(x) + self.positions


def test_bare_parameters_start_as_in_auto():
    net, x = Positioned(), 3 * torch.randn(64, 8, 16)
    plan = fanin.lsuv_(net, x)
    assert plan["positions"].distribution == fanin.plan(net, x)["positions"].distribution
    assert net.layer(x).std().item() == pytest.approx(1.0, rel=0.02)
