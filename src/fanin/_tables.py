"""Rows -> aligned plain text of a given width, without ever cutting a number.

Names give way first, in the middle; prose wraps; numbers stand whole. Columns that still do not
fit go into a second block under the first, its rows named again.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 80
ELLIPSIS = "…"
BARS = "▁▂▃▄▅▆▇█"
NAME_LEAST = 14  # a name keeps at least so many characters
CALL_LEAST = 18  # calls up to this long do not break
TEXT_LEAST = 24  # prose is not squeezed below this while another block would help


def number(value: float | None, digits: int = 4) -> str:
    """``value`` to ``digits`` significant digits, as short as it can be read.

    None prints as ``-``; whole numbers below a million stand whole; exponents carry no padding.

    >>> [number(v) for v in (None, 512.0, 0.0255155, 2.53e-5, 1e-41, float("nan"))]
    ['-', '512', '0.02552', '2.53e-5', '1e-41', 'nan']
    """
    if value is None:
        return "-"
    value = float(value)
    if math.isfinite(value) and value == int(value) and abs(value) < 1e6:
        return str(int(value))
    mantissa, e, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def shorten(name: str, width: int) -> str:
    """``name`` in at most ``width`` characters; ``…`` stands for its middle, for its ends tell most.

    >>> shorten("transformer.h.0.attn.c_attn.weight", 20)
    'transforme…tn.weight'
    """
    if len(name) <= width:
        return name
    tail = (width - 1) // 2
    return name[: width - 1 - tail] + ELLIPSIS + (name[-tail:] if tail else "")


def wrap(text: str, width: int = WIDTH, first: str = "", rest: str | None = None) -> list[str]:
    """``text`` as lines of at most ``width``, the first led by ``first``, others by ``rest``.

    Words, and so numbers, stay whole; one longer than a line runs on in the next, losing nothing.
    """
    lines = textwrap.wrap(
        " ".join(text.split()),
        width,
        initial_indent=first,
        subsequent_indent=" " * len(first) if rest is None else rest,
        break_on_hyphens=False,
    )
    return lines or [first.rstrip()]


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], width: int = WIDTH, kinds: str = ""
) -> str:
    """An aligned table of at most ``width`` columns.

    Args:
        header: one title per column.
        rows: cells as text; newlines and tabs count as spaces.
        width: columns of the terminal.
        kinds: one letter per column: ``n`` a name, shortened in the middle if need be; ``t``
            prose, wrapped; ``c`` a call, wrapped before its parenthesis and between arguments;
            ``r`` whole, to the right; ``l`` whole, to the left (the default).

    >>> print(table(("layer", "std"), [("fc1.weight", "0.02552"), ("fc2", "1")], kinds="nr"))
    layer           std
    fc1.weight  0.02552
    fc2               1
    """
    lines = [[re.sub(r"[\n\r\t]", " ", str(cell)) for cell in row] for row in (header, *rows)]
    kinds = kinds.ljust(len(header), "l")
    natural = [max(len(line[i]) for line in lines) for i in range(len(header))]
    least = [_least(kind, [line[i] for line in lines], width) for i, kind in enumerate(kinds)]
    gap = 2 if sum(least) + 2 * (len(least) - 1) <= width else 1  # a tight table beats two blocks
    blocks = [
        _block(
            [[line[i] for i in columns] for line in lines],
            "".join(kinds[i] for i in columns),
            _grow([least[i] for i in columns], [natural[i] for i in columns], width, gap),
            " " * gap,
        )
        for columns in _split(least, width, gap)
    ]
    return "\n\n".join(blocks)


def _least(kind: str, cells: list[str], width: int) -> int:
    """How far a column can shrink: whole numbers, whole words, the ends of a name."""
    natural = max(map(len, cells))
    if kind == "n":
        return min(natural, max(NAME_LEAST, len(cells[0])))
    if kind == "t":
        return min(
            natural,
            width,
            max([TEXT_LEAST, *(len(word) for cell in cells for word in cell.split())]),
        )
    if kind == "c":
        whole = [[cell] if len(cell) <= CALL_LEAST else _opened(cell).split() for cell in cells]
        return min(natural, width, max(len(piece) for pieces in whole for piece in pieces))
    return natural


def _split(least: list[int], width: int, gap: int) -> list[list[int]]:
    """Column numbers of each block; every block begins with column 0."""
    blocks, used = [[0]], least[0]
    for i in range(1, len(least)):
        used += gap + least[i]
        if used > width and len(blocks[-1]) > 1:
            blocks.append([0])
            used = least[0] + gap + least[i]
        blocks[-1].append(i)
    return blocks


def _grow(least: list[int], natural: list[int], width: int, gap: int) -> list[int]:
    """Widths between least and natural that use the line, columns served from the left."""
    slack = width - sum(least) - gap * (len(least) - 1)
    widths = list(least)
    for i in range(len(least)):
        extra = max(0, min(slack, natural[i] - widths[i]))
        widths[i] += extra
        slack -= extra
    return widths


def _block(lines: list[list[str]], kinds: str, widths: list[int], gap: str) -> str:
    return "\n".join(text for line in lines for text in _lines(line, kinds, widths, gap))


def _lines(cells: list[str], kinds: str, widths: list[int], gap: str) -> list[str]:
    """One row as one or, where prose wraps, several lines."""
    columns = [_fitted(*column) for column in zip(cells, kinds, widths, strict=True)]
    height = max(map(len, columns))
    padded = [column + [""] * (height - len(column)) for column in columns]
    return [
        gap.join(
            text.rjust(w) if kind == "r" else text.ljust(w)
            for text, kind, w in zip(parts, kinds, widths, strict=True)
        ).rstrip()
        for parts in zip(*padded, strict=True)
    ]


def _fitted(cell: str, kind: str, width: int) -> list[str]:
    """One cell as the lines it takes."""
    if len(cell) <= width or kind in "lr":
        return [cell]
    if kind == "n":
        return [shorten(cell, width)]
    return wrap(_opened(cell) if kind == "c" else cell, width)


def _opened(call: str) -> str:
    """``f(x)`` as ``f (x)``, where a line may break."""
    return re.sub(r"(?<=\w)\(", " (", call)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""A Markdown table; cells are escaped.

    >>> print(markdown(("layer", "std"), [("h.*.w", "0.02")]))
    | layer | std |
    |---|---|
    | h.\*.w | 0.02 |
    """
    titles, *lines = ([_escaped(str(cell)) for cell in row] for row in (header, *rows))
    rule = f"|{'---|' * len(titles)}"
    return "\n".join([_piped(titles), rule, *map(_piped, lines)])


