"""The drop-in for ``torch.nn.init``: ``import fanin.init as init``, nothing else changes.

Same names, arguments, semantics and messages. Values come from fanin's engine, so they differ from
torch's; docs/init.md tells what else is better. Arguments and results that all functions share:

    tensor     to be filled in place: real or complex, any memory format, meta, fake, a DTensor.
               Fans are torch's, read off its shape. Or the nn.Module that owns it: then fans are
               what the layer sums (`fanin.fan_of`), packed weights are drawn slice by slice, an
               embedding's padding row stays 0, and parametrizations are written through.
    generator  gives the 64 bits of the seed; None for torch's default, so torch.manual_seed rules.
    name       of the parameter, where a module is given; may be dotted: "out_proj.weight".
    returns    ``tensor``. What scales with fans leaves an empty tensor alone, with a warning.
    raises     InvalidValueError, which is a ValueError, and a RuntimeError too where torch raises
               that; ModelError, a RuntimeError, for a lazy parameter or a computed copy. Nothing
               was written then.
"""

# ruff: noqa: D417 - the arguments that all functions share are documented once, above

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import nn

from ._activations import TORCH_NAMES, torch_gain
from ._errors import InvalidValueError, one_of
from ._fans import MODES
from ._init_op import Draw
from ._init_support import (
    Target,
    Weight,
    check_convolution,
    correct_fan,
    deprecated,
    fill,
    fill_scaled,
    matrix_law,
    other_gain,
    overridable,
    shape_fans,
    torch_mode,
)
from .initializers import FAMILIES, SLOPED

__all__ = [
    "calculate_gain", "constant", "constant_", "delta_orthogonal_", "dirac", "dirac_", "eye",
    "eye_", "kaiming_normal", "kaiming_normal_", "kaiming_uniform", "kaiming_uniform_",
    "lecun_normal_", "lecun_uniform_", "normal", "normal_", "ones_", "orthogonal", "orthogonal_",
    "sparse", "sparse_", "trunc_normal_", "uniform", "uniform_", "variance_scaling_",
    "xavier_normal", "xavier_normal_", "xavier_uniform", "xavier_uniform_", "zeros_",
]  # fmt: skip

Gen = torch.Generator | None


def calculate_gain(nonlinearity: Any, param: Any = None) -> float:
    """The factor on the std of a weight whose output goes through ``nonlinearity``.

    torch's names keep torch's values: linear ones and sigmoid 1, tanh 5/3, relu sqrt 2, leaky_relu
    sqrt(2 / (1 + slope^2)), selu 3/4. Every other elementwise activation of torch.nn gets its exact
    forward gain, 1 / sqrt(E f(z)^2) for z ~ N(0, 1).

    Args:
        nonlinearity: a name of torch.nn.functional, an activation module, or an elementwise function.
        param: its parameter, such as leaky_relu's negative slope (default 0.01).

    Raises:
        InvalidValueError: an unknown name (known ones are listed), or a param that is not a number.

    >>> calculate_gain("leaky_relu", 0.2) == (2 / 1.04) ** 0.5
    True
    >>> round(calculate_gain("gelu"), 4), round(calculate_gain("silu"), 4)
    (1.5335, 1.6765)

    Sources: torch.nn.init; He et al. 2015 eq. 10; for the others `fanin.gain`.
    """
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        if isinstance(slope, bool) or not isinstance(slope, (int, float)):
            raise InvalidValueError(f"negative_slope {param} not a valid number")
        return math.sqrt(2.0 / (1 + slope**2))
    if isinstance(nonlinearity, str) and nonlinearity in TORCH_NAMES:
        return torch_gain(nonlinearity)
    return other_gain(nonlinearity, param)


# elementwise ---------------------------------------------------------------------------------


@overridable
def uniform_(
    tensor: Target, a: float = 0.0, b: float = 1.0, generator: Gen = None, *, name: str = "weight"
) -> Target:
    """Fill with draws from U(a, b); of a complex tensor both parts.

    Unbiased in every dtype: the float32 value rounded once, where torch's bfloat16 is rounded down.

    Args:
        a: lower bound.
        b: upper bound, >= a.

    >>> uniform_(torch.empty(3), generator=torch.Generator().manual_seed(0))
    tensor([0.4745, 0.3484, 0.5830])
    """
    return fill(tensor, ("Uniform", [a, b]), generator, name=name)


