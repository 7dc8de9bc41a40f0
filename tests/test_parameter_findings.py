"""FAN2xx: each on a model made for it, none on a model without."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import nn

import fanin
from fanin._parameter_findings import RULES


def codes(model, x):
    return {f.code for f in fanin.check(model, x).findings if f.code.startswith("FAN2")}


def test_a_fresh_network_is_clean():
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    assert codes(net, torch.randn(8, 16)) == set()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(32, 32, 3, groups=8), (2, 32, 6, 6)),
        (nn.ConvTranspose2d(16, 64, 4, stride=2), (2, 16, 5, 5)),
    ],
)
def test_fans_read_off_the_shape(layer, shape):
    torch.manual_seed(0)
    nn.init.kaiming_normal_(
        layer.weight, mode="fan_out" if layer.weight.shape[0] < 64 else "fan_in"
    )
    assert "FAN201" in codes(layer, torch.randn(shape))
    fanin.initialize_(layer, scheme="kaiming")
    assert "FAN201" not in codes(layer, torch.randn(shape))


def test_packed_attention_has_the_wrong_fan():
    model, x = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), torch.randn(4, 10, 64)
    assert "FAN201" in codes(model, x)
    fanin.initialize_(model, x)
    assert codes(model, x) == set()


def test_a_tie_that_came_apart():
    embed, head = nn.Embedding(50, 16), nn.Linear(16, 50, bias=False)
    head.weight = nn.Parameter(embed.weight.detach().clone())
    ids = torch.arange(6).reshape(2, 3)
    assert codes(nn.Sequential(embed, head), ids) == {"FAN202"}
    head.weight = embed.weight
    assert codes(nn.Sequential(embed, head), ids) == set()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e20])
def test_memory_that_nobody_wrote(value):
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    with torch.no_grad():
        net[1].weight[0, 3] = value
    assert "FAN203" in codes(net, torch.randn(4, 8))


def test_copies():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 3)
    x = torch.randn(4, 10, 32)
    found = [f for f in fanin.check(model, x).findings if f.code == "FAN204"]
    assert len(found) == 1
    assert "4 such groups" in found[0].message
    fanin.initialize_(model, x)
    assert "FAN204" not in codes(model, x)


def test_a_write_that_is_lost():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = nn.utils.weight_norm(nn.Linear(8, 8))
    assert codes(layer, torch.randn(4, 8)) == set()
    with torch.no_grad():
        layer.weight.normal_()
    assert codes(layer, torch.randn(4, 8)) == {"FAN205"}


def test_parameters_that_nothing_reads():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.forgotten = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.used(x)

    assert codes(Model(), torch.randn(4, 8)) == {"FAN206"}


def test_every_rule_says_its_code_and_has_a_page():
    from fanin._cli import explanations

    said = {re.match(r"(FAN2\d\d): ", rule.__doc__).group(1) for rule in RULES.values()}
    assert said == {c for c in explanations() if c.startswith("FAN2")}
