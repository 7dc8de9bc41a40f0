"""Capture: whatever a model does in Python, the graph computes what the model computes."""

import copy
import random
import warnings
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from fanin import Inputs, ModelError
from fanin._arguments import tensors
from fanin._capture import capture
from fanin._graph import Ref
from replay import replayed


class Does(nn.Module):
    """A module from a function of (module, arguments); tensors given become parameters."""

    def __init__(self, function, **held):
        super().__init__()
        self.function = function
        for name, value in held.items():
            setattr(self, name, nn.Parameter(value) if isinstance(value, torch.Tensor) else value)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def linear(n=4):
    return nn.Linear(n, n)


def randn(*shape):
    return torch.randn(shape)


MODELS = {}


def model(function):
    """Register a builder of (model, inputs) whose graph must replay exactly."""
    MODELS[function.__name__] = function
    return function


# in place -----------------------------------------------------------------------------------------


@model
def writes_in_place():
    def run(self, x):
        y = self.l(x)
        y.relu_().mul_(2).add_(self.b)
        y += x
        y[:, 0] = 0
        y[:, 1:3] *= 2
        y[0] = y[1]
        return y

    return Does(run, l=linear(), b=randn(4)), (randn(3, 4),)


@model
def reads_views_after_writes():
    def run(self, x):
        y = self.l(x)
        left, flat = y[:, :2], y.view(-1)
        y.mul_(3)
        later = left + 1
        flat.add_(1)
        return left * later, y, flat, y.t()

    return Does(run, l=linear()), (randn(3, 4),)


@model
def fills_zeros_step_by_step():
    def run(self, x):
        out, h = torch.zeros(2, 5, 4), torch.zeros(2, 4)
        for i in range(5):
            h = torch.tanh(self.l(x[:, i]) + h)
            out[:, i] = h
        return out, out[:, -1]

    return Does(run, l=linear()), (randn(2, 5, 4),)


@model
def fills_halves_and_heads():
    def run(self, x):
        out = torch.empty(2, 8)
        out[:, :4] = self.l(x)
        out[:, 4:] = x
        heads = out.view(2, 2, 4)
        heads[..., :2] *= 3
        heads[:, 1] -= x
        return out.t().contiguous(), heads.transpose(0, 1)

    return Does(run, l=linear()), (randn(2, 4),)


@model
def writes_to_out_and_lists():
    def run(self, x):
        y = self.l(x)
        same, grown = torch.empty_like(y), torch.empty(0)
        torch.add(y, x, out=same)
        torch.mul(y, 2, out=grown)
        both = [same, grown]
        torch._foreach_mul_(both, 2.0)
        return torch._foreach_add(both, 1.0)

    return Does(run, l=linear()), (randn(2, 4),)


@model
def changes_shapes_in_place():
    def run(self, x):
        y = self.l(x)
        y.unsqueeze_(0).transpose_(1, 2)
        return y.squeeze_(0).t_().relu()

    return Does(run, l=linear()), (randn(2, 4),)


@model
def puts_by_mask_and_index():
    def run(self, x):
        y = self.l(x)
        y[torch.tensor([True, False, True])] = 1.0
        y[torch.tensor([1]), torch.tensor([2])] = 5.0
        y.scatter_(1, torch.tensor([[0], [1], [2]]), x)
        y.index_add_(0, torch.tensor([0, 0, 2]), x)
        return y[torch.tensor([True, True, False])], y.masked_fill(x.new_ones(4) > 0, 2.0)

    return Does(run, l=linear()), (randn(3, 4),)


