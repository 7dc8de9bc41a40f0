"""Meta tensors of a model -> memory, keeping ties, attributes and what FSDP2 knows of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ._errors import InvalidValueError
from ._names import ROOTS
from ._roles import canonical
from ._shards import is_dtensor


class Site(NamedTuple):
    """A name that a module has for a tensor.

    Args:
        name: canonical FQN.
        module: that has it.
        leaf: its attribute there.
        kind: "parameter", "buffer", or "attribute" for a tensor that is neither.
    """

    name: str
    module: nn.Module
    leaf: str
    kind: str

    @property
    def tensor(self) -> Tensor:
        """What stands there now."""
        home = {"parameter": "_parameters", "buffer": "_buffers"}.get(self.kind)
        held = vars(self.module)
        return (held[home] if home else held)[self.leaf]


def sites_of(model: nn.Module) -> Iterator[Site]:
    """Every name of every parameter, buffer and plain tensor attribute."""
    wrapped = type(model).__name__ in ROOTS
    for path, module in model.named_modules():
        held = vars(module)
        plain = {n: t for n, t in held.items() if isinstance(t, Tensor)}
        for kind, tensors in (
            ("parameter", held["_parameters"]),
            ("buffer", held["_buffers"]),
            ("attribute", plain),
        ):
            for leaf, tensor in tensors.items():
                if tensor is not None:
                    name = canonical(f"{path}.{leaf}" if path else leaf, wrapped_root=wrapped)
                    yield Site(name, module, leaf, kind)


def allocate_(
    model: nn.Module, wanted: set[int], device: torch.device | str | None
) -> list[Tensor]:
    """Give memory to the tensors with these ids, each once; the numbers in it mean nothing.

    Returns:
        The new tensors.
    """
    ties: dict[int, list[Site]] = {}
    kept: dict[int, dict[str, Any]] = {}
    for site in sites_of(model):
        if id(site.tensor) in wanted:
            ties.setdefault(id(site.tensor), []).append(site)
            kept.setdefault(id(site.tensor), dict(vars(site.tensor)))
    made: dict[int, Tensor] = {}

    def allocated(tensor: Tensor) -> Tensor:
        if not tensor.is_meta or id(tensor) not in wanted:
            return tensor
        if id(tensor) not in made:
            made[id(tensor)] = torch.empty_like(tensor, device=_place(tensor, device))
        return made[id(tensor)]

    model._apply(allocated)  # noqa: SLF001 - as Module.to_empty: RNNs and FSDP2 do their part in it
    return [_tied(sites, kept[key]) for key, sites in ties.items()]


def _tied(sites: list[Site], attributes: dict[str, Any]) -> Tensor:
    """One tensor under all its names, with the attributes that the old one had."""
    first = min(sites, key=lambda s: s.kind == "attribute").tensor
    for name, value in attributes.items():
        if name not in vars(first):
            setattr(first, name, value)
    for site in sites:
        if site.tensor is not first:
            setattr(site.module, site.leaf, first)
    return first


def _place(tensor: Tensor, device: torch.device | str | None) -> torch.device | str:
    """Where a tensor is to lie: a DTensor on the devices of its mesh, others on the default device."""
    if device is not None:
        return device
    if is_dtensor(tensor):
        return tensor.device_mesh.device_type  # type: ignore[attr-defined]
    default = torch.get_default_device()
    return "cpu" if default.type == "meta" else default


def check_device(device: torch.device | str | None) -> None:
    """Raise if numbers cannot lie there."""
    if device is not None and torch.device(device).type == "meta":
        raise InvalidValueError(
            "the meta device holds no numbers; say where the model is to lie, such as 'cpu' or 'cuda'."
        )
