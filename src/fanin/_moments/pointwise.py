"""Functions of one tensor, element by element: the machinery, and the activations.

Forward E f(x) and E f(x) f(x') by quadrature and Mehler's series (`gaussian`), exact for Gaussian x;
functions in a row compose. Backward g f'(x), with g independent of x. Each op is a pair (f, f'); the
activations' come from `fanin._activations`. `elementwise` adds one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from .._activations import Nonlinearity, erf, nonlinearity
from .algebra import plus, through, unbroadcast
from .domain import Abstract, Function, multiplied, shifted
from .gaussian import pointwise
from .registry import backward, forward
from .strata import Array

Pair = tuple[Function, Function]

UNARY: dict[str, Callable[..., Pair]] = {}

PER_UNIT = 2000
GRID = np.linspace(-9.0, 9.0, 18 * PER_UNIT + 1)


def elementwise(*ops: str, f: Function, df: Function | None = None) -> None:
    """Register both rules of an op that is a function of one tensor, element by element.

    Args:
        ops: its names in ATen or in another library of ops.
        f: the function, float64 array -> float64 array.
        df: its derivative; central differences where none is given.

    >>> elementwise("snake", f=lambda z: z + np.sin(z) ** 2, df=lambda z: 1 + np.sin(2 * z))
    """
    pair = (f, df or differences(f))
    parametric(*ops)(lambda: pair)


def differences(f: Function, step: float = 1e-5) -> Function:
    """The derivative of f by central differences."""
    return lambda z: (f(z + step) - f(z - step)) / (2 * step)


def parametric(*ops: str) -> Callable[[Callable[..., Pair]], Callable[..., Pair]]:
    """Register ops whose function has parameters: (arguments of the op) -> (f, f')."""

    def register(build: Callable[..., Pair]) -> Callable[..., Pair]:
        names = build.__code__.co_varnames[: build.__code__.co_argcount]
        cached = lru_cache(maxsize=256)(build)

        def rule(x: Abstract, **given: Any) -> Abstract:
            return pointwise(x, cached(**{n: given[n] for n in names if n in given})[0])

        def transpose(x: Abstract, grad: Abstract, **given: Any) -> dict[str, Abstract]:
            slope = cached(**{n: given[n] for n in names if n in given})[1]
            return {"x": through(grad, x, slope)}

        forward(*ops)(rule)
        backward(*ops)(transpose)
        UNARY.update(dict.fromkeys(ops, build))
        return build

    return register


def tabulated(f: Function) -> Function:
    """f by linear interpolation in [-9, 9], error below 1e-7 |f''|: for functions slow in numpy."""
    values = f(GRID)
    steps = np.diff(values, append=values[-1])

    def fast(z: Array) -> Array:
        at = (z + 9.0) * PER_UNIT
        place = at.astype(np.intp)
        out = values.take(place, mode="clip") + (at - place) * steps.take(place, mode="clip")
        if not (at.min() >= 0.0 and at.max() <= GRID.size - 1):
            far = np.abs(z) > 9.0
            out[far] = f(z[far])
        return np.asarray(out)

    return fast


def _pair(nl: Nonlinearity) -> Pair:
    return nl.f, nl.df


# activations --------------------------------------------------------------------------------------

for _op in ("relu", "relu6", "silu", "mish", "hardswish", "hardsigmoid", "tanh", "sigmoid", "sin"):  # fmt: skip
    elementwise(_op, f=nonlinearity(_op).f, df=nonlinearity(_op).df)
elementwise("special_expit", f=nonlinearity("sigmoid").f, df=nonlinearity("sigmoid").df)
elementwise("log_sigmoid", f=nonlinearity("logsigmoid").f, df=nonlinearity("logsigmoid").df)  # fmt: skip
elementwise("selu", f=nonlinearity("selu").f, df=nonlinearity("selu").df)
elementwise("erf", "special_erf", f=tabulated(erf), df=nonlinearity("erf").df)


@parametric("leaky_relu")
def leaky_relu(negative_slope: float = 0.01) -> Pair:
    """x above 0, negative_slope x below."""
    return _pair(nonlinearity("leaky_relu", negative_slope))


@parametric("elu")
def elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Pair:
    """scale x above 0, scale alpha (exp(input_scale x) - 1) below."""

    def f(z: Array) -> Array:
        return np.where(
            z > 0, scale * z, scale * alpha * np.expm1(input_scale * np.minimum(z, 0.0))
        )

    def df(z: Array) -> Array:
        below = scale * alpha * input_scale * np.exp(input_scale * np.minimum(z, 0.0))
        return np.where(z > 0, scale, below)

    return f, df


@parametric("celu")
def celu(alpha: float = 1.0) -> Pair:
    """x above 0, alpha (exp(x / alpha) - 1) below."""
    return _pair(nonlinearity("celu", alpha))


@parametric("gelu")
def gelu(approximate: str = "none") -> Pair:
    """x Phi(x), or its approximation with tanh."""
    return _gelu(approximate)


@lru_cache(maxsize=2)
def _gelu(approximate: str) -> Pair:
    f, df = _pair(nonlinearity("gelu", approximate))
    return (f, df) if approximate == "tanh" else (tabulated(f), tabulated(df))


@parametric("hardtanh")
def hardtanh(min_val: float = -1.0, max_val: float = 1.0) -> Pair:
    """x kept within [min_val, max_val]."""
    return clipped(min_val, max_val)


def clipped(low: float | None, high: float | None) -> Pair:
    """x kept within [low, high]."""
    a = -math.inf if low is None else float(low)
    b = math.inf if high is None else float(high)
    return lambda z: np.minimum(np.maximum(z, a), b), lambda z: ((z >= a) & (z <= b)) * 1.0


@parametric("clamp_min")
def clamp_min(min: float) -> Pair:  # noqa: A002 - ATen's name
    """max(x, min)."""
    return clipped(min, None)


@parametric("clamp_max")
def clamp_max(max: float) -> Pair:  # noqa: A002 - ATen's name
    """min(x, max)."""
    return clipped(None, max)


@parametric("softplus")
def softplus(beta: float = 1.0, threshold: float = 20.0) -> Pair:
    """ln(1 + exp(beta x)) / beta."""
    return _pair(nonlinearity("softplus", (float(beta), float(threshold))))


@parametric("threshold")
def threshold(threshold: float, value: float) -> Pair:
    """x above the threshold, else value."""
    return _pair(nonlinearity("threshold", (float(threshold), float(value))))


@parametric("hardshrink")
def hardshrink(lambd: float = 0.5) -> Pair:
    """x where |x| > lambd, else 0."""
    return _pair(nonlinearity("hardshrink", float(lambd)))


@parametric("softshrink")
def softshrink(lambd: float = 0.5) -> Pair:
    """x shrunk towards 0 by lambd."""
    return _pair(nonlinearity("softshrink", float(lambd)))


@forward("rrelu", "rrelu_with_noise")
def rrelu(
    x: Abstract, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False
) -> Abstract:
    """x above 0; below, x times a slope: its mean in eval, uniform in [lower, upper] in training."""
    out = pointwise(x, leaky_relu((lower + upper) / 2)[0])
    return _slopes_spread(out, x, lower, upper) if training else out


def _slopes_spread(out: Abstract, x: Abstract, lower: float, upper: float) -> Abstract:
    low = pointwise(x, lambda z: np.minimum(z, 0.0))
    q = out.q.copy()
    own = tuple(slice(len(atom)) for atom in x.atoms)
    q[own] += (upper - lower) ** 2 / 12 * low.q[own]
    return out.with_(q=q, chain=None)


@backward("rrelu", "rrelu_with_noise")
def rrelu_backward(
    grad: Abstract, x: Abstract, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False
) -> dict[str, Abstract]:
    """g above 0, g times the slope below."""
    out = through(grad, x, leaky_relu((lower + upper) / 2)[1])
    if not training:
        return {"x": out}
    below = multiplied(grad, pointwise(x, lambda z: (z <= 0).astype(float)))
    q = out.q.copy()
    own = tuple(slice(len(atom)) for atom in out.atoms)
    q[own] += (upper - lower) ** 2 / 12 * below.q[own]
    return {"x": out.with_(q=q, note=None)}


@forward("prelu", "_prelu_kernel")
def prelu(x: Abstract, weight: Abstract) -> Abstract:
    """max(x, 0) + w min(x, 0): the function of the mean slope, and the slopes' spread beside it."""
    slope = weight.average_mean
    out = pointwise(x, leaky_relu(slope)[0])
    spread = shifted(weight, -slope).plain()
    if not np.abs(spread.q).max(initial=0.0) > 1e-12 * max(slope * slope, 1e-30):
        return out
    low = pointwise(x, lambda z: np.minimum(z, 0.0)).plain()
    return plus(out.with_(chain=None), multiplied(low, _per_channel(spread, x)))


def _per_channel(weight: Abstract, x: Abstract) -> Abstract:
    """A vector over axis 1, or a single number, as it broadcasts to x."""
    if weight.shape == x.shape or len(weight.dims) > 1:
        return weight
    after = max(0, len(x.dims) - 2) if weight.shape != (1,) else 0
    return weight.with_(dims=(*weight.dims, *((),) * after), note=None, chain=None, known=None)


@backward("prelu", "_prelu_kernel")
def prelu_backward(grad: Abstract, x: Abstract, weight: Abstract) -> dict[str, Abstract]:
    """g or g w for x; g min(x, 0) summed over all but the channels for w."""
    slope = weight.average_mean
    spread = shifted(weight, -slope).plain()
    to_x = through(grad, x, leaky_relu(slope)[1])
    if np.abs(spread.q).max(initial=0.0) > 1e-12 * max(slope * slope, 1e-30):
        below = multiplied(grad, pointwise(x, lambda z: (z <= 0).astype(float)))
        to_x = plus(to_x.plain(), multiplied(below, _per_channel(spread, x)))
    low = multiplied(grad.plain(), pointwise(x, lambda z: np.minimum(z, 0.0)).plain())
    wide = _per_channel(weight, x)
    total = unbroadcast(low, wide.shape)
    rank = len(weight.dims)
    return {"x": to_x, "weight": Abstract(total.dims[:rank], total.mean, total.q)}


@forward("log_sigmoid_forward")
def log_sigmoid_forward(x: Abstract) -> list[Abstract]:
    """Ln sigmoid(x), and the buffer that its own backward op reads."""
    return [pointwise(x, nonlinearity("logsigmoid").f), pointwise(x, lambda z: np.exp(-np.abs(z)))]


@backward("log_sigmoid_forward")
def log_sigmoid_backward(grad: Abstract, x: Abstract) -> dict[str, Abstract]:
    """g sigmoid(-x)."""
    return {"x": through(grad, x, nonlinearity("logsigmoid").df)}
