"""No mask gives NaN, in outputs or gradients, on any path; all paths agree; padding may be left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import oracle_nn as oracle
import strategies as _profile  # noqa: F401 - the same examples in every run
from fanin import nn as fnn
from nn_cases import HEADS, B, D, T, normal, numbers, padded, perturbed

# Sums of at most 64 products of numbers of order one, in another order.
AGREE = {"atol": 2e-6, "rtol": 1e-5}

sizes = st.integers(1, 5)
seeds = st.integers(0, 2**16)
# How much is masked: nothing, all, or some of it.
shares = st.sampled_from((0.0, 0.3, 0.7, 0.95, 1.0))


@st.composite
def bools(draw, *shape):
    generator = torch.Generator().manual_seed(draw(seeds))
    mask = torch.rand(*shape, generator=generator) >= draw(shares)
    if draw(st.booleans()):
        mask[..., : draw(st.integers(0, shape[-2])), :] = False
    return mask


@st.composite
def masks(draw, batch, queries, keys):
    """None, bools or floats with -inf, per head or not, with axes of one."""
    kind = draw(st.sampled_from(("none", "bool", "float", "all -inf", "huge")))
    if kind == "none":
        return None
    shape = draw(
        st.sampled_from(
            (
                (queries, keys),
                (1, keys),
                (batch, queries, keys),
                (batch, HEADS, queries, keys),
                (batch, 1, 1, keys),
            )
        )
    )
    keep = draw(bools(*shape))
    if kind == "bool":
        return keep
    if kind == "all -inf":
        return torch.full(shape, -torch.inf)
    size = 1e4 if kind == "huge" else 2.0
    return (size * normal(*shape, seed=draw(seeds))).masked_fill(~keep, -torch.inf)


@st.composite
def paddings(draw, batch, keys):
    """None, ragged lengths (zero among them) on either side, or holes anywhere."""
    kind = draw(st.sampled_from(("none", "right", "left", "holes", "all")))
    if kind == "none":
        return None
    if kind == "all":
        return torch.ones(batch, keys, dtype=torch.bool)
    if kind == "holes":
        return ~draw(bools(batch, keys))
    lengths = torch.tensor(draw(st.lists(st.integers(0, keys), min_size=batch, max_size=batch)))
    mask = torch.arange(keys) >= lengths[:, None]
    return mask.flip(-1) if kind == "left" else mask


@st.composite
def self_attentions(draw):
    batch, length = draw(sizes), draw(sizes)
    how = {"mask": draw(masks(batch, length, length)), "key_padding_mask": draw(paddings(batch, length))}  # fmt: skip
    return normal(batch, length, D, seed=draw(seeds)), how


def gradients(
    module: nn.Module, run, *inputs: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Output, and gradients of a fixed random functional of it by inputs and parameters; all finite."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = run(*leaves)
    assert torch.isfinite(y).all()
    found = torch.autograd.grad((y * normal(*y.shape, seed=7)).sum(), [*leaves, *module.parameters()])  # fmt: skip
    assert all(torch.isfinite(g).all() for g in found)
    return y.detach(), list(found)


def assert_agree(first, second):
    """Both outputs and all gradients, these as parts of their tensor's largest entry (or of one)."""
    (a, grads_a), (b, grads_b) = first, second
    torch.testing.assert_close(a, b, **AGREE)
    for g, h in zip(grads_a, grads_b, strict=True):
        size = max(1.0, float(g.abs().max()))
        torch.testing.assert_close(g / size, h / size, atol=1e-5, rtol=0)


@settings(max_examples=40)
@given(self_attentions(), st.booleans(), st.sampled_from((None, 2, 1)), st.booleans())
def test_attention_paths(case, causal, kv_heads, bias):
    """Fused and written out give the same numbers and gradients, and those of the formula."""
    x, how = case
    torch.manual_seed(0)
    layer = perturbed(
        fnn.MultiHeadAttention(D, HEADS, kv_heads=kv_heads, causal=causal, bias=bias)
    ).eval()
    fused = gradients(layer, lambda x: layer(x, **how), x)
    written = gradients(layer, lambda x: layer(x, **how, need_weights=True)[0], x)
    assert_agree(fused, written)
    weights = layer(x, **how, need_weights=True)[1]
    assert torch.isfinite(weights).all()
    expected, expected_weights = oracle.Attention(HEADS, kv_heads, causal=causal)(
        oracle.exact(layer.state_dict()),
        numbers(x),
        mask=None if how["mask"] is None else numbers(how["mask"]),
        padding=None if how["key_padding_mask"] is None else how["key_padding_mask"].numpy(),
    )
    # Logits of 1e4 are themselves rounded by 5e-4, and so is the softmax relative to that of the formula.
    huge = how["mask"] is not None and how["mask"].is_floating_point()
    atol = 2e-6 if not huge or how["mask"].masked_fill(how["mask"].isneginf(), 0).abs().max() < 100 else 4e-3  # fmt: skip
    np.testing.assert_allclose(numbers(fused[0]), expected, atol=atol)
    np.testing.assert_allclose(numbers(weights.detach()), expected_weights, atol=atol)


