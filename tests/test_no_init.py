"""Constructors skip their draws, and nothing that waits for values passes unnoticed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fanin
from fanin import ModelError
from fanin.nn import TransformerLM

MAKERS = {
    "linear": lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)),
    "convolution": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)),
    "embedding": lambda: nn.Sequential(nn.Embedding(9, 4, padding_idx=0)),
    "lstm": lambda: nn.Sequential(nn.LSTM(4, 4)),
    "attention": lambda: nn.Sequential(nn.MultiheadAttention(8, 2)),
    "clones": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False
    ),
    "bfloat16": lambda: nn.Sequential(nn.Linear(8, 8, dtype=torch.bfloat16)),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_filled_model_is_the_same_as_one_that_was_drawn_first(make):
    state = torch.get_rng_state()
    with fanin.no_init() as skipped:
        model = make()
        plan = fanin.initialize_(model, seed=4)
    assert torch.equal(state, torch.get_rng_state())
    assert skipped.elements >= sum(p.numel() for p in model.parameters() if p.dim() > 2)
    whole = make()
    plan.fill_(whole, seed=4)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_an_unfilled_model_is_named(make):
    with pytest.raises(ModelError, match=r"(?s)skipped their draws.*\n  \S*weight\S*, shape \["):
        with fanin.no_init():
            model = make()
    del model


def test_one_forgotten_tensor_is_named():
    with pytest.raises(ModelError) as refused:
        with fanin.no_init():
            model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
            fanin.plan(model).fill_(model, only=["a.weight", "a.bias", "b.bias"])
    assert str(refused.value).splitlines()[1:-1] == ["  b.weight, shape [4, 4]"]


def test_other_writers_count_too():
    source = nn.Linear(4, 4)
    with fanin.no_init():
        model = nn.Linear(4, 4)
        model.load_state_dict(source.state_dict())
    assert torch.equal(model.weight, source.weight)
    with fanin.no_init():
        model = nn.Linear(4, 4)
        model.weight.data.fill_(1.0)
        nn.init.zeros_(model.bias)
    assert model.weight.eq(1).all()


def test_models_that_are_gone_do_not_matter():
    with fanin.no_init():
        nn.Linear(4, 4)


def test_an_error_inside_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        with fanin.no_init():
            nn.Linear(4, 4)
            1 / 0


@pytest.mark.parametrize(
    "draw",
    [
        lambda w: nn.init.trunc_normal_(w),
        lambda w: nn.init.orthogonal_(w),
        lambda w: nn.init.sparse_(w, 0.5),
        lambda w: nn.init.kaiming_normal_(w),
        lambda w: w.data.normal_(),
        lambda w: w.data[1:].uniform_(-1, 1),
        lambda w: w.data.normal_().mul_(2).add_(1).clamp_(-1, 1),
    ],
)
def test_draws_of_all_kinds(draw):
    with pytest.raises(ModelError, match="shape"):
        with fanin.no_init():
            model = nn.Linear(6, 6)
            with torch.no_grad():
                model.weight.fill_(0.5)
                model.bias.fill_(0.0)
                draw(model.weight)


def test_memory_of_a_parameter_that_is_gone_is_free():
    with fanin.no_init():
        for _ in range(20):
            nn.Linear(64, 64)
            assert torch.empty(64, 64).normal_().std() > 0.5


def test_outside_and_beside_all_is_as_ever():
    with fanin.no_init() as skipped:
        free = torch.empty(100).normal_()
        assert free.std() > 0.5
        with torch.device("meta"):
            nn.Linear(4, 4)
    assert skipped.tensors == 0
    assert nn.Linear(64, 64).weight.std() > 0.01
    assert nn.init.orthogonal_.__module__ == "torch.nn.init"


def test_blocks_that_fill_themselves_wait_too():
    """Inside, a block of fanin.nn is not filled by its constructor; what nobody fills is named."""
    with fanin.no_init() as skipped:
        model = TransformerLM(10, 8, 64, num_layers=1, num_heads=2)
        assert skipped.elements == sum(p.numel() for p in model.parameters())
        fanin.initialize_(model, scheme="cs336", seed=3)
    again = TransformerLM(10, 8, 64, num_layers=1, num_heads=2)
    again.reset_parameters(seed=3)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name
    with pytest.raises(ModelError, match=r"output_proj\.weight"), fanin.no_init():
        kept = TransformerLM(10, 8, 64, num_layers=1, num_heads=2)
    del kept
