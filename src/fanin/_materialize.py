"""Plan + model on the meta device -> the model: memory, ties, values, buffers, and a proof.

Everything that could fail is asked first, on the meta tensors: nothing is half written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ._allocate import Site, allocate_, check_device, sites_of
from ._apply import (
    Place,
    check_kept,
    check_parametrization,
    checked_places,
    row_writes,
    write_row,
)
from ._buffers import computed
from ._errors import FaninError, ModelError, listed
from ._fill import fill_
from ._rng import Stream
from ._roles import behind
from ._shards import Held, index_of, is_dtensor, vector
from .distributions import Constant, Kept

if TYPE_CHECKING:
    from ._plan import InitPlan

POWER_STEPS = 15  # as torch's spectral_norm starts its vectors


def materialize_(
    plan: InitPlan,
    model: nn.Module,
    *,
    seed: int = 0,
    device: torch.device | str | None = None,
    held: Mapping[str, Held] | None = None,
) -> nn.Module:
    """Allocate and write what is on the meta device; see `InitPlan.materialize_`."""
    Stream("", seed)
    check_device(device)
    sites = [s for s in sites_of(model) if s.tensor.is_meta]
    places = [p for p in checked_places(plan, model, held=held) if _absent(p.slot.tensor, p, sites)]
    values, problems = _buffer_values(model, sites)
    problems = [*_row_problems(places, seed), *problems]
    if problems:
        raise ModelError(
            f"this model cannot be materialised; nothing was written:{listed(problems)}"
        )
    behind_rows = {n for p in places for n in p.slot.through}
    owned = {id(p.slot.tensor) for p in places if not p.slot.through}
    owned |= {id(s.tensor) for s in sites if s.kind == "buffer" or s.name in behind_rows}
    names = {p.row.name for p in places}
    with torch.no_grad():
        made = allocate_(model, owned, device)
        _put_buffers(model, values)
        _fill_attributes(model)
        hidden = [(t, t._version) for t in _hidden(model, behind_rows)]  # noqa: SLF001
        written: set[int] = set()
        again = checked_places(plan, model, held=held, only=sorted(names)) if names else []
        for place in again:
            write_row(place, seed)
            written.add(id(place.slot.tensor))
        written |= {id(t) for t, before in hidden if t._version > before}  # noqa: SLF001
        # Looking at a weight under spectral norm turns its vectors, zero weights to zero.
        _put_buffers(model, {n: t for n, t in values.items() if n.endswith(("_u", "_v"))})
        _finish(model)
    _prove(model, made, written, partial=plan.partial)
    return model


def _absent(tensor: Tensor, place: Place, sites: list[Site]) -> bool:
    """Whether a row's tensor, or one of those that it is computed from, is on the meta device."""
    return tensor.is_meta or any(s.name in place.slot.through for s in sites)


def _row_problems(places: list[Place], seed: int) -> Iterator[str]:
    """Why rows cannot be written, each by its name."""
    for place in places:
        row, slot, held = place
        try:
            if isinstance(row.distribution, Kept):
                check_kept(row, slot)
            elif slot.through:
                check_parametrization(slot)
            else:
                row_writes(row, slot.tensor, seed, held, empty=True)
        except (FaninError, ValueError, TypeError, RuntimeError) as error:
            said = str(error).removesuffix(" Nothing was written.")
            yield said if said.startswith(row.name) else f"{row.name}: {said}"


# buffers --------------------------------------------------------------------------------------


