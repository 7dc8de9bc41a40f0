"""Plans and reports as text of at most 80 columns, and tables as HTML.

Repeated blocks print once, as `h.0..11.mlp x12`. Plan and report are known by their attributes
alone, so that their own `__str__` can be made here.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ._fold import Fold, fold
from ._tables import number, sparkline, table, wrap

if TYPE_CHECKING:
    from ._plan import InitPlan, Packed, Row
    from ._report import Finding, Layer, Signal, SignalReport

ENOUGH_ROWS = 24  # a report's table is folded, ever more freely, until it is this short
TOLERANCES = (1.2, 2.0, 10.0, 1e3, math.inf)  # how far figures may differ inside one fold

# plan ----------------------------------------------------------------------------------------


def plan_text(plan: InitPlan) -> str:
    """The plan as a table, each group's reasons under it, and the totals.

    Args:
        plan: an `InitPlan`.
    """
    folds = fold(((r.name, r) for r in plan.rows), _same_start)
    lines = wrap(
        f"fanin plan: scheme {plan.scheme}, {_count(len(plan.rows), 'parameter')} "
        f"({_size(sum(math.prod(r.shape) for r in plan.rows))} elements), rng {plan.rng}"
        f"{', partial' if plan.partial else ''}"
    )
    reasons = list(dict.fromkeys(f.items[0].reasons for f in folds if f.items[0].reasons))
    cells = [cell for f in folds for cell in _plan_rows(f, reasons)]
    if cells:
        header = ("parameter", "", "role", "fan", "std", "distribution", "why")
        lines += ["", table(header, cells, kinds="nllrrtr"), ""]
    for i, reason in enumerate(reasons, 1):
        lines += wrap("; ".join(reason), first=f"{f'[{i}]':<5}")
    tied = [r for r in plan.rows if r.aliases]
    for row in tied:
        lines += wrap(f"tied, drawn once: {row.name} = {' = '.join(row.aliases)}", first="*    ")
    for note in plan.notes:
        lines += wrap(note, first="note ")
    return "\n".join(lines)


def _same_start(a: Row, b: Row) -> bool:
    def content(row: Row) -> tuple[object, ...]:
        return (
            row.shape, row.dtype, row.role, row.fan_in, row.fan_out, row.nonlinearity,
            row.distribution, row.std, row.reasons, row.packed, len(row.aliases),
        )  # fmt: skip

    return content(a) == content(b)


def _plan_rows(f: Fold[Row], reasons: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    row = f.items[0]
    mark = f"[{reasons.index(row.reasons) + 1}]" if row.reasons else ""
    name = f.name + (" *" if row.aliases else "")
    start = (row.role, number(row.fan_in), number(row.std), str(row.distribution), mark)
    slices = [
        ("  :" + ",".join(p.name for p in group), "", "", number(fan), number(std), str(drawn), "")
        for (fan, std, drawn), group in _slices(row.packed)
    ]
    return [(name, f.times, *start), *(slices if _tells_more(row, slices) else ())]


def _slices(packed: tuple[Packed, ...]) -> list[tuple[tuple[Any, ...], list[Packed]]]:
    """Neighbouring slices that start alike, together."""
    key = lambda p: (p.fan_in, p.std, p.distribution)  # noqa: E731 - named for groupby
    return [(k, list(group)) for k, group in groupby(packed, key)]


def _tells_more(row: Row, slices: list[tuple[str, ...]]) -> bool:
    return len(slices) > 1 or any(p.distribution != row.distribution for p in row.packed)


def _size(n: int) -> str:
    """``n`` as people say it: 1797, 12.35k, 124.4M."""
    for unit, scale in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**4)):
        if n >= scale:
            return f"{n / (1000 if unit == 'k' else scale):.4g}{unit}"
    return str(n)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


# report --------------------------------------------------------------------------------------


def report_text(report: SignalReport) -> str:
    """The signal at each layer, what was found, why, and what to do.

    Args:
        report: a `SignalReport`; measured figures are shown where there are any, else predicted.
    """
    layers = list(report.layers)
    flags = _flags(report.findings)
    signals = [_signal(layer) for layer in layers]
    lines = [f"fanin report: {_count(len(layers), 'layer')}, {_source(layers)}"]
    if layers:
        header = ("layer", "", "op", "act", "corr", "grad", "dead", "sat", "")
        cells = [_layer_row(f, flags) for f in _fold_layers(layers, flags)]
        lines += ["", table(header, cells, kinds="nllrrrrrl"), ""]
        lines += _spark("act ", [s and s.act_rms for s in signals])
        lines += _spark("grad", [s and s.grad_rms for s in signals])
    for finding in report.findings:
        lines += ["", *finding_lines(finding)]
    return "\n".join([*lines, "", *wrap(_footer(report))])


def finding_lines(finding: Finding) -> list[str]:
    """One finding: what, where; why; fix."""
    where = f" at {finding.where}" if finding.where and finding.where not in finding.message else ""
    lines = wrap(f"{finding.code} {finding.severity}  {finding.message}{where}", rest="  ")
    lines += wrap(finding.why, first="  why  ") if finding.why else []
    return lines + (wrap(finding.fix, first="  fix  ") if finding.fix else [])


def _fold_layers(layers: list[Layer], flags: dict[str, str]) -> list[Fold[Layer]]:
    """Fold with the tightest tolerance that gives a table short enough to read."""
    folds: list[Fold[Layer]] = []
    for tolerance in TOLERANCES:
        folds = fold(
            ((layer.name or "(root)", layer) for layer in layers), _similar(tolerance, flags)
        )
        if len(folds) <= ENOUGH_ROWS:
            break
    return folds


def _similar(tolerance: float, flags: dict[str, str]) -> Callable[[Layer, Layer], bool]:
    def alike(a: Layer, b: Layer) -> bool:
        s, t = _signal(a), _signal(b)
        if (
            (a.op, len(a.shape), flags.get(a.name)) != (b.op, len(b.shape), flags.get(b.name))
            or not s
            or not t
        ):
            return False
        return _near(s.act_rms, t.act_rms, tolerance) and _near(s.grad_rms, t.grad_rms, tolerance)

    return alike


def _near(a: float | None, b: float | None, tolerance: float) -> bool:
    if not a or not b or not (math.isfinite(a) and math.isfinite(b)):
        return a == b or (a is not None and b is not None and math.isnan(a) and math.isnan(b))
    return max(a, b) <= tolerance * min(a, b)


def _signal(layer: Layer) -> Signal | None:
    return layer.measured or layer.predicted


def _layer_row(f: Fold[Layer], flags: dict[str, str]) -> tuple[str, ...]:
    signals = [s for s in map(_signal, f.items) if s]

    def ends(field: str, form: Callable[[float | None], str]) -> str:
        shown = [form(getattr(s, field)) for s in signals]
        if not shown:
            return "-"
        return shown[0] if shown[0] == shown[-1] else f"{shown[0]}..{shown[-1]}"

    figures = [
        ends("act_rms", _figure), ends("correlation", _correlation), ends("grad_rms", _figure),
        ends("dead", _percent), ends("saturated", _percent),
    ]  # fmt: skip
    return (f.name, f.times, f.items[0].op, *figures, flags.get(f.items[0].name, ""))


def _figure(value: float | None) -> str:
    return number(value, 3)


def _correlation(value: float | None) -> str:
    """Two decimals; near 1 the distance from it, for there it decides: ``1-2e-6``."""
    if value is None or math.isnan(value):
        return number(value)
    if 0.995 < value < 1.0:
        return f"1-{number(1.0 - value, 1)}"
    return f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"


def _flags(findings: Iterable[Finding]) -> dict[str, str]:
    """Layer name -> codes of the findings there."""
    flags: dict[str, str] = {}
    for finding in findings:
        flags[finding.where] = (
            f"{flags[finding.where]} {finding.code}" if finding.where in flags else finding.code
        )
    return flags


def _source(layers: list[Layer]) -> str:
    known = [name for name in ("measured", "predicted") if any(getattr(x, name) for x in layers)]
    return " and ".join(known)


def _spark(title: str, values: Sequence[float | None]) -> list[str]:
    """Bars over depth on a log scale, with the values at both ends."""
    known = [v for v in values if v is not None]
    if len(known) < 3:
        return []
    bars = sparkline(values, log=True, width=40)
    return [f"{title}  {bars}  {_figure(known[0])} to {_figure(known[-1])} (log)"]


def _footer(report: SignalReport) -> str:
    kinds = [
        "error",
        "warning",
        *sorted({f.severity for f in report.findings} - {"error", "warning"}),
    ]
    counts = [_count(n, k) for k in kinds if (n := sum(f.severity == k for f in report.findings))]
    verdict = ", ".join(counts) or "no findings"
    more = f"; more: fanin explain {report.findings[0].code}" if report.findings else ""
    return f"{report.coverage}; {verdict}{more}"


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
