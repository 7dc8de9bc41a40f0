"""What a module's buffers hold when it is new, computed from the module itself: a registry of rules.

A rule runs on a stand-in of the module: the same attributes, its parameters on the meta device, its
buffers filled with numbers that mean nothing. It runs twice, over other numbers and another random
state; what comes out alike both times was computed. So nothing is guessed, and nothing is written
before all of it is known.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _Orthogonal, _SpectralNorm

from ._apply import own_random_state
from ._errors import InvalidValueError
from ._fill import fill_
from .distributions import Normal

Values = Mapping[str, Tensor]
Rule = Callable[[nn.Module], "Values | None"]
_R = TypeVar("_R", bound=Rule)

_RULES: dict[type | str, Rule] = {}
# Methods by which module types write their own buffers, the most specific first.
METHODS = (
    "reset_buffers", "init_buffers", "_init_buffers", "reset_running_stats", "rope_init", "_rope_init",
    "reset_parameters", "_reset_parameters", "init_weights",
)  # fmt: skip
_PLAIN = (bool, int, float, str, type(None), tuple, torch.dtype)


def register_buffers(*types: type | str) -> Callable[[_R], _R]:
    """Say how the buffers of your module types are computed, so that `materialize_` can.

    The decorated function takes the module, whose buffers and parameters hold nothing of use, and
    returns a dict from buffer name to tensor, on the CPU; other attributes are the module's own. A
    type may be named by its dotted path. The most derived registered type of a module wins.

    Raises:
        InvalidValueError: no type is given.

    Example:
        >>> import fanin, torch
        >>> from torch import nn
        >>> class Window(nn.Module):
        ...     def __init__(self, n):
        ...         super().__init__()
        ...         self.register_buffer("taper", torch.hann_window(n))
        >>> @fanin.register_buffers(Window)
        ... def window(module):
        ...     return {"taper": torch.hann_window(module.taper.numel())}
        >>> with torch.device("meta"):
        ...     model = nn.Sequential(Window(4), nn.Linear(4, 2))
        >>> fanin.plan(model).materialize_(model)[0].taper
        tensor([0.0000, 0.5000, 1.0000, 0.5000])
    """
    if not types:
        raise InvalidValueError(
            "register_buffers(...) takes the module types that the function is for."
        )

    def register(rule: _R) -> _R:
        _RULES.update(dict.fromkeys(types, rule))
        return rule

    return register


def computed(module: nn.Module, owner: nn.Module | None) -> tuple[dict[str, Tensor], str]:
    """The values of the module's meta buffers that are known, on the CPU; and what went wrong.

    Args:
        module: has buffers on the meta device.
        owner: the nearest HuggingFace model that it is part of.
    """
    wanted = {n: b for n, b in module._buffers.items() if b is not None and b.is_meta}  # noqa: SLF001
    found: dict[str, Tensor] = {}
    why = ""
    for rule, trusted in _candidates(module, owner):
        if len(found) == len(wanted):
            break
        try:
            new = _twice(rule, module, wanted)
        except Exception as error:  # noqa: BLE001 - a rule is anyone's code
            why = f" ({type(error).__name__}: {error})" if trusted else why
            continue
        found = {**new, **found}
    return found, why


def _candidates(module: nn.Module, owner: nn.Module | None) -> Iterator[tuple[Rule, bool]]:
    """Rules to try in turn, and whether each is one that says so itself."""
    for kind in type(module).__mro__:
        rule = _RULES.get(kind) or _RULES.get(f"{kind.__module__}.{kind.__qualname__}")
        if rule is not None:
            yield rule, True
            break
    if owner is not None:
        initialise = type(owner)._init_weights  # type: ignore[attr-defined]  # noqa: SLF001
        yield lambda stand_in: initialise(owner, stand_in), False
    yield _rotary, False
    for name in METHODS:
        if callable(getattr(type(module), name, None)):
            yield lambda stand_in, name=name: _call(getattr(stand_in, name)), False  # type: ignore[misc]
    yield _by_name, False
    yield _rebuilt, False


def _twice(rule: Rule, module: nn.Module, wanted: Values) -> dict[str, Tensor]:
    """What the rule computes alike over two fillings, in the shapes and dtypes that are wanted."""
    first, second = (_once(rule, module, turn) for turn in range(2))
    return {
        n: first[n].to(b.dtype)
        for n, b in wanted.items()
        if n in first and n in second and first[n].shape == b.shape and _alike(first[n], second[n])
    }


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))


def _once(rule: Rule, module: nn.Module, turn: int) -> dict[str, Tensor]:
    stand_in = _stand_in(module, turn)
    with torch.no_grad(), torch.device("cpu"), own_random_state(turn):
        given = rule(stand_in)
    own = stand_in._buffers  # noqa: SLF001
    both = {**own, **given} if isinstance(given, Mapping) else own
    return {n: t.detach() for n, t in both.items() if isinstance(t, Tensor) and not t.is_meta}


def _stand_in(module: nn.Module, turn: int) -> nn.Module:
    """The module without its memory: nothing that is done to it reaches the model."""
    kind = next(c for c in type(module).__mro__ if c.__name__ != "FSDPModule" and not _is_fsdp(c))
    made: nn.Module = object.__new__(kind)
    made.__dict__.update(module.__dict__)
    made.__dict__["_parameters"] = {
        n: None
        if p is None
        else nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="meta"), p.requires_grad)
        for n, p in module._parameters.items()  # noqa: SLF001
    }
    made.__dict__["_buffers"] = {
        n: None if b is None else _meaningless(b, turn)
        for n, b in module._buffers.items()  # noqa: SLF001
    }
    made.__dict__["_modules"] = {
        n: None if m is None else _stand_in(m, turn)
        for n, m in module._modules.items()  # noqa: SLF001
    }
    made.__dict__["_non_persistent_buffers_set"] = set(module._non_persistent_buffers_set)  # noqa: SLF001
    return made


def _is_fsdp(kind: type) -> bool:
    return any(c.__name__ == "FSDPModule" for c in kind.__mro__)


def _meaningless(buffer: Tensor, turn: int) -> Tensor:
    if not buffer.is_meta:
        return buffer.clone()
    number = (0.6180339, -2.71828)[turn] if buffer.dtype.is_floating_point else (77, 0)[turn]
    return torch.full(buffer.shape, number, dtype=buffer.dtype, device="cpu")


def _call(method: Callable[..., Any]) -> None:
    """Call it, if it needs no arguments; a method may write some buffers and then stumble."""
    needed = [
        p
        for p in inspect.signature(method).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if not needed:
        with suppress(Exception):
            method()


# rules ----------------------------------------------------------------------------------------


@register_buffers(nn.modules.batchnorm._NormBase)  # noqa: SLF001
def _running(module: nn.Module) -> dict[str, Tensor]:
    """Batch and instance norms: mean 0, variance 1, no batch seen."""
    return _by_name(module)


@register_buffers(_SpectralNorm)
def _spectral(module: nn.Module) -> dict[str, Tensor]:
    """Random unit vectors, which the power method then turns (Miyato et al. 2018, algorithm 1)."""
    return {n: _unit(b, n) for n, b in module._buffers.items() if b is not None}  # noqa: SLF001


@register_buffers(_Orthogonal)
def _orthogonal(module: nn.Module) -> dict[str, Tensor]:
    """Nothing yet: writing the weight sets the base."""
    return {n: torch.zeros_like(b) for n, b in module._buffers.items() if b is not None}  # noqa: SLF001


def _unit(like: Tensor, key: str) -> Tensor:
    drawn = fill_(torch.empty(like.shape, dtype=like.dtype), Normal(1.0), key=key)
    return nn.functional.normalize(drawn, dim=0)


def _rotary(module: nn.Module) -> dict[str, Tensor]:
    """Inverse frequencies by the module's own function, as transformers' rotary embeddings have one."""
    function = getattr(module, "rope_init_fn", None) or getattr(
        module, "compute_default_rope_parameters", None
    )
    if function is None:
        return {}
    value, _ = function(module.config, torch.device("cpu"))
    return {"inv_freq": value, "original_inv_freq": value.clone()}


def _by_name(module: nn.Module) -> dict[str, Tensor]:
    """Buffers whose name and form say all: statistics, positions, causal masks, unit vectors."""
    own = {n: b for n, b in module._buffers.items() if b is not None}  # noqa: SLF001
    found = {n: value for n, b in own.items() if (value := _named(n, b)) is not None}
    hidden = module._parameters  # noqa: SLF001
    return found | {n: _unit(b, n[-1]) for n, b in own.items() if f"{n[:-2]}_orig" in hidden}


def _named(name: str, buffer: Tensor) -> Tensor | None:
    shape, whole = tuple(buffer.shape), not buffer.dtype.is_floating_point
    if name in ("running_mean", "num_batches_tracked"):
        return torch.zeros(shape, dtype=buffer.dtype)
    if name == "running_var":
        return torch.ones(shape, dtype=buffer.dtype)
    line = bool(shape) and buffer.numel() == shape[-1] and whole
    if name in ("position_ids", "pos_ids") and line:
        return torch.arange(shape[-1], dtype=buffer.dtype).expand(shape)
    if name == "token_type_ids" and whole:
        return torch.zeros(shape, dtype=buffer.dtype)
    square = len(shape) > 1 and buffer.numel() == shape[-1] ** 2 and shape[-2] == shape[-1]
    if square and (name == "tril" or (name == "bias" and len(shape) == 4)):
        return torch.ones(shape, dtype=buffer.dtype).tril()
    return None


def _rebuilt(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of the same module, constructed anew on the CPU.

    Only for one without parameters and children, all of whose constructor's arguments it keeps as
    attributes of the same names; it must agree with the new one in every plain attribute of that.
    """
    kind = type(module)
    taken = list(inspect.signature(kind.__init__).parameters.values())[1:]
    held = vars(module)
    if module._parameters or module._modules or any(p.name not in held for p in taken):  # noqa: SLF001
        return {}
    made = kind(**{p.name: held[p.name] for p in taken})
    plain = {n: v for n, v in vars(made).items() if isinstance(v, _PLAIN) and n != "training"}
    same = all(n in held and held[n] == v for n, v in plain.items())
    return {n: b for n, b in made._buffers.items() if b is not None} if same else {}  # noqa: SLF001
