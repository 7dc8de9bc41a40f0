"""A plan and the graph of its model -> the plan with its scales solved, and how it compares."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

from torch import nn

from ._analysis import Analysis
from ._check import propagated, report_of, run_op
from ._graph import Graph
from ._lookups import balanced, lookups
from ._moments.domain import Abstract
from ._parametrized import computed, logical, unscalable
from ._plan import InitPlan
from ._solve import Solution, scaled_by, solve
from ._solve_backward import solve_gradients
from ._structure import Structure
from ._weights import of_model

SMALLEST, LARGEST = 0.25, 4.0  # rms of what a module puts out, between which it is of order one
GRADIENTS = 10.0  # largest over smallest rms of the modules' gradients that is still even


def solved(
    model: nn.Module,
    plan: InitPlan,
    analysis: Analysis,
    targets: Mapping[str, float] | None = None,
    objective: str = "forward",
) -> InitPlan:
    """Scale every weight of ``plan`` by what propagation through the graph shows.

    Args:
        model: whose buffers are read, and whose present numbers the result is compared with.
        plan: distributions, before scaling.
        analysis: of the model, with a structure.
        targets: FQN of a weight -> second moment of its output.
        objective: "forward" or "backward".
    """
    captured = analysis.structure
    if captured is None:
        return plan
    fixed = {r.name for r in plan if any(w.startswith("overrides[") for w in r.reasons)}
    fixed |= unscalable(model)
    drawn = computed(model, plan)
    structure = Structure(logical(model, captured.graph, drawn))
    fixed |= structure.graph.parameters.keys() - {row.name for row in plan}
    weights = {**of_model(model, but=drawn), **drawn}
    if objective == "backward":
        solution = solve_gradients(plan, structure, weights, kernel=run_op, fixed=fixed)
    else:
        solution = _forward(plan, structure, weights, fixed, targets)
    made = solution.apply(plan)
    return replace(made, notes=(*plan.notes, *solution.notes, *_compared(model, made, captured)))


def _forward(
    plan: InitPlan,
    structure: Structure,
    weights: Mapping[str, Abstract],
    fixed: Collection[str],
    targets: Mapping[str, float] | None,
) -> Solution:
    """Once as the plan is, and once more with tables that fit what their heads then asked for."""
    first = solve(plan, structure, weights, kernel=run_op, fixed=fixed, targets=targets)
    tables = balanced(plan, lookups(structure), first, fixed)
    if not tables.factors:
        return first
    weights = scaled_by(tables, weights)
    fixed = {*fixed, *tables.factors}
    second = solve(plan, structure, weights, kernel=run_op, fixed=fixed, targets=targets)
    tables.extend(second)
    return tables


class Spread(NamedTuple):
    """How far a model's signals lie apart, over its modules.

    Args:
        smallest: rms of an output.
        largest: rms of an output.
        gradients: largest over smallest rms of an output's gradient.
    """

    smallest: float
    largest: float
    gradients: float

    @property
    def healthy(self) -> bool:
        """Whether all is of order one."""
        return self.smallest >= SMALLEST and self.largest <= LARGEST and self.gradients <= GRADIENTS

    def __str__(self) -> str:
        return (
            f"activations {self.smallest:.2g} to {self.largest:.2g}, "
            f"gradients within a factor of {self.gradients:.2g}"
        )


def _compared(model: nn.Module, plan: InitPlan, structure: Structure) -> list[str]:
    """What is predicted under the plan, and of the model as it stands where that is healthy too."""
    graph = structure.graph
    ours = _spread(model, graph, plan)
    notes = [] if ours is None else [f"predicted under this plan: {ours}"]
    if any(p.is_meta for p in model.parameters()):
        return notes
    own = _spread(model, graph, None)
    if own is not None and own.healthy:
        notes.append(f"the model's present values are healthy already: {own}; keeping them is fine")
        if ours is not None and not ours.healthy:
            notes[-1] += ", and more even than this plan"
    return notes


def _spread(model: nn.Module, graph: Graph, plan: InitPlan | None) -> Spread | None:
    layers = report_of(propagated(model, graph, plan)).modules.values()
    signals = [layer.predicted for layer in layers if layer.predicted is not None]
    sizes = [s.act_rms for s in signals if s.act_rms]
    grads = [s.grad_rms for s in signals if s.grad_rms]
    if not sizes or not grads:
        return None
    return Spread(min(sizes), max(sizes), max(grads) / min(grads))