@settings(max_examples=20)
@given(self_attentions(), st.booleans(), st.data())
def test_cross_attention(case, causal, data):
    x, _ = case
    keys = data.draw(sizes)
    context = normal(len(x), keys, 6, seed=3)
    how = {
        "mask": data.draw(masks(len(x), x.shape[1], keys)),
        "key_padding_mask": data.draw(paddings(len(x), keys)),
    }
    torch.manual_seed(0)
    layer = fnn.MultiHeadAttention(D, HEADS, kdim=6, causal=causal).eval()
    assert_agree(
        gradients(layer, lambda x, c: layer(x, c, **how), x, context),
        gradients(layer, lambda x, c: layer(x, c, **how, need_weights=True)[0], x, context),
    )


@settings(max_examples=40)
@given(self_attentions(), st.booleans())
def test_attention_with_dropout(case, causal):
    """Finite everywhere, and zeros for queries that attend to nothing whatever is dropped."""
    x, how = case
    torch.manual_seed(0)
    layer = fnn.MultiHeadAttention(D, HEADS, dropout=0.4, bias=False, causal=causal).train()
    y, _ = gradients(layer, lambda x: layer(x, **how), x)
    weights = layer.eval()(x, **how, need_weights=True)[1]
    nothing = (weights.sum(-1) == 0).all(-2)
    assert not y[nothing].any()


