"""`auto` on graphs: what its scales do in real runs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fanin
from fanin._solve import HEAD, LONE
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


class Contracted(nn.Module):
    """Attention by einsum, whose first argument is no tensor."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(64, 64) for _ in range(3))

    def forward(self, x):
        logits = torch.einsum("bid,bjd->bij", self.q(x), self.k(x)) / 8
        return torch.einsum("bij,bjd->bid", logits.softmax(-1), self.v(x))


def test_attention_by_einsum():
    """Queries and keys of rms 1 give logits of variance 64 before the division: both are scaled."""
    net, x = Contracted(), torch.randn(8, 16, 64)
    plan = fanin.plan(net, x)
    assert any("attention logits" in why for why in plan["q.weight"].reasons)
    assert plan["q.weight"].std == pytest.approx(plan["k.weight"].std)
    assert plan["q.weight"].std < plan["v.weight"].std / 2


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


# what is the model's own ------------------------------------------------------------------------


class Siren(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(2, 128), nn.Linear(128, 128), nn.Linear(128, 3)

    def forward(self, x):
        return self.head(torch.sin(30 * self.b(torch.sin(30 * self.a(x)))))


@pytest.mark.parametrize("scheme", ["auto", "auto:forward", "auto:edge_of_chaos"])
def test_numbers_before_a_nonlinearity_are_its_own(scheme):
    """sin(30 x) gets an argument of order one, not x."""
    net, x = Siren(), 2 * torch.rand(256, 2) - 1
    fanin.initialize_(net, x, scheme=scheme)
    with torch.no_grad():
        h = torch.sin(30 * net.a(x))
        assert 0.8 < (30 * net.a(x)).square().mean().sqrt() < 1.25
        assert 0.8 < (30 * net.b(h)).square().mean().sqrt() < 1.25


class Scaled(nn.Module):
    """A ConvNeXt-like branch: LayerScale is small on purpose."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(64), nn.Linear(64, 256), nn.Linear(256, 64)
        self.gamma = nn.Parameter(torch.full((64,), 1e-6))

    def forward(self, x):
        return x + self.gamma * self.down(F.gelu(self.up(self.norm(x))))


def test_layer_scale_is_not_undone():
    net, x = nn.Sequential(*[Scaled() for _ in range(4)]), torch.randn(64, 64)
    plan = fanin.initialize_(net, x)
    assert plan["1.gamma"].distribution.mean == pytest.approx(1e-6)
    with torch.no_grad():
        out = net[0].down(F.gelu(net[0].up(net[0].norm(x))))
    assert out.std().item() == pytest.approx(1.0, rel=0.15)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_weights_stay_orthogonal(kind, bidirectional):
    """Gates bound what comes out, so nothing is scaled for it; an input of any scale is."""
    net = nn.Sequential()
    net.core = kind(16, 32, num_layers=2, batch_first=True, bidirectional=bidirectional)

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.core = net.core
            self.head = nn.Linear(32 * (1 + bidirectional), 8)

        def forward(self, x):
            return self.head(self.core(x)[0])

    model, x = Last(), torch.randn(16, 12, 16)
    plan = fanin.plan(model, x)
    same = fanin.plan(model, 100 * x)
    for row in plan:
        if "weight_hh" in row.name:
            assert row.std == same[row.name].std == pytest.approx(32**-0.5)
        if "weight_ih_l0" in row.name:
            assert same[row.name].std == pytest.approx(row.std / 100, rel=0.1)
        if "weight_ih_l1" in row.name:
            assert same[row.name].std == pytest.approx(row.std, rel=0.02)
    fanin.initialize_(model, x)
    assert 0.25 < model(x).detach().square().mean().sqrt() < 0.8


class Modulated(nn.Module):
    """AdaLN: one product makes scale, shift and gate."""

    def __init__(self):
        super().__init__()
        self.norm, self.table = nn.LayerNorm(64, elementwise_affine=False), nn.Linear(32, 192)
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x, c):
        scale, shift, gate = self.table(c).chunk(3, -1)
        return x + gate * self.down(F.gelu(self.up(self.norm(x) * (1 + scale) + shift)))


class Modulating(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Modulated() for _ in range(6))

    def forward(self, x, c):
        for block in self.blocks:
            x = block(x, c)
        return x


def test_a_gate_is_not_the_end_of_a_branch():
    torch.manual_seed(0)
    net, x, c = Modulating(), torch.randn(128, 64), torch.randn(128, 32)
    plan = fanin.initialize_(net, (x, c))
    assert plan["blocks.2.table.weight"].std == pytest.approx(32**-0.5, rel=0.1)
    with torch.no_grad():
        assert net.blocks[2].table(c).std().item() == pytest.approx(1.0, rel=0.1)
        assert 0.5 < net(x, c).square().mean() < 4.0


class TwoSums(nn.Module):
    """WaveNet: one product feeds the residual and the skip path."""

    def __init__(self, depth=8):
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(64, 64) for _ in range(depth))
        self.mixes = nn.ModuleList(nn.Linear(64, 128) for _ in range(depth))
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        total = 0.0
        for gate, mix in zip(self.gates, self.mixes, strict=True):
            change, skip = mix(torch.tanh(gate(x))).chunk(2, -1)
            x, total = x + change, total + skip
        return self.head(total)


def test_a_product_in_two_sums_is_scaled_once():
    torch.manual_seed(0)
    net, x = TwoSums(), torch.randn(256, 64)
    plan = fanin.initialize_(net, x)
    assert sum("residual branches: rms" in w for w in plan["mixes.3.weight"].reasons) == 1
    out = net(x).detach()
    assert out.square().mean().sqrt().item() == pytest.approx(HEAD, rel=0.3)


def test_steps_of_time_are_not_undone():
    """The same field at every step adds up in one direction, and its step is the model's own."""

    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.field = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 16))

        def forward(self, x):
            for _ in range(10):
                x = x + self.field(x) / 10
            return x

    torch.manual_seed(0)
    net, x = Flow(), torch.randn(128, 16)
    fanin.initialize_(net, x)
    assert 0.5 < net(x).detach().square().mean() < 4.0
    assert net.field(x).detach().square().mean().sqrt().item() == pytest.approx(1.0, rel=0.2)


