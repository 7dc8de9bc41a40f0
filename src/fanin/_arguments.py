"""What a model is called with and what it returns, as tensors with names."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import SUPPORTED_NODES

from ._inputs import Inputs

Take = Callable[[Tensor, str], Tensor]


def taken(model: nn.Module, inputs: Inputs, take: Take) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with every tensor replaced; a `torch.Size` is a floating tensor of that shape.

    Args:
        model: the names of its ``forward``'s parameters are the names of positional arguments.
        inputs: what it is to be called with.
        take: (tensor, name) -> what stands for it; called once per tensor.
    """
    memo: dict[int, Tensor] = {}

    def once(tensor: Tensor, name: str) -> Tensor:
        if id(tensor) not in memo:
            memo[id(tensor)] = take(tensor, name)
        return memo[id(tensor)]

    names = _positional(model, len(inputs.args))
    args = tuple(_replaced(v, n, once) for v, n in zip(inputs.args, names, strict=True))
    return args, {name: _replaced(v, name, once) for name, v in inputs.kwargs.items()}


def _positional(model: nn.Module, count: int) -> list[str]:
    """Names of the first parameters of ``forward``."""
    names: list[str] = []
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # scripted modules have none
        parameters = {}.values()  # type: ignore[assignment]
    for p in parameters:
        if p.kind is p.VAR_POSITIONAL:
            names += [f"{p.name}.{i}" for i in range(count - len(names))]
        elif p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            names.append(p.name)
    return [*names, *(f"args.{i}" for i in range(len(names), count))][:count]


def _replaced(value: Any, name: str, take: Take) -> Any:
    """``value`` with its tensors replaced, at any depth; what holds none is left alone."""
    kind = type(value)
    if isinstance(value, Tensor):
        return take(value, name)
    if kind is torch.Size:
        return take(torch.empty(value, device="meta"), name)
    if isinstance(value, (list, tuple)):
        items = [_replaced(item, f"{name}.{i}", take) for i, item in enumerate(value)]
        return kind(*items) if hasattr(value, "_fields") else kind(items)
    if isinstance(value, Mapping):
        other: Any = copy.copy(value)
        for key in list(value):
            other[key] = _replaced(value[key], f"{name}.{key}", take)
        return other
    if kind in SUPPORTED_NODES:  # containers that a library has registered
        node = SUPPORTED_NODES[kind]
        items, context = node.flatten_fn(value)
        return node.unflatten_fn(
            [_replaced(item, f"{name}.{i}", take) for i, item in enumerate(items)], context
        )
    if hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module)):
        return _object(value, name, take)
    return value


def _object(value: Any, name: str, take: Take) -> Any:
    """An object that holds tensors: a dataclass, a batch of a graph library."""
    if callable(getattr(value, "keys", None)) and hasattr(value, "__getitem__"):
        other = copy.copy(value)
        for key in value.keys():  # noqa: SIM118 - no mapping, but it has keys
            other[key] = _replaced(value[key], f"{name}.{key}", take)
        return other
    held = {k: v for k, v in vars(value).items() if isinstance(v, (Tensor, list, tuple, dict))}
    if not any(True for _ in tensors(list(held.values()))):
        return value
    other = copy.copy(value)
    for key, item in held.items():
        object.__setattr__(other, key, _replaced(item, f"{name}.{key}", take))
    return other


def tensors(value: Any) -> Iterator[Tensor]:
    """Tensors of a model's output, in order: nested tuples, dicts, dataclasses.

    Objects with ``to_tuple`` (as Hugging Face's outputs) are read through it.
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif callable(getattr(value, "to_tuple", None)):
        yield from tensors(value.to_tuple())
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from tensors(getattr(value, name))
