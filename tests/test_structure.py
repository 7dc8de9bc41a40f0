"""Residual branches, norms, heads and attention logits found in graphs, whatever they are called."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fanin._capture import capture
from fanin._structure import Structure


def structure(model, *inputs):
    return Structure(capture(model, inputs))


def names(found, uses):
    return [found.graph.values[p].name for use in uses for p in use.weights]


class Block(nn.Module):
    """A residual block with its norm where ``norm`` says."""

    def __init__(self, norm="", d=16):
        super().__init__()
        self.norm, self.a, self.b = norm, nn.Linear(d, 2 * d), nn.Linear(2 * d, d)
        self.ln = nn.LayerNorm(d) if norm else None

    def forward(self, x):
        h = self.ln(x) if self.norm == "before" else x
        h = self.b(F.gelu(self.a(h)))
        if self.norm == "within":
            h = self.ln(h)
        y = x + h
        return self.ln(y) if self.norm == "after" else y


@pytest.mark.parametrize("norm", ["", "before", "within", "after"])
def test_residual_branches(norm):
    net = nn.Sequential(nn.Linear(8, 16), *[Block(norm) for _ in range(3)], nn.Linear(16, 4))
    found = structure(net, torch.randn(4, 8))
    assert len(found.branches) == 3
    assert {b.normalised for b in found.branches} == {norm}
    assert len({b.stream for b in found.branches}) == 1
    if norm != "within":
        tails = [names(found, b.tails) for b in found.branches]
        assert tails == [["1.b.weight"], ["2.b.weight"], ["3.b.weight"]]
    assert names(found, found.heads) == ["4.weight"]


def test_a_sum_of_equals_is_no_residual():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return torch.tanh(self.a(x) + self.b(x))

    assert structure(Two(), torch.randn(2, 8)).branches == ()


def test_a_projected_skip():
    class Down(nn.Module):
        def __init__(self):
            super().__init__()
            self.short, self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x):
            return self.short(x) + self.b(torch.relu(self.a(x)))

    (branch,) = structure(Down(), torch.randn(2, 8)).branches
    assert branch.projected


def test_norms_by_hand():
    class Norms(nn.Module):
        def __init__(self):
            super().__init__()
            self.g = nn.Parameter(torch.ones(8))

        def forward(self, x):
            x = self.g * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
            x = x * 2.0
            return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt()

    found = structure(Norms(), torch.randn(2, 8))
    assert len(found.norms) == 2


@pytest.mark.parametrize("fused", [True, False])
def test_attention_logits(fused):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))

        def forward(self, x):
            q, k, v = (f(x).view(2, 5, 2, 8).transpose(1, 2) for f in (self.q, self.k, self.v))
            if fused:
                return F.scaled_dot_product_attention(q, k, v)
            return torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1) @ v

    found = structure(Attention(), torch.randn(2, 5, 16))
    ((q, k, _),) = found.logits
    assert names(found, q) == ["q.weight"]
    assert names(found, k) == ["k.weight"]


def test_usages_of_bare_parameters():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.pos = (
                nn.Parameter(torch.zeros(1, 1, 8)),
                nn.Parameter(torch.zeros(1, 5, 8)),
            )
            self.w, self.scale = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.ones(8))
            self.mask = nn.Parameter(torch.zeros(8))

        def forward(self, x):
            x = torch.cat([self.token.expand(2, -1, -1), x], 1) + self.pos
            return (x @ self.w) * self.scale

    found = structure(Bare(), torch.randn(2, 4, 8))
    indices = found.graph.parameters
    assert {n: found.usage(i) for n, i in indices.items()} == {
        "token": "added", "pos": "added", "w": "weight", "scale": "scale"
    }  # fmt: skip
    assert found.graph.unused == ("mask",)


def test_tied_weights_are_used_twice():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(self.embed(ids))

    found = structure(Tied(), torch.arange(6).view(2, 3))
    assert names(found, found.heads) == ["embed.weight"]
