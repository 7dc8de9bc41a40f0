"""What `zoo.py` measures of one architecture, as plain data for JSON."""

from __future__ import annotations

import inspect
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from io import StringIO
from statistics import fmean, median
from typing import Any

import torch
from _zoo_entries import Architecture
from torch import Tensor, nn

import fanin
from fanin import Inputs
from fanin._capture import capture
from fanin._check import propagated, report_of
from fanin._record import floating_leaves
from fanin._report import Layer

ROUNDS = 3  # of a timing, after a first one that is thrown away
# Of a draw: a scalar's gradient is one normal number, whose square is no mean square.
COTANGENTS = 8
BOUNDS = (0.25, 4.0)  # healthy activation rms
ROUNDING = (
    1e-6  # of the largest gradient: what is predicted and measured below it is zero in float32
)


def drawn(arch: Architecture, seed: int, *, train: bool) -> tuple[nn.Module, Inputs]:
    """Model and inputs of one seed."""
    torch.manual_seed(seed)
    model = arch.build().train(train)
    torch.manual_seed(1000 + seed)
    return model, arch.inputs()


# coverage and time --------------------------------------------------------------------------------


def coverage(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Ops and parameters that the capture knows, what was sampled, and CPU milliseconds."""
    captures, propagations = [], []
    for _ in range(1 + ROUNDS):
        start = time.process_time()
        graph = capture(model, inputs)
        captured = time.process_time()
        signals = propagated(model, graph)
        captures.append(1e3 * (captured - start))
        propagations.append(1e3 * (time.process_time() - captured))
    known = {*graph.parameters, *graph.unused}
    named = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {
        "nodes": len(graph.nodes),
        "unknown": dict(signals.uncovered),
        "sampled": dict(signals.drawn),
        "failures": dict(signals.failures),
        "notes": list(graph.notes),
        "unnamed": sorted(named - known),
        "unused": list(graph.unused),
        "capture_ms": median(captures[1:]),
        "propagate_ms": median(propagations[1:]),
    }


# prediction against measurement -------------------------------------------------------------------


def prediction(model: nn.Module, inputs: Inputs) -> dict[str, dict[str, float]]:
    """Predicted activation rms by leaf module, and gradient rms by parameter."""
    graph = capture(model, inputs)
    signals = propagated(model, graph)
    layers = report_of(signals).modules
    grads = {
        name: math.sqrt(max(signals.grads[index].second_moment, 0.0))
        for name, index in graph.parameters.items()
        if index in signals.grads
    }
    return {
        "act": {n: x.predicted.act_rms for n, x in layers.items() if x.predicted is not None},
        "op": {n: x.op for n, x in layers.items()},
        "grad": grads,
    }


def joint(seeds: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Predictions for several draws, as the rms over them."""
    means = {k: mean_logs(s[k] for s in seeds) for k in ("act", "grad")}
    return {
        "op": seeds[0]["op"],
        **{k: {n: 2.0**x for n, x in m.items()} for k, m in means.items()},
    }


def measurement(model: nn.Module, inputs: Inputs, seed: int) -> dict[str, dict[str, float]]:
    """The same measured, with N(0, 1) as the gradient of the first floating output."""
    layers = fanin.probe(model, inputs, backward=False, predict=False).modules
    return {
        "act": {n: x.measured.act_rms for n, x in layers.items()},
        "grad": parameter_gradients(model, inputs, seed),
    }


def parameter_gradients(model: nn.Module, inputs: Inputs, seed: int) -> dict[str, float]:
    """Rms of each parameter's gradient over `COTANGENTS` draws; every name of a tied one."""
    names = dict(model.named_parameters(remove_duplicate=False))
    parameters = [p for p in dict.fromkeys(names.values()) if p.requires_grad]
    torch.manual_seed(2000 + seed)
    output = next(iter(floating_leaves(model(*inputs.args, **inputs.kwargs))))
    squares: dict[int, float] = {}
    for k in range(COTANGENTS):
        cotangent, again = torch.randn(output.shape), k + 1 < COTANGENTS
        found = torch.autograd.grad(
            output, parameters, cotangent, allow_unused=True, retain_graph=again
        )
        for p, g in zip(parameters, found, strict=True):
            if g is not None:
                own = float(g.abs().double().square().mean()) / COTANGENTS
                squares[id(p)] = squares.get(id(p), 0.0) + own
    return {name: math.sqrt(squares[id(p)]) for name, p in names.items() if id(p) in squares}


def errors(
    predicted: Mapping[str, float], seeds: list[Mapping[str, float]], floor: float = 0.0
) -> dict[str, Any]:
    """|log2(predicted / measured)| over names, both being the rms over seeds.

    Beside it the measurement's own noise: one seed against the rms over the others, the mean of this
    statistic over seeds. Left out is what both say lies below ``floor`` times the
    largest: a bias before a norm has no gradient but rounding.
    """
    measured = mean_logs(seeds)
    least = floor * 2.0 ** max(measured.values(), default=0.0)
    zero = {n for n, m in measured.items() if max(predicted.get(n, 0.0), 2.0**m) < least}
    measured = {n: m for n, m in measured.items() if n not in zero}
    found = {
        name: abs(math.log2(predicted[name]) - measured[name])
        for name in measured
        if predicted.get(name, 0.0) > 0.0
    }
    noise = []
    for i, one in enumerate(seeds if len(seeds) > 1 else []):
        rest = {n: m for n, m in mean_logs(seeds[:i] + seeds[i + 1 :]).items() if n not in zero}
        noise.append([abs(math.log2(one[n]) - rest[n]) for n in rest if one.get(n, 0.0) > 0.0])
    worst = sorted(found, key=lambda n: -found[n])[:5]
    return {
        "count": len(found),
        "zero": sorted(zero),
        "missing": sorted(set(measured) - set(found)),
        "median": quantile(found.values(), 0.5),
        "p95": quantile(found.values(), 0.95),
        "noise_median": fmean([quantile(x, 0.5) for x in noise]) if noise else None,
        "noise_p95": fmean([quantile(x, 0.95) for x in noise]) if noise else None,
        "worst": [(n, predicted[n], 2.0 ** measured[n]) for n in worst],
    }


def mean_logs(seeds: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """log2 of the rms over seeds, of names that are positive and finite in each.

    A prediction is the root of an expected square; where draws differ much, a geometric mean would
    lie below it.
    """
    first, *rest = seeds
    return {
        name: math.log2(fmean((x[name] / first[name]) ** 2 for x in (first, *rest))) / 2
        + math.log2(first[name])
        for name in first
        if all(0.0 < x.get(name, 0.0) < math.inf for x in (first, *rest))
    }


def quantile(values: Iterable[float], q: float) -> float:
    """The value below which a fraction ``q`` lies, without interpolation; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(int(q * len(ordered)), len(ordered) - 1)] if ordered else 0.0


# after an initialisation --------------------------------------------------------------------------


def own(model: nn.Module, inputs: Inputs) -> None:
    """The model's own starting values."""


def auto(model: nn.Module, inputs: Inputs) -> None:
    fanin.initialize_(model, inputs)


def anyinit(model: nn.Module, inputs: Inputs) -> None:
    import anyinit as package

    package.initialize(model, "analytic", _positional(model, inputs), seed=0)


def lsuv(model: nn.Module, inputs: Inputs) -> None:
    """The package calls a model with one argument; `_Closed` has the rest."""
    import lsuv as package

    package.lsuv_with_singlebatch(_Closed(model, inputs), torch.zeros(1), verbose=False)


METHODS: dict[str, Callable[[nn.Module, Inputs], None]] = {
    "own": own,
    "auto": auto,
    "anyinit": anyinit,
    "lsuv": lsuv,
}
PEERS = ("anyinit", "lsuv")


class _Closed(nn.Module):
    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, _: Tensor) -> Any:
        return self.model(*self.inputs.args, **self.inputs.kwargs)


def _positional(model: nn.Module, inputs: Inputs) -> Any:
    """What anyinit takes: a tensor, or a list of one per argument; None where that cannot be."""
    try:
        bound = inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)
    except TypeError:
        return None
    values = list(bound.args)
    while values and values[-1] is None:
        values.pop()
    if not values or not all(isinstance(v, Tensor) for v in values):
        return None
    return values[0] if len(values) == 1 else values


