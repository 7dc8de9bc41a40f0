"""Every block of `fanin.nn` against float64 formulas; positions, functions, caches, what is refused."""

from __future__ import annotations

import copy
import math
import pickle
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fanin
import oracle_nn as oracle
from fanin import nn as fnn
from fanin._errors import InvalidValueError
from fanin.nn._feedforward import ACTIVATIONS
from fanin.nn._positions import LAYOUTS
from nn_cases import (
    ATTENTIONS,
    CASES,
    DISTINCT,
    HEADS,
    TOLERANCE,
    B,
    D,
    T,
    gap,
    normal,
    numbers,
    padded,
    perturbed,
)

BLOCKS = {n: v for n, v in vars(fnn).items() if isinstance(v, type) and issubclass(v, nn.Module)}


@pytest.mark.parametrize("name", CASES)
def test_against_the_formula(name):
    module = perturbed(CASES[name].make()).eval()
    expected = CASES[name].oracle(module)
    found = CASES[name].run(module)
    if np.abs(expected).max() == 0:
        assert not found.any()
    else:
        assert gap(found, expected) <= TOLERANCE
    assert torch.equal(CASES[name].run(module.train()), found)  # nothing here drops anything


def test_every_block_has_a_case():
    built = {type(c.make()) for c in CASES.values()}
    beside = {fnn.Block, fnn.Dropout, fnn.RotaryEmbedding, fnn.SinusoidalPositions}
    assert set(BLOCKS.values()) - built == beside
    assert set(ACTIVATIONS) == set(oracle.ACTIVATIONS)


@pytest.mark.parametrize("name", CASES)
def test_float64(name):
    """All arithmetic follows the dtype; only tables of positions stay float32 (2^-24 of an angle's sine)."""
    case = CASES[name]
    module = perturbed(case.make(dtype=torch.float64)).eval()
    inputs = {
        k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in case.inputs.items()
    }
    inputs = {
        k: tuple(t.double() for t in v) if isinstance(v, tuple) else v for k, v in inputs.items()
    }
    case = type(case)(case.make, case.expected, inputs)
    found, expected = case.run(module), case.oracle(module)
    assert found.dtype == torch.float64
    if expected.any():
        placed = any(isinstance(m, fnn.RotaryEmbedding | fnn.SinusoidalPositions) for m in module.modules())  # fmt: skip
        assert gap(found, expected) <= (3e-7 if placed else 1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [n for n in DISTINCT if "everything is" not in n])
def test_low_precision(name, dtype):
    """Within a few spacings of the dtype for each of the layers that follow one another."""
    case = CASES[name]
    module = case.make().to(dtype).eval()
    inputs = {
        k: tuple(t.to(dtype) for t in v)
        if isinstance(v, tuple)
        else (v.to(dtype) if v.is_floating_point() else v)
        for k, v in case.inputs.items()
    }
    case = type(case)(case.make, case.expected, inputs)
    found = case.run(module)
    assert found.dtype == dtype
    assert gap(found, case.oracle(module)) <= 16 * torch.finfo(dtype).eps


# --- attention: weights, caches, what it must not do


@pytest.mark.parametrize("name", ATTENTIONS)
def test_weights_are_those_of_the_formula(name):
    case = ATTENTIONS[name]
    module = perturbed(case.make()).eval()
    inputs = {k: v for k, v in case.inputs.items() if isinstance(k, str)}
    args = [v for k, v in case.inputs.items() if isinstance(k, int)]
    found, weights = module(*args, need_weights=True, **inputs)
    spec = case.expected.__closure__[0].cell_contents
    arrays = [numbers(a) for a in args]
    context = arrays[1] if len(arrays) > 1 else None
    keys, values = context if isinstance(context, tuple) else (context, None)
    how = {"padding" if k == "key_padding_mask" else k: numbers(v) for k, v in inputs.items()}
    expected, expected_weights = spec(
        oracle.exact(module.state_dict()), arrays[0], keys, values, **how
    )
    assert gap(found, expected) <= TOLERANCE
    assert gap(weights, expected_weights) <= TOLERANCE
    sums = weights.sum(-1)
    assert torch.all((sums - 1).abs().minimum(sums.abs()) < 1e-5)  # one, or zero: never between


