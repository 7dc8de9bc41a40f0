"""Gaussian expectations against exact values, mpmath, and an independent Hermite series."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from scipy.special import eval_hermitenorm

from fanin._errors import InvalidValueError
from fanin._quadrature import bends, expectation, jumps, pair_expectation, root

QS = [1e-12, 1e-6, 1e-2, 1.0, 30.0, 1e4]


def relu(x):
    return np.maximum(x, 0.0)


def step(x):
    return (x > 0).astype(float)


# one variable --------------------------------------------------------------------------------


@pytest.mark.parametrize("q", QS)
@pytest.mark.parametrize("k", [0, 1, 2, 4, 8])
def test_even_powers_are_double_factorials(q, k):
    exact = q**k * math.prod(range(1, 2 * k, 2))
    assert expectation(lambda u: u ** (2 * k), q) == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize("q", QS)
def test_odd_powers_vanish(q):
    assert abs(expectation(lambda u: u**3, q)) < 1e-13 * q**1.5


def tail_square(a: float) -> float:
    """E max(z - a, 0)^2, z ~ N(0, 1), by mpmath."""
    with mpmath.workdps(40):
        a = mpmath.mpf(a)
        return float((1 + a * a) * mpmath.erfc(a / mpmath.sqrt(2)) / 2 - a * mpmath.npdf(a))


@pytest.mark.parametrize("kink", [-3.0, 0.0, 0.1, 2.5, 8.0, 20.0, 35.0])
def test_kinks_even_deep_in_the_tail(kink):
    assert expectation(lambda u: relu(u - kink) ** 2, 1.0, (kink,)) == pytest.approx(
        tail_square(kink), rel=1e-11
    )
    q = 1e-4
    scaled = expectation(lambda u: relu(u - kink * 1e-2) ** 2, q, (kink * 1e-2,))
    assert scaled == pytest.approx(q * tail_square(kink), rel=1e-11)


def test_a_function_that_is_zero_within_reach_is_zero():
    assert expectation(lambda u: relu(u - 50.0), 1.0, (50.0,)) == 0.0


@pytest.mark.parametrize("q", QS)
def test_relu_derivative_is_exactly_one_half(q):
    # the trap: a rule with a node at 0, or a panel across it, gives chi .954 or .994 in place of 1
    assert expectation(step, q, (0.0,)) == pytest.approx(0.5, rel=1e-14)


@pytest.mark.parametrize("at", [0.123456789, -1.7, 3.3])
def test_kinks_that_nobody_named_cost_evaluations_not_digits(at):
    exact = 0.5 * math.erfc(at / math.sqrt(2))
    assert expectation(lambda u: (u > at).astype(float)) == pytest.approx(exact, rel=1e-12)
    assert expectation(lambda u: relu(u - at) ** 2) == pytest.approx(tail_square(at), rel=1e-12)


@pytest.mark.parametrize("q", [1e-2, 1.0, 1e2, 1e4])
def test_oscillation_and_narrow_features(q):
    assert expectation(np.cos, q) == pytest.approx(math.exp(-q / 2), abs=1e-13)
    narrow = expectation(lambda u: np.exp(-u * u * 50), q)
    assert narrow == pytest.approx(1 / math.sqrt(1 + 100 * q), rel=1e-13)


def test_exponential_growth_is_followed_to_where_the_weight_wins():
    assert expectation(lambda u: np.exp(3 * u)) == pytest.approx(math.exp(4.5), rel=1e-13)


@pytest.mark.parametrize(
    "g", [lambda u: np.exp(u * u), lambda u: np.sqrt(u), lambda u: np.full_like(u, np.nan)]
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_no_finite_expectation_is_an_error(g):
    with pytest.raises(InvalidValueError, match="no finite expectation"):
        expectation(g)


# two variables -------------------------------------------------------------------------------

CS = [-1.0, -0.9999, -0.6, -1e-3, 0.0, 1e-9, 0.3, 0.9, 0.9999, 1 - 1e-12, 1.0]


@pytest.mark.parametrize("c", CS)
@pytest.mark.parametrize("q", [1e-12, 1e-2, 1.0, 30.0, 1e4])
def test_relu_pair_is_the_arc_cosine_kernel(c, q):
    exact = q / (2 * math.pi) * (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c)
    assert pair_expectation(relu, q, c, (0.0,)) == pytest.approx(exact, rel=1e-11, abs=1e-13 * q)


@pytest.mark.parametrize("c", CS)
def test_steps_meet_in_the_orthant(c):
    exact = 0.25 + math.asin(c) / (2 * math.pi)
    assert pair_expectation(step, 1.0, c, (0.0,)) == pytest.approx(exact, rel=1e-10, abs=1e-13)


@pytest.mark.parametrize("c", CS)
@pytest.mark.parametrize("q", [1e-2, 1.0, 30.0])
def test_sine_pair(c, q):
    exact = 0.5 * (math.exp(-q * (1 - c)) - math.exp(-q * (1 + c)))
    assert pair_expectation(np.sin, q, c) == pytest.approx(exact, rel=1e-11, abs=1e-13)


def hermite_pair(f, c: float, terms: int = 120) -> float:
    """E f(u) f(v) = sum a_k^2 c^k (Mehler); Gauss-Hermite nodes: no kinks allowed."""
    z, w = np.polynomial.hermite_e.hermegauss(200)
    w = w / math.sqrt(2 * math.pi)
    scaled = (eval_hermitenorm(k, z) / math.sqrt(math.factorial(k)) for k in range(terms))
    return math.fsum(float(np.sum(w * f(z) * h)) ** 2 * c**k for k, h in enumerate(scaled))


@pytest.mark.parametrize("c", [-0.7, -0.2, 0.05, 0.4, 0.8])
@pytest.mark.parametrize(
    "f", [np.tanh, lambda x: x / (1 + np.exp(-x)), lambda x: np.log1p(np.exp(x))]
)
def test_smooth_pairs_match_the_hermite_series(f, c):
    # the series' own error: hermegauss(200) resolves tanh's poles at pi/2 to about 1e-9
    assert pair_expectation(f, 1.0, c) == pytest.approx(hermite_pair(f, c), rel=1e-8)


# roots ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "low", "high", "at"),
    [
        (lambda x: x * x - 2, 0.0, 2.0, math.sqrt(2)),
        (lambda x: math.exp(x) - 5, -40.0, 40.0, math.log(5)),
        (lambda x: (x - 1) ** 3, -1.0, 4.0, 1.0),
        (lambda x: math.atan(x - 7), -100.0, 90.0, 7.0),
        (lambda x: x - 3, 3.0, 5.0, 3.0),
        (lambda x: x - 3, 1.0, 3.0, 3.0),
    ],
)
def test_root(fn, low, high, at):
    assert root(fn, low, high) == pytest.approx(at, rel=1e-5 if fn(at + 1e-6) < 1e-17 else 1e-14)


# kinks ---------------------------------------------------------------------------------------


def test_jumps_are_found_to_the_last_digit():
    at = (-2.0, 0.0, 1 / 3)
    found = jumps(lambda x: sum((x > a).astype(float) for a in at))
    np.testing.assert_allclose(found, at, rtol=1e-12, atol=1e-15)


def test_bends_are_found():
    np.testing.assert_allclose(
        bends(lambda x: np.abs(x + 1.234567) + relu(x - 4)), [-1.234567, 4.0], atol=2e-5
    )


@pytest.mark.parametrize("g", [np.tanh, np.sin, lambda x: x**3, lambda x: np.exp(-x * x)])
def test_smooth_functions_have_none(g):
    assert jumps(g) == () == bends(g)
