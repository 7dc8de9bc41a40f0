r"""Moments of a nonlinearity, gains by four criteria, and the maps of mean-field theory.

Pre-activations are u ~ N(0, q), those of a second input v, with correlation c. A layer maps

    q' = V(q) = sigma_w2 E f(u)^2 + sigma_b2
    c' = C(c) = (sigma_w2 E f(u) f(v) + sigma_b2) / q'

and multiplies a gradient's second moment by chi = sigma_w2 E f'(u)^2 (where fan_in = fan_out).

Sources: He et al. 2015 eq. 10 and 14 (forward and backward gain), Poole et al. 2016,
arXiv 1606.05340 (the maps), Schoenholz et al. 2017, arXiv 1611.01232 (edge of chaos, depth scales,
dropout).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, wraps
from itertools import pairwise
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

from ._activations import Nonlinearity, nonlinearity, torch_gain
from ._errors import InvalidValueError, finite, one_of
from ._quadrature import expectation, pair_expectation, root

CRITERIA = ("forward", "backward", "fixed_point", "torch")
CRITICAL = 1e-12  # a rate this close to 1 is 1: what the closed forms' rounding leaves
SMALLEST_Q, LARGEST_Q = 1e-12, 1e12

P = ParamSpec("P")
T = TypeVar("T")


class Moments(NamedTuple):
    """Of f(u), u ~ N(0, q): E f, E f^2 and E f'^2 (E |grad f|^2 for a gated function)."""

    mean: float
    second: float
    slope: float


class DepthScales(NamedTuple):
    """Where depth leads, and how fast.

    Args:
        q: the variance q* that the layers settle at; 0 or inf where they vanish or explode.
        c: the correlation c* between two inputs that they settle at.
        chi: growth of a gradient's second moment a layer, at q*.
        xi_q: layers in which a deviation from q* shrinks by e; negative where it grows, inf
            where it stays.
        xi_c: the same for c*.
    """

    q: float
    c: float
    chi: float
    xi_q: float
    xi_c: float


def _remembered(compute: Callable[P, T]) -> Callable[P, T]:
    """Keep the results for functions from the table; a user's would be kept alive by the cache."""
    cached: Any = lru_cache(maxsize=1024)(compute)

    @wraps(compute)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        nl = args[0]
        chosen = cached if isinstance(nl, Nonlinearity) and nl.fixed else compute
        return chosen(*args, **kwargs)

    return call


def _named(nl: Nonlinearity | str, param: object = None) -> Nonlinearity:
    if isinstance(nl, Nonlinearity):
        return nl
    return nonlinearity(nl, param)


# moments -------------------------------------------------------------------------------------


def _kernel(nl: Nonlinearity, q: float, c: float) -> float:
    """E f(u) f(v); of a gated function, that of the whole product."""
    own = nl.kernel(q, c) if nl.kernel else pair_expectation(nl.f, q, c, nl.kinks)
    return q * c * own if nl.gated else own


def _slope_kernel(nl: Nonlinearity, q: float, c: float) -> float:
    """E f'(u) f'(v), the derivative of the kernel by c, divided by q."""
    slopes = nl.slope_kernel(q, c) if nl.slope_kernel else pair_expectation(nl.df, q, c, nl.kinks)
    if not nl.gated:
        return slopes
    own = nl.kernel(q, c) if nl.kernel else pair_expectation(nl.f, q, c, nl.kinks)
    return own + q * c * slopes


def _mean(nl: Nonlinearity, q: float) -> float:
    if nl.odd or nl.gated:
        return 0.0
    return nl.mean(q) if nl.mean else expectation(nl.f, q, nl.kinks)


def _second(nl: Nonlinearity, q: float) -> float:
    return _kernel(nl, q, 1.0) / nl.keep


def _slope(nl: Nonlinearity, q: float) -> float:
    return _slope_kernel(nl, q, 1.0) / nl.keep


@_remembered
def _moments(nl: Nonlinearity, q: float) -> Moments:
    return Moments(_mean(nl, q), _second(nl, q), _slope(nl, q))


def moments(nl: Nonlinearity | str, q: float = 1.0) -> Moments:
    """E f(u), E f(u)^2 and E f'(u)^2 for u ~ N(0, q).

    Args:
        nl: a nonlinearity or its name.
        q: variance of the pre-activation, > 0.

    Returns:
        ``(mean, second, slope)``. For a gated function u f(v) the slope is the squared gradient
        over both halves, E f(v)^2 + q E f'(v)^2.

    Raises:
        InvalidValueError: an unknown name, q <= 0, or a moment that is not finite.

    >>> [round(m, 5) for m in moments("gelu")]
    [0.28209, 0.42522, 0.45585]
    """
    return _moments(_named(nl), finite("q", q, above=0.0))


