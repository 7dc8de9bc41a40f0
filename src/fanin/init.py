"""The drop-in for ``torch.nn.init``: ``import fanin.init as init``, nothing else changes.

The same functions, arguments, semantics and messages. What differs: values come from fanin's engine,
seeded by 64 bits of the ``generator`` that is given, else of torch's default one; every function
takes every floating point and complex dtype, memory format, DTensor, FakeTensor and torch.compile;
and an ``nn.Module`` may stand in place of its tensor. Then the fans are what the layer really sums
(`fanin.fan_of`), packed weights are drawn slice by slice, an embedding's padding row stays zero, and
a parametrized weight is written through its parametrization. docs/init.md lists it all.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ._activations import ALIASES, NOT_ELEMENTWISE, TORCH_NAMES, names, torch_gain
from ._errors import InvalidValueError, closest, finite, one_of
from ._fans import MODES
from ._init_support import Draw, Target, Weight, deprecated, fill, overridable, shape_fans, warn_if_empty
from ._nonlinearity import gain as _exact_gain
from .distributions import TruncatedNormal
from .initializers import FAMILIES, SLOPED

__all__ = [
    "calculate_gain",
    "uniform_",
    "normal_",
    "trunc_normal_",
    "constant_",
    "ones_",
    "zeros_",
    "eye_",
    "dirac_",
    "xavier_uniform_",
    "xavier_normal_",
    "kaiming_uniform_",
    "kaiming_normal_",
    "orthogonal_",
    "sparse_",
    "variance_scaling_",
    "lecun_normal_",
    "lecun_uniform_",
    "delta_orthogonal_",
    # Deprecated aliases, as torch keeps them
    "uniform",
    "normal",
    "constant",
    "eye",
    "dirac",
    "xavier_uniform",
    "xavier_normal",
    "kaiming_uniform",
    "kaiming_normal",
    "orthogonal",
    "sparse",
]

TRUNCATION = 2.0  # variance_scaling_'s truncated_normal, in sigmas: as jax, keras and timm
_SIGMA = 1.0 / TruncatedNormal(1.0, TRUNCATION).std  # of the parent, for a realised std of 1


# gains ---------------------------------------------------------------------------------------


def calculate_gain(nonlinearity: Any, param: Any = None) -> float:
    r"""The factor on the std of a weight whose output goes through ``nonlinearity``.

    torch's names keep torch's values (tanh 5/3, relu sqrt 2, leaky_relu sqrt(2 / (1 + slope^2)),
    selu 3/4, sigmoid and the linear ones 1). Every other activation of torch.nn gets the exact
    forward gain, 1 / sqrt(E f(z)^2) for z ~ N(0, 1).

    Args:
        nonlinearity: a name of torch.nn.functional; or an activation module, or an elementwise
            function of a tensor.
        param: the nonlinearity's parameter, such as leaky_relu's negative slope (default 0.01).

    Raises:
        InvalidValueError: (a ValueError) an unknown name, or a parameter that is not a number.

    >>> calculate_gain("leaky_relu", 0.2) == (2 / 1.04) ** 0.5
    True
    >>> round(calculate_gain("gelu"), 4), round(calculate_gain("silu"), 4)
    (1.5335, 1.6765)

    Sources: torch.nn.init; He et al. 2015 eq. 10; for the others `fanin.gain`.
    """
    if isinstance(nonlinearity, str) and nonlinearity in TORCH_NAMES:
        return torch_gain(nonlinearity, param)
    return _gain(nonlinearity, param)


def _gain(nonlinearity: Any, param: Any) -> float:
    if isinstance(nonlinearity, nn.Module) or callable(nonlinearity):
        return _exact_gain(nonlinearity, param)
    known = (*TORCH_NAMES, *(n for n in names() if n not in TORCH_NAMES))
    if nonlinearity not in (*known, *ALIASES, *NOT_ELEMENTWISE):
        raise InvalidValueError(
            f"Unsupported nonlinearity {nonlinearity}: known are {', '.join(known)}."
            f"{closest(str(nonlinearity), known)}"
        )
    return _exact_gain(nonlinearity, param)


# What torch.compiler.assume_constant_result sets; called, it would import Dynamo, half a second.
_gain._dynamo_marked_constant = True  # type: ignore[attr-defined]  # noqa: SLF001


# elementwise ---------------------------------------------------------------------------------


@overridable
def uniform_(
    tensor: Target,
    a: float = 0.0,
    b: float = 1.0,
    generator: torch.Generator | None = None,
    *,
    name: str = "weight",
) -> Target:
    r"""Fill with draws from U(a, b); of a complex tensor both parts.

    Unbiased in every dtype: the float32 value rounded once (torch's bfloat16 is rounded down).

    Args:
        tensor: any shape; or the module that owns it.
        a: lower bound.
        b: upper bound, >= a.
        generator: the seed is drawn from it; None for torch's default.
        name: which parameter, if a module is given.

    Returns:
        ``tensor``.

    Raises:
        InvalidValueError: a > b or not finite; also a RuntimeError, as in torch.

    >>> _ = torch.manual_seed(0)
    >>> uniform_(torch.empty(3))
    tensor([0., 0., 0.])
    """
    return fill(tensor, lambda _: ("Uniform", [a, b]), generator, name=name)


@overridable
def normal_(
    tensor: Target,
    mean: float = 0.0,
    std: float = 1.0,
    generator: torch.Generator | None = None,
    *,
    name: str = "weight",
) -> Target:
    r"""Fill with draws from N(mean, std^2); of a complex tensor std^2 is the sum over both parts.

    Args:
        tensor: any shape; or the module that owns it.
        mean: expectation.
        std: standard deviation, >= 0.
        generator: the seed is drawn from it; None for torch's default.
        name: which parameter, if a module is given.

    Returns:
        ``tensor``.

    Raises:
        InvalidValueError: a negative std, or numbers that are not finite; also a RuntimeError.

    >>> _ = torch.manual_seed(0)
    >>> normal_(torch.empty(3))
    tensor([0., 0., 0.])
    """
    return fill(tensor, lambda _: ("Normal", [std, mean]), generator, name=name)


@overridable
def trunc_normal_(
    tensor: Target,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: torch.Generator | None = None,
    *,
    name: str = "weight",
) -> Target:
    r"""Fill with draws from N(mean, std^2) given that they lie in [a, b].

    By the inverse of the distribution function: no rejection loop, so any interval costs the same,
    also one far out in a tail, and infinite bounds. With std = 0 every element is the point of
    [a, b] nearest to the mean. Of a complex tensor both parts are drawn, each with std / sqrt 2.

    Args:
        tensor: any shape; or the module that owns it.
        mean: of the normal before it is cut.
        std: of the normal before it is cut, >= 0.
        a: lower bound, absolute, as in torch: not in units of std.
        b: upper bound, >= a.
        generator: the seed is drawn from it; None for torch's default.
        name: which parameter, if a module is given.

    Returns:
        ``tensor``.

    Raises:
        InvalidValueError: a > b, a negative std, or numbers that are not finite; also a RuntimeError.

    >>> _ = torch.manual_seed(0)
    >>> trunc_normal_(torch.empty(3), a=1.0, b=float("inf"))
    tensor([0., 0., 0.])
    """
    if (mean < a - 2 * std) or (mean > b + 2 * std):
        warnings.warn(
            "mean is more than 2 std from [a, b] in nn.init.trunc_normal_. The values are exact, but "
            "from a tail: note that a and b are absolute, not in units of std.",
            stacklevel=3,
        )

    def law(weight: Weight) -> Draw:
        sigma = std / math.sqrt(2.0) if weight.dtype.is_complex else std
        return "BoundedNormal", [mean, sigma, a, b]

    return fill(tensor, law, generator, name=name)


@overridable
def constant_(tensor: Target, val: float, *, name: str = "weight") -> Target:
    """Fill with ``val``.

    Args:
        tensor: any shape and dtype; or the module that owns it.
        val: a number.
        name: which parameter, if a module is given.

    Returns:
        ``tensor``.

    >>> constant_(torch.empty(2), 0.3)
    tensor([0.3000, 0.3000])
    """
    return fill(tensor, lambda _: ("Constant", [val]), name=name)


@overridable
def ones_(tensor: Target, *, name: str = "weight") -> Target:
    """Fill with 1; see `constant_`.

    >>> ones_(nn.LayerNorm(2)).weight.data
    tensor([1., 1.])
    """
    return fill(tensor, lambda _: ("Constant", [1.0]), name=name)


@overridable
def zeros_(tensor: Target, *, name: str = "weight") -> Target:
    """Fill with 0; see `constant_`.

    >>> zeros_(nn.Linear(3, 2), name="bias").bias.data
    tensor([0., 0.])
    """
    return fill(tensor, lambda _: ("Zero", []), name=name)


# identities ----------------------------------------------------------------------------------


@overridable
def eye_(tensor: Target, *, name: str = "weight") -> Target:
    """Fill a matrix with the identity: as many inputs as possible come out unchanged.

    Args:
        tensor: 2-dimensional; or the module that owns it.
        name: which parameter, if a module is given.

    Returns:
        ``tensor``.

    Raises:
        InvalidValueError: another number of dimensions.

    >>> eye_(torch.empty(2, 3))
    tensor([[1., 0., 0.],
            [0., 1., 0.]])
    """

    def law(weight: Weight) -> Draw:
        _matrix_only(weight)
        return "Identity", []

    return fill(tensor, law, name=name)


@overridable
def dirac_(tensor: Target, groups: int = 1, *, name: str = "weight") -> Target:
    """Fill a convolution's weight so that it hands on as many input channels as possible.

    Args:
        tensor: 3- to 5-dimensional; or the convolution that owns it.
        groups: of the convolution; a module's own groups unless another number is given.
        name: which parameter, if a module is given.

    Returns:
        ``tensor``.

    Raises:
        InvalidValueError: another number of dimensions, or dim 0 not divisible by groups.

    >>> dirac_(torch.empty(2, 2, 3))[0]
    tensor([[0., 1., 0.],
            [0., 0., 0.]])
    """
    if groups == 1 and isinstance(tensor, nn.Module):
        groups = getattr(tensor, "groups", 1)

    def law(weight: Weight) -> Draw:
        if len(weight.shape) not in (3, 4, 5):
            raise InvalidValueError("Only tensors with 3, 4, or 5 dimensions are supported")
        if groups < 1 or weight.shape[0] % groups != 0:
            raise InvalidValueError("dim 0 must be divisible by groups")
        return "Dirac", [groups]

    return fill(tensor, law, name=name)


# scaled by fans ------------------------------------------------------------------------------


def _calculate_fan_in_and_fan_out(tensor: Tensor) -> tuple[int, int]:
    return shape_fans(tensor)


def _calculate_correct_fan(tensor: Tensor, mode: str) -> int:
    mode = _torch_mode(mode)
    fan_in, fan_out = shape_fans(tensor)
    return fan_in if mode == "fan_in" else fan_out


def _torch_mode(mode: str) -> str:
    mode = mode.lower()
    valid_modes = ["fan_in", "fan_out"]
    if mode not in valid_modes:
        raise InvalidValueError(f"Mode {mode} not supported, please use one of {valid_modes}")
    return mode


def _matrix_only(weight: Weight) -> None:
    if len(weight.shape) != 2:
        raise InvalidValueError("Only tensors with 2 dimensions are supported")


def _fan(fans: tuple[float, float], mode: str) -> float:
    fan_in, fan_out = fans
    if mode == "fan_avg":
        return (fan_in + fan_out) / 2
    if mode == "fan_geo_avg":
        return math.sqrt(fan_in * fan_out)
    return fan_in if mode == "fan_in" else fan_out


def _draw(family: str, std: float, weight: Weight) -> Draw:
    """A distribution of ``family`` whose realised std is ``std``."""
    if family == "normal":
        return "Normal", [std, 0.0]
    if family == "orthogonal":
        rows, columns = weight.shape[0], math.prod(weight.shape[1:])
        return "Orthogonal", [std * math.sqrt(max(rows, columns))]
    if weight.dtype.is_complex:
        std = std / math.sqrt(2.0)
    if family == "uniform":
        bound = math.sqrt(3.0) * std
        return "Uniform", [-bound, bound]
    return "TruncatedNormal", [_SIGMA * std, TRUNCATION, 0.0]


def _scaled(
    target: Target,
    family: str,
    mode: str,
    factor: float,
    generator: torch.Generator | None,
    name: str,
) -> Target:
    """Draws of std factor / sqrt(fan)."""

    def law(weight: Weight) -> Draw | None:
        fans = weight.fans()
        return None if 0 in weight.shape else _draw(family, factor / math.sqrt(_fan(fans, mode)), weight)

    return fill(target, law, generator, name=name)


@overridable
def xavier_uniform_(
    tensor: Target,
    gain: float = 1.0,
    generator: torch.Generator | None = None,
    *,
    name: str = "weight",
) -> Target:
    r"""Fill with U(-b, b), b = gain sqrt(6 / (fan_in + fan_out)). Also known as Glorot's.

    Args:
        tensor: at least 2-dimensional, its fans read off the shape; or the module that owns it, its
            fans exact.
        gain: factor on the std, >= 0.
        generator: the seed is drawn from it; None for torch's default.
        name: which parameter, if a module is given.

    Returns:
        ``tensor``; one without elements is left as it is, with a warning.

    Raises:
        InvalidValueError: fewer than 2 dimensions, or a negative gain.

    >>> _ = torch.manual_seed(0)
    >>> xavier_uniform_(torch.empty(2, 4), calculate_gain("relu"))
    tensor([0., 0., 0.])

    Source: Glorot & Bengio 2010, eq. 16.
    """
    if warn_if_empty(tensor, least_dims=2):
        return tensor
    return _scaled(tensor, "uniform", "fan_avg", gain, generator, name)


@overridable
def xavier_normal_(
    tensor: Target,
    gain: float = 1.0,
    generator: torch.Generator | None = None,
    *,
    name: str = "weight",
) -> Target:
    r"""Fill with N(0, std^2), std = gain sqrt(2 / (fan_in + fan_out)); else as `xavier_uniform_`.

    >>> _ = torch.manual_seed(0)
    >>> xavier_normal_(torch.empty(2, 4))
    tensor([0., 0., 0.])

    Source: Glorot & Bengio 2010, eq. 12.
    """
    if warn_if_empty(tensor, least_dims=2):
        return tensor
    return _scaled(tensor, "normal", "fan_avg", gain, generator, name)


@overridable
def kaiming_uniform_(
    tensor: Target,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: Any = "leaky_relu",
    generator: torch.Generator | None = None,
    *,
    name: str = "weight",
) -> Target:
    r"""Fill with U(-b, b), b = gain sqrt(3 / fan). Also known as He's.

    Args:
        tensor: at least 2-dimensional, its fans read off the shape (a weight used as ``x @ w`` goes
            in as ``w.T``); or the module that owns it, its fans exact.
        a: slope of leaky_relu or prelu for x < 0; other nonlinearities ignore it.
        mode: fan_in keeps the variance of the signal, fan_out that of the gradient.
        nonlinearity: whatever `calculate_gain` takes.
        generator: the seed is drawn from it; None for torch's default.
        name: which parameter, if a module is given.

    Returns:
        ``tensor``; one without elements is left as it is, with a warning.

    Raises:
        InvalidValueError: fewer than 2 dimensions, an unknown mode or nonlinearity.

    >>> _ = torch.manual_seed(0)
    >>> kaiming_uniform_(torch.empty(2, 4), nonlinearity="relu")
    tensor([0., 0., 0.])

    Source: He et al. 2015, eq. 10 and 14.
    """
    if warn_if_empty(tensor):
        return tensor
    return _scaled(tensor, "uniform", _torch_mode(mode), _kaiming_gain(nonlinearity, a), generator, name)


@overridable
def kaiming_normal_(
    tensor: Target,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: Any = "leaky_relu",
    generator: torch.Generator | None = None,
    *,
    name: str = "weight",
) -> Target:
    r"""Fill with N(0, std^2), std = gain / sqrt(fan); else as `kaiming_uniform_`.

    >>> layer = nn.ConvTranspose2d(512, 8, 4, stride=2)
    >>> _ = torch.manual_seed(0)
    >>> round((kaiming_normal_(layer, nonlinearity="linear").weight.std() * 2048**0.5).item(), 1)
    1.0

    Source: He et al. 2015, eq. 10 and 14.
    """
    if warn_if_empty(tensor):
        return tensor
    return _scaled(tensor, "normal", _torch_mode(mode), _kaiming_gain(nonlinearity, a), generator, name)


def _kaiming_gain(nonlinearity: Any, a: float) -> float:
    return calculate_gain(nonlinearity, a if nonlinearity in SLOPED else None)


@overridable
def variance_scaling_(
    tensor: Target,
    scale: float = 1.0,
    mode: str = "fan_in",
    distribution: str = "normal",
    generator: torch.Generator | None = None,
    *,
    name: str = "weight",
) -> Target:
    r"""Fill with a distribution whose realised std is sqrt(scale / fan).

    Args:
        tensor: at least 2-dimensional, its fans read off the shape; or the module that owns it, its
            fans exact.
        scale: variance times fan, >= 0.
        mode: fan_in, fan_out, fan_avg or fan_geo_avg.
        distribution: normal, uniform, truncated_normal (cut at 2 sigmas of a wider parent) or
            orthogonal.
        generator: the seed is drawn from it; None for torch's default.
        name: which parameter, if a module is given.

    Returns:
        ``tensor``; one without elements is left as it is, with a warning.

    Raises:
        InvalidValueError: fewer than 2 dimensions, a negative scale, an unknown mode or distribution.

    >>> _ = torch.manual_seed(0)
    >>> round(variance_scaling_(torch.empty(64, 256), 2.0).std().item() * 128**0.5, 2)
    1.0

    Source: jax.nn.initializers.variance_scaling.
    """
    one_of("mode", mode, MODES, "For a linear layer that feeds a ReLU use fan_in.")
    one_of("distribution", distribution, FAMILIES)
    factor = math.sqrt(finite("scale", scale, least=0.0))
    if warn_if_empty(tensor, least_dims=2):
        return tensor
    return _scaled(tensor, distribution, mode, factor, generator, name)


@overridable
def lecun_normal_(
    tensor: Target, generator: torch.Generator | None = None, *, name: str = "weight"
) -> Target:
    r"""Fill with N(0, 1 / fan_in); else as `variance_scaling_`.

    >>> _ = torch.manual_seed(0)
    >>> lecun_normal_(torch.empty(2, 4))
    tensor([0., 0., 0.])

    Sources: LeCun et al. 1998, section 4.6; Klambauer et al. 2017 (SELU).
    """
    if warn_if_empty(tensor, least_dims=2):
        return tensor
    return _scaled(tensor, "normal", "fan_in", 1.0, generator, name)


@overridable
def lecun_uniform_(
    tensor: Target, generator: torch.Generator | None = None, *, name: str = "weight"
) -> Target:
    r"""Fill with U(-b, b), b = sqrt(3 / fan_in); else as `variance_scaling_`.

    >>> _ = torch.manual_seed(0)
    >>> lecun_uniform_(torch.empty(2, 4))
    tensor([0., 0., 0.])

    Source: LeCun et al. 1998, section 4.6.
    """
    if warn_if_empty(tensor, least_dims=2):
        return tensor
    return _scaled(tensor, "uniform", "fan_in", 1.0, generator, name)


# whole matrices ------------------------------------------------------------------------------


@overridable
def orthogonal_(
    tensor: Target,
    gain: float = 1,
    generator: torch.Generator | None = None,
    *,
    name: str = "weight",
) -> Target:
    r"""Fill with gain times a (semi-)orthogonal matrix, uniform over all of them; unitary if complex.

    Args:
        tensor: at least 2-dimensional, flattened behind dim 0; or the module that owns it, each gate
            of an LSTM, each of q, k, v and each group of a convolution orthogonal by itself.
        gain: every singular value.
        generator: the seed is drawn from it; None for torch's default.
        name: which parameter, if a module is given.

    Returns:
        ``tensor``.

    Raises:
        InvalidValueError: fewer than 2 dimensions.

    >>> _ = torch.manual_seed(0)
    >>> w = orthogonal_(torch.empty(3, 5))
    >>> torch.allclose(w @ w.T, torch.eye(3), atol=1e-6)
    True

    Sources: Saxe, McClelland & Ganguli 2014; Stewart 1980 (the Haar measure by reflectors).
    """

    def law(weight: Weight) -> Draw | None:
        if len(weight.shape) < 2:
            raise InvalidValueError("Only tensors with 2 or more dimensions are supported")
        return None if 0 in weight.shape else ("Orthogonal", [gain])

    return fill(tensor, law, generator, name=name)


@overridable
def delta_orthogonal_(
    tensor: Target,
    gain: float = 1.0,
    generator: torch.Generator | None = None,
    *,
    name: str = "weight",
) -> Target:
    r"""Fill a convolution's centre tap with gain times a (semi-)orthogonal matrix, the rest with 0.

    With at most as many inputs as outputs, stride 1 and circular padding, the layer is an isometry.

    Args:
        tensor: (out, in, *kernel), 3- to 5-dimensional; or the convolution that owns it.
        gain: every singular value of the centre tap.
        generator: the seed is drawn from it; None for torch's default.
        name: which parameter, if a module is given.

    Returns:
        ``tensor``.

    Raises:
        InvalidValueError: another number of dimensions.

    >>> _ = torch.manual_seed(0)
    >>> centre = delta_orthogonal_(torch.empty(4, 3, 3, 3))[:, :, 1, 1]
    >>> torch.allclose(centre.T @ centre, torch.eye(3), atol=1e-6)
    True

    Source: Xiao et al. 2018, "Dynamical isometry and a mean field theory of CNNs", algorithm 1.
    """

    def law(weight: Weight) -> Draw | None:
        if len(weight.shape) not in (3, 4, 5):
            raise InvalidValueError("Only tensors with 3, 4, or 5 dimensions are supported")
        return None if 0 in weight.shape else ("DeltaOrthogonal", [gain])

    return fill(tensor, law, generator, name=name)


@overridable
def sparse_(
    tensor: Target,
    sparsity: float,
    std: float = 0.01,
    generator: torch.Generator | None = None,
    *,
    name: str = "weight",
) -> Target:
    r"""Fill a matrix with N(0, std^2), then set ceil(sparsity rows) of each column to 0 at random.

    Args:
        tensor: 2-dimensional; or the module that owns it.
        sparsity: share of zeros per column, in [0, 1].
        std: standard deviation of the others.
        generator: zeros and values are both drawn from its seed; None for torch's default.
        name: which parameter, if a module is given.

    Returns:
        ``tensor``.

    Raises:
        InvalidValueError: another number of dimensions, or a sparsity outside [0, 1].

    >>> (sparse_(torch.empty(10, 4), sparsity=0.25) == 0).sum(0)
    tensor([3, 3, 3, 3])

    Source: Martens 2010, "Deep learning via Hessian-free optimization".
    """

    def law(weight: Weight) -> Draw:
        _matrix_only(weight)
        return "Sparse", [sparsity, std]

    return fill(tensor, law, generator, name=name)


# deprecated ----------------------------------------------------------------------------------

uniform = deprecated(uniform_)
normal = deprecated(normal_)
constant = deprecated(constant_)
eye = deprecated(eye_)
dirac = deprecated(dirac_)
xavier_uniform = deprecated(xavier_uniform_)
xavier_normal = deprecated(xavier_normal_)
kaiming_uniform = deprecated(kaiming_uniform_)
kaiming_normal = deprecated(kaiming_normal_)
orthogonal = deprecated(orthogonal_)
sparse = deprecated(sparse_)
