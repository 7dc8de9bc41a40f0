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
        runs = ((_repeats(folds, at, period, alike), period) for period in _periods(folds, at))
        count, period = max(
            runs, key=lambda run: (run[0] * run[1] if run[0] > 1 else 0, -run[1]), default=(1, 1)
        )
        if count < 2:
            count, period = 1, 1
        result += [_merged(folds[at + i : at + count * period : period]) for i in range(period)]
        at += count * period
    return result


def _periods(folds: list[Fold[T]], at: int) -> list[int]:
    """Distances at which a name like the one at ``at`` comes again."""
    end = min(len(folds), at + LONGEST_PERIOD + 1)
    return [i - at for i in range(at + 1, end) if _step(folds[at].parts, folds[i].parts)]


def _step(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[int, int] | None:
    """(position, growth) of the one number in which two names differ; None if they differ else."""
    if len(first) != len(second):
        return None
    differ = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    if len(differ) != 1:
        return None
    a, b = first[differ[0]], second[differ[0]]
    return (
        (differ[0], int(b) - int(a))
        if a.isdecimal() and b.isdecimal() and int(b) > int(a)
        else None
    )


def _repeats(folds: list[Fold[T]], at: int, period: int, alike: Callable[[T, T], bool]) -> int:
    """How many times the block of ``period`` rows at ``at`` comes, one after the other."""
    step = _step(folds[at].parts, folds[at + period].parts)

    def follows(first: Fold[T], last: Fold[T], this: Fold[T]) -> bool:
        return (
            _step(last.parts, this.parts) == step
            and len(first.items) == len(this.items)
            and all(map(alike, first.items, this.items))
        )

    for start in range(at + period, len(folds), period):
        block = zip(
            folds[at : at + period],
            folds[start - period : start],
            folds[start : start + period],
            strict=False,
        )
        if start + period > len(folds) or not all(follows(*trio) for trio in block):
            return (start - at) // period
    return (len(folds) - at) // period


def _merged(folds: Sequence[Fold[T]]) -> Fold[T]:
    first, last = folds[0].parts, folds[-1].parts
    parts = tuple(a if a == b else f"{a}..{b}" for a, b in zip(first, last, strict=True))
    return Fold(parts, tuple(item for f in folds for item in f.items))
