"""Quotients of sums that share their weights: which are found, and how large they are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fanin
from fanin import Inputs
from fanin._capture import capture
from fanin._check import propagated
from fanin._quotients import weighted_means


class Weighted(nn.Module):
    """How a quotient is made from scores and values, both linear in x: (batch, places, width)."""

    def __init__(self, quotient, width=16):
        super().__init__()
        self.score, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.quotient = quotient

    def forward(self, x):
        return self.quotient(self.score(x), self.value(x))


def decayed(s, v, c=0.8):
    w, top, bottom, out = s.exp(), torch.zeros_like(v[:, 0]), torch.zeros_like(v[:, 0]), []
    for t in range(v.shape[1]):
        top, bottom = c * top + w[:, t] * v[:, t], c * bottom + w[:, t]
        out.append(top / bottom)
    return torch.stack(out, 1)


def learned(s, v):
    w, top, bottom, out = s.exp(), torch.zeros_like(v[:, 0]), torch.zeros_like(v[:, 0]), []
    decay = s[:, 0].sigmoid()
    for t in range(v.shape[1]):
        top, bottom = v[:, t] * w[:, t] + decay * top, w[:, t] + decay * bottom
        out.append(top / (bottom + 1e-6))
    return torch.stack(out, 1)


TARGETS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def scattered(s, v):
    w = s[..., :1].sigmoid()
    top = torch.zeros(v.shape[0], 3, v.shape[2]).index_add(1, TARGETS, w * v)
    return top / torch.zeros(v.shape[0], 3, 1).index_add(1, TARGETS, w).clamp(min=1e-9)


MEANS = {
    "sum": lambda s, v: (s.exp() * v).sum(1) / s.exp().sum(1),
    "cumsum": lambda s, v: (v * s.sigmoid()).cumsum(1) / s.sigmoid().cumsum(1),
    "scattered": scattered,
    "decayed": lambda s, v: decayed(s, v, 0.8),
    "learned": learned,
    "viewed": lambda s, v: (s.exp() * v).unsqueeze(1).mean(2) / s.exp().unsqueeze(1).mean(2),
}
OTHERS = {
    "other weights": lambda s, v: (s.exp() * v).sum(1) / v.exp().sum(1),
    "signed weights": lambda s, v: (s * v).sum(1) / (s.sum(1) + 100.0),
    "other axis": lambda s, v: (s.exp() * v).sum(1, True) / s.exp().sum(2, True),
    "no sum": lambda s, v: v / s.exp(),
    "rounded": lambda s, v: torch.div((s.exp() * v).sum(1), s.exp().sum(1), rounding_mode="floor"),
    "half": lambda s, v: (s.exp() * v).sum(1) / s[:, :4].exp().sum(1),
}


def graph_of(quotient):
    return capture(Weighted(quotient), Inputs(torch.randn(4, 8, 16)))


@pytest.mark.parametrize("name", MEANS)
def test_weighted_means_are_found(name):
    graph = graph_of(MEANS[name])
    made = {n.outputs[0] for n in graph.nodes if n.op in {"div", "true_divide"}}
    assert made
    assert weighted_means(graph) == made


@pytest.mark.parametrize("name", OTHERS)
def test_other_quotients_are_not(name):
    assert not weighted_means(graph_of(OTHERS[name]))


@pytest.mark.parametrize("name", MEANS)
def test_their_size_and_gradients(name):
    """Against 40 draws of 4 x 16 numbers a place: 3 % of sampling error.

    The ratio of expectations puts more weight on what has large weights: up to a quarter too large
    for a few lognormal weights of variance 1, where a product of independent tensors is 3 to 8 times.
    """
    real, slopes = [], []
    for seed in range(40):
        torch.manual_seed(seed)
        model, x = Weighted(MEANS[name]), torch.randn(4, 8, 16)
        fanin.initialize_(model, x, scheme="kaiming", seed=seed)
        out = model(x)
        grad = torch.autograd.grad(out, model.value.weight, torch.randn(out.shape))[0]
        real.append(out.square().mean().item())
        slopes.append(grad.square().mean().item())
    graph = capture(model, Inputs(x))
    signals = propagated(model, graph, fanin.plan(model, x, scheme="kaiming"))
    rms = math.sqrt(signals.values[graph.outputs[0]].second_moment)
    assert rms == pytest.approx(math.sqrt(sum(real) / 40), rel=0.3)
    slope = math.sqrt(signals.grads[graph.parameters["value.weight"]].second_moment)
    assert slope == pytest.approx(math.sqrt(sum(slopes) / 40), rel=0.35)
