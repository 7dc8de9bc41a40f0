"""Which ops are reported, under which names, from which modules."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fanin._record import INPUT, Recorder, floating_leaves


def ops_of(model, *inputs, grad=True):
    seen = []
    with torch.set_grad_enabled(grad), Recorder(model, seen.append, inputs):
        model(*inputs)
    return seen


@pytest.mark.parametrize(
    ("module", "shape", "names"),
    [
        (nn.Linear(4, 4), (2, 4), ["linear"]),
        (nn.Linear(4, 4), (2, 3, 4), ["linear"]),
        (nn.Conv1d(2, 3, 3), (2, 2, 8), ["conv1d"]),
        (nn.Conv2d(2, 3, 3), (2, 2, 8, 8), ["conv2d"]),
        (nn.ConvTranspose2d(2, 3, 3), (2, 2, 8, 8), ["conv_transpose2d"]),
        (nn.LayerNorm(4), (2, 4), ["layer_norm"]),
        (nn.BatchNorm1d(4), (8, 4), ["batch_norm"]),
        (nn.GroupNorm(2, 4), (2, 4, 3), ["group_norm"]),
        (nn.ReLU(inplace=True), (2, 4), ["relu"]),
        (nn.ReLU6(), (2, 4), ["relu6"]),
        (nn.SELU(), (2, 4), ["selu"]),
        (nn.GELU(), (2, 4), ["gelu"]),
        (nn.MaxPool2d(2), (2, 2, 8, 8), ["max_pool2d"]),
        (nn.Flatten(), (2, 2, 8), []),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else None,
)
@pytest.mark.parametrize("grad", [True, False])
def test_names_are_the_fields(module, shape, names, grad):
    model = nn.Sequential(nn.Identity(), module)
    x = torch.randn(shape) + 0  # not a leaf: in-place ops are allowed
    found = ops_of(model, x, grad=grad)
    assert [o.op for o in found] == names
    assert all(o.module == "1" for o in found)


def test_functional_code_is_seen():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return torch.tanh(F.relu(x @ self.w.T) + 1)

    found = ops_of(Net(), torch.randn(3, 4))
    assert [o.op for o in found] == ["linear", "relu", "add", "tanh"]
    assert found[0].params == ("w",)
    assert [o.sources for o in found] == [(INPUT,), (0,), (1,), (2,)]


def test_only_the_signal_is_reported():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.g = nn.Parameter(torch.ones(4))

        def forward(self, x):
            mask = torch.ones(4).cumsum(0) > 2
            return x * (1 + self.g).exp() + mask.float()

    assert [o.op for o in ops_of(Net(), torch.randn(3, 4))] == ["mul", "add"]


def test_shared_modules_keep_their_first_name():
    act = nn.Tanh()
    model = nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), act)
    assert [o.module for o in ops_of(model, torch.randn(2, 4))] == ["0", "1", "2", "1"]


def test_gradients_reach_the_recorded_output():
    """When a record is delivered autograd has attached grad_fn; in-place ops are hooked at their version."""
    grads = {}
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 1))
    x = torch.randn(5, 4)

    def on_op(op):
        op.output.register_hook(lambda g, i=op.index: grads.__setitem__(i, g.clone()))

    with Recorder(model, on_op, (x,)):
        y = model(x)
    y.sum().backward()
    weight = model[2].weight.detach()
    assert torch.equal(grads[2], torch.ones(5, 1))
    assert torch.allclose(grads[1], weight.expand(5, 4))
    alive = (model[0](x) > 0).float()
    assert torch.allclose(grads[0], weight * alive)


def test_hooks_are_gone_afterwards_also_on_errors():
    before = len(nn.modules.module._global_forward_hooks)
    with pytest.raises(RuntimeError), Recorder(nn.Linear(3, 3), lambda _: None, ()):
        raise RuntimeError("stop")
    assert len(nn.modules.module._global_forward_hooks) == before


def test_floating_leaves_of_outputs():
    class Output:
        def to_tuple(self):
            return (torch.ones(1), [torch.zeros(2, dtype=torch.int64), {"a": torch.ones(3)}])

    assert [len(t) for t in floating_leaves(Output())] == [1, 3]
