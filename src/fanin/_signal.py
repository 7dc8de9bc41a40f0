"""Propagate moments through a graph: forward from the inputs and weights, backward from the loss.

Each node asks its rule (`_moments`). What no rule covers is drawn from its inputs' moments and put
through the real op, where the caller gives one; what even that cannot do is named.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _moments as _rules  # noqa: F401 - registers them
from ._graph import Graph, Node, Ref, Value
from ._moments.algebra import through, weighted_mean, weighted_mean_backward
from ._moments.domain import (
    Abstract,
    added,
    constant,
    drawn,
    full,
    limited,
    measured,
    multiplied,
    scaled,
)
from ._moments.gaussian import moments
from ._moments.lines import Line
from ._moments.notes import Factored, note_of
from ._moments.registry import BACKWARD, FORWARD, Rule
from ._moments.tilt import KEEPS, inherited
from ._quotients import weighted_means
from ._reuse import Uses

Kernel = Callable[[Node, Mapping[str, Any]], Sequence[npt.NDArray]]

DRAWN_AT_MOST = 1 << 22  # numbers, of one node that no rule covers
STEP = 1e-4  # of the base's standard deviation, in a numerical derivative
MEAN = Rule(weighted_mean, frozenset(("x", "other")))  # of quotients that are weighted means
MEAN_BACKWARD = Rule(weighted_mean_backward, frozenset(("grad", "x", "other", "output")))


@dataclass(eq=False)
class Signals:
    """Moments of every value, and of its gradient.

    Args:
        graph: what was propagated through.
        values: value's index -> its moments.
        grads: value's index -> moments of the loss's gradient for it; missing where none flows.
        drawn: op -> how many of its nodes had no rule and were sampled.
        uncovered: op -> how many of its nodes had neither rule nor sample: their outputs pass on the
            moments of their first input.
        failures: what rules raised, by op.
    """

    graph: Graph
    values: dict[int, Abstract] = field(default_factory=dict)
    grads: dict[int, Abstract] = field(default_factory=dict)
    drawn: Counter[str] = field(default_factory=Counter)
    uncovered: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)

    @cached_property
    def means(self) -> frozenset[int]:
        """Values that are weighted means: their own rule runs in place of division's."""
        return weighted_means(self.graph)


def forward(
    graph: Graph,
    weights: Mapping[str, Abstract],
    *,
    inputs: Mapping[int, Abstract] | None = None,
    kernel: Kernel | None = None,
) -> Signals:
    """Moments of every value of the graph.

    Args:
        graph: from `_capture`.
        weights: FQN of a parameter or buffer -> its moments; those missing count as independent
            with variance 1.
        inputs: value's index -> moments of an input; by default those of its numbers.
        kernel: (node, arguments with arrays) -> arrays: runs an op that has no rule.
    """
    signals = Signals(graph)
    given = inputs or {}
    for index, value in enumerate(graph.values):
        if value.kind != "computed":
            signals.values[index] = given.get(index) or leaf(value, weights)
    step = Step(signals, kernel)
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            step.run(node)
    return signals


def leaf(value: Value, weights: Mapping[str, Abstract]) -> Abstract:
    """Moments of a value that no op makes."""
    if value.kind in {"parameter", "buffer"} and value.name in weights:
        return weights[value.name]
    if value.data is not None:
        return measured(value.data)
    return full(value.shape, 1.0)


