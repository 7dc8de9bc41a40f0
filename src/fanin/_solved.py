"""A plan and the graph of its model -> the plan with its scales solved, and how it was done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from ._analysis import Analysis
from ._check import run_op
from ._plan import InitPlan
from ._solve import solve
from ._weights import of_model, of_plan


def solved(
    model: nn.Module,
    plan: InitPlan,
    analysis: Analysis,
    targets: Mapping[str, float] | None = None,
) -> InitPlan:
    """Scale every weight of ``plan`` by what propagation through the graph shows.

    Args:
        model: whose buffers are read.
        plan: distributions, before scaling.
        analysis: of the model, with a structure.
        targets: FQN of a weight -> second moment of its output.
    """
    structure = analysis.structure
    if structure is None:
        return plan
    fixed = {r.name for r in plan if any(w.startswith("overrides[") for w in r.reasons)}
    drawn = of_plan(plan)
    weights = {**of_model(model, but=drawn), **drawn}
    solution = solve(plan, structure, weights, kernel=run_op, fixed=fixed, targets=targets)
    return replace(solution.apply(plan), notes=(*plan.notes, *solution.notes))
