"""`probe` against hooks and autograd written here, on networks whose fate is known."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fanin
from fanin import Inputs, ModelError


def mlp(depth, width, activation=nn.ReLU, std=None, *, dtype=torch.float32):
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), activation()]
    model = nn.Sequential(*layers).to(dtype)
    if std is not None:
        with torch.no_grad():
            for m in model[::2]:
                m.weight.normal_(0, std)
                m.bias.zero_()
    return model


def codes(report):
    return [f.code for f in report.findings]


def reference(model, x, loss_fn):
    """act rms, mean, correlation and grad rms of each child's output, in float64, by plain autograd."""
    outputs, value = [], x
    for module in model:
        value = module(value)
        value.retain_grad()
        outputs.append(value)
    loss_fn(value).backward()
    figures = []
    for t in outputs:
        d, g = t.detach().double(), t.grad.double()
        unit = F.normalize(d.flatten(1), dim=1)
        cosines = unit @ unit.T
        off = cosines[~torch.eye(len(d), dtype=torch.bool)]
        figures.append((d.square().mean().sqrt(), d.mean(), off.mean(), g.square().mean().sqrt()))
    model.zero_grad()
    return [tuple(float(v) for v in f) for f in figures]


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU])
def test_figures_are_those_of_plain_autograd(activation):
    model = mlp(6, 48, activation)
    x = torch.randn(32, 48)
    target = torch.randint(48, (32,))

    def loss_fn(y):
        return F.cross_entropy(y, target)

    report = fanin.probe(model, x, loss_fn=loss_fn)
    expected = reference(model, x, loss_fn)
    assert len(report.layers) == len(expected)
    for layer, (rms, mean, correlation, grad) in zip(report.layers, expected, strict=True):
        s = layer.measured
        # float32 sums of 48 to 1536 terms: a few units of 1e-7
        assert s.act_rms == pytest.approx(rms, rel=1e-5)
        assert s.act_mean == pytest.approx(mean, abs=1e-5 * rms)
        assert s.correlation == pytest.approx(correlation, abs=1e-5)
        assert s.grad_rms == pytest.approx(grad, rel=1e-4)
    assert report.loss == pytest.approx(loss_fn(model(x)).item(), rel=1e-6)


def test_dead_and_saturated_fractions():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh())
    with torch.no_grad():
        model[0].bias[:3] = -100.0
        model[2].weight.mul_(1000)
    report = fanin.probe(model, torch.randn(64, 8))
    assert report.modules["1"].measured.dead >= 3 / 8
    y = model(torch.randn(64, 8))
    assert report.modules["3"].measured.saturated == pytest.approx(
        (y.abs() > 0.97).float().mean().item(), abs=0.15
    )


def test_deep_relu_default_looks_healthy_but_has_collapsed():
    """Activation rms alone is flat; the inputs have become one point and the gradient is gone."""
    model = mlp(100, 512)
    report = fanin.probe(model, torch.randn(32, 512))
    tail = [x.measured.act_rms for x in report.layers[20::2]]
    assert max(tail) / min(tail) < 1.5
    assert {"FAN102", "FAN104"} <= set(codes(report))
    assert "FAN103" not in codes(report)
    assert not report.ok
    for f in report.findings:
        assert f.why
        assert f.fix
    first = report.layers[0].measured.grad_rms
    assert 1e-42 < first < 1e-34  # 2.45 a layer over 100 layers: 1e-39 of the last


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vanished_is_a_number_and_not_zero(dtype):
    """50 linear layers of std 1e-7: 1e-7 * sqrt(16) a layer; float32 underflows, the report does not."""
    model = mlp(40, 16, nn.Identity, std=1e-7, dtype=dtype)
    report = fanin.probe(model, torch.randn(8, 16, dtype=dtype), backward=False)
    last = report.layers[-1].measured.act_rms
    assert math.log10(last) == pytest.approx(40 * math.log10(1e-7 * 4), abs=6)
    assert "FAN102" in codes(report)
    if dtype is torch.float32:
        assert any("float64" in n for n in report.notes)


def test_down_to_1e_300():
    x = torch.full((4, 8), 1e-300, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(8, 8, bias=False, dtype=torch.float64))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(8))
    report = fanin.probe(model, x, backward=False)
    assert report.layers[0].measured.act_rms == pytest.approx(1e-300, rel=1e-12)
    assert report.layers[0].measured.correlation == pytest.approx(1.0)


def test_small_weights_vanish_and_are_denormal():
    report = fanin.probe(mlp(100, 64, nn.Tanh, std=0.01), torch.randn(16, 64))
    assert {"FAN102", "FAN107"} <= set(codes(report))


def test_large_weights_explode():
    report = fanin.probe(mlp(60, 32, nn.ReLU, std=1.0), torch.randn(16, 32))
    assert "FAN101" in codes(report)


def test_large_weights_saturate():
    report = fanin.probe(mlp(5, 64, nn.Tanh, std=2.0), torch.randn(16, 64))
    assert "FAN105" in codes(report)


