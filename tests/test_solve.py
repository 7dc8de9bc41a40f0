"""`auto` on graphs: what its scales do in real runs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fanin
from fanin.distributions import Kept, Normal


class Block(nn.Module):
    def __init__(self, act=F.relu, d=64):
        super().__init__()
        self.up, self.down, self.act = nn.Linear(d, 4 * d), nn.Linear(4 * d, d), act

    def forward(self, x):
        return x + self.down(self.act(self.up(x)))


@pytest.mark.parametrize("act", [F.relu, F.gelu, torch.tanh, F.silu])
@pytest.mark.parametrize("depth", [4, 48])
def test_norm_free_streams_stay_of_order_one(act, depth):
    net, x = nn.Sequential(*[Block(act) for _ in range(depth)]), torch.randn(256, 64)
    fanin.initialize_(net, x)
    with torch.no_grad():
        for block in net:
            x = block(x)
            assert 0.5 < x.square().mean() < 2.0


def test_heads_start_at_chance():
    net = nn.Sequential(nn.Embedding(100, 32), nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 100))  # fmt: skip
    ids = torch.randint(100, (64, 16))
    fanin.initialize_(net, ids)
    loss = F.cross_entropy(net(ids).flatten(0, 1), torch.randint(100, (64 * 16,)))
    assert loss.item() == pytest.approx(math.log(100), rel=0.05)


def test_inputs_of_any_scale():
    net = nn.Sequential(
        nn.Linear(32, 64), nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8)
    )
    x = 100 * torch.randn(128, 32)
    plan = fanin.initialize_(net, x)
    assert net[0](x).std().item() == pytest.approx(1.0, rel=0.15)
    assert "predicted output rms" in plan["0.weight"].reasons[-1]


def test_overrides_are_not_scaled():
    net, x = nn.Sequential(Block(), Block()), torch.randn(16, 64)
    plan = fanin.plan(net, x, overrides={"0.up.weight": Normal(0.5)})
    assert plan["0.up.weight"].std == 0.5


def test_attention_logits_of_order_one():
    class Unscaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln, self.q, self.k, self.v, self.o = (
                nn.LayerNorm(64),
                *(nn.Linear(64, 64) for _ in range(4)),
            )

        def logits(self, x):
            return self.q(x) @ self.k(x).transpose(-1, -2)

        def forward(self, x):
            x = self.ln(x)
            return self.o(torch.softmax(self.logits(x), -1) @ self.v(x))

    net, x = Unscaled(), torch.randn(16, 20, 64)
    fanin.initialize_(net, x)
    assert 0.4 < net.logits(net.ln(x)).var().item() < 2.5


class Designed(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.decay = nn.Linear(16, 16), nn.Parameter(torch.linspace(-4.0, -1.0, 16))
        self.scale = nn.Parameter(torch.full((16,), 1e-4))

    def forward(self, x):
        return x + self.scale * self.lin(x) * torch.exp(self.decay)


def test_designed_parameters_are_kept():
    net, x = Designed(), torch.randn(8, 16)
    decay = net.decay.detach().clone()
    plan = fanin.initialize_(net, x)
    assert isinstance(plan["decay"].distribution, Kept)
    assert torch.equal(net.decay, decay)
    assert torch.equal(net.scale, torch.full((16,), 1e-4))


def test_what_is_kept_needs_values():
    with torch.device("meta"):
        empty = Designed()
    net = Designed()
    plan = fanin.plan(net, torch.randn(8, 16))
    with pytest.raises(fanin.ModelError, match="decay"):
        plan.fill_(empty)


def test_shared_weights_get_one_scale():
    layer = nn.Linear(32, 32)
    net, x = nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), layer), torch.randn(64, 32)
    plan = fanin.initialize_(net, x)
    assert len(plan) == 2
    assert 0.1 < net(x).std().item() < 2


# what the plan says of itself -------------------------------------------------------------------


def normalised():
    return nn.Sequential(
        *[m for _ in range(6) for m in (nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU())],
        nn.Linear(64, 10),
    )


def test_healthy_models_are_said_to_be():
    torch.manual_seed(0)
    net, x = normalised(), torch.randn(64, 64)
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight)
    (own,) = [n for n in fanin.plan(net, x).notes if "healthy already" in n]
    report = fanin.probe(net, x)
    sizes = [layer.measured.act_rms for layer in report.modules.values()]
    low, high = (float(w) for w in own.split("activations ")[1].split(",")[0].split(" to "))
    assert low == pytest.approx(min(sizes), rel=0.1)
    assert high == pytest.approx(max(sizes), rel=0.1)


def test_sick_models_are_not():
    torch.manual_seed(0)
    net, x = nn.Sequential(*[nn.Linear(64, 64) for _ in range(20)]), torch.randn(64, 64)
    plan = fanin.plan(net, x)
    assert not any("healthy" in n for n in plan.notes)
    assert any(n.startswith("predicted under this plan: activations") for n in plan.notes)
    fanin.initialize_(net, x)
    assert any("healthy" in n for n in fanin.plan(net, x).notes)
    assert fanin.plan(net, x).hash() == plan.hash()


def test_meta_models_have_no_present_values():
    with torch.device("meta"):
        net = normalised()
    notes = fanin.plan(net, torch.randn(8, 64)).notes
    assert any(n.startswith("predicted under this plan") for n in notes)
    assert not any("present values" in n for n in notes)
