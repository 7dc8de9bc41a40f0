"""Scales that meet an objective: one forward propagation in which every weight is scaled as it comes.

The plan's distributions keep their shape; each product with weights is scaled so that its output
has the wanted second moment given what the propagation says of its input. Residual branches are
scaled at their sum, queries and keys at their logits. Weights used several times take what their
first use asks, or the geometric mean where they meet again.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from ._graph import Node, Ref
from ._moments.domain import Abstract, scaled
from ._moments.notes import Filtered, note_of
from ._moments.recurrent import states
from ._plan import InitPlan
from ._signal import Kernel, Signals, Step, leaf
from ._structure import RECURRENT, Branch, Structure, Use

SUM_OF_BRANCHES = 0.7  # of the stream's first second moment: together with it 1.7, within [0.5, 2]
WITHIN = 8.0  # of the same, together: branches that end in a norm, where that norm is in eval mode
HEAD = 0.6  # rms of logits: a cross-entropy of chance + 0.18
LONE = 1.0  # rms of a single output: binary cross-entropy of chance + 0.11, a prediction of unit variance
SMALLEST = 0.3  # rms of branches that a norm reads, and of rows of tables, at least
UNIT = (0.5, 2.0)  # rms of a recurrence's input that is left as it is
LOGITS = (0.25, 2.0)  # variance of attention logits that is left as it is
CALM = 1e-3  # relative change that is not worth a line in the plan


@dataclass(eq=False)
class Solution:
    """What to multiply each weight by.

    Args:
        factors: FQN -> factor.
        reasons: FQN -> why, for the plan.
    """

    factors: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def put(self, name: str, factor: float, why: str) -> None:
        """Multiply a weight's factor; the last reason stays."""
        self.factors[name] = self.factors.get(name, 1.0) * factor
        self.reasons[name] = why

    def extend(self, step: Solution) -> None:
        """Multiply the factors of a later step in."""
        for name, factor in step.factors.items():
            self.put(name, factor, step.reasons[name])

    def apply(self, plan: InitPlan) -> InitPlan:
        """The plan with its rows scaled."""
        for name, factor in self.factors.items():
            if abs(factor - 1.0) > CALM:
                plan = plan.scaled(name, factor, self.reasons[name])
        return plan


def scaled_by(solution: Solution, weights: Mapping[str, Abstract]) -> dict[str, Abstract]:
    """The weights' moments after scaling."""
    factors = solution.factors
    return {n: _rescaled(x, factors[n]) if n in factors else x for n, x in weights.items()}


