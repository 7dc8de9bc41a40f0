"""The table of nonlinearities against torch, mpmath and quadrature, row by row."""

from __future__ import annotations

import math
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from torch.nn import functional

from fanin import _activations
from fanin._activations import (
    ALIASES,
    LINEAR_NAMES,
    NOT_ELEMENTWISE,
    TORCH_NAMES,
    Nonlinearity,
    described,
    names,
    nonlinearity,
    slope_mixture,
    torch_gain,
)
from fanin._errors import InvalidValueError
from fanin._quadrature import expectation, pair_expectation

# What torch computes, for each row of the table and each of its parameters.
TORCH = {
    "linear": lambda x: x,
    "relu": torch.relu,
    "relu6": functional.relu6,
    "relu_squared": lambda x: torch.relu(x) ** 2,
    "leaky_relu": functional.leaky_relu,
    "prelu": lambda x, a=0.25: functional.prelu(x, torch.tensor([a], dtype=torch.float64)),
    "rrelu": functional.rrelu,
    "elu": functional.elu,
    "celu": functional.celu,
    "selu": functional.selu,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": lambda x: functional.relu6(x + 3) / 6,  # torch's own backward has a float32 1/6
    "tanh": torch.tanh,
    "hardtanh": functional.hardtanh,
    "erf": torch.erf,
    "sin": torch.sin,
    "softsign": functional.softsign,
    "tanhshrink": functional.tanhshrink,
    "softshrink": functional.softshrink,
    "hardshrink": functional.hardshrink,
    "logsigmoid": functional.logsigmoid,
    "softplus": functional.softplus,
    "silu": functional.silu,
    "mish": functional.mish,
    "hardswish": functional.hardswish,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": lambda x, approximate="none": functional.gelu(x, approximate=approximate),
    "threshold": lambda x, t=0.0, v=0.0: functional.threshold(x, t, v),
    "glu": torch.sigmoid,
    "swiglu": functional.silu,
    "geglu": lambda x, approximate="none": functional.gelu(x, approximate=approximate),
    "reglu": torch.relu,
}
PARAMS = [
    *((name, None) for name in TORCH),
    ("leaky_relu", 0.2),
    ("leaky_relu", -0.5),
    ("prelu", 0.7),
    ("rrelu", (0.1, 0.5)),
    ("elu", 0.3),
    ("celu", 2.0),
    ("threshold", (0.4, -1.5)),
    ("hardshrink", 1.3),
    ("softshrink", 0.2),
    ("hardtanh", (-0.5, 2.0)),
    ("softplus", (2.0, 5.0)),
    ("gelu", "tanh"),
    ("geglu", "tanh"),
]


NAMES = names()  # before any test or doctest registers more


def as_tuple(param):
    return () if param is None else param if isinstance(param, tuple) else (param,)


def sample_points(nl: Nonlinearity) -> np.ndarray:
    """Both signs, all magnitudes, and 1e-9 to either side of each kink."""
    rng = np.random.default_rng(0)
    sides = [k + s * 1e-9 * max(1.0, abs(k)) for k in nl.kinks for s in (-1, 1)]
    return np.concatenate(
        [rng.normal(size=300) * 3, rng.normal(size=100) * 1e-4, np.linspace(-40, 40, 101), sides]
    )


def test_every_row_is_compared():
    assert set(TORCH) == set(NAMES)


@pytest.mark.parametrize(("name", "param"), PARAMS)
def test_function_and_derivative_are_torchs(name, param):
    nl = nonlinearity(name, param)
    x = sample_points(nl)
    point = torch.from_numpy(x).requires_grad_()
    y = TORCH[name](point, *as_tuple(param))
    (slope,) = torch.autograd.grad(y.sum(), point)
    # a few hundred roundings of 1e-16; torch's tanhshrink and gelu lose digits where they cancel
    np.testing.assert_allclose(nl.f(x), y.detach().numpy(), rtol=1e-13, atol=4e-15)
    np.testing.assert_allclose(nl.df(x), slope.numpy(), rtol=1e-13, atol=4e-15)


