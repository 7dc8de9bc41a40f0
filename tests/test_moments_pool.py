"""Pooling: means against their own matrices, the largest of windows against torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from exactly import check_linear
from fanin._moments import maxpool, order, pool, registry
from fanin._moments.domain import full, measured, scaled
from fanin._moments.gaussian import pointwise
from fanin._moments.registry import BACKWARD, FORWARD
from monte_carlo import Case, check_backward, check_forward
from tensors import correlated, stratified

IMAGE = correlated(2, 2, 5, 6, mean=0.4)
LINE = stratified(2, 3, 7, dim=2)
CUBE = correlated(1, 2, 3, 4, 3)


def window(kernel_size, stride=(), padding=(0,), **more):
    return dict(kernel_size=kernel_size, stride=list(stride), padding=list(padding), **more)


def composed(name):
    """What decomposes below autograd; the functions of torch.nn.functional are the same."""
    return lambda x, **given: getattr(torch.nn.functional, name)(
        x, **{k: v for k, v in given.items() if v != []}
    )


AVERAGE = {"ceil_mode": False, "count_include_pad": True}
MEANS = [
    Case("avg_pool1d", dict(x=LINE, **window([2], [2]), **AVERAGE)),
    Case(
        "avg_pool1d",
        dict(x=LINE, **window([3], [2], [1]), ceil_mode=False, count_include_pad=False),
        label="edges",
    ),
    Case(
        "avg_pool2d",
        dict(x=IMAGE, **window([3, 2], [2, 1], [1, 0]), **AVERAGE, divisor_override=None),
    ),
    Case(
        "avg_pool2d",
        dict(
            x=IMAGE,
            **window([2], [2], [0]),
            ceil_mode=True,
            count_include_pad=True,
            divisor_override=None,
        ),
        label="ceil",
    ),
    Case(
        "avg_pool2d",
        dict(x=IMAGE, **window([2], [2], [1]), **AVERAGE, divisor_override=3),
        label="divisor",
    ),
    Case("avg_pool3d", dict(x=CUBE, **window([2], [1], [0]), **AVERAGE, divisor_override=None)),
    Case("adaptive_avg_pool1d", {"x": LINE, "output_size": [3]}),
    Case("adaptive_avg_pool2d", {"x": IMAGE, "output_size": [3, 6]}),
    Case("adaptive_avg_pool2d", {"x": IMAGE, "output_size": [1, 1]}, label="all"),
    Case("_adaptive_avg_pool2d", {"x": IMAGE, "output_size": [2, 3]}),
    Case("adaptive_avg_pool3d", {"x": CUBE, "output_size": [2, 1, 2]}),
    Case("_adaptive_avg_pool3d", {"x": CUBE, "output_size": [1, 1, 1]}),
    *(
        Case(op, dict(x=IMAGE, **given), call=composed(name))
        for op, given, name in (
            (
                "mkldnn_avg_pool2d",
                {"kernel_size": [2], "stride": [2], "padding": [0]},
                "avg_pool2d",
            ),
            ("mkldnn_adaptive_avg_pool2d", {"output_size": [2, 2]}, "adaptive_avg_pool2d"),
        )
    ),
]


@pytest.mark.parametrize("case", MEANS, ids=str)
def test_means(case):
    check_linear(case)


RELU = pointwise(correlated(2, 3, 6, 6), lambda z: np.maximum(z, 0.0))
WIDE = correlated(2, 4, 8, 8)
# Gaussian fields with tables of their own are what these rules are exact for; `agree` in
# `passed_to_largest` is the formula for two candidates.
MAXES = [
    Case("max_pool2d", dict(x=WIDE, **window([2]), dilation=[1], ceil_mode=False), rtol=0.02),
    Case(
        "max_pool2d",
        dict(x=WIDE, **window([3], [2], [1]), dilation=[1], ceil_mode=False),
        rtol=0.03,
        label="overlap",
    ),
    Case(
        "max_pool2d",
        dict(x=full((2, 3, 9, 9), 1.0), **window([3], [1], [1]), dilation=[1], ceil_mode=False),
        rtol=0.03,
        label="stride-1",
    ),
    Case(
        "max_pool2d",
        dict(x=WIDE, **window([2], [2], [0]), dilation=[2], ceil_mode=True),
        rtol=0.03,
        label="dilated",
    ),
    Case(
        "max_pool1d",
        dict(x=LINE, **window([3], [3], [0]), dilation=[1], ceil_mode=False),
        rtol=0.08,
        label="strata",
    ),
    Case(
        "max_pool1d",
        dict(x=correlated(3, 4, 9), **window([3], [3], [0]), dilation=[1], ceil_mode=False),
        rtol=0.03,
    ),
    Case(
        "max_pool3d",
        dict(x=CUBE, **window([2], [1], [0]), dilation=[1], ceil_mode=False),
        rtol=0.04,
    ),
    Case(
        "max_pool1d_with_indices",
        dict(x=correlated(3, 4, 8), **window([2]), dilation=[1], ceil_mode=False),
        rtol=0.02,
        call=lambda x, **a: torch.nn.functional.max_pool1d(x, 2),
    ),
    Case(
        "max_pool2d_with_indices",
        dict(x=WIDE, **window([2]), dilation=[1], ceil_mode=False),
        rtol=0.02,
        call=lambda x, **a: torch.nn.functional.max_pool2d(x, 2),
    ),
    Case(
        "max_pool3d_with_indices",
        dict(x=CUBE, **window([2], [1], [0]), dilation=[1], ceil_mode=False),
        rtol=0.04,
        call=lambda x, **a: torch.nn.functional.max_pool3d(x, 2, 1),
    ),
    Case(
        "mkldnn_max_pool2d",
        {"x": WIDE, "kernel_size": [2]},
        rtol=0.02,
        call=lambda x, **a: torch.nn.functional.max_pool2d(x, 2),
    ),
    Case(
        "mkldnn_max_pool3d",
        {"x": CUBE, "kernel_size": [2], "stride": [1]},
        rtol=0.04,
        call=lambda x, **a: torch.nn.functional.max_pool3d(x, 2, 1),
    ),
    Case(
        "adaptive_max_pool1d",
        {"x": correlated(3, 4, 9), "output_size": [3]},
        rtol=0.03,
        call=lambda x, output_size: torch.nn.functional.adaptive_max_pool1d(x, output_size),
    ),
    Case(
        "adaptive_max_pool2d",
        {"x": WIDE, "output_size": [1, 1]},
        rtol=0.02,
        call=lambda x, output_size: torch.nn.functional.adaptive_max_pool2d(x, output_size),
    ),
    Case(
        "adaptive_max_pool2d",
        {"x": WIDE, "output_size": [3, 3]},
        rtol=0.05,
        call=lambda x, output_size: torch.nn.functional.adaptive_max_pool2d(x, output_size),
        label="uneven",
    ),
    Case(
        "adaptive_max_pool3d",
        {"x": CUBE, "output_size": [1, 2, 1]},
        rtol=0.04,
        call=lambda x, output_size: torch.nn.functional.adaptive_max_pool3d(x, output_size),
    ),
    Case(
        "fractional_max_pool2d",
        {
            "x": WIDE,
            "kernel_size": [2, 2],
            "output_size": [4, 4],
            "random_samples": measured(np.full((2, 4, 2), 0.5)),
        },
        rtol=0.04,
        call=lambda x, kernel_size, output_size, random_samples: (
            torch.nn.functional.fractional_max_pool2d(x, kernel_size, output_size)
        ),
    ),
    Case(
        "fractional_max_pool3d",
        {
            "x": correlated(2, 2, 4, 4, 4),
            "kernel_size": [2, 2, 2],
            "output_size": [2, 2, 2],
            "random_samples": measured(np.full((2, 2, 3), 0.5)),
        },
        rtol=0.06,
        call=lambda x, kernel_size, output_size, random_samples: (
            torch.nn.functional.fractional_max_pool3d(x, kernel_size, output_size)
        ),
    ),
]


MAXES = [replace(case, draws=150) for case in MAXES]


@pytest.mark.parametrize("case", MAXES, ids=str)
def test_largest_of_windows(case):
    check_forward(case)


@pytest.mark.parametrize("case", MAXES, ids=str)
def test_gradient_of_the_largest(case):
    check_backward(case)


RANK = {
    "kernel_size": [2],
    "stride": [2],
    "padding": [0],
    "dilation": [1],
    "ceil_mode": False,
    "op": "max_pool2d",
}


def test_functions_that_rise_commute_with_the_largest():
    """max relu(x) = relu(max x), where the moments of relu(x) alone would mislead."""
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.standard_normal((400, 8, 8)))
    real = torch.nn.functional.max_pool2d(x.relu(), 2)
    plain = pointwise(full((400, 8, 8), 1.0), lambda z: np.maximum(z, 0.0))
    given = dict(RANK, shapes=[(400, 4, 4)])
    error = 5 * float((real**2).std()) / np.sqrt(real.numel())
    kept = FORWARD["max_pool2d"](x=plain, **given)[0].second_moment
    assert abs(kept - float((real**2).mean())) < error
    assert (
        abs(
            FORWARD["max_pool2d"](x=plain.plain(), **given)[0].second_moment
            - float((real**2).mean())
        )
        > 3 * error
    )


def test_the_gradient_favours_elements_that_survive_the_rectifier():
    """conv, relu, max pool of 9: nearly every window's gradient passes the rectifier, not half."""
    rng = np.random.default_rng(1)
    shape, pooling = (40, 4, 13, 13), dict(RANK, kernel_size=[3])
    base = torch.as_tensor(rng.standard_normal(shape)).requires_grad_(True)
    out = torch.nn.functional.max_pool2d(base.relu(), 3, 2)
    cotangent = torch.as_tensor(rng.standard_normal(tuple(out.shape)))
    (real,) = torch.autograd.grad(out, base, cotangent)
    b = full(shape, 1.0)
    x = pointwise(b, lambda z: np.maximum(z, 0.0))
    back = BACKWARD["max_pool2d"](grad=full(tuple(out.shape), 1.0), x=x, **pooling)["x"]
    from fanin._moments.algebra import through

    got = through(back, b, lambda z: (z > 0).astype(float)).second_moment
    want = float((real**2).mean())
    assert got == pytest.approx(want, rel=0.06)
    assert float((out > 0).double().mean()) * back.second_moment == pytest.approx(want, rel=0.06)


