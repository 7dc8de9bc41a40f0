"""What the functions of `fanin.init` share: who takes the call, where to write, with which fans.

A function says what to draw, as a `Law` of a weight's shape and fans. `fill` finds where: in the
tensor it was given, or slice by slice in a module's parameter, whose fans are exact.
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ._activations import ALIASES, NOT_ELEMENTWISE, TORCH_NAMES, names
from ._apply import check_parametrization, write_through
from ._errors import InvalidValueError, ModelError, UncoveredParameterError, closest
from ._facts import PartInfo
from ._fans import Fan
from ._init_op import Draw, InitLazyError, check, put, put_at_once, seed_for
from ._layouts import Spec, specs_of, tensor_of
from ._nonlinearity import gain
from ._roles import Slot, slots_of
from ._shards import index_of, is_dtensor
from .distributions import TruncatedNormal

KEY = "fanin.init"  # every call has a seed of its own, so one stream's name serves them all
EMPTY = "Initializing zero-element tensors is a no-op"
FEW_DIMS = "Fan in and fan out can not be computed for tensor with fewer than 2 dimensions"
PER_GROUP = ("Orthogonal", "DeltaOrthogonal")  # of a grouped convolution, each group by itself

Target = TypeVar("Target", bound=Tensor | nn.Module)
P = ParamSpec("P")
R = TypeVar("R")


class Weight(NamedTuple):
    """What a law may know of the tensor, or slice of one, that it is for."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    fans: Callable[[], tuple[float, float]]  # (fan_in, fan_out), or the error that says why not


Law = Callable[[Weight], Draw | None]  # None: there is nothing to write


# who takes the call --------------------------------------------------------------------------