def _buffer_values(model: nn.Module, sites: list[Site]) -> tuple[dict[str, Tensor], list[str]]:
    """Name -> value of every meta buffer, on the CPU; and those for which there is no rule."""
    owners = _owners(model)
    known: dict[int, Tensor] = {}
    names, reasons = {}, {}
    for module in dict.fromkeys(s.module for s in sites if s.kind == "buffer"):
        found, why = computed(module, owners.get(module))
        own = [s for s in sites if s.module is module and s.kind == "buffer"]
        for site in own:
            names[site.name] = id(site.tensor)
            reasons[site.name] = why
            if site.leaf in found:
                known.setdefault(id(site.tensor), found[site.leaf])
    problems = [
        f"buffer {site.name} of {type(site.module).__name__}: no rule says what it holds{reasons[site.name]}. "
        "Register one with @fanin.register_buffers, or build the module with its buffers on the CPU."
        for site in sites
        if site.kind == "buffer" and id(site.tensor) not in known
    ]
    tied = {id(s.tensor) for s in sites if s.kind != "attribute"}
    problems += [
        f"{site.name} of {type(site.module).__name__} is a tensor on the meta device, but neither a "
        "parameter nor a buffer, so nothing says what it holds. Make it a buffer."
        for site in sites
        if site.kind == "attribute"
        and id(site.tensor) not in tied
        and site.leaf not in behind(site.module)
    ]
    return {n: known[key] for n, key in names.items() if key in known}, problems


def _owners(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Module -> the nearest transformers model around it, whose `_init_weights` knows its buffers."""
    found: dict[nn.Module, nn.Module] = {}
    for module in model.modules():  # outer ones first, so that inner ones overwrite
        if any(c.__name__ == "PreTrainedModel" for c in type(module).__mro__):
            found.update(dict.fromkeys(module.modules(), module))
    return found


def _put_buffers(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    for site in sites_of(model):
        if site.kind != "buffer" or site.name not in values:
            continue
        shard = index_of(site.tensor)
        value = values[site.name]
        for dim, axis in enumerate(shard.axes):
            if axis != range(shard.shape[dim]) if isinstance(axis, range) else True:
                value = value.index_select(dim, torch.from_numpy(vector(axis)))
        shard.local.copy_(value)


# the rest -------------------------------------------------------------------------------------


def _hidden(model: nn.Module, names: set[str]) -> list[Tensor]:
    """The parameters behind parametrizations, zero until the weight is written through them."""
    found = [s.tensor for s in sites_of(model) if s.kind == "parameter" and s.name in names]
    for tensor in found:
        fill_(tensor, Constant(0.0), key="hidden")
    return found


def _fill_attributes(model: nn.Module) -> None:
    """Memory for what hooks compute from parameters; they overwrite it."""
    for site in sites_of(model):
        if site.kind == "attribute" and site.tensor.is_meta:
            behind_it = behind(site.module)[site.leaf][0]
            device = vars(site.module)["_parameters"][behind_it].device
            setattr(site.module, site.leaf, torch.zeros_like(site.tensor, device=device))


def _finish(model: nn.Module) -> None:
    """What follows from the weights: vectors of spectral norms, weights that hooks compute."""
    for module in model.modules():
        for steps in getattr(module, "parametrizations", {}).values():
            norms = [step for step in steps if isinstance(step, _SpectralNorm)]
            weight = steps.original if norms else None
            if weight is not None and weight.dim() > 1 and not is_dtensor(weight):
                matrix = norms[0]._reshape_weight_to_matrix(weight)  # noqa: SLF001
                norms[0]._power_method(matrix, POWER_STEPS)  # noqa: SLF001
        for hook in module._forward_pre_hooks.values():  # noqa: SLF001
            if isinstance(hook, SpectralNorm):
                for _ in range(POWER_STEPS):
                    hook.compute_weight(module, do_power_iteration=True)
            if isinstance(hook, WeightNorm | SpectralNorm):
                hook(module, None)


def _prove(model: nn.Module, made: list[Tensor], written: set[int], *, partial: bool) -> None:
    """Raise if a tensor is without numbers, or has memory that nothing was written to."""
    parameters = {id(s.tensor) for s in sites_of(model) if s.kind == "parameter"}
    fresh = {id(t) for t in made} & parameters
    left = {
        s.name
        for s in sites_of(model)
        if (s.tensor.is_meta and not (partial and s.kind == "parameter"))
        or (id(s.tensor) in fresh and id(s.tensor) not in written)
    }
    if left:
        raise ModelError(
            f"left unwritten: {', '.join(sorted(left))}. The model is not ready: this plan, or a "
            "parametrization's right_inverse, does not reach them."
        )
