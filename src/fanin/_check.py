"""Predict the signal at every op without running the model: capture, propagate, report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from ._analysis import Analysis
from ._capture import capture
from ._findings import Limits, by_gravity, find
from ._graph import Graph, Node
from ._inputs import as_inputs
from ._moments.domain import Abstract
from ._parameter_findings import parameter_findings
from ._parametrized import computed, logical
from ._plan import InitPlan
from ._predict import predicted, signal
from ._report import Coverage, SignalReport
from ._signal import Signals, backward, forward, seeds_of
from ._structure import Structure
from ._weights import of_model


def check(
    model: nn.Module,
    example_inputs: Any,
    *,
    plan: InitPlan | None = None,
    depth_limits: Limits | None = None,
) -> SignalReport:
    """Predict activations and gradients at every op, and say what is wrong; nothing is computed.

    Args:
        model: any nn.Module, on any device, meta included.
        example_inputs: a tensor, a tuple of positional arguments, a mapping of keyword arguments,
            or `fanin.Inputs`.
        plan: how the parameters will start; without it they are taken as they are.
        depth_limits: what is still fine; default `fanin.Limits()`.

    Returns:
        A `SignalReport` with `predicted` signals.

    Raises:
        ModelError: the model raises, or cannot be followed.

    Example:
        >>> import fanin, torch
        >>> net = torch.nn.Sequential(*[torch.nn.Linear(64, 64, bias=False) for _ in range(20)])
        >>> report = fanin.check(net, torch.randn(32, 64))
        >>> report.ok, sorted({f.code for f in report.findings})
        (False, ['FAN102'])
        >>> better = fanin.plan(net, torch.randn(32, 64))
        >>> fanin.check(net, torch.randn(32, 64), plan=better).ok
        True
    """
    structure = Structure(capture(model, as_inputs(example_inputs)))
    report = report_of(propagated(model, structure.graph, plan))
    found = find(report, depth_limits)
    if plan is None:
        found += parameter_findings(model, Analysis(structure, ""))
    return replace(report, findings=by_gravity(found))


def propagated(
    model: nn.Module, graph: Graph, plan: InitPlan | None = None, *, backwards: bool = True
) -> Signals:
    """Moments of every value and gradient, under the plan or the model's present numbers."""
    planned: dict[str, Abstract] = {}
    if plan is not None:
        planned = computed(model, plan)
        graph = logical(model, graph, planned)
    weights = {**of_model(model, but=planned), **planned}
    signals = forward(graph, weights, kernel=run_op)
    if backwards:
        backward(signals, seeds_of(graph))
    return signals


def run_op(node: Node, arguments: Mapping[str, Any]) -> list[npt.NDArray]:
    """The real op on arrays, for what no rule covers."""
    tensors = {k: torch.as_tensor(v) if hasattr(v, "dtype") else v for k, v in arguments.items()}
    packet = getattr(torch.ops.aten, node.op)
    for name in packet.overloads():
        overload = getattr(packet, name)
        known = {a.name for a in overload._schema.arguments}  # noqa: SLF001 - its only door
        renamed = {
            next((n for n in ("self", "input") if k == "x" and n in known), k): v
            for k, v in tensors.items()
        }
        if set(renamed) <= known:
            out = overload(**renamed)
            return [t.numpy() for t in (out if isinstance(out, (list, tuple)) else [out])]
    raise NotImplementedError(node.op)


def report_of(signals: Signals) -> SignalReport:
    """Layers, coverage and inputs; no findings yet."""
    graph = signals.graph
    found = predicted(signals)
    missed = tuple(f"{op} x{n}" for op, n in signals.uncovered.items())
    inputs = next((i for i in graph.inputs if graph.values[i].floating), None)
    return SignalReport(
        found.layers,
        coverage=Coverage(len(found.layers), len(found.layers), missed),
        outputs=found.outputs,
        inputs=None if inputs is None else signal(signals.values[inputs]),
        notes=graph.notes,
    )
