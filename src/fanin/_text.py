"""Plans and reports as text of at most 80 columns, and tables as HTML.

Repeated blocks print once, as `h.0..11.mlp x12`. Plan and report are known by their attributes
alone, so that their own `__str__` can be made here.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ._fold import Fold, fold
from ._tables import markdown, number, sparkline, table, wrap

if TYPE_CHECKING:
    from ._plan import InitPlan, PlanDiff
    from ._report import Finding, Layer, Signal, SignalReport
    from ._rows import Packed, Row

ENOUGH_ROWS = 24  # a report's table is folded, ever more freely, until it is this short
TOLERANCES = (1.2, 2.0, 10.0, 1e3, math.inf)  # how far figures may differ inside one fold

# plan ----------------------------------------------------------------------------------------


PLAN_HEADER = ("parameter", "", "role", "fan", "std", "distribution", "why")


def plan_text(plan: InitPlan) -> str:
    """The plan as a table; each row's reasons stand below it, under the number in its last column.

    Args:
        plan: an `InitPlan`.
    """
    cells, reasons = _plan_cells(plan)
    lines = wrap(_plan_title(plan))
    if cells:
        lines += ["", table(PLAN_HEADER, cells, kinds="nllrrcr"), ""]
    for i, reason in enumerate(reasons, 1):
        lines += wrap(reason, first=f"{f'[{i}]':<5}")
    for row in plan.rows:
        lines += wrap(_tie(row), first="*    ") if row.aliases else []
    for note in plan.notes:
        lines += wrap(note, first="note ")
    return "\n".join(lines)


def plan_markdown(plan: InitPlan) -> str:
    """The plan as a Markdown table, reasons and notes as lists."""
    cells, reasons = _plan_cells(plan)
    points = [f"{i}. {reason}" for i, reason in enumerate(reasons, 1)]
    points += [f"- \\* {_tie(row)}" for row in plan.rows if row.aliases]
    points += [f"- {note}" for note in plan.notes]
    return "\n".join([f"**{_plan_title(plan)}**", "", markdown(PLAN_HEADER, cells), "", *points])


def _plan_title(plan: InitPlan) -> str:
    return (
        f"fanin plan: scheme {plan.scheme}, {_count(len(plan.rows), 'parameter')} "
        f"({_size(sum(math.prod(r.shape) for r in plan.rows))} elements), rng {plan.rng}"
        f"{', partial' if plan.partial else ''}"
    )


def _tie(row: Row) -> str:
    return f"tied, drawn once: {row.name} = {' = '.join(row.aliases)}"


def _plan_cells(plan: InitPlan) -> tuple[list[tuple[str, ...]], list[str]]:
    """Rows of the table, and the distinct reasons that their marks point to."""
    folds = fold(((r.name, r) for r in plan.rows), _same_start)
    reasons = list(
        dict.fromkeys("; ".join(f.items[0].reasons) for f in folds if f.items[0].reasons)
    )
    return [cell for f in folds for cell in _plan_rows(f, reasons)], reasons


def _same_start(a: Row, b: Row) -> bool:
    def content(row: Row) -> tuple[object, ...]:
        return (
            row.shape, row.dtype, row.role, row.fan_in, row.fan_out, row.nonlinearity,
            row.distribution, row.std, row.reasons, row.packed, len(row.aliases),
        )  # fmt: skip

    return content(a) == content(b)


def _plan_rows(f: Fold[Row], reasons: list[str]) -> list[tuple[str, ...]]:
    row = f.items[0]
    mark = f"[{reasons.index('; '.join(row.reasons)) + 1}]" if row.reasons else ""
    name = f.name + (" *" if row.aliases else "")
    start = (row.role, number(row.fan_in), number(row.std), drawn(row.distribution), mark)
    slices = [
        (
            f"  :{','.join(p.name for p in same)}",
            "",
            "",
            number(fan),
            number(std),
            drawn(distribution),
            "",
        )
        for (fan, std, distribution), same in _slices(row.packed)
    ]
    whole = len(slices) == 1 and row.packed[0].distribution == row.distribution
    return [(name, f.times, *start), *(() if whole else slices)]


def _slices(packed: tuple[Packed, ...]) -> list[tuple[tuple[Any, ...], list[Packed]]]:
    """Neighbouring slices that start alike, together."""
    return [
        (k, list(same)) for k, same in groupby(packed, lambda p: (p.fan_in, p.std, p.distribution))
    ]


def drawn(distribution: object) -> str:
    """A distribution as its constructor's call, by position: ``TruncatedNormal(0.02, 3)``."""
    return re.sub(r"\b[a-z_]+=", "", str(distribution))


def _size(n: int) -> str:
    """``n`` as people say it: 1797, 12.35k, 124.4M."""
    for unit, scale in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**4)):
        if n >= scale:
            return f"{n / (1000 if unit == 'k' else scale):.4g}{unit}"
    return str(n)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


# report --------------------------------------------------------------------------------------


