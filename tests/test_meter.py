"""The finite-width law against draws of weights, and which figures a dtype has lost."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fanin
from fanin._meter import _lost, kurtosis

DRAWS = 150


@pytest.mark.parametrize(
    ("activation", "gain"), [(nn.Identity, 1.0), (nn.ReLU, math.sqrt(2)), (nn.Tanh, 1.6)]
)
@pytest.mark.parametrize("samples", [1, 16])
def test_error_bar_is_the_spread_over_draws(activation, gain, samples):
    """Std of log rms over 150 draws is known to 1/sqrt(300) = 6 %; the law's sharing term, exact for
    linear layers, is an approximation where f is not even: 40 % in all."""
    torch.manual_seed(0)
    x = torch.randn(samples, 64)
    logs, bars = [], []
    for _ in range(DRAWS):
        layers = [m for _ in range(8) for m in (nn.Linear(64, 64, bias=False), activation())]
        for m in layers[::2]:
            nn.init.normal_(m.weight, 0, gain / 8)
        s = fanin.probe(nn.Sequential(*layers), x, backward=False).layers[-1].measured
        logs.append(math.log(s.act_rms))
        bars.append(s.error_bar)
    spread = torch.tensor(logs).std().item()
    bar = math.sqrt(torch.tensor(bars).square().mean().item())
    if (
        activation is nn.Tanh
    ):  # bounded: what came before is forgotten, so the law is an upper bound
        assert spread < bar
    else:
        assert bar == pytest.approx(spread, rel=0.4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("relu", 6.0), ("linear", 3.0), ("leaky_relu", 3 * (1 + 1e-8) / 2 / ((1 + 1e-4) / 2) ** 2)],
)
def test_kurtosis_closed_forms(name, expected):
    """E relu^4 / (E relu^2)^2 = (3/2) / (1/2)^2; leaky relu of slope a: 3 (1 + a^4)/2 / ((1 + a^2)/2)^2."""
    assert kurtosis(name, 1.0) == pytest.approx(expected, rel=1e-6)


def test_kurtosis_of_the_unknown():
    assert kurtosis("softmax", 1.0) is None


def test_norms_reset_the_error_bar_and_attention_ends_it():
    torch.manual_seed(0)
    x = torch.randn(4, 6, 16)
    net = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 16))
    bars = [layer.measured.error_bar for layer in fanin.probe(net, x).layers]
    assert bars[0] > 0
    assert bars[1] == 0
    assert bars[2] > 0
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    layers = fanin.probe(attention, (x, x, x)).layers
    assert next(x for x in layers if x.op == "matmul").measured.error_bar is None


def test_lost_figures():
    tiny = torch.finfo(torch.float32).tiny
    assert _lost([1.0, 1e-20, 0.0], torch.float32) == 1  # a product of two such numbers vanishes
    assert _lost([1.0, 1e-10, 0.0], torch.float32) == 0  # here a zero weight made the zero
    assert _lost([tiny, math.inf, math.nan, 1.0], torch.float32) == 3
    assert _lost([1e-200, 1.0], torch.float64) == 0
