"""What every function of `fanin.init` shares: the check of its target, the seed, the operator.

A function of `fanin.init` says what to draw, as a `Law` of the weight's shape and fans; `fill` finds where:
in the tensor it was given, or slice by slice in a module's parameter, with the exact fans.

The write is a torch operator of its own, so that torch.compile, vmap and FakeTensorMode see one
opaque call that mutates a tensor. Its distribution travels as (kind, arguments), which is all that
an operator's schema can carry.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import UninitializedTensorMixin
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ._apply import _check_parametrization, _write_through
from ._errors import InvalidValueError, ModelError, UncoveredParameterError
from ._facts import PartInfo
from ._fans import Fan
from ._fill import write
from ._layouts import Spec, specs_of, tensor_of
from ._roles import Slot, slots_of
from ._rng import Stream
from ._shards import _is_dtensor, index_of
from .distributions import DISTRIBUTIONS, Distribution

KEY = "fanin.init"  # every draw has a seed of its own, so one stream's name serves them all
EMPTY = "Initializing zero-element tensors is a no-op"
FEW_DIMS = "Fan in and fan out can not be computed for tensor with fewer than 2 dimensions"

Draw = tuple[str, list[Any]]  # a distribution's kind, and its arguments by position
Target = TypeVar("Target", bound=Tensor | nn.Module)
P = ParamSpec("P")
R = TypeVar("R")


class Weight(NamedTuple):
    """What a law may know of the tensor, or slice, that it is for."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    fans: Callable[[], tuple[float, float]]  # (fan_in, fan_out), or the error that says why not


Law = Callable[[Weight], Draw | None]  # None: there is nothing to write


class InitValueError(InvalidValueError, RuntimeError):
    """A value that no distribution has: a ValueError here, where torch raises RuntimeError."""


class InitDtypeError(InvalidValueError, NotImplementedError):
    """A dtype without random numbers: a ValueError here, where torch raises NotImplementedError."""


def overridable(function: Callable[P, R]) -> Callable[P, R]:
    """Let ``__torch_function__`` of the tensor, or of a mode, take the call, as torch's functions do."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        target = args[0] if args else kwargs.get("tensor")
        if isinstance(target, Tensor) and has_torch_function_variadic(target):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            if bound.arguments.get("name") == "weight":
                del bound.arguments["name"]  # torch's functions have no such argument
            return handle_torch_function(call, (target,), **bound.arguments)  # type: ignore[no-any-return]
        return function(*args, **kwargs)

    return call


def deprecated(function: Callable[P, R]) -> Callable[P, R]:
    """The alias without the underscore, which warns as torch's does."""
    new = function.__name__  # type: ignore[attr-defined]
    old = new[:-1]

    def alias(*args: P.args, **kwargs: P.kwargs) -> R:
        warnings.warn(
            f"`nn.init.{old}` is now deprecated in favor of `nn.init.{new}`.",
            FutureWarning,
            stacklevel=2,
        )
        return function(*args, **kwargs)

    alias.__name__ = alias.__qualname__ = old
    alias.__module__ = function.__module__
    alias.__doc__ = f"Deprecated: use `{new}`."
    return alias


# where to write ------------------------------------------------------------------------------


def fill(
    target: Target, law: Law, generator: torch.Generator | None = None, *, name: str = "weight"
) -> Target:
    """Fill a tensor, or the parameter ``name`` of a module, with what ``law`` says; return the target."""
    if isinstance(target, nn.Module):
        _fill_module(target, law, generator, name)
        return target
    _check_tensor(target)
    draw = law(Weight(tuple(target.shape), target.dtype, lambda: shape_fans(target)))
    if draw is not None:
        _put(target, draw, KEY, _seed(target, draw, generator))
    return target


def shape_fans(tensor: Tensor) -> tuple[int, int]:
    """Torch's fans: dim 1 is the input, dim 0 the output, the rest are taps.

    Raises:
        InvalidValueError: fewer than two dimensions.
    """
    if tensor.dim() < 2:
        raise InvalidValueError(FEW_DIMS)
    taps = 1
    for length in tensor.shape[2:]:  # math.prod would specialise torch.compile's symbolic sizes
        taps *= length
    return tensor.shape[1] * taps, tensor.shape[0] * taps


def warn_if_empty(target: Tensor | nn.Module, least_dims: int = 0) -> bool:
    """Whether a tensor has no elements; if so, warn in torch's words where the user called."""
    if not isinstance(target, Tensor) or isinstance(target, UninitializedTensorMixin) or target.dim() < least_dims:
        return False
    if 0 not in target.shape:
        return False
    if not torch.compiler.is_compiling():  # Dynamo cannot trace a warning
        warnings.warn(EMPTY, stacklevel=4)
    return True


