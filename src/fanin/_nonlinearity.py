"""A name, a module or a callable -> the core's nonlinearity; and the public functions over it.

What torch knows by name keeps its closed forms. Any other elementwise callable is evaluated in
float64, differentiated by autograd, and searched for kinks, so that quadrature can split there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from . import _activations, _gains
from ._activations import Nonlinearity
from ._errors import InvalidValueError
from ._gains import DepthScales
from ._quadrature import Array

Elementwise = Callable[[Tensor], Tensor]

# module type -> (name, attributes that are its parameters)
_MODULES: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.Identity: ("linear", ()),
    nn.ReLU: ("relu", ()),
    nn.ReLU6: ("relu6", ()),
    nn.LeakyReLU: ("leaky_relu", ("negative_slope",)),
    nn.RReLU: ("rrelu", ("lower", "upper")),
    nn.ELU: ("elu", ("alpha",)),
    nn.CELU: ("celu", ("alpha",)),
    nn.SELU: ("selu", ()),
    nn.GELU: ("gelu", ("approximate",)),
    nn.SiLU: ("silu", ()),
    nn.Mish: ("mish", ()),
    nn.Hardswish: ("hardswish", ()),
    nn.Sigmoid: ("sigmoid", ()),
    nn.Hardsigmoid: ("hardsigmoid", ()),
    nn.LogSigmoid: ("logsigmoid", ()),
    nn.Tanh: ("tanh", ()),
    nn.Hardtanh: ("hardtanh", ("min_val", "max_val")),
    nn.Softsign: ("softsign", ()),
    nn.Tanhshrink: ("tanhshrink", ()),
    nn.Softplus: ("softplus", ("beta", "threshold")),
    nn.Hardshrink: ("hardshrink", ("lambd",)),
    nn.Softshrink: ("softshrink", ("lambd",)),
    nn.Threshold: ("threshold", ("threshold", "value")),
    nn.GLU: ("glu", ()),
    nn.Softmax: ("softmax", ()),
    nn.LogSoftmax: ("log_softmax", ()),
    nn.Softmin: ("softmin", ()),
    nn.Softmax2d: ("softmax2d", ()),
}
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def _functions() -> dict[Any, str]:
    """The function objects of torch -> their names."""
    names = (*_activations.names(), *_activations.NOT_ELEMENTWISE)
    homes = (torch.Tensor, torch.special, torch, functional)
    return {
        getattr(home, n): n for home in homes for n in names if callable(getattr(home, n, None))
    }


_FUNCTIONS = _functions()


def as_nonlinearity(x: object, param: object = None) -> Nonlinearity:
    """The core's nonlinearity for a name, a module, a torch function or any elementwise callable.

    A module's own parameters are read (``nn.LeakyReLU(0.2)``, the learned slopes of ``nn.PReLU``,
    averaged over channels). ``nn.RReLU`` counts as in eval mode, with its mean slope. Dropout is
    the identity in eval mode; in training mode it divides E f^2 and E f'^2 by 1 - p. In an
    ``nn.Sequential`` it may then only come last.

    Args:
        x: what computes the nonlinearity. Modules are copied before they are run.
        param: the parameter of a name or of one of torch's functions.

    Raises:
        InvalidValueError: unknown, not elementwise, random, or without a finite value.

    >>> str(as_nonlinearity(nn.LeakyReLU(0.2))), str(as_nonlinearity(torch.tanh))
    ('leaky_relu(0.2)', 'tanh')
    """
    if isinstance(x, str):
        return _activations.nonlinearity(x, param)
    named = _FUNCTIONS.get(x) if callable(x) and _hashable(x) else None
    if named is not None:
        return _activations.nonlinearity(named, param)
    if param is not None:
        raise InvalidValueError(
            f"param belongs to a name such as 'leaky_relu'; got param={param!r} with {x!r}. "
            "Bind it instead: lambda x: F.leaky_relu(x, 0.2)."
        )
    if isinstance(x, Nonlinearity):
        return x
    if isinstance(x, nn.Module):
        return _from_module(x)
    if callable(x):
        return _from_callable(getattr(x, "__name__", type(x).__name__), x)
    raise InvalidValueError(
        "expected a nonlinearity's name such as 'relu', an nn.Module such as nn.ReLU(), or an "
        f"elementwise function of a tensor such as torch.tanh; got {x!r}."
    )


def _hashable(x: object) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True


# modules -------------------------------------------------------------------------------------


def _from_module(module: nn.Module) -> Nonlinearity:
    kind = type(module)
    if kind in _MODULES:
        name, attributes = _MODULES[kind]
        return _activations.nonlinearity(
            name, tuple(getattr(module, a) for a in attributes) or None
        )
    if isinstance(module, nn.PReLU):
        return _prelu(module)
    if isinstance(module, _DROPOUTS):
        return _dropout(module)
    if kind is nn.Sequential:
        return _sequence(module)
    return _from_callable(kind.__name__, _private(module))


def _prelu(module: nn.PReLU) -> Nonlinearity:
    """The learned slopes, or those it would start with where the tensor holds none (meta)."""
    weight = module.weight
    slopes = [float(module.init)] if weight.is_meta else weight.detach().double().flatten().tolist()
    if len(slopes) == 1:
        return _activations.nonlinearity("prelu", slopes[0])
    if not all(map(math.isfinite, slopes)):
        raise InvalidValueError(
            "PReLU: its learned slopes must be finite numbers; at least one is not."
        )
    mean = math.fsum(slopes) / len(slopes)
    mean_square = math.fsum(a * a for a in slopes) / len(slopes)
    return _activations.slope_mixture("prelu", mean, mean_square, (mean,))


def _dropout(module: Any) -> Nonlinearity:
    identity = _activations.nonlinearity("linear")
    p = float(module.p)
    if not module.training or p == 0.0:
        return identity
    if p >= 1.0:
        raise InvalidValueError(f"{module}: nothing passes it, so it has no gain.")
    return replace(identity, keep=1 - p)


def _sequence(modules: nn.Module) -> Nonlinearity:
    """The composition of a Sequential's parts; dropout, if active, may only stand at the end."""
    *parts, result = [
        _activations.nonlinearity("linear"),
        *map(as_nonlinearity, modules.children()),
    ]
    while result.name == "linear" and parts:
        before, keep = parts.pop(), result.keep
        result = before if keep == 1.0 else replace(before, keep=before.keep * keep, fixed=False)
    for part in reversed(parts):
        if part.keep < 1.0:
            raise InvalidValueError(
                f"dropout before {result} makes what enters it random, and its moments are not those "
                "of a function. Call .eval() on the Sequential, or put its dropout last."
            )
        if part.name != "linear":
            result = _composed(part, result)
    return result


