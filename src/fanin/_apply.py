"""Plan + model: check everything, then hand each tensor to the writer. Nothing is half written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ._errors import ModelError, PlanError, closest, listed
from ._fill import prepared, prepared_shards
from ._rng import Stream
from ._roles import Slot, canonical, slots_of
from ._rows import tiles
from ._shards import Held, Shard, is_dtensor, shards_of
from .distributions import Distribution, Kept

if TYPE_CHECKING:
    from ._plan import InitPlan
    from ._rows import Row


def apply_plan_(
    plan: InitPlan,
    model: nn.Module | Mapping[str, Tensor],
    *,
    seed: int = 0,
    only: str | Iterable[str] | None = None,
    held: Mapping[str, Held] | None = None,
) -> nn.Module | Mapping[str, Tensor]:
    """Write ``plan`` into ``model``; see `InitPlan.fill_`."""
    Stream("", seed)  # which refuses what is no seed
    places = checked_places(plan, model, only=only, held=held)
    with torch.no_grad():
        writes = [w for place in places for w in _writes(place, seed)]
        for write in writes:
            write()
    return model


class Place(NamedTuple):
    """Where a row goes.

    Args:
        row: of the plan.
        slot: the model's tensor.
        held: which part of the whole that is, where the tensor does not say so itself.
    """

    row: Row
    slot: Slot
    held: Held | None = None


def checked_places(
    plan: InitPlan,
    model: nn.Module | Mapping[str, Tensor],
    *,
    only: str | Iterable[str] | None = None,
    held: Mapping[str, Held] | None = None,
) -> list[Place]:
    """The chosen rows with their tensors.

    Names, ties and shapes must agree. A whole plan must name all of the model's parameters, a part
    of one may leave some out; a model may be a part too, a stage of a pipeline, where ``only`` or
    the plan is.

    Raises:
        PlanError: they do not agree, with all differences.
    """
    held = held or {}
    slots = slots_by_name(model)
    rows = _chosen(plan, only, model)
    whole = only is None and not plan.partial
    names = {n for s in slots.values() for n in (s.name, *s.aliases)}
    problems = [] if plan.partial else _unplanned(plan, slots)
    problems += [
        f"held says what {n} holds, the plan has no such row" for n in held if n not in plan
    ]
    places = []
    for row in rows:
        own = (row.name, *row.aliases)
        slot = next((slots[n] for n in own if n in slots), None)
        if slot is None:
            problems.append(f"the model has no {row.name}{closest(row.name, slots)}")
            continue
        place = Place(row, slot, next((held[n] for n in own if n in held), None))
        problems += _differences(place, own if whole else [n for n in own if n in names])
        places.append(place)
    _refuse(problems)
    return places


def slots_by_name(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Slot]:
    """Canonical name -> slot, of a module or of tensors by name."""
    if isinstance(model, nn.Module):
        return {s.name: s for s in slots_of(model)}
    found: dict[int, Slot] = {}
    for name, tensor in model.items():
        if not isinstance(tensor, Tensor):
            raise ModelError(
                f"{name!r} is to be filled, but it is no tensor: {type(tensor).__name__}."
            )
        first = found.setdefault(id(tensor), Slot(name, nn.Module(), "", name, tensor))
        if first.name != name:
            first.aliases.append(name)
    return {s.name: s for s in found.values()}


def _unplanned(plan: InitPlan, slots: Mapping[str, Slot]) -> list[str]:
    planned = {n for r in plan.rows for n in (r.name, *r.aliases)}
    return [
        f"the plan has no {n} (shape {list(s.tensor.shape)})"
        for n, s in slots.items()
        if n not in planned
    ]


def _differences(place: Place, names: Sequence[str]) -> list[str]:
    """Where a row and the model's tensor disagree; ``names``, the row's, that the model must tie."""
    row, slot, held = place
    found = []
    shape = tuple(slot.tensor.shape) if held is None else held.shape
    if shape != row.shape:
        found.append(f"{row.name} has shape {list(shape)}, the plan says {list(row.shape)}")
    if {slot.name, *slot.aliases} != set(names):
        found.append(
            f"{row.name} is tied with {_but(row.name, (slot.name, *slot.aliases))}, "
            f"the plan says {_but(row.name, names)}"
        )
    return found


def _but(name: str, names: Iterable[str]) -> str:
    return ", ".join(n for n in names if n != name) or "nothing"


def _refuse(problems: list[str]) -> None:
    if problems:
        raise PlanError(
            f"this plan is for another model; nothing was written:{listed(problems)}\n"
            "Make a plan for this model with fanin.plan(model, inputs), or pass a part with "
            "plan.select(glob) or plan.within(model)."
        )


def _chosen(
    plan: InitPlan, only: str | Iterable[str] | None, model: nn.Module | Mapping[str, Tensor]
) -> tuple[Row, ...]:
    """The rows that ``only`` names; a model's buffers, which missing keys name too, are passed over."""
    if only is None:
        return plan.rows
    globs = [only] if isinstance(only, str) else [canonical(n) for n in only]
    if isinstance(model, nn.Module) and not isinstance(only, str):
        buffers = {canonical(n) for n, _ in model.named_buffers(remove_duplicate=False)}
        globs = [n for n in globs if n not in buffers]
    names = {r.name for g in globs for r in plan.matching(g)}
    return tuple(r for r in plan.rows if r.name in names)