@pytest.mark.parametrize(("name", "param"), PARAMS)
@pytest.mark.filterwarnings("error")
def test_huge_arguments_do_not_overflow(name, param):
    nl = nonlinearity(name, param)
    x = np.array([-1e100, -1e5, -800.0, 800.0, 1e5, 1e100])
    assert np.isfinite(nl.f(x)).all()
    assert np.isfinite(nl.df(x)).all()


@pytest.mark.parametrize("x", [1e-8, 1e-5, 1e-3, 0.1, 0.5, 0.999, 1.0, 1.5])
def test_tanhshrink_keeps_its_digits_near_zero(x):
    with mpmath.workdps(50):
        exact = float(mpmath.mpf(x) - mpmath.tanh(mpmath.mpf(x)))
    got = nonlinearity("tanhshrink").f(np.array([x, -x]))
    np.testing.assert_allclose(got, [exact, -exact], rtol=1e-15)


@pytest.mark.parametrize(("name", "param"), PARAMS)
def test_what_the_table_says_is_what_a_search_finds(name, param):
    nl = nonlinearity(name, param)
    found = described("", nl.f, nl.df)
    for kink in found.kinks:
        assert min(abs(kink - k) for k in nl.kinks) < 2e-5
    if not nl.gated:  # there f is the gate alone
        assert (found.homogeneous, found.odd, found.saturating) == (
            nl.homogeneous,
            nl.odd,
            nl.saturating,
        )
    assert found.jumps == nl.jumps


# closed forms --------------------------------------------------------------------------------

CLOSED = [(n, p) for n, p in PARAMS if nonlinearity(n, p).kernel is not None]


@pytest.mark.parametrize("q", [1e-12, 1e-3, 1.0, 17.0, 1e4])
@pytest.mark.parametrize(("name", "param"), CLOSED)
def test_closed_moments_are_the_integrals(name, param, q):
    nl = nonlinearity(name, param)
    size = expectation(lambda u: np.abs(nl.f(u)), q, nl.kinks)
    assert nl.mean is None or nl.mean(q) == pytest.approx(
        expectation(nl.f, q, nl.kinks), abs=1e-12 * size
    )
    assert nl.kernel(q, 1.0) == pytest.approx(
        expectation(lambda u: nl.f(u) ** 2, q, nl.kinks), rel=1e-12
    )
    assert nl.slope_kernel(q, 1.0) == pytest.approx(
        expectation(lambda u: nl.df(u) ** 2, q, nl.kinks), rel=1e-12
    )


@pytest.mark.parametrize(
    ("q", "c"), [(1.0, -1.0), (0.3, -0.6), (2.0, 0.0), (9.0, 0.3), (0.01, 0.95), (1.0, 0.99999)]
)
@pytest.mark.parametrize(
    ("name", "param"), [(n, p) for n, p in CLOSED if not nonlinearity(n, p).gated]
)
def test_closed_kernels_are_the_double_integrals(name, param, q, c):
    nl = nonlinearity(name, param)
    size = (nl.kernel(q, 1.0), nl.slope_kernel(q, 1.0))
    assert nl.kernel(q, c) == pytest.approx(
        pair_expectation(nl.f, q, c, nl.kinks), abs=1e-11 * size[0]
    )
    assert nl.slope_kernel(q, c) == pytest.approx(
        pair_expectation(nl.df, q, c, nl.kinks), abs=1e-11 * size[1]
    )


def test_a_mixture_of_slopes_is_the_mean_over_its_channels():
    slopes = [0.1, -0.4, 0.9]
    mixture = slope_mixture("prelu", np.mean(slopes), np.mean(np.square(slopes)), ())
    rows = [nonlinearity("leaky_relu", a) for a in slopes]
    for c in (-0.5, 0.2, 1.0):
        assert mixture.kernel(2.0, c) == pytest.approx(
            np.mean([r.kernel(2.0, c) for r in rows]), rel=1e-14
        )
        assert mixture.slope_kernel(2.0, c) == pytest.approx(
            np.mean([r.slope_kernel(2.0, c) for r in rows]), rel=1e-14
        )
    assert mixture.mean(2.0) == pytest.approx(np.mean([r.mean(2.0) for r in rows]), rel=1e-14)


# names and parameters ------------------------------------------------------------------------


