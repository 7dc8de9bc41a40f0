"""The standard normal and its windows, against mpmath at 60 digits."""

from __future__ import annotations

import math
from functools import cache

import mpmath
import numpy as np
import pytest
from scipy import special

from fanin import _normal

INF = math.inf
CUTS = (1e-6, 1e-3, 0.1, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 20.0, 40.0)
# Narrow and wide, around the mode, one-sided, far out, nearly symmetric, and reflections of these.
WINDOWS = (
    *((-c, c) for c in CUTS),
    *(
        (-INF, INF),
        (0.0, INF),
        (-INF, 0.0),
        (20.0, INF),
        (-INF, -20.0),
        (20.0, 20.5),
        (1.0, 1 + 1e-9),
    ),
    *((30.0, 100.0), (38.0, 39.0), (-40.0, -39.0), (100.0, 100.001), (500.0, INF), (1e-12, 1e-11)),
    *(
        (-1e-9, INF),
        (-1e-9, 5.0),
        (-3.0, 2.0),
        (-1.0, 1 + 1e-9),
        (-30.0, 1e-12),
        (0.5, 3.0),
        (4.9, 5.1),
        (-1e3, 1e3),
    ),
)
PROBABILITIES = (
    1e-40,
    1e-17,
    1e-9,
    1e-3,
    0.1,
    0.3,
    0.4999,
    0.5,
    0.5001,
    0.7,
    0.9,
    0.999,
    1 - 1e-9,
    1 - 1e-15,
)
# Ours are near 1e-14; the reference has 60 digits and loses none of these to cancellation.
RELATIVE = 1e-12

windows = pytest.mark.parametrize(("low", "high"), WINDOWS, ids=lambda x: f"{x:g}")


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workdps(60):
        yield


def survival(x):
    return mpmath.erfc(x / mpmath.sqrt(2)) / 2 if x != mpmath.inf else mpmath.mpf(0)


def between(low, high):
    """Phi(high) - Phi(low) from the tail that does not cancel."""
    low, high = mpmath.mpf(low), mpmath.mpf(high)
    if low >= 0:
        return survival(low) - survival(high)
    if high <= 0:
        return survival(-high) - survival(-low)
    return 1 - survival(high) - survival(-low)


def density(x, power=0):
    return x**power * mpmath.npdf(x) if abs(x) != mpmath.inf else mpmath.mpf(0)


@cache
def reference(low, high):
    """(anchor, mass, mean - anchor, std) by the textbook formulas, at 120 digits."""
    with mpmath.workdps(120):
        a, b = mpmath.mpf(low), mpmath.mpf(high)
        anchor = a if a > 0 else b if b < 0 else mpmath.mpf(0)
        z = between(a, b)
        mean = (density(a) - density(b)) / z
        variance = 1 + (density(a, 1) - density(b, 1)) / z - mean**2
        return anchor, z, mean - anchor, mpmath.sqrt(variance)


@pytest.mark.parametrize(
    "x", [0.0, 1e-9, 0.5, 1.0, 4.9, 4.999999, 5.0, 5.1, 8.0, 20.0, 38.0, 1e3, 1e8]
)
def test_mills_ratio(x):
    assert x < 1e4 or float(_normal.mills(np.array([x]))[0]) == pytest.approx(1 / x, rel=1e-15)
    expected = (
        mpmath.sqrt(mpmath.pi / 2)
        * mpmath.exp(mpmath.mpf(x) ** 2 / 2)
        * mpmath.erfc(x / mpmath.sqrt(2))
    )
    assert float(_normal.mills(np.array([x]))[0]) == pytest.approx(float(expected), rel=RELATIVE)


def test_cdf_and_ppf_of_the_whole_line_agree_with_scipy():
    x = np.linspace(-37, 9, 4001)
    np.testing.assert_allclose(_normal.cdf(x), special.ndtr(x), rtol=1e-12)
    u = np.concatenate([np.logspace(-300, -1, 600), np.linspace(0.1, 0.9, 801)])
    np.testing.assert_allclose(_normal.ppf(u), special.ndtri(u), rtol=1e-12, atol=1e-15)
    assert _normal.ppf(np.array([0.0, 1.0])).tolist() == [-INF, INF]


@windows
def test_moments(low, high):
    _, _, mean, std = reference(low, high)
    got_mean, got_std = _normal.window_moments(low, high)
    assert got_mean == pytest.approx(float(mean), rel=RELATIVE, abs=1e-300)
    assert got_std == pytest.approx(float(std), rel=RELATIVE)


@pytest.mark.parametrize("low", [1e4, 1e8, 1e200])
def test_moments_far_out_are_those_of_an_exponential(low):
    """Z - low tends to an exponential of rate low: mean 1/low (1 - 1/low^2), std 1/low (1 - ...)."""
    mean, std = _normal.window_moments(low, INF)
    assert mean == pytest.approx(1 / low, rel=2 / low / low + RELATIVE)
    assert std == pytest.approx(1 / low, rel=5 / low / low + RELATIVE)
    assert _normal.window_moments(-INF, -low) == (-mean, std)


@pytest.mark.parametrize("cut", [1e-5, 1e-50, 1e-300])
def test_moments_of_a_sliver_are_those_of_a_uniform(cut):
    assert _normal.window_moments(-cut, cut) == (
        0.0,
        pytest.approx(cut / math.sqrt(3), rel=RELATIVE + cut * cut),
    )


@windows
def test_cdf(low, high):
    a, b = mpmath.mpf(low), mpmath.mpf(high)
    _, z, _, _ = reference(low, high)
    start, stop = max(low, min(high - 10, -60.0)), min(high, max(low + 10, 60.0))
    for share in (0.0, 1e-12, 1e-6, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 1 - 1e-6, 1.0):
        x = min(max(start + (stop - start) * share, low), high)
        expected = between(a, x) / z
        steps = np.array([[x], [float(x - a)], [float(b - x)]])
        assert _normal.window_cdf(low, high, *steps)[0] == pytest.approx(
            float(expected), rel=RELATIVE, abs=1e-290
        )


@windows
def test_ppf(low, high):
    """The error of a quantile t is (F(t) - u) / f(t), from one Newton step at 60 digits."""
    anchor, z, _, _ = reference(low, high)
    found = _normal.window_ppf(low, high, np.array(PROBABILITIES))
    for u, t in zip(PROBABILITIES, found.tolist(), strict=True):
        x = anchor + mpmath.mpf(t)
        excess = between(low, x) / z - u if u < 0.5 else 1 - mpmath.mpf(u) - between(x, high) / z
        error = excess / (density(x) / z)
        # u itself is known to half a bit, which moves a quantile near zero by that much, absolutely.
        allowed = RELATIVE * abs(t) + 1e-15 * min(1.0, high - low)
        assert abs(error) <= allowed, (u, t)


@windows
def test_ppf_stays_inside_and_rises(low, high):
    u = np.concatenate([[0.0], np.logspace(-320, -1, 200), np.linspace(0.1, 1.0, 500)])
    t = _normal.window_ppf(low, high, u)
    assert np.all(np.diff(t) >= -4e-16 * np.abs(t[1:]))
    anchor = min(max(0.0, low), high)
    assert (t[0], t[-1]) == (low - anchor, high - anchor)