def _composed(first: Nonlinearity, then: Nonlinearity) -> Nonlinearity:
    if first.gated or then.gated:
        raise InvalidValueError(
            f"{first} followed by {then} is not elementwise: a gated function combines two halves. "
            "Ask for the gated function alone."
        )
    made = _activations.described(
        f"{first} > {then}",
        lambda x: then.f(first.f(x)),
        lambda x: then.df(first.f(x)) * first.df(x),
    )
    return replace(made, keep=then.keep)


def _private(module: nn.Module) -> Elementwise:
    """A float64 copy on the CPU, without hooks: running it leaves the caller's module as it was."""
    try:
        with torch.inference_mode(False):
            twin = copy.deepcopy(module).double().cpu()
    except Exception as error:
        raise InvalidValueError(
            f"{type(module).__name__} cannot be copied to be evaluated ({type(error).__name__}: {error}). "
            "Give its function instead: lambda x: ..."
        ) from error
    for part in twin.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks):  # noqa: SLF001
            hooks.clear()
    return twin


# callables -----------------------------------------------------------------------------------


def _from_callable(name: str, function: Elementwise) -> Nonlinearity:
    def value(x: Array) -> Array:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.no_grad():
            return np.asarray(function(torch.from_numpy(x.copy())).double().numpy())

    def derivative(x: Array) -> Array:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            point = torch.from_numpy(x.copy()).requires_grad_()
            y = function(point.clone())  # a clone, so that functions that work in place may
            if not y.requires_grad:
                return np.zeros_like(x)
            (slope,) = torch.autograd.grad(y.sum(), point, allow_unused=True)
            return np.zeros_like(x) if slope is None else slope.numpy()

    with torch.random.fork_rng(devices=[]):
        _check_elementwise(name, function)
    found = _activations.described(name, value, derivative)
    straight = found.homogeneous and found.odd and value(np.ones(1))[0] == 1.0
    return _activations.nonlinearity("linear") if straight else found


