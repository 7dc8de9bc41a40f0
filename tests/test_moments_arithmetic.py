"""Functions of two tensors, and tensors that share ancestors, against torch."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

import tape
from fanin._moments import algebra, registry
from fanin._moments.domain import full, measured, scaled, shifted
from monte_carlo import Case as AnyCase
from monte_carlo import check_backward, check_forward
from tensors import correlated, stratified

Case = partial(AnyCase, draws=100)

X = correlated(4, 9, mean=0.3)
Y = correlated(4, 9, mean=-0.2, scale=1.5)
ROW = correlated(9, mean=0.4)
COLUMN = correlated(4, 1, mean=0.1)
S, T = stratified(9, 6, dim=0), stratified(9, 6, dim=1)
SURE = shifted(scaled(correlated(4, 9), 0.35), 3.0).plain()
SHARE = shifted(scaled(correlated(4, 9), 0.1), 0.5).plain()

MODULE = "arithmetic"
OPS = sorted(
    op for op, rule in registry.FORWARD.items() if rule.function.__module__.endswith(MODULE)
)
# two arguments share 80 x 80 points and 14 x 14 terms: jumps and kinks in both to 2 %
TWO = {"rtol": 0.02, "grad_rtol": 0.05}
# its derivative's second moment diverges at the origin
POLE = {"rtol": 0.02, "backward": False}

CASES = [
    *(Case(op, {"x": X, "other": Y, "alpha": 0.5}) for op in ("add", "sub", "subtract", "rsub")),
    *(Case(op, {"x": S, "other": T}, label="strata") for op in ("add", "mul")),
    *(Case(op, {"x": X, "other": ROW}, label="row") for op in ("add", "sub", "mul", "maximum")),
    *(Case(op, {"x": COLUMN, "other": ROW}, label="outer") for op in ("add", "mul")),
    *(Case(op, {"x": X, "other": 1.5}, label="number") for op in ("add", "sub", "rsub", "mul")),
    *(Case(op, {"x": X, "other": Y}) for op in ("mul", "multiply")),
    # the reciprocal's tail: a Gaussian denominator is not independent of its own fourth moment's draws
    *(Case(op, {"x": X, "other": SURE}) for op in ("div", "divide", "true_divide")),
    Case("div", {"x": X, "other": 4.0}, label="number"),
    Case("div", {"x": scaled(X, 5.0).plain(), "other": SURE, "rounding_mode": "floor"}, label="floor", backward=False, **TWO),
    Case("div", {"x": scaled(X, 5.0).plain(), "other": 0.5, "rounding_mode": "trunc"}, label="trunc", backward=False),
    Case("_unsafe_add", {"x": X, "other": Y}, call=lambda x, other: x + other),
    Case("addcmul", {"x": X, "tensor1": Y, "tensor2": ROW, "value": 0.3}),
    Case("addcdiv", {"x": X, "tensor1": Y, "tensor2": SURE, "value": 0.3}),
    Case("lerp", {"x": X, "end": Y, "weight": 0.3}),
    Case("lerp", {"x": X, "end": Y, "weight": SHARE}, label="tensor"),
    *(Case(op, {"x": X, "other": Y}, **TWO) for op in ("maximum", "minimum", "fmax", "fmin", "hypot", "logaddexp", "logaddexp2", "copysign")),
    *(Case(op, {"x": scaled(X, 4.0).plain(), "other": SURE}, **TWO) for op in ("fmod", "remainder")),
    *(Case(op, {"x": scaled(X, 4.0).plain(), "other": 0.7}, rtol=0.02, label="number", backward=op != "floor_divide") for op in ("fmod", "remainder", "floor_divide")),
    Case("floor_divide", {"x": scaled(X, 5.0).plain(), "other": SURE}, backward=False, **TWO),
    *(Case(op, {"x": shifted(X, 1.0).plain(), "other": Y}, **POLE) for op in ("atan2", "arctan2")),
    *(Case(op, {"x": X, "other": SURE}, **TWO) for op in ("xlogy", "special_xlogy")),
    Case("maximum", {"x": S, "other": T}, label="strata", **TWO),
    Case("maximum", {"x": X, "other": 0.3}, label="number", call=lambda x, other: x.clamp_min(other)),
    # halves that correlate with each other: their covariance enters the mean, no higher term
    Case("glu", {"x": correlated(3, 8, mean=0.2), "dim": -1}, rtol=0.03, grad_rtol=0.06),
    Case("glu", {"x": correlated(3, 8, 5), "dim": 1}, label="channels", rtol=0.03, grad_rtol=0.06),
    Case("glu", {"x": full((3, 8, 5), 1.5), "dim": 1}, label="independent"),
    Case("dropout", {"x": X, "p": 0.3, "train": True}),
    Case("dropout", {"x": S, "p": 0.3, "train": False}, label="eval"),
    Case("feature_dropout", {"x": correlated(5, 6, 3, mean=0.3), "p": 0.4, "train": True}, draws=200),
    Case("alpha_dropout", {"x": X, "p": 0.3, "train": True}),
    Case("feature_alpha_dropout", {"x": correlated(5, 6, 3, mean=0.3), "p": 0.4, "train": True}, draws=200),
    Case("native_dropout", {"x": X, "p": 0.3, "train": True}),
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


# tensors that share ancestors ---------------------------------------------------------------------

ROWS = correlated(5, 12, mean=0.4)
WIDE = correlated(3, 5, 8, mean=0.2)
LEVEL = shifted(scaled(correlated(4, 9), 0.6), 0.5).plain()


def new_gelu(f, x):
    inner = f("add", x=x, other=f("mul", x=f("pow", x=x, exponent=3.0), other=0.044715))
    tanh = f("tanh", x=f("mul", x=inner, other=math.sqrt(2 / math.pi)))
    return f("mul", x=f("mul", x=x, other=0.5), other=f("add", x=tanh, other=1.0))


def highway(f, x):
    gate = f("sigmoid", x=x)
    return f(
        "add",
        x=f("mul", x=gate, other=f("relu", x=x)),
        other=f("mul", x=f("rsub", x=gate, other=1.0), other=x),
    )


SHARED = {
    "silu": lambda f, x: f("mul", x=x, other=f("sigmoid", x=x)),
    "new_gelu": new_gelu,
    "nothing": lambda f, x: f("sub", x=x, other=f("mul", x=x, other=0.5)),
    "residual": lambda f, x: f("add", x=x, other=f("relu", x=x)),
    "highway": highway,
    "tanhshrink": lambda f, x: f("sub", x=x, other=f("tanh", x=x)),
    "softsign": lambda f, x: f("div", x=x, other=f("add", x=f("abs", x=x), other=1.0)),
    "squared_relu": lambda f, x: f("mul", x=f("relu", x=x), other=f("relu", x=x)),
    "crelu": lambda f, x: f("maximum", x=x, other=f("neg", x=x)),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARED)
def test_functions_of_one_tensor_meet_as_one(name):
    tape.check(SHARED[name], {"x": LEVEL})


def test_a_tensor_less_itself_is_nothing():
    out = algebra.plus(ROWS, ROWS, 1.0, -1.0)
    assert abs(out.q).max() < 1e-12


def centred(f, x, **given):
    return f("sub", x=x, other=f("mean", x=x, dim=[-1], keepdim=True, **given))


def centred_later(f, x):
    mean = f("unsqueeze", x=f("mean", x=x, dim=[-1], keepdim=False), dim=-1)
    return f("sub", x=x, other=mean)


def centred_by_sum(f, x):
    total = f("sum", x=x, dim=[-1], keepdim=True)
    return f("sub", x=x, other=f("div", x=total, other=12))


CENTRED = {
    "mean": centred,
    "unsqueezed": centred_later,
    "sum": centred_by_sum,
    "half": lambda f, x: f(
        "sub", x=x, other=f("mul", x=f("mean", x=x, dim=[-1], keepdim=True), other=0.5)
    ),
}


@pytest.mark.parametrize("name", CENTRED)
@pytest.mark.parametrize(
    "x", [ROWS, stratified(5, 12, dim=1), stratified(6, 12, dim=0)], ids=["even", "across", "along"]
)
def test_a_tensor_less_its_own_mean(name, x):
    """Forward and backward exact; the gradient of the mean is a mean of the same gradient."""
    tape.check(CENTRED[name], {"x": x}, grad=correlated(*x.shape))


def test_adding_zeros_or_multiplying_by_ones_changes_nothing():
    assert algebra.plus(ROWS, full((12,), 0.0)) is ROWS
    assert algebra.times(ROWS, full((5, 1), 1.0, 1.0)) is ROWS


def test_a_mask_of_large_negative_numbers_says_what_is_allowed():
    import numpy as np

    allowed = np.tril(np.ones((6, 6), bool))
    mask = measured(np.where(allowed, 0.0, np.finfo(np.float32).min))
    logits = correlated(2, 6, 6)
    out = registry.FORWARD["add"](x=logits, other=mask, alpha=1)
    assert (np.broadcast_to(out.allowed, (2, 6, 6)) == allowed).all()
    assert out.second_moment == pytest.approx(logits.second_moment)
    out = registry.FORWARD["sub"](x=logits, other=measured(np.where(allowed, 0.0, 1e9)), alpha=1)
    assert (out.allowed == allowed).all()


def pooled(f, x):
    return f(
        "avg_pool2d",
        x=x,
        kernel_size=3,
        stride=1,
        padding=1,
        ceil_mode=False,
        count_include_pad=False,
    )


@pytest.mark.parametrize(
    "x", [correlated(2, 3, 6, 5, mean=0.4), stratified(1, 2, 6, 5, dim=2)], ids=["even", "strata"]
)
@pytest.mark.parametrize("sign", ["sub", "add"])
def test_a_tensor_and_averages_of_its_neighbourhoods(sign, x):
    """PoolFormer's pool(x) - x: correlated, since every window holds its own place."""
    tape.check(
        lambda f, x: f(sign, x=pooled(f, x), other=x),
        {"x": x},
        grad=correlated(*x.shape),
        rtol=0.02,
    )


