"""Weights that a module computes from other tensors, in a graph: as the one tensor that a plan writes.

A plan's row says how ``weight`` is drawn; `_apply.write_through` sets what lies behind it so that the
module computes just that. Under a plan the computed tensor is therefore the parameter: weight norm's
``original1``, of which only the direction counts, is not. Spectral norm alone computes something else
than what was written, the same divided by its largest singular value.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import NamedTuple

from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm

from ._graph import Graph, Node, Ref, Value
from ._moments.domain import Abstract, full
from ._plan import InitPlan
from ._roles import behind, owners
from ._weights import of_plan
from .distributions import Orthogonal

_NORMALISING = frozenset(("_weight_norm", "_weight_norm_interface", "div"))  # last ops of the hooks


class _Computed(NamedTuple):
    """A weight that ``owner`` computes as its attribute ``leaf`` from the parameters ``through``."""

    name: str
    prefix: str
    owner: nn.Module
    leaf: str
    through: tuple[str, ...]

    @property
    def registered(self) -> bool:
        """Whether by torch.nn.utils.parametrize rather than by a hook."""
        return self.leaf in getattr(self.owner, "parametrizations", {})

    @property
    def bounded(self) -> bool:
        """Whether it is divided by its largest singular value."""
        if self.registered:
            steps = dict(getattr(self.owner, "parametrizations", nn.ModuleDict()).items())[
                self.leaf
            ]
            return any(isinstance(step, _SpectralNorm) for step in steps)
        return f"{self.leaf}_orig" in self.owner._parameters  # noqa: SLF001 - the hook keeps it there

    def results(self, graph: Graph) -> Iterator[int]:
        """Indices of the values that are this weight, one a call of its parametrization or hook."""
        if self.registered:
            name = f"{self.prefix}parametrizations.{self.leaf}"
            yield from (c.output for c in graph.calls if c.module == name and c.output is not None)
            return
        parts = {graph.parameters[n] for n in self.through if n in graph.parameters}
        for node in graph.nodes:
            if node.op in _NORMALISING and parts & {i for _, i in node.refs}:
                yield node.outputs[0]


def _all(model: nn.Module) -> Iterator[_Computed]:
    for path, module in owners(model):
        prefix = f"{path}." if path else ""
        for leaf, names in behind(module).items():
            through = tuple(f"{prefix}{n}" for n in names)
            yield _Computed(f"{prefix}{leaf}", prefix, module, leaf, through)


def logical(model: nn.Module, graph: Graph, names: Collection[str]) -> Graph:
    """The graph with computed weights as parameters under their own names.

    Args:
        model: what was captured.
        graph: its graph.
        names: FQNs of the weights that are wanted so.
    """
    values, nodes, parameters = list(graph.values), list(graph.nodes), dict(graph.parameters)
    makers = {v: k for k, node in enumerate(nodes) if len(node.outputs) == 1 for v in node.outputs}
    for weight in _all(model):
        made = [i for i in weight.results(graph) if i in makers]
        if not made or weight.name not in names:
            continue
        seen = graph.values[made[0]]
        parameters[weight.name] = len(values)
        for index in made:
            node = nodes[makers[index]]
            nodes[makers[index]] = Node("alias", {"x": Ref(len(values))}, node.outputs, node.module)
        values.append(Value(seen.shape, seen.dtype, "parameter", weight.name))
    return replace(graph, values=tuple(values), nodes=tuple(nodes), parameters=parameters)


def unscalable(model: nn.Module) -> frozenset[str]:
    """FQNs of weights that are divided by their largest singular value: their scale is no choice."""
    return frozenset(weight.name for weight in _all(model) if weight.bounded)


def computed(model: nn.Module, plan: InitPlan) -> dict[str, Abstract]:
    """Moments of what a plan draws, as modules compute them: spectral norm divides by s.

    Of an m x n matrix of independent entries of standard deviation d, s = d (sqrt(m) + sqrt(n)); of an
    orthogonal one d sqrt(max(m, n)). Source: Bai & Yin 1993, "Limit of the smallest eigenvalue of a
    large dimensional sample covariance matrix".
    """
    found = of_plan(plan)
    for name in unscalable(model) & found.keys():
        shape = found[name].shape
        m, n = shape[0], math.prod(shape) / shape[0]
        orthogonal = isinstance(plan[name].distribution, Orthogonal)
        largest = math.sqrt(max(m, n)) if orthogonal else math.sqrt(m) + math.sqrt(n)
        found[name] = full(shape, largest**-2.0)
    return found