def test_no_weights_unless_asked_for(monkeypatch):
    from fanin.nn import _functional

    monkeypatch.setattr(_functional, "_written_out", None)
    layer = fnn.MultiHeadAttention(D, HEADS, dropout=0.5)
    assert layer.eval()(normal(B, T, D)).shape == (B, T, D)


def test_output_projection_is_called():
    """Hooks fire, so adapters and quantisation work; torch's out_proj is never called (#78109)."""
    layer = fnn.TransformerBlock(D, HEADS)
    called = []
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    layer(normal(B, T, D))
    assert called == ["attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.output_proj", "ffn.w1", "ffn.w2"]  # fmt: skip


def test_rope_is_relative():
    """Scores depend on distances alone, far out too: 1e-5 is 100 spacings of the weights."""
    for layout in LAYOUTS:
        layer = fnn.MultiHeadAttention(8, 1, rope=fnn.RotaryEmbedding(8, max_len=131072, layout=layout))  # fmt: skip
        x, at = normal(6, 8), torch.tensor([0, 3, 4, 9, 100, 101])
        near = layer(x, positions=at, need_weights=True)[1]
        far = layer(x, positions=at + 130000, need_weights=True)[1]
        torch.testing.assert_close(near, far, atol=1e-5, rtol=0)


def test_permutation_of_keys_changes_nothing_without_positions():
    layer, x, context = fnn.MultiHeadAttention(D, HEADS), normal(B, T, D), normal(B, 7, D, seed=1)
    order = torch.randperm(7)
    torch.testing.assert_close(layer(x, context), layer(x, context[:, order]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("max_len", [None, 8])
def test_cache_after_training_goes_on_without_gradients(max_len):
    """A cache begun where gradients are kept takes more tokens where none are, and the other way round."""
    layer, x = fnn.MultiHeadAttention(D, HEADS, causal=True), normal(B, 6, D)
    whole = layer(x)
    for first, second in ((True, False), (False, True)):
        cache = fnn.KVCache(max_len)
        with torch.set_grad_enabled(first):
            a = layer(x[:, :4], cache=cache)
        with torch.set_grad_enabled(second):
            b = layer(x[:, 4:], cache=cache)
        torch.testing.assert_close(torch.cat((a, b), 1), whole, atol=1e-6, rtol=0)
        assert cache.length == 6


def test_cache_refuses():
    layer, x = fnn.MultiHeadAttention(D, HEADS, causal=True), normal(B, T, D)
    with pytest.raises(InvalidValueError, match="max_len=3 tokens, 5 are asked for"):
        layer(x, cache=fnn.KVCache(3))
    cache = fnn.KVCache()
    layer(x, cache=cache)
    with pytest.raises(InvalidValueError, match="use a new cache for a new batch"):
        layer(x[:1], cache=cache)
    with pytest.raises(InvalidValueError, match="got a context too"):
        layer(x, x, cache=cache)


# --- positions


@pytest.mark.parametrize("d", [1, 2, 5, 8])
@pytest.mark.parametrize("base", [10000.0, 50.0])
def test_sinusoids(d, base):
    table = fnn.SinusoidalPositions(d, 12, base=base)
    expected = oracle.sinusoids(np.arange(12), d, base)
    assert np.abs(numbers(table(torch.zeros(12, d))) - expected).max() <= 2**-24
    x, at = normal(B, 3, d), torch.tensor([[11, 0, 4], [1, 1, 1]])
    np.testing.assert_allclose(table(x, at), numbers(x) + expected[at.numpy()], atol=3e-7)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(T, 6), (B, T, 6), (B, 3, T, 6)])
def test_rotations(layout, shape):
    rope = fnn.RotaryEmbedding(6, 100.0, 40, layout)
    x = normal(*shape)
    turn = oracle.Rope(100.0, layout)
    assert gap(rope(x), turn(numbers(x))) <= TOLERANCE
    for at in (
        torch.tensor([39, 0, 7, 7, 1]),
        torch.arange(math.prod(shape[:-1])).view(shape[:-1]),
    ):
        assert gap(rope(x, at), turn(numbers(x), at.numpy())) <= TOLERANCE
    assert gap(rope(x, torch.arange(T, dtype=torch.int32)), turn(numbers(x))) <= TOLERANCE
    torch.testing.assert_close(rope(x).norm(dim=-1), x.norm(dim=-1))