def test_a_residual_branch_without_weights():
    """x + pool(norm(x)) - norm(x): the branch is linear in the stream, its gradient in the stream's.

    The gradient's part along x, 1/n of it, is not followed.
    """

    def pattern(f, x):
        y = f("layer_norm", x=x, normalized_shape=[6, 5], weight=None, bias=None, eps=1e-5)
        return f("add", x=x, other=f("sub", x=pooled(f, y), other=y))

    x = correlated(2, 3, 6, 5)
    tape.check(pattern, {"x": x}, rtol=0.03, grad_rtol=0.1)


def test_shares_of_a_sum():
    """x / sum x: the gradient at unit numbers is (g - mean g) / s, and against torch's elsewhere."""
    x = full((6, 4), 1.1, 1.0)
    total = registry.FORWARD["sum"](x=x, dim=[1], keepdim=True, op="sum", shapes=[(6, 1)])
    y = registry.FORWARD["div"](x=x, other=total)
    found = registry.BACKWARD["div"](grad=full((6, 4), 1.0), x=x, other=total, output=y)
    assert set(found) == {"x"}
    generator = torch.Generator().manual_seed(0)
    real = (1 + 0.1**0.5 * torch.randn(20_000, 4, generator=generator)).requires_grad_()
    cotangent = torch.randn(20_000, 4, generator=generator)
    (g,) = torch.autograd.grad(real / real.sum(1, keepdim=True), real, cotangent)
    # 80 000 numbers: below 1 % of sampling error; 1 / s and g meet as independent.
    assert found["x"].second_moment == pytest.approx(float(g.square().mean()), rel=0.05)


