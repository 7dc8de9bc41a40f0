"""The nonlinearities of torch.nn as values: function, derivative, kinks, closed forms.

Each is exact in float64 without cancellation, also for tiny and for huge arguments. Closed
forms are functions of the variance q of the pre-activation u ~ N(0, q): ``mean`` is E f(u),
``kernel`` is E f(u) f(v) and ``slope_kernel`` is E f'(u) f'(v) at correlation c; at c = 1 they
are the second moments of f and f'. Where a closed form is missing, quadrature takes its place.

Sources: arc-cosine kernels (ReLU and its square): Cho & Saul 2009, n = 1 and 2. erf: Williams
1997. GELU: Hendrycks & Gimpel 2016; its kernel: Tsuchida et al. 2021, here from Stein's lemma.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from ._errors import InvalidValueError, finite, one_of
from ._normal import cdf
from ._quadrature import Array, Function, bends, jumps, probe_grid

Parameter = float | str
SQRT_2PI = math.sqrt(2 * math.pi)
SELU_ALPHA, SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


@dataclass(frozen=True)
class Nonlinearity:
    """An elementwise function, with what is known of it.

    Args:
        name: its name in torch.nn.functional where it has one.
        f: the function, float64 array to float64 array.
        df: its derivative, as autograd gives it (no Dirac deltas where f jumps).
        kinks: where f, f' or f'' jumps.
        params: its parameters, in torch's order.
        homogeneous: f(a x) = a f(x) for a > 0.
        odd: f(-x) = -f(x).
        saturating: f is bounded.
        jumps: f itself jumps, so that no correlation near 1 survives it.
        gated: the layer computes u f(v) from two independent halves u and v (GLU and its kin);
            ``f`` is the gate.
        keep: a unit survives the dropout that follows with this probability, scaled by 1/keep.
        fixed: comes from the table, so results may be remembered for ever.
        mean, kernel, slope_kernel: closed forms (q), (q, c), (q, c); None where none is known.
    """

    name: str
    f: Function
    df: Function
    kinks: tuple[float, ...] = ()
    params: tuple[Parameter, ...] = ()
    homogeneous: bool = False
    odd: bool = False
    saturating: bool = False
    jumps: bool = False
    gated: bool = False
    keep: float = 1.0
    fixed: bool = False
    mean: Callable[[float], float] | None = None
    kernel: Callable[[float, float], float] | None = None
    slope_kernel: Callable[[float, float], float] | None = None

    def __str__(self) -> str:
        inside = ", ".join(p if isinstance(p, str) else f"{p:g}" for p in self.params)
        return f"{self.name}({inside})" if inside else self.name


# the functions -------------------------------------------------------------------------------

erf: Function = np.vectorize(math.erf, otypes=[float])


def _relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


def _step(x: Array) -> Array:
    return (x > 0).astype(float)


def _between(x: Array, low: float, high: float) -> Array:
    return ((x > low) & (x < high)).astype(float)


def _sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def _dsigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return small / (1.0 + small) ** 2


def _dtanh(x: Array) -> Array:
    return 4.0 * _dsigmoid(2.0 * x)


def _softplus(x: Array) -> Array:
    return _relu(x) + np.log1p(np.exp(-np.abs(x)))


def _silu(x: Array) -> Array:
    return x * _sigmoid(x)


def _dsilu(x: Array) -> Array:
    return _sigmoid(x) + x * _dsigmoid(x)


def _mish(x: Array) -> Array:
    return x * np.tanh(_softplus(x))


def _dmish(x: Array) -> Array:
    smooth = _softplus(x)
    return np.tanh(smooth) + x * _dtanh(smooth) * _sigmoid(x)


def _phi(x: Array) -> Array:
    return np.exp(-0.5 * x * x) / SQRT_2PI


def _gelu_tanh_arg(x: Array) -> Array:
    """Twice the argument of tanh, because (1 + tanh(y)) / 2 is the sigmoid of 2 y."""
    return math.sqrt(8.0 / math.pi) * (x + 0.044715 * x * x * x)


def _gelu_tanh(x: Array) -> Array:
    return x * _sigmoid(_gelu_tanh_arg(x))


def _dgelu_tanh(x: Array) -> Array:
    y = _gelu_tanh_arg(x)
    return _sigmoid(y) + x * _dsigmoid(y) * math.sqrt(8.0 / math.pi) * (1 + 0.134145 * x * x)


def _tanhshrink(x: Array) -> Array:
    """``x - tanh x``; near 0 from tanh = x/(1+t), t = x²/(3 + x²/(5 + ...)), without a difference."""
    square = np.minimum(x * x, 1.0)
    tail = np.full_like(x, 21.0)
    for odd in range(19, 1, -2):
        tail = odd + square / tail
    ratio = square / tail
    return np.where(np.abs(x) < 1.0, x * ratio / (1.0 + ratio), x - np.tanh(x))


def _hardsigmoid(x: Array) -> Array:
    return np.clip(x + 3.0, 0.0, 6.0) / 6.0


def _hardswish(x: Array) -> Array:
    return x * _hardsigmoid(x)


def _dhardswish(x: Array) -> Array:
    return np.where(x >= 3.0, 1.0, np.where(x > -3.0, (2.0 * x + 3.0) / 6.0, 0.0))


# closed forms --------------------------------------------------------------------------------


def _turned(c: float) -> float:
    """The supplement of the angle whose cosine is c."""
    return math.pi - math.acos(max(-1.0, min(1.0, c)))


def _arc(c: float) -> float:
    """2/q E relu(u) relu(v): the correlation that a ReLU leaves of c (Cho & Saul 2009, n = 1)."""
    return (math.sqrt(max(0.0, 1 - c * c)) + _turned(c) * c) / math.pi


def _relu_squared_kernel(q: float, c: float) -> float:
    sine = math.sqrt(max(0.0, 1 - c * c))
    return q * q / (2 * math.pi) * (3 * sine * c + _turned(c) * (1 + 2 * c * c))


def _erf_kernel(q: float, c: float) -> float:
    return 2 / math.pi * math.asin(2 * q * c / (1 + 2 * q))


def _erf_slope_kernel(q: float, c: float) -> float:
    return 4 / math.pi / math.sqrt((1 + 2 * q * (1 - c)) * (1 + 2 * q * (1 + c)))


def _sin_kernel(q: float, c: float) -> float:
    return -0.5 * math.exp(-q * (1 - c)) * math.expm1(-2 * q * c)


def _sin_slope_kernel(q: float, c: float) -> float:
    return 0.5 * (math.exp(-q * (1 - c)) + math.exp(-q * (1 + c)))


def _gelu_parts(q: float, c: float) -> tuple[float, float, float]:
    """E Phi(u)Phi(v), E phi(u)phi(v), and (1+q)² - (qc)²."""
    determinant = (1 + q * (1 - c)) * (1 + q * (1 + c))
    orthant = 0.25 + math.asin(q * c / (1 + q)) / (2 * math.pi)
    return orthant, 1 / (2 * math.pi * math.sqrt(determinant)), determinant


def _gelu_kernel(q: float, c: float) -> float:
    orthant, density, _ = _gelu_parts(q, c)
    return q * c * orthant + q * q * density * (1 + c * c * (1 - q) / (1 + q))


def _gelu_slope_kernel(q: float, c: float) -> float:
    orthant, density, determinant = _gelu_parts(q, c)
    return orthant + q * c * density * (2 / (1 + q) + 1 / determinant)


def slope_mixture(
    name: str, mean: float, mean_square: float, params: tuple[float, ...]
) -> Nonlinearity:
    """``x`` for x > 0, ``a x`` below, where the slope a differs from channel to channel.

    Args:
        name: the name it goes by.
        mean: the mean slope.
        mean_square: the mean of the squared slopes; ``mean**2`` for a single slope.
        params: what it was made of.

    Returns:
        Its closed forms are averages over the channels; ``f`` is that of the mean slope.
    """
    bend = 1 - 2 * mean + mean_square
    return Nonlinearity(
        name,
        lambda x: np.where(x > 0, x, mean * x),
        lambda x: np.where(x > 0, 1.0, mean),
        kinks=(0.0,),
        params=params,
        homogeneous=True,
        odd=mean == 1.0 and mean_square == 1.0,
        mean=lambda q: (1 - mean) * math.sqrt(q) / SQRT_2PI,
        kernel=lambda q, c: q * (mean * c + bend / 2 * _arc(c)),
        slope_kernel=lambda _, c: mean + bend / (2 * math.pi) * _turned(c),
    )


MOST_KINKS = 32  # of a staircase, those nearest to zero; quadrature finds the others by itself


def described(name: str, f: Function, df: Function) -> Nonlinearity:
    """The nonlinearity of two functions alone: its kinks and symmetries are found numerically.

    >>> snap = described("snap", lambda x: np.clip(x, -1, 2), lambda x: ((x > -1) & (x < 2)) * 1.0)
    >>> snap.kinks, snap.saturating
    ((-1.0, 2.0), True)
    """
    with np.errstate(all="ignore"):
        x = probe_grid()
        y = f(x)
        leaps = jumps(f)
        sharp = {*leaps, *jumps(df)}
        soft = {b for b in bends(df) if all(abs(b - k) > 1e-3 * (1 + abs(k)) for k in sharp)}
        at_minus_one, at_one = f(np.array([-1.0, 1.0]))
        straight = np.abs(x) * np.where(x > 0, at_one, at_minus_one)
        return Nonlinearity(
            name,
            f,
            df,
            kinks=tuple(sorted(sorted(sharp | soft, key=abs)[:MOST_KINKS])),
            homogeneous=bool(np.allclose(y, straight, rtol=1e-12, atol=0.0)),
            odd=bool(np.allclose(y, -f(-x), rtol=1e-12, atol=0.0)),
            saturating=bool(np.abs(y).max() <= 1.01 * np.abs(y[np.abs(x) < 100.0]).max()),
            jumps=bool(leaps),
        )


# the table -----------------------------------------------------------------------------------

_PLAIN = {
    row.name: row
    for row in (
        Nonlinearity(
            "linear", lambda x: x, np.ones_like, homogeneous=True, odd=True,
            mean=lambda _: 0.0, kernel=lambda q, c: q * c, slope_kernel=lambda _q, _c: 1.0,
        ),
        Nonlinearity(
            "relu", _relu, _step, (0.0,), homogeneous=True,
            mean=lambda q: math.sqrt(q) / SQRT_2PI,
            kernel=lambda q, c: q / 2 * _arc(c), slope_kernel=lambda _, c: _turned(c) / (2 * math.pi),
        ),
        Nonlinearity("relu6", lambda x: np.clip(x, 0.0, 6.0), lambda x: _between(x, 0.0, 6.0), (0.0, 6.0), saturating=True),
        Nonlinearity(
            "relu_squared", lambda x: _relu(x) ** 2, lambda x: 2.0 * _relu(x), (0.0,),
            mean=lambda q: q / 2, kernel=_relu_squared_kernel, slope_kernel=lambda q, c: 2 * q * _arc(c),
        ),
        Nonlinearity("sigmoid", _sigmoid, _dsigmoid, saturating=True),
        Nonlinearity("hardsigmoid", _hardsigmoid, lambda x: _between(x, -3.0, 3.0) / 6.0, (-3.0, 3.0), saturating=True),
        Nonlinearity("tanh", np.tanh, _dtanh, odd=True, saturating=True),
        Nonlinearity(
            "erf", erf, lambda x: 2 / math.sqrt(math.pi) * np.exp(-x * x), odd=True, saturating=True,
            mean=lambda _: 0.0, kernel=_erf_kernel, slope_kernel=_erf_slope_kernel,
        ),
        Nonlinearity(
            "sin", np.sin, np.cos, odd=True, saturating=True,
            mean=lambda _: 0.0, kernel=_sin_kernel, slope_kernel=_sin_slope_kernel,
        ),
        Nonlinearity("softsign", lambda x: x / (1 + np.abs(x)), lambda x: (1 + np.abs(x)) ** -2.0, (0.0,), odd=True, saturating=True),
        Nonlinearity("tanhshrink", _tanhshrink, lambda x: np.tanh(x) ** 2, odd=True),
        Nonlinearity("logsigmoid", lambda x: -_softplus(-x), lambda x: _sigmoid(-x)),
        Nonlinearity("silu", _silu, _dsilu),
        Nonlinearity("mish", _mish, _dmish),
        Nonlinearity("hardswish", _hardswish, _dhardswish, (-3.0, 3.0)),
        Nonlinearity(
            "quick_gelu", lambda x: x * _sigmoid(1.702 * x),
            lambda x: _sigmoid(1.702 * x) + 1.702 * x * _dsigmoid(1.702 * x),
        ),
        Nonlinearity("glu", _sigmoid, _dsigmoid, gated=True),
        Nonlinearity("swiglu", _silu, _dsilu, gated=True),
    )
}  # fmt: skip


def _elu_family(
    name: str, alpha: float, rate: float, scale: float, params: tuple[float, ...]
) -> Nonlinearity:
    """Scale * x for x > 0, scale * alpha * (exp(rate * x) - 1) below."""
    return Nonlinearity(
        name,
        lambda x: scale * np.where(x > 0, x, alpha * np.expm1(rate * np.minimum(x, 0.0))),
        lambda x: scale * np.where(x > 0, 1.0, alpha * rate * np.exp(rate * np.minimum(x, 0.0))),
        kinks=(0.0,),
        params=params,
    )


def _leaky_relu(negative_slope: float) -> Nonlinearity:
    return slope_mixture("leaky_relu", negative_slope, negative_slope**2, (negative_slope,))


def _prelu(weight: float) -> Nonlinearity:
    return slope_mixture("prelu", weight, weight**2, (weight,))


def _rrelu(lower: float, upper: float) -> Nonlinearity:
    slope = (lower + upper) / 2
    if lower > upper:
        raise InvalidValueError(
            f"rrelu: lower must be at most upper; got lower {lower:g}, upper {upper:g}."
        )
    return slope_mixture("rrelu", slope, slope**2, (lower, upper))


def _elu(alpha: float) -> Nonlinearity:
    return _elu_family("elu", alpha, 1.0, 1.0, (alpha,))


def _celu(alpha: float) -> Nonlinearity:
    finite("celu: alpha", alpha, above=0.0)
    return _elu_family("celu", alpha, 1 / alpha, 1.0, (alpha,))


def _selu() -> Nonlinearity:
    return _elu_family("selu", SELU_ALPHA, 1.0, SELU_SCALE, ())


def _threshold(threshold: float, value: float) -> Nonlinearity:
    return Nonlinearity(
        "threshold",
        lambda x: np.where(x > threshold, x, value),
        lambda x: (x > threshold).astype(float),
        kinks=(threshold,),
        params=(threshold, value),
        jumps=threshold != value,
        homogeneous=threshold == value == 0.0,
    )


def _hardshrink(lambd: float) -> Nonlinearity:
    finite("hardshrink: lambd", lambd, least=0.0)
    return Nonlinearity(
        "hardshrink",
        lambda x: np.where(np.abs(x) > lambd, x, 0.0),
        lambda x: (np.abs(x) > lambd).astype(float),
        kinks=(-lambd, lambd),
        params=(lambd,),
        jumps=lambd > 0,
        homogeneous=lambd == 0,
        odd=True,
    )


def _softshrink(lambd: float) -> Nonlinearity:
    finite("softshrink: lambd", lambd, least=0.0)
    return Nonlinearity(
        "softshrink",
        lambda x: np.sign(x) * _relu(np.abs(x) - lambd),
        lambda x: (np.abs(x) > lambd).astype(float),
        kinks=(-lambd, lambd),
        params=(lambd,),
        homogeneous=lambd == 0,
        odd=True,
    )


def _hardtanh(min_val: float, max_val: float) -> Nonlinearity:
    if min_val >= max_val:
        raise InvalidValueError(
            f"hardtanh: min_val must be below max_val; got {min_val:g} and {max_val:g}."
        )
    return Nonlinearity(
        "hardtanh",
        lambda x: np.clip(x, min_val, max_val),
        lambda x: _between(x, min_val, max_val),
        kinks=(min_val, max_val),
        params=(min_val, max_val),
        odd=min_val == -max_val,
        saturating=True,
    )


def _softplus_of(beta: float, threshold: float) -> Nonlinearity:
    """As torch: x itself where beta * x is above the threshold, a step of exp(-threshold)/beta."""
    finite("softplus: beta", beta, above=0.0)
    return Nonlinearity(
        "softplus",
        lambda x: np.where(beta * x > threshold, x, _softplus(beta * x) / beta),
        lambda x: np.where(beta * x > threshold, 1.0, _sigmoid(beta * x)),
        kinks=(threshold / beta,),
        params=(beta, threshold),
    )


def _gelu(approximate: str) -> Nonlinearity:
    if approximate == "tanh":
        return Nonlinearity("gelu", _gelu_tanh, _dgelu_tanh, params=("tanh",))
    return Nonlinearity(
        "gelu",
        lambda x: x * cdf(x),
        lambda x: cdf(x) + x * _phi(x),
        params=("none",),
        mean=lambda q: q / math.sqrt(2 * math.pi * (1 + q)),
        kernel=_gelu_kernel,
        slope_kernel=_gelu_slope_kernel,
    )


def _geglu(approximate: str) -> Nonlinearity:
    return replace(_gelu(approximate), name="geglu", gated=True)


def _reglu() -> Nonlinearity:
    return replace(_PLAIN["relu"], name="reglu", gated=True, homogeneous=False)


# name -> (builder, its parameters with torch's defaults)
_BUILDERS: dict[str, tuple[Callable[..., Nonlinearity], dict[str, Parameter]]] = {
    "leaky_relu": (_leaky_relu, {"negative_slope": 0.01}),
    "prelu": (_prelu, {"weight": 0.25}),
    "rrelu": (_rrelu, {"lower": 1 / 8, "upper": 1 / 3}),
    "elu": (_elu, {"alpha": 1.0}),
    "celu": (_celu, {"alpha": 1.0}),
    "selu": (_selu, {}),
    "threshold": (_threshold, {"threshold": 0.0, "value": 0.0}),
    "hardshrink": (_hardshrink, {"lambd": 0.5}),
    "softshrink": (_softshrink, {"lambd": 0.5}),
    "hardtanh": (_hardtanh, {"min_val": -1.0, "max_val": 1.0}),
    "softplus": (_softplus_of, {"beta": 1.0, "threshold": 20.0}),
    "gelu": (_gelu, {"approximate": "none"}),
    "geglu": (_geglu, {"approximate": "none"}),
    "reglu": (_reglu, {}),
}
_CHOICES = {"approximate": ("none", "tanh")}

LINEAR_NAMES = ("linear", *(f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3)))
ALIASES = {
    **dict.fromkeys((*LINEAR_NAMES[1:], "identity"), "linear"),
    "swish": "silu",
    "relu2": "relu_squared",
    "squared_relu": "relu_squared",
    "hard_sigmoid": "hardsigmoid",
    "hard_swish": "hardswish",
}
NOT_ELEMENTWISE = ("softmax", "log_softmax", "softmin", "softmax2d", "gumbel_softmax")
_USER: dict[str, Nonlinearity] = {}


def names() -> tuple[str, ...]:
    """Every name that `nonlinearity` knows, without the aliases; registered names last."""
    return (*sorted({**_PLAIN, **_BUILDERS}), *_USER)


def register(name: str, nl: Nonlinearity) -> None:
    """Make ``nl`` known as ``name``, in place of an earlier registration of that name.

    Raises:
        InvalidValueError: not a name, or one of the table's own.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise InvalidValueError(
            f"a nonlinearity's name must be an identifier such as 'snake'; got {name!r}."
        )
    if name in (*_PLAIN, *_BUILDERS, *ALIASES, *NOT_ELEMENTWISE):
        raise InvalidValueError(
            f"{name!r} is already a nonlinearity of torch; choose another name."
        )
    _USER[name] = nl


