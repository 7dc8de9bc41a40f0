"""What an experiment hands back: plain data, and how it prints. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from .._tables import WIDTH, number, table, wrap

Progress = Callable[[float, str], None]
"""Called with the fraction done (0 to 1) and a few words on what is being done."""

Cell = str | float | int | None
PROSE = 24  # longer cells wrap


class Table(NamedTuple):
    """One table of figures.

    Args:
        title: what is counted.
        header: a word per column.
        rows: cells are numbers, text, or None for "not known".
        formats: column -> format of its fractions, where three significant digits are not right.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    formats: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Result:
    """What an experiment found.

    Args:
        name: one of ``fanin.experiments.NAMES``.
        summary: what was seen, in a few sentences.
        tables: the figures.
        figures: paths of the pictures that were written; empty without matplotlib.
        notes: formulas, sources, steps, seeds, and what the reader should beware of.
    """

    name: str
    summary: str
    tables: tuple[Table, ...]
    figures: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, numbers unrounded; nan and infinities, which JSON lacks, as text."""
        return {
            "name": self.name,
            "summary": self.summary,
            "tables": [
                {
                    "title": t.title,
                    "header": list(t.header),
                    "rows": [[_plain(c) for c in r] for r in t.rows],
                }
                for t in self.tables
            ],
            "figures": [str(path) for path in self.figures],
            "notes": list(self.notes),
        }

    def text(self, width: int = WIDTH) -> str:
        """The whole result as text of at most ``width`` columns (paths stand whole)."""
        blocks = [
            "\n".join([*wrap(t.title, width), table(t.header, _cells(t), width, _kinds(t))])
            for t in self.tables
        ]
        notes = [line for note in self.notes for line in wrap(note, width, "- ", "  ")]
        figures = [f"figure: {path}" for path in self.figures]
        ends = ["\n".join(lines) for lines in (wrap(self.summary, width), notes, figures) if lines]
        return "\n\n".join([*blocks, *ends])

    def __str__(self) -> str:
        return self.text()


def silent(fraction: float, text: str) -> None:
    """The progress of who does not watch."""


def portion(progress: Progress, start: float, stop: float) -> Progress:
    """The progress of a part that spans ``start`` to ``stop`` of the whole.

    >>> portion(lambda fraction, text: print(fraction, text), 0.5, 1.0)(0.5, "training")
    0.75 training
    """
    return lambda fraction, text: progress(start + (stop - start) * fraction, text)


def _plain(cell: Cell) -> Cell:
    return str(cell) if isinstance(cell, float) and not math.isfinite(cell) else cell


def _cells(t: Table) -> list[list[str]]:
    formats = [t.formats.get(column, "#.3g") for column in t.header]
    return [[_text(cell, form) for cell, form in zip(row, formats, strict=True)] for row in t.rows]


def _text(cell: Cell, form: str) -> str:
    """Whole numbers and text as they are; fractions by their format, exponents without padding."""
    if not isinstance(cell, float):
        return str(cell) if cell is not None else number(None)
    mantissa, e, exponent = f"{cell:{form}}".partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa.removesuffix(".")


def _kinds(t: Table) -> str:
    """Numbers to the right, long text wrapped, short text to the left."""
    columns = zip(*t.rows, strict=True)
    return "".join(_kind(column) for column in columns)


def _kind(column: tuple[Cell, ...]) -> str:
    words = [cell for cell in column if isinstance(cell, str)]
    if not words:
        return "r"
    return "t" if max(map(len, words)) > PROSE else "l"
