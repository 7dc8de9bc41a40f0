"""What autograd runs where a model differentiates in its own forward pass: g f'(x), element by element.

Each op is a pair (f', f'') of what it was given: the function's argument or, for tanh and its kind, its
result. Backward the gradient reaches g through f'(x), and x through g f''(x); steps have f'' = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from .._activations import nonlinearity
from .algebra import through, times
from .domain import Abstract
from .gaussian import pointwise
from .pointwise import Pair, differences
from .registry import backward, forward
from .strata import Array

SLOPES: dict[str, Callable[..., Pair]] = {}


def _slope(op: str, of: str = "x", grad: str = "grad_output") -> Callable[..., Callable[..., Pair]]:
    """Register an op: (its numbers) -> (f', f''), of the argument called ``of``."""

    def register(build: Callable[..., Pair]) -> Callable[..., Pair]:
        names = build.__code__.co_varnames[: build.__code__.co_argcount]
        cached = lru_cache(maxsize=64)(build)

        def pair(given: dict[str, object]) -> Pair:
            return cached(**{n: given[n] for n in names if n in given})

        def rule(**given: object) -> Abstract:
            g, x = given[grad], given[of]
            assert isinstance(g, Abstract)
            assert isinstance(x, Abstract)
            return times(g, pointwise(x, pair(given)[0]))

        def transpose(**given: object) -> dict[str, Abstract]:
            flowing, g, x = given["grad"], given[grad], given[of]
            assert isinstance(flowing, Abstract)
            assert isinstance(g, Abstract)
            assert isinstance(x, Abstract)
            slope, curve = pair(given)
            return {grad: through(flowing, x, slope), of: through(times(flowing, g), x, curve)}

        forward(op)(rule)
        backward(op)(transpose)
        SLOPES[op] = build
        return build

    return register


def _flat(z: Array) -> Array:
    return np.zeros_like(z)


def _between(low: float, high: float, slope: float) -> Pair:
    return lambda z: slope * ((z > low) & (z < high)), _flat


def _of(name: str, parameter: object = None) -> Pair:
    df = nonlinearity(name).df if parameter is None else nonlinearity(name, parameter).df
    return df, differences(df)


_slope("tanh_backward", "output")(lambda: (lambda y: 1 - y * y, lambda y: -2 * y))
_slope("sigmoid_backward", "output")(lambda: (lambda y: y * (1 - y), lambda y: 1 - 2 * y))
_slope("silu_backward")(lambda: _of("silu"))
_slope("mish_backward")(lambda: _of("mish"))
_slope("log_sigmoid_backward")(lambda: _of("logsigmoid"))
_slope("hardsigmoid_backward")(lambda: _between(-3.0, 3.0, 1 / 6))
_slope("hardswish_backward")(
    lambda: (nonlinearity("hardswish").df, lambda z: ((z > -3) & (z < 3)) / 3)
)


@_slope("gelu_backward")
def gelu_backward(approximate: str = "none") -> Pair:
    """Phi(x) + x phi(x), or of the approximation with tanh."""
    return _of("gelu", approximate)


@_slope("softplus_backward")
def softplus_backward(beta: float = 1.0, threshold: float = 20.0) -> Pair:
    """1 / (1 + exp(-beta x))."""
    return _of("softplus", (float(beta), float(threshold)))


@_slope("threshold_backward")
def threshold_backward(threshold: float) -> Pair:
    """1 above the threshold: a rectifier's, of its argument or its result."""
    return lambda z: (z > threshold) * 1.0, _flat


@_slope("leaky_relu_backward")
def leaky_relu_backward(negative_slope: float) -> Pair:
    """1 above 0, the slope below."""
    return lambda z: np.where(z > 0, 1.0, negative_slope), _flat


@_slope("hardtanh_backward")
def hardtanh_backward(min_val: float, max_val: float) -> Pair:
    """1 between the limits."""
    return _between(min_val, max_val, 1.0)


@_slope("hardshrink_backward", grad="grad_out")
def hardshrink_backward(lambd: float) -> Pair:
    """1 beyond lambd."""
    return lambda z: (np.abs(z) > lambd) * 1.0, _flat


@_slope("softshrink_backward")
def softshrink_backward(lambd: float) -> Pair:
    """1 beyond lambd."""
    return lambda z: (np.abs(z) > lambd) * 1.0, _flat


@_slope("elu_backward", "self_or_result")
def elu_backward(alpha: float, scale: float, input_scale: float, is_result: bool) -> Pair:
    """Scale above 0; below scale alpha input_scale exp(input_scale x), of a result y input_scale (y + scale alpha)."""

    def below(z: Array) -> Array:
        z = np.minimum(z, 0.0)
        if is_result:
            return input_scale * (z + scale * alpha)
        return scale * alpha * input_scale * np.exp(input_scale * z)

    def curve(z: Array) -> Array:
        return np.where(z > 0, 0.0, input_scale if is_result else input_scale * below(z))

    return lambda z: np.where(z > 0, scale, below(z)), curve
