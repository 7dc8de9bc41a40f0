"""Functions of one tensor: exact for Gaussian tensors, so within sampling error of torch."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from fanin import _activations
from fanin._moments import algebra, elementary, gaussian, pointwise, registry
from fanin._moments.domain import Abstract, full, scaled, shifted
from monte_carlo import Case as AnyCase
from monte_carlo import check_backward, check_forward
from tensors import correlated, stratified

Case = partial(AnyCase, draws=100)

X = correlated(4, 9, mean=0.3)
S = stratified(9, 6, dim=0)
POSITIVE = shifted(scaled(correlated(5, 8), 0.35), 3.0).plain()
INSIDE = shifted(scaled(correlated(5, 8), 0.12), 0.1).plain()
SHARE = shifted(scaled(correlated(5, 8), 0.1), 0.5).plain()

# an op that also wants a tensor to write its random slopes into
COMPOSED = {"rrelu_with_noise": lambda x, **numbers: torch.ops.aten.rrelu(x, **numbers)}
DOMAINS = {
    **dict.fromkeys(
        ("log", "log2", "log10", "rsqrt", "sqrt", "reciprocal", "acosh", "arccosh"), POSITIVE
    ),
    **dict.fromkeys(
        ("asin", "arcsin", "acos", "arccos", "atanh", "arctanh", "erfinv", "special_erfinv"), INSIDE
    ),
    **dict.fromkeys(("logit", "special_logit"), SHARE),
    "tan": scaled(X, 0.25).plain(),
    **dict.fromkeys(("log1p", "special_log1p"), POSITIVE),
    **dict.fromkeys(
        ("exp", "special_exp2", "exp2", "expm1", "special_expm1", "sinh", "cosh"),
        scaled(X, 0.4).plain(),
    ),
}
# steps: the quadrature finds a jump to within half a step of its grid, 0.0125 sigma
# and torch differentiates no truth value, nor sgn through this overload
JUMPS = {
    "floor",
    "ceil",
    "trunc",
    "fix",
    "round",
    "special_round",
    "frac",
    "sign",
    "sgn",
    "signbit",
    "hardshrink",
    "threshold",
}
NUMBERS = {
    "leaky_relu": {"negative_slope": 0.2}, "elu": {"alpha": 0.7, "scale": 1.1, "input_scale": 0.9},
    "celu": {"alpha": 1.3}, "gelu": {"approximate": "none"}, "hardtanh": {"min_val": -0.5, "max_val": 1.0},
    "softplus": {"beta": 2.0, "threshold": 20.0}, "threshold": {"threshold": 0.2, "value": -1.0},
    "hardshrink": {"lambd": 0.4}, "softshrink": {"lambd": 0.4}, "clamp_min": {"min": 0.1}, "clamp_max": {"max": 0.2},
    "rrelu": {"lower": 0.1, "upper": 0.5, "training": False},
    "rrelu_with_noise": {"lower": 0.1, "upper": 0.5, "training": False}, "logit": {"eps": 1e-3},
}  # fmt: skip
OTHER = ("prelu", "_prelu_kernel", "pow", "float_power", "log_sigmoid_forward")
MODULES = ("pointwise", "elementary")
OPS = sorted(
    op for op, rule in registry.FORWARD.items() if rule.function.__module__.endswith(MODULES)
)


def case(op: str, x: Abstract | None = None, label: str = "") -> Case:
    numbers = NUMBERS.get(op, {})
    rtol = 0.02 if op in JUMPS else 0.01
    given = DOMAINS.get(op, X) if x is None else x
    return Case(
        op,
        {"x": given, **numbers},
        rtol=rtol,
        call=COMPOSED.get(op),
        label=label,
        backward=op not in ("sgn", "signbit"),
    )


CASES = [
    *(case(op) for op in OPS if op not in OTHER),
    *(case(op, S, "strata") for op in ("relu", "gelu", "tanh", "abs", "square", "silu")),
    Case("gelu", {"x": X, "approximate": "tanh"}, label="tanh"),
    Case("rrelu", {"x": X, "lower": 0.1, "upper": 0.9, "training": True}, label="training"),
    Case("prelu", {"x": correlated(3, 5, 4, mean=0.2), "weight": correlated(5, mean=0.3)}),
    Case("prelu", {"x": X, "weight": full((1,), 0.25**2, 0.25)}, label="one"),
    Case("_prelu_kernel", {"x": X, "weight": full((1, 1), 0.0625, 0.25)}),
    Case("log_sigmoid_forward", {"x": X}),
    Case("pow", {"x": X, "exponent": 2}, label="square"),
    Case("pow", {"x": scaled(X, 0.7).plain(), "exponent": 3}, label="cube", draws=200),
    Case("pow", {"x": POSITIVE, "exponent": -0.5}, label="root"),
    Case("pow", {"x": POSITIVE, "exponent": -2}, label="inverse"),
    Case("pow", {"x": 0.5, "exponent": X}, label="base"),
    Case("float_power", {"x": POSITIVE, "exponent": 1.5}),
    # ln x of a Gaussian x is not quite Gaussian
    Case("pow", {"x": POSITIVE, "exponent": scaled(correlated(5, 8), 0.3).plain()}, label="tensors", rtol=0.02, grad_rtol=0.05),
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


@pytest.mark.parametrize("name", ["relu", "gelu", "erf", "sin", "relu_squared"])
def test_closed_forms(name):
    """Mean and kernel at several correlations against `fanin._activations`, to quadrature's accuracy."""
    nl = _activations.nonlinearity(name)
    q = 1.7
    for r in (-0.6, 0.0, 0.3, 0.9):
        x = full((3, 4), q)
        x.q[:] = q * r
        x.q[0, 0] = q
        y = gaussian.pointwise(x, nl.f)
        assert y.q[0, 0] == pytest.approx(nl.kernel(q, 1.0), rel=2e-4)
        assert y.q[1, 1] == pytest.approx(nl.kernel(q, r), rel=2e-4, abs=1e-4 * q)
        assert y.average_mean == pytest.approx(nl.mean(q), rel=1e-4, abs=1e-9)