def test_order_statistics_of_standard_normals():
    """Tabulated means and variances: David & Nagaraja 2003, table A3."""
    for n, mean, variance in (
        (2, 0.56419, 0.68169),
        (5, 1.16296, 0.44753),
        (10, 1.53875, 0.34434),
        (20, 1.86748, 0.27566),
    ):
        assert order.spread_of(order.largest(float(n))) == pytest.approx((mean, variance), abs=2e-4)
    assert order.spread_of(order.ranked(5, 2, 2))[0] == pytest.approx(0.49502, abs=2e-4)
    assert order.spread_of(order.ranked(5, 3, 3)) == pytest.approx((0.0, 0.28683), abs=2e-4)
    assert order.spread_of(order.ranked(9, 1, 9)) == pytest.approx((0.0, 1.0), abs=1e-4)


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.3, 0.8])
def test_covariance_of_two_maxima(rho):
    rng = np.random.default_rng(2)
    z, own = rng.standard_normal((2, 200_000, 9))
    other = rho * z + np.sqrt(1 - rho * rho) * own
    real = np.cov(z.max(1), other.max(1))[0, 1] / z.max(1).var()
    # Negative correlations are followed along the slope at 0.
    assert order.kappa(9.0, np.array(rho)) == pytest.approx(real, abs=0.02 if rho >= 0 else 0.06)


