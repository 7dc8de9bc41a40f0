"""After `preserved` a model is bit-equal to what it was, whatever ran in between."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from fanin._preserve import flushes_denormals, preserved


class Restless(nn.Module):
    """Changes whatever a forward pass can change."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("cache", torch.zeros(4), persistent=False)
        self.steps = 0
        self.seen = [1]
        self.table = {"a": torch.zeros(2)}

    def forward(self, x, fail=False):
        self.steps += 1
        self.seen.append(self.steps)
        self.table["a"].add_(1)
        self.table["b"] = 1
        self.new = x
        self.cache = x.detach().mean(0)
        with torch.no_grad():
            self.linear.weight.mul_(2)
            self.linear.bias.data = torch.ones(4)
        self.linear.weight.requires_grad_(False)
        random.random()
        np.random.rand()
        self.eval()
        self.train(False)
        torch.set_flush_denormal(True)
        self.linear.register_forward_hook(lambda *_: None)
        y = self.drop(self.norm(self.linear(x)))
        if fail:
            raise RuntimeError("stop")
        return y


def everything(model):
    """All that must not change, as comparable values."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "bits": {k: t.detach().clone() for k, t in tensors.items()},
        "objects": {k: id(t) for k, t in tensors.items()},
        "requires": {k: t.requires_grad for k, t in tensors.items()},
        "training": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()],
        "attributes": (
            model.steps,
            list(model.seen),
            sorted(model.table),
            model.table["a"].clone(),
            hasattr(model, "new"),
        ),
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].copy(),
        "flush": flushes_denormals(),
    }


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("fail", [False, True])
def test_everything_is_put_back(fail):
    model = Restless().train()
    model.linear.weight.grad = torch.ones(4, 4)
    grad = model.linear.weight.grad
    before = everything(model)
    try:
        with preserved(model):
            model(torch.randn(8, 4), fail)
    except RuntimeError as error:
        assert str(error) == "stop"
    after = everything(model)
    wrong = [k for k in before if not equal(before[k], after[k])]
    assert not wrong
    assert model.linear.weight.grad is grad
    assert torch.equal(grad, torch.ones(4, 4))


def test_a_run_does_change_something():
    """The test above can fail: without `preserved` nearly all of it differs."""
    model = Restless().train()
    before = everything(model)
    model(torch.randn(8, 4))
    after = everything(model)
    torch.set_flush_denormal(False)
    assert {"bits", "requires", "training", "hooks", "attributes", "torch", "python", "numpy"} <= {
        k for k in before if not equal(before[k], after[k])
    }


def test_gradients_are_put_back():
    model = nn.Linear(3, 3)
    with preserved(model):
        model(torch.randn(2, 3)).sum().backward()
        assert model.weight.grad is not None
    assert model.weight.grad is None


def test_ties_survive():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    before = model["a"].weight.clone()
    with preserved(model), torch.no_grad():
        model["b"].weight.zero_()
    assert model["b"].weight is model["a"].weight
    assert torch.equal(model["a"].weight, before)


def test_parameters_are_not_copied_unless_written():
    """Memory: a forward pass over 64 MiB of weights saves none of them."""
    model = nn.Linear(4096, 4096, bias=False)
    x = torch.randn(1, 4096)
    with preserved(model), torch.no_grad(), torch.profiler.profile(profile_memory=True) as seen:
        model(x)
    allocated = sum(
        max(e.self_device_memory_usage, 0) + max(e.self_cpu_memory_usage, 0)
        for e in seen.key_averages()
    )
    assert allocated < 4 * 2**20