def test_loss_far_from_chance():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    x, y = torch.randn(128, 64), torch.randint(10, (128,))
    assert codes(fanin.probe(model, x, loss_fn=lambda o: F.cross_entropy(o, y))) == []
    with torch.no_grad():
        model[2].weight.mul_(100)
    report = fanin.probe(model, x, loss_fn=lambda o: F.cross_entropy(o, y))
    assert "FAN106" in codes(report)
    assert report.chance == pytest.approx(math.log(10))


def healthy():
    he = mlp(10, 128)
    fanin.initialize_(he, torch.randn(8, 128), scheme="kaiming")
    encoder = nn.TransformerEncoderLayer(32, 4, 128, batch_first=True, norm_first=True)
    block = [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return {
        "he": (he, torch.randn(64, 128)),
        "transformer": (nn.TransformerEncoder(encoder, 3, enable_nested_tensor=False), torch.randn(8, 12, 32)),
        "batch norm": (nn.Sequential(nn.Conv2d(3, 8, 3), *block, *block, nn.Flatten(), nn.Linear(8 * 36, 10)), torch.randn(16, 3, 8, 8)),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["he", "transformer", "batch norm"])
def test_healthy_networks_have_no_findings(name):
    model, x = healthy()[name]
    assert codes(fanin.probe(model, x)) == []


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_is_bit_equal_afterwards(fail):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(
                nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2)
            )

        def forward(self, x):
            y = self.body(x)
            if fail:
                raise ValueError("stop")
            return y

    model = Net().train()
    model.body[0].weight.grad = torch.ones(8, 8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rng, x = torch.get_rng_state(), torch.randn(16, 8, requires_grad=True)
    rng, copy = torch.get_rng_state(), x.detach().clone()
    if fail:
        with pytest.raises(ModelError, match="ValueError: stop"):
            fanin.probe(model, x)
    else:
        fanin.probe(model, x)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert torch.equal(rng, torch.get_rng_state())
    assert torch.equal(x.detach(), copy)
    assert x.grad is None
    assert torch.equal(model.body[0].weight.grad, torch.ones(8, 8))
    assert model.body[4].weight.grad is None
    assert all(m.training for m in model.modules())
    assert not any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules()
    )


def test_the_same_call_gives_the_same_report():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    x = torch.randn(16, 8)
    assert fanin.probe(model, x) == fanin.probe(model, x)


def test_inputs_in_all_forms():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x, scale=1.0, *, shift=None):
            y = self.linear(x) * scale
            return {"logits": y if shift is None else y + shift, "n": 3}

    net, x = Net(), torch.randn(5, 4)
    assert len(fanin.probe(net, x).layers) == 2
    assert len(fanin.probe(net, (x, 2.0)).layers) == 2
    assert len(fanin.probe(net, {"x": x, "shift": x}).layers) == 3
    assert len(fanin.probe(net, Inputs(x, shift=x)).layers) == 3


def test_frozen_models_have_gradients_all_the_same():
    model = mlp(3, 8).requires_grad_(False)
    report = fanin.probe(model, torch.randn(4, 8))
    assert report.layers[0].measured.grad_rms > 0
    assert not any(p.requires_grad for p in model.parameters())


def test_without_backward():
    report = fanin.probe(mlp(3, 8), torch.randn(4, 8), backward=False)
    assert all(x.measured.grad_rms is None for x in report.layers)
    assert report.layers[0].measured.act_rms > 0


def test_single_sample_has_no_correlation():
    assert fanin.probe(mlp(2, 8), torch.randn(1, 8)).layers[0].measured.correlation is None


def test_wrong_inputs_name_the_module_and_the_shapes():
    with pytest.raises(ModelError, match=r"in module '0' \(Linear\).*float32 \[4, 9\]"):
        fanin.probe(mlp(2, 8), torch.randn(4, 9))
    with pytest.raises(ModelError, match="lazy"):
        fanin.probe(nn.LazyLinear(3), torch.randn(4, 9))
    with pytest.raises(ModelError, match="meta device"):
        fanin.probe(nn.Linear(3, 3, device="meta"), torch.randn(4, 3))
    with pytest.raises(ModelError, match="one floating number"):
        fanin.probe(mlp(2, 8), torch.randn(4, 8), loss_fn=lambda y: y)


def test_a_large_tensor_is_sampled_without_bias():
    """Beyond the cap statistics are of a part: within 5 standard errors of the whole."""
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1))
    x = torch.randn(8, 3, 64, 64)
    s = fanin.probe(model, x).layers[0].measured
    y = model(x).detach().double()
    assert s.act_rms == pytest.approx(y.square().mean().sqrt().item(), rel=0.02)


def test_half_precision():
    model, x = mlp(3, 32).bfloat16(), torch.randn(8, 32).bfloat16()
    report = fanin.probe(model, x)
    assert report.dtype == "bfloat16"
    assert report.layers[-1].measured.act_rms == pytest.approx(
        model(x).double().square().mean().sqrt().item(), rel=1e-2
    )