@overridable
def normal_(
    tensor: Target,
    mean: float = 0.0,
    std: float = 1.0,
    generator: Gen = None,
    *,
    name: str = "weight",
) -> Target:
    """Fill with draws from N(mean, std^2); of a complex tensor std^2 is the sum over both parts.

    Args:
        mean: expectation.
        std: standard deviation, >= 0.

    >>> normal_(torch.empty(3), generator=torch.Generator().manual_seed(0))
    tensor([-0.1953, -0.3728, -2.2163])
    """
    return fill(tensor, ("Normal", [std, mean]), generator, name=name)


@overridable
def trunc_normal_(  # noqa: PLR0917 - torch's order
    tensor: Target,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Gen = None,
    *,
    name: str = "weight",
) -> Target:
    """Fill with draws from N(mean, std^2) given that they lie in [a, b].

    By the inverse of the distribution function: without a rejection loop, any interval costs the
    same, far out in a tail or with an infinite bound. With std 0 every element is the point of
    [a, b] nearest to the mean. Of a complex tensor both parts are drawn, with std / sqrt 2.

    Args:
        mean: of the normal before it is cut.
        std: of the normal before it is cut, >= 0.
        a: lower bound, absolute: as in torch, not in units of std.
        b: upper bound, likewise; >= a.

    >>> trunc_normal_(torch.empty(3), a=1.0, b=float("inf"), generator=torch.Generator().manual_seed(0))
    tensor([1.3827, 1.2625, 1.5051])
    """
    if (mean < a - 2 * std or mean > b + 2 * std) and not torch.compiler.is_compiling():
        warnings.warn(
            "mean is more than 2 std from [a, b] in nn.init.trunc_normal_. The values are exact, but "
            "from a tail. Note that a and b are absolute, not in units of std.",
            stacklevel=3,
        )

    def law(weight: Weight) -> Draw:
        sigma = std / math.sqrt(2.0) if weight.dtype.is_complex else std
        return "BoundedNormal", [mean, sigma, a, b]

    return fill(tensor, law, generator, name=name)


@overridable
def constant_(tensor: Target, val: float, *, name: str = "weight") -> Target:
    """Fill with ``val``, any number that the dtype holds.

    >>> constant_(torch.empty(2), 0.3)
    tensor([0.3000, 0.3000])
    """
    return fill(tensor, ("Constant", [val]), name=name)


@overridable
def ones_(tensor: Target, *, name: str = "weight") -> Target:
    """Fill with 1.

    >>> ones_(nn.LayerNorm(2)).weight.data
    tensor([1., 1.])
    """
    return fill(tensor, ("Constant", [1.0]), name=name)


@overridable
def zeros_(tensor: Target, *, name: str = "weight") -> Target:
    """Fill with 0.

    >>> zeros_(nn.Linear(3, 2), name="bias").bias.data
    tensor([0., 0.])
    """
    return fill(tensor, ("Zero", []), name=name)


# scaled by fans ------------------------------------------------------------------------------

_calculate_fan_in_and_fan_out = shape_fans
_calculate_correct_fan = correct_fan


@overridable
def xavier_uniform_(
    tensor: Target, gain: float = 1.0, generator: Gen = None, *, name: str = "weight"
) -> Target:
    """Fill with U(-b, b), b = gain sqrt(6 / (fan_in + fan_out)). Also known as Glorot's.

    Args:
        tensor: at least 2-dimensional.
        gain: factor on the std, >= 0.

    >>> xavier_uniform_(torch.empty(2, 3), calculate_gain("relu"), generator=torch.Generator().manual_seed(0))
    tensor([[-0.0791, -0.4698,  0.2573],
            [ 0.1376,  1.4616, -0.9924]])

    Source: Glorot & Bengio 2010, eq. 12 and 16.
    """
    return fill_scaled(tensor, "uniform", gain, "fan_avg", generator=generator, name=name)


@overridable
def xavier_normal_(
    tensor: Target, gain: float = 1.0, generator: Gen = None, *, name: str = "weight"
) -> Target:
    """Fill with N(0, std^2), std = gain sqrt(2 / (fan_in + fan_out)); see `xavier_uniform_`.

    >>> xavier_normal_(torch.empty(2, 3), generator=torch.Generator().manual_seed(0))
    tensor([[-0.1235, -0.2358, -1.4017],
            [ 0.1410, -0.5151,  0.4324]])
    """
    return fill_scaled(tensor, "normal", gain, "fan_avg", generator=generator, name=name)