def _check_elementwise(name: str, function: Elementwise) -> None:
    """Refuse what depends on neighbours, on the shape or on chance."""
    x = torch.from_numpy(np.sin(np.arange(1.0, 65.0)) * 3.0)
    order = torch.from_numpy(np.argsort(np.cos(np.arange(64.0))))
    y = _run(name, function, x)
    if not torch.isfinite(y).all():
        at = int(torch.isfinite(y).logical_not().nonzero()[0])
        raise InvalidValueError(
            f"{name} is not finite everywhere: f({float(x[at]):.4g}) is {float(y[at])}."
        )
    if not _close(_run(name, function, x), y):
        raise InvalidValueError(
            f"{name} gives other values for the same input: it is random or keeps state. "
            "Put it in eval mode, or give the function without its noise."
        )
    permuted, square = _run(name, function, x[order]), _run(name, function, x.reshape(8, 8))
    single = _run(name, function, x[5:6])
    if not (
        _close(permuted, y[order]) and _close(square, y.reshape(8, 8)) and _close(single, y[5:6])
    ):
        raise InvalidValueError(
            f"{name} is not elementwise: an output depends on its neighbours or on the shape, as in a "
            "softmax or a norm. Such a function has no gain; use 'linear' for the layer that feeds it."
        )


def _run(name: str, function: Elementwise, x: Tensor) -> Tensor:
    try:
        with torch.inference_mode(False), torch.no_grad():
            y = function(x.clone())
    except Exception as error:
        raise InvalidValueError(
            f"{name} cannot be evaluated on a float64 tensor of shape {list(x.shape)}: "
            f"{type(error).__name__}: {error}. "
            "Expected an elementwise function such as torch.tanh, or a name such as 'tanh'."
        ) from error
    if isinstance(y, Tensor) and y.shape == x.shape and y.is_floating_point():
        return y
    got = f"{y.dtype} {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
    raise InvalidValueError(
        f"{name} is not elementwise: expected a real tensor of shape {list(x.shape)} for one of that shape; got {got}."
    )


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-12)


# public --------------------------------------------------------------------------------------


def gain(nonlinearity: object, param: object = None, *, criterion: str = "forward") -> float:
    r"""The factor g in std = g / sqrt(fan) that keeps a signal's size across a layer and f.

    .. math::
        \text{forward } 1/\sqrt{E f(z)^2}, \quad \text{backward } 1/\sqrt{E f'(z)^2}, \quad
        \text{fixed point } s: E f(s z)^2 = 1, \qquad z \sim N(0, 1)

    ``forward`` keeps the variance of pre-activations at 1, ``backward`` (with fan_out) that of
    gradients, ``fixed_point`` the second moment of activations; for ReLU and its leaky kin all
    three are equal. ``torch`` is ``torch.nn.init.calculate_gain``.

    Args:
        nonlinearity: a name as in torch.nn.functional, an ``nn.Module``, or any elementwise
            function of a tensor.
        param: the parameter of a name (negative slope, alpha, "tanh" for GELU, ...), or a tuple.
        criterion: "forward", "backward", "fixed_point" or "torch".

    Returns:
        The gain, to full double precision for names; to about 1e-10 for callables.

    Raises:
        InvalidValueError: unknown name or criterion, a function that is not elementwise, a
            parameter that is no number, or no such gain (bounded functions have no fixed point;
            torch knows seven names).

    >>> round(gain("gelu"), 6), round(gain(nn.LeakyReLU(0.2)), 6)
    (1.53353, 1.38675)
    >>> round(gain(lambda x: x * torch.sigmoid(x), criterion="backward"), 6)
    1.62332
    >>> gain("selu", criterion="torch")
    0.75

    Source: He et al. 2015, eq. 10 and 14; Klambauer et al. 2017 for the fixed point.
    """
    if isinstance(nonlinearity, str):
        return _gains.gain(nonlinearity, param, criterion=criterion)
    return _gains.gain(as_nonlinearity(nonlinearity, param), criterion=criterion)