def test_tables_are_exact_at_131071():
    """Sine and cosine of t theta^(-2i/d) by mpmath with 50 digits; float32 rounds by 2^-25 at most."""
    rope = fnn.RotaryEmbedding(128, max_len=131072)
    with mpmath.workdps(50):
        for i in range(64):
            angle = 131071 * mpmath.mpf(10000) ** (mpmath.mpf(-2 * i) / 128)
            for table, function in ((rope.cos, mpmath.cos), (rope.sin, mpmath.sin)):
                assert abs(mpmath.mpf(table[131071, i].item()) - function(angle)) <= 2**-25 + 1e-9


MODULES_WITH_TABLES = {
    "sinusoidal": lambda: fnn.SinusoidalPositions(6, 20),
    "rope": lambda: fnn.RotaryEmbedding(6, max_len=20),
    "rope half": lambda: fnn.RotaryEmbedding(6, max_len=20, layout="half"),
    "in a model": lambda: fnn.TransformerLM(7, 20, 24, 1, 4),
    "in an encoder": lambda: fnn.TransformerEncoder(24, 4, num_layers=1, positions="sinusoidal", max_len=20),
}  # fmt: skip
PASSAGES = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "double": lambda m: m.double(),
    "to a dtype": lambda m: m.to(torch.bfloat16),
    "to the CPU": lambda m: m.to("cpu"),
    "to_empty": lambda m: m.to_empty(device="cpu"),
    "meta and to_empty": lambda m: m.to("meta").to_empty(device="cpu"),
    "meta alone": lambda m: m.to("meta"),
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "shared memory": lambda m: m.share_memory(),
    "there and back": lambda m: m.half().float(),
}


@pytest.mark.parametrize("passage", PASSAGES)
@pytest.mark.parametrize("name", MODULES_WITH_TABLES)
def test_tables_survive(name, passage):
    fresh = dict(MODULES_WITH_TABLES[name]().named_buffers())
    module = PASSAGES[passage](MODULES_WITH_TABLES[name]())
    tables = dict(module.named_buffers())
    assert tables.keys() == fresh.keys()
    for key, table in tables.items():
        assert table.dtype == torch.float32
        assert torch.equal(table, fresh[key])
    assert not {k for k in module.state_dict() if "cos" in k or "sin" in k or "table" in k}


@pytest.mark.parametrize("name", MODULES_WITH_TABLES)
def test_tables_do_not_depend_on_defaults(name):
    fresh = dict(MODULES_WITH_TABLES[name]().named_buffers())
    before = torch.get_default_dtype()
    for dtype in (torch.bfloat16, torch.float64):
        try:
            torch.set_default_dtype(dtype)
            with torch.device("meta"):
                tables = dict(MODULES_WITH_TABLES[name]().named_buffers())
        finally:
            torch.set_default_dtype(before)
        for key, table in tables.items():
            assert table.dtype == torch.float32
            assert torch.equal(table, fresh[key])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16_turns_in_float32(layout):
    """At 4095 a bfloat16 position would be 4096: the input's own rounding is all that is lost."""
    rope = fnn.RotaryEmbedding(8, max_len=4096, layout=layout).bfloat16()
    x, at = normal(1, 8).bfloat16(), torch.tensor([4095])
    found = rope(x, at)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, rope(x.float(), at).bfloat16())
    expected = oracle.Rope(layout=layout)(numbers(x), at.numpy())
    assert gap(found, expected) <= 2**-8


POSITIONED = {
    "sinusoidal": lambda: fnn.SinusoidalPositions(4, 5),
    "learned": lambda: fnn.LearnedPositions(4, 5),
    "rope": lambda: fnn.RotaryEmbedding(4, max_len=5),
}


