"""Larger tables and layers: old values keep their bits, new ones are the plan's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ._allocate import sites_of
from ._apply import shard_writes, slots_by_name
from ._distribution import MatrixWide
from ._errors import InvalidValueError, ModelError, closest
from ._roles import Slot, canonical
from ._rows import Row, realised_std, tiles
from ._shards import Shard, index_of, is_dtensor, vector

if TYPE_CHECKING:
    from ._plan import InitPlan

# What modules say of their weight's sides, dim 0 first.
SIDES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Embedding: ("num_embeddings", "embedding_dim"),
    nn.EmbeddingBag: ("num_embeddings", "embedding_dim"),
    nn.Linear: ("out_features", "in_features"),
}


def grow_(
    model: nn.Module, name: str, shape: Sequence[int], *, plan: InitPlan, seed: int = 0
) -> InitPlan:
    """Replace one parameter by a larger one: old values stay, new ones are drawn from its row.

    An element's value depends on its row and column alone, so the new ones are those that a fresh
    model of the larger size gets from this plan and seed. All names of a tied tensor get the new
    one. Optimizers keep the old one: make them after. A DTensor keeps its placements; its old
    values are gathered for it once, on all ranks together.

    Args:
        model: has the parameter; not yet wrapped by FSDP.
        name: its FQN.
        shape: the new one, at least as large in every dim.
        plan: whose row of that name says how new values are drawn.
        seed: see `InitPlan.fill_`.

    Returns:
        The plan for the larger model.

    Raises:
        ModelError, PlanError: no such parameter, one that a parametrization computes, FSDP.
        InvalidValueError: a shape that does not contain the old one, slices that grow, or a law of
            the whole matrix (orthogonal), of which a block says nothing. Nothing was written.

    Example:
        >>> import fanin
        >>> from torch import nn
        >>> table = nn.Sequential(nn.Embedding(100, 8))
        >>> plan = fanin.initialize_(table, seed=1)
        >>> old = table[0].weight[99].clone()
        >>> larger = fanin.grow_(table, "0.weight", (128, 8), plan=plan, seed=1)
        >>> table[0], bool((table[0].weight[99] == old).all()), larger["0.weight"].shape
        (Embedding(128, 8), True, (128, 8))
    """
    name = canonical(name)
    slots = {n: s for s in slots_by_name(model).values() for n in (s.name, *s.aliases)}
    if name not in slots:
        raise ModelError(f"the model has no parameter {name!r}.{closest(name, slots)}")
    slot = slots[name]
    old, row = slot.tensor, plan.matching(slot.name)[0]
    larger = _larger(row, tuple(old.shape), tuple(map(int, shape)))
    _check(model, slot)
    with torch.no_grad():
        new = nn.Parameter(_empty(old, larger.shape), old.requires_grad)
        whole = index_of(new)
        for write in shard_writes(larger, new, _added(whole, row.shape), seed):
            write()
        _keep(whole, old)
    vars(new).update({n: v for n, v in vars(old).items() if n not in vars(new)})
    for site in list(sites_of(model)):
        if site.tensor is old:
            setattr(site.module, site.leaf, new)
            _tell(site.module, site.leaf, larger.shape)
    return replace(plan, rows=tuple(larger if r.name == row.name else r for r in plan.rows))


def _larger(row: Row, old: tuple[int, ...], shape: tuple[int, ...]) -> Row:
    """The row at its new shape; raise if it cannot be drawn beside the old values."""
    if old != row.shape:
        raise InvalidValueError(
            f"{row.name} has shape {list(old)}, the plan says {list(row.shape)}. Grow with its own plan."
        )
    if len(shape) != len(old) or any(n < m for n, m in zip(shape, old, strict=True)):
        raise InvalidValueError(
            f"{row.name} of shape {list(old)} can grow to a shape that contains it; got {list(shape)}."
        )
    grown = [d for d, (n, m) in enumerate(zip(shape, old, strict=True)) if n > m]
    if tiles(row.packed, old) and row.packed[0].dim in grown:
        raise InvalidValueError(
            f"{row.name} is made of slices along dim {row.packed[0].dim} "
            f"({', '.join(p.name for p in row.packed)}): which of them is to grow? Build the larger "
            "module, fill it with the plan, and copy the old slices."
        )
    laws = (row.distribution, *(p.distribution for p in row.packed))
    wide = next((law for law in laws if isinstance(law, MatrixWide)), None)
    if wide is not None and grown:
        raise InvalidValueError(
            f"{row.name} is drawn from {wide}, a law of the whole matrix: new rows or columns beside old "
            f"ones do not follow it. Say how they start: plan.replace({row.name!r}, Normal({row.std:.3g}), why)."
        )
    std = realised_std(shape, row.distribution, row.packed)
    reason = f"grown from {'x'.join(map(str, old))}: old values kept"
    return replace(row, shape=shape, std=std, reasons=(*row.reasons, reason))


def _check(model: nn.Module, slot: Slot) -> None:
    if slot.through:
        raise ModelError(
            f"{slot.name} is computed by a parametrization; grow it before registering that."
        )
    if slot.tensor.is_meta:
        raise ModelError(f"{slot.name} is on the meta device; build the larger module instead.")
    wrapped = [type(m).__name__ for m in model.modules() if _is_fsdp(m)]
    if wrapped:
        raise ModelError(
            f"FSDP keeps its own record of each parameter's shape ({wrapped[0]}). Grow first and shard after: "
            "plan.materialize_ and a checkpoint give every rank its part."
        )


def _is_fsdp(module: nn.Module) -> bool:
    names = {c.__name__ for c in type(module).__mro__}
    return not names.isdisjoint({"FSDPModule", "FullyShardedDataParallel"})


def _empty(old: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Memory like the old one's; of a DTensor, with its placements."""
    if not is_dtensor(old):
        return torch.empty(shape, dtype=old.dtype, device=old.device)
    from torch.distributed.tensor import empty  # noqa: PLC0415 - slow to import

    mesh, placements = old.device_mesh, old.placements  # type: ignore[attr-defined]
    return empty(*shape, dtype=old.dtype, device_mesh=mesh, placements=placements)


def _added(whole: Shard, old: tuple[int, ...]) -> list[Shard]:
    """What lives here of the elements beyond the old shape, each once."""
    found, within = [], [whole]
    for dim, length in enumerate(old):
        found += [new for s in within for new in s.within(dim, length, whole.shape[dim])]
        within = [kept for s in within for kept in s.within(dim, 0, length)]
    return found


def _keep(whole: Shard, old: Tensor) -> None:
    """Copy the old values that live here now."""
    values: Any = old.full_tensor() if is_dtensor(old) else old  # type: ignore[attr-defined]
    within = [whole]
    for dim, length in enumerate(old.shape):
        within = [kept for s in within for kept in s.within(dim, 0, length)]
    for shard in within:
        part = values.detach()
        for dim, axis in enumerate(shard.axes):
            part = part.index_select(dim, torch.from_numpy(vector(axis)).to(part.device))
        shard.local.copy_(part)


def _tell(module: nn.Module, leaf: str, shape: tuple[int, ...]) -> None:
    """The module's own record of its sides."""
    sides = next((s for kind, s in SIDES.items() if isinstance(module, kind)), ())
    if leaf == "weight":
        for side, length in zip(sides, shape, strict=False):
            setattr(module, side, length)