def edge_of_chaos(
    nonlinearity: object, *, q: float | None = None, sigma_b2: float | None = None
) -> tuple[float, float]:
    r"""The weight and bias variances at which nearby inputs neither merge nor separate.

    .. math::
        \sigma_w^2 = 1 / E f'(\sqrt q z)^2, \qquad \sigma_b^2 = q - \sigma_w^2 E f(\sqrt q z)^2

    Args:
        nonlinearity: as for `gain`.
        q: the variance of pre-activations to be held; 1 if neither is given.
        sigma_b2: the bias variance; q is then solved for.

    Returns:
        ``(sigma_w2, sigma_b2)``: draw weights with variance sigma_w2 / fan_in and biases with
        variance sigma_b2.

    Raises:
        InvalidValueError: no such point exists (sigma_b2 would be negative, or f jumps).

    >>> [round(s, 4) for s in edge_of_chaos("tanh")], edge_of_chaos("relu")
    ([2.1533, 0.151], (2.0, 0.0))
    >>> [round(s, 5) for s in edge_of_chaos("tanh", sigma_b2=2.01e-5)]
    [1.05, 2e-05]

    Source: Schoenholz et al. 2017, arXiv 1611.01232; Pennington et al. 2017, arXiv 1711.04735.
    """
    return _gains.edge_of_chaos(as_nonlinearity(nonlinearity), q=q, sigma_b2=sigma_b2)


def depth_scales(
    nonlinearity: object, sigma_w2: float, sigma_b2: float, *, q: float = 1.0
) -> DepthScales:
    r"""Where a deep network leads its signal, and in how many layers.

    .. math:: \xi_q = -1 / \ln V'(q^*), \qquad \xi_c = -1 / \ln C'(c^*), \qquad \chi = \sigma_w^2 E f'(\sqrt{q^*} z)^2

    Args:
        nonlinearity: as for `gain`.
        sigma_w2: fan_in times the variance of a weight, > 0.
        sigma_b2: the variance of a bias, >= 0.
        q: the variance of the first layer's pre-activations; it decides between fixed points.

    Returns:
        ``(q, c, chi, xi_q, xi_c)``: the variance and the correlation that are reached, the
        gradient's growth per layer there, and the depths, in layers, over which deviations from
        them shrink by e: inf at criticality, negative where deviations grow.

    Raises:
        InvalidValueError: sigma_w2 or sigma_b2 is not a variance.

    >>> depth_scales("relu", 2.0, 0.0)
    DepthScales(q=1.0, c=1.0, chi=1.0, xi_q=inf, xi_c=inf)
    >>> [round(x, 4) for x in depth_scales("tanh", 1.0, 0.1)]
    [0.295, 1.0, 0.6888, 1.2752, 2.6828]

    Source: Schoenholz et al. 2017, arXiv 1611.01232.
    """
    return _gains.depth_scales(as_nonlinearity(nonlinearity), sigma_w2, sigma_b2, q=q)


def register_nonlinearity(name: str, function: object) -> Nonlinearity:
    """Make ``function`` known as ``name`` to everything that takes a nonlinearity's name.

    Args:
        name: an identifier that torch does not use; registering it again replaces it.
        function: an ``nn.Module`` or an elementwise function of a tensor. A module is read now:
            later changes to it are not seen.

    Returns:
        The registered value.

    Raises:
        InvalidValueError: the name is torch's, or the function is not elementwise.

    >>> _ = register_nonlinearity("snake", lambda x: x + torch.sin(x) ** 2)
    >>> round(gain("snake"), 6)
    0.874581
    """
    made = replace(as_nonlinearity(function), name=name, fixed=True)
    _activations.register(name, made)
    return made
