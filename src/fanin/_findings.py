"""What is wrong with a signal: a registry of small functions, report -> findings, with stable codes.

A rule reads the spine: the layers with weights, in execution order. Gradients are compared as
norms, grad_rms * sqrt(features), because a layer that passes the signal on without loss keeps the
norm, whatever its width. Limits hold for the whole depth, not per layer: 1.05 a layer is 131 over
100 layers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import median

from ._errors import finite
from ._gains import moments
from ._report import Finding, Layer, SignalReport

FIX = "fanin.initialize_(model, x)"


@dataclass(frozen=True)
class Limits:
    """What is still fine, over the whole network.

    Args:
        growth: of activations or gradients, > 1.
        shrink: of activations or gradients, < 1.
        correlation: between different inputs, at the last layers.
        dead: fraction of dead units in one layer.
        saturated: fraction of saturated elements in one layer.
        loss: multiple of the loss of a uniform guess.
        ends: so many first layers, and last ones, are taken together, where there are twice as
            many: a single side branch says nothing.
        run: so many last layers must have collapsed, if there are as many.
    """

    growth: float = 1e3
    shrink: float = 1e-3
    correlation: float = 0.999
    dead: float = 0.5
    saturated: float = 0.5
    loss: float = 1.5
    ends: int = 3
    run: int = 3

    def __post_init__(self) -> None:
        for name in ("growth", "shrink", "correlation", "dead", "saturated", "loss"):
            finite(name, getattr(self, name), above=0.0)


Rule = Callable[[SignalReport, Limits], Iterable[Finding]]
RULES: dict[str, Rule] = {}  # by name: an order that does not depend on which code comes first


def rule(function: Rule) -> Rule:
    """Register a function (report, limits) -> findings."""
    RULES[getattr(function, "__name__", repr(function))] = function
    return function


def find(report: SignalReport, limits: Limits | None = None) -> tuple[Finding, ...]:
    """Everything the rules see in ``report``: errors first, then by code.

    Args:
        report: its own findings are not read.
        limits: default `Limits()`.

    Example:
        >>> from fanin import Layer, Signal, SignalReport
        >>> rms = [2.0**-i for i in range(20)]
        >>> layers = [Layer(f"{i}", "linear", (8, 64), None, Signal(act_rms=r)) for i, r in enumerate(rms)]
        >>> for f in find(SignalReport(tuple(layers))):
        ...     print(f.code, f.where, f.message)
        FAN102 10 activations shrink 2x per layer, 7.6e-6 over 20 layers (limit 1e-3)
    """
    return by_gravity(f for check in RULES.values() for f in check(report, limits or Limits()))


def by_gravity(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, then by code."""
    return tuple(sorted(found, key=lambda f: (f.severity != "error", f.code)))


# the spine -----------------------------------------------------------------------------------

_WEIGHTED = frozenset(("linear", "embedding", "embedding_bag", "bilinear", "lstm"))
_BOUNDED = frozenset(
    ("softmax", "log_softmax", "sigmoid", "tanh", "hardtanh", "hardsigmoid", "softsign")
)
_ACTIVATIONS = frozenset(
    ("relu", "leaky_relu", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "softplus", "tanh",
     "sigmoid", "softsign", "hardtanh", "hardsigmoid", "erf")
)  # fmt: skip


def spine(report: SignalReport) -> list[Layer]:
    """Layers with weights in execution order; in a model with fewer than three, all unbounded ones."""
    weighted = [x for x in report.layers if x.op in _WEIGHTED or x.op.startswith("conv")]
    return weighted if len(weighted) > 2 else [x for x in report.layers if x.op not in _BOUNDED]