@pytest.mark.parametrize("name", POSITIONED)
def test_positions_out_of_range_are_refused(name):
    module = POSITIONED[name]()
    with pytest.raises(InvalidValueError, match="sequence of 6 is longer than max_len=5"):
        module(normal(6, 4))
    for wrong in (5, -1, -7):
        with pytest.raises(InvalidValueError, match="at least 0 and below max_len=5"):
            module(normal(1, 4), torch.tensor([wrong]))
    with pytest.raises(InvalidValueError, match="positions must be integers, got torch.float32"):
        module(normal(1, 4), torch.tensor([0.0]))
    with pytest.raises(InvalidValueError, match="positions must be integers, got torch.bool"):
        module(normal(1, 4), torch.tensor([True]))


# --- functions


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
def test_silu(size):
    x = size * normal(50)
    np.testing.assert_allclose(fnn.silu(x), oracle.ACTIVATIONS["silu"](numbers(x)), rtol=1e-5, atol=1e-30)  # fmt: skip


@pytest.mark.parametrize("dim", [-1, 0, 1])
@pytest.mark.parametrize("size", [1.0, 1e4, 3e38])
def test_softmax(dim, size):
    """The exponent's error is half a spacing of the logit: differences below 1e4 spacings survive."""
    x = size * normal(4, 5, 6).clamp(-1, 1)
    expected = np.moveaxis(oracle.softmax(np.moveaxis(numbers(x), dim, -1)), -1, dim)
    np.testing.assert_allclose(fnn.softmax(x, dim), expected, atol=1e-6)
    assert torch.all(fnn.softmax(x, dim).sum(dim) - 1 < 1e-6)