def _escaped(cell: str) -> str:
    return re.sub(r"([\\|*_<`\[])", r"\\\1", " ".join(cell.split()))


def _piped(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def sparkline(values: Iterable[float | None], log: bool = False, width: int = WIDTH) -> str:
    """Values as a row of bars from lowest to highest; unknown ones are blanks.

    Args:
        values: None and nan are unknown; under ``log``, 0 draws the lowest bar.
        log: bars follow log10 of the absolute value, over at least one decade, so that a flat
            line looks flat.
        width: more values than this are thinned evenly.

    >>> sparkline([1, 2, 3, 4, None, 8])
    '▁▂▃▄ █'
    """
    levels = [_level(v, log) for v in values]
    if len(levels) > width:
        levels = [levels[i * (len(levels) - 1) // (width - 1)] for i in range(width)]
    known = [v for v in levels if math.isfinite(v)]
    scale = 1.0 if log else max(map(abs, known), default=0.0) or 1.0
    low, high = min(known, default=0.0) / scale, max(known, default=0.0) / scale
    least = 1.0 if log else 1e-9
    if high - low < least:  # what hardly moves runs through the middle of one bar
        low, high = (low + high) / 2 - least * 9 / 16, (low + high) / 2 + least * 7 / 16
    return "".join(" " if math.isnan(v) else BARS[_bar(v / scale, low, high)] for v in levels)


def _level(value: float | None, log: bool) -> float:
    if value is None or math.isnan(value):
        return math.nan
    if not log:
        return float(value)
    return math.log10(abs(value)) if value else -math.inf


def _bar(level: float, low: float, high: float) -> int:
    if math.isinf(level):
        return 0 if level < 0 else len(BARS) - 1
    return min(len(BARS) - 1, int((level - low) / (high - low) * len(BARS)))