@dataclass(frozen=True)
class _Course:
    """One quantity along the spine, from where the signal comes to where it goes.

    Args:
        what: for the message.
        points: (layer, value), finite and not zero.
        whole: layers on the spine.
    """

    what: str
    points: tuple[tuple[Layer, float], ...]
    whole: int
    ends: int

    @property
    def factor(self) -> float:
        """The last layers' size over the first ones'; 1 if there is nothing to compare."""
        sizes = [v for _, v in self.points]
        return max(sizes[-self.ends :]) / max(sizes[: self.ends]) if len(sizes) > 2 else 1.0

    @property
    def step(self) -> float:
        """The factor per layer: their geometric mean."""
        return self.factor ** (1 / max(1, len(self.points) - self.ends))

    def first(self, beyond: Callable[[float], bool]) -> Layer:
        """The first layer whose size, relative to the start, is beyond."""
        start = self.points[0][1]
        return next((x for x, v in self.points if beyond(v / start)), self.points[-1][0])

    def says(self, verbs: tuple[str, str], limit: float) -> str:
        """``gradient shrinks 2.45x per layer, 1e-39 over 100 layers (limit 1e-3)``."""
        step = self.step if self.step > 1 else 1 / self.step
        return (
            f"{self.what} {verbs[self.what == 'activations']} {step:.3g}x per layer, "
            f"{_power(self.factor)} over {self.whole} layers (limit {_power(limit)})"
        )