@overridable
def kaiming_uniform_(
    tensor: Target,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: Any = "leaky_relu",
    generator: Gen = None,
    *,
    name: str = "weight",
) -> Target:
    """Fill with U(-b, b), b = gain sqrt(3 / fan). Also known as He's.

    Args:
        tensor: at least 2-dimensional, a weight that is used as ``x @ w`` as ``w.T``.
        a: slope of leaky_relu or prelu for x < 0; other nonlinearities ignore it.
        mode: fan_in keeps the variance of the signal, fan_out that of the gradient.
        nonlinearity: whatever `calculate_gain` takes.

    >>> kaiming_uniform_(torch.empty(2, 3), nonlinearity="relu", generator=torch.Generator().manual_seed(0))
    tensor([[-0.0723, -0.4289,  0.2349],
            [ 0.1256,  1.3343, -0.9059]])

    Source: He et al. 2015, eq. 10 and 14.
    """
    gain = calculate_gain(nonlinearity, a if nonlinearity in SLOPED else None)
    mode = torch_mode(mode)
    return fill_scaled(tensor, "uniform", gain, mode, least_dims=0, generator=generator, name=name)


@overridable
def kaiming_normal_(
    tensor: Target,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: Any = "leaky_relu",
    generator: Gen = None,
    *,
    name: str = "weight",
) -> Target:
    """Fill with N(0, std^2), std = gain / sqrt(fan); see `kaiming_uniform_`.

    >>> layer = kaiming_normal_(nn.ConvTranspose2d(512, 8, 4, stride=2), nonlinearity="linear")
    >>> round(layer.weight.std().item() * 2048**0.5, 1)  # fan_in is 512 * 4 * 4 / (2 * 2)
    1.0
    """
    gain = calculate_gain(nonlinearity, a if nonlinearity in SLOPED else None)
    mode = torch_mode(mode)
    return fill_scaled(tensor, "normal", gain, mode, least_dims=0, generator=generator, name=name)


@overridable
def variance_scaling_(
    tensor: Target,
    scale: float = 1.0,
    mode: str = "fan_in",
    distribution: str = "normal",
    generator: Gen = None,
    *,
    name: str = "weight",
) -> Target:
    """Fill with a distribution whose realised std is sqrt(scale / fan).

    Args:
        tensor: at least 2-dimensional.
        scale: variance times fan, >= 0.
        mode: fan_in, fan_out, fan_avg or fan_geo_avg.
        distribution: normal, uniform, truncated_normal (at 2 sigmas of a wider parent) or orthogonal.

    >>> variance_scaling_(torch.empty(2, 3), 2.0, "fan_avg", "truncated_normal", generator=torch.Generator().manual_seed(0))
    tensor([[-0.0622, -0.3774,  0.2034],
            [ 0.1083,  1.6752, -0.8767]])

    Source: jax.nn.initializers.variance_scaling.
    """
    one_of("mode", mode, MODES, "For a linear layer that feeds a ReLU use fan_in.")
    one_of("distribution", distribution, FAMILIES)
    if not 0.0 <= scale < math.inf:
        raise InvalidValueError(f"scale must be a finite number >= 0; got {scale!r}.")
    return fill_scaled(tensor, distribution, math.sqrt(scale), mode, generator=generator, name=name)


@overridable
def lecun_normal_(tensor: Target, generator: Gen = None, *, name: str = "weight") -> Target:
    """Fill with N(0, 1 / fan_in); see `variance_scaling_`.

    >>> lecun_normal_(torch.empty(2, 3), generator=torch.Generator().manual_seed(0))
    tensor([[-0.1128, -0.2153, -1.2796],
            [ 0.1287, -0.4702,  0.3947]])

    Sources: LeCun et al. 1998, section 4.6; Klambauer et al. 2017 (SELU).
    """
    return fill_scaled(tensor, "normal", 1.0, "fan_in", generator=generator, name=name)


@overridable
def lecun_uniform_(tensor: Target, generator: Gen = None, *, name: str = "weight") -> Target:
    """Fill with U(-b, b), b = sqrt(3 / fan_in); see `lecun_normal_`.

    >>> lecun_uniform_(torch.empty(2, 3), generator=torch.Generator().manual_seed(0))
    tensor([[-0.0511, -0.3033,  0.1661],
            [ 0.0888,  0.9435, -0.6406]])
    """
    return fill_scaled(tensor, "uniform", 1.0, "fan_in", generator=generator, name=name)