REPORT_HEADER = ("layer", "", "op", "act", "corr", "grad", "dead", "sat", "FAN")
REPORT_KINDS = "nlnrrrrrc"
ALWAYS = ("layer", "op", "act", "corr", "grad")  # columns that stand even if nothing is known


def report_text(report: SignalReport) -> str:
    """The signal at each layer, what was found, why, and what to do.

    Args:
        report: a `SignalReport`; measured figures are shown where there are any, else predicted.
    """
    header, rows, kinds = _report_table(report)
    signals = [layer.signal for layer in report.layers]
    bars = [
        *_spark("act ", [s.act_rms for s in signals]),
        *_spark("grad", [s.grad_rms for s in signals]),
    ]
    notes = [line for note in report.notes for line in wrap(note, first="note ")]
    blocks = [
        wrap(_report_title(report)),
        [table(header, rows, kinds=kinds)] if rows else [],
        bars,
        *map(_finding_lines, report.findings),
        [*notes, *wrap(_footer(report))],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def report_markdown(report: SignalReport) -> str:
    """The report as a Markdown table and a list of findings."""
    points = [
        f"- **{f.code} {f.severity}** {_what(f)}\n  - why: {f.why}\n  - fix: {f.fix}"
        for f in report.findings
    ]
    points += [f"- {note}" for note in report.notes]
    header, rows, _ = _report_table(report)
    return "\n".join(
        [
            f"**{_report_title(report)}**",
            "",
            markdown(header, rows),
            "",
            *points,
            "",
            _footer(report),
        ]
    )


def _report_title(report: SignalReport) -> str:
    kinds = ("measured", "predicted")
    known = [kind for kind in kinds if any(getattr(layer, kind) for layer in report.layers)]
    title = (
        f"fanin report: {_count(len(report.layers), 'op')} {' and '.join(known)} in {report.dtype}"
    )
    chance = f" (chance {number(report.chance)})" if report.chance is not None else ""
    return title + (f", loss {number(report.loss)}{chance}" if report.loss is not None else "")


def _report_rows(report: SignalReport) -> list[tuple[str, ...]]:
    """The input, then the layers, folded with the tightest tolerance that gives a short table."""
    flags = _flags(report)
    named = [
        (layer.name or "(model)", (layer, flags.get(i, "")))
        for i, layer in enumerate(report.layers)
    ]
    folds: list[Fold[tuple[Layer, str]]] = []
    for tolerance in TOLERANCES:
        folds = fold(named, _similar(tolerance))
        if len(folds) <= ENOUGH_ROWS:
            break
    rows = [_layer_row(f) for f in folds]
    return (
        rows
        if report.inputs is None
        else [("(input)", "", "", *_figures([report.inputs]), ""), *rows]
    )


def _report_table(report: SignalReport) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and kinds; a column that is empty and need not be there is left out."""
    rows = _report_rows(report)
    told = [
        i
        for i, title in enumerate(REPORT_HEADER)
        if title in ALWAYS or any(row[i] not in ("", "-") for row in rows)
    ]
    header = [REPORT_HEADER[i] for i in told]
    return header, [[row[i] for i in told] for row in rows], "".join(REPORT_KINDS[i] for i in told)


def _flags(report: SignalReport) -> dict[int, str]:
    """Layer's index -> codes, less their ``FAN``, of the findings that begin there."""
    first: dict[str, int] = {}
    for i, layer in enumerate(report.layers):
        first.setdefault(layer.name, i)
    places = [
        (first[f.where], f.code.removeprefix("FAN"))
        for f in report.findings
        if f.where and f.where in first
    ]
    return {i: " ".join(dict.fromkeys(code for at, code in places if at == i)) for i, _ in places}


def _similar(tolerance: float) -> Callable[[tuple[Layer, str], tuple[Layer, str]], bool]:
    def alike(a: tuple[Layer, str], b: tuple[Layer, str]) -> bool:
        (x, flag), (y, other) = a, b
        s, t = x.signal, y.signal
        return (
            (x.op, len(x.shape), flag) == (y.op, len(y.shape), other)
            and _near(s.act_rms, t.act_rms, tolerance)
            and _near(s.grad_rms, t.grad_rms, tolerance)
        )

    return alike


def _near(a: float | None, b: float | None, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    if not (a and b and math.isfinite(a) and math.isfinite(b)):
        return a == b or (math.isnan(a) and math.isnan(b))
    return max(a, b) <= tolerance * min(a, b)


def _layer_row(f: Fold[tuple[Layer, str]]) -> tuple[str, ...]:
    layer, flag = f.items[0]
    return (f.name, f.times, layer.op, *_figures([x.signal for x, _ in f.items]), flag)


def _figures(signals: Sequence[Signal]) -> list[str]:
    """Sizes from the first layer to the last; of the fractions the largest, ``..`` meaning up to."""

    def ends(field: str) -> str:
        first, last = getattr(signals[0], field), getattr(signals[-1], field)
        same = _brief(first) == _brief(last)
        return _figure(first) if same else f"{_brief(first)}..{_brief(last)}"

    def most(field: str, form: Callable[[float | None], str]) -> str:
        known = [v for s in signals if (v := getattr(s, field)) is not None and not math.isnan(v)]
        largest = form(max(known)) if known else form(getattr(signals[0], field))
        return largest if len({form(v) for v in known}) < 2 else f"..{largest}"

    return [
        ends("act_rms"), most("correlation", _correlation), ends("grad_rms"),
        most("dead", _percent), most("saturated", _percent),
    ]  # fmt: skip


def _figure(value: float | None) -> str:
    return number(value, 3)


def _brief(value: float | None) -> str:
    """For a range: of the very small the magnitude is enough."""
    return number(value, 2 if value is None or abs(value) >= 1e-3 else 1)


def _correlation(value: float | None) -> str:
    """Two decimals; near 1 the distance from it, for there it decides: ``1-2e-6``."""
    if value is None or math.isnan(value):
        return number(value)
    return f"1-{number(1.0 - value, 1)}" if 0.995 < value < 1.0 else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{number(100 * value, 2)}%"


def _spark(title: str, values: Sequence[float | None]) -> list[str]:
    """Bars over depth on a log scale, with the values at both ends."""
    known = [v for v in values if v is not None]
    if len(known) < 3:
        return []
    bars = sparkline(values, log=True, width=40)
    return [f"{title}  {bars}  {_figure(known[0])} to {_figure(known[-1])}, log scale"]


def _what(finding: Finding) -> str:
    named = re.search(rf"(?<![\w.]){re.escape(finding.where)}(?![\w.])", finding.message)
    return finding.message if named or not finding.where else f"{finding.where}: {finding.message}"


def _finding_lines(finding: Finding) -> list[str]:
    """One finding: what and where; why; fix."""
    lines = wrap(f"{finding.code} {finding.severity}  {_what(finding)}", rest="  ")
    lines += wrap(finding.why, first="  why  ") if finding.why else []
    return lines + (wrap(finding.fix, first="  fix  ") if finding.fix else [])


def _footer(report: SignalReport) -> str:
    found = [f.severity for f in report.findings]
    counts = [_count(found.count(kind), kind) for kind in dict.fromkeys(found)]
    more = f"; more: fanin explain {report.findings[0].code}" if found else ""
    return f"{report.coverage}; {', '.join(counts) or 'no findings'}{more}"


# diff ----------------------------------------------------------------------------------------


def diff_text(diff: PlanDiff) -> str:
    """What changes from one plan to another, repeated blocks once.

    Args:
        diff: a `PlanDiff`.
    """
    if not diff:
        return "the plans write the same values"
    words = [f"- {r.name} {drawn(r.distribution)}" for r in diff.removed]
    words += [f"+ {r.name} {drawn(r.distribution)}" for r in diff.added]
    lines = [line for text in words for line in wrap(text, rest="    ")]
    for f in fold(((a.name, (a, b)) for a, b in diff.changed), _same_change):
        lines += wrap(f"~ {f.name} {f.times}")
        lines += [line for text in _changes(*f.items[0]) for line in wrap(text, first="    ")]
    total = f"{len(diff.removed)} removed, {len(diff.added)} added, {len(diff.changed)} changed"
    return "\n".join([*lines, "", total])


def _same_change(a: tuple[Row, Row], b: tuple[Row, Row]) -> bool:
    return _same_start(a[0], b[0]) and _same_start(a[1], b[1])


def _changes(a: Row, b: Row) -> Iterator[str]:
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        yield f"{a.dtype} {list(a.shape)} -> {b.dtype} {list(b.shape)}"
    if a.distribution != b.distribution:
        ratio = number(b.std / a.std) if a.std and b.std else "1"
        yield f"{drawn(a.distribution)} -> {drawn(b.distribution)}{'' if ratio == '1' else f', std x{ratio}'}"
    elif a.packed != b.packed:
        yield f"{_slice_words(a)} -> {_slice_words(b)}"
    for field in ("role", "fan_in", "fan_out", "nonlinearity", "aliases"):
        old, new = getattr(a, field), getattr(b, field)
        if old != new:
            yield f"{field} {old} -> {new}"
    if a.reasons != b.reasons:
        yield f"why: {'; '.join(b.reasons)}"


def _slice_words(row: Row) -> str:
    return " ".join(f":{p.name} {drawn(p.distribution)}" for p in row.packed) or "no slices"


# HTML ----------------------------------------------------------------------------------------


def html_table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A plain HTML table, every cell escaped; numbers to four digits, None as ``-``.

    >>> html_table(("std",), [(0.0255155,)])
    '<table><thead><tr><th>std</th></tr></thead><tbody><tr><td>0.02552</td></tr></tbody></table>'
    """
    head = "".join(f"<th>{html.escape(str(h))}</th>" for h in header)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(c)}</td>' for c in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    return number(value) if value is None or isinstance(value, float) else html.escape(str(value))
