"""Norms and statistics of rows, as ops and written out by hand, against torch."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

import by_hand
import tape
from fanin._moments import registry
from fanin._moments.domain import concatenated, full, measured, scaled
from monte_carlo import Case as AnyCase
from monte_carlo import check_backward, check_forward
from tensors import correlated, stratified

Case = partial(AnyCase, draws=100)

X = correlated(4, 16, mean=0.5)
TOKENS = correlated(2, 5, 24, mean=0.3)
IMAGE = correlated(3, 8, 4, 5, mean=0.4)
LAYERED = stratified(9, 16, dim=0)  # rows of two kinds
JOINED = stratified(4, 18, dim=1)  # rows whose first third differs
SMALL = scaled(correlated(4, 16), 1e-3).plain()  # eps is ten times its variance

# Rows whose numbers share a part have fewer independent ones than n: the correlation of two rows'
# norms, and what a gradient loses along x, are then right to order 1/n. Within a row all is exact.
ROWS = {"rtol": 0.02, "grad_rtol": 0.05}
W, B = correlated(16, mean=1.0, scale=0.3), correlated(16)
CW, CB = correlated(8, mean=1.0, scale=0.3), correlated(8)
MEAN, VAR = (
    measured(np.linspace(-0.3, 0.5, 8)),
    measured(np.linspace(0.6, 1.5, 8)),
)  # buffers have no gradient
NONE4 = {"weight": None, "bias": None, "running_mean": None, "running_var": None}

OPS = sorted(
    op
    for op, rule in registry.FORWARD.items()
    if rule.function.__module__.endswith((".norm", "channelnorm", "spread"))
)


def batch(op, call=None, label="", **given):
    args = {"x": IMAGE, **NONE4, "training": True, "momentum": 0.1, "eps": 1e-5, **given}
    return Case(op, args, call=call, label=label, **ROWS)


def as_batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps, **rest):
    return torch.nn.functional.batch_norm(
        x, running_mean, running_var, weight, bias, training, momentum, eps
    )


LN = {"normalized_shape": [16], "weight": W, "bias": B, "eps": 1e-5}
CASES = [
    Case("layer_norm", {"x": X, **LN}, **ROWS),
    Case("layer_norm", {"x": X, "normalized_shape": [16], "weight": None, "bias": None, "eps": 1e-5}, label="plain", **ROWS),
    Case("layer_norm", {"x": LAYERED, **LN}, label="strata", **ROWS),
    Case("layer_norm", {"x": JOINED, "normalized_shape": [18], "weight": None, "bias": None, "eps": 1e-5}, label="joined", **ROWS),
    Case("layer_norm", {"x": SMALL, **LN}, label="small", **ROWS),
    Case("layer_norm", {"x": TOKENS, "normalized_shape": [5, 24], "weight": None, "bias": None, "eps": 1e-5}, label="two-axes", **ROWS),
    Case("layer_norm", {"x": correlated(40, 3), "normalized_shape": [3], "weight": None, "bias": None, "eps": 1e-3}, label="three", rtol=0.02, backward=False),
    Case("native_layer_norm", {"x": X, **LN}, call=lambda x, normalized_shape, weight, bias, eps: torch.nn.functional.layer_norm(x, normalized_shape, weight, bias, eps), **ROWS),
    Case("rms_norm", {"x": X, "normalized_shape": [16], "weight": W, "eps": 1e-6}, **ROWS),
    Case("rms_norm", {"x": LAYERED, "normalized_shape": [16], "weight": None, "eps": None}, label="strata", **ROWS),
    Case("_fused_rms_norm", {"x": X, "normalized_shape": [16], "weight": W, "eps": 1e-6}, call=lambda x, normalized_shape, weight, eps: torch.nn.functional.rms_norm(x, normalized_shape, weight, eps), **ROWS),
    Case("batch_norm", {"x": IMAGE, **NONE4, "weight": CW, "bias": CB, "training": True, "momentum": 0.1, "eps": 1e-5, "cudnn_enabled": True}, **ROWS),
    Case("batch_norm", {"x": IMAGE, **NONE4, "running_mean": MEAN, "running_var": VAR, "weight": CW, "bias": CB, "training": False, "momentum": 0.1, "eps": 1e-5}, label="eval", call=as_batch_norm),
    Case("batch_norm", {"x": IMAGE, **NONE4, "running_mean": measured(np.zeros(8)), "running_var": measured(np.ones(8)), "training": False, "momentum": 0.1, "eps": 1e-5}, label="fresh", call=as_batch_norm),
    Case("batch_norm", {"x": correlated(6, 7), **NONE4, "training": True, "momentum": 0.1, "eps": 1e-5}, label="small-batch", call=as_batch_norm, rtol=0.02, grad_rtol=0.05),
    *(batch(op, as_batch_norm) for op in registry.FORWARD if op in ("native_batch_norm", "_native_batch_norm_legit", "_batch_norm_impl_index", "cudnn_batch_norm", "miopen_batch_norm", "_batch_norm_with_update")),
    batch("_native_batch_norm_legit_no_training", as_batch_norm, running_mean=MEAN, running_var=VAR, training=False),
    Case("instance_norm", {"x": IMAGE, **NONE4, "weight": CW, "bias": CB, "use_input_stats": True, "momentum": 0.1, "eps": 1e-5, "cudnn_enabled": True}, **ROWS),
    Case("instance_norm", {"x": IMAGE, **NONE4, "running_mean": MEAN, "running_var": VAR, "use_input_stats": False, "momentum": 0.1, "eps": 1e-5, "cudnn_enabled": True}, label="running", call=lambda x, **k: torch.nn.functional.batch_norm(x, k["running_mean"], k["running_var"], eps=1e-5)),
    Case("group_norm", {"x": IMAGE, "num_groups": 2, "weight": CW, "bias": CB, "eps": 1e-5}, **ROWS),
    Case("group_norm", {"x": concatenated([correlated(3, 4, 5, scale=4.0), correlated(3, 8, 5)], 1), "num_groups": 1, "weight": None, "bias": None, "eps": 1e-5}, label="joined", **ROWS),
    Case("native_group_norm", {"x": IMAGE, "weight": CW, "bias": CB, "N": 3, "C": 8, "HxW": 20, "group": 2, "eps": 1e-5}, **ROWS),
    Case("_weight_norm", {"v": correlated(6, 12), "g": correlated(6, 1, mean=1.0), "dim": 0}, **ROWS),
    Case("_weight_norm_interface", {"v": correlated(6, 12), "g": correlated(6, 1, mean=1.0), "dim": 0}, call=lambda v, g, dim: torch._weight_norm(v, g, dim), **ROWS),
    *(Case(op, {"x": X, "dim": [1], "correction": 1, "keepdim": True}, **ROWS) for op in ("var", "std")),
    Case("var", {"x": TOKENS, "dim": [0, 2], "correction": 0, "keepdim": False}, label="axes", **ROWS),
    Case("var", {"x": X, "unbiased": False}, label="all", **ROWS),
    Case("std", {"x": LAYERED, "dim": [1], "correction": 1, "keepdim": False}, label="strata", **ROWS),
    *(Case(op, {"x": X, "dim": [1], "correction": 1, "keepdim": True}, **ROWS) for op in ("var_mean", "std_mean")),
    Case("linalg_vector_norm", {"x": X, "ord": 2, "dim": [1], "keepdim": True}, **ROWS),
    Case("linalg_vector_norm", {"x": X, "ord": 1, "dim": [1], "keepdim": False}, label="one", **ROWS),
    Case("linalg_vector_norm", {"x": X, "ord": 3, "dim": [1], "keepdim": False}, label="three", rtol=0.02, grad_rtol=0.4),
    Case("linalg_vector_norm", {"x": correlated(400, 3), "ord": 2, "dim": [1], "keepdim": False}, label="short", backward=False, rtol=0.02, draws=100),
    Case("linalg_vector_norm", {"x": full((20, 9), 1.7), "ord": float("inf"), "dim": [1], "keepdim": False}, label="largest", grad_rtol=0.05),
    Case("linalg_vector_norm", {"x": X, "ord": 0, "dim": [1], "keepdim": False}, label="count", backward=False),
    Case("norm", {"x": X, "p": 2, "dim": [1], "keepdim": True}, **ROWS),
    Case("linalg_norm", {"x": X, "ord": None, "dim": [1], "keepdim": False}, **ROWS),
    Case("linalg_matrix_norm", {"x": X, "ord": "fro", "dim": [0, 1], "keepdim": False}, **ROWS),
    Case("frobenius_norm", {"x": X, "dim": [0, 1], "keepdim": False}, **ROWS),
    Case("cosine_similarity", {"x1": X, "x2": correlated(4, 16, mean=0.5), "dim": 1, "eps": 1e-8}, **ROWS),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case):
    check_forward(case)


@pytest.mark.parametrize("case", [c for c in CASES if c.backward], ids=str)
def test_backward(case):
    check_backward(case)


def test_every_rule_has_a_case():
    assert {c.op for c in CASES} >= set(OPS)
    assert set(OPS) <= set(registry.BACKWARD)


ROW = correlated(5, 12, mean=0.4)


@pytest.mark.parametrize("name", by_hand.NORMS)
def test_norms_written_out_are_recognised(name):
    """As the op itself: the way of the gradient through the row's own statistic included."""
    out = tape.check(by_hand.NORMS[name], {"x": ROW}, rtol=0.02, grad_rtol=0.05)
    assert out.noise == 0.0


@pytest.mark.parametrize("name", ["weight_standardised", "batch_norm"])
def test_norms_over_several_axes(name):
    tape.check(
        getattr(by_hand, name), {"x": correlated(6, 5, 3, mean=0.5)}, rtol=0.02, grad_rtol=0.05
    )


def test_rows_of_two_kinds_have_their_own_levels():
    tape.check(by_hand.rms_norm, {"x": LAYERED}, rtol=0.02, backward=False)


def test_a_softmax_written_out():
    tape.check(
        by_hand.softmax, {"x": scaled(correlated(5, 12), 1.2).plain()}, rtol=0.02, backward=False
    )


def test_what_a_norm_divides_out_is_certain():
    x = full((6, 32), 3.0)
    x.noise = 0.2
    for op, args in (
        ("layer_norm", {"normalized_shape": [32]}),
        ("rms_norm", {"normalized_shape": [32]}),
    ):
        assert registry.FORWARD[op](x=x, **args).noise < 1e-9