def test_padding_that_is_multiplied_away_leaves_rows_of_zeros():
    """The second of two rows ends after 5 of 8 positions: 0 there, untouched elsewhere."""
    mask = np.ones((2, 8, 1))
    mask[1, 5:] = 0.0
    x = full((2, 8, 6), 3.0)
    y = registry.FORWARD["mul"](x=x, other=measured(mask))
    assert y.dims == (((1, 1),), ((5, 3),), ((6,),))
    np.testing.assert_allclose(y.q[:2, :2, 0], [[3.0, 3.0], [3.0, 0.0]])
    grad = registry.BACKWARD["mul"](grad=full((2, 8, 6), 2.0), x=x, other=measured(mask))["x"]
    np.testing.assert_allclose(grad.q[:2, :2, 0], [[2.0, 2.0], [2.0, 0.0]])


@pytest.mark.parametrize("anew", [False, True])
def test_what_is_below_the_larger_of_two(anew):
    """exp(x - max(x, y)) is at most 1, whether x is the same tensor or the same sum made once more."""
    x, y = scaled(X, 2.0).plain(), scaled(Y, 2.0).plain()
    top = registry.FORWARD["maximum"](op="maximum", x=x, other=y)
    same = x.with_(note=x.note) if anew else x
    below = registry.FORWARD["sub"](x=same, other=top)
    share = registry.FORWARD["exp"](op="exp", x=below)
    n = 400_000
    rng = np.random.default_rng(0)
    mean, std = (
        [t.average_mean for t in (x, y)],
        [math.sqrt(t.second_moment - t.average_mean**2) for t in (x, y)],
    )
    a, b = (m + s * rng.standard_normal(n) for m, s in zip(mean, std, strict=True))
    for found, real in ((below, a - np.maximum(a, b)), (share, np.exp(a - np.maximum(a, b)))):
        # moments of n draws: a relative error of sqrt(kurtosis / n), 5 sigmas of a kurtosis below 20
        slack = 5 * math.sqrt(20 / n)
        assert found.second_moment == pytest.approx(np.square(real).mean(), rel=slack)
        assert found.average_mean == pytest.approx(real.mean(), rel=slack)
