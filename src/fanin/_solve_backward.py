"""Scales that keep the gradient: a backward propagation in which every weight is scaled as it comes.

The gradient at a product's input is given the second moment that it had behind the nonlinearity
which follows the product, so that it neither grows nor shrinks from product to product. L residual
branches of one stream pass on 0.7/L of it each. Derivatives depend on the signal, so that forward
and backward propagation take turns.

Source: He et al. 2015, section 2.2, "Backward Propagation Case", on any graph.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from ._graph import Node
from ._moments.domain import Abstract, scaled
from ._plan import InitPlan
from ._signal import Kernel, Shares, Signals, backward, forward, seeds_of
from ._solve import SUM_OF_BRANCHES, Solution, scaled_by, solve
from ._structure import RECURRENT, Structure, Use

ROUNDS = 3


def solve_gradients(
    plan: InitPlan,
    structure: Structure,
    weights: Mapping[str, Abstract],
    *,
    kernel: Kernel | None = None,
    fixed: Collection[str] = (),
) -> Solution:
    """Factors that keep the gradient's second moment; attention logits and heads as in `solve`.

    Args:
        plan: whose rows are to be scaled.
        structure: of the model's graph.
        weights: moments of what the plan draws, and of buffers.
        kernel: runs ops that no rule covers.
        fixed: FQNs that may not be scaled.
    """
    fixed = {*fixed, *(row.name for row in plan if row.std == 0)}
    whole = Solution()
    for _ in range(ROUNDS):
        edges = solve(plan, structure, weights, kernel=kernel, fixed=fixed, products=False)
        weights = _joined(whole, edges, weights)
        signals = forward(structure.graph, weights, kernel=kernel)
        weights = _joined(whole, _Keeper(signals, structure, fixed).run(), weights)
    edges = solve(plan, structure, weights, kernel=kernel, fixed=fixed, products=False)
    _joined(whole, edges, weights)
    return whole


def _joined(
    whole: Solution, step: Solution, weights: Mapping[str, Abstract]
) -> dict[str, Abstract]:
    """Factors multiplied into ``whole``, the last reason kept; the weights so scaled."""
    whole.extend(step)
    return scaled_by(step, weights)


class _Keeper:
    """One backward propagation.

    ``level`` holds what second moment the gradient of a value should have: that which it had
    behind the last product (or before the head), unless a residual branch asks for its share.
    """

    def __init__(self, signals: Signals, structure: Structure, fixed: Collection[str]) -> None:
        self.signals, self.structure, self.fixed = signals, structure, fixed
        self.solution = Solution()
        self.level: dict[int, float] = {}
        self.shares = {
            use.node: SUM_OF_BRANCHES / structure.lengths[b.stream]
            for b in structure.branches
            if b.normalised != "within"
            for use in b.tails
        }
        self.heads = {use.node for use in structure.heads} - set(self.shares)

    def run(self) -> Solution:
        """Walk the graph from its first output back."""
        backward(self.signals, seeds_of(self.signals.graph), self._settled)
        return self.solution

    def _settled(self, position: int, node: Node, shares: Shares) -> Shares:
        """Shares of the gradient, those to a product's signal at the level that they should have."""
        use = self.structure.use_at.get(position)
        product = use if node.op not in RECURRENT else None
        level = max((self.level.get(i, 0.0) for i in node.outputs), default=0.0)
        for index, grad in shares:
            own, below = grad, level
            if product is not None and index not in self.structure.weights:
                own, below = self._scaled(product, grad, level)
            self.level[index] = max(self.level.get(index, 0.0), below)
            yield index, own

    def _scaled(self, use: Use, grad: Abstract, level: float) -> tuple[Abstract, float]:
        """The gradient at a product's input with the weights as they should be, and its level."""
        wanted, own = level * self.shares.get(use.node, 1.0), grad.second_moment
        if use.node in self.heads or not wanted > 0:
            return grad, own
        names = self.structure.scalable(use, self.fixed)
        known = [self.solution.factors[n] for n in names if n in self.solution.factors]
        factor = known[0] if known else math.sqrt(wanted / own) if own > 0 and names else 1.0
        if not math.isfinite(factor):
            return grad, wanted
        for name in names:
            self.solution.factors[name] = factor
            self.solution.reasons[name] = (
                f"residual branch: {self.shares[use.node]:.3g} of its stream's mean square gradient"
                if use.node in self.shares
                else "gradient at its input as large as behind what follows"
            )
        return scaled(grad, factor).with_(chain=None), wanted