class Step:
    """One node forward: its rule, else its kernel, else its first input."""

    def __init__(self, signals: Signals, kernel: Kernel | None) -> None:
        self.signals, self.kernel = signals, kernel
        self.rng = np.random.default_rng(0)

    def run(self, node: Node) -> None:
        """Write the moments of the node's outputs."""
        graph, values = self.signals.graph, self.signals.values
        made = [graph.values[i] for i in node.outputs]
        outputs = self._ruled(node, made)
        if outputs is None:
            outputs = self._sampled(node, made)
        elif node.op in KEEPS:
            self._hand_on(node, outputs)
        values.update(zip(node.outputs, outputs, strict=True))

    def _hand_on(self, node: Node, outputs: Sequence[Abstract]) -> None:
        """What all the node's computed inputs come from, its outputs come from too."""
        graph, values = self.signals.graph, self.signals.values
        read = [i for _, i in node.refs if graph.values[i].floating]
        made = [values[i].source for i in read if graph.values[i].kind in {"computed", "input"}]
        source = inherited(node.op, made, node.args.get("other"))
        if source is not None:
            for output in outputs:
                output.source = output.source or source

    def _ruled(self, node: Node, made: Sequence[Value]) -> list[Abstract] | None:
        rule = FORWARD.get(node.op)
        if rule is None:
            return None
        if node.outputs[0] in self.signals.means:
            rule = MEAN
        given = arguments(node, self.signals.values, takes=rule.takes)
        try:
            result = rule(
                **given,
                op=node.op,
                shapes=[v.shape for v in made],
                dtypes=[v.dtype for v in made],
            )
            outputs = [result] if isinstance(result, Abstract) else list(result)
            return [_fit(o, v) for o, v in zip(outputs, made, strict=True)]
        except (ArithmeticError, AttributeError, IndexError, KeyError, NotImplementedError, TypeError,
                ValueError, AssertionError) as error:  # fmt: skip
            self.signals.failures.setdefault(node.op, f"{node.module}: {error!r}")
            return None

    def _sampled(self, node: Node, made: Sequence[Value]) -> list[Abstract]:
        """The real op on drawn tensors."""
        values = self.signals.values
        read = [values[i] for _, i in node.refs]
        small = sum(int(np.prod(x.shape)) for x in read) <= DRAWN_AT_MOST
        if self.kernel is not None and small:
            try:
                given = arguments(node, values, lambda x: _numbers(x, self.rng))
                arrays = self.kernel(node, given)
                outputs = [_fit(measured(a), v) for a, v in zip(arrays, made, strict=True)]
            except Exception as error:  # noqa: BLE001 - any op, any reason
                self.signals.failures.setdefault(node.op, f"{node.module}: {error!r}")
            else:
                self.signals.drawn[node.op] += 1
                return [o.plain() for o in outputs]
        if any(v.floating for v in made):
            self.signals.uncovered[node.op] += 1
        first = next((x for x in read), None)
        if first is None:
            return [constant(v.shape, 0.0) for v in made]
        return [full(v.shape, first.second_moment, first.average_mean) for v in made]


def arguments(
    node: Node,
    values: Mapping[int, Abstract],
    of: Callable[[Abstract], Any] = lambda x: x,
    takes: Collection[str] | None = None,
) -> dict[str, Any]:
    """The node's arguments, or those that a rule takes, with what is known of a value for its `Ref`."""

    def one(given: Any) -> Any:
        if isinstance(given, Ref):
            return of(values[given.index])
        if isinstance(given, (list, tuple)):
            return type(given)(one(item) for item in given)
        return given

    return {name: one(given) for name, given in node.args.items() if takes is None or name in takes}


def _numbers(x: Abstract, rng: np.random.Generator) -> npt.NDArray:
    return x.known if x.known is not None else drawn(x, rng)


def _fit(x: Abstract, value: Value) -> Abstract:
    """Moments of the right shape; a rule that gets it wrong is an error, except of an empty tensor."""
    if 0 in value.shape:
        return measured(np.zeros(value.shape))
    if x.shape != value.shape:
        raise ValueError(f"the rule gives shape {list(x.shape)} for {list(value.shape)}")
    total = float(np.add.reduce(x.q, axis=None))  # of finite numbers, unless it overflows
    if not math.isfinite(total) and value.floating and not np.isfinite(x.q).all():
        x = x.with_(q=np.nan_to_num(x.q, nan=0.0, posinf=1e300), mean=np.nan_to_num(x.mean))
    return limited(x)


# backward -----------------------------------------------------------------------------------------


Shares = Iterable[tuple[int, Abstract]]  # value's index, its share of a node's gradient


def seeds_of(graph: Graph) -> dict[int, Abstract]:
    """N(0, 1) as the gradient of the first floating output; nothing where there is none."""
    root = next((i for i in graph.outputs if graph.values[i].floating), None)
    return {} if root is None else {root: full(graph.values[root].shape, 1.0)}