@model
def writes_buffers_and_attributes():
    class Memory(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = linear()
            self.register_buffer("memory", torch.zeros(6, 4))
            self.register_buffer("count", torch.zeros((), dtype=torch.long))
            self.cache, self.history, self.plain = {}, [], torch.zeros(1, 4)

        def forward(self, x):
            y = self.l(x)
            self.memory[:2] = y
            self.count += 1
            self.cache["y"] = self.new = y
            self.history.append(y)
            self.plain.copy_(y[:1])
            return self.memory * 2, self.plain + 1

    return Memory(), (randn(2, 4),)


@model
def writes_parameters():
    def run(self, x):
        self.w.data.clamp_(-0.5, 0.5)
        self.w.data[0] = 0
        return x @ self.w

    return Does(run, w=randn(4, 4)), (randn(3, 4),)


# fused ops and packed sequences -------------------------------------------------------------------


@model
def runs_packed_recurrences():
    def run(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        out, (h, _) = self.lstm(packed)
        padded, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
        again, _ = self.gru(packed)
        return padded, h, again.data

    held = {
        "lstm": nn.LSTM(4, 5, 2, bidirectional=True, batch_first=True, proj_size=3),
        "gru": nn.GRU(4, 3),
    }
    return Does(run, **held), (randn(3, 6, 4), torch.tensor([6, 2, 4]))


@model
def runs_recurrences():
    def run(self, x):
        h, c = self.d(x[0])
        outs = [f(x)[0] for f in (self.a, self.b, self.c)]
        return (*outs, self.e(x[0], h), self.f(x[0]), c)

    held = {"a": nn.GRU(4, 5), "b": nn.RNN(4, 5), "c": nn.RNN(4, 5, nonlinearity="relu", bidirectional=True),
            "d": nn.LSTMCell(4, 5), "e": nn.GRUCell(4, 5), "f": nn.RNNCell(4, 5)}  # fmt: skip
    return Does(run, **held), (randn(6, 3, 4),)


@model
def trains_batch_norm():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)), (
        randn(2, 3, 5, 5),
    )


@model
def encodes():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2).eval(), (randn(2, 5, 8),)


@model
def attends():
    def run(self, x):
        return self.m(x, x, x), self.m(x, x, x, need_weights=False)[0]

    return Does(run, m=nn.MultiheadAttention(8, 2, batch_first=True)).eval(), (randn(2, 5, 8),)


@model
def decodes():
    def run(self, x, memory):
        mask = nn.Transformer.generate_square_subsequent_mask(5)
        return self.m(x, memory, tgt_mask=mask, tgt_is_causal=True)

    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 1)
    return Does(run, m=decoder).eval(), (randn(2, 5, 8), randn(2, 3, 8))


@model
def transforms_frequencies():
    def run(self, x):
        z = torch.fft.rfft2(self.l(x)) * self.w
        rotary = torch.polar(
            torch.ones(4, 3), torch.outer(torch.arange(4.0), torch.tensor([1.0, 0.1, 0.01]))
        )
        turned = torch.view_as_real(torch.view_as_complex(self.l(x).unflatten(-1, (3, 2))) * rotary)
        return torch.fft.irfft2(z, s=x.shape[-2:]), turned.flatten(2), z.abs(), z.real

    return Does(run, l=linear(6), w=torch.randn(4, 4, dtype=torch.cfloat)), (randn(2, 4, 6),)


@model
def decomposes_matrices():
    def run(self, x):
        y = self.l(x)
        return (
            torch.linalg.svd(y)[1],
            torch.linalg.inv(y),
            torch.logdet(x @ x.T + torch.eye(4)),
            torch.linalg.qr(x)[1],
        )

    return Does(run, l=linear()), (randn(4, 4),)


@model
def multiplies_sparse():
    def run(self, x):
        edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
        ring = torch.sparse_coo_tensor(edges, torch.ones(3), (3, 3), check_invariants=True)
        return torch.sparse.mm(ring, self.l(x))

    return Does(run, l=linear()), (randn(3, 4),)


# what stands around ops ---------------------------------------------------------------------------


@model
def casts_by_autocast():
    def run(self, x):
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            y = self.l(x)
        with torch.autocast(self.l.weight.device.type, enabled=False):
            return y.float() + self.l(x)

    return Does(run, l=linear()), (randn(2, 4),)


@model
def checkpoints():
    def run(self, x):
        return checkpoint(self.l, checkpoint(self.l, x, use_reentrant=True), use_reentrant=False)

    return Does(run, l=linear()), (randn(2, 4),)


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad * w, grad * x