def nonlinearity(name: str, param: object = None) -> Nonlinearity:
    """The nonlinearity of that name.

    Args:
        name: as in torch.nn.functional, or ``linear``, ``conv2d``, ...
        param: its parameter, or a tuple of them in torch's order; None for torch's defaults.

    Raises:
        InvalidValueError: an unknown name, a function that is not elementwise, or a parameter
            that it cannot have.

    >>> str(nonlinearity("leaky_relu", 0.2))
    'leaky_relu(0.2)'
    """
    if not isinstance(name, str):
        raise InvalidValueError(
            f"expected the name of a nonlinearity such as 'relu'; got {name!r}."
        )
    if name in NOT_ELEMENTWISE:
        raise InvalidValueError(
            f"{name} is not elementwise: each output depends on a whole row, so it has no gain. "
            "Use 'linear' for the layer that feeds it."
        )
    if name not in ALIASES:
        one_of("nonlinearity", name, names())
    name = ALIASES.get(name, name)
    arguments = _arguments(name, param)
    return _USER[name] if name in _USER else _build(name, arguments)


@lru_cache(maxsize=256)
def _build(name: str, arguments: tuple[Parameter, ...]) -> Nonlinearity:
    row = _PLAIN[name] if name in _PLAIN else _BUILDERS[name][0](*arguments)
    return replace(row, fixed=True)


