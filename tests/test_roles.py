from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import fanin
from fanin import ModelError
from fanin._roles import canonical, describe, slots_of


def by_name(facts):
    return {p.name: p for p in facts.params}


@pytest.mark.parametrize(
    ("name", "root", "expected"),
    [
        ("_orig_mod.a.weight", False, "a.weight"),
        ("a._orig_mod.b._checkpoint_wrapped_module.weight", False, "a.b.weight"),
        ("_fsdp_wrapped_module.a.weight", False, "a.weight"),
        ("module.a.weight", True, "a.weight"),
        ("module.a.weight", False, "module.a.weight"),
        ("my_orig_mod.a", False, "my_orig_mod.a"),
    ],
)
def test_canonical(name, root, expected):
    assert canonical(name, wrapped_root=root) == expected


def test_compiled_and_checkpointed_models_keep_their_names():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    names = [s.name for s in slots_of(net)]
    assert [s.name for s in slots_of(torch.compile(net))] == names


def test_ties_stand_once_under_the_first_name():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = nn.Embedding(20, 8)
            self.body = nn.Linear(8, 8)
            self.twin = self.body
            self.head = nn.Linear(8, 20, bias=False)
            self.head.weight = self.emb.weight

    found = {s.name: s.aliases for s in slots_of(Tied())}
    assert found == {
        "emb.weight": ["head.weight"],
        "body.weight": ["twin.weight"],
        "body.bias": ["twin.bias"],
    }


def test_lazy_modules_are_a_clear_error():
    with pytest.raises(ModelError, match="1.weight is lazy"):
        describe(nn.Sequential(nn.ReLU(), nn.LazyLinear(3)))


def test_no_parameters_is_a_clear_error():
    with pytest.raises(ModelError, match="no parameters"):
        describe(nn.ReLU())


def test_nonlinearity_by_module_order():
    net = nn.Sequential(
        nn.Linear(8, 8), nn.LayerNorm(8), nn.Dropout(0.1), nn.LeakyReLU(0.2), nn.Linear(8, 8), nn.Linear(8, 8), nn.Tanh(),
        nn.Linear(8, 2),
    )  # fmt: skip
    facts = describe(net)
    found = {
        n: str(p.activation) if p.activation else None
        for n, p in by_name(facts).items()
        if n.endswith("weight")
    }
    assert found == {
        "0.weight": "leaky_relu(0.2)",
        "1.weight": None,
        "4.weight": None,
        "5.weight": "tanh",
        "7.weight": None,
    }
    assert by_name(facts)["0.bias"].activation.name == "leaky_relu"
    assert by_name(facts)["7.weight"].role == "head"
    assert not facts.traced
    assert facts.normalised
    assert "not analysed" in facts.notes[0]


class Functional(nn.Module):
    """Registered in reverse, applied in order, with functional nonlinearities."""

    def __init__(self, f):
        super().__init__()
        self.out = nn.Linear(8, 3)
        self.second = nn.Linear(8, 8)
        self.first = nn.Linear(8, 8)
        self.f = f

    def forward(self, x):
        return self.out(self.f(self.second(self.f(self.first(x)))))


@pytest.mark.parametrize(
    ("f", "name"),
    [
        (torch.tanh, "tanh"),
        (F.relu, "relu"),
        (lambda x: x.clamp(min=0), "relu"),
        (F.gelu, "gelu"),
        (F.silu, "silu"),
        (lambda x: x * torch.sigmoid(x), "silu"),
        (F.elu, "elu"),
        (F.selu, "selu"),
        (F.mish, "mish"),
        (F.hardswish, "hardswish"),
        (F.softplus, "softplus"),
        (F.relu6, "relu6"),
        (torch.sin, "sin"),
        (lambda x: F.dropout(torch.tanh(x * 0.5 + 1), 0.1), "tanh"),
    ],
)
def test_nonlinearity_along_one_run(f, name):
    net = Functional(f)
    facts = describe(net, torch.randn(4, 8))
    params = by_name(facts)
    assert facts.traced
    assert params["first.weight"].activation.name == name
    assert params["second.weight"].activation.name == name
    assert params["out.weight"].activation is None
    assert params["out.weight"].role == "head"
    assert facts.layers == 3


def test_parameters_of_functional_calls():
    facts = describe(Functional(lambda x: F.leaky_relu(x, 0.3)), torch.randn(4, 8))
    assert by_name(facts)["first.weight"].activation.params == (0.3,)


def test_residual_sums_are_seen_in_a_run():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            return x + self.down(torch.relu(self.up(x)))

    net = nn.Sequential(nn.Linear(8, 8), *[Block() for _ in range(5)], nn.Linear(8, 2))
    facts = describe(net, torch.randn(4, 8))
    assert facts.branches == 5
    assert by_name(facts)["2.down.weight"].role == "ffn_out"
    assert by_name(facts)["2.up.weight"].role == "linear"


def test_norm_free_residual_stream_stays_of_order_one():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)

        def forward(self, x):
            return x + self.down(torch.relu(self.up(x)))

    net = nn.Sequential(*[Block() for _ in range(40)])
    x = torch.randn(256, 64)
    fanin.initialize_(net, x)
    # each of R branches adds 1/R of the stream: (1 + 1/R)^R < e
    assert 1 < net(x).square().mean().item() < 4


def test_a_failing_run_falls_back_and_says_so():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    facts = describe(net, torch.randn(4, 9))
    assert not facts.traced
    assert "the graph could not be captured (ModelError" in facts.notes[0]
    assert by_name(facts)["0.weight"].activation.name == "relu"


def test_meta_models_are_described():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    facts = describe(net, torch.empty(4, 8, device="meta"))
    assert facts.traced
    assert by_name(facts)["0.weight"].activation.name == "relu"


def test_describing_leaves_the_model_bit_equal():
    net = nn.Sequential(
        nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2)
    ).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    rng = torch.get_rng_state()
    x = torch.randn(16, 8)
    rng = torch.get_rng_state()
    describe(net, x)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


def test_parametrized_weights_are_one_logical_tensor():
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 2))
    params = by_name(describe(net, torch.randn(4, 8)))
    assert set(params) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert params["0.weight"].through == (
        "0.parametrizations.weight.original0",
        "0.parametrizations.weight.original1",
    )
    assert params["0.weight"].activation.name == "relu"
    assert params["0.weight"].kind == "Linear"


def test_hook_based_weight_norm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        layer = nn.utils.weight_norm(nn.Linear(8, 8))
    params = by_name(describe(nn.Sequential(layer, nn.ReLU())))
    assert params["0.weight"].through == ("0.weight_g", "0.weight_v")