# whole matrices ------------------------------------------------------------------------------


@overridable
def eye_(tensor: Target, *, name: str = "weight") -> Target:
    """Fill a matrix with the identity: as many inputs as possible come out unchanged.

    >>> eye_(torch.empty(2, 3))
    tensor([[1., 0., 0.],
            [0., 1., 0.]])
    """
    return fill(tensor, matrix_law(("Identity", [])), name=name)


@overridable
def sparse_(
    tensor: Target,
    sparsity: float,
    std: float = 0.01,
    generator: Gen = None,
    *,
    name: str = "weight",
) -> Target:
    """Fill a matrix with N(0, std^2), and ceil(sparsity rows) elements of each column with 0.

    Args:
        tensor: 2-dimensional.
        sparsity: share of zeros per column, in [0, 1].
        std: standard deviation of the others.
        generator: zeros and values both come from its seed.

    >>> (sparse_(torch.empty(10, 4), sparsity=0.25) == 0).sum(0)
    tensor([3, 3, 3, 3])

    Source: Martens 2010, "Deep learning via Hessian-free optimization", section 5.
    """
    return fill(tensor, matrix_law(("Sparse", [sparsity, std])), generator, name=name)


@overridable
def orthogonal_(
    tensor: Target,
    gain: float = 1,
    generator: Gen = None,
    *,
    reproducible: bool = True,
    name: str = "weight",
) -> Target:
    """Fill with gain times a (semi-)orthogonal matrix, uniform over all; unitary if complex.

    Args:
        tensor: at least 2-dimensional, flattened behind dim 0. Of a module each gate of an LSTM,
            each of q, k and v, each group of a convolution is orthogonal by itself.
        gain: every singular value.
        reproducible: False is about twice as fast, with the same matrix to 3e-6: its last bits hold
            for one machine and number of threads only.

    >>> w = orthogonal_(torch.empty(3, 5))
    >>> torch.allclose(w @ w.T, torch.eye(3), atol=1e-6)
    True

    Sources: Saxe, McClelland & Ganguli 2014; Stewart 1980 (the uniform measure by reflectors).
    """

    def law(weight: Weight) -> Draw | None:
        if len(weight.shape) < 2:
            raise InvalidValueError("Only tensors with 2 or more dimensions are supported")
        return None if 0 in weight.shape else ("Orthogonal", [gain, float(reproducible)])

    return fill(tensor, law, generator, name=name)


@overridable
def delta_orthogonal_(
    tensor: Target,
    gain: float = 1.0,
    generator: Gen = None,
    *,
    reproducible: bool = True,
    name: str = "weight",
) -> Target:
    """Fill a convolution's centre tap with gain times a (semi-)orthogonal matrix, the rest with 0.

    With at most as many inputs as outputs, stride 1 and circular padding it is an isometry.

    Args:
        tensor: (out, in, *kernel), 3- to 5-dimensional; see `orthogonal_`.
        gain: every singular value of the centre tap.
        reproducible: as of `orthogonal_`.

    >>> centre = delta_orthogonal_(torch.empty(4, 3, 3, 3))[:, :, 1, 1]
    >>> torch.allclose(centre.T @ centre, torch.eye(3), atol=1e-6)
    True

    Source: Xiao et al. 2018, "Dynamical isometry and a mean field theory of CNNs", algorithm 1.
    """

    def law(weight: Weight) -> Draw | None:
        check_convolution(weight)
        return None if 0 in weight.shape else ("DeltaOrthogonal", [gain, float(reproducible)])

    return fill(tensor, law, generator, name=name)


@overridable
def dirac_(tensor: Target, groups: int = 1, *, name: str = "weight") -> Target:
    """Fill a convolution's weight so that as many inputs as possible come out unchanged.

    Args:
        tensor: 3- to 5-dimensional.
        groups: of the convolution; a module's own unless another number is given.

    >>> dirac_(torch.empty(2, 2, 3))[0]
    tensor([[0., 1., 0.],
            [0., 0., 0.]])
    """
    own = getattr(tensor, "groups", 1) if isinstance(tensor, nn.Module) else 1
    groups = own if groups == 1 else groups

    def law(weight: Weight) -> Draw:
        check_convolution(weight)
        if groups < 1 or weight.shape[0] % groups != 0:
            raise InvalidValueError("dim 0 must be divisible by groups")
        return "Dirac", [groups]

    return fill(tensor, law, name=name)


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