# gains ---------------------------------------------------------------------------------------


def gain(nl: Nonlinearity | str, param: object = None, *, criterion: str = "forward") -> float:
    """The g of std = g / sqrt(fan): see `fanin.gain`, which also takes modules and callables.

    >>> round(gain("gelu"), 5), round(gain("gelu", criterion="backward"), 5)
    (1.53353, 1.48111)
    """
    one_of("criterion", criterion, CRITERIA)
    if criterion == "torch":
        if isinstance(nl, Nonlinearity):
            return torch_gain(nl.name, *nl.params[:1])
        return torch_gain(nl, param)
    return _gain(_named(nl, param), criterion)


@_remembered
def _gain(nl: Nonlinearity, criterion: str) -> float:
    if criterion == "fixed_point" and not nl.homogeneous:
        return _fixed_point(nl)
    power = _slope(nl, 1.0) if criterion == "backward" else _second(nl, 1.0)
    if power <= 0.0:
        what = "E f'(z)^2 is 0: no gradient passes" if criterion == "backward" else "E f(z)^2 is 0"
        raise InvalidValueError(f"{nl} has no {criterion} gain: {what}.")
    return 1 / math.sqrt(power)


def _fixed_point(nl: Nonlinearity) -> float:
    """The s nearest to 1 with E f(s z)^2 = 1, and f rising there."""

    def excess(log_q: float) -> float:
        return _second(nl, math.exp(log_q)) - 1.0

    at_one = excess(0.0)
    if abs(at_one) < CRITICAL:
        return 1.0
    step = math.copysign(0.7, -at_one)
    bound = math.log(LARGEST_Q)
    low = 0.0
    while abs(low) < bound:
        if (excess(low + step) > 0) != (at_one > 0):
            return math.exp(root(excess, low, low + step) / 2)
        low += step
    limit = _second(nl, math.exp(low))
    raise InvalidValueError(
        f"{nl} has no fixed-point gain: E f(s z)^2 never reaches 1; it is {at_one + 1:.4g} at s = 1 "
        f"and {limit:.4g} as s goes to {'0' if step < 0 else 'infinity'}. "
        "criterion='forward' gives the gain that keeps the pre-activation's variance 1."
    )


# maps ----------------------------------------------------------------------------------------


def q_map(nl: Nonlinearity | str, q: float, sigma_w2: float, sigma_b2: float = 0.0) -> float:
    """V(q) = sigma_w2 E f(u)^2 + sigma_b2 (Poole et al. 2016).

    Args:
        nl: a nonlinearity or its name.
        q: variance of the pre-activation, > 0.
        sigma_w2: fan_in times the variance of a weight.
        sigma_b2: variance of a bias.

    >>> q_map("relu", 3.0, 2.0)
    3.0
    """
    nl, q = _named(nl), finite("q", q, above=0.0)
    sigma_w2, sigma_b2 = _sigmas(sigma_w2, sigma_b2)
    return sigma_w2 * _second(nl, q) + sigma_b2


def c_map(
    nl: Nonlinearity | str, c: float, sigma_w2: float, sigma_b2: float = 0.0, *, q: float = 1.0
) -> float:
    """C(c): the correlation of two inputs after a layer (Poole et al. 2016).

    Args:
        nl: a nonlinearity or its name.
        c: their correlation before it, in [-1, 1].
        sigma_w2: fan_in times the variance of a weight, > 0.
        sigma_b2: variance of a bias.
        q: variance of both pre-activations, > 0.

    >>> round(c_map("relu", 0.0, 2.0), 6)
    0.31831
    """
    nl, q = _named(nl), finite("q", q, above=0.0)
    sigma_w2, sigma_b2 = _sigmas(sigma_w2, sigma_b2)
    if abs(finite("c", c)) > 1.0:
        raise InvalidValueError(f"c must be a correlation in [-1, 1]; got {c!r}.")
    return _c_map(nl, float(c), sigma_w2, sigma_b2, q)


def _c_map(nl: Nonlinearity, c: float, sigma_w2: float, sigma_b2: float, q: float) -> float:
    shared = sigma_w2 * _kernel(nl, q, c) + sigma_b2
    return shared / (sigma_w2 * _second(nl, q) + sigma_b2)