def spread(arch: Architecture, method: str, seed: int, *, train: bool) -> dict[str, Any]:
    """Activation and gradient rms over leaf modules after ``method``."""
    model, inputs = drawn(arch, seed, train=train)
    start = time.process_time()
    try:
        with redirect_stdout(StringIO()):
            METHODS[method](model, inputs)
        seconds = time.process_time() - start
        report = fanin.probe(model, inputs)
    except Exception as error:  # noqa: BLE001 - a peer, or ours, may fail in any way
        return {"error": one_line(error)}
    layers = report.modules
    acts = {n: x.measured.act_rms for n, x in layers.items()}
    grads = {n: x.measured.grad_rms for n, x in layers.items() if x.measured.grad_rms is not None}
    norms = [g * math.sqrt(math.prod(layers[n].shape)) for n, g in grads.items() if g > 0]
    alive = {n: g for n, g in grads.items() if g > 0.0}
    outside = {n: a for n, a in acts.items() if not BOUNDS[0] <= a <= BOUNDS[1]}
    order = sorted(outside, key=lambda n: -abs(math.log2(max(acts[n], 1e-300))))
    ends = sorted(alive, key=alive.__getitem__)
    return {
        "seconds": seconds,
        "leaves": len(acts),
        "act_min": min(acts.values(), default=0.0),
        "act_max": max(acts.values(), default=0.0),
        "outside": len(outside) / max(len(acts), 1),
        "outside_leaves": [(n, layers[n].op, acts[n], _expected(layers[n])) for n in order],
        "grad_ratio": alive[ends[-1]] / alive[ends[0]] if ends else 1.0,
        "grad_depth_ratio": _across_depth({n: (layers[n], g) for n, g in alive.items()}),
        "grad_norm_ratio": max(norms) / min(norms) if norms else 1.0,
        "grad_ends": [(n, layers[n].op, alive[n]) for n in (*ends[:2], *ends[-2:])],
        "grad_zero": sorted(n for n, g in grads.items() if g == 0.0),
    }


