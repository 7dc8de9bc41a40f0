"""Gains, maps, edge of chaos and depth scales: against mpmath, published figures and simulation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from mpmath import mp

from fanin._activations import TORCH_NAMES, names, nonlinearity, torch_gain
from fanin._errors import InvalidValueError
from fanin._gains import (
    CRITERIA,
    DepthScales,
    _q_rate,
    c_map,
    depth_scales,
    edge_of_chaos,
    gain,
    moments,
    q_map,
)

# independent definitions, in mpmath: (f, f', kinks) ------------------------------------------


def sig(x):
    return 1 / (1 + mp.exp(-x))


def dsig(x):
    return sig(x) * sig(-x)


def softplus(x):
    return mp.log1p(mp.exp(x))


def gelu_tanh_arg(x):
    return mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3)


def if_positive(yes, no):
    return lambda x: yes(x) if x > 0 else no(x)


A, S = mp.mpf("1.6732632423543772848170429916717"), mp.mpf("1.0507009873554804934193349852946")
K = mp.mpf("1.702")
SLOPE = (mp.mpf(1) / 8 + mp.mpf(1) / 3) / 2


def one(_):
    return mp.mpf(1)


def zero(_):
    return mp.mpf(0)


def inside(low, high, value=one):
    return lambda x: value(x) if low < x < high else mp.mpf(0)


def clip(low, high):
    return lambda x: min(max(x, low), high)


MP = {
    "linear": (lambda x: x, one, ()),
    "relu": (if_positive(lambda x: x, zero), if_positive(one, zero), (0,)),
    "relu6": (clip(0, 6), inside(0, 6), (0, 6)),
    "relu_squared": (if_positive(lambda x: x * x, zero), if_positive(lambda x: 2 * x, zero), (0,)),
    "leaky_relu": (
        if_positive(lambda x: x, lambda x: x / 100),
        if_positive(one, lambda _: mp.mpf(1) / 100),
        (0,),
    ),
    "prelu": (
        if_positive(lambda x: x, lambda x: x / 4),
        if_positive(one, lambda _: mp.mpf(1) / 4),
        (0,),
    ),
    "rrelu": (
        if_positive(lambda x: x, lambda x: SLOPE * x),
        if_positive(one, lambda _: SLOPE),
        (0,),
    ),
    "elu": (if_positive(lambda x: x, mp.expm1), if_positive(one, mp.exp), (0,)),
    "celu": (if_positive(lambda x: x, mp.expm1), if_positive(one, mp.exp), (0,)),
    "selu": (
        if_positive(lambda x: S * x, lambda x: S * A * mp.expm1(x)),
        if_positive(lambda _: S, lambda x: S * A * mp.exp(x)),
        (0,),
    ),
    "sigmoid": (sig, dsig, ()),
    "hardsigmoid": (
        lambda x: clip(0, 6)(x + 3) / 6,
        inside(-3, 3, lambda _: mp.mpf(1) / 6),
        (-3, 3),
    ),
    "tanh": (mp.tanh, lambda x: mp.sech(x) ** 2, ()),
    "hardtanh": (clip(-1, 1), inside(-1, 1), (-1, 1)),
    "erf": (mp.erf, lambda x: 2 / mp.sqrt(mp.pi) * mp.exp(-x * x), ()),
    "sin": (mp.sin, mp.cos, ()),
    "softsign": (lambda x: x / (1 + abs(x)), lambda x: (1 + abs(x)) ** -2, (0,)),
    "tanhshrink": (lambda x: x - mp.tanh(x), lambda x: mp.tanh(x) ** 2, ()),
    "softshrink": (
        lambda x: mp.sign(x) * max(abs(x) - mp.mpf(0.5), 0),
        lambda x: mp.mpf(abs(x) > 0.5),
        (-0.5, 0.5),
    ),
    "hardshrink": (lambda x: x * (abs(x) > 0.5), lambda x: mp.mpf(abs(x) > 0.5), (-0.5, 0.5)),
    "logsigmoid": (lambda x: -softplus(-x), lambda x: sig(-x), ()),
    # torch drops the last log1p(exp(-20)) = 2e-9 beyond 20
    "softplus": (
        lambda x: x if x > 20 else softplus(x),
        lambda x: mp.mpf(1) if x > 20 else sig(x),
        (20,),
    ),
    "silu": (lambda x: x * sig(x), lambda x: sig(x) + x * dsig(x), ()),
    "mish": (
        lambda x: x * mp.tanh(softplus(x)),
        lambda x: mp.tanh(softplus(x)) + x * mp.sech(softplus(x)) ** 2 * sig(x),
        (),
    ),
    "hardswish": (
        lambda x: x * clip(0, 6)(x + 3) / 6,
        lambda x: mp.mpf(x >= 3) + inside(-3, 3, lambda x: (2 * x + 3) / 6)(x),
        (-3, 3),
    ),
    "quick_gelu": (lambda x: x * sig(K * x), lambda x: sig(K * x) + K * x * dsig(K * x), ()),
    "gelu": (lambda x: x * mp.ncdf(x), lambda x: mp.ncdf(x) + x * mp.npdf(x), ()),
    "threshold": (if_positive(lambda x: x, zero), if_positive(one, zero), (0,)),
}
NAMES = names()  # before any test or doctest registers more
GATES = {"glu": "sigmoid", "swiglu": "silu", "geglu": "gelu", "reglu": "relu"}


def exact(g, q, kinks):
    """E g(sqrt(q) z)^2 to about 15 digits; panels end at kinks and where f or the weight turns."""
    with mp.workdps(20):
        scale = mp.sqrt(q)
        points = {mp.mpf(k) / scale for k in kinks}
        points |= {mp.mpf(s) * p for s in (-1, 1) for p in (0, 1.5, 4, 8, 13)}
        if scale > 2:
            points |= {s * mp.mpf(p) / scale for s in (-1, 1) for p in (1, 3, 9)}
        edges = sorted(p for p in points if abs(p) <= 13)
        size = g(scale) ** 2 or mp.mpf(1)  # mp.quad's tolerance is absolute
        return float(
            size * mp.quad(lambda z: g(scale * z) ** 2 / size * mp.npdf(z), edges, maxdegree=5)
        )


def test_every_row_has_an_independent_definition():
    assert set(NAMES) == {*MP, *GATES}


@pytest.mark.parametrize("name", MP)
def test_moments_are_mpmaths_to_1e_12(name):
    f, df, kinks = MP[name]
    _, second, slope = moments(name)
    assert second == pytest.approx(exact(f, 1.0, kinks), rel=1e-12)
    assert slope == pytest.approx(exact(df, 1.0, kinks), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("q", [1e-12, 0.03, 50.0, 1e4])
@pytest.mark.parametrize(
    "name", [n for n in MP if n != "sin"]
)  # sin: its closed form, in test_activations
def test_moments_are_mpmaths_at_any_variance(name, q):
    f, df, kinks = MP[name]
    _, second, slope = moments(name, q)
    assert second == pytest.approx(exact(f, q, kinks), rel=1e-12)
    assert slope == pytest.approx(exact(df, q, kinks), rel=1e-12)


def test_functions_that_start_far_out_keep_their_relative_digits():
    with mp.workdps(40):
        for q in (1e-2, 1e-3):
            a = mp.mpf(0.5) / mp.sqrt(mp.mpf(q))
            tail = mp.erfc(a / mp.sqrt(2)) / 2
            hard, soft = moments("hardshrink", q), moments("softshrink", q)
            assert hard.slope == pytest.approx(float(2 * tail), rel=1e-10)
            assert hard.second == pytest.approx(float(2 * q * (tail + a * mp.npdf(a))), rel=1e-10)
            assert soft.second == pytest.approx(
                float(2 * q * ((1 + a * a) * tail - a * mp.npdf(a))), rel=1e-10
            )


# the published table -------------------------------------------------------------------------

# name, param, E f, E f^2, gains forward, backward, fixed point, chi = E f'^2 / E f^2, d ln E f^2 / d ln q.
# Digits as printed from a 64-node Gauss-Legendre rule split at kinks.
TABLE = """
relu         -     .39894  .5       1.41421  1.41421  1.41421  1       1
leaky_relu   .01   .395    .50005   1.41414  1.41414  1.41414  1       1
leaky_relu   .2    .319    .52      1.38675  1.38675  1.38675  1       1
prelu        .25   .299    .53125   1.37199  1.37199  1.37199  1       1
relu6        -     .39894  .50000   1.41421  1.41421  1.41424  1       1
elu          1     .16052  .64495   1.24520  1.22343  1.27796  1.0359  .891
celu         1     .16052  .64495   1.24520  1.22343  1.27796  1.0359  .891
selu         -     0       1        1.00000  .96603   1        1.0716  .783
gelu         none  .28209  .42522   1.53353  1.48111  1.46801  1.0720  1.144
gelu         tanh  .28204  .42519   1.53358  1.48117  1.46796  1.0720  1.144
quick_gelu   -     .28233  .42195   1.53946  1.49146  1.47460  1.0654  1.136
silu         -     .20662  .35578   1.67653  1.62332  1.55876  1.0666  1.173
mish         -     .24040  .45234   1.48685  1.44476  1.45149  1.0591  1.076
hardswish    -     .16622  .33157   1.73666  1.67008  1.56718  1.0813  1.224
softplus     -     .80606  .92125   1.04187  1.84623  1.08312  .3185   .492
logsigmoid   -     -.80606 .92125   1.04187  1.84623  1.08312  .3185   .492
tanh         -     0       .39429   1.59254  1.46741  none     1.1778  .461
hardtanh     -     0       .51606   1.39204  1.21029  none     1.3229  .385
softsign     -     0       .18301   2.33753  2.09578  none     1.2440  .477
sigmoid      -     .5      .29338   1.84623  4.72265  none     .1528   .106
hardsigmoid  -     .5      .27764   1.89784  6.00812  none     .0998   .097
relu_squared -     .5      1.5      .81650   .70711   .90360   1.3333  2
erf          -     0       .46456   1.46717  1.32522  none     1.2257  .409
sin          -     0       .43233   1.52087  1.32725  none     1.3130  .313
"""
ROWS = [line.split() for line in TABLE.strip().splitlines()]


def half_a_digit(printed: str) -> float:
    """What rounding may have moved; at least five digits are meant by a bare integer."""
    return 0.501 * 10.0 ** -(len(printed.partition(".")[2]) or 5)


@pytest.mark.parametrize("row", ROWS, ids=lambda r: "-".join(r[:2]))
def test_the_published_table_to_its_last_digit(row):
    name, param, *printed = row
    nl = nonlinearity(
        name, None if param == "-" else param if param in ("none", "tanh") else float(param)
    )
    mean, second, slope = moments(nl)
    rate = _q_rate(nl, 1.0, 1.0) / second
    got = [mean, second, gain(nl), gain(nl, criterion="backward"), slope / second, rate]
    fixed = printed.pop(4)
    for value, digits in zip(got, printed, strict=True):
        assert value == pytest.approx(float(digits), abs=half_a_digit(digits))
    if fixed == "none":
        with pytest.raises(InvalidValueError, match="never reaches 1.*forward"):
            gain(nl, criterion="fixed_point")
    else:
        assert gain(nl, criterion="fixed_point") == pytest.approx(
            float(fixed), abs=half_a_digit(fixed)
        )


# gains ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["gelu", "silu", "mish", "elu", "softplus", "tanhshrink", "swiglu", "hardshrink"]
)
def test_fixed_point_is_one(name):
    s = gain(name, criterion="fixed_point")
    assert moments(name, s * s).second == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("name", TORCH_NAMES)
def test_the_torch_criterion(name):
    assert gain(name, criterion="torch") == torch_gain(name)
    if name.startswith(("relu", "leaky")):
        assert gain(name) == pytest.approx(torch_gain(name), rel=1e-15)


def test_the_torch_criterion_names_one_that_works():
    with pytest.raises(
        InvalidValueError, match="Unsupported nonlinearity gelu.*criterion='forward'"
    ):
        gain("gelu", criterion="torch")
    assert gain(nonlinearity("leaky_relu", 0.2), criterion="torch") == torch_gain("leaky_relu", 0.2)


def test_gains_that_do_not_exist():
    with pytest.raises(
        InvalidValueError, match="criterion must be one of forward.*Did you mean 'backward'"
    ):
        gain("relu", criterion="backwards")
    constant = replace(
        nonlinearity("tanh"), name="one", f=np.ones_like, df=np.zeros_like, odd=False, fixed=False
    )
    with pytest.raises(InvalidValueError, match="no gradient passes"):
        gain(constant, criterion="backward")
    assert (
        gain(constant) == gain(constant, criterion="fixed_point") == pytest.approx(1.0, rel=1e-14)
    )
    half = replace(constant, f=lambda x: np.full_like(x, 2.0))
    with pytest.raises(InvalidValueError, match="as s goes to 0"):
        gain(half, criterion="fixed_point")
    with pytest.raises(InvalidValueError, match="E f.z.*2 is 0"):
        gain("threshold", (90.0, 0.0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("criterion", CRITERIA[:2])
def test_gains_are_positive_and_remembered(name, criterion):
    first = gain(name, criterion=criterion)
    assert 0 < first < math.inf
    assert gain(name, criterion=criterion) is first


@pytest.mark.parametrize("name", GATES)
def test_gated_moments_by_simulation(name):
    n, q = 400_000, 1.7
    u, v = np.random.default_rng(0).normal(size=(2, n)) * math.sqrt(q)
    nl = nonlinearity(name)
    f = u * nl.f(v)
    squared_gradient = nl.f(v) ** 2 + (u * nl.df(v)) ** 2
    got = moments(name, q)
    for value, sample in zip(got, (f, f * f, squared_gradient), strict=True):
        # 4.5 standard errors of the sample's mean: 1 in 10^5
        assert value == pytest.approx(sample.mean(), abs=4.5 * sample.std() / math.sqrt(n))


def test_dropout_divides_second_moments_and_keeps_the_mean():
    plain, dropped = nonlinearity("gelu"), replace(nonlinearity("gelu"), keep=0.8, fixed=False)
    a, b = moments(plain), moments(dropped)
    assert b == pytest.approx((a.mean, a.second / 0.8, a.slope / 0.8), rel=1e-15)
    assert c_map(dropped, 1.0, 2.0) == pytest.approx(0.8, rel=1e-15)  # two masks differ


@pytest.mark.parametrize("q", [0.0, -1.0, math.nan, math.inf, "one"])
def test_a_variance_is_positive(q):
    with pytest.raises(InvalidValueError, match="q must be a finite number > 0"):
        moments("tanh", q)


# maps ----------------------------------------------------------------------------------------


def test_relu_correlations_climb_as_published():
    c, seen = 0.0, {}
    for layer in range(1, 3001):
        c = c_map("relu", c, 2.0)
        seen[layer] = c
    for layer, digits in (
        (1, ".318"),
        (2, ".494"),
        (5, ".736"),
        (10, ".872"),
        (50, ".988"),
        (100, ".9964"),
    ):
        assert seen[layer] == pytest.approx(float(digits), abs=half_a_digit(digits))
    # 1 - c -> (9 pi^2 / 2) / l^2, with a correction of order ln(l) / l
    assert (1 - seen[3000]) * 3000**2 == pytest.approx(4.5 * math.pi**2, rel=0.02)


@pytest.mark.parametrize(
    ("name", "c"),
    [("tanh", -0.4), ("silu", 0.3), ("hardtanh", 0.9), ("swiglu", 0.5), ("hardshrink", 0.7)],
)
def test_c_map_by_simulation(name, c):
    n, q, sigma_w2, sigma_b2 = 400_000, 1.3, 1.7, 0.2
    z = np.random.default_rng(1).normal(size=(4, n)) * math.sqrt(q)
    other = c * z[:2] + math.sqrt(1 - c * c) * z[2:]
    nl = nonlinearity(name)
    x, y = ((p[1] * nl.f(p[0]) if nl.gated else nl.f(p[0])) for p in (z, other))
    norm = q_map(name, q, sigma_w2, sigma_b2)
    assert norm == pytest.approx(
        sigma_w2 * np.mean(x * x) + sigma_b2, abs=4.5 * sigma_w2 * np.std(x * x) / math.sqrt(n)
    )
    got = c_map(name, c, sigma_w2, sigma_b2, q=q)
    error = 4.5 * sigma_w2 * np.std(x * y) / math.sqrt(n) / norm
    assert got == pytest.approx((sigma_w2 * np.mean(x * y) + sigma_b2) / norm, abs=error)


@pytest.mark.parametrize(
    "bad", [{"sigma_w2": 0.0}, {"sigma_w2": -1.0}, {"sigma_b2": -1e-9}, {"c": 1.5}, {"q": 0.0}]
)
def test_maps_check_what_they_are_given(bad):
    given = {"c": 0.5, "sigma_w2": 1.0, "sigma_b2": 0.0, "q": 1.0, **bad}
    with pytest.raises(InvalidValueError, match=next(iter(bad))):
        c_map("tanh", given["c"], given["sigma_w2"], given["sigma_b2"], q=given["q"])


def after(name: str, layers: int, g: float) -> float:
    q = 1.0
    for _ in range(layers):
        q = q_map(name, q, g * g)
    return q


def test_a_rounded_gain_does_not_hold_gelu_nor_silu():
    # the forward gain's fixed point repels: slope 1.144 and 1.173 a layer
    assert after("gelu", 60, gain("gelu")) == pytest.approx(1.0, abs=1e-9)
    assert after("gelu", 100, round(gain("gelu"), 5)) == pytest.approx(0.02, rel=0.03)
    assert after("silu", 100, round(gain("silu"), 5)) == pytest.approx(2e-5, rel=0.06)
    assert after("tanh", 200, gain("tanh") - 1e-2) == pytest.approx(0.976, abs=2e-3)


# edge of chaos -------------------------------------------------------------------------------

EDGES = {  # at q* = 1
    "tanh": ("2.1533", ".1510"),
    "elu": ("1.4968", ".0347"),
    "selu": (".9332", ".0668"),
    "gelu": ("2.1937", ".0672"),
    "silu": ("2.6352", ".0625"),
    "mish": ("2.0873", ".0558"),
    "hardswish": ("2.7892", ".0752"),
}


@pytest.mark.parametrize("name", EDGES)
def test_published_edges(name):
    for value, digits in zip(edge_of_chaos(name), EDGES[name], strict=True):
        assert value == pytest.approx(float(digits), abs=half_a_digit(digits))


@pytest.mark.parametrize(
    ("sigma_b2", "sigma_w2"), [(2.01e-5, "1.05000"), (0.05, "1.76095"), (0.2, "2.28515")]
)
def test_tanh_edges_of_xiao_and_schoenholz(sigma_b2, sigma_w2):
    got = edge_of_chaos("tanh", sigma_b2=sigma_b2)
    # Xiao et al. give 1.05 and 2.01e-5, rounded
    assert got == (pytest.approx(float(sigma_w2), abs=5.1e-6), sigma_b2)


@pytest.mark.parametrize("q", [1e-6, 0.026, 1.0, 30.0])
@pytest.mark.parametrize(
    "name",
    [
        "tanh",
        "erf",
        "gelu",
        "silu",
        "elu",
        "relu",
        "leaky_relu",
        "linear",
        "softsign",
        "swiglu",
        "relu_squared",
    ],
)
def test_an_edge_is_a_fixed_point_where_gradients_keep_their_size(name, q):
    sigma_w2, sigma_b2 = edge_of_chaos(name, q=q)
    assert sigma_b2 >= 0
    assert q_map(name, q, sigma_w2, sigma_b2) == pytest.approx(q, rel=1e-11)
    assert sigma_w2 * moments(name, q).slope == pytest.approx(1.0, rel=1e-13)
    if sigma_b2 > 0 and name in ("tanh", "erf", "softsign") and q >= 0.026:
        again = edge_of_chaos(name, sigma_b2=sigma_b2)
        assert again == pytest.approx((sigma_w2, sigma_b2), rel=1e-9)


@pytest.mark.parametrize("q", [1e-6, 1.0, 7.0])
def test_homogeneous_functions_have_one_edge(q):
    assert edge_of_chaos("relu", q=q) == (2.0, 0.0)
    assert edge_of_chaos("leaky_relu", q=q) == (pytest.approx(2 / 1.0001, rel=1e-15), 0.0)


def test_edges_without_bias():
    assert edge_of_chaos("relu", sigma_b2=0.0) == (2.0, 0.0)
    assert edge_of_chaos("tanh", sigma_b2=0.0) == (1.0, 0.0)  # at q = 0, where tanh is x
    assert edge_of_chaos("gelu", sigma_b2=0.0) == (4.0, 0.0)  # where gelu is x / 2
    assert edge_of_chaos("softsign", sigma_b2=0) == (1.0, 0.0)


@pytest.mark.parametrize("name", ["sigmoid", "softplus", "logsigmoid", "hardsigmoid"])
def test_no_edge_at_unit_variance(name):
    with pytest.raises(InvalidValueError, match="no edge of chaos at q = 1.*negative variance"):
        edge_of_chaos(name)


def test_edges_that_do_not_exist_say_why():
    with pytest.raises(InvalidValueError, match="not both"):
        edge_of_chaos("tanh", q=1.0, sigma_b2=0.1)
    with pytest.raises(InvalidValueError, match="it jumps"):
        edge_of_chaos("hardshrink")
    with pytest.raises(InvalidValueError, match="dropout"):
        edge_of_chaos(replace(nonlinearity("tanh"), keep=0.9, fixed=False))
    with pytest.raises(InvalidValueError, match="relu has no edge of chaos with sigma_b2 = 0.1"):
        edge_of_chaos("relu", sigma_b2=0.1)
    with pytest.raises(InvalidValueError, match="sigma_b2 must be a finite number >= 0"):
        edge_of_chaos("tanh", sigma_b2=-0.1)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("gelu", "1.067"),
        ("silu", "1.099"),
        ("mish", "1.016"),
        ("elu", ".860"),
        ("selu", ".730"),
        ("tanh", ".391"),
    ],
)
def test_published_growth_of_a_variance_error_on_the_edge(name, rate):
    got = math.exp(-1 / depth_scales(name, *edge_of_chaos(name)).xi_q)
    assert got == pytest.approx(float(rate), abs=half_a_digit(rate))


# depth scales --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "c_star", "xi_c"),
    [("gelu", ".760", 14), ("silu", ".659", 15), ("mish", ".712", 17), ("elu", ".598", 33)]
    + [
        ("tanh", "0", 14),
        ("selu", "0", 34),
        ("hardtanh", "0", 10),
        ("sigmoid", "1", None),
        ("softplus", "1", None),
    ],
)
def test_published_correlations_under_the_forward_gain(name, c_star, xi_c):
    scales = depth_scales(name, gain(name) ** 2, 0.0)
    assert scales.q == pytest.approx(1.0, rel=1e-12)
    assert scales.c == pytest.approx(float(c_star), abs=half_a_digit(c_star))
    if xi_c is None:
        assert scales.xi_c < 1  # dead: all inputs alike within a layer
    else:
        assert scales.xi_c == pytest.approx(xi_c, abs=0.5)


def test_critical_relu_remembers_for_ever():
    assert depth_scales("relu", 2.0, 0.0) == DepthScales(1.0, 1.0, 1.0, math.inf, math.inf)
    q, c, chi, xi_q, xi_c = depth_scales("leaky_relu", *edge_of_chaos("leaky_relu"), q=3.0)
    assert (q, c, xi_q, xi_c) == (3.0, 1.0, math.inf, math.inf)
    assert chi == pytest.approx(1.0, rel=1e-15)


def test_subcritical_and_supercritical_relu():
    low = depth_scales("relu", 1.5, 0.1)
    assert low == pytest.approx(
        (0.4, 1.0, 0.75, -1 / math.log(0.75), -1 / math.log(0.75)), rel=1e-13
    )
    high = depth_scales("relu", 3.0, 0.1)
    assert high == pytest.approx((math.inf, 1.0, 1.5, -1 / math.log(1.5), math.inf), rel=1e-13)
    assert depth_scales("relu", 2.0, 0.1).q == math.inf


@pytest.mark.parametrize(("name", "slopes"), [("tanh", 1.0), ("gelu", 0.25), ("silu", 0.25)])
def test_a_vanishing_signal_sees_the_slope_at_zero(name, slopes):
    scales = depth_scales(name, 0.9, 0.0)
    assert scales[:3] == (0.0, 1.0, pytest.approx(0.9 * slopes, rel=1e-15))
    assert scales.xi_q == pytest.approx(-1 / math.log(0.9 * slopes), rel=1e-10)


def test_an_exploding_signal_sees_the_slopes_at_infinity():
    assert depth_scales("elu", 2.5, 0.1) == pytest.approx(
        (math.inf, 1.0, 1.25, -1 / math.log(1.25), math.inf), rel=1e-12
    )


def test_published_rest_points_of_torchs_gains():
    tanh, selu = (depth_scales(n, torch_gain(n) ** 2, 0.0) for n in ("tanh", "selu"))
    assert tanh.q == pytest.approx(1.18, abs=0.005)
    assert math.sqrt(moments("tanh", tanh.q).second) == pytest.approx(0.651, abs=0.0005)
    assert selu.q == pytest.approx(0.023, abs=0.0005)
    assert selu.chi == pytest.approx(1.0037, abs=0.00005)


CASES = [
    ("tanh", 1.3, 0.05),
    ("tanh", 3.0, 0.2),
    ("elu", 1.2, 0.1),
    ("erf", 2.5, 0.1),
    ("gelu", 1.7, 0.3),
]
CASES += [
    ("silu", 1.5, 0.5),
    ("hardtanh", 2.0, 0.1),
    ("swiglu", 0.5, 0.3),
    ("hardshrink", 0.8, 0.1),
    ("sin", 2.0, 0.3),
]


@pytest.mark.parametrize(("name", "sigma_w2", "sigma_b2"), CASES)
def test_depth_scales_are_what_iterating_the_maps_shows(name, sigma_w2, sigma_b2):
    scales = depth_scales(name, sigma_w2, sigma_b2)
    q = 1.0
    for _ in range(400):
        q = q_map(name, q, sigma_w2, sigma_b2)
    assert q == pytest.approx(scales.q, rel=1e-9)
    # one layer shrinks a small deviation by exp(-1/xi): difference quotients of order 1e-5
    h = 1e-5 * q
    rate = (q_map(name, q + h, sigma_w2, sigma_b2) - q_map(name, q - h, sigma_w2, sigma_b2)) / (
        2 * h
    )
    assert math.exp(-1 / scales.xi_q) == pytest.approx(rate, rel=1e-5)
    c = 0.7
    for _ in range(40):
        c = c_map(name, c, sigma_w2, sigma_b2, q=q)
    left = abs(c - scales.c)
    assert left <= 3 * math.exp(-40 / scales.xi_c) + 1e-9
    if scales.c < 0.9:
        h = 1e-4
        near = [c_map(name, scales.c + s * h, sigma_w2, sigma_b2, q=q) for s in (-1, 1)]
        assert math.exp(-1 / scales.xi_c) == pytest.approx((near[1] - near[0]) / (2 * h), rel=1e-5)


def test_dropout_lowers_the_correlation_that_is_reached():
    with_dropout = depth_scales(replace(nonlinearity("tanh"), keep=0.9, fixed=False), 1.3, 0.05)
    assert depth_scales("tanh", 1.3, 0.05).c == 1.0
    assert 0.5 < with_dropout.c < 0.99


def test_the_first_variance_decides_between_fixed_points():
    at_edge = edge_of_chaos("gelu", q=2.0)
    assert depth_scales("gelu", *at_edge, q=2.0).q == 2.0
    assert depth_scales("gelu", *at_edge, q=2.1).q > 2.1  # the edge's fixed point repels
