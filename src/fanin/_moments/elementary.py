"""Functions of one tensor, element by element: elementary functions and powers (see `pointwise`).

A Gaussian stands in for tensors that are positive; where that matters its lower tail is cut off.
"""

from __future__ import annotations

import math

import numpy as np

from .._activations import erf
from .._normal import cdf, erfc
from .algebra import through, times, unbroadcast
from .domain import Abstract, multiplied
from .gaussian import pointwise
from .lines import Line
from .notes import linear, unchained
from .pointwise import GRID, Pair, elementwise, parametric, tabulated
from .registry import backward, forward
from .strata import Array


def _zero(z: Array) -> Array:
    return np.zeros_like(z)


_TWO_OVER_ROOT_PI = 2 / math.sqrt(math.pi)

elementwise(
    "exp", f=lambda z: np.exp(np.minimum(z, 300.0)), df=lambda z: np.exp(np.minimum(z, 300.0))
)
elementwise("exp2", "special_exp2", f=np.exp2, df=lambda z: math.log(2) * np.exp2(z))
elementwise(
    "expm1",
    "special_expm1",
    f=lambda z: np.expm1(np.minimum(z, 300.0)),
    df=lambda z: np.exp(np.minimum(z, 300.0)),
)
elementwise("square", f=np.square, df=lambda z: 2 * z)
elementwise("abs", "absolute", f=np.abs, df=np.sign)
elementwise("neg", "negative", f=Line(-1.0), df=lambda z: np.full_like(z, -1.0))
elementwise("sign", "sgn", f=np.sign, df=_zero)
elementwise("signbit", f=lambda z: (z < 0).astype(float), df=_zero)
elementwise("cos", f=np.cos, df=lambda z: -np.sin(z))
elementwise(
    "tan",
    f=lambda z: np.clip(np.tan(z), -10.0, 10.0),
    df=lambda z: np.minimum(1 + np.tan(z) ** 2, 100.0),
)
elementwise("atan", "arctan", f=np.arctan, df=lambda z: 1 / (1 + z * z))
elementwise("sinh", f=np.sinh, df=np.cosh)
elementwise("cosh", f=np.cosh, df=np.sinh)
elementwise("asinh", "arcsinh", f=np.arcsinh, df=lambda z: 1 / np.sqrt(1 + z * z))
elementwise(
    "erfc", "special_erfc", f=tabulated(erfc), df=lambda z: -_TWO_OVER_ROOT_PI * np.exp(-z * z)
)
elementwise(
    "special_ndtr", f=tabulated(cdf), df=lambda z: np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
)
elementwise("floor", f=np.floor, df=_zero)
elementwise("ceil", f=np.ceil, df=_zero)
elementwise("trunc", "fix", f=np.trunc, df=_zero)
elementwise("frac", f=lambda z: z - np.trunc(z), df=np.ones_like)
elementwise("deg2rad", f=np.deg2rad, df=lambda z: np.full_like(z, math.pi / 180))
elementwise("rad2deg", f=np.rad2deg, df=lambda z: np.full_like(z, 180 / math.pi))


def _dsinc(z: Array) -> Array:
    y = np.pi * z
    safe = np.where(np.abs(y) < 1e-4, 1.0, y)
    return np.pi * np.where(np.abs(y) < 1e-4, -y / 3, (np.cos(safe) - np.sin(safe) / safe) / safe)


elementwise("sinc", "special_sinc", f=np.sinc, df=_dsinc)


@parametric("round", "special_round")
def rounded(decimals: int = 0) -> Pair:
    """The nearest multiple of 10^-decimals."""
    return lambda z: np.round(z, decimals), _zero


@forward("nan_to_num")
def same(x: Abstract) -> Abstract:
    """x itself: it is finite."""
    return x


@backward("nan_to_num")
def same_backward(grad: Abstract) -> dict[str, Abstract]:
    """g."""
    return {"x": grad}


@parametric("logit", "special_logit")
def logit(eps: float | None = None) -> Pair:
    """ln(x / (1 - x)), x kept within [eps, 1 - eps]; the quadrature's tails within [1e-6, 1 - 1e-6]."""
    edge = max(float(eps or 0.0), 1e-6)

    def f(z: Array) -> Array:
        y = np.clip(z, edge, 1 - edge)
        return np.log(y / (1 - y))

    return (
        f,
        lambda z: ((z > edge) & (z < 1 - edge)) / np.clip(z * (1 - z), edge * (1 - edge), None),
    )


@parametric("asin", "arcsin")
def asin() -> Pair:
    """Arcsin x, x kept within [-1, 1]."""
    return lambda z: np.arcsin(
        np.clip(z, -1, 1)
    ), lambda z: (np.abs(z) < 1) / np.sqrt(np.maximum(1 - z * z, 1e-4))


@parametric("acos", "arccos")
def acos() -> Pair:
    """Arccos x, x kept within [-1, 1]."""
    return lambda z: np.arccos(
        np.clip(z, -1, 1)
    ), lambda z: (np.abs(z) < 1) / -np.sqrt(np.maximum(1 - z * z, 1e-4))


@parametric("atanh", "arctanh")
def atanh() -> Pair:
    """Artanh x, x kept within (-1, 1)."""
    edge = 1 - 1e-6
    return lambda z: np.arctanh(
        np.clip(z, -edge, edge)
    ), lambda z: (np.abs(z) < edge) / np.maximum(1 - z * z, 1e-6)


@parametric("acosh", "arccosh")
def acosh() -> Pair:
    """Arcosh x, x at least 1."""
    return lambda z: np.arccosh(
        np.maximum(z, 1.0)
    ), lambda z: (z > 1) / np.sqrt(np.maximum(z * z - 1, 1e-4))