@model
def applies_functions():
    def run(self, x):
        with torch.enable_grad():
            y = Scaled.apply(x, self.w)
        with torch.no_grad():
            return Scaled.apply(y, self.w)

    return Does(run, w=randn(4)), (randn(2, 4),)


@model
def differentiates():
    def run(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.l(x).tanh().sum()
            return energy, -torch.autograd.grad(energy, x, create_graph=True)[0]

    return Does(run, l=linear()), (randn(2, 4),)


@model
def maps():
    def run(self, x):
        i = torch.arange(4)
        causal = torch.vmap(torch.vmap(lambda a, b: a >= b, in_dims=(None, 0)), in_dims=(0, None))(
            i, i
        )
        slopes = torch.func.vmap(torch.func.grad(lambda z: self.l(z).tanh().sum()))(x)
        return torch.vmap(lambda z: (self.l.weight @ z).relu())(x).masked_fill(
            ~causal, -1.0
        ), slopes

    return Does(run, l=linear()), (randn(4, 4),)


@torch.jit.script
def scripted(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    y = x * w
    if y.dim() > 1:
        y = y.sum(-1)
    return torch.tanh(y)


@model
def runs_scripts():
    return Does(lambda self, x: scripted(x, self.w), w=randn(4)), (randn(2, 4),)


@model
def is_scripted():
    return torch.jit.script(nn.Sequential(linear(), nn.ReLU())), (randn(2, 4),)


@model
def is_compiled():
    return torch.compile(nn.Sequential(linear(), nn.ReLU()), backend="eager"), (randn(2, 4),)


@model
def has_compiled_parts():
    inner = torch.compile(linear(), backend="eager")
    function = torch.compile(lambda x, w: (x @ w).relu(), backend="eager")
    return Does(lambda self, x: function(self.inner(x), self.w), inner=inner, w=randn(4, 4)), (
        randn(2, 4),
    )


@model
def is_data_parallel():
    return nn.DataParallel(nn.Sequential(linear(), nn.ReLU())), (randn(2, 4),)


# where weights come from --------------------------------------------------------------------------


@model
def parametrizes():
    norms = nn.utils.parametrizations
    return nn.Sequential(
        norms.weight_norm(linear()), norms.spectral_norm(linear()), norms.orthogonal(linear())
    ), (randn(3, 4),)


@model
def normalizes_weights_the_old_way():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.utils.weight_norm(linear()), nn.utils.spectral_norm(linear())), (
            randn(3, 4),
        )


@model
def computes_weights():
    def run(self, x):
        w = self.h(x.mean(0)).view(4, 4)
        named = {"weight": self.w * 2}
        lists = self.list[0] + self.dict["a"]
        return F.linear(x, w) + torch.func.functional_call(self.m, named, (x,)) @ lists

    lists = (
        nn.ParameterList([nn.Parameter(randn(4, 4))]),
        nn.ParameterDict({"a": nn.Parameter(randn(4))}),
    )
    return Does(run, h=nn.Linear(4, 16), w=randn(4, 4), m=linear(), list=lists[0], dict=lists[1]), (
        randn(2, 4),
    )


@model
def holds_plain_tensors():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.l, self.scale, self.shifts = linear(), randn(4), [randn(4)]

        def forward(self, x):
            return self.l(x) * self.scale + self.shifts[0]

    return Plain(), (randn(2, 4),)


@model
def is_bfloat16():
    return nn.Sequential(linear(), nn.LayerNorm(4)).bfloat16(), (randn(3, 4).bfloat16(),)


@dataclass
class Out:
    first: torch.Tensor
    others: dict


@model
def nests():
    def run(self, x, *, mask=None, options=None):
        y = self.l(x)
        return Out(y, {"list": [y * mask, (options["k"],)]})

    options = OrderedDict(k=randn(2), name="k")
    return Does(run, l=linear()), Inputs(randn(3, 4), mask=torch.ones(3, 1), options=options)


@model
def makes_new_tensors():
    def run(self, x):
        y = self.l(x)
        kept = copy.deepcopy(y) + y
        return (
            kept,
            y.new_tensor([1.0, 2.0]),
            torch.as_tensor(y),
            torch.tensor([1.0]) * y,
            y.double(),
            y.type_as(x),
        )

    return Does(run, l=linear()), (randn(2, 4),)


# the graph computes what the model computes -------------------------------------------------------


def build(name):
    torch.manual_seed(0)
    net, given = MODELS[name]()
    return net, given if isinstance(given, Inputs) else Inputs(*given)


def run(net, given):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of checkpoints and of compiled modules
        return [t.detach() for t in tensors(net(*given.args, **given.kwargs))]


def given_tensors(given):
    return list(dict.fromkeys(tensors((given.args, given.kwargs))))


def state(net):
    """Everything that a capture could change, as values that compare."""
    containers = {
        name: {
            k: dict(v) if isinstance(v, dict) else list(v) if isinstance(v, list) else id(v)
            for k, v in m.__dict__.items()
        }
        for name, m in net.named_modules()
        if not isinstance(m, torch.jit.ScriptModule)
    }
    held = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    bits = {
        k: (id(v), v.requires_grad, v.grad, v.detach().reshape(-1).tolist())
        for k, v in held.items()
    }
    return (
        str((bits, random.getstate(), np.random.get_state())),
        torch.get_rng_state().tolist(),
        str(containers),
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_computes_what_the_model_computes(name):
    net, given = build(name)
    before, numbers = state(net), [t.clone() for t in given_tensors(given)]
    graph = capture(net, given)
    assert state(net) == before
    assert all(torch.equal(a, b) for a, b in zip(given_tensors(given), numbers, strict=True))
    found = replayed(graph, net, [t.clone() for t in numbers])
    with torch.set_grad_enabled(name == "differentiates"):
        wanted = run(net, given)
    assert len(found) == len(wanted) > 0
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "name", [n for n in MODELS if n not in ("is_scripted", "holds_plain_tensors")]
)
def test_on_meta_the_graph_is_the_same(name):
    net, given = build(name)
    graph = capture(net, given)
    moved = net.to("meta")
    before = {k: id(v) for k, v in (*moved.named_parameters(), *moved.named_buffers())}
    other = capture(moved, given)
    assert {k: id(v) for k, v in (*moved.named_parameters(), *moved.named_buffers())} == before
    assert [n.op for n in other.nodes] == [n.op for n in graph.nodes] or list(net.buffers())
    assert set(other.parameters) == set(graph.parameters)
    assert [other.values[i].shape for i in other.outputs] == [
        graph.values[i].shape for i in graph.outputs
    ]


def test_twice_the_same_graph():
    net, given = routes()
    first, second = capture(net, given), capture(net, given)
    assert [(n.op, n.module, n.outputs) for n in first.nodes] == [
        (n.op, n.module, n.outputs) for n in second.nodes
    ]
    for a, b in zip(first.values, second.values, strict=True):
        assert (a.shape, a.kind, a.name) == (b.shape, b.kind, b.name)
        assert (a.data is None and b.data is None) or np.array_equal(a.data, b.data, equal_nan=True)


@pytest.mark.parametrize(
    "inside", [torch.inference_mode, torch.no_grad, lambda: torch.device("meta")]
)
def test_where_it_is_called_does_not_matter(inside):
    net, given = build("reads_views_after_writes")
    with inside():
        graph = capture(net, given)
    assert [n.op for n in graph.nodes] == [n.op for n in capture(net, given).nodes]
    assert not any(t.is_inference() for t in net.parameters())


# whole ops ----------------------------------------------------------------------------------------


def ops(graph):
    return [node.op for node in graph.nodes]


def test_ops_arrive_whole():
    def forward(self, x, image):
        y = F.scaled_dot_product_attention(*(self.n(self.l(x)),) * 3, is_causal=True)
        return self.r(F.gelu(y))[0], self.b(self.c(image)), torch.einsum("bij,bkj->bik", x, y)

    net = Does(
        forward,
        l=linear(),
        n=nn.LayerNorm(4),
        r=nn.LSTM(4, 4),
        c=nn.Conv2d(3, 4, 3),
        b=nn.BatchNorm2d(4),
    )
    graph = capture(net, (randn(2, 3, 4), randn(2, 3, 5, 5)))
    assert ops(graph) == ["linear", "layer_norm", "scaled_dot_product_attention", "gelu", "lstm", "conv2d", "batch_norm", "einsum"]  # fmt: skip
    attention = graph.nodes[2].args
    assert attention["is_causal"] is True
    assert attention["attn_mask"] is None  # defaults are there
    conv = graph.nodes[5].args
    assert conv["stride"] == (1, 1)
    assert [type(conv[k]) for k in ("x", "weight", "bias")] == [Ref] * 3


def test_modes_of_the_encoder_give_the_same_ops():
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True), 1
    )
    evaluating, training = (
        capture(encoder.eval(), randn(2, 5, 8)),
        capture(encoder.train(), randn(2, 5, 8)),
    )
    assert "_transformer_encoder_layer_fwd" not in ops(evaluating)
    assert "scaled_dot_product_attention" in ops(evaluating)
    assert ops(evaluating) == ops(training)
    assert torch.backends.mha.get_fastpath_enabled()