class _Solver(Step):
    """A forward propagation that scales weights on its way."""

    def __init__(
        self,
        signals: Signals,
        structure: Structure,
        kernel: Kernel | None,
        fixed: Collection[str],
        targets: Mapping[str, float],
        *,
        products: bool,
    ) -> None:
        super().__init__(signals, kernel)
        self.structure, self.fixed, self.targets = structure, fixed, targets
        self.products = products
        self.solution = Solution()
        self.branches = {b.node: b for b in structure.branches}
        self.tails = {u.node for b in structure.branches for u in b.tails}
        self.heads = {u.node for u in structure.heads} - self.tails
        self.logits = {node: (q, k) for q, k, node in structure.logits}
        self.starts: dict[int, float] = {}
        self.settled: set[str] = set()  # weights that a residual branch ends in, scaled for it
        self._plain = not structure.branches and not structure.has_norms

    def run(self, node: Node) -> None:
        """Propagate, then scale what this node settles."""
        position = self.structure.maker.get(node.outputs[0]) if node.outputs else None
        branch = self.branches.get(position) if position is not None else None
        if branch is not None and self.products:
            self._settle_branch(branch)
        if position in self.logits:
            self._settle_logits(node, *self.logits[position])
        use = self.structure.use_at.get(position) if position is not None else None
        if use is not None and self.products and not self._plain:
            self._settle_input(node, use)
        super().run(node)
        if use is not None and (self.products or use.node in self.heads):
            self._settle(use)

    # products --------------------------------------------------------------------------------

    def _settle(self, use: Use) -> None:
        """Give a product's output its target, or the factor that its weights have already."""
        if self.signals.graph.nodes[use.node].op in RECURRENT:
            self._settle_recurrence(use)
            return
        names = self._names(use)
        values, out = self.signals.values, self.signals.values[use.output]
        known = [self.solution.factors[n] for n in names if n in self.solution.factors]
        if known:
            values[use.output] = _rescaled(out, known[0])
            return
        if not names or not out.second_moment > 0 or not math.isfinite(out.second_moment):
            return
        if use.node in self.heads and self._plain and HEAD**2 <= out.second_moment <= 1.0:
            self._scale(names, 1.0, "nothing but the head passes a plain stack's gradient on")
            return
        wanted, why = self._target_of(use, names)
        shift = self._bias(use)
        own = out.second_moment - shift
        if not own > 0 or wanted <= shift:
            return
        factor = math.sqrt((wanted - shift) / own)
        rms = math.sqrt(out.second_moment)
        self._scale(names, factor, why.format(rms, math.sqrt(wanted)))
        values[use.output] = _rescaled(out, math.sqrt(wanted) / rms)

    def _settle_input(self, node: Node, use: Use) -> None:
        """An rms of SMALLEST for what a product reads, where pools and the like left less of another's.

        The earlier product is scaled up for it, twice at most, if nothing else has read it yet.
        """
        structure, values = self.structure, self.signals.values
        read = next((i for _, i in node.refs if i in structure.depth), None)
        if read is None or node.op in RECURRENT:
            return
        origin = structure.origin(read, past_norms=False)
        earlier = structure.use_at.get(structure.maker.get(origin, -1))
        if earlier is None or earlier.node in self.tails:
            return
        rms = math.sqrt(max(values[read].second_moment, 0.0))
        names = self._names(earlier)
        if not names or not 0 < rms < SMALLEST or any(self._used(n) > 1 for n in names):
            return
        between = (u for u in structure.uses if earlier.node < u.node < use.node)
        if any(structure.ancestors[u.output] >> earlier.output & 1 for u in between):
            return
        factor = min(SMALLEST / rms, 2.0)
        self._scale(names, factor, f"what the next product reads: rms {rms:.3g}, {SMALLEST} wanted")
        self._refresh([earlier.output], factor, use.node)

    def _settle_recurrence(self, use: Use) -> None:
        """Each layer's input weights, for what it reads at any scale; gates bound all that follows."""
        graph, values = self.signals.graph, self.signals.values
        node = graph.nodes[use.node]
        signal = node.args.get("x", node.args.get("data"))
        if not isinstance(signal, Ref) or not values[signal.index].second_moment > 0:
            return
        read = [values[signal.index]]
        for k, inputs in enumerate(self._inputs_of_layers(use)):
            if k:
                read = states(values[use.output], k - 1, len(inputs))
            second = sum(x.second_moment for x in read) / max(len(read), 1)
            rms = math.sqrt(max(second, 0.0))
            names = [graph.values[p].name for p in inputs]
            names = [n for n in names if n not in self.fixed and n not in self.solution.factors]
            if not names or not rms > 0 or UNIT[0] <= rms <= UNIT[1]:
                continue
            self._scale(names, 1 / rms, f"reads a signal of rms {rms:.3g} rather than 1")
            for name in names:
                index = graph.parameters[name]
                values[index] = _rescaled(values[index], 1 / rms)
            Step.run(self, node)

    def _inputs_of_layers(self, use: Use) -> list[tuple[int, ...]]:
        """Per layer the weights of its input, one a direction."""
        args, matrices = self.signals.graph.nodes[use.node].args, use.weights
        directions = 2 if args.get("bidirectional") else 1
        count = int(args.get("num_layers", 1)) * directions
        each = max(len(matrices) // count, 1)  # beside them the state's weights, and projections
        first = matrices[::each][:count]
        return [first[i : i + directions] for i in range(0, len(first), directions)]

    def _target_of(self, use: Use, names: list[str]) -> tuple[float, str]:
        """Second moment, and the reason with places for the rms before and after."""
        if use.node in self.heads:
            graph = self.signals.graph
            channels = 1 if graph.nodes[use.node].op.startswith("conv") else -1
            rms = LONE if graph.values[use.output].shape[channels] == 1 else HEAD
            return rms**2, "head: output rms {:.3g} -> {:.3g}, so that the loss starts at chance"
        given = next((self.targets[n] for n in names if n in self.targets), 1.0)
        return given, "predicted output rms {:.3g} -> {:.3g}"

    def _bias(self, use: Use) -> float:
        """Second moment of what is added to the product."""
        node = self.signals.graph.nodes[use.node]
        given = node.args.get("bias", node.args.get("x") if node.op == "addmm" else None)
        return self.signals.values[given.index].second_moment if isinstance(given, Ref) else 0.0

    def _names(self, use: Use) -> list[str]:
        return self.structure.scalable(use, self.fixed)

    def _scale(self, names: list[str], factor: float, why: str) -> None:
        for name in names:
            self.solution.put(name, factor, why)

    # residual sums ---------------------------------------------------------------------------

    def _settle_branch(self, branch: Branch) -> None:
        """The branch's share of its stream: 0.7/L of the stream's start, L branches."""
        values = self.signals.values
        skip, own = values[branch.skip], values[branch.branch]
        start = self.starts.setdefault(branch.stream, skip.second_moment)
        names = [n for use in branch.tails for n in self._names(use)]
        if not names or not own.second_moment > 0 or not start > 0:
            return
        if self.settled.issuperset(names):
            return  # of two sums that end in one product, as residual and skip paths, the first counts
        self.settled.update(names)
        length = self.structure.lengths[branch.stream]
        wanted = start * SUM_OF_BRANCHES / length
        again = any(self._used(n) > 1 for n in names)
        if again:
            wanted /= length  # the same function of nearly the same stream adds up in one direction
        if branch.normalised:
            wanted = max(wanted, SMALLEST * SMALLEST)
        if branch.normalised == "within":
            # In training the norm holds the scale, whatever the weights before it; until then they do.
            wanted = min(own.second_moment, start * WITHIN / length)
        factor = math.sqrt(wanted / own.second_moment)
        if (branch.scaled or (again and not branch.normalised)) and factor > 1.0:
            return  # its scale is the model's own: LayerScale, SkipInit, a step of time
        why = (
            f"one of {length} residual branches: rms {math.sqrt(own.second_moment):.3g} -> "
            f"{math.sqrt(wanted):.3g} beside a stream of {math.sqrt(start):.3g}"
        )
        self._scale(sorted(set(names)), factor, why)
        outputs = [use.output for use in branch.tails if self._names(use)]
        self._refresh(outputs, factor, branch.node)

    def _refresh(self, outputs: list[int], factor: float, until: int) -> None:
        """What was scaled after it was propagated, and what was made of it since."""
        graph, values = self.signals.graph, self.signals.values
        for index in outputs:
            values[index] = _rescaled(values[index], factor)
        changed = set(outputs)
        for position in range(min(self.structure.maker[i] for i in outputs) + 1, until):
            node = graph.nodes[position]
            if position not in self.structure.use_at and any(i in changed for _, i in node.refs):
                super().run(node)
                changed.update(node.outputs)

    def _used(self, name: str) -> int:
        index = self.signals.graph.parameters.get(name)
        return sum(index in use.weights for use in self.structure.uses)

    # attention -------------------------------------------------------------------------------

    def _settle_logits(self, node: Node, queries: tuple[Use, ...], keys: tuple[Use, ...]) -> None:
        """Bring the variance of the logits into range, half of it on either side."""
        names = sorted({n for use in (*queries, *keys) for n in self._names(use)})
        variance = _logit_variance(node, self.signals.values)
        if not names or not variance > 0 or LOGITS[0] <= variance <= LOGITS[1]:
            return
        if any(self._used(n) > 1 for n in names) or set(self._of(queries)) & set(self._of(keys)):
            return
        factor = variance ** (-1 / 4)
        self._scale(names, factor, f"attention logits: variance {variance:.3g} -> 1")
        for use in (*queries, *keys):
            self.signals.values[use.output] = _rescaled(self.signals.values[use.output], factor)
        for index in _sides(node):
            self.signals.values[index] = _rescaled(self.signals.values[index], factor)

    def _of(self, uses: tuple[Use, ...]) -> list[str]:
        return [n for use in uses for n in self._names(use)]


def _logit_variance(node: Node, values: Mapping[int, Abstract]) -> float:
    """Of q.k/sqrt(d), by the second moments of queries and keys."""
    q, k = (values[index] for index in _sides(node))
    d = q.shape[-1]
    scale = node.args.get("scale") or (1 / math.sqrt(d) if "query" in node.args else 1.0)
    return d * q.second_moment * k.second_moment * float(scale) ** 2


def _sides(node: Node) -> list[int]:
    """Values of queries and keys."""
    read = [i for name, i in node.refs if name in {"query", "key"}]
    return read or [i for _, i in node.refs][-2:]


def _rescaled(x: Abstract, factor: float) -> Abstract:
    filtered = note_of(x, Filtered)  # the one note that says nothing of scale
    return scaled(x, factor).with_(chain=None, note=None if filtered is None else (filtered,))


def solve(
    plan: InitPlan,
    structure: Structure,
    weights: Mapping[str, Abstract],
    *,
    kernel: Kernel | None = None,
    fixed: Collection[str] = (),
    targets: Mapping[str, float] | None = None,
    products: bool = True,
) -> Solution:
    """Factors that bring every product's output to its target, branches and heads to theirs.

    Args:
        plan: whose rows are to be scaled.
        structure: of the model's graph.
        weights: moments of what the plan draws, and of buffers.
        kernel: runs ops that no rule covers.
        fixed: FQNs that may not be scaled.
        targets: FQN of a weight -> second moment of its product's output; 1 by default.
        products: whether products and branches are scaled, or attention logits and heads alone.
    """
    graph = structure.graph
    signals = Signals(graph)
    for index, value in enumerate(graph.values):
        if value.kind != "computed":
            signals.values[index] = leaf(value, weights)
    constant = {row.name for row in plan if row.std == 0}
    solver = _Solver(
        signals,
        structure,
        kernel,
        {*fixed, *constant},
        targets or {},
        products=products,
    )
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            solver.run(node)
    return solver.solution