def _c_rate(nl: Nonlinearity, c: float, sigma_w2: float, sigma_b2: float, q: float) -> float:
    """C'(c)."""
    if not nl.jumps:
        norm = sigma_w2 * _second(nl, q) + sigma_b2
        return sigma_w2 * q * _slope_kernel(nl, q, c) / norm
    if c == 1.0:
        return math.inf
    # f' misses the jumps' share: fourth-order central difference of C, good to about 1e-9
    h = min(1e-3, (1 - c) / 4)
    near, far = (_c_map(nl, c + s * h, sigma_w2, sigma_b2, q) for s in (1, 2))
    near, far = (
        near - _c_map(nl, c - h, sigma_w2, sigma_b2, q),
        far - _c_map(nl, c - 2 * h, sigma_w2, sigma_b2, q),
    )
    return (8 * near - far) / (12 * h)


def _q_rate(nl: Nonlinearity, sigma_w2: float, q: float) -> float:
    """V'(q), by d/dq E g(sqrt(q) z) = E g (z^2 - 1) / 2q, which holds where f jumps too."""
    own = expectation(lambda u: np.square(nl.f(u)) * (u * u / q - 1), q, nl.kinks) / (2 * q)
    if nl.gated:
        own = _kernel(nl, q, 1.0) / q + q * own
    return sigma_w2 * own / nl.keep


def _sigmas(sigma_w2: float, sigma_b2: float) -> tuple[float, float]:
    return finite("sigma_w2", sigma_w2, above=0.0), finite("sigma_b2", sigma_b2, least=0.0)


# edge of chaos -------------------------------------------------------------------------------


def edge_of_chaos(
    nl: Nonlinearity | str, *, q: float | None = None, sigma_b2: float | None = None
) -> tuple[float, float]:
    """(sigma_w2, sigma_b2) with V(q) = q and chi = 1: see `fanin.edge_of_chaos`.

    >>> [round(s, 4) for s in edge_of_chaos("tanh")]
    [2.1533, 0.151]
    """
    nl = _named(nl)
    if q is not None and sigma_b2 is not None:
        raise InvalidValueError(
            f"give q or sigma_b2, not both: one decides the other; got q={q!r}, sigma_b2={sigma_b2!r}."
        )
    if nl.jumps or nl.keep < 1.0:
        why = (
            "it jumps, so C'(1) is infinite"
            if nl.jumps
            else "dropout keeps C(1) below 1 (Schoenholz et al. 2017)"
        )
        raise InvalidValueError(f"{nl} has no edge of chaos: {why}.")
    if sigma_b2 is not None:
        return _edge_at_bias(nl, finite("sigma_b2", sigma_b2, least=0.0))
    return _edge_at_variance(nl, finite("q", 1.0 if q is None else q, above=0.0))


def _bias_on_edge(nl: Nonlinearity, q: float) -> float:
    """The sigma_b2 that makes q a fixed point where chi = 1; negative where none does."""
    slope = _slope(nl, q)
    bias = q - _second(nl, q) / slope if slope > 0 else -math.inf
    return 0.0 if abs(bias) < CRITICAL * q else bias


@_remembered
def _edge_at_variance(nl: Nonlinearity, q: float) -> tuple[float, float]:
    bias = _bias_on_edge(nl, q)
    if bias < 0:
        raise InvalidValueError(
            f"{nl} has no edge of chaos at q = {q:g}: chi = 1 needs sigma_w2 = 1/E f'^2, and then "
            f"q = {q:g} needs sigma_b2 = {bias:.4g}, a negative variance. Its correlations always "
            "converge to 1 here; use another nonlinearity, or another q."
        )
    return 1 / _slope(nl, q), bias


@_remembered
def _edge_at_bias(nl: Nonlinearity, sigma_b2: float) -> tuple[float, float]:
    def excess(log_q: float) -> float:
        return _bias_on_edge(nl, math.exp(log_q)) - sigma_b2

    if nl.homogeneous and sigma_b2 == 0.0:
        return _edge_at_variance(nl, 1.0)
    grid = [] if nl.homogeneous else [math.log(10) * k / 4 for k in range(-40, 25)]
    if sigma_b2 == 0.0 and grid and abs(_bias_on_edge(nl, 1e-10)) < 1e-14:
        # V is tangent to the diagonal at q = 0, where f is linear on each side
        sides = nl.df(np.array([-1e-300, 1e-300]))
        return 1 / float(np.mean(sides**2)), 0.0
    before = excess(grid[0]) if grid else 0.0
    for low, high in pairwise(grid):
        after = excess(high)
        if before < 0 <= after:
            return 1 / _slope(nl, math.exp(root(excess, low, high))), sigma_b2
        before = after
    raise InvalidValueError(
        f"{nl} has no edge of chaos with sigma_b2 = {sigma_b2:g}: no q has both V(q) = q and chi = 1. "
        "Leave sigma_b2 out to have it solved for q = 1."
    )


# depth scales --------------------------------------------------------------------------------