def test_differentiating_gives_ops_in_parts():
    net, given = build("differentiates")
    graph = capture(net, given)
    assert graph.notes == ("differentiates in its forward pass: ops in parts",)
    assert "addmm" in ops(graph)
    assert set(graph.parameters) == {"l.weight", "l.bias"}


# what the graph knows -----------------------------------------------------------------------------


def test_what_depends_on_no_parameter_is_computed():
    def forward(self, x, ids):
        mask = torch.full((4, 4), float("-inf")).triu(1)
        positions = torch.arange(ids.shape[1])[None].expand(2, -1)
        return x @ self.w + mask, self.e(positions), self.e(ids)

    ids = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
    graph = capture(Does(forward, w=randn(4, 4), e=nn.Embedding(5, 3)), (randn(4, 4), ids))
    assert ops(graph) == ["matmul", "add", "embedding", "embedding"]
    mask = graph.values[graph.nodes[1].args["other"].index]
    assert (mask.kind, mask.dtype, mask.shape) == ("constant", "float32", (4, 4))
    assert np.isneginf(mask.data[0, 1])
    positions = graph.values[graph.nodes[2].args["indices"].index]
    assert positions.kind == "constant"
    assert positions.data.tolist() == [[0, 1, 2, 3]] * 2
    given = graph.values[graph.nodes[3].args["indices"].index]
    assert (given.kind, given.name) == ("input", "args.1")
    assert given.data.tolist() == ids.tolist()


