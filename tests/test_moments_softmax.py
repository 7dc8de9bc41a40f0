"""Softmax of Gaussian logits, forward and backward, against torch: up to a variance of 3, masked or not."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from fanin._moments import concentration, masks, registry
from fanin._moments.domain import (
    Abstract,
    concatenated,
    drawn,
    full,
    measured,
    merge_dim,
    reshaped,
    scaled,
    summed,
)
from fanin._moments.softmax import attention_weights, attention_weights_backward
from monte_carlo import Case as AnyCase
from monte_carlo import check_backward, check_forward
from tensors import correlated, stratified

Case = partial(AnyCase, draws=100)

OPS = sorted(
    op for op, rule in registry.FORWARD.items() if rule.function.__module__.endswith(".softmax")
)
CAUSAL = np.tril(np.ones((20, 20), bool))
PADDING = np.ones((3, 1, 11), bool)
PADDING[1, :, 8:] = PADDING[2, :, 5:] = False
WINDOW = CAUSAL & ~np.tril(np.ones((20, 20), bool), -4)


def logits(shape, *q, mean=0.0):
    """Covariances row-major over (other axes..., query, key), same index first."""
    x = full(shape, 1.0)
    return Abstract(
        x.dims, np.full(x.mean.shape, mean), np.array(q, float).reshape(x.q.shape) + mean**2
    )


def rows(variance):
    return logits((5, 17), 1.5 * variance, 0.5 * variance, 0.9 * variance, 0.3 * variance, mean=0.3)


def with_mask(x, allowed, label, **options):
    def call(x, dim):
        return torch.softmax(x.masked_fill(~torch.as_tensor(allowed), -torch.inf), dim)

    return Case(
        "softmax", {"x": x.with_(allowed=allowed), "dim": -1}, call=call, label=label, **options
    )


HEADS = logits((3, 20, 20), 2.0, 0.6, 1.0, 0.3, 0.8, 0.2, 0.5, 0.1)
CLASS_TOKEN = concatenated(
    [logits((9, 1), 1.5, 0.5, mean=0.5), logits((9, 13), 1.0, 0.3, 0.6, 0.2)], 1
)
GRID = reshaped(logits((6, 4, 4), 1.0, 0.7, 0.6, 0.4, 0.5, 0.3, 0.2, 0.1), (6, 16))
CHANNELS = scaled(correlated(3, 7, 4), 1.2).plain()

CASES = [
    *(Case("softmax", {"x": rows(v), "dim": -1}, label=f"variance-{v}", draws=400) for v in (0.5, 1.0, 3.0)),
    Case("_softmax", {"x": rows(1.0), "dim": 1, "half_to_float": False}),
    Case("_safe_softmax", {"x": rows(1.0), "dim": 1}),
    Case("special_softmax", {"x": rows(1.0), "dim": 1}),
    Case("softmin", {"x": rows(1.0), "dim": 1}, call=lambda x, dim: torch.softmax(-x, dim)),
    Case("softmax", {"x": CHANNELS, "dim": 1}, label="channels"),
    Case("softmax", {"x": correlated(4, 1), "dim": 1}, label="one"),
    Case("softmax", {"x": correlated(30, 2, mean=0.3), "dim": 1}, label="two"),
    Case("softmax", {"x": GRID, "dim": 1}, label="atoms", rtol=0.02, draws=200),
    Case("softmax", {"x": stratified(9, 12, dim=0), "dim": 1}, label="strata", rtol=0.02),
    # a segment with a mean and variance of its own is tilted as log-normal numbers are
    Case("softmax", {"x": CLASS_TOKEN, "dim": 1}, label="class-token", rtol=0.03, grad_rtol=0.06),
    with_mask(HEADS, CAUSAL, "causal", rtol=0.02, draws=250),
    with_mask(HEADS, WINDOW, "window", rtol=0.02, draws=250),
    with_mask(logits((3, 7, 11), 1.0, 0.3, 0.6, 0.2, 0.4, 0.1, 0.3, 0.1), PADDING, "padding", rtol=0.02, draws=250),
    *(Case(op, {"x": rows(1.0), "dim": 1}, grad_rtol=0.05) for op in ("log_softmax", "special_log_softmax")),
    Case("_log_softmax", {"x": rows(3.0), "dim": 1, "half_to_float": False}, grad_rtol=0.05),
    *(Case(op, {"x": rows(1.0), "dim": [1], "keepdim": True}) for op in ("logsumexp", "special_logsumexp")),
    Case("logsumexp", {"x": stratified(9, 12, dim=0), "dim": [1], "keepdim": False}, label="strata", rtol=0.02),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case):
    check_forward(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward(case):
    check_backward(case)


def test_every_rule_has_a_case():
    assert {c.op for c in CASES} >= set(OPS)
    assert set(OPS) <= set(registry.BACKWARD)


def by_segment(x, squares):
    """E x^2 predicted over measured, segment by segment."""
    counts = [np.array(atom) for atom in x.atoms]
    measured = squares.reshape([int(n.sum()) for n in counts])
    for axis, n in enumerate(counts):
        measured = np.add.reduceat(measured, np.cumsum([0, *n[:-1]]), axis=axis)
        measured = measured / n.reshape((-1,) + (1,) * (measured.ndim - axis - 1))
    return x.q[tuple(slice(len(n)) for n in counts)], measured


def test_each_stratum_of_a_causal_mask():
    """Rows that see 1, 2, 3..4, 5..8, 9..16 and 17..20 keys: forward and backward within 4 %."""
    z = HEADS.with_(allowed=CAUSAL)
    weights = attention_weights(z)
    grads = attention_weights_backward(weights, full(z.shape, 1.0), -1)
    rng = np.random.default_rng(6)
    out, back = [], []
    for _ in range(600):
        x = torch.as_tensor(drawn(z, rng)).requires_grad_()
        a = torch.softmax(x.masked_fill(~torch.as_tensor(CAUSAL), -torch.inf), -1)
        (g,) = torch.autograd.grad(a, x, torch.as_tensor(rng.standard_normal(z.shape)))
        out.append(np.square(a.detach().numpy()))
        back.append(np.square(g.numpy()))
    assert weights.dims[1] == ((1, 1, 2, 4, 8, 4),)
    for x, squares in ((weights, out), (grads, back)):
        predicted, measured = by_segment(merge_dim(x, 2), np.mean(squares, axis=0))
        np.testing.assert_allclose(predicted, measured, rtol=0.04, atol=1e-12)


@pytest.mark.parametrize(
    "z",
    [rows(2.0), HEADS.with_(allowed=CAUSAL), CLASS_TOKEN, GRID],
    ids=["even", "causal", "class", "grid"],
)
def test_rows_sum_to_one_and_their_gradients_to_nothing(z):
    """A constant along the keys, as a key's bias is, gets no gradient: to 1e-9 of one element's."""
    weights = attention_weights(z)
    back = attention_weights_backward(weights, correlated(*z.shape, mean=0.5), -1)
    for x, expected in ((weights, 1.0), (back, 0.0)):
        total = x.q
        for axis in reversed(x.axes([len(x.dims) - 1])):
            pairs = masks.flat((x.atoms[axis],)).pairs
            total = np.tensordot(total, pairs, (axis, 0))
        scale = 1.0 if expected else x.second_moment * z.shape[-1]
        np.testing.assert_allclose(total, expected, atol=1e-9 * scale)


@pytest.mark.parametrize(("n", "v"), [(2, 0.3), (4, 3.0), (16, 1.0), (64, 3.0), (256, 6.0)])
def test_participation_against_drawn_logits(n, v):
    """E sum A^2 of iid logits: 200 000 / n rows, relative error about 1 / sqrt(rows) of a spread below 1."""
    z = np.random.default_rng(0).standard_normal((400_000 // n, n)) * v**0.5
    a = np.exp(z - z.max(axis=1, keepdims=True))
    a /= a.sum(axis=1, keepdims=True)
    squares = (a * a).sum(axis=1)
    error = squares.std() / len(squares) ** 0.5
    found = float(concentration.participation(np.array(float(n)), np.array(v)))
    assert abs(found - squares.mean()) <= 5 * error + 2e-3 * found


@pytest.mark.parametrize(
    ("n", "v", "r"), [(2, 1.0, 0.5), (16, 3.0, 0.75), (64, 1.0, 0.25), (64, 6.0, 0.5)]
)
def test_two_rows_that_correlate(n, v, r):
    """E sum A A' at correlation r: exact at 0 and 1, within 3 % between."""
    rng = np.random.default_rng(1)
    draws = 400_000 // n
    common = rng.standard_normal((draws, n)) * r**0.5
    a, b = (
        np.exp(v**0.5 * (common + (1 - r) ** 0.5 * rng.standard_normal((draws, n)))) for _ in "ab"
    )
    overlap = ((a / a.sum(axis=1, keepdims=True)) * (b / b.sum(axis=1, keepdims=True))).sum(axis=1)
    at = concentration.effective(np.array(float(n)), np.array(v), np.array(r * v))
    found = float(concentration.participation(np.array(float(n)), at))
    assert found == pytest.approx(overlap.mean(), rel=0.03, abs=5 * overlap.std() / draws**0.5)