def test_covariance_of_maxima_of_overlapping_windows():
    rng = np.random.default_rng(3)
    z = rng.standard_normal((200_000, 15))
    a, b = z[:, :9].max(1), z[:, 6:].max(1)
    assert order.shared(9.0, 3.0) == pytest.approx(np.cov(a, b)[0, 1] / a.var(), abs=0.015)


UNPOOL = {"output_size": [4, 4]}


@pytest.mark.parametrize(("op", "rank"), [("max_unpool2d", 2), ("max_unpool3d", 3)])
def test_unpooling_keeps_the_sum_of_squares(op, rank):
    small, large = (2, 3, *(2,) * rank), (2, 3, *(4,) * rank)
    out = FORWARD[op](x=full(small, 3.0), shapes=[large])
    assert out.second_moment == pytest.approx(3.0 / 2**rank)
    assert BACKWARD[op](grad=full(large, 2.0), x=full(small, 3.0))[
        "x"
    ].second_moment == pytest.approx(2.0)


def test_a_scaled_pool_scales():
    x = correlated(2, 3, 4, 4)
    one, two = (
        FORWARD["max_pool2d"](x=y, **RANK, shapes=[(2, 3, 2, 2)])[0] for y in (x, scaled(x, 2.0))
    )
    np.testing.assert_allclose(two.q, 4 * one.q, rtol=1e-9)


def test_every_rule_has_a_case():
    ops = {case.op for case in [*MEANS, *MAXES]} | {"max_unpool2d", "max_unpool3d"}
    for table in (registry.FORWARD, registry.BACKWARD):
        mine = {
            op
            for op, r in table.items()
            if r.function.__module__ in {pool.__name__, maxpool.__name__}
        }
        assert mine == ops