def rows_within(plan: InitPlan, model: nn.Module) -> tuple[Row, ...]:
    """The rows of the parameters that ``model`` has, under any of their names."""
    names = {n for s in slots_of(model) for n in (s.name, *s.aliases)}
    return tuple(r for r in plan.rows if not names.isdisjoint((r.name, *r.aliases)))


def _writes(place: Place, seed: int) -> list[Callable[[], object]]:
    """What writes a row; everything that could fail halfway is asked here, before the first write."""
    row, slot, held = place
    if isinstance(row.distribution, Kept):
        check_kept(row, slot)
        return []
    if slot.through:
        check_parametrization(slot)
    try:
        writes = row_writes(row, slot.tensor, seed, held)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"{row.name}: {error} Nothing was written.") from error
    return [partial(_write_through, row, slot, seed)] if slot.through else writes


def row_writes(
    row: Row, tensor: Tensor, seed: int, held: Held | None = None, *, empty: bool = False
) -> list[Callable[[], object]]:
    """What writes a row into ``tensor``, checked, slice by slice.

    Args:
        row: of the plan.
        tensor: plain, DTensor, or what ``held`` says it holds of the whole.
        seed: of the streams.
        held: for a plain tensor that is part of a larger one.
        empty: ``tensor`` is on the meta device; the writes are for their checks alone.
    """
    if held is None and not empty and not is_dtensor(tensor):
        return [prepared(t, d, key=key, seed=seed) for d, t, key in _pieces(row, tensor)]
    whole = shards_of(tensor, held)
    for shard in whole[:1]:
        if shard.shape != row.shape:
            raise ModelError(
                f"it holds a part of {list(shard.shape)}, the plan says {list(row.shape)}."
            )
    return shard_writes(row, tensor, whole, seed, empty=empty)


def shard_writes(
    row: Row, tensor: Tensor, whole: Sequence[Shard], seed: int, *, empty: bool = False
) -> list[Callable[[], object]]:
    """The same for these parts of ``tensor`` alone."""
    parts = [(row.distribution, list(whole), row.name)]
    if row.packed:
        slices = [
            (
                p.distribution,
                [s for w in whole for s in w.slices(p.dim, p.start, p.stop)],
                f"{row.name}:{p.name}",
            )
            for p in row.packed
        ]
        parts = slices if tiles(row.packed, row.shape) else [*parts, *slices]
    return [
        prepared_shards(tensor, shards, d, key=key, seed=seed, empty=empty)
        for d, shards, key in parts
    ]


def write_row(place: Place, seed: int) -> None:
    """Write one row, once it is checked."""
    for write in _writes(place, seed):
        write()


def check_kept(row: Row, slot: Slot) -> None:
    """A row that keeps its values needs some."""
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
    for write in row_writes(row, target, seed):
        write()
    # An inverse may draw, as torch's orthogonal does to complete a base.
    with own_random_state(Stream(row.name, seed).words[0]):
        write_through(slot, target)


@contextmanager
def own_random_state(seed: int) -> Iterator[None]:
    """What is drawn from the CPU's generator inside depends on the seed; outside nothing changes."""
    before = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        torch.set_rng_state(before)


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