def test_values_are_equal_hashable_and_printable():
    assert nonlinearity("elu", 0.5) == nonlinearity("elu", 0.5) != nonlinearity("elu", 0.6)
    assert hash(nonlinearity("elu", 0.5)) == hash(nonlinearity("elu", 0.5))
    assert nonlinearity("elu", np.float32(0.5)) == nonlinearity("elu", 0.5)
    assert str(nonlinearity("rrelu", (0.1, 0.2))) == "rrelu(0.1, 0.2)"
    assert str(nonlinearity("tanh")) == "tanh"


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_aliases(alias, name):
    assert nonlinearity(alias) is nonlinearity(name)


def test_later_parameters_default():
    assert nonlinearity("softplus", 2.0).params == (2.0, 20.0)


@pytest.mark.parametrize("name", NOT_ELEMENTWISE)
def test_softmax_and_kin_are_refused_with_the_reason(name):
    with pytest.raises(InvalidValueError, match="not elementwise"):
        nonlinearity(name)


def test_an_unknown_name_is_met_with_the_closest():
    with pytest.raises(
        InvalidValueError, match=r"softsign.*got 'leeky_relu'. Did you mean 'leaky_relu'\?"
    ):
        nonlinearity("leeky_relu")


@pytest.mark.parametrize("name", [None, 3, ["relu"], b"relu"])
def test_a_name_is_a_string(name):
    with pytest.raises(InvalidValueError, match="name of a nonlinearity"):
        nonlinearity(name)


@pytest.mark.parametrize("param", [True, [], {}, "0.1", 1j, np.ones(2)])
def test_a_parameter_that_is_no_number_is_refused_in_torchs_words(param):
    with pytest.raises(InvalidValueError, match="not a valid number"):
        nonlinearity("leaky_relu", param)


@pytest.mark.parametrize(
    ("name", "param", "says"),
    [
        ("leaky_relu", math.nan, "finite number"),
        ("relu", 0.1, "takes no parameter"),
        ("leaky_relu", (0.1, 0.2), "takes the parameters negative_slope"),
        ("gelu", "erf", "none, tanh"),
        ("gelu", 0.0, "none, tanh"),
        ("celu", 0.0, "> 0"),
        ("softplus", -1.0, "> 0"),
        ("hardshrink", -1.0, ">= 0"),
        ("softshrink", -1.0, ">= 0"),
        ("hardtanh", (1.0, -1.0), "below max_val"),
        ("rrelu", (0.5, 0.1), "at most upper"),
    ],
)
def test_parameters_are_checked(name, param, says):
    with pytest.raises(InvalidValueError, match=says):
        nonlinearity(name, param)


@pytest.fixture
def user_table(monkeypatch):
    monkeypatch.setattr(_activations, "_USER", {})


@pytest.mark.usefixtures("user_table")
def test_register_refuses_what_is_taken_or_no_name():
    made = replace(nonlinearity("tanh"), name="mine")
    _activations.register("mine", made)
    assert nonlinearity("mine") is made
    assert names()[-1] == "mine"
    _activations.register("mine", nonlinearity("erf"))
    assert nonlinearity("mine") is nonlinearity("erf")
    for name in ("relu", "conv2d", "softmax"):
        with pytest.raises(InvalidValueError, match="already"):
            _activations.register(name, made)
    for name in ("", "two words", 7):
        with pytest.raises(InvalidValueError, match="identifier"):
            _activations.register(name, made)


# torch's gains -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TORCH_NAMES)
@pytest.mark.parametrize("param", [None, 0, 1, 0.2, -3.5])
def test_torch_gain_is_torchs_bit_for_bit(name, param):
    assert torch_gain(name, param) == torch.nn.init.calculate_gain(name, param)


@pytest.mark.parametrize(
    ("name", "param"),
    [(n, None) for n in (*names(), *LINEAR_NAMES, "identity", "softmax", "nonsense")]
    + [("leaky_relu", p) for p in (True, [1], {"a": 1}, "x")]
    + [("relu", p) for p in (True, [1])],
)
def test_torch_gain_fails_where_torch_fails_with_its_words(name, param):
    try:
        expected = torch.nn.init.calculate_gain(name, param)
    except ValueError as error:
        words = str(error)
        if "not a valid number" in words:
            words = "not a valid number"
        with pytest.raises(ValueError, match=words.replace("(", r"\(")):
            torch_gain(name, param)
    else:
        assert torch_gain(name, param) == expected