def test_softmax_of_nothing():
    x = torch.full((3, 4), -torch.inf)
    x[0, 1] = 2.0
    x.requires_grad_()
    y = fnn.softmax(x)
    assert y[0].tolist() == [0, 1, 0, 0]
    assert not y[1:].any()
    (y * normal(3, 4)).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_softmax_gradient():
    x = normal(3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(fnn.softmax, (x,))
    (ours,) = torch.autograd.grad((fnn.softmax(x) ** 2).sum(), x)
    (theirs,) = torch.autograd.grad((F.softmax(x, -1) ** 2).sum(), x)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_cross_entropy(shape):
    logits = normal(*shape, 10) * 50
    targets = torch.randint(10, shape)
    x = numbers(logits).reshape(-1, 10)
    log_p = np.log([float(v) for v in oracle.softmax(x)[range(len(x)), targets.reshape(-1)]])
    found = fnn.cross_entropy(logits, targets)
    assert found.shape == ()
    np.testing.assert_allclose(found, -log_p.mean(), rtol=1e-6)
    with pytest.raises(InvalidValueError, match="want targets of shape"):
        fnn.cross_entropy(logits, torch.zeros(4, 1, dtype=torch.int64))


def test_cross_entropy_of_huge_logits():
    logits = torch.tensor([[1e4, 0.0], [0.0, -1e30]], requires_grad=True)
    loss = fnn.cross_entropy(logits, torch.tensor([1, 0]))
    assert loss.item() == 5000
    loss.backward()
    assert torch.isfinite(logits.grad).all()


ATTENDED = {
    "plain": ((T, 4), (7, 4), (7, 3), {}),
    "batch": ((B, T, 4), (B, 7, 4), (B, 7, 3), {"causal": True}),
    "three axes": ((2, 3, B, T, 4), (2, 3, B, 7, 4), (2, 3, B, 7, 3), {"scale": 0.3}),
    "more queries than keys": ((B, T, 4), (B, 2, 4), (B, 2, 3), {"causal": True}),
    "bool mask": ((B, T, 4), (B, T, 4), (B, T, 4), {"mask": torch.rand(T, T) < 0.5}),
    "float mask, causal": ((B, T, 4), (B, T, 4), (B, T, 4), {"mask": normal(B, T, T), "causal": True}),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTENDED)
@pytest.mark.parametrize("written_out", [False, True])
def test_attention(name, written_out):
    *shapes, how = ATTENDED[name]
    q, k, v = (normal(*s, seed=i) for i, s in enumerate(shapes))
    expected, weights = oracle.attention(
        *map(numbers, (q, k, v)), **{n: numbers(x) if n == "mask" else x for n, x in how.items()}
    )
    found = fnn.attention(q, k, v, **how, need_weights=written_out)
    if written_out:
        found, found_weights = found
        assert gap(found_weights, weights) <= TOLERANCE
    assert gap(found, expected) <= TOLERANCE


def test_attention_refuses():
    x, y = normal(2, 4, 3, 8), normal(2, 3, 3, 8)
    for q, k, v in ((x, y, y), (x, x, y), (x[..., :4], x, x), (x, x[0], x[0]), (x[0, 0, 0],) * 3):
        with pytest.raises(InvalidValueError, match="attention wants q"):
            fnn.attention(q, k, v)
    with pytest.raises(
        InvalidValueError, match=r"got torch.int64. For 0/1 integers pass mask.bool"
    ):
        fnn.attention(x, x, x, torch.ones(3, 3, dtype=torch.int64))
    layer = fnn.MultiHeadAttention(D, HEADS)
    with pytest.raises(InvalidValueError, match=r"pass mask == 0"):
        layer(normal(B, T, D), key_padding_mask=torch.ones(B, T))
    with pytest.raises(InvalidValueError, match=r"must have shape \[2, 5\]"):
        layer(normal(B, T, D), key_padding_mask=torch.ones(T, B, dtype=torch.bool))


@pytest.mark.parametrize("name", CASES)
def test_call_on_a_meta_module(name):
    """The same as of the module that holds these weights; under names of torch.compile too."""
    case = CASES[name]
    module = perturbed(case.make()).eval()
    empty = case.make(device="meta").eval()
    weights = module.state_dict()
    args = [v for k, v in case.inputs.items() if isinstance(k, int)]
    kwargs = {k: v for k, v in case.inputs.items() if isinstance(k, str)}
    expected = case.run(module)
    assert torch.equal(fnn.call(empty, weights, *args, **kwargs), expected)
    compiled = {f"_orig_mod.{k}": v for k, v in weights.items()}
    assert torch.equal(fnn.call(empty, compiled, *args, **kwargs), expected)
    assert all(p.is_meta for p in empty.parameters())


def test_call_names_what_is_wrong():
    module, x = fnn.SwiGLU(4, 8, device="meta"), torch.zeros(2, 4)
    weights = {n: torch.ones(8, 4) for n in ("w1.weight", "w3.weight")}
    with pytest.raises(InvalidValueError, match="no weights for w2.weight of SwiGLU"):
        fnn.call(module, weights, x)
    with pytest.raises(
        InvalidValueError, match=r"SwiGLU has no w4.weight. Did you mean 'w3.weight'"
    ):
        fnn.call(module, weights | {"w4.weight": x}, x)


def test_call_with_tied_weights():
    model = fnn.TransformerLM(11, 8, D, 1, HEADS, tie=True)
    weights = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    empty = fnn.TransformerLM(11, 8, D, 1, HEADS, tie=True, device="meta")
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(fnn.call(empty, weights, ids), model(ids))


def test_call_gives_gradients_to_the_weights():
    module = fnn.FeedForward(4, 8)
    weights = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}
    fnn.call(fnn.FeedForward(4, 8, device="meta"), weights, normal(3, 4)).sum().backward()
    module(normal(3, 4)).sum().backward()
    for name, p in module.named_parameters():
        assert torch.equal(weights[name].grad, p.grad)


# --- modules as such


@pytest.mark.parametrize("name", DISTINCT)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(name, copied):
    """A copy computes the same, loads the original's state and is independent of it."""
    case = CASES[name]
    module = perturbed(case.make()).eval()
    twin = copied(module)
    expected = case.run(module)
    assert torch.equal(case.run(twin), expected)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert torch.equal(case.run(module), expected)
    twin.load_state_dict(module.state_dict())
    assert torch.equal(case.run(twin), expected)
    assert repr(twin) == repr(module)


def test_default_sizes():
    assert fnn.FeedForward(10).w1.weight.shape == (40, 10)
    for d in (64, 100, 512, 768, 4096):
        nearest = 64 * max(1, round(Fraction(8 * d, 3 * 64)))
        assert fnn.SwiGLU(d, device="meta").w1.out_features == nearest
    block = fnn.TransformerBlock(64, 4, ffn="swiglu", device="meta")
    assert block.ffn.w1.out_features == 192