def test_inputs_keep_their_numbers_and_names():
    class Named(nn.Linear):
        def forward(self, image, *, scale):
            return super().forward(image) * scale["by"]

    x, scale = randn(2, 4), torch.tensor(2.0, dtype=torch.bfloat16)
    graph = capture(Named(4, 4), Inputs(x, scale={"by": scale}))
    first, second = (graph.values[i] for i in graph.inputs)
    assert (first.name, first.kind, second.name, second.dtype) == (
        "image",
        "input",
        "scale.by",
        "bfloat16",
    )
    assert np.array_equal(first.data, x.numpy())
    assert second.data.dtype == np.float32


def test_shapes_are_enough():
    embed = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 2))
    graph = capture(embed, torch.empty(2, 5, dtype=torch.long, device="meta"))
    ids = graph.values[graph.inputs[0]]
    assert ids.data.min() >= 0
    assert ids.data.max() < 7
    assert graph.notes == ("input: given without numbers, which were drawn",)
    graph = capture(nn.Linear(4, 3), torch.Size([2, 4]))
    assert graph.values[graph.inputs[0]].data is None
    assert graph.values[graph.outputs[0]].shape == (2, 3)


def test_constants_that_change_are_constants_of_their_time():
    def forward(self, x):
        steps = torch.zeros(2)
        first = x * self.w + steps
        steps += 1
        return first + steps

    graph = capture(Does(forward, w=randn(2)), randn(2))
    before, after = (graph.values[graph.nodes[i].args["other"].index] for i in (1, 2))
    assert (before.data.tolist(), after.data.tolist()) == ([0, 0], [1, 1])