def test_the_log_normal_form_is_far_too_high_where_logits_spread():
    """At v = 2.9 and 17 keys exp(v) / (n - 1 + exp(v)) is 64 % above what softmax gives."""
    exact = float(concentration.participation(np.array(17.0), np.array(2.9)))
    assert np.exp(2.9) / (16 + np.exp(2.9)) > 1.6 * exact


def test_a_mask_is_analysed_once():
    masks.pattern.cache_clear()
    for _ in range(3):
        attention_weights(HEADS.with_(allowed=CAUSAL.copy()))
    assert masks.pattern.cache_info().misses == 1


def test_rows_without_any_key_read_all_of_them():
    """As torch does where all logits are the same large negative number."""
    allowed = CAUSAL.copy()
    allowed[0] = False
    weights = attention_weights(HEADS.with_(allowed=allowed))
    assert np.isfinite(weights.q).all()
    assert weights.average_mean == pytest.approx(1 / 20)


def test_masked_logits_keep_rows_that_sum_to_zero():
    """Of a softmax's gradient, through ``masked_fill``: a bias on all logits of a row has none."""
    allowed = np.arange(12) < np.array([[12], [5], [9], [7]])
    mask, x = measured(~allowed), full((4, 12), 1.0)
    z = registry.FORWARD["masked_fill"](x=x, mask=mask, value=-math.inf)
    a = registry.FORWARD["softmax"](x=z, dim=-1)
    g = registry.BACKWARD["softmax"](grad=full((4, 12), 1.0), output=a, dim=-1)["x"]
    found = registry.BACKWARD["masked_fill"](grad=g, x=x, mask=mask, value=-math.inf)["x"]
    assert found.second_moment == pytest.approx(g.second_moment)
    assert abs(summed(found, [1]).second_moment) < 1e-9 * found.second_moment