REFUSED = {
    "d_model": (lambda: fnn.Linear(0, 3), "d_in must be a positive integer, got 0"),
    "bool": (lambda: fnn.Embedding(True, 3), "num_embeddings must be a positive integer, got True"),
    "float": (lambda: fnn.RMSNorm(2.0), "d_model must be a positive integer, got 2.0"),
    "layer norm": (lambda: fnn.LayerNorm(-1), "d_model must be a positive integer, got -1"),
    "heads": (lambda: fnn.MultiHeadAttention(10, 3), "num_heads=3 and d_model=10"),
    "kv_heads": (lambda: fnn.MultiHeadAttention(12, 6, kv_heads=4), "kv_heads=4 and num_heads=6"),
    "qk_norm": (lambda: fnn.MultiHeadAttention(12, 6, qk_norm="rmss"), "rms"),
    "rope size": (
        lambda: fnn.MultiHeadAttention(12, 6, rope=fnn.RotaryEmbedding(4)),
        "head_dim=2, this one turns 4",
    ),
    "odd rope": (lambda: fnn.RotaryEmbedding(5), "d must be even"),
    "theta": (lambda: fnn.RotaryEmbedding(4, 0.0), "theta must be positive, got 0.0"),
    "layout": (lambda: fnn.RotaryEmbedding(4, layout="interleave"), "interleaved"),
    "rope input": (lambda: fnn.RotaryEmbedding(4)(normal(2, 6)), "turns vectors of 4"),
    "activation": (lambda: fnn.FeedForward(4, activation="gelu_tan"), "gelu_tanh"),
    "d_ff": (lambda: fnn.SwiGLU(4, 0), "d_ff must be a positive integer, got 0"),
    "norm": (lambda: fnn.TransformerBlock(4, 2, norm="prenorm"), "pre"),
    "norm_layer": (lambda: fnn.TransformerBlock(4, 2, norm_layer="rmsnorm"), "rms"),
    "ffn": (lambda: fnn.TransformerBlock(4, 2, ffn="glu"), "swiglu"),
    "unpad": (lambda: fnn.TransformerEncoder(4, 2, num_layers=1, unpad="yes"), "unpad must be"),
    "positions": (lambda: fnn.TransformerEncoder(4, 2, num_layers=1, positions="rotary"), "rope"),
    "num_layers": (lambda: fnn.TransformerEncoder(4, 2, num_layers=0), "num_layers"),
    "llama": (lambda: fnn.TransformerBlock.llama(10, 4), "num_heads=4 and d_model=10"),
    "LM positions": (lambda: fnn.TransformerLM(9, 8, 4, 1, 2, positions="sinusoidal"), "learned"),
    "LM heads": (lambda: fnn.TransformerLM(9, 8, 4, 1, 3), "num_heads=3 and d_model=4"),
    "too long": (
        lambda: fnn.TransformerLM(9, 3, 4, 1, 2)(torch.zeros(1, 4, dtype=torch.int64)),
        "4 tokens are more than context_length=3",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(fanin.FaninError, match=message):
        make()


@pytest.mark.parametrize("name", ["encoder", "language model"])
def test_dropout_is_there_when_training(name):
    model = {
        "encoder": lambda: fnn.TransformerEncoder(D, HEADS, num_layers=1, dropout=0.5),
        "language model": lambda: fnn.TransformerLM(11, 8, D, 1, HEADS, dropout=0.5),
    }[name]()
    x = normal(B, T, D) if name == "encoder" else torch.zeros(B, T, dtype=torch.int64)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} <= {0.5, 0.0}


def test_padding_does_not_reach_real_tokens():
    """What stands at padded positions changes nothing elsewhere, not even a bit."""
    encoder = fnn.TransformerEncoder(D, HEADS, num_layers=2, positions="rope").eval()
    x, mask = normal(B, T, D), padded()
    other = torch.where(mask[..., None], 1e3 * normal(B, T, D, seed=9), x)
    for unpad in (True, False):
        encoder.unpad = unpad
        assert torch.equal(encoder(x, key_padding_mask=mask), encoder(other, key_padding_mask=mask))
