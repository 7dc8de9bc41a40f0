"""SignalReport: what the signal does at each op, predicted or measured, and what follows from it.

Records only. `_probe` writes them, `_findings` reads them, `_text` prints them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from ._errors import InvalidValueError, MissingExtraError, one_of
from ._text import html_table, report_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = "fanin-report-1"
_NUMBERS = frozenset((float, type(None)))
SEVERITIES = ("error", "warning")


@dataclass(frozen=True)
class Signal:
    """Statistics of one tensor of the network. What is not known is None.

    Args:
        act_rms: sqrt(mean x^2) over all elements.
        act_mean: mean x.
        correlation: mean cosine, not centred, over pairs of different samples; in [-1, 1].
        grad_rms: sqrt(mean g^2), g the gradient of the loss for this tensor.
        dead: fraction of units that are zero for every sample and position; in [0, 1].
        saturated: fraction of elements beyond 97 % of the function's range; in [0, 1].
        error_bar: relative standard error of `act_rms` over draws of weights of this width.
    """

    act_rms: float | None = None
    act_mean: float | None = None
    correlation: float | None = None
    grad_rms: float | None = None
    dead: float | None = None
    saturated: float | None = None
    error_bar: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) not in _NUMBERS and (
                isinstance(value, bool) or not isinstance(value, (int, float))
            ):
                raise InvalidValueError(f"{name} must be a number or None; got {value!r}.")


@dataclass(frozen=True)
class Layer:
    """The output of one op.

    Args:
        name: FQN of the innermost module that ran it; empty for the model itself.
        op: the field's name: ``linear``, ``relu``, ``layer_norm``.
        shape: of the output, samples first.
        predicted: from the plan, without running the model.
        measured: from a run.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    predicted: Signal | None = None
    measured: Signal | None = None

    @property
    def signal(self) -> Signal:
        """Measured if known, else predicted."""
        return self.measured or self.predicted or Signal()


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Args:
        code: stable: ``FAN102``.
        severity: ``error`` or ``warning``.
        where: FQN of the layer at which it shows first; empty for the whole model.
        message: what is seen, with figures.
        why: what causes it, in the field's terms.
        fix: the line to write.
    """

    code: str
    severity: str
    where: str
    message: str
    why: str
    fix: str

    def __post_init__(self) -> None:
        one_of("severity", self.severity, SEVERITIES)


@dataclass(frozen=True)
class Coverage:
    """How much of the model was seen.

    Args:
        recorded: ops on the signal that are among the layers.
        seen: ops on the signal that yield real or complex numbers.
        missed: names of the others, with their counts: ``fft_r2c x2``.

    >>> print(Coverage(198, 201, ("fft_r2c x3",)))
    covered 198/201 ops, not measured: fft_r2c x3
    """

    recorded: int = 0
    seen: int = 0
    missed: tuple[str, ...] = ()

    def __str__(self) -> str:
        rest = f", not measured: {', '.join(self.missed)}" if self.missed else ""
        return f"covered {self.recorded}/{self.seen} ops{rest}"


@dataclass(frozen=True)
class SignalReport:
    """The signal at every op in execution order, forward and backward, with findings.

    Args:
        layers: one per recorded op, in execution order.
        findings: errors first.
        coverage: what was seen of the model.
        outputs: (FQN of a leaf module, index into ``layers`` of its last output).
        inputs: statistics of the first floating input.
        loss: value of the loss, if one was given.
        chance: what it is for a uniform guess, ln(classes), if it is a cross-entropy.
        dtype: of the model's numbers: ``float32``.
        notes: sentences for the reader.
    """

    layers: tuple[Layer, ...]
    findings: tuple[Finding, ...] = ()
    coverage: Coverage = Coverage()
    outputs: tuple[tuple[str, int], ...] = ()
    inputs: Signal | None = None
    loss: float | None = None
    chance: float | None = None
    dtype: str = "float32"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wrong = [n for n, i in self.outputs if not 0 <= i < len(self.layers)]
        if wrong:
            raise InvalidValueError(
                f"outputs must point into the {len(self.layers)} layers; those of {wrong} do not."
            )

    @property
    def modules(self) -> dict[str, Layer]:
        """FQN of each leaf module that ran -> the layer of its last output."""
        return {name: self.layers[i] for name, i in self.outputs}

    @property
    def ok(self) -> bool:
        """No finding is an error."""
        return all(f.severity != "error" for f in self.findings)

    # JSON ------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; numbers that are not finite become the strings NaN, Infinity, -Infinity."""
        return {"format": FORMAT, "ok": self.ok, **_plain(asdict(self))}

    def to_json(self, indent: int | None = 1) -> str:
        """The report as JSON text; `from_json` gives it back."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            InvalidValueError: not a report, of another format, or damaged.
        """
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        if found != FORMAT:
            raise InvalidValueError(
                f'not a report: expected JSON with "format": "{FORMAT}", got {found!r}. '
                "Write one with report.to_json() or `fanin probe TARGET --format json`."
            )
        try:
            return cls(
                layers=tuple(_layer(x) for x in data["layers"]),
                findings=tuple(Finding(**f) for f in data["findings"]),
                coverage=Coverage(
                    **{**data["coverage"], "missed": tuple(data["coverage"]["missed"])}
                ),
                outputs=tuple((name, index) for name, index in data["outputs"]),
                inputs=_signal(data["inputs"]),
                loss=_number(data["loss"]),
                chance=_number(data["chance"]),
                dtype=data["dtype"],
                notes=tuple(data["notes"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidValueError(
                f"the report is damaged: {type(error).__name__} {error}. Make it anew with fanin.probe."
            ) from error

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`.

        Raises:
            InvalidValueError: ``text`` is not JSON, or not a report.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise InvalidValueError(
                f"the report is not JSON: {error}. Expected the text that report.to_json() writes."
            ) from error
        return cls.from_dict(data)

    # to the reader ---------------------------------------------------------------------------

    def __str__(self) -> str:
        return report_text(self)

    def __rich__(self) -> str:
        return report_text(self).replace("[", r"\[")

    def _repr_html_(self) -> str:
        header = ("layer", "op", "shape", "act rms", "correlation", "grad rms", "dead", "saturated")
        rows = [
            (
                x.name,
                x.op,
                "x".join(map(str, x.shape)),
                s.act_rms,
                s.correlation,
                s.grad_rms,
                s.dead,
                s.saturated,
            )
            for x in self.layers
            for s in (x.signal,)
        ]
        found = [(f.code, f.severity, f.where, f.message, f.why, f.fix) for f in self.findings]
        titles = ("code", "severity", "where", "what", "why", "fix")
        return html_table(header, rows) + (html_table(titles, found) if found else "")

    def plot(self) -> Figure:
        """Depth against activation rms, gradient rms (both log10) and correlation.

        Returns:
            A matplotlib Figure; it belongs to no window.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        return _figure(self)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _signal(data: dict[str, Any] | None) -> Signal | None:
    return None if data is None else Signal(**{k: _number(v) for k, v in data.items()})


def _layer(data: dict[str, Any]) -> Layer:
    return Layer(
        data["name"],
        data["op"],
        tuple(data["shape"]),
        _signal(data["predicted"]),
        _signal(data["measured"]),
    )


def _figure(report: SignalReport) -> Figure:
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - optional and heavy
    except ImportError as error:
        raise MissingExtraError("report.plot()", "matplotlib", "plot") from error
    figure = Figure(figsize=(8, 7), layout="constrained")
    panels = figure.subplots(3, sharex=True)
    rows = (
        ("act_rms", "log10 activation rms"),
        ("grad_rms", "log10 gradient rms"),
        ("correlation", "correlation"),
    )
    for axes, (field, title) in zip(panels, rows, strict=True):
        for kind, style in (("predicted", "-"), ("measured", ".")):
            signals = [getattr(layer, kind) for layer in report.layers]
            points = list(
                _points([s and getattr(s, field) for s in signals], log=field != "correlation")
            )
            if points:
                axes.plot(*zip(*points, strict=True), style, label=kind)
                axes.legend(loc="best", frameon=False)
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel("op, in execution order")
    return figure


def _points(values: list[float | None], *, log: bool) -> Iterable[tuple[int, float]]:
    for i, value in enumerate(values):
        if value is not None and math.isfinite(value) and (value > 0 or not log):
            yield i, math.log10(value) if log else value