@settings(max_examples=25)
@given(self_attentions(), st.integers(1, 4), st.booleans())
def test_attention_with_a_cache(case, chunk, fixed):
    """Token by token, or a few at a time, with the rows of the mask that belong to them."""
    x, how = case
    length, mask, padding = x.shape[1], how["mask"], how["key_padding_mask"]
    torch.manual_seed(0)
    rope = fnn.RotaryEmbedding(D // HEADS, max_len=8)
    layer = fnn.MultiHeadAttention(D, HEADS, kv_heads=2, causal=True, rope=rope).eval()
    cache, steps = fnn.KVCache(length if fixed else None), []
    with torch.no_grad():
        for start in range(0, length, chunk):
            stop = min(start + chunk, length)
            rows = None if mask is None else mask[..., slice(start, stop) if mask.shape[-2] > 1 else slice(None), :stop]  # fmt: skip
            pad = None if padding is None else padding[:, :stop]
            steps.append(layer(x[:, start:stop], mask=rows, key_padding_mask=pad, cache=cache))
        torch.testing.assert_close(torch.cat(steps, 1), layer(x, **how), **AGREE)


@settings(max_examples=30)
@given(
    self_attentions(),
    st.sampled_from(("pre", "post")),
    st.sampled_from((None, "rope", "learned")),
    st.booleans(),
)
def test_encoder_paths(case, norm, positions, causal):
    """What is left out of the computation changes neither outputs nor any gradient."""
    x, how = case
    torch.manual_seed(0)
    encoder = perturbed(
        fnn.TransformerEncoder(
            D, HEADS, num_layers=2, d_ff=8, norm=norm, positions=positions, max_len=8, causal=causal
        )
    ).train()
    found = []
    for unpad in (False, True, "auto"):
        encoder.unpad = unpad
        found.append(gradients(encoder, lambda x: encoder(x, **how), x))
        if how["key_padding_mask"] is not None:
            assert not found[-1][0][how["key_padding_mask"]].any()
            assert not found[-1][1][0][how["key_padding_mask"]].any()
    assert_agree(found[0], found[1])
    assert_agree(found[0], found[2])


@settings(max_examples=15)
@given(self_attentions(), st.sampled_from((False, True, "auto")), st.booleans())
def test_encoder_with_dropout(case, unpad, checkpoint):
    x, how = case
    torch.manual_seed(0)
    encoder = fnn.TransformerEncoder(
        D, HEADS, num_layers=2, d_ff=8, dropout=0.3, positions="sinusoidal", unpad=unpad, checkpoint=checkpoint
    )  # fmt: skip
    y, _ = gradients(encoder, lambda x: encoder(x, **how), x)
    if how["key_padding_mask"] is not None:
        assert not y[how["key_padding_mask"]].any()


@settings(max_examples=25)
@given(self_attentions(), st.booleans())
def test_language_model(case, gpt2):
    x, how = case
    torch.manual_seed(0)
    make = fnn.TransformerLM.gpt2 if gpt2 else fnn.TransformerLM
    model = make(11, 8, D, 1, HEADS, dropout=0.2)
    ids = torch.randint(11, x.shape[:2])
    y, _ = gradients(model, lambda: model(ids, **how))
    assert y.shape == (*ids.shape, 11)


@settings(max_examples=40)
@given(sizes, sizes, st.booleans(), st.data())
def test_function(queries, keys, causal, data):
    """`attention` itself: rows that may attend to nothing are zero, and their queries get no gradient."""
    mask = data.draw(masks(1, queries, keys))
    q, k, v = (normal(1, HEADS, n, 4, seed=i).requires_grad_() for i, n in enumerate((queries, keys, keys)))  # fmt: skip
    for written in (False, True):
        y = fnn.attention(q, k, v, mask if mask is None or mask.dim() != 3 else mask[:, None], causal, need_weights=written)  # fmt: skip
        y = y[0] if written else y
        full = torch.zeros(1, HEADS, queries, keys)
        if mask is not None:
            added = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask  # fmt: skip
            full = full + (added if mask.dim() != 3 else added[:, None])
        if causal:
            full = full.masked_fill(~torch.ones(queries, keys).tril(keys - queries).bool(), -torch.inf)  # fmt: skip
        nothing = full.isneginf().all(-1)
        assert not y[nothing].any()
        grads = torch.autograd.grad(y.square().sum() + y.sum(), (q, k, v))
        assert all(torch.isfinite(g).all() for g in grads)
        assert not grads[0][nothing].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_fully_masked_rows_in_every_dtype(dtype, training):
    """Also where it is finfo.min that masks: then all keys count alike, as the formula says."""
    layer = fnn.MultiHeadAttention(D, HEADS, dtype=dtype, bias=False, dropout=0.2).train(training)
    x = normal(B, T, D).to(dtype).requires_grad_()
    nothing = torch.zeros(T, T, dtype=torch.bool)
    for mask in (nothing, torch.zeros(T, T, dtype=dtype).masked_fill(~nothing, -torch.inf)):
        for how in ({}, {"need_weights": True}):
            y = layer(x, mask=mask, **how)
            y = y[0] if how else y
            assert not y.any()
            assert not torch.autograd.grad(y.sum(), x)[0].any()
    least = torch.full((T, T), torch.finfo(dtype).min, dtype=dtype)
    assert torch.isfinite(layer(x, mask=least)).all()


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3])
def test_auto_unpads_where_it_pays(share, monkeypatch):
    from fanin.nn import _transformer

    used = []
    real = _transformer.Padding.of
    monkeypatch.setattr(_transformer.Padding, "of", staticmethod(lambda p: used.append(p) or real(p)))  # fmt: skip
    encoder = fnn.TransformerEncoder(D, HEADS, num_layers=1)
    mask = torch.zeros(1, 100, dtype=torch.bool)
    mask[:, 100 - round(100 * share) :] = True
    encoder(normal(1, 100, D), key_padding_mask=mask)
    assert bool(used) == (share >= _transformer.WORTH_UNPADDING)


def test_unpadding_computes_less():
    """Every linear layer sees the real tokens alone."""
    encoder, mask = fnn.TransformerEncoder(D, HEADS, num_layers=2, unpad=True), padded(4, 8)
    rows = []
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.register_forward_hook(lambda _, args, __: rows.append(args[0].numel() // args[0].shape[-1]))  # fmt: skip
    encoder(normal(4, 8, D), key_padding_mask=mask)
    assert set(rows) == {int((~mask).sum())}
