"""Attention against torch: logits of any spread, causal or not, masked, grouped; values that share tokens."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from fanin._moments import attention, registry
from fanin._moments.domain import added, cut, drawn, full, measured, permuted, reshaped
from fanin._moments.tilt import Image, Logits, independent_numbers, inherited
from monte_carlo import Case as AnyCase
from monte_carlo import check_backward, check_forward, predict, run, tensors_of
from tensors import correlated, stratified

SDPA = torch.nn.functional.scaled_dot_product_attention
ATEN = torch.ops.aten


def first(op):
    """The op's first output: log-sums and seeds carry no signal."""
    return lambda **given: op(**given)[0]


# E sum A^2 is exact for iid logits. A query's own length, of e = 16 numbers, makes its logits' spread
# vary, and ties a key's gradient to it: errors of order v / e.
Case = partial(AnyCase, draws=60, rtol=0.03, grad_rtol=0.12)
SELF = "scaled_dot_product_attention"


def heads(v=1.0, t=16, s=None, h=2, e=16, **options):
    """Queries and keys whose logits have variance v within a row; values that share a part."""
    s = s or t
    return {
        "query": full((2, h, t, e), v**0.5),
        "key": full((2, h, s, e), v**0.5),
        "value": added(full((2, h, s, e), 0.7), full((2, h, 1, e), 0.3)).plain(),
        **options,
    }


def mask_of(array):
    return measured(np.asarray(array))


def padding(t, s, kept):
    return mask_of(np.broadcast_to(np.arange(s) < kept, (2, 1, t, s)))


RNG = np.random.default_rng(0)
RANDOM = RNG.random((12, 20)) < 0.4
RANDOM[:, 0] = True
NEGATIVE = np.where(RANDOM, 0.0, -np.inf)
LOWEST = np.where(RANDOM, 0.0, float(np.finfo(np.float32).min))
SLOPES = -np.abs(np.subtract.outer(np.arange(12), np.arange(20))) * 0.05