def overridable(function: Callable[P, R]) -> Callable[P, R]:
    """Let the ``__torch_function__`` of a tensor, or of a mode, take the call."""
    signature = inspect.signature(function)
    ours = {k: p.default for k, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        target = args[0] if args else kwargs.get("tensor")
        # A lazy parameter would answer for itself, without saying what to do.
        if not isinstance(target, Tensor) or isinstance(target, UninitializedTensorMixin):
            return function(*args, **kwargs)
        if not has_torch_function_variadic(target):
            return function(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        # torch's functions have no such arguments.
        given = {k: v for k, v in bound.arguments.items() if k not in ours or v != ours[k]}
        return handle_torch_function(call, (target,), **given)  # type: ignore[call-arg]

    return call


def deprecated(function: Callable[P, R]) -> Callable[P, R]:
    """The alias without the underscore, which warns as torch's does."""
    new = function.__name__
    old = new[:-1]

    @functools.wraps(function)
    def alias(*args: P.args, **kwargs: P.kwargs) -> R:
        message = f"`nn.init.{old}` is now deprecated in favor of `nn.init.{new}`."
        warnings.warn(message, FutureWarning, stacklevel=2)
        return function(*args, **kwargs)

    alias.__name__ = alias.__qualname__ = old
    alias.__doc__ = f"Deprecated: use `{new}`."
    return alias


# tensors -------------------------------------------------------------------------------------


def fill(
    target: Target, law: Law | Draw, generator: Generator | None = None, *, name: str
) -> Target:
    """Fill a tensor, or a module's parameter ``name``, with what ``law`` says; return the target.

    ``law``: or the draw itself, where it is the same for every weight.
    """
    if isinstance(target, nn.Module):
        _fill_module(target, (lambda _: law) if isinstance(law, tuple) else law, generator, name)
        return target
    compiling = torch.compiler.is_compiling()
    _check_lasting(target, compiling=compiling)
    draw = law if isinstance(law, tuple) else law(_weight(target))
    if draw is None or (not compiling and put_at_once(target, draw, KEY, generator)):
        return target
    if not compiling:
        check(draw, target.dtype)
    put(target, draw, KEY, seed_for(target, draw, generator))
    return target


def _weight(tensor: Tensor) -> Weight:
    return Weight(tuple(tensor.shape), tensor.dtype, lambda: shape_fans(tensor))


def shape_fans(tensor: Tensor) -> tuple[int, int]:
    """Torch's fans: dim 1 is the input, dim 0 the output, the rest are taps.

    Raises:
        InvalidValueError: fewer than two dimensions.
    """
    if tensor.dim() < 2:
        raise InvalidValueError(FEW_DIMS)
    taps = 1
    for length in tensor.shape[2:]:  # torch.compile traces symbolic sizes through this
        taps *= length
    return tensor.shape[1] * taps, tensor.shape[0] * taps


def _check_lasting(tensor: object, *, compiling: bool) -> None:
    """Raise unless what is written into ``tensor`` lasts."""
    if not isinstance(tensor, Tensor):
        raise InvalidValueError(
            f"expected a torch.Tensor to fill in place, or the nn.Module that owns it; got {tensor!r}."
        )
    if isinstance(tensor, UninitializedTensorMixin):
        raise InitLazyError(
            "this parameter is lazy and has no shape yet. Run the model once on an example batch "
            "first, then initialise it."
        )
    if compiling:
        return  # a traced tensor does not tell what it is a view of
    owner = tensor._base if tensor._is_view() else tensor  # noqa: SLF001 - torch has no public name
    if owner is not None and (
        not owner.is_leaf or (owner is not tensor and _is_moved(tensor, owner))
    ):
        raise ModelError(
            f"this tensor of shape {tuple(tensor.shape)} is computed ({tensor.grad_fn}): neither a "
            "parameter nor a view of one, so what is written into it is lost. For a weight behind "
            "weight_norm, spectral_norm or another parametrization pass the module itself, as in "
            "init.kaiming_normal_(module). For rows such as w[[0, 1]] pass views: w[0], w[0:2]."
        )


def _is_moved(view: Tensor, owner: Tensor) -> bool:
    """Whether this view of a DTensor was gathered from other ranks, so that it shares no memory."""
    if not is_dtensor(view):
        return False
    with torch.no_grad():
        here, there = (t.to_local().untyped_storage().data_ptr() for t in (view, owner))  # type: ignore[attr-defined]
    return here != there


# gains ---------------------------------------------------------------------------------------


def other_gain(nonlinearity: Any, param: Any) -> float:
    """The exact gain of what torch has no gain for."""
    if not callable(nonlinearity):
        known = (*TORCH_NAMES, *(n for n in names() if n not in TORCH_NAMES))
        if nonlinearity not in (*known, *ALIASES, *NOT_ELEMENTWISE):
            raise InvalidValueError(
                f"Unsupported nonlinearity {nonlinearity}; known are {', '.join(known)}."
                f"{closest(str(nonlinearity), known)}"
            )
    return gain(nonlinearity, param)


# Computed once, when Dynamo traces a call. The decorator torch.compiler.assume_constant_result sets
# the same mark, but imports Dynamo to do so, for a second.
other_gain._dynamo_marked_constant = True  # type: ignore[attr-defined]  # noqa: SLF001


# scaled by fans ------------------------------------------------------------------------------

CUT = 2.0  # of variance_scaling_'s truncated_normal, in sigmas: as jax, keras and timm
_SIGMA = 1.0 / TruncatedNormal(1.0, CUT).std  # of the parent whose realised std is 1


def correct_fan(tensor: Tensor, mode: str) -> int:
    """The fan of torch's ``mode``.

    Raises:
        InvalidValueError: an unknown mode, or fewer than two dimensions.
    """
    mode = torch_mode(mode)
    fan_in, fan_out = shape_fans(tensor)
    return fan_in if mode == "fan_in" else fan_out


def torch_mode(mode: str) -> str:
    """fan_in or fan_out, in any case.

    Raises:
        InvalidValueError: another mode.
    """
    mode = mode.lower()
    valid_modes = ["fan_in", "fan_out"]
    if mode not in valid_modes:
        raise InvalidValueError(f"Mode {mode} not supported, please use one of {valid_modes}")
    return mode


def _fan(fans: tuple[float, float], mode: str) -> float:
    # Not Fan.by_mode: torch.compile traces symbolic sizes through this.
    fan_in, fan_out = fans
    if mode == "fan_avg":
        return (fan_in + fan_out) / 2
    if mode == "fan_geo_avg":
        return math.sqrt(fan_in * fan_out)
    return fan_in if mode == "fan_in" else fan_out


def _draw(family: str, std: float, weight: Weight) -> Draw:
    """The distribution of ``family`` whose realised std is ``std``."""
    if family == "normal":
        return "Normal", [std, 0.0]
    if family == "orthogonal":
        rows, columns = weight.shape[0], math.prod(weight.shape[1:])
        return "Orthogonal", [std * math.sqrt(max(rows, columns))]
    if weight.dtype.is_complex:
        std = std / math.sqrt(2.0)  # of each part
    if family == "uniform":
        return "Uniform", [-math.sqrt(3.0) * std, math.sqrt(3.0) * std]
    return "TruncatedNormal", [_SIGMA * std, CUT, 0.0]


def fill_scaled(
    target: Target,
    family: str,
    factor: float,
    mode: str,
    *,
    generator: Generator | None,
    name: str,
    least_dims: int = 2,
) -> Target:
    """Draws of std factor / sqrt(fan); an empty tensor is left alone, with torch's warning.

    ``least_dims``: below it an empty tensor, too, is an error.
    """
    if _is_empty(target, least_dims):
        if not torch.compiler.is_compiling():  # Dynamo cannot trace a warning
            warnings.warn(EMPTY, stacklevel=4)
        return target

    def law(weight: Weight) -> Draw | None:
        fans = weight.fans()
        if 0 in weight.shape:
            return None
        return _draw(family, factor / math.sqrt(_fan(fans, mode)), weight)

    return fill(target, law, generator, name=name)


def _is_empty(target: Tensor | nn.Module, least_dims: int) -> bool:
    if not isinstance(target, Tensor) or isinstance(target, UninitializedTensorMixin):
        return False
    return target.dim() >= least_dims and 0 in target.shape


# shapes that a law asks for ------------------------------------------------------------------


def matrix_law(draw: Draw) -> Law:
    """``draw`` for a matrix, an error for anything else."""

    def law(weight: Weight) -> Draw:
        if len(weight.shape) != 2:
            raise InvalidValueError("Only tensors with 2 dimensions are supported")
        return draw

    return law


def check_convolution(weight: Weight) -> None:
    """Raise unless the weight has 1 to 3 axes of taps."""
    if len(weight.shape) not in (3, 4, 5):
        raise InvalidValueError("Only tensors with 3, 4, or 5 dimensions are supported")


# modules -------------------------------------------------------------------------------------


class _Site(NamedTuple):
    """Rows ``start:stop`` along ``dim`` of a module's parameter, drawn on their own; or all of it."""

    draw: Draw
    key: str = KEY
    dim: int = 0
    start: int = 0
    stop: int = -1

    @property
    def whole(self) -> bool:
        """All of the parameter."""
        return self.stop < 0


def _fill_module(module: nn.Module, law: Law, generator: Generator | None, name: str) -> None:
    """Say what to draw for every slice, check all of it, then write."""
    tensor_of(module, name)
    slot = next(s for s in slots_of(module) if name in (s.name, *s.aliases))
    spec = specs_of(module).get(name) or specs_of(slot.owner).get(slot.leaf) or Spec("free")
    if slot.through:
        check_parametrization(slot)
    value = torch.empty_like(slot.tensor.detach()) if slot.through else slot.tensor
    sites = _sites(slot, spec, value, law)
    for site in sites:
        check(site.draw, value.dtype)
    seed = seed_for(value, sites[0].draw, generator) if sites else None
    for site in sites:
        _put_site(value, site, seed)
    if slot.through:
        with torch.no_grad():
            write_through(slot, value)


def _sites(slot: Slot, spec: Spec, value: Tensor, law: Law) -> list[_Site]:
    """All of it and then its padding row; or each packed slice, or each group, on its own."""
    packed = [p for p in spec.parts if p.role != "padding"]
    if packed:
        return _slices(slot, packed, value, law)
    draw = law(Weight(tuple(value.shape), value.dtype, _exact_fans(slot, spec.fan)))
    if draw is None:
        return []
    if spec.groups > 1 and draw[0] in PER_GROUP:
        n = value.shape[0] // spec.groups
        groups = range(spec.groups)
        return _slices(
            slot,
            [PartInfo(str(i), 0, i * n, (i + 1) * n, spec.role, spec.fan) for i in groups],
            value,
            law,
        )
    return [_Site(draw), *(_Site(("Zero", []), KEY, p.dim, p.start, p.stop) for p in spec.parts)]


def _slices(slot: Slot, parts: list[PartInfo], value: Tensor, law: Law) -> list[_Site]:
    sites = []
    for part in parts:
        shape = (*value.shape[: part.dim], part.stop - part.start, *value.shape[part.dim + 1 :])
        draw = law(Weight(shape, value.dtype, _exact_fans(slot, part.fan)))
        if draw is not None:
            sites.append(_Site(draw, f"{KEY}:{part.name}", part.dim, part.start, part.stop))
    return sites


def _exact_fans(slot: Slot, fan: Fan | None) -> Callable[[], tuple[float, float]]:
    def fans() -> tuple[float, float]:
        if slot.tensor.dim() < 2:
            raise InvalidValueError(FEW_DIMS)
        if fan is None:
            raise UncoveredParameterError(
                f"fanin does not know the axes of {type(slot.owner).__name__}.{slot.leaf}, so it has "
                "no exact fans. Pass the tensor itself for torch's fans of its shape, or register "
                "the module type with @fanin.register_module."
            )
        return fan.fan_in, fan.fan_out

    return fans


def _put_site(value: Tensor, site: _Site, seed: Tensor | None) -> None:
    if site.whole:
        put(value, site.draw, site.key, seed)
    elif is_dtensor(value):
        _put_rows(value, site, seed)
    else:
        part = value.detach().narrow(site.dim, site.start, site.stop - site.start)
        put(part, site.draw, site.key, seed)


def _put_rows(value: Tensor, site: _Site, seed: Tensor | None) -> None:
    """The same for a DTensor, of which a slice is a copy: draw the slice, keep what lives here."""
    shard = index_of(value)
    flat = value.dim() == 1
    along = torch.as_tensor(list(shard.columns if flat else shard.rows))
    here = torch.nonzero((along >= site.start) & (along < site.stop)).flatten()
    part = torch.empty((site.stop - site.start, *value.shape[1:]), dtype=value.dtype)
    put(part, site.draw, site.key, seed)
    kept = part[along[here] - site.start]
    if not flat:
        kept = kept.flatten(1)[:, list(shard.columns)]
    with torch.no_grad():
        shard.local[here] = kept.reshape(len(here), *shard.local.shape[1:]).to(shard.local.device)