def _arguments(name: str, param: object) -> tuple[Parameter, ...]:
    """``param`` as the builder's arguments, torch's defaults filling the rest."""
    known = _BUILDERS[name][1] if name in _BUILDERS else {}
    given = () if param is None else param if isinstance(param, tuple) else (param,)
    if len(given) > len(known):
        takes = f"the parameters {', '.join(known)}" if known else "no parameter"
        raise InvalidValueError(f"{name} takes {takes}; got {param!r}.")
    head = tuple(_argument(name, key, value) for key, value in zip(known, given, strict=False))
    return head + tuple(known.values())[len(head) :]


def _argument(name: str, key: str, value: object) -> Parameter:
    if key in _CHOICES:
        return one_of(f"{name}: {key}", value, _CHOICES[key])
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidValueError(
            f"{key} {value!r} not a valid number: {name} expects a finite float."
        )
    return finite(f"{name}: {key}", float(value))


_TORCH_GAINS = {
    **dict.fromkeys(LINEAR_NAMES, 1.0),
    "sigmoid": 1.0,
    "tanh": 5.0 / 3,
    "relu": math.sqrt(2.0),
    "selu": 3.0 / 4,
}
TORCH_NAMES = (*_TORCH_GAINS, "leaky_relu")


def torch_gain(name: str, param: object = None) -> float:
    """What ``torch.nn.init.calculate_gain`` returns, bit for bit.

    Raises:
        InvalidValueError: (a ValueError) a name that torch does not know, or a negative slope
            that is not a number. As in torch, ``param`` is ignored by all names but leaky_relu.

    >>> torch_gain("selu"), torch_gain("leaky_relu", 1)
    (0.75, 1.0)
    """
    if name == "leaky_relu":
        slope = _argument(name, "negative_slope", 0.01 if param is None else param)
        return math.sqrt(2.0 / (1 + float(slope) ** 2))
    if not isinstance(name, str) or name not in _TORCH_GAINS:
        raise InvalidValueError(
            f"Unsupported nonlinearity {name}: torch.nn.init.calculate_gain has a value for "
            f"{', '.join(TORCH_NAMES)} alone. criterion='forward' computes one for any function."
        )
    return _TORCH_GAINS[name]