CASES = [
    *(Case(SELF, heads(v, t, is_causal=causal), label=f"{v}-{t}-{'causal' if causal else 'full'}")
      for v, t in ((0.3, 5), (1.0, 16), (3.0, 16), (1.0, 64), (3.0, 64)) for causal in (False, True)),
    Case(SELF, heads(1.0, 12, 20), label="cross"),
    Case(SELF, heads(1.0, 12, 20, is_causal=True), label="cross-causal"),
    Case(SELF, heads(1.0, 12, e=9, scale=0.5), label="scale"),
    Case(SELF, heads(1.0, 12, dropout_p=0.3), draws=200, label="dropout", rtol=0.05, grad_rtol=0.15),
    Case(SELF, {"query": correlated(2, 12, 16), "key": correlated(2, 20, 16), "value": correlated(2, 20, 9)}, label="no-heads"),
    Case(SELF, {"query": full((2, 6, 12, 16), 1.0), "key": full((2, 2, 12, 16), 1.0),
                "value": correlated(2, 2, 12, 9), "enable_gqa": True}, label="grouped"),
    Case(SELF, {"query": full((2, 6, 12, 16), 1.0), "key": full((2, 2, 12, 16), 1.0),
                "value": correlated(2, 2, 12, 9), "enable_gqa": True, "is_causal": True}, label="grouped-causal"),
    Case(SELF, {"query": full((2, 4, 12, 16), 1.0), "key": full((2, 1, 12, 16), 1.0), "value": correlated(2, 1, 12, 9)}, label="one-key-head"),
    Case(SELF, heads(1.0, 12, 20, attn_mask=mask_of(RANDOM)), label="boolean"),
    Case(SELF, heads(1.0, 12, 20, attn_mask=mask_of(NEGATIVE)), label="infinite"),
    Case(SELF, heads(1.0, 12, 20, attn_mask=mask_of(LOWEST)), label="lowest"),
    Case(SELF, heads(1.0, 12, 20, attn_mask=padding(12, 20, 7)), label="padding"),
    Case(SELF, heads(1.0, 12, 20, attn_mask=mask_of(SLOPES)), label="slopes"),
    Case(SELF, heads(1.0, 12, 20, attn_mask=full((2, 12, 20), 0.5)), label="bias"),
    Case(SELF, {**heads(1.0, 15), "value": stratified(2, 2, 15, 16, dim=2)}, label="strata"),
    # Values differ between two segments that a causal mask tells apart.
    Case(SELF, {**heads(1.0, 15, is_causal=True), "value": stratified(2, 2, 15, 16, dim=2)}, label="strata-causal"),
    Case("_scaled_dot_product_attention_math", heads(1.0, 12), call=first(ATEN._scaled_dot_product_attention_math)),
    Case("_scaled_dot_product_flash_attention_for_cpu", heads(1.0, 12),
         call=first(ATEN._scaled_dot_product_flash_attention_for_cpu)),
    Case("_scaled_dot_product_flash_attention", heads(1.0, 12), call=SDPA),
    Case("_scaled_dot_product_cudnn_attention", heads(1.0, 12, attn_bias=mask_of(np.tri(12, dtype=bool))),
         call=lambda attn_bias, **given: SDPA(attn_mask=attn_bias, **given)),
    Case("_scaled_dot_product_efficient_attention", heads(1.0, 12), call=SDPA),
    Case("_scaled_dot_product_fused_attention_overrideable", heads(1.0, 12), call=SDPA),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case):
    check_forward(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward(case):
    check_backward(case)


@pytest.mark.parametrize("table", [registry.FORWARD, registry.BACKWARD])
def test_every_rule_has_a_case(table):
    ops = {op for op, rule in table.items() if rule.function.__module__ == attention.__name__}
    assert ops == {case.op for case in CASES}


def test_early_queries_of_a_causal_row():
    """Position by position: the first query copies its value, the last averages 64."""
    case = Case(SELF, heads(1.0, 64, is_causal=True), draws=60)
    y = predict(case)
    atom = y.dims[2][0]
    rng = np.random.default_rng(0)
    real = np.mean(
        [
            np.square(run(case, tensors_of(case.args, rng)).numpy()).mean((0, 1, 3))
            for _ in range(60)
        ],
        0,
    )
    start = 0
    assert len(atom) >= 4
    for i, n in enumerate(atom):
        # 60 draws of 4 heads of 16 channels: 2.5 % standard error for one position, and less for more.
        assert y.q[0, 0, i, 0] == pytest.approx(real[start : start + n].mean(), rel=0.12), n
        start += n


# one stream ---------------------------------------------------------------------------------------


def stream(t, d, r):
    """Tokens of unit variance whose cosine is r."""
    return added(full((2, t, d), 1 - r), full((2, 1, d), r)).plain() if r else full((2, t, d), 1.0)


def projected(x, s, h):
    b, t, d = x.shape
    y = registry.FORWARD["linear"](x=x, weight=full((d, d), s * s / d), bias=None)
    return permuted(reshaped(y, (b, t, h, d // h)), (0, 2, 1, 3)).with_(source=y.source)


def real_stream(x, s, h, causal, draws):
    """(second moments of the output by query, gradient of the queries) of torch."""
    b, t, d = x.shape
    rng = np.random.default_rng(0)
    outs, grads = [], []
    for _ in range(draws):
        tokens = torch.as_tensor(drawn(x, rng))
        q, k, v = ((tokens @ torch.as_tensor(rng.standard_normal((d, d))) * scale / d**0.5)
                   .view(b, t, h, d // h).transpose(1, 2) for scale in (s, s, 1.0))  # fmt: skip
        q.requires_grad_()
        out = SDPA(q, k, v, is_causal=causal)
        (g,) = torch.autograd.grad(out, q, torch.as_tensor(rng.standard_normal(out.shape)))
        outs.append(out.detach().square().mean((0, 1, 3)).numpy())
        grads.append(float(g.square().mean()))
    return np.mean(outs, 0), np.mean(grads)


@pytest.mark.parametrize("s", [0.7, 1.0, 1.3])
@pytest.mark.parametrize(
    ("t", "d", "h", "r"), [(64, 64, 4, 0.0), (128, 64, 2, 0.0), (32, 64, 1, 0.4)]
)
@pytest.mark.parametrize("causal", [False, True])
def test_queries_tilt_the_tokens(s, t, d, h, r, causal):
    """Keys and values of one stream: (1 - r)^2 s^4 (1 - P) / d on top of what values average to.

    Without it the prediction is up to 60 % low. Sampling error of 12 draws: below 4 %, of the shared
    part of a stream with r > 0 (2 samples x 64 numbers) sqrt(2 / (12 * 128)) = 4 %.
    """
    x = stream(t, d, r)
    query, key, value = projected(x, s, h), projected(x, s, h), projected(x, 1.0, h)
    given = {
        "query": query,
        "key": key,
        "value": value,
        "is_causal": causal,
        "op": SELF,
        "shapes": [query.shape],
    }
    y = registry.FORWARD[SELF](**given)
    grads = registry.BACKWARD[SELF](**given, grad=full(y.shape, 1.0), output=y)
    outs, of_query = real_stream(x, s, h, causal, 12)
    assert y.second_moment == pytest.approx(outs.mean(), rel=0.09)
    assert cut(y, 2, t // 2, t).second_moment == pytest.approx(outs[t // 2 :].mean(), rel=0.12)
    assert grads["query"].second_moment == pytest.approx(of_query, rel=0.15)
    apart = {**given, "key": key.plain()}
    if not causal and r == 0:
        assert registry.FORWARD[SELF](**apart).second_moment < 0.9 * y.second_moment


@pytest.mark.parametrize(("t", "d", "h"), [(16, 64, 4), (64, 64, 4), (128, 32, 2)])
def test_gradients_of_keys_follow_the_tokens(t, d, h):
    """A key matrix's gradient is 1 + (1 - P) / (n P) times that of independent factors.

    That factor is 1.25 to 5 here. Sampling error of 12 draws of d^2 numbers, 2 samples: below 5 %.
    """
    x, rng = full((2, t, d), 1.0), np.random.default_rng(0)
    weight = full((d, d), 1 / (3 * d))
    made = [registry.FORWARD["linear"](x=x, weight=weight, bias=None) for _ in range(3)]
    parts = [
        permuted(reshaped(y, (2, t, h, d // h)), (0, 2, 1, 3)).with_(source=y.source) for y in made
    ]
    given = {
        **dict(zip(("query", "key", "value"), parts, strict=True)),
        "op": SELF,
        "shapes": [(2, h, t, d // h)],
    }
    y = registry.FORWARD[SELF](**given)
    grad = registry.BACKWARD[SELF](**given, grad=full(y.shape, 1.0), output=y)["key"]
    flat = reshaped(permuted(grad, (0, 2, 1, 3)), (2, t, d))
    found = registry.BACKWARD["linear"](grad=flat, x=x, weight=weight, bias=None, output=made[1])
    assert made[0].source.echo == made[2].source.echo == 1.0
    real = []
    for _ in range(12):
        tokens = torch.as_tensor(rng.standard_normal((2, t, d)))
        maps = [torch.as_tensor(rng.standard_normal((d, d)) / (3 * d) ** 0.5) for _ in range(3)]
        maps[1].requires_grad_()
        out = SDPA(*((tokens @ w.T).view(2, t, h, d // h).transpose(1, 2) for w in maps))
        (g,) = torch.autograd.grad(out, maps[1], torch.as_tensor(rng.standard_normal(out.shape)))
        real.append(float(g.square().mean()))
    assert found["weight"].second_moment == pytest.approx(np.mean(real), rel=0.15)


def test_written_out_attention_is_the_same():
    """matmul, scale, softmax, matmul hand the source on as `_signal` does."""
    x = stream(64, 64, 0.0)
    query, key, value = (projected(x, s, 2) for s in (1.0, 1.0, 1.0))
    turned = permuted(key, (0, 1, 3, 2)).with_(source=key.source)
    z = registry.FORWARD["matmul"](x=query, other=turned, op="matmul")
    assert isinstance(z.source, Logits)
    scaled = registry.FORWARD["mul"](x=z, other=64**-0.5 * 2**0.5)
    scaled = scaled.with_(source=inherited("mul", [z.source], 64**-0.5 * 2**0.5))
    weights = registry.FORWARD["softmax"](x=scaled, dim=-1)
    weights = weights.with_(source=inherited("softmax", [scaled.source]))
    y = registry.FORWARD["matmul"](x=weights, other=value, op="matmul")
    fused = registry.FORWARD[SELF](query=query, key=key, value=value, op=SELF, shapes=[query.shape])
    np.testing.assert_allclose(y.q, fused.q, rtol=1e-9)


def test_what_hands_a_source_on():
    x, other = full((2, 5, 8), 1.0), full((2, 5, 8), 1.0)
    image = Image(x)
    assert inherited("reshape", [image]) is image
    assert inherited("add", [image, Image(x)]) is image
    assert inherited("add", [image, Image(other)]) is None
    assert inherited("add", [image, None]) is None
    assert inherited("gelu", [image]) is None
    assert inherited("div", [Logits(x, other)], 4).scale == 0.25


def test_pointwise_convolutions_are_images_too():
    """Queries, keys and values of an image from 1 x 1 convolutions, positions last."""
    x, (b, c, t) = full((2, 32, 64), 1.0), (2, 32, 64)
    parts = []
    for _ in range(3):
        y = registry.FORWARD["conv1d"](op="conv1d", x=x, weight=full((c, c, 1), 1 / c), bias=None)
        parts.append(permuted(y, (0, 2, 1)).with_(source=y.source))
    query, key, value = parts
    y = registry.FORWARD[SELF](query=query, key=key, value=value, op=SELF, shapes=[query.shape])
    outs, _ = real_stream(full((b, t, c), 1.0), 1.0, 1, False, 20)
    # Sampling error of 20 draws: 2 %.
    assert y.second_moment == pytest.approx(outs.mean(), rel=0.09)


def test_independent_numbers():
    """Channels that share half their variance are few: n^2 / (n + n (n - 1) / 4)."""
    assert independent_numbers(full((2, 9, 8), 3.0)) == pytest.approx(8.0)
    shared = added(full((2, 9, 8), 1.0), full((2, 9, 1), 1.0))
    assert independent_numbers(shared) == pytest.approx(64 / (8 + 56 / 4))