def _courses(report: SignalReport, limits: Limits) -> Iterator[_Course]:
    """Activations along the signal's way, gradients along theirs."""
    layers = spine(report)
    forward = [(x, x.signal.act_rms) for x in layers]
    backward = [(x, _gradient(x)) for x in reversed(layers)]
    for what, course in (("activations", forward), ("gradient", backward)):
        points = tuple((x, v) for x, v in course if v and math.isfinite(v))
        yield _Course(what, points, len(layers), min(limits.ends, max(2, len(points) // 2)))


def _gradient(layer: Layer) -> float | None:
    rms = layer.signal.grad_rms
    return None if rms is None else rms * math.sqrt(math.prod(layer.shape[1:]))


# rules ---------------------------------------------------------------------------------------


@rule
def explodes(report: SignalReport, limits: Limits) -> Iterator[Finding]:
    """FAN101: activations or gradients grow beyond the limit, or are no numbers any more."""
    for course in _courses(report, limits):
        if course.factor > limits.growth:
            where = course.first(lambda r: r > limits.growth)
            message = course.says(("grows", "grow"), limits.growth)
            yield Finding("FAN101", "error", where.name, message, _why(report, course, limits), FIX)
    for field, what in (("act_rms", "activations"), ("grad_rms", "gradients")):
        bad = [x for x in report.layers if not math.isfinite(getattr(x.signal, field) or 0.0)]
        if bad:
            first = bad[0] if field == "act_rms" else bad[-1]
            message = f"{what} are infinite or NaN at {len(bad)} of {len(report.layers)} ops, first at {first.op}"
            why = "a number left the range of the dtype, or an operation has no value (0/0, log of a negative number)"
            yield Finding("FAN101", "error", first.name, message, why, FIX)


@rule
def vanishes(report: SignalReport, limits: Limits) -> Iterator[Finding]:
    """FAN102: activations or gradients shrink below the limit."""
    for course in _courses(report, limits):
        if course.factor < limits.shrink:
            where = course.first(lambda r: r < limits.shrink)
            message = course.says(("shrinks", "shrink"), limits.shrink)
            yield Finding("FAN102", "error", where.name, message, _why(report, course, limits), FIX)


@rule
def cut_off(report: SignalReport, _: Limits) -> Iterator[Finding]:
    """FAN102 as a warning: zero weights cut nearly all layers off from the gradient."""
    known = [x for x in spine(report) if x.signal.grad_rms is not None]
    zero = [x for x in known if x.signal.grad_rms == 0]
    if (
        len(known) > 2
        and len(zero) >= len(known) - 1
        and all((x.signal.act_rms or 0) > 0 for x in zero)
    ):
        yield Finding(
            "FAN102", "warning", zero[-1].name,
            f"the gradient is exactly 0 at {len(zero)} of {len(known)} layers",
            "a layer after them starts as zeros; it must learn first. Intended in Fixup and zero-initialised heads",
            "none if intended; else " + FIX,
        )  # fmt: skip


@rule
def dead_units(report: SignalReport, limits: Limits) -> Iterator[Finding]:
    """FAN103: units that are zero for every input.

    Of B independent inputs all switch a symmetric unit off with probability 2^-B, and once all
    inputs look alike half of the units are off for all of them: that is FAN104, not this.
    """
    bad: list[tuple[Layer, float]] = []
    for i, layer in enumerate(report.layers):
        dead = layer.signal.dead
        before = report.layers[i - 1].signal.correlation if i else None
        chance = 0.5 ** ((layer.shape[0] if layer.shape else 1) - 1)
        limit = limits.dead + (1 - limits.dead) * max(
            chance, 0.5 if (before or 0.0) > 0.95 else 0.0
        )
        if dead is not None and dead > limit:
            bad.append((layer, dead))
    if bad:
        layer, dead = bad[0][0], max(share for _, share in bad)
        yield Finding(
            "FAN103", "error", layer.name,
            f"up to {dead:.0%} of the units are zero for every input, at {_count(bad)} (limit {limits.dead:.0%})",
            f"{layer.op} gets only numbers on its flat side, so these units have no gradient and cannot come "
            "back: biases too negative or weights too large",
            FIX,
        )  # fmt: skip


@rule
def collapses(report: SignalReport, limits: Limits) -> Iterator[Finding]:
    """FAN104: different inputs look alike from some layer on to the end."""
    known = [(x, c) for x in spine(report) if (c := x.signal.correlation) is not None]
    if len(known) < 2:
        return
    base = report.inputs.correlation if report.inputs else None
    base = known[0][1] if base is None else base
    alike = 0
    while alike < len(known) and known[-1 - alike][1] > limits.correlation:
        alike += 1
    if alike < min(limits.run, len(known)) or 1 - known[-1][1] > 0.1 * (1 - base):
        return
    first, at = known[-alike][0], len(known) - alike + 1
    yield Finding(
        "FAN104", "error", first.name,
        f"all inputs look alike from layer {at} of {len(known)} on: correlation {_near_one(known[-1][1])} at the "
        f"end, {round(base, 2) + 0.0:.2f} at the input (limit {limits.correlation:g})",
        "what the layers add for every input alike (biases, a mean above zero) outweighs what tells inputs apart, "
        f"which a layer multiplies by less than 1{_gain_of_gradient(report, limits)}",
        FIX,
    )  # fmt: skip


@rule
def saturates(report: SignalReport, limits: Limits) -> Iterator[Finding]:
    """FAN105: a bounded function works at the ends of its range, where its slope is near 0."""
    bad = [
        (x, s)
        for x in report.layers
        if (s := x.signal.saturated) is not None and s > limits.saturated
    ]
    if bad:
        layer, share = bad[0][0], max(share for _, share in bad)
        yield Finding(
            "FAN105", "error", layer.name,
            f"{layer.op} saturates: up to {share:.0%} of its outputs are beyond 97% of its range, at {_count(bad)} "
            f"(limit {limits.saturated:.0%})",
            f"what {layer.op} is given is too large, so its slope, and with it the gradient, is near 0",
            FIX,
        )  # fmt: skip


@rule
def loss_far_from_chance(report: SignalReport, limits: Limits) -> Iterator[Finding]:
    """FAN106: an untrained classifier should guess, at a loss of ln(classes)."""
    loss, chance = report.loss, report.chance
    if loss is None or chance is None or chance <= 0 or not loss > limits.loss * chance:
        return
    head = next((x for x in reversed(spine(report)) if x.name), None)
    size = (
        f"; its logits have rms {head.signal.act_rms:.3g}" if head and head.signal.act_rms else ""
    )
    name = f"{head.name}.weight" if head else "head.weight"
    yield Finding(
        "FAN106", "warning", head.name if head else "",
        f"the loss starts at {loss:.4g}, {loss / chance:.3g} times a uniform guess, ln {math.exp(chance):.0f} = {chance:.4g}",
        f"the last layer starts out certain of what it cannot know{size}",
        f'plan = fanin.plan(model, x).scaled("{name}", {chance / loss:.2g}, "loss at chance"); plan.fill_(model)',
    )  # fmt: skip


_TINY = {"float64": 2.3e-308, "float32": 1.2e-38, "bfloat16": 1.2e-38, "float16": 6.2e-5}


@rule
def denormals(report: SignalReport, _: Limits) -> Iterator[Finding]:
    """FAN107: numbers below the dtype's least normal one: imprecise, and slow on a CPU."""
    tiny = _TINY.get(report.dtype, 0.0)
    bad = [
        x
        for x in report.layers
        if any(v and v < tiny for v in (x.signal.act_rms, x.signal.grad_rms))
    ]
    if bad:
        yield Finding(
            "FAN107", "warning", bad[0].name,
            f"numbers at {len(bad)} of {len(report.layers)} ops are below {tiny:.2g}, the least normal {report.dtype}",
            "they have few digits left or are zero, and a CPU computes with them up to 14 times slower",
            f"{FIX}; until then torch.set_flush_denormal(True)",
        )  # fmt: skip


def _count(layers: list[tuple[Layer, float]]) -> str:
    return f"{len(layers)} layer{'s' * (len(layers) > 1)}"


# words ---------------------------------------------------------------------------------------


def _power(value: float) -> str:
    """``1e-3``, ``2.5e-40``: two digits, exponents without padding."""
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _near_one(c: float) -> str:
    return "1" if c >= 1 else f"1-{_power(1 - c)}"


def _activation(report: SignalReport) -> str | None:
    """The commonest nonlinearity."""
    seen = Counter(x.op for x in report.layers if x.op in _ACTIVATIONS)
    return seen.most_common(1)[0][0] if seen else None


def _why(report: SignalReport, course: _Course, limits: Limits) -> str:
    """The step per layer in terms of gains."""
    step = course.step
    name = _activation(report)
    if name is None:
        return f"each layer multiplies the {course.what} by {step:.3g}: without a nonlinearity the weights' gain must be 1"
    if course.what == "gradient":
        return (
            f"each layer multiplies the gradient by {step:.3g}{_gain_of_gradient(report, limits)}"
        )
    q = _variance(report)
    second = moments(name, q).second / q
    needed = 1 / math.sqrt(second)
    return (
        f"each layer multiplies the activations by {step:.3g}: with {name} that is a gain of {step * needed:.3g} "
        f"on the weights, and {needed:.3g} keeps their size{_source(name)}"
    )


def _gain_of_gradient(report: SignalReport, limits: Limits) -> str:
    """The weights' gain that the gradient's step implies: step^2 = gain^2 E f'(u)^2."""
    course = next(c for c in _courses(report, limits) if c.what == "gradient")
    name = _activation(report)
    if name is None or len(course.points) < 3:
        return ""
    q = _variance(report)
    gain = course.step / math.sqrt(moments(name, q).slope)
    needed = 1 / math.sqrt(moments(name, min(q, 1.0)).slope)
    default = "torch's default, " if abs(gain - 1 / math.sqrt(3)) < 0.03 else ""
    return (
        f": the weights have gain {gain:.3g} ({default}std = gain/sqrt(fan_in)), "
        f"and {name} needs {needed:.4g}{_source(name)}"
    )


def _variance(report: SignalReport) -> float:
    """Typical E u^2 before the nonlinearity, as measured."""
    sizes = [v for x in spine(report) if (v := x.signal.act_rms) and math.isfinite(v)]
    return min(1e6, max(1e-6, median(sizes) ** 2)) if sizes else 1.0


def _source(name: str) -> str:
    return " (He et al. 2015)" if name in ("relu", "leaky_relu") else " (Schoenholz et al. 2017)"
