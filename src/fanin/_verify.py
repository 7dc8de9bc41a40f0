"""Do a plan, a model and all ranks agree? Fingerprints, compared by a handful of small all-reduces."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ._apply import Place, checked_places, row_writes, rows_within
from ._distribution import MatrixWide
from ._errors import SHOWN, ModelError, PlanError, listed
from ._fingerprint import fingerprint
from ._roles import canonical
from ._rows import Row
from ._shards import IndexVectors, Shard, is_dtensor, shards_of
from .distributions import Kept

if TYPE_CHECKING:
    from ._plan import InitPlan

PIECE = 2**20  # elements drawn at a time to be compared
MODULUS = 2**64
ABSENT = (2**63 - 1, -(2**63))  # what a rank says to MIN and MAX of a row that it does not hold


def expected(plan: InitPlan, seed: int = 0) -> dict[str, int]:
    """Name -> fingerprint of what the plan draws; see `InitPlan.fingerprint`."""
    found = {}
    for row in plan.rows:
        whole = tuple(range(n) for n in row.shape)
        value = _drawn(row, IndexVectors(row.shape, whole), getattr(torch, row.dtype), seed)
        if value is not None:
            found[row.name] = value
    return found


def _drawn(row: Row, held: IndexVectors, dtype: torch.dtype, seed: int) -> int | None:
    """Fingerprint of the elements that a row draws into a part of it; None if it draws nothing."""
    if isinstance(row.distribution, Kept):
        return None
    total, memory = 0, torch.empty(0, dtype=dtype)
    for part in _blocks(row, held):
        lengths = [len(axis) for axis in part.axes]
        if memory.numel() < math.prod(lengths):  # the first block is the largest
            memory = torch.empty(math.prod(lengths), dtype=dtype)
        block = memory[: math.prod(lengths)].view(lengths)
        with torch.no_grad():
            for write in row_writes(row, block, seed, part):
                write()
        total += sum(map(fingerprint, part.shards(block)))
    return total % MODULUS


def _blocks(row: Row, held: IndexVectors) -> Iterator[IndexVectors]:
    """Pieces along dim 0, for laws that can be drawn in pieces."""
    laws = (row.distribution, *(p.distribution for p in row.packed))
    count = 1
    for axis in held.axes[1:]:
        count *= len(axis)
    if not held.axes or any(isinstance(law, MatrixWide) for law in laws):
        yield held
        return
    first, high = held.axes[0], max(1, PIECE // max(1, count))
    for k in range(0, len(first), high):
        yield IndexVectors(row.shape, (first[k : k + high], *held.axes[1:]))


# ranks ----------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A tensor that is compared.

    Args:
        row: its row's number in the plan.
        tensor: the parameter.
        sum: what this rank's part adds to.
        planned: whether ``sum`` is the distance from the plan, to be 0.
    """

    row: int
    tensor: Tensor
    sum: int
    planned: bool


def verify(plan: InitPlan, model: nn.Module, seed: int | None = 0) -> None:
    """Raise unless the model holds the plan's bits, on all ranks; see `InitPlan.verify`."""
    within = [r.name for r in rows_within(plan, model)]
    places = checked_places(plan, model, only=within)
    numbers = {r.name: i for i, r in enumerate(plan.rows)}
    entries = [e for p in places for e in _entries(model, p, numbers[p.row.name], seed)]
    own = sorted({plan.rows[e.row].name for e in entries if e.planned and e.sum})
    sums = _summed(entries)
    rows: dict[int, int] = {}
    for entry, value in zip(entries, sums, strict=True):
        # Parameters behind one row count apart from one another.
        rows[entry.row] = (3 * rows.get(entry.row, 0) + value) % MODULUS
    setup = hashlib.sha256(f"{plan.hash()} {seed}".encode()).digest()[:7]
    low, high = _bounds([int.from_bytes(setup, "little"), *_signed(rows, len(plan.rows))], places)
    if low[0] != high[0]:
        raise PlanError(
            "the ranks verify different plans or seeds: compare plan.hash() and the seeds. "
            "Read one plan on all ranks with InitPlan.from_json."
        )
    planned = {e.row for e in entries if e.planned}
    names = plan.names
    _report(
        apart=[n for n, a, b in zip(names, low[1:], high[1:], strict=True) if a != b and a <= b],
        missing=[n for n, a, b in zip(names, low[1:], high[1:], strict=True) if a > b],
        other=[names[i] for i in sorted(planned) if low[1 + i] == high[1 + i] != 0],
        own=own,
    )


