"""Products and sums of products: exact for independent tensors, so within sampling error of torch."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from fanin._moments import contract, distance, einsum, experts, registry
from fanin._moments.domain import added, drawn, full, measured, reshaped
from fanin._moments.gaussian import pointwise
from fanin._moments.width import fluctuation
from monte_carlo import Case as AnyCase
from monte_carlo import check_backward, check_forward
from tensors import correlated, stratified

A, B = correlated(3, 5, 7, mean=0.4), correlated(6, 7, mean=-0.2)
SPLIT = reshaped(correlated(3, 5, 2, 4), (3, 5, 8))
OFFS = measured(np.array([2, 5, 9], np.int32))


def white(*shape):
    """Rows that share a part; features alike and independent."""
    return added(full(shape, 1.0), full((1,) * (len(shape) - 1) + shape[-1:], 0.5))


def grouped(x, mat2, offs):
    """What aten::_grouped_mm computes, which this CPU has only in bfloat16."""
    ends = [0, *offs.tolist()]
    spans = list(zip(ends[:-1], ends[1:], strict=True))
    if x.dim() == 2 and mat2.dim() == 3:
        return torch.cat([x[p:q] @ w for (p, q), w in zip(spans, mat2, strict=True)])
    if x.dim() == 3 and mat2.dim() == 2:
        return torch.cat([a @ mat2[:, p:q] for (p, q), a in zip(spans, x, strict=True)], 1)
    if x.dim() == 2:
        return torch.stack([x[:, p:q] @ mat2[p:q] for p, q in spans])
    return torch.bmm(x, mat2)


Case = partial(AnyCase, draws=120)
CASES = [
    Case("linear", {"x": A, "weight": B, "bias": None}),
    Case("linear", {"x": A, "weight": B, "bias": correlated(6)}, label="bias"),
    Case("linear", {"x": stratified(6, 5, dim=0), "weight": correlated(4, 5)}, label="strata"),
    Case("linear", {"x": stratified(3, 9, dim=1), "weight": correlated(4, 9)}, label="split-inputs"),
    Case("linear", {"x": SPLIT, "weight": correlated(5, 8), "bias": correlated(5)}, label="atoms"),
    Case("linear", {"x": correlated(7), "weight": B}, label="vector"),
    Case("matmul", {"x": A, "other": correlated(3, 7, 4)}, label="batch"),
    Case("matmul", {"x": A, "other": correlated(7, 4)}, label="shared"),
    Case("matmul", {"x": correlated(1, 5, 7), "other": correlated(3, 7, 4)}, label="broadcast"),
    Case("matmul", {"x": correlated(2, 3, 4, 5), "other": correlated(3, 5, 2)}, label="4d"),
    Case("matmul", {"x": A, "other": correlated(7)}, label="vector"),
    Case("matmul", {"x": correlated(7), "other": correlated(3, 7, 4)}, label="row"),
    Case("matmul", {"x": correlated(9), "other": correlated(9, mean=0.5)}, draws=600, label="dot"),
    Case("linalg_matmul", {"x": A, "other": correlated(7, 4)}),
    Case("mm", {"x": correlated(5, 7), "mat2": correlated(7, 4, mean=1.0)}),
    Case("bmm", {"x": A, "mat2": correlated(3, 7, 4)}),
    Case("mv", {"x": B, "vec": correlated(7)}),
    Case("dot", {"x": correlated(9), "tensor": correlated(9)}, draws=600),
    Case("vdot", {"x": correlated(9), "other": correlated(9)}, draws=600),
    Case("outer", {"x": correlated(5), "vec2": correlated(7)}),
    Case("ger", {"x": correlated(5), "vec2": correlated(7)}),
    Case("inner", {"x": A, "other": B}),
    Case("addmm", {"x": correlated(4), "mat1": correlated(5, 7), "mat2": correlated(7, 4), "beta": 0.5, "alpha": 2.0}),
    Case("addmm", {"x": correlated(5, 1), "mat1": correlated(5, 7), "mat2": correlated(7, 4), "beta": 1, "alpha": 1}, label="column"),
    Case("addmv", {"x": correlated(6), "mat": B, "vec": correlated(7), "beta": 1, "alpha": 0.5}),
    Case("addr", {"x": correlated(5, 7), "vec1": correlated(5), "vec2": correlated(7), "beta": 1, "alpha": 1}),
    Case("baddbmm", {"x": correlated(3, 5, 4), "batch1": A, "batch2": correlated(3, 7, 4), "beta": 2.0, "alpha": 0.5}),
    Case("addbmm", {"x": correlated(5, 4), "batch1": A, "batch2": correlated(3, 7, 4), "beta": 1, "alpha": 1}),
    Case("kron", {"x": correlated(3, 4), "other": correlated(2, 5)}),
    Case("kron", {"x": correlated(4), "other": correlated(3, 5)}, label="ranks"),
    Case("tensordot", {"x": A, "other": correlated(7, 2, 5), "dims_self": [2, 1], "dims_other": [0, -1]}),
    Case("linalg_vecdot", {"x": A, "y": correlated(5, 7), "dim": -1}),
    Case("einsum", {"equation": "...ij,jk->...ik", "tensors": [A, correlated(7, 4)]}),
    Case("einsum", {"equation": "bij,bjk", "tensors": [A, correlated(3, 7, 4)]}, label="implicit"),
    Case("einsum", {"equation": "bic,bjc,bjd->bid", "tensors": [correlated(3, 4, 5), correlated(3, 6, 5), correlated(3, 6, 2)]}, label="three"),
    Case("einsum", {"equation": "ij,k->ki", "tensors": [correlated(4, 5), correlated(3, mean=1.0)]}, label="alone"),
    Case("einsum", {"equation": "...c,...c->...", "tensors": [A, correlated(1, 5, 7)]}, label="broadcast"),
    Case("einsum", {"equation": "bij->jb", "tensors": [A]}, label="one"),
    # The diagonal of a matrix whose rows and columns are shared differs from its other entries.
    Case("einsum", {"equation": "ii->i", "tensors": [full((8, 8), 1.0, 0.5)]}, label="diagonal"),
    Case("einsum", {"equation": "bii,bij->bj", "tensors": [full((3, 5, 5), 1.0), correlated(3, 5, 4)]}, label="diagonals"),
    Case("linalg_multi_dot", {"tensors": [correlated(5), correlated(5, 6), correlated(6, 4)]}),
    Case("chain_matmul", {"matrices": [correlated(3, 5), correlated(5, 6), correlated(6, 4)]}),
    Case("bilinear", {"input1": correlated(3, 5), "input2": correlated(3, 4), "weight": correlated(6, 5, 4), "bias": correlated(6)}),
    Case("_grouped_mm", {"x": correlated(9, 7), "mat2": correlated(3, 7, 5), "offs": OFFS}, call=grouped),
    Case("_grouped_mm", {"x": correlated(3, 4, 7), "mat2": correlated(7, 9), "offs": OFFS}, call=grouped, label="columns"),
    Case("_grouped_mm", {"x": correlated(4, 9), "mat2": correlated(9, 5), "offs": OFFS}, call=grouped, label="inner"),
    Case("_grouped_mm", {"x": correlated(3, 4, 7), "mat2": correlated(3, 7, 5), "offs": OFFS}, call=grouped, label="batched"),
    # A norm's square is a sum of 16 squares, taken for Gaussian.
    Case("cdist", {"x1": white(2, 5, 16), "x2": white(2, 4, 16), "p": 2.0}, call=lambda x1, x2, p: torch.cdist(x1, x2, p)),
    Case("cdist", {"x1": white(5, 16), "x2": white(4, 16), "p": 1.0}, call=lambda x1, x2, p: torch.cdist(x1, x2, p), label="taxi"),
    Case("_cdist_forward", {"x1": white(5, 16), "x2": white(4, 16), "p": 2.0}, call=lambda x1, x2, p: torch.cdist(x1, x2, p)),
    Case("_euclidean_dist", {"x1": white(5, 16), "x2": white(4, 16)}, call=lambda x1, x2: torch.cdist(x1, x2)),
    Case("pairwise_distance", {"x1": white(5, 16), "x2": white(5, 16), "p": 2.0, "eps": 1e-6, "keepdim": False}),
    Case("pairwise_distance", {"x1": white(5, 16), "x2": white(1, 16), "p": 1.0, "eps": 0.1, "keepdim": True}, label="shifted"),
    # The norms are taken for their expectations: exact for white features, else an error of order 1/n.
    Case("cosine_similarity", {"x1": full((5, 16), 3.0), "x2": full((5, 16), 1.0), "dim": 1, "eps": 1e-8}),
    Case("cosine_similarity", {"x1": white(5, 64), "x2": white(5, 64), "dim": 1, "eps": 1e-8}, rtol=0.04, label="rows"),
    Case("cosine_similarity", {"x1": full((4, 64, 3), 1.0), "x2": full((64, 3), 1.0), "dim": -2, "eps": 1e-8}, label="broadcast"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case):
    check_forward(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward(case):
    check_backward(case)


@pytest.mark.parametrize("table", [registry.FORWARD, registry.BACKWARD])
def test_every_rule_has_a_case(table):
    mine = {contract.__name__, distance.__name__, einsum.__name__, experts.__name__}
    ops = {op for op, rule in table.items() if rule.function.__module__ in mine}
    assert ops <= {case.op for case in CASES}


@pytest.mark.parametrize(("f", "expected"), [(None, 2.0), (lambda z: np.maximum(z, 0.0), 5.0)])
def test_width(f, expected):
    """Hanin & Nica 2018: (E x^4 / (E x^2)^2 - 1) / n, 2 for a Gaussian and 5 for a rectified one."""
    x = full((1, 50), 0.7)
    x = x if f is None else pointwise(x, f)
    assert fluctuation(x) == pytest.approx(expected / 50, rel=0.02)
    y = registry.FORWARD["linear"](x=x, weight=full((30, 50), 0.02), bias=None)
    # The weights' own mean square over 30 * 50 numbers varies too.
    assert y.noise == pytest.approx(expected / 50 + 2 / 1500, rel=0.02)


def test_width_of_correlated_tensors():
    """The spread of the mean square over draws, measured; its standard error is 1 / sqrt(2 * 4000)."""
    x = correlated(6, 9, mean=0.5)
    rng = np.random.default_rng(0)
    squares = np.array([np.square(drawn(x, rng)).mean() for _ in range(4000)])
    assert fluctuation(x) == pytest.approx(squares.var() / squares.mean() ** 2, rel=0.08)
