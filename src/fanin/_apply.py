"""Plan + model: check everything, then hand each tensor to the writer. Nothing is half written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ._errors import ModelError, PlanError, closest
from ._fill import fill_, prepared
from ._plan import tiles
from ._rng import Stream
from ._roles import Slot, slots_of
from ._shards import is_dtensor
from .distributions import Distribution, Kept

if TYPE_CHECKING:
    from ._plan import InitPlan, Row

SHOWN = 8  # differences named before the message turns into a count


def apply_plan_(
    plan: InitPlan, model: nn.Module, *, seed: int = 0, only: str | Iterable[str] | None = None
) -> nn.Module:
    """Write ``plan`` into ``model``; see `InitPlan.fill_`."""
    Stream("", seed)  # which refuses what is no seed
    slots = {s.name: s for s in slots_of(model)}
    _check_same_model(plan, slots)
    with torch.no_grad():
        writes = [w for row in _chosen(plan, only) for w in _writes(row, slots[row.name], seed)]
        for write in writes:
            write()
    return model


def _check_same_model(plan: InitPlan, slots: dict[str, Slot]) -> None:
    """Names, ties and shapes must agree; a partial plan may leave parameters out."""
    problems = [
        f"the model has no {r.name}{closest(r.name, slots)}"
        for r in plan.rows
        if r.name not in slots
    ]
    if not plan.partial:
        planned = {n for r in plan.rows for n in (r.name, *r.aliases)}
        problems += [
            f"the plan has no {n} (shape {list(s.tensor.shape)})"
            for n, s in slots.items()
            if n not in planned
        ]
    for row in plan.rows:
        slot = slots.get(row.name)
        if slot is None:
            continue
        if tuple(slot.tensor.shape) != row.shape:
            problems.append(
                f"{row.name} has shape {list(slot.tensor.shape)}, the plan says {list(row.shape)}"
            )
        if set(slot.aliases) != set(row.aliases):
            problems.append(
                f"{row.name} is tied with {', '.join(slot.aliases) or 'nothing'}, "
                f"the plan says {', '.join(row.aliases) or 'nothing'}"
            )
    if problems:
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        listed = "".join(f"\n  {p}" for p in problems[:SHOWN])
        raise PlanError(
            f"this plan is for another model; nothing was written:{listed}{more}\n"
            "Make a plan for this model with fanin.plan(model, inputs), or pass a part with plan.select(glob)."
        )


def _chosen(plan: InitPlan, only: str | Iterable[str] | None) -> tuple[Row, ...]:
    if only is None:
        return plan.rows
    globs = [only] if isinstance(only, str) else list(only)
    names = {r.name for g in globs for r in plan.matching(g)}
    return tuple(r for r in plan.rows if r.name in names)


def _writes(row: Row, slot: Slot, seed: int) -> list[Callable[[], object]]:
    """What writes a row; everything that could fail halfway is asked here, before the first write."""
    if isinstance(row.distribution, Kept):
        _check_kept(row, slot)
        return []
    if slot.through:
        check_parametrization(slot)
    if row.packed and is_dtensor(slot.tensor):
        raise ModelError(
            f"{row.name} is a DTensor and has slices drawn on their own ({', '.join(p.name for p in row.packed)}); "
            "a slice of a DTensor is a copy. Fill the model before sharding it. Nothing was written."
        )
    writes = []
    for distribution, part, key in _pieces(row, slot.tensor):
        try:
            writes.append(prepared(part, distribution, key=key, seed=seed))
        except (ValueError, TypeError, RuntimeError) as error:
            raise ModelError(f"{row.name}: {error} Nothing was written.") from error
    return [partial(_write_through, row, slot, seed)] if slot.through else writes


def _check_kept(row: Row, slot: Slot) -> None:
    if slot.tensor.is_meta:
        raise ModelError(
            f"{row.name} is to keep its present values, but it is on the meta device and has none. "
            f"Say how it starts, for example overrides={{{row.name!r}: Normal(0.02)}}. Nothing was written."
        )


def check_parametrization(slot: Slot) -> None:
    """A parametrization can be written through only if it says how to invert itself."""
    by_leaf = dict(getattr(slot.owner, "parametrizations", nn.ModuleDict()).items())
    for step in by_leaf.get(slot.leaf, ()):
        if not hasattr(step, "right_inverse"):
            raise ModelError(
                f"{slot.name} is computed by the parametrization {type(step).__name__}, which has no "
                "right_inverse, so a starting value cannot be written through it. Define right_inverse, "
                "or initialise before registering the parametrization. Nothing was written."
            )


def _pieces(row: Row, tensor: Tensor) -> list[tuple[Distribution, Tensor, str]]:
    """What is drawn into which part of ``tensor`` from which stream, in the order of writing."""
    if not row.packed:
        return [(row.distribution, tensor, row.name)]
    slices = [
        (p.distribution, tensor.narrow(p.dim, p.start, p.stop - p.start), f"{row.name}:{p.name}")
        for p in row.packed
    ]
    whole = [] if tiles(row.packed, row.shape) else [(row.distribution, tensor, row.name)]
    return [*whole, *slices]


def _write_through(row: Row, slot: Slot, seed: int) -> None:
    target = torch.empty_like(slot.tensor)
    for distribution, part, key in _pieces(row, target):
        fill_(part, distribution, key=key, seed=seed)
    write_through(slot, target)


def write_through(slot: Slot, value: Tensor) -> None:
    """Set the parameters behind ``slot`` so that the module computes ``value``."""
    own = slot.owner._parameters  # noqa: SLF001 - the hook-based norms keep their parts there
    if slot.leaf in getattr(slot.owner, "parametrizations", {}):
        setattr(slot.owner, slot.leaf, value)
    elif f"{slot.leaf}_orig" in own:
        own[f"{slot.leaf}_orig"].copy_(value)  # type: ignore[union-attr]
    else:
        magnitude, direction = own[f"{slot.leaf}_g"], own[f"{slot.leaf}_v"]
        direction.copy_(value)  # type: ignore[union-attr]
        reduced = [d for d in range(value.dim()) if magnitude.dim() == 0 or magnitude.shape[d] == 1]  # type: ignore[union-attr]
        norm = torch.linalg.vector_norm(value, dim=reduced or None, keepdim=True)
        magnitude.copy_(norm.reshape(magnitude.shape))  # type: ignore[union-attr]
