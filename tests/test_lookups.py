"""Tables of rows under `auto`: beside positions, and as output layers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fanin
from fanin._analysis import analyse
from fanin._lookups import BESIDE, lookups
from fanin._solve import HEAD, SMALLEST
from fanin.distributions import Normal

D, V, T = 64, 200, 24


class Language(nn.Module):
    """Tokens, positions, one block, a norm, a head."""

    def __init__(self, *, tied=True, scale=1.0, normed=True, bare=False):
        super().__init__()
        self.tokens = nn.Embedding(V, D)
        self.positions = nn.Parameter(torch.randn(T, D)) if bare else nn.Embedding(T, D)
        self.types = nn.Embedding(2, D)
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)
        self.norm = nn.LayerNorm(D) if normed else nn.Identity()
        self.head = nn.Linear(D, V, bias=False)
        if tied:
            self.head.weight = self.tokens.weight
        self.scale = scale

    def forward(self, ids):
        where = torch.arange(ids.shape[1])
        positions = (
            self.positions if isinstance(self.positions, nn.Parameter) else self.positions(where)
        )
        x = self.tokens(ids) * self.scale + positions
        x = F.dropout(x + self.types(torch.zeros_like(ids)), 0.1, self.training)
        return self.head(self.norm(x + self.down(F.gelu(self.up(x)))))


def ids():
    return torch.randint(V, (32, T), generator=torch.Generator().manual_seed(0))


def found(net):
    structure = analyse(net, ids()).structure
    assert structure is not None
    return lookups(structure)


@pytest.mark.parametrize("bare", [False, True])
def test_positions_and_types_stand_beside_tokens(bare):
    (lookup,) = found(Language(bare=bare))
    assert lookup.table == "tokens.weight"
    assert set(lookup.beside) == {"positions" if bare else "positions.weight", "types.weight"}
    assert lookup.tied
    assert lookup.scale == "norm.weight"


def test_factors_on_the_way_count():
    (lookup,) = found(Language(scale=8.0))
    assert set(lookup.beside.values()) == {8.0}


def test_untied():
    (lookup,) = found(Language(tied=False))
    assert not lookup.tied
    assert not lookup.scale
    plan = fanin.plan(Language(tied=False), ids())
    assert plan["tokens.weight"].std == pytest.approx(1.0)
    assert plan["positions.weight"].std == pytest.approx(BESIDE)
    assert plan["types.weight"].std == pytest.approx(BESIDE)


@pytest.mark.parametrize("normed", [True, False])
def test_logits_of_a_tied_head(normed):
    """Rows stay at `SMALLEST` where a norm can give way, and logits below 1 all the same."""
    torch.manual_seed(0)
    net = Language(normed=normed).eval()
    plan = fanin.initialize_(net, ids())
    logits = net(ids())
    assert float(logits.detach().square().mean().sqrt()) < 1.1
    if normed:
        assert plan["tokens.weight"].std == pytest.approx(SMALLEST, rel=1e-3)
        assert plan["norm.weight"].distribution.mean == pytest.approx(SMALLEST, rel=1e-3)
        assert plan["positions.weight"].std == pytest.approx(SMALLEST, rel=1e-3)
    loss = F.cross_entropy(logits.flatten(0, 1), ids().roll(5, 1).flatten())
    assert float(loss.detach()) < math.log(V) + 0.5


def test_wide_models_keep_their_logits_in_bounds():
    """sqrt(d) s g <= 1, however wide."""
    net = nn.Sequential(nn.Embedding(50, 2048), nn.LayerNorm(2048), nn.Linear(2048, 50, bias=False))
    net[2].weight = net[0].weight
    plan = fanin.plan(net, torch.randint(50, (4, 8)))
    s, g = plan["0.weight"].std, plan["1.weight"].distribution.mean
    assert s == pytest.approx(g, rel=1e-3)
    assert math.sqrt(2048) * s * g == pytest.approx(1.0, rel=0.05)
    assert HEAD < 1.0


def test_overridden_tables_stay():
    plan = fanin.plan(
        Language(),
        ids(),
        overrides={"tokens.weight": Normal(0.02), "positions.weight": Normal(2.0)},
    )
    assert plan["tokens.weight"].std == 0.02
    assert plan["positions.weight"].std == 2.0
    assert plan["norm.weight"].distribution.mean == 1.0