def test_functions_in_a_row_compose():
    """relu of a shifted tanh is one function of the tensor, not a function of a Gaussian tanh."""
    x = full((50,), 4.0)
    chained = gaussian.pointwise(
        shifted(gaussian.pointwise(x, np.tanh), -0.5), lambda z: np.maximum(z, 0)
    )
    z = np.random.default_rng(0).standard_normal(2_000_000) * 2
    exact = (np.maximum(np.tanh(z) - 0.5, 0) ** 2).mean()
    assert chained.second_moment == pytest.approx(exact, rel=5e-3)


def test_noise_follows_the_slope_of_the_second_moment():
    """d ln E f^2 / d ln q is 1 for relu, 2 for a square; measured for tanh by a difference."""
    x = full((50,), 1.3)
    x.noise = 0.04
    assert gaussian.pointwise(x, lambda z: np.maximum(z, 0)).noise == pytest.approx(0.04, rel=1e-6)
    assert gaussian.pointwise(x, np.square).noise == pytest.approx(0.16, rel=1e-6)
    low, high = (
        gaussian.pointwise(full((50,), 1.3 * s), np.tanh).second_moment for s in (0.99, 1.01)
    )
    slope = math.log(high / low) / math.log(1.01 / 0.99)
    assert gaussian.pointwise(x, np.tanh).noise == pytest.approx(0.04 * slope**2, rel=1e-3)


def test_a_user_adds_a_function(monkeypatch):
    monkeypatch.setattr(registry, "FORWARD", {})
    monkeypatch.setattr(registry, "BACKWARD", {})
    pointwise.elementwise("my_snake", f=lambda z: z + np.sin(z) ** 2)
    x = full((4, 5), 1.0)
    rule = {**registry.FORWARD}["my_snake"]
    assert rule(x=x).average_mean == pytest.approx((1 - math.exp(-2)) / 2, rel=1e-6)


def test_positive_tensors_are_kept_off_zero():
    """1 / x of a mean of four squares: the Gaussian's lower tail must not make it infinite."""
    s = full((3, 5), 1.0 + 0.5, 1.0)
    assert 1.0 < elementary.root(s, "reciprocal").second_moment < 25.0


def test_gradients_along_two_paths_are_summed_before_they_are_squared():
    """x sigmoid(x) written out: both terms of its derivative are functions of x."""
    x, g = full((7, 8), 2.0), full((7, 8), 1.0)
    sigmoid = _activations.nonlinearity("sigmoid")
    s = gaussian.pointwise(x, sigmoid.f)
    to_x, to_s = algebra.through(g, s), algebra.through(g, x)
    total = algebra.accumulated(to_x, algebra.through(to_s, x, sigmoid.df))
    exact = gaussian.pointwise(x, _activations.nonlinearity("silu").df)
    np.testing.assert_allclose(total.q[0, 0], exact.q[0, 0], rtol=1e-9)


# tensors of one sign ----------------------------------------------------------------------------

SIGMA, SHARED = 0.8, 0.6  # of ln x; correlation of the ln of two elements of a row


def lognormal(sign=1.0):
    """sign exp(z), z of std SIGMA, correlated along rows: its exact moments."""
    half = SIGMA * SIGMA / 2
    q = (
        sign**2
        * np.exp(2 * half)
        * np.array([[math.exp(2 * half), math.exp(2 * half * SHARED)], [1.0, 1.0]])
    )
    return Abstract((((50,),), ((7,),)), np.full((1, 1), sign * math.exp(half)), q)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("power", [-1.0, -2.0])
def test_poles_are_not_reached_by_one_sign(sign, power):
    """E x^p = exp(p^2 s^2 / 2), and E (x x')^p = exp(p^2 s^2 (1 + r)), exactly."""
    y = gaussian.pointwise(lognormal(sign), lambda x: np.sign(x) * np.abs(x) ** power)
    log = (power * SIGMA) ** 2
    assert y.average_mean == pytest.approx(sign * math.exp(log / 2), rel=1e-3)
    assert y.q[0, 0] == pytest.approx(math.exp(2 * log), rel=1e-2)
    assert y.q[0, 1] == pytest.approx(math.exp(log * (1 + SHARED)), rel=1e-2)
    assert y.q[1, 1] == pytest.approx(math.exp(log), rel=1e-3)


def test_exponentials_of_what_is_never_positive():
    """A decay: exp of a negative tensor is at most 1; of a Gaussian with the same moments it is not."""
    x = lognormal(-6.0)
    y = gaussian.pointwise(x, np.exp)
    rng = np.random.default_rng(0)
    drawn = np.exp(-6.0 * np.exp(SIGMA * rng.standard_normal(400_000)))
    assert y.average_mean == pytest.approx(drawn.mean(), rel=0.02)
    assert y.second_moment == pytest.approx((drawn**2).mean(), rel=0.03)


def test_centred_tensors_stay_gaussian():
    """Of a mean near 0 no sign is known, and an exponential of std 1 asks nothing of the far tails."""
    x = full((9,), 1.0, 0.1)
    assert gaussian.pointwise(x, np.exp).average_mean == pytest.approx(
        math.exp(0.1 + 0.99 / 2), rel=1e-6
    )
    bent = full((9,), 1.0, 0.05)
    seen = gaussian.pointwise(bent, lambda v: 1 / v).second_moment
    assert seen > 10.0  # the true one is infinite