def _check_tensor(tensor: object) -> None:
    """Raise unless writing into ``tensor`` writes into something that lasts."""
    if not isinstance(tensor, Tensor):
        raise InvalidValueError(
            f"expected a torch.Tensor to fill in place, or the nn.Module that owns it; got {tensor!r}."
        )
    if isinstance(tensor, UninitializedTensorMixin):
        raise ModelError(
            "this parameter is lazy and has no shape yet. Run the model once on an example batch "
            "first, then initialise it."
        )
    if torch.compiler.is_compiling():
        return  # a traced tensor does not tell what it is a view of
    owner = tensor._base if tensor._is_view() else tensor  # noqa: SLF001 - torch has no public name for it
    if owner is not None and not owner.is_leaf:
        raise ModelError(
            f"this tensor of shape {tuple(tensor.shape)} is computed ({owner.grad_fn}), neither a "
            "parameter nor a view of one: what is written into it is lost. For a weight behind "
            "weight_norm, spectral_norm or another parametrization pass the module instead: "
            "init.kaiming_normal_(module). For chosen rows w[[0, 1]] write a slice, w[0:2], or row by row."
        )


# the seed ------------------------------------------------------------------------------------


def _seed(tensor: Tensor, draw: Draw, generator: torch.Generator | None) -> Tensor | None:
    """64 random bits as two words, from the generator, else from torch's default; None if none are due."""
    if draw[0] in FIXED or tensor.is_meta:
        return None
    if torch.compiler.is_compiling() or isinstance(tensor, FakeTensor):
        # Inductor replaces torch.randint by a generator of its own; this operator it leaves to torch.
        blank = tensor.new_empty(2, dtype=torch.int64, device="cpu")
        return torch.ops.aten.random.to(blank, 2**32, generator=generator)
    device = "cpu" if generator is None else generator.device
    return torch.randint(2**32, (2,), dtype=torch.int64, device=device, generator=generator)


# the operator --------------------------------------------------------------------------------

FIXED = ("Zero", "Constant", "Identity", "Dirac")  # nothing is drawn
_NATIVE = ("Zero", "Constant")  # torch writes them itself
_REAL = ("Uniform", "TruncatedNormal", "BoundedNormal")  # of a complex number, each part on its own
_OP = "fanin::init_"
torch.library.define(
    _OP, "(Tensor(a!) tensor, Tensor? seed, str kind, float[] arguments, str key) -> ()"
)


def distribution(kind: str, arguments: list[float], dtype: torch.dtype) -> Distribution:
    """The distribution that an operator's arguments describe.

    Raises:
        InitValueError: a value that the distribution cannot have.
        InitDtypeError: random numbers for a dtype that holds none.
    """
    if not (dtype.is_floating_point or dtype.is_complex or kind in FIXED):
        raise InitDtypeError(
            f"random starting values need a real or complex floating point tensor; got {dtype}. "
            "Convert it, e.g. with tensor.float()."
        )
    try:
        return DISTRIBUTIONS[kind](*arguments)
    except InvalidValueError as error:
        raise InitValueError(str(error)) from error


@torch.library.impl(_OP, "CompositeExplicitAutograd")
def _write(tensor: Tensor, seed: Tensor | None, kind: str, arguments: list[float], key: str) -> None:
    law = distribution(kind, arguments, tensor.dtype)
    low, high = (0, 0) if seed is None else seed.tolist()
    if tensor.dtype.is_complex and kind in _REAL:
        tensor = torch.view_as_real(tensor)
    write(tensor, law, Stream(key, low | high << 32))


@torch.library.register_fake(_OP)
def _write_fake(tensor: Tensor, seed: Tensor | None, kind: str, arguments: list[float], key: str) -> None:  # noqa: ARG001
    distribution(kind, arguments, tensor.dtype)


def _write_each(
    info: Any,
    in_dims: tuple[int | None, ...],
    tensor: Tensor,
    seed: Tensor | None,
    kind: str,
    arguments: list[float],
    key: str,
) -> tuple[None, None]:
    """Under vmap: every example with its own seed (randomness="different"), or all with one ("same")."""
    of_tensor, of_seed = in_dims[:2]
    if of_tensor is None:
        raise ModelError(
            "under vmap the filled tensor must be one of the mapped arguments: examples with seeds of "
            "their own cannot share one tensor."
        )
    for i in range(info.batch_size):
        words = seed if seed is None or of_seed is None else seed.select(of_seed, i)
        torch.ops.fanin.init_(tensor.select(of_tensor, i), words, kind, arguments, key)
    return None, None