class Made(nn.Module):
    """A small network makes the matrix that is applied."""

    def __init__(self):
        super().__init__()
        self.code = nn.Parameter(torch.randn(1, 8))
        self.maker = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 256))

    def forward(self, x):
        return torch.relu(x @ self.maker(self.code).view(16, 16)) @ self.maker(self.code).view(
            16, 16
        )


def test_weights_that_a_network_makes_are_not_scaled():
    """Their factors would multiply: one product's, three parameters'."""
    plan = fanin.plan(Made(), torch.randn(32, 16))
    for row in plan:
        assert not any("predicted output" in w or "head" in w for w in row.reasons)
        if row.name.endswith("weight"):
            assert row.std > 0.05


def rms(x):
    return x.square().mean().sqrt().item()


def test_a_single_output_has_unit_variance():
    """16 draws of one Gaussian weight vector each: 18 % of sampling error."""
    net, x = nn.Sequential(nn.Linear(32, 64), nn.LayerNorm(64), nn.Linear(64, 1)), torch.randn(64, 32)  # fmt: skip
    found = []
    for seed in range(16):
        plan = fanin.initialize_(net, x, seed=seed)
        found.append(rms(net(x)))
    assert plan["2.weight"].std == pytest.approx(LONE / 8, rel=0.05)
    assert sum(r * r for r in found) / 16 == pytest.approx(LONE**2, rel=0.5)


def test_a_head_that_is_fine_is_not_scaled_by_its_second_use():
    """The gradient of a plain net with respect to its input uses the head's weight again."""

    class Slope(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))  # fmt: skip

        def forward(self, x):
            x = x.requires_grad_()
            return torch.autograd.grad(self.net(x).sum(), x, create_graph=True)[0]

    model, x = Slope(), torch.randn(128, 2)
    plan = fanin.initialize_(model, x)
    assert plan["net.4.weight"].std < 0.2
    assert 0.25 < rms(model.net(x)) < 4


def test_each_recurrent_layer_reads_a_signal_of_order_one():
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(64, 64, 3, batch_first=True, bidirectional=True)

        def forward(self, x):
            return self.lstm(x)[0]

    net, x = Stack(), torch.randn(16, 20, 64)
    plan = fanin.initialize_(net, x)
    assert "reads a signal" not in " ".join(plan["lstm.weight_ih_l0"].reasons)
    for name in ("l1", "l1_reverse", "l2", "l2_reverse"):
        assert "reads a signal of rms 0.2" in plan[f"lstm.weight_ih_{name}"].reasons[-1]
    assert 0.25 < rms(net(x)) < 0.5


class Parallel(nn.Module):
    """relu(norm(x) + norm(conv(x))): norms that do nothing in eval mode, on either path."""

    def __init__(self, width=64):
        super().__init__()
        self.skip, self.norm = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x):
        return torch.relu(self.skip(x) + self.norm(self.conv(x)))


def test_streams_whose_norms_are_in_eval_mode():
    net, x = nn.Sequential(*[Parallel() for _ in range(24)]).eval(), torch.randn(4, 64, 8, 8)
    plan = fanin.initialize_(net, x)
    assert "one of 24 residual branches" in plan["5.conv.weight"].reasons[-1]
    with torch.no_grad():
        assert rms(net(x)) < 4
    assert "residual" not in " ".join(fanin.plan(net.train(), x)["5.conv.weight"].reasons)


def test_what_a_product_reads_behind_a_pool():
    """Hardswish and an average over positions leave less than .3 of the product before."""

    class Squeezed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64)
            self.reduce, self.head = nn.Linear(64, 32), nn.Linear(32, 10)

        def pooled(self, x):
            return F.hardswish(self.norm(self.conv(x))).mean((2, 3))

        def forward(self, x):
            return self.head(torch.relu(self.reduce(self.pooled(x))))

    model, x = Squeezed().eval(), torch.randn(16, 3, 16, 16)
    plan = fanin.initialize_(model, x)
    assert "what the next product reads" in plan["conv.weight"].reasons[-1]
    assert 0.25 < rms(model.pooled(x)) < 0.5
    trained = fanin.plan(model.train(), x)  # the norm holds the scale
    assert "what the next product reads" not in " ".join(trained["conv.weight"].reasons)
