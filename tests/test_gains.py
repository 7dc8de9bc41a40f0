"""Gains, maps, edge of chaos and depth scales: against mpmath, published figures and simulation."""

from __future__ import annotations

import math
from dataclasses import replace

import mpmath
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
    "leaky_relu": (if_positive(lambda x: x, lambda x: x / 100), if_positive(one, lambda _: mp.mpf(1) / 100), (0,)),
    "prelu": (if_positive(lambda x: x, lambda x: x / 4), if_positive(one, lambda _: mp.mpf(1) / 4), (0,)),
    "rrelu": (if_positive(lambda x: x, lambda x: SLOPE * x), if_positive(one, lambda _: SLOPE), (0,)),
    "elu": (if_positive(lambda x: x, mp.expm1), if_positive(one, mp.exp), (0,)),
    "celu": (if_positive(lambda x: x, mp.expm1), if_positive(one, mp.exp), (0,)),
    "selu": (if_positive(lambda x: S * x, lambda x: S * A * mp.expm1(x)), if_positive(lambda _: S, lambda x: S * A * mp.exp(x)), (0,)),
    "sigmoid": (sig, dsig, ()),
    "hardsigmoid": (lambda x: clip(0, 6)(x + 3) / 6, inside(-3, 3, lambda _: mp.mpf(1) / 6), (-3, 3)),
    "tanh": (mp.tanh, lambda x: mp.sech(x) ** 2, ()),
    "hardtanh": (clip(-1, 1), inside(-1, 1), (-1, 1)),
    "erf": (mp.erf, lambda x: 2 / mp.sqrt(mp.pi) * mp.exp(-x * x), ()),
    "sin": (mp.sin, mp.cos, ()),
    "softsign": (lambda x: x / (1 + abs(x)), lambda x: (1 + abs(x)) ** -2, (0,)),
    "tanhshrink": (lambda x: x - mp.tanh(x), lambda x: mp.tanh(x) ** 2, ()),
    "softshrink": (lambda x: mp.sign(x) * max(abs(x) - mp.mpf(0.5), 0), lambda x: mp.mpf(abs(x) > 0.5), (-0.5, 0.5)),
    "hardshrink": (lambda x: x * (abs(x) > 0.5), lambda x: mp.mpf(abs(x) > 0.5), (-0.5, 0.5)),
    "logsigmoid": (lambda x: -softplus(-x), lambda x: sig(-x), ()),
    # torch drops the last log1p(exp(-20)) = 2e-9 beyond 20
    "softplus": (lambda x: x if x > 20 else softplus(x), lambda x: mp.mpf(1) if x > 20 else sig(x), (20,)),
    "silu": (lambda x: x * sig(x), lambda x: sig(x) + x * dsig(x), ()),
    "mish": (
        lambda x: x * mp.tanh(softplus(x)),
        lambda x: mp.tanh(softplus(x)) + x * mp.sech(softplus(x)) ** 2 * sig(x),
        (),
    ),
    "hardswish": (lambda x: x * clip(0, 6)(x + 3) / 6, lambda x: mp.mpf(x >= 3) + inside(-3, 3, lambda x: (2 * x + 3) / 6)(x), (-3, 3)),
    "quick_gelu": (lambda x: x * sig(K * x), lambda x: sig(K * x) + K * x * dsig(K * x), ()),
    "gelu": (lambda x: x * mp.ncdf(x), lambda x: mp.ncdf(x) + x * mp.npdf(x), ()),
    "threshold": (if_positive(lambda x: x, zero), if_positive(one, zero), (0,)),
}
GATES = {"glu": "sigmoid", "swiglu": "silu", "geglu": "gelu", "reglu": "relu"}


def exact(g, q, kinks):
    """E g(sqrt(q) z)^2 to about 15 digits; panels end at kinks and where f or the weight turns."""
    with mp.workdps(20):
        scale = mp.sqrt(q)
        points = {mp.mpf(k) / scale for k in kinks}
        points |= {mp.mpf(s) * p for s in (-1, 1) for p in (0, 1.5, 4, 8, 13)}
        points |= {s * mp.mpf(p) / scale for s in (-1, 1) for p in (1, 3, 9) if p / scale < 13}
        edges = sorted(p for p in points if abs(p) <= 13)
        return float(mp.quad(lambda z: g(scale * z) ** 2 * mp.npdf(z), edges, maxdegree=5))


def test_every_row_has_an_independent_definition():
    assert set(names()) == {*MP, *GATES}


@pytest.mark.parametrize("q", [1e-12, 1.0, 1e4])
@pytest.mark.parametrize("name", MP)
def test_moments_are_mpmaths_to_1e_10(name, q):
    if name == "hardshrink" or (name == "softshrink" and q < 1):
        pytest.skip("deep-tail cases have their own test") if q < 1 else None
    f, df, kinks = MP[name]
    _, second, slope = moments(name, q)
    rel = 1e-10 if q != 1.0 else 1e-11
    assert second == pytest.approx(exact(f, q, kinks), rel=rel)
    assert slope == pytest.approx(exact(df, q, kinks), rel=rel)