@parametric("erfinv", "special_erfinv")
def erfinv() -> Pair:
    """The inverse of erf, x kept within [-1, 1] less 1e-6."""
    levels = erf(GRID / 2)

    def f(z: Array) -> Array:
        return np.interp(np.clip(z, -1 + 1e-6, 1 - 1e-6), levels, GRID / 2)

    return f, lambda z: np.exp(f(z) ** 2) / _TWO_OVER_ROOT_PI


# functions of positive numbers, and powers --------------------------------------------------------


def floor_of(x: Abstract) -> float:
    """What a Gaussian stand-in for a positive tensor is kept above: a twentieth of its mean.

    A sum of squares is positive, the Gaussian of its moments is not quite. A tensor that is a curved
    function of another keeps its own lowest values.
    """
    mean, second = x.average_mean, x.second_moment
    rms = math.sqrt(max(second, 1e-300))
    if linear(unchained(x)[1]) is None:
        return 1e-9 * rms
    return 0.05 * mean if mean > 0 else 1e-3 * rms


def _whole(z: Array, n: int) -> Array:
    """z^n by squaring: numpy's own power is a hundred times slower."""
    if n == 0:
        return np.ones_like(z)
    half = _whole(z, n // 2)
    return half * half * z if n % 2 else half * half


def _powered(x: Abstract, exponent: float) -> Pair:
    """x^p and its derivative, x kept positive where p is no whole number, off 0 where p < 0."""
    p = float(exponent)
    if p.is_integer() and p >= 0:
        n = int(p)
        return lambda z: _whole(z, n), lambda z: p * _whole(z, n - 1) if n else np.zeros_like(z)
    low = floor_of(x) if p < 0 else 0.0
    slim = max(low, floor_of(x) * 1e-2)
    if p.is_integer():
        odd = -1.0 if p % 2 else 1.0

        def signed(z: Array) -> Array:
            return np.where(z < 0, odd, 1.0) * np.maximum(np.abs(z), low) ** p

        return (
            signed,
            lambda z: p * signed(z) / np.where(z < 0, -1.0, 1.0) / np.maximum(np.abs(z), low),
        )
    return lambda z: np.maximum(z, low) ** p, lambda z: p * np.maximum(z, slim) ** (p - 1)


_POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0}


@forward("sqrt", "rsqrt", "reciprocal")
def root(x: Abstract, op: str) -> Abstract:
    """x^(1/2), x^(-1/2), 1/x; the Gaussian stand-in is kept above a floor (`floor_of`)."""
    return pointwise(x, _powered(x, _POWERS[op])[0])


@backward("sqrt", "rsqrt", "reciprocal")
def root_backward(grad: Abstract, x: Abstract, op: str) -> dict[str, Abstract]:
    """g p x^(p - 1)."""
    return {"x": through(grad, x, _powered(x, _POWERS[op])[1])}


_LOGS = {"log": 1.0, "log2": math.log(2), "log10": math.log(10)}


@forward("log", "log2", "log10", "log1p", "special_log1p")
def logarithm(x: Abstract, op: str) -> Abstract:
    """ln x over ln of the base; ln(1 + x)."""
    if op not in _LOGS:
        return pointwise(x, lambda z: np.log1p(np.maximum(z, -0.999)))
    low, unit = floor_of(x), _LOGS[op]
    return pointwise(x, lambda z: np.log(np.maximum(z, low)) / unit)


@backward("log", "log2", "log10", "log1p", "special_log1p")
def logarithm_backward(grad: Abstract, x: Abstract, op: str) -> dict[str, Abstract]:
    """g / x over ln of the base; g / (1 + x)."""
    if op not in _LOGS:
        return {"x": through(grad, x, lambda z: 1 / (1 + np.maximum(z, -0.999)))}
    low, unit = floor_of(x), _LOGS[op]
    return {"x": through(grad, x, lambda z: 1 / np.maximum(z, low) / unit)}


@forward("pow", "float_power")
def power(x: Abstract | float, exponent: Abstract | float) -> Abstract:
    """x^p, c^x and, of two tensors, exp(p ln x)."""
    if not isinstance(x, Abstract):
        assert isinstance(exponent, Abstract)
        log = math.log(max(float(x), 1e-300))
        return pointwise(exponent, lambda z: np.exp(np.minimum(log * z, 300.0)))
    if not isinstance(exponent, Abstract):
        return x if float(exponent) == 1.0 else pointwise(x, _powered(x, exponent)[0])
    product = times(exponent, logarithm(x, "log"))
    return pointwise(product, lambda z: np.exp(np.minimum(z, 300.0)))


@backward("pow", "float_power")
def power_backward(
    grad: Abstract, x: Abstract | float, exponent: Abstract | float, output: Abstract
) -> dict[str, Abstract]:
    """g p x^(p - 1) for x; g x^p ln x for p."""
    if not isinstance(x, Abstract):
        assert isinstance(exponent, Abstract)
        log = math.log(max(float(x), 1e-300))
        slope = through(grad, exponent, lambda z: log * np.exp(np.minimum(log * z, 300.0)))
        return {"exponent": slope}
    if not isinstance(exponent, Abstract):
        return {"x": through(grad, x, _powered(x, exponent)[1])}
    common = multiplied(grad.plain(), output.plain())
    inverse = pointwise(x, _powered(x, -1.0)[0]).plain()
    return {
        "x": unbroadcast(multiplied(common, multiplied(exponent.plain(), inverse)), x.shape),
        "exponent": unbroadcast(multiplied(common, logarithm(x, "log").plain()), exponent.shape),
    }