def depth_scales(
    nl: Nonlinearity | str, sigma_w2: float, sigma_b2: float, *, q: float = 1.0
) -> DepthScales:
    """Fixed points of V and C and the depths at which they are reached: see `fanin.depth_scales`.

    >>> [round(x, 3) for x in depth_scales("tanh", 25 / 9, 0.0)]
    [1.178, 0.0, 1.21, 1.188, 12.118]
    """
    sigma_w2, sigma_b2 = _sigmas(sigma_w2, sigma_b2)
    return _depth_scales(_named(nl), sigma_w2, sigma_b2, finite("q", q, above=0.0))


@_remembered
def _depth_scales(nl: Nonlinearity, sigma_w2: float, sigma_b2: float, start: float) -> DepthScales:
    q_star = _q_star(nl, sigma_w2, sigma_b2, start)
    q = q_star
    if not 0.0 < q_star < math.inf:
        nl, sigma_w2, sigma_b2, q = _limit(nl, sigma_w2, q_star)
    c_star = _c_star(nl, sigma_w2, sigma_b2, q)
    q_rate, c_rate = _q_rate(nl, sigma_w2, q), _c_rate(nl, c_star, sigma_w2, sigma_b2, q)
    # c* is stable: a C'(c*) above 1 is a critical point to within rounding
    return DepthScales(
        q_star, c_star, sigma_w2 * _slope(nl, q), _depth(q_rate), _depth(min(c_rate, 1.0))
    )


def _limit(
    nl: Nonlinearity, sigma_w2: float, q_star: float
) -> tuple[Nonlinearity, float, float, float]:
    """f, sigma_w2, sigma_b2 and q that have the maps of f as q goes to ``q_star``, 0 or infinity.

    Where f is straight on each side there, that is a leaky ReLU times a constant.
    """
    far = 1e-100 if q_star == 0.0 else 1e100
    (left, right), farther = nl.df(np.array([-far, far])), nl.df(np.array([-2 * far, 2 * far]))
    steep, flat = (left, right) if abs(left) > abs(right) else (right, left)
    straight = steep != 0.0 and np.allclose([left, right], farther, rtol=1e-9, atol=0.0)
    if not straight or nl.gated or nl.jumps:
        return nl, sigma_w2, 0.0, SMALLEST_Q if q_star == 0.0 else LARGEST_Q
    leaky = replace(nonlinearity("leaky_relu", float(flat / steep)), keep=nl.keep)
    return leaky, sigma_w2 * float(steep) ** 2, 0.0, 1.0


def _depth(rate: float) -> float:
    """Layers in which a deviation that shrinks by ``rate`` a layer shrinks by e."""
    if abs(rate - 1) < CRITICAL:
        return math.inf
    return -1 / math.log(rate) if rate > 0 else 0.0


def _q_star(nl: Nonlinearity, sigma_w2: float, sigma_b2: float, start: float) -> float:
    """The fixed point of V that a first variance ``start`` is led to."""

    def growth(log_q: float) -> float:
        q = math.exp(log_q)
        return (sigma_w2 * _second(nl, q) + sigma_b2) / q - 1.0

    here = math.log(start)
    sign = growth(here)
    if abs(sign) < CRITICAL:
        return start
    if nl.homogeneous:
        rate = sigma_w2 * _second(nl, 1.0)
        return sigma_b2 / (1 - rate) if rate < 1 - CRITICAL else math.inf
    step = math.copysign(0.4, sign)
    while math.log(SMALLEST_Q) < here < math.log(LARGEST_Q):
        if (growth(here + step) > 0) != (sign > 0):
            return math.exp(root(growth, here, here + step))
        here += step
    return math.inf if step > 0 else 0.0


def _c_star(nl: Nonlinearity, sigma_w2: float, sigma_b2: float, q: float) -> float:
    """The stable fixed point of C on [0, 1], where C is convex: its Hermite series has terms a_k^2 c^k."""

    def excess(c: float) -> float:
        return _c_map(nl, c, sigma_w2, sigma_b2, q) - c

    exact = nl.keep == 1.0 and not nl.jumps
    rate = _c_rate(nl, 1.0, sigma_w2, sigma_b2, q) if exact else math.inf
    if rate <= 1 + CRITICAL:
        return 1.0
    if excess(0.0) < 1e-15:
        return 0.0
    below, gap = 0.0, 0.5
    while (
        gap * (rate - 1) > 10 * CRITICAL and gap > 1e-15
    ):  # else C(1 - gap) cannot be told from 1 - gap
        if excess(1 - gap) < 0:
            return root(excess, below, 1 - gap)
        below, gap = 1 - gap, gap / 2
    return 1.0
