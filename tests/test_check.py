"""Predictions against runs of the model, and what check leaves behind."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fanin

SEEDS = 6
WIDTH = 128


class Attention(nn.Module):
    def __init__(self, d=WIDTH, heads=4, causal=True):
        super().__init__()
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.heads, self.causal = heads, causal

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(b, t, d))


class Gated(nn.Module):
    def __init__(self, d=WIDTH):
        super().__init__()
        self.gate, self.up, self.down = (
            nn.Linear(d, 2 * d),
            nn.Linear(d, 2 * d),
            nn.Linear(2 * d, d),
        )

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln1, self.ln2, self.attn, self.mlp = (
            nn.LayerNorm(WIDTH),
            nn.RMSNorm(WIDTH),
            Attention(),
            Gated(),
        )

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


def mlp():
    return nn.Sequential(*[m for _ in range(8) for m in (nn.Linear(WIDTH, WIDTH), nn.GELU())]), (
        16,
        WIDTH,
    )


def conv():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1, groups=4),
        nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    ), (16, 3, 12, 12)  # fmt: skip


def gpt():
    return nn.Sequential(nn.Linear(32, WIDTH), Block(), Block(), nn.LayerNorm(WIDTH)), (8, 24, 32)


@pytest.mark.parametrize("build", [mlp, conv, gpt])
def test_leaf_modules_are_predicted(build):
    """Within 0.25 in log2 plus 4 standard errors of the mean over seeds, which the seeds give."""
    activations: dict[str, list[float]] = {}
    gradients: dict[str, list[float]] = {}
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        model, shape = build()
        x = torch.randn(shape)
        for name, layer in fanin.probe(model, x, predict=False).modules.items():
            activations.setdefault(name, []).append(math.log2(layer.measured.act_rms))
            gradients.setdefault(name, []).append(math.log2(layer.measured.grad_rms))
    predicted = fanin.check(model, x).modules
    assert set(predicted) == set(activations)
    for field, runs in (("act_rms", activations), ("grad_rms", gradients)):
        for name, logs in runs.items():
            mean = sum(logs) / SEEDS
            error = math.sqrt(sum((v - mean) ** 2 for v in logs) / (SEEDS - 1) / SEEDS)
            off = abs(math.log2(getattr(predicted[name].predicted, field)) - mean)
            assert off < 0.25 + 4 * error, (name, field, off)


def test_a_plan_is_checked_before_it_is_written():
    model = nn.Sequential(*[m for _ in range(30) for m in (nn.Linear(64, 64), nn.Tanh())])
    x = torch.randn(16, 64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert not fanin.check(model, x).ok
    assert fanin.check(model, x, plan=fanin.plan(model, x)).ok
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_meta_models_are_checked_under_a_plan():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4096, 16384), nn.ReLU(), nn.Linear(16384, 4096))
    x = torch.empty(2, 4096, device="meta")
    report = fanin.check(model, x, plan=fanin.plan(model, x, scheme="kaiming"))
    assert report.modules["0"].predicted.act_rms == pytest.approx(math.sqrt(2), rel=1e-3)


def test_probe_has_both():
    model, shape = mlp()
    report = fanin.probe(model, torch.randn(shape))
    assert all(x.predicted and x.measured for x in report.layers)


def test_what_cannot_run_is_an_error():
    with pytest.raises(fanin.ModelError, match=r"\[4, 9\]"):
        fanin.check(nn.Sequential(nn.Linear(8, 8)), torch.randn(4, 9))


def test_limits():
    model, x = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(6)]), torch.randn(8, 64)
    assert fanin.check(model, x).ok
    assert not fanin.check(model, x, depth_limits=fanin.Limits(shrink=0.5)).ok