def _entries(model: nn.Module, place: Place, number: int, seed: int | None) -> Iterator[Entry]:
    row, slot, _ = place
    if slot.through:
        parameters = {canonical(n): p for n, p in model.named_parameters()}
        for name in slot.through:
            if name in parameters:
                tensor = parameters[name]
                yield Entry(number, tensor, _held(shards_of(tensor)), False)
        return
    shards = shards_of(slot.tensor)
    drawn = None
    if seed is not None:
        parts = (
            _drawn(row, IndexVectors(row.shape, s.axes), slot.tensor.dtype, seed) for s in shards
        )
        drawn = (
            sum(p for p in parts if p is not None)
            if not isinstance(row.distribution, Kept)
            else None
        )
    yield Entry(number, slot.tensor, (_held(shards) - (drawn or 0)) % MODULUS, drawn is not None)


def _held(shards: list[Shard]) -> int:
    return sum(map(fingerprint, shards)) % MODULUS


def _summed(entries: list[Entry]) -> list[int]:
    """Each entry's sum over the ranks that hold the other parts: an all-reduce a mesh dim."""
    values = torch.tensor([_to_signed(e.sum) for e in entries], dtype=torch.int64)
    groups: dict[str, tuple[dist.ProcessGroup, list[int]]] = {}
    for i, entry in enumerate(entries):
        for group in _groups(entry.tensor):
            groups.setdefault(group.group_name, (group, []))[1].append(i)
    for group, which in groups.values():
        device = _device(entries[which[0]].tensor)
        part = values[which].to(device)
        dist.all_reduce(part, group=group)
        values[which] = part.cpu()
    return [v % MODULUS for v in values.tolist()]


def _groups(tensor: Tensor) -> Iterator[dist.ProcessGroup]:
    """The ranks over which a tensor is split, a group a mesh dim."""
    if not is_dtensor(tensor):
        return
    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    for dim, placement in enumerate(tensor.placements):  # type: ignore[attr-defined]
        if hasattr(placement, "dim") and mesh.size(dim) > 1:
            yield mesh.get_group(dim)


def _device(tensor: Tensor) -> torch.device:
    return (tensor.to_local() if is_dtensor(tensor) else tensor).device  # type: ignore[attr-defined]


def _signed(rows: dict[int, int], count: int) -> list[int | None]:
    return [_to_signed(rows[i]) if i in rows else None for i in range(count)]


def _to_signed(value: int) -> int:
    return value - MODULUS if value >= MODULUS // 2 else value


def _bounds(values: list[int | None], places: list[Place]) -> tuple[list[int], list[int]]:
    """The least and the greatest of what the ranks say, number by number: two all-reduces."""
    both = []
    device = _device(places[0].slot.tensor) if places else torch.device("cpu")
    for absent, how in zip(ABSENT, (dist.ReduceOp.MIN, dist.ReduceOp.MAX), strict=True):
        said = torch.tensor([absent if v is None else v for v in values], dtype=torch.int64)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            moved = said.to(device)
            dist.all_reduce(moved, how)
            said = moved.cpu()
        both.append(said.tolist())
    return both[0], both[1]


def _report(*, apart: list[str], missing: list[str], other: list[str], own: list[str]) -> None:
    found = [
        *(f"{n}: the ranks hold different values" for n in apart),
        *(f"{n}: all ranks hold the same values, but not the plan's" for n in other),
        *(f"{n}: no rank holds it" for n in missing),
    ]
    if found:
        mine = (
            f"\nThis rank's own part differs from the plan in {', '.join(own[:SHOWN])}."
            if own
            else ""
        )
        raise ModelError(f"the model is not as planned:{listed(found)}{mine}")