def test_buffers_are_known_and_copied():
    net = nn.BatchNorm1d(3).eval()
    graph = capture(net, randn(2, 3))
    mean = graph.values[graph.nodes[0].args["running_mean"].index]
    assert (mean.kind, mean.name) == ("buffer", "running_mean")
    net.running_mean.fill_(7)
    assert mean.data.tolist() == [0, 0, 0]
    meta = capture(net.to("meta"), randn(2, 3))
    assert meta.values[meta.nodes[0].args["running_var"].index].data.tolist() == [1, 1, 1]


def test_random_numbers_are_ops_and_not_samples():
    def forward(self, x):
        noise = torch.randn_like(x) + torch.rand(2, 4)
        keep = x.new_empty(2, 1).bernoulli_(0.5)
        return self.l(x) * keep + noise

    graph = capture(Does(forward, l=linear()), randn(2, 4))
    assert ops(graph) == ["randn_like", "rand", "add", "bernoulli", "linear", "mul", "add"]
    assert graph.nodes[3].args["p"] == 0.5


def test_large_constants_are_not_computed():
    def forward(self, x):
        huge = torch.zeros(3000, 3000)
        return x @ self.w + huge

    graph = capture(Does(forward, w=randn(4, 3000)), randn(3000, 4))
    assert ops(graph) == ["zeros", "matmul", "add"]


def test_large_constants_of_one_number_are_known():
    def forward(self, x):
        return x * self.w + torch.zeros(1 << 10, 1 << 10).repeat(16, 1)[: x.shape[0]]

    graph = capture(Does(forward, w=randn(1)), torch.Size([1 << 14, 1 << 10]))
    zeros = graph.values[graph.nodes[1].args["other"].index].data
    assert zeros.shape == (1 << 14, 1 << 10)
    assert zeros[0, 0] == zeros[-1, -1] == 0


# parameters, modules ------------------------------------------------------------------------------


def test_every_name_of_a_parameter():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight
            self.idle = nn.Parameter(randn(3))

        def forward(self, ids):
            return self.head(self.embed(ids))

    graph = capture(Tied(), torch.tensor([[1, 2]]))
    assert graph.parameters["embed.weight"] == graph.parameters["head.weight"]
    assert graph.values[graph.parameters["head.weight"]].name == "embed.weight"
    assert graph.unused == ("idle",)
    assert graph.values[graph.parameters["embed.weight"]].data is None


def test_names_are_those_without_wrappers():
    inner = nn.Sequential(linear(), nn.ReLU())
    for net in (torch.compile(inner, backend="eager"), nn.DataParallel(inner)):
        graph = capture(net, randn(2, 4))
        assert set(graph.parameters) == {"0.weight", "0.bias"}
        assert [(c.module, c.kind) for c in graph.calls] == [
            ("0", "Linear"),
            ("1", "ReLU"),
            ("", "Sequential"),
        ]


def test_parametrized_weights_keep_their_originals():
    net, given = build("parametrizes")
    names = capture(net, given).parameters
    assert {n for n in names if n.startswith("0.")} == {
        "0.bias", "0.parametrizations.weight.original0", "0.parametrizations.weight.original1"}  # fmt: skip