torch.library.register_vmap(_OP, _write_each)


def _put(tensor: Tensor, draw: Draw, key: str, seed: Tensor | None) -> None:
    """Write one draw. Constants are torch's own fills: any dtype, NaN, and nothing to draw."""
    kind, arguments = draw
    with torch.no_grad():
        if kind == "Zero":
            tensor.zero_()
        elif kind == "Constant":
            tensor.fill_(*arguments)
        elif _is_dtensor(tensor):
            _write(tensor, seed, kind, arguments, key)
        else:
            torch.ops.fanin.init_(tensor, seed, kind, arguments, key)


# modules -------------------------------------------------------------------------------------

_PER_GROUP = ("Orthogonal", "DeltaOrthogonal")  # of a grouped convolution, each block on its own


class _Site(NamedTuple):
    """Rows ``start:stop`` along ``dim`` of a module's parameter, drawn on their own."""

    draw: Draw
    key: str = KEY
    dim: int = 0
    start: int = 0
    stop: int = -1

    @property
    def whole(self) -> bool:
        """The parameter as it is."""
        return self.stop < 0


def _fill_module(module: nn.Module, law: Law, generator: torch.Generator | None, name: str) -> None:
    """Say what to draw for every slice, check all of it, then write."""
    tensor_of(module, name)
    slot = next(s for s in slots_of(module) if name in (s.name, *s.aliases))
    spec = specs_of(module).get(name) or specs_of(slot.owner).get(slot.leaf) or Spec("free")
    if slot.through:
        _check_parametrization(slot)
    value = torch.empty_like(slot.tensor.detach()) if slot.through else slot.tensor
    sites = _sites(slot, spec, value, law)
    for site in sites:
        if site.draw[0] not in _NATIVE:
            distribution(*site.draw, dtype=value.dtype)
    seeds = (_seed(value, s.draw, generator) for s in sites if s.draw[0] not in FIXED)
    seed = next(seeds, None)
    for site in sites:
        _put_site(value, site, seed)
    if slot.through:
        with torch.no_grad():
            _write_through(slot, value)


def _sites(slot: Slot, spec: Spec, value: Tensor, law: Law) -> list[_Site]:
    """The whole parameter and its padding row; or each packed slice, or each group, on its own."""
    padding = [_Site(("Zero", []), KEY, p.dim, p.start, p.stop) for p in spec.parts if p.role == "padding"]
    packed = [p for p in spec.parts if p.role != "padding"]
    if packed:
        return _slices(slot, packed, value, law)
    draw = law(Weight(tuple(value.shape), value.dtype, _exact_fans(slot, spec.fan)))
    if draw is None:
        return []
    if spec.groups > 1 and draw[0] in _PER_GROUP:
        rows = value.shape[0] // spec.groups
        blocks = [(str(i), i * rows, (i + 1) * rows) for i in range(spec.groups)]
        return _slices(slot, [PartInfo(n, 0, a, b, spec.role, spec.fan) for n, a, b in blocks], value, law)
    return [_Site(draw), *padding]


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
                f"fanin does not know the axes of {type(slot.owner).__name__}.{slot.leaf}, so it has no "
                "exact fans. Pass the tensor itself for torch's fans of its shape, or register the "
                "module type with @fanin.register_module."
            )
        return fan.fan_in, fan.fan_out

    return fans


def _put_site(value: Tensor, site: _Site, seed: Tensor | None) -> None:
    if site.whole:
        _put(value, site.draw, site.key, seed)
    elif _is_dtensor(value):
        _put_rows(value, site, seed)
    else:
        # Of .detach(), because a slice made under autograd refuses to be written in place.
        _put(value.detach().narrow(site.dim, site.start, site.stop - site.start), site.draw, site.key, seed)


def _put_rows(value: Tensor, site: _Site, seed: Tensor | None) -> None:
    """The same for a DTensor, of which a slice would be a copy: draw the slice, keep what lives here."""
    shard = index_of(value)
    flat = value.dim() == 1
    along = torch.as_tensor(list(shard.columns if flat else shard.rows))
    here = torch.nonzero((along >= site.start) & (along < site.stop)).flatten()
    whole = torch.empty((site.stop - site.start, *value.shape[1:]), dtype=value.dtype)
    _put(whole, site.draw, site.key, seed)
    picked = whole[along[here] - site.start]
    if not flat:
        picked = picked.flatten(1)[:, list(shard.columns)]
    with torch.no_grad():
        shard.local[here] = picked.reshape(len(here), *shard.local.shape[1:]).to(shard.local.device)