def _across_depth(grads: Mapping[str, tuple[Layer, float]]) -> float:
    """Largest over smallest gradient among modules that repeat.

    Those are modules whose names are alike but for numbers, with one op and one output shape.
    """
    groups: dict[Any, list[float]] = {}
    for name, (layer, g) in grads.items():
        groups.setdefault((re.sub(r"\d+", "*", name), layer.op, layer.shape), []).append(g)
    return max((max(g) / min(g) for g in groups.values()), default=1.0)


def _expected(layer: Layer) -> float | None:
    return None if layer.predicted is None else layer.predicted.act_rms


def one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:400]


def examined(
    arch: Architecture, seeds: int, methods: Iterable[str], *, train: bool = False
) -> dict[str, Any]:
    """Everything about one architecture."""
    model, inputs = drawn(arch, 0, train=train)
    found = coverage(model, inputs)
    predicted = joint([prediction(*drawn(arch, s, train=train)) for s in range(seeds)])
    measured = [measurement(*drawn(arch, s, train=train), s) for s in range(seeds)]
    found["act"] = errors(predicted["act"], [m["act"] for m in measured])
    found["grad"] = errors(predicted["grad"], [m["grad"] for m in measured], ROUNDING)
    found["act"]["worst"] = [(n, predicted["op"][n], p, m) for n, p, m in found["act"]["worst"]]
    found["after"] = {m: spread(arch, m, 0, train=train) for m in methods}
    return found