def test_calls_of_modules():
    shared = linear()
    net = nn.Sequential(shared, nn.Sequential(nn.ReLU(), shared))
    graph = capture(net, randn(2, 4))
    found = [(c.module, c.kind, c.leaf, c.start, c.stop) for c in graph.calls]
    assert found == [
        ("0", "Linear", True, 0, 1),
        ("1.0", "ReLU", True, 1, 2),
        ("0", "Linear", True, 2, 3),
        ("1", "Sequential", False, 1, 3),
        ("", "Sequential", False, 0, 3),
    ]
    assert [c.output for c in graph.calls] == [graph.nodes[i].outputs[0] for i in (0, 1, 2, 2, 2)]
    assert [n.module for n in graph.nodes] == ["0", "1.0", "0"]


def test_a_caught_exception_leaves_the_modules_right():
    def forward(self, x):
        try:
            self.a(x[:, :2])
        except RuntimeError:
            x = self.b(x)
        return x + 1

    graph = capture(Does(forward, a=linear(), b=linear()), randn(2, 4))
    assert [(n.op, n.module) for n in graph.nodes] == [("slice", ""), ("linear", "b"), ("add", "")]


# data-dependent ops -------------------------------------------------------------------------------


def routes():
    def forward(self, x):
        weights, chosen = self.gate(x).softmax(-1).topk(2, -1)
        out = torch.zeros_like(x)
        for expert in range(4):
            rows, place = torch.where(chosen == expert)
            out.index_add_(0, rows, self.experts[expert](x[rows]) * weights[rows, place, None])
        return out, torch.bincount(chosen.flatten(), minlength=4)

    experts = nn.ModuleList(linear() for _ in range(4))
    return Does(forward, gate=linear(), experts=experts), Inputs(randn(8, 4))


def test_routing_is_sampled_and_balanced():
    net, given = routes()
    graph = capture(net, given)
    assert graph.notes == ("topk: 1 sampled",)
    assert not graph.unused
    loads = graph.values[graph.outputs[1]].data
    assert loads.tolist() == [4, 4, 4, 4]
    chosen = next(n for n in graph.nodes if n.op == "topk").outputs[1]
    assert graph.values[chosen].kind == "constant"
    assert all(len(set(row)) == 2 for row in graph.values[chosen].data.tolist())


def test_what_is_drawn_agrees():
    def forward(self, x):
        y = self.l(x)
        kept = y > 0
        count = int(kept.sum())
        rows = kept.nonzero()
        picked = y[kept]
        assert len(rows) == picked.shape[0] == y.masked_select(kept).shape[0] == count
        assert torch.unique(kept.long()).numel() == 2
        repeats = kept.sum(-1)
        assert torch.repeat_interleave(y, repeats, dim=0).shape[0] == repeats.sum().item()
        assert len(y.tolist()) == 3
        assert (y.exp().detach().numpy() > 0).all()
        return picked

    graph = capture(Does(forward, l=linear()), randn(3, 4))
    assert {note.split(":")[0] for note in graph.notes} >= {
        "item",
        "nonzero",
        "index",
        "masked_select",
        "numpy",
    }


def test_branches():
    def forward(self, x):
        y = self.l(x)
        assert torch.isfinite(y).all()
        assert torch.equal(y, y)
        assert (y == y).all()
        if torch.isnan(y).any() or y.mean() > 0:
            y = y * 2
        if not (y != y).any():
            y = y + 1
        return y

    assert ops(capture(Does(forward, l=linear()), randn(3, 4)))[-1] == "add"


@pytest.mark.parametrize(
    ("choice", "below"),
    [
        (lambda y: y.argmax(-1), 4),
        (lambda y: y.argmin(), 12),
        (lambda y: y.argsort(0), 3),
        (lambda y: y.sort(dim=1).indices, 4),
        (lambda y: torch.multinomial(y.softmax(-1), 2), 4),
        (lambda y: y.topk(3, 0).indices, 3),
        (lambda y: y.max(1).indices + 0, 4),
    ],
)
def test_choices_are_valid_indices(choice, below):
    chosen = []

    def forward(self, x):
        index = choice(self.l(x))
        chosen.extend(index.flatten().tolist())
        return x.flatten()[index]

    capture(Does(forward, l=linear()), randn(3, 4))
    assert chosen
    assert all(0 <= i < below for i in chosen)


