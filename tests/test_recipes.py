"""What the schemes decide, against torch and against the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fanin
from fanin import InvalidValueError, PlanError, UncoveredParameterError
from fanin.distributions import Constant, Normal, Orthogonal, Uniform
from fanin.initializers import KaimingNormal
from fanin.schemes import SCHEMES, Scheme, register_scheme


def everything():
    """A module of every kind that a plan from types must know."""
    return nn.ModuleDict(
        {
            "linear": nn.Linear(24, 48),
            "conv1": nn.Conv1d(8, 16, 3),
            "conv2": nn.Conv2d(8, 16, 3, stride=2),
            "conv3": nn.Conv3d(4, 8, 3),
            "grouped": nn.Conv2d(16, 32, 3, groups=4),
            "transposed": nn.ConvTranspose2d(16, 8, 4, stride=2),
            "embedding": nn.Embedding(32, 8, padding_idx=2),
            "bag": nn.EmbeddingBag(32, 8),
            "bilinear": nn.Bilinear(6, 7, 8),
            "rnn": nn.RNN(8, 12),
            "lstm": nn.LSTM(8, 12, 2, bidirectional=True, proj_size=5),
            "gru": nn.GRU(8, 12),
            "lstm_cell": nn.LSTMCell(8, 12),
            "attention": nn.MultiheadAttention(16, 4, add_bias_kv=True),
            "separate": nn.MultiheadAttention(16, 4, kdim=6, vdim=7),
            "layer_norm": nn.LayerNorm(8),
            "batch_norm": nn.BatchNorm2d(8),
            "group_norm": nn.GroupNorm(2, 8),
            "instance_norm": nn.InstanceNorm2d(8, affine=True),
            "rms_norm": nn.RMSNorm(8),
            "prelu": nn.PReLU(4),
            "encoder": nn.TransformerEncoderLayer(16, 4, 64),
            "decoder": nn.TransformerDecoderLayer(16, 4, 64),
            "head": nn.Linear(48, 10),
        }
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_covers_every_kind(scheme):
    net = everything()
    plan = fanin.plan(net, scheme=scheme)
    assert set(plan.names) == {n for n, _ in net.named_parameters()}
    assert all(r.reasons and math.isfinite(r.std) for r in plan)
    fanin.initialize_(net, scheme=scheme)
    for row in plan:
        tensor = net.get_parameter(row.name)
        assert torch.isfinite(tensor).all()
        if row.std and tensor.numel() > 500:
            # a sample std of n normals has relative standard error 1/sqrt(2n); 5 of them
            tolerance = 5 / math.sqrt(2 * tensor.numel())
            assert tensor.double().std().item() == pytest.approx(row.std, rel=tolerance), row.name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_has_a_source(scheme):
    assert SCHEMES[scheme].summary
    assert SCHEMES[scheme].source


@pytest.mark.parametrize("scheme", sorted(set(SCHEMES) - {"torch"}))
def test_clones_never_come_out_identical(scheme):
    net = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 4, 32), 3, enable_nested_tensor=False
    )
    assert torch.equal(net.layers[0].linear1.weight, net.layers[2].linear1.weight)
    fanin.initialize_(net, scheme=scheme)
    for name in (
        "linear1.weight",
        "linear2.weight",
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
    ):
        a, b = (net.layers[i].get_parameter(name) for i in (0, 2))
        assert not torch.equal(a, b)


def test_torch_scheme_is_what_constructors_draw():
    """Pooled over 40 constructions, each tensor's moments are those of the plan's distribution."""
    torch.manual_seed(0)
    samples = {}
    for _ in range(40):
        for name, p in everything().named_parameters():
            samples.setdefault(name, []).append(p.detach().double().flatten())
    for row in fanin.plan(everything(), scheme="torch"):
        pool = torch.cat(samples[row.name])
        if isinstance(row.distribution, Constant):
            assert torch.equal(pool, torch.full_like(pool, row.distribution.value)), row.name
            continue
        kurtosis = 1.8 if isinstance(row.distribution, Uniform) else 3.0
        error = math.sqrt((kurtosis - 1) / pool.numel())  # relative, of the second moment
        assert pool.square().mean().item() == pytest.approx(row.std**2, rel=5 * error), row.name
        if isinstance(row.distribution, Uniform):
            assert pool.max().item() <= row.distribution.high * (1 + 1e-6)


def test_padding_row_stays_zero():
    net = nn.Sequential(nn.Embedding(10, 4, padding_idx=3))
    for scheme in SCHEMES:
        fanin.initialize_(net, scheme=scheme)
        assert torch.equal(net[0].weight[3], torch.zeros(4))
        assert (net[0].weight[[0, 1, 2, 4, 9]].abs().sum(1) > 0).all()


def test_forget_gate():
    net = nn.LSTM(6, 8, 2)
    fanin.initialize_(net)
    for layer in range(2):
        total = getattr(net, f"bias_ih_l{layer}") + getattr(net, f"bias_hh_l{layer}")
        assert torch.equal(total, torch.tensor([0.0] * 8 + [1.0] * 8 + [0.0] * 16))


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_weights_are_orthogonal_per_gate(kind, gates):
    net = kind(6, 8)
    fanin.initialize_(net)
    for w in net.weight_hh_l0.detach().double().chunk(gates):
        assert torch.allclose(w @ w.T, torch.eye(8, dtype=torch.float64), atol=1e-6)
    row = fanin.plan(net)["weight_ih_l0"]
    assert row.std == pytest.approx(1 / math.sqrt(6))


def test_packed_attention_is_scaled_per_slice():
    plan = fanin.plan(nn.MultiheadAttention(64, 4), scheme="xavier")
    row = plan["in_proj_weight"]
    assert [p.name for p in row.packed] == ["q", "k", "v"]
    assert row.std == pytest.approx(math.sqrt(2 / 128))
    separate = fanin.plan(nn.MultiheadAttention(64, 4, kdim=32), scheme="xavier")
    assert separate["k_proj_weight"].std == pytest.approx(math.sqrt(2 / 96))


def test_kaiming_uses_exact_fans():
    plan = fanin.plan(
        nn.Sequential(nn.ConvTranspose2d(512, 8, 4, stride=2), nn.ReLU()), scheme="kaiming"
    )
    assert plan["0.weight"].std == pytest.approx(math.sqrt(2 / 2048))


def test_tied_embedding_keeps_logits_of_order_one():
    class LM(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.head = nn.Embedding(100, 64), nn.Linear(64, 100, bias=False)
            self.head.weight = self.emb.weight

    row = fanin.plan(LM())["emb.weight"]
    assert row.aliases == ("head.weight",)
    assert row.distribution == Normal(1 / 8)
    net = LM()
    fanin.initialize_(net)
    assert net.head.weight is net.emb.weight


def test_gpt2_divides_residual_projections():
    layer = nn.TransformerEncoderLayer(16, 4, 64, norm_first=True)
    plan = fanin.plan(nn.TransformerEncoder(layer, 6, enable_nested_tensor=False), scheme="gpt2")
    assert plan["layers.0.linear1.weight"].std == 0.02
    assert plan["layers.0.linear2.weight"].std == pytest.approx(0.02 / math.sqrt(12))
    assert plan["layers.5.self_attn.out_proj.weight"].std == pytest.approx(0.02 / math.sqrt(12))
    assert plan["layers.5.self_attn.out_proj.weight"].branch_depth == 12


def test_edge_of_chaos_is_critical():
    plan = fanin.plan(
        nn.Sequential(*[m for _ in range(30) for m in (nn.Linear(50, 50), nn.Tanh())]),
        scheme="edge_of_chaos",
    )
    sigma_w2, sigma_b2 = fanin.edge_of_chaos("tanh", q=5 / 30)
    assert plan["3" if False else "2.weight"].distribution == Orthogonal(math.sqrt(sigma_w2))
    assert plan["2.bias"].distribution.std == pytest.approx(math.sqrt(sigma_b2))


def test_edge_of_chaos_that_does_not_exist_names_the_layer():
    net = nn.Sequential(nn.Linear(5, 5), nn.Sigmoid(), nn.Linear(5, 2))
    with pytest.raises(PlanError, match=r"0\.weight: .*scheme='auto'"):
        fanin.plan(net, scheme="edge_of_chaos")
    assert fanin.plan(net)["0.weight"].std == pytest.approx(fanin.gain("sigmoid") / math.sqrt(5))


def test_auto_says_what_it_went_by():
    net = nn.Sequential(nn.Linear(5, 5), nn.Tanh())
    assert any("the graph was not analysed" in n for n in fanin.plan(net).notes)
    assert any("the model's graph of 2 ops" in n for n in fanin.plan(net, torch.randn(2, 5)).notes)


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.table = nn.Parameter(torch.zeros(4, 8))
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(x + self.token)


def test_bare_parameters_are_an_error_that_says_what_to_do():
    with pytest.raises(UncoveredParameterError) as caught:
        fanin.plan(Bare())
    message = str(caught.value)
    assert "token  shape [1, 1, 8]" in message
    assert "table  shape [4, 8]" in message
    assert "overrides={'token': fanin.distributions.Normal(0.02)}" in message
    assert "register_module" in message


def test_overrides():
    plan = fanin.plan(
        Bare(),
        overrides={
            "*": Normal(0.5),
            "t*": Normal(0.02),
            "table": KaimingNormal(nonlinearity="relu"),
        },
    )
    assert plan["token"].distribution == Normal(0.02)
    assert plan["table"].std == pytest.approx(math.sqrt(2 / 8))
    assert plan["linear.bias"].distribution == Normal(0.5)
    assert plan["token"].reasons == ("overrides['t*']",)
    with pytest.raises(
        PlanError, match=r"overrides\['tokne'\] matches no parameter. Did you mean 'token'"
    ):
        fanin.plan(Bare(), overrides={"tokne": Normal(0.02)})
    with pytest.raises(PlanError, match="must be a distribution"):
        fanin.plan(Bare(), overrides={"*": 0.02})


def test_override_of_an_embedding_keeps_its_padding_row():
    net = nn.Embedding(5, 4, padding_idx=0)
    fanin.initialize_(net, overrides={"weight": Normal(0.02)})
    assert torch.equal(net.weight[0], torch.zeros(4))


def test_unknown_scheme_names_the_known_ones():
    with pytest.raises(
        InvalidValueError,
        match="scheme must be one of auto, torch, kaiming.*Did you mean 'kaiming'",
    ):
        fanin.plan(nn.Linear(2, 2), scheme="kaimign")


def test_own_schemes():
    mine = Scheme("half", "half of kaiming", "-", SCHEMES["kaiming"].rules)
    assert fanin.plan(nn.Linear(4, 4), scheme=mine).scheme == "half"
    register_scheme(mine)
    try:
        assert fanin.plan(nn.Linear(4, 4), scheme="half").scheme == "half"
        with pytest.raises(InvalidValueError, match="exists already"):
            register_scheme(mine)
    finally:
        SCHEMES.pop("half")