def backward(
    signals: Signals,
    seeds: Mapping[int, Abstract],
    settle: Callable[[int, Node, Shares], Shares] = lambda _position, _node, shares: shares,
) -> Signals:
    """Moments of the loss's gradient for every value, written into ``signals.grads``.

    Args:
        signals: from `forward`.
        seeds: value's index -> moments of the gradient that starts there.
        settle: (node's index, node, what it hands back) -> what is handed back instead.
    """
    grads = signals.grads
    grads.update(seeds)
    uses = Uses(signals.graph, signals.values)
    uses.start(seeds)
    owner: dict[int, int] = {}
    for index, x in signals.values.items():
        owner.setdefault(id(x), index)  # views may hand on the object itself: its maker comes first
    with np.errstate(all="ignore"):
        for position, node in reversed(list(enumerate(signals.graph.nodes))):
            for i in node.outputs:
                gain = uses.gain(i)
                if gain > 1.001 and i in grads:
                    grads[i] = scaled(grads[i], math.sqrt(gain)).plain()
            own = [grads.get(i) for i in node.outputs]
            if any(g is not None for g in own):
                for index, grad in settle(position, node, _transposed(node, own, signals, owner)):
                    grads[index] = limited(added(grads[index], grad)) if index in grads else grad
                    uses.see(node, index, grad)
    uses.settle(grads)
    return signals


def _transposed(
    node: Node, own: list[Abstract | None], signals: Signals, owner: Mapping[int, int]
) -> Iterator[tuple[int, Abstract]]:
    """(value's index, its share of the gradient) for each tensor that the node reads."""
    values = signals.values
    outputs = [values[i] for i in node.outputs]
    shortcut = _chained(node, own[0], outputs[0], values, owner)
    if shortcut is not None:
        yield shortcut
        return
    rule = BACKWARD.get(node.op)
    if node.outputs[0] in signals.means:
        rule = MEAN_BACKWARD
    if rule is None:
        yield from _passed(node, own, signals)
        return
    try:
        shares = rule(**{
            "op": node.op, "grad": own[0] or _nothing(outputs[0]), "grads": own, "output": outputs[0],
            "outputs": outputs, "shapes": [o.shape for o in outputs], **arguments(node, values, takes=rule.takes),
        })  # fmt: skip
        found = list(_matched(node, shares, signals))
    except (ArithmeticError, AttributeError, IndexError, KeyError, NotImplementedError, TypeError,
            ValueError, AssertionError) as error:  # fmt: skip
        signals.failures.setdefault(f"{node.op} backward", f"{node.module}: {error!r}")
        found = list(_passed(node, own, signals))
    yield from found


def _matched(
    node: Node, shares: Mapping[str, Any], signals: Signals
) -> Iterator[tuple[int, Abstract]]:
    for name, share in shares.items():
        given = node.args.get(name)
        refs = given if isinstance(given, (list, tuple)) else (given,)
        grads = share if isinstance(given, (list, tuple)) else (share,)
        for ref, grad in zip(refs, grads, strict=True):
            if isinstance(ref, Ref) and grad is not None:
                value = signals.graph.values[ref.index]
                if value.floating:
                    yield ref.index, _fit(grad, value)


def _chained(
    node: Node,
    grad: Abstract | None,
    output: Abstract,
    values: Mapping[int, Abstract],
    owner: Mapping[int, int],
) -> tuple[int, Abstract] | None:
    """The gradient past a whole chain of elementwise functions, straight to their common base.

    One by one their gradients would meet again at the base, and they are not independent.
    """
    if grad is None or output.chain is None or len(node.outputs) != 1:
        return None
    base, f = output.chain
    index = owner.get(id(base))
    if index is None or base is output or (base.dims != grad.dims and base.shape != grad.shape):
        return None
    for _, i in node.refs:
        x = values[i]
        if x is not base and (x.chain is None or x.chain[0] is not base) and x.known is None:
            return None
    if isinstance(f, Line):
        return index, limited(scaled(grad, f.slope).with_(chain=None))
    step = STEP * max(float(np.sqrt(base.second_moment)), 1e-15)

    def slope(z: npt.NDArray) -> npt.NDArray:
        return np.asarray((f(z + step) - f(z - step)) / (2 * step))

    note = note_of(grad, Factored)
    if note is not None and note.base is base:  # a pool's, which flows to large elements
        return index, limited(through(grad, base, slope).plain())
    return index, limited(multiplied(grad, Abstract(base.dims, *moments(base, slope))))


def _passed(
    node: Node, own: list[Abstract | None], signals: Signals
) -> Iterator[tuple[int, Abstract]]:
    """Without a rule: the gradient's energy goes to the first real tensor that the node reads."""
    grad = next(g for g in own if g is not None)
    for _, index in node.refs:
        value = signals.graph.values[index]
        if value.floating and value.kind != "constant":
            signals.uncovered[f"{node.op} backward"] += 1
            yield index, full(value.shape, grad.second_moment)
            return


def _nothing(x: Abstract) -> Abstract:
    return constant(x.shape, 0.0)
