"""Fold what repeats: rows alike but for one number in their names, which grows in equal steps.

`h.0.mlp`, `h.1.mlp`, ..., `h.11.mlp` become one row, `h.0..11.mlp x12`; the rows of a block fold
together, outer blocks first, then what repeats inside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
LONGEST_PERIOD = 256  # rows of a block that can be folded


@dataclass(frozen=True)
class Fold(Generic[T]):
    """Items that print as one row.

    Args:
        parts: the common name, split at dots; a folded number reads ``0..11``.
        items: in order; one if nothing was folded.
    """

    parts: tuple[str, ...]
    items: tuple[T, ...]

    @property
    def name(self) -> str:
        """The common name."""
        return ".".join(self.parts)

    @property
    def times(self) -> str:
        """``x12``, or nothing for a row of its own."""
        return f"x{len(self.items)}" if len(self.items) > 1 else ""


def fold(named: Iterable[tuple[str, T]], alike: Callable[[T, T], bool]) -> list[Fold[T]]:
    """Fold repeated blocks, outer ones first, until nothing repeats.

    Args:
        named: dotted name and item, in order.
        alike: whether two items may share a row.

    >>> [f"{f.name} {f.times}" for f in fold([(f"h.{i}.w", 0) for i in range(3)], int.__eq__)]
    ['h.0..2.w x3']
    """
    folds = [Fold(tuple(name.split(".")), (item,)) for name, item in named]
    while True:
        shorter = _fold_once(folds, alike)
        if len(shorter) == len(folds):
            return folds
        folds = shorter


def _fold_once(folds: list[Fold[T]], alike: Callable[[T, T], bool]) -> list[Fold[T]]:
    result: list[Fold[T]] = []
    at = 0
    while at < len(folds):
        period, count = _longest(folds, at, alike)
        result += [_merged(folds[at + i : at + count * period : period]) for i in range(period)]
        at += count * period
    return result


def _longest(folds: list[Fold[T]], at: int, alike: Callable[[T, T], bool]) -> tuple[int, int]:
    """(rows of the block that begins at ``at``, how often it comes): the most rows, (1, 1) if none."""
    best = (1, 1)
    for period in range(1, min(LONGEST_PERIOD, (len(folds) - at) // 2) + 1):
        count = _repeats(folds, at, period, alike)
        if count * period > best[0] * best[1]:
            best = (period, count)
        if best[0] * best[1] + period > len(folds) - at:
            break
    return best


def _repeats(folds: list[Fold[T]], at: int, period: int, alike: Callable[[T, T], bool]) -> int:
    """How many times the block of ``period`` rows at ``at`` comes, one after the other; 0 if once."""
    if not alike(folds[at].items[0], folds[at + period].items[0]):  # the quickest to rule out
        return 0
    step = _step(folds[at].parts, folds[at + period].parts)
    if step is None or _same_group(folds, at - 1, step[0]):
        return 0

    def follows(i: int) -> bool:
        first, this = folds[at + (i - at) % period], folds[i]
        return (
            len(first.items) == len(this.items)
            and all(map(alike, first.items, this.items))
            and _step(folds[i - period].parts, this.parts) == step
        )

    end = at + period
    while end < len(folds) and follows(end):
        end += 1
    count = (end - at) // period
    while count > 1 and _same_group(folds, at + count * period - 1, step[0]):
        count -= 1
    return count if count > 1 else 0


def _step(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[int, int] | None:
    """(position, growth) of the one number in which two names differ; None if they differ else."""
    if len(first) != len(second):
        return None
    differ = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    if len(differ) != 1:
        return None
    a, b = first[differ[0]], second[differ[0]]
    grows = a.isdecimal() and b.isdecimal() and int(b) > int(a)
    return (differ[0], int(b) - int(a)) if grows else None


def _same_group(folds: list[Fold[T]], i: int, position: int) -> bool:
    """Whether rows ``i`` and ``i + 1`` share their names up to ``position``: no place to cut."""
    return 0 <= i < len(folds) - 1 and (
        folds[i].parts[: position + 1] == folds[i + 1].parts[: position + 1]
    )


def _merged(folds: Sequence[Fold[T]]) -> Fold[T]:
    first, last = folds[0].parts, folds[-1].parts
    parts = tuple(a if a == b else f"{a}..{b}" for a, b in zip(first, last, strict=True))
    return Fold(parts, tuple(item for f in folds for item in f.items))