def test_numbers_are_drawn_where_python_wants_them():
    def forward(self, x):
        steps = int(self.l(x).abs().sum().item()) % 3 + 1
        return x[:steps] * float(self.scale)

    graph = capture(Does(forward, l=linear(), scale=torch.tensor(2.0)), randn(3, 4))
    assert graph.notes == ("item: 2 sampled",)


def test_vector_quantisation_with_moving_averages():
    class Codebook(nn.Module):
        def __init__(self):
            super().__init__()
            self.codes = nn.Embedding(8, 4)
            self.register_buffer("counts", torch.ones(8))
            self.register_buffer("sums", torch.randn(8, 4))

        def forward(self, x):
            chosen = torch.cdist(x, self.codes.weight).argmin(1)
            one_hot = F.one_hot(chosen, 8).float()
            self.counts.mul_(0.9).add_(one_hot.sum(0), alpha=0.1)
            self.sums.data.mul_(0.9).add_(one_hot.t() @ x, alpha=0.1)
            self.codes.weight.data.copy_(self.sums / self.counts[:, None])
            return x + (self.codes(chosen) - x).detach()

    net, x = Codebook(), randn(5, 4)
    before = state(net)
    graph = capture(net, x)
    assert state(net) == before
    assert ops(graph)[-3:] == ["sub", "detach", "add"]


def test_a_view_that_is_no_box():
    def forward(self, x):
        y = self.l(x)
        y.diagonal().add_(1)
        return y.sum()

    graph = capture(Does(forward, l=linear()), randn(4, 4))
    write = next(n for n in graph.nodes if n.op == "view_write")
    assert write.args["starts"] is None
    assert graph.values[write.outputs[0]].shape == (4, 4)


def test_writes_that_nobody_reads_leave_no_node():
    def forward(self, x):
        y = self.l(x)
        part = y[:, :2]
        part += 1
        return part

    assert ops(capture(Does(forward, l=linear()), randn(2, 4))) == ["linear", "slice", "add"]


# errors and what is left behind -------------------------------------------------------------------


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.l, self.norm = linear(), nn.BatchNorm1d(4)

    def forward(self, x):
        self.added = self.norm(self.l(x))
        self.norm.weight.requires_grad_(requires_grad=False)
        torch.rand(3), random.random(), np.random.rand()
        return self.added @ torch.zeros(5, 5)


def test_a_model_that_raises_is_named_and_left_alone():
    net, x = nn.Sequential(OrderedDict(body=Fails())), randn(2, 4)
    before = state(net)
    with pytest.raises(
        ModelError,
        match=r"in module 'body' \(Fails\): RuntimeError: .*last op was matmul.*\[2, 4\]",
    ):
        capture(net, x)
    assert state(net) == before
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()
    assert not nn.modules.module._global_forward_hooks


def test_lazy_parameters():
    with pytest.raises(ModelError, match=r"0\.weight is lazy"):
        capture(nn.Sequential(nn.LazyLinear(3)), randn(2, 4))


def test_a_tensor_that_is_left_behind_says_so():
    kept = []
    capture(Does(lambda self, x: kept.append(self.l(x)) or x, l=linear()), randn(2, 4))
    with pytest.raises(RuntimeError, match="left behind"):
        kept[0] + 1


def test_constants_that_are_left_behind_can_be_trained_with():
    kept = []

    def forward(self, x):
        if not kept:
            kept.append(torch.arange(4.0))
        return self.l(x) * kept[0]

    net = Does(forward, l=linear())
    capture(net, randn(2, 4))
    net(randn(2, 4)).sum().backward()
    assert net.l.weight.grad is not None


def test_gradients_and_hooks_stay():
    net = nn.Sequential(linear(), nn.Tanh())
    net(randn(2, 4)).sum().backward()
    seen = []
    net[0].register_forward_hook(lambda *_: seen.append(1))
    grads = [p.grad for p in net.parameters()]
    capture(net, randn(2, 4))
    assert [p.grad for p in net.parameters()] == grads
    assert seen == [1]
