"""Larger tables and layers: old bits stay, new ones are those of a fresh model of that size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fanin
from fanin import InvalidValueError, ModelError
from fanin.distributions import Normal, Orthogonal


@pytest.mark.parametrize(
    ("make", "name", "shape"),
    [
        (lambda: nn.Embedding(101, 8), "0.weight", (128, 8)),
        (lambda: nn.Embedding(101, 8, padding_idx=7), "0.weight", (110, 12)),
        (lambda: nn.Linear(32, 64), "0.weight", (96, 48)),
        (lambda: nn.Linear(32, 64), "0.bias", (96,)),
        (lambda: nn.Conv2d(4, 8, 3), "0.weight", (16, 9, 3, 3)),
        (lambda: nn.Linear(3, 5, dtype=torch.bfloat16), "0.weight", (5, 3)),
    ],
)
def test_growth_is_a_fresh_draw_of_the_larger_size(make, name, shape):
    model = nn.Sequential(make())
    plan = fanin.initialize_(model, scheme="gpt2", seed=3)
    old = model.get_parameter(name).detach().clone()
    larger = fanin.grow_(model, name, shape, plan=plan, seed=3)
    new = model.get_parameter(name)
    assert tuple(new.shape) == larger[name].shape == shape
    block = new[tuple(slice(n) for n in old.shape)]
    assert torch.equal(block, old)
    fresh = {name: torch.empty(shape, dtype=old.dtype)}
    larger.select(name).fill_(fresh, seed=3)
    assert torch.equal(new, fresh[name])
    larger.fill_(model, seed=3)
    assert torch.equal(model.get_parameter(name), new)


def test_trained_values_stay():
    model = nn.Sequential(nn.Embedding(10, 4))
    plan = fanin.initialize_(model)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    trained = model[0].weight.detach().clone()
    fanin.grow_(model, "0.weight", (13, 4), plan=plan)
    assert torch.equal(model[0].weight[:10], trained)
    fresh = fanin.fill_(torch.empty(13, 4), plan["0.weight"].distribution, key="0.weight")
    assert torch.equal(model[0].weight[10:], fresh[10:])


def test_only_new_elements_are_drawn(monkeypatch):
    from fanin import _fill

    model = nn.Sequential(nn.Embedding(1000, 4))
    plan = fanin.initialize_(model)
    drawn, write = [], _fill._write

    def counted(tensor, law, shard, sample):
        drawn.append(shard.local.numel())
        write(tensor, law, shard, sample)

    monkeypatch.setattr(_fill, "_write", counted)
    fanin.grow_(model, "0.weight", (1008, 5), plan=plan)
    assert sum(drawn) == 1008 * 5 - 1000 * 4


def test_ties_and_attributes_and_modules_follow():
    model = nn.ModuleDict({"embed": nn.Embedding(10, 4), "head": nn.Linear(4, 10, bias=False)})
    model["head"].weight = model["embed"].weight
    model["embed"].weight.no_decay = True
    model["embed"].weight.requires_grad_(False)
    plan = fanin.initialize_(model)
    larger = fanin.grow_(model, "head.weight", (12, 4), plan=plan)
    assert model["head"].weight is model["embed"].weight
    assert model["embed"].num_embeddings == model["head"].out_features == 12
    assert model["embed"].weight.no_decay
    assert not model["embed"].weight.requires_grad
    assert larger.hash() != plan.hash()
    assert model["head"](model["embed"](torch.tensor([11]))).shape == (1, 12)


@pytest.mark.parametrize(
    ("make", "shape", "error", "match"),
    [
        (lambda: nn.Linear(4, 4), (3, 4), InvalidValueError, "a shape that contains it"),
        (lambda: nn.Linear(4, 4), (4, 4, 1), InvalidValueError, "a shape that contains it"),
        (lambda: nn.LSTM(4, 4), (20, 4), InvalidValueError, "which of them is to grow"),
        (
            lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            (5, 4),
            ModelError,
            "parametrization",
        ),
        (lambda: nn.Linear(4, 4, device="meta"), (5, 4), ModelError, "meta device"),
    ],
)
def test_refused(make, shape, error, match):
    model = nn.Sequential(make())
    plan = fanin.plan(model, scheme="gpt2")
    name = "0.weight_ih_l0" if isinstance(model[0], nn.LSTM) else "0.weight"
    with pytest.raises(error, match=match):
        fanin.grow_(model, name, shape, plan=plan)


def test_laws_of_the_whole_matrix_are_refused():
    model = nn.Sequential(nn.Linear(4, 4))
    plan = fanin.plan(model, overrides={"0.weight": Orthogonal()})
    before = model[0].weight
    with pytest.raises(InvalidValueError, match=r"law of the whole matrix.*plan\.replace"):
        fanin.grow_(model, "0.weight", (6, 4), plan=plan)
    assert model[0].weight is before
    fanin.grow_(model, "0.weight", (6, 4), plan=plan.replace("0.weight", Normal(0.5), "to grow"))
    with pytest.raises(ModelError, match=r"no parameter '0\.wieght'"):
        fanin.grow_(model, "0.wieght", (7, 4), plan=plan)
