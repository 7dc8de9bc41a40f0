"""Sums, products, running sums, ranks: linear ones exactly, order statistics against torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from exactly import check_linear
from fanin._moments import indexing, rank, reduce, registry, scan
from fanin._moments.domain import drawn, full, measured, scaled
from fanin._moments.gaussian import pointwise
from fanin._moments.notes import Reduction, note_of
from fanin._moments.registry import FORWARD
from monte_carlo import Case, check_backward, check_forward
from tensors import correlated, stratified

X = correlated(4, 5, 3, mean=0.5)
S = stratified(2, 6, 3, dim=1)
ROWS = correlated(4, 7, mean=0.3)

LINEAR = [
    Case("mean", {"x": X, "dim": None, "keepdim": False, "dtype": None}),
    Case("mean", {"x": S, "dim": [1, -1], "keepdim": True}, label="axes"),
    Case("sum", {"x": S, "dim": [1], "keepdim": False}),
    Case("sum", {"x": X, "dtype": None}, label="all"),
    Case("nansum", {"x": S, "dim": [-1], "keepdim": True}),
    Case("nanmean", {"x": S, "dim": [0], "keepdim": False}),
    Case("sum_to_size", {"x": X, "size": [1, 3]}),
    Case("cumsum", {"x": correlated(2, 7, mean=0.5), "dim": 1}),
    Case("cumsum", {"x": stratified(9, 2), "dim": 0}, label="strata"),
    Case("cumsum", {"x": correlated(14, mean=1.0), "dim": 0}, label="long"),
    Case("diff", {"x": stratified(3, 7, dim=1), "n": 2, "dim": 1}),
    Case(
        "diff",
        {
            "x": correlated(3, 4),
            "n": 1,
            "dim": 0,
            "prepend": correlated(1, 4),
            "append": correlated(2, 4, mean=1.0),
        },
        label="ends",
        backward=False,
    ),
]


@pytest.mark.parametrize("case", LINEAR, ids=str)
def test_linear(case):
    check_linear(case, backward=case.backward)


LOUD = scaled(correlated(3, 6), 0.6).plain()
POSITIVE = pointwise(scaled(full((4, 6), 1.0), 0.3).plain(), np.exp).plain()
MASK = pointwise(correlated(5, 4), lambda z: (z > 0.5).astype(float)).plain()


SMOOTH = [
    Case(
        "prod",
        {"x": full((5, 3), 1.2, 0.9), "dim": 1, "keepdim": False},
        rtol=0.03,
        draws=500,
        grad_rtol=0.05,
    ),
    Case(
        "prod",
        {"x": full((4, 2, 3), 1.2, 0.9), "dim": 1, "keepdim": True},
        rtol=0.03,
        draws=500,
        label="keep",
    ),
    Case("cumprod", {"x": full((40, 4), 1.1, 0.9), "dim": 1}, rtol=0.04, draws=500, grad_rtol=0.25),
    Case("logcumsumexp", {"x": LOUD, "dim": 1}, rtol=0.03, grad_rtol=0.15),
    Case(
        "cummax",
        {"x": full((30, 6), 1.0), "dim": 1},
        call=lambda x, dim: torch.cummax(x, dim)[0],
        rtol=0.05,
        draws=500,
        grad_rtol=0.05,
    ),
    Case(
        "cummin",
        {"x": full((30, 6), 1.0, 0.5), "dim": 1},
        call=lambda x, dim: torch.cummin(x, dim)[0],
        rtol=0.05,
        draws=500,
        grad_rtol=0.1,
    ),
]
RANKS = [
    Case("max", {"x": ROWS, "dim": 1, "keepdim": False}, rtol=0.02),
    Case("max", {"x": correlated(3, 4)}, label="all", rtol=0.03, draws=1000),
    Case("min", {"x": ROWS, "dim": 0, "keepdim": True}, rtol=0.02),
    Case(
        "max",
        {"x": correlated(3, 4), "other": correlated(3, 4, mean=0.5)},
        label="other",
        rtol=0.03,
    ),
    Case(
        "min", {"x": correlated(3, 4), "other": correlated(4, mean=0.5)}, label="other", rtol=0.03
    ),
    Case("amax", {"x": X, "dim": [0, 2], "keepdim": False}, rtol=0.03),
    Case("amin", {"x": S, "dim": [2], "keepdim": True}, rtol=0.05, grad_rtol=0.05),
    Case("aminmax", {"x": ROWS, "dim": 1, "keepdim": False}, rtol=0.02),
    Case("median", {"x": full((6, 5), 1.0, 0.4), "dim": 1, "keepdim": False}, rtol=0.03),
    Case("median", {"x": full((3, 4), 1.0)}, label="all", rtol=0.03, draws=1000),
    Case("nanmedian", {"x": full((6, 4), 1.0, 0.4), "dim": 1, "keepdim": True}, rtol=0.03),
    Case("kthvalue", {"x": full((6, 5), 1.0, 0.4), "k": 2, "dim": -1, "keepdim": False}, rtol=0.03),
    Case("mode", {"x": full((6, 5), 1.0, 0.4), "dim": -1, "keepdim": False}, rtol=0.03),
    Case(
        "quantile",
        {
            "x": full((6, 5), 1.0, 0.4),
            "q": 0.25,
            "dim": 1,
            "keepdim": False,
            "interpolation": "linear",
        },
        rtol=0.03,
        draws=600,
    ),
    Case(
        "nanquantile",
        {
            "x": full((6, 5), 1.0),
            "q": measured(np.array([0.5, 1.0])),
            "dim": 1,
            "keepdim": False,
            "interpolation": "linear",
        },
        rtol=0.05,
        backward=False,
        draws=600,
    ),
    Case(
        "topk",
        {"x": correlated(6, 8), "k": 3, "dim": -1, "largest": True, "sorted": True},
        rtol=0.02,
    ),
    Case(
        "topk",
        {"x": full((12, 5), 1.0, 0.5), "k": 2, "dim": 0, "largest": False, "sorted": True},
        label="smallest",
        rtol=0.03,
    ),
    Case(
        "topk",
        {"x": correlated(6, 5), "k": 1, "dim": 1, "largest": True, "sorted": True},
        label="one",
        rtol=0.03,
    ),
    Case("sort", {"x": correlated(5, 6), "dim": -1, "descending": False}, rtol=0.03),
    Case("sort", {"x": correlated(5, 20), "dim": 1, "descending": True}, label="blocks", rtol=0.03),
    Case("msort", {"x": correlated(6, 4)}, rtol=0.03),
]


@pytest.mark.parametrize("case", [*SMOOTH, *RANKS], ids=str)
def test_forward(case):
    check_forward(case)


@pytest.mark.parametrize("case", [c for c in [*SMOOTH, *RANKS] if c.backward], ids=str)
def test_backward(case):
    check_backward(case)


def of_masks(run, draws=4000):
    """E y, E y^2 over random masks of independent elements."""
    torch.manual_seed(0)
    values = torch.stack([run(torch.rand(5, 4) < 0.3).double() for _ in range(draws)])
    return float(values.mean()), float((values**2).mean())


def test_counts_of_truth_values():
    mask = full((5, 4), 0.3, 0.3)
    for op, run, given in (
        ("any", lambda m: m.any(1), {"dim": [1]}),
        ("all", lambda m: m.all(1), {"dim": 1, "keepdim": True}),
        ("any", lambda m: m.any(), {}),
        ("count_nonzero", lambda m: m.count_nonzero(1), {"dim": [1]}),
    ):
        y = FORWARD[op](x=mask, op=op, **given)
        mean, square = of_masks(run)
        assert (y.average_mean, y.second_moment) == pytest.approx(
            (mean, square), abs=0.02 * max(1, square)
        )
    assert FORWARD["any"](x=full((5, 4), 1.0), op="any").average_mean == 1.0
    assert FORWARD["count_nonzero"](x=measured(np.array([0, 3, 0, 1]))).average_mean == 2.0


def test_counts_of_numbers():
    torch.manual_seed(0)
    drawn = torch.stack(
        [torch.randint(8, (50,)).bincount(minlength=8).double() for _ in range(4000)]
    )
    y = FORWARD["bincount"](x=indexing.integers((50,), 8), shapes=[(8,)])
    pairs = (drawn.sum(1) ** 2 - (drawn**2).sum(1)).mean() / 56
    assert y.q.tolist() == pytest.approx([float((drawn**2).mean()), float(pairs)], rel=0.02)
    counted = FORWARD["bincount"](x=measured(np.array([0, 1, 1, 3])), shapes=[(5,)])
    assert counted.average_mean == pytest.approx(0.8)
    weighted = FORWARD["bincount"](
        x=measured(np.array([0, 1, 1, 3])), weights=full((4,), 1.0), shapes=[(5,)]
    )
    assert weighted.second_moment == pytest.approx(0.8)
    assert FORWARD["histc"](x=full((50,), 1.0), shapes=[(10,)]).average_mean == 5.0


def test_unique_gives_values_places_and_counts():
    values, inverse, counts = FORWARD["_unique2"](
        x=full((4, 6), 2.0), shapes=[(12,), (4, 6), (12,)]
    )
    assert values.second_moment == pytest.approx(2.0)
    assert inverse.average_mean == 5.5
    assert counts.average_mean == 2.0


def test_indices_of_ranks():
    x = full((4, 8), 1.0)
    assert FORWARD["argmax"](x=x, dim=1, shapes=[(4,)]).average_mean == 3.5
    assert FORWARD["argmin"](x=x, dim=None, shapes=[()]).average_mean == 15.5
    _, places = FORWARD["topk"](x=x, k=2, dim=1)
    assert indexing.coincidence(places, 8).q[0, 1] == pytest.approx(0.0, abs=1e-12)
    assert indexing.coincidence(FORWARD["argsort"](x=x, dim=1), 8).q[0, 1] == pytest.approx(
        0.0, abs=1e-12
    )


def test_the_largest_shares_of_a_softmax_are_log_normal():
    """Routing: the two largest of 8 shares, where a Gaussian of the same variance would be wrong."""
    torch.manual_seed(0)
    logits = scaled(full((4000, 8), 1.0), 1.2).plain()
    real = torch.randn(4000, 8, dtype=torch.float64).mul(1.2).softmax(1).topk(2, 1)[0]
    shares = FORWARD["softmax"](x=logits, dim=1)
    values, _ = FORWARD["topk"](x=shares, k=2, dim=1)
    for k in range(2):
        assert values.mean.reshape(-1)[k] == pytest.approx(float(real[:, k].mean()), rel=0.06)


@pytest.mark.parametrize("f", [np.tanh, lambda z: np.maximum(z, 0.0), lambda z: z * z, np.exp])
@pytest.mark.parametrize("sign", [1, -1])
def test_ranks_of_functions_are_taken_before_them(f, sign):
    """f(x) for Gaussian x, f rising or not: the two largest or smallest of 8 that share a part."""
    rng = np.random.default_rng(0)
    base = correlated(5, 8)
    values = np.stack([f(drawn(base, rng)) for _ in range(3000)])
    real = sign * np.sort(sign * values, axis=2)[:, :, ::-1][:, :, :2]
    x = pointwise(base, f)
    ranked, _ = FORWARD["topk"](x=x, k=2, dim=1, largest=sign > 0)
    for k in range(2):
        own = (real[:, :, k] ** 2).mean(1)
        error = 5 * own.std() / math.sqrt(len(own)) + 0.02 * own.mean() + 1e-4
        assert abs(ranked.q[0, k] - own.mean()) <= error
    largest = FORWARD["amax" if sign > 0 else "amin"](
        x=x, dim=[1], op="amax" if sign > 0 else "amin"
    )
    mean = real[:, :, 0].mean(1)
    assert abs(largest.average_mean - mean.mean()) <= 5 * mean.std() / math.sqrt(len(mean)) + 0.01


def test_means_leave_word_of_what_they_average():
    x = correlated(3, 4)
    note = note_of(FORWARD["mean"](x=x, dim=[1], keepdim=True), Reduction)
    assert (note.of, note.count) == (x, 4)
    total = note_of(FORWARD["sum"](x=x, dim=[1]), Reduction)
    assert total.f(np.array([1.5])) == pytest.approx(6.0)


def test_a_long_running_sum_is_cheap_and_right():
    x = full((2, 5000), 1.0, 0.1)
    y = FORWARD["cumsum"](x=x, dim=1)
    at = np.arange(1, 5001)
    assert y.second_moment == pytest.approx(
        (at + 0.01 * (at * at - at) - 0.01 * at).mean() + 0.01 * at.mean(), rel=1e-3
    )
    assert y.mean.size <= 8


@pytest.mark.parametrize("op", ["cumsum", "cumprod", "logcumsumexp", "cummax"])
def test_running_over_one_position_is_the_position(op):
    x = correlated(3, 1)
    y = FORWARD[op](x=x, dim=1, op=op)
    y = y[0] if isinstance(y, list) else y
    assert y.second_moment == pytest.approx(x.second_moment)


def test_a_quantile_between_two_ranks():
    assert FORWARD["quantile"](x=full((9,), 1.0), q=1.0).average_mean == pytest.approx(
        1.48501, abs=1e-3
    )
    assert math.isclose(
        FORWARD["quantile"](x=full((9,), 1.0), q=0.5).average_mean, 0.0, abs_tol=1e-9
    )


COUNTED = {"any", "all", "count_nonzero", "bincount", "histc", "argmax", "argmin", "argsort",
           "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "_unique"}  # fmt: skip


def test_every_rule_has_a_case():
    ops = {case.op for case in [*LINEAR, *SMOOTH, *RANKS]}
    mine = {reduce.__name__, scan.__name__, rank.__name__}
    for table, more in ((registry.FORWARD, COUNTED), (registry.BACKWARD, set())):
        assert {op for op, r in table.items() if r.function.__module__ in mine} == ops | more
