"""Propagated moments -> layers of a report: one per op on the signal, as a run would list them."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from ._graph import Graph, Node
from ._moments import strata
from ._moments.domain import Abstract, average
from ._report import Layer, Signal, SignalReport
from ._signal import Signals

# The same numbers under another shape or dtype: nothing to report.
VIEWS = frozenset(
    ("alias", "detach", "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose",
     "t", "permute", "movedim", "moveaxis", "swapaxes", "swapdims", "numpy_T", "mT", "adjoint", "expand", "expand_as",
     "broadcast_to", "slice", "select", "narrow", "chunk", "split", "split_with_sizes", "unsafe_split", "unsafe_chunk",
     "unsafe_split_with_sizes", "tensor_split", "unbind", "diagonal", "as_strided", "unfold", "view_as", "reshape_as",
     "ravel", "contiguous", "clone", "to", "_to_copy", "type_as", "copy", "lift_fresh", "view_as_real",
     "view_as_complex", "real", "imag", "positive", "_reshape_alias", "view_write", "resolve_conj", "resolve_neg",
     "float", "double", "half", "bfloat16", "cpu", "cuda", "atleast_1d", "atleast_2d", "atleast_3d", "squeeze_copy",
     "_conj", "data", "requires_grad", "_reshape_copy", "view_copy", "lift")
)  # fmt: skip
FACTORIES = frozenset(
    ("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like", "new_empty",
     "new_zeros", "new_ones", "new_full", "zero", "fill")
)  # fmt: skip
TABLES = frozenset(("embedding", "embedding_bag"))
# ATen's name -> the field's, where they differ.
_NAMES = {
    "_softmax": "softmax",
    "_safe_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "log_sigmoid": "logsigmoid",
    "clamp_min": "clamp",
    "clamp_max": "clamp",
    "prelu": "prelu",
}
_PRODUCTS = frozenset(("addmm", "mm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "matmul"))


@dataclass(frozen=True)
class Predicted:
    """Layers of a report with the graph's nodes behind them.

    Args:
        layers: one per op on the signal, in execution order.
        nodes: index of each layer's node in the graph.
        outputs: (FQN of a leaf module, index into ``layers`` of its last output).
    """

    layers: tuple[Layer, ...]
    nodes: tuple[int, ...]
    outputs: tuple[tuple[str, int], ...]


def predicted(signals: Signals) -> Predicted:
    """What the propagation says of every op that reads the model's inputs and yields real numbers."""
    graph = signals.graph
    on_signal = _reached(graph)
    weighted = _parameters_only(graph)
    layers: list[Layer] = []
    nodes: list[int] = []
    made_by: dict[int, int] = {}
    for position, node in enumerate(graph.nodes):
        reads = [i for _, i in node.refs if i in on_signal]
        if not reads or node.op in FACTORIES:
            continue
        if node.op in VIEWS:
            source = next((made_by[i] for i in reads if i in made_by), None)
            if source is not None:
                made_by |= dict.fromkeys(node.outputs, source)
            continue
        real = [i for i in node.outputs if graph.values[i].floating]
        if not real:
            continue
        made_by |= dict.fromkeys(real, len(layers))
        nodes.append(position)
        layers.append(_layer(node, real[0], signals, weighted))
    outputs = {
        call.module: made_by[call.output]
        for call in graph.leaves()
        if call.output is not None and call.output in made_by
    }
    return Predicted(tuple(layers), tuple(nodes), tuple(outputs.items()))


def _reached(graph: Graph) -> set[int]:
    """Values computed from the model's inputs, or looked up in tables; else from the parameters.

    Indices computed from token ids are constants like any others, so that a lookup starts a signal.
    """
    found = set(graph.inputs)
    tables = any(node.op in TABLES for node in graph.nodes)
    if not found and not tables:
        found = {i for i, v in enumerate(graph.values) if v.kind == "parameter"}
    for node in graph.nodes:
        if node.op in TABLES or any(i in found for _, i in node.refs):
            found.update(node.outputs)
    return found


def _parameters_only(graph: Graph) -> set[int]:
    """Parameters, and values computed from parameters and constants alone."""
    found = {i for i, v in enumerate(graph.values) if v.kind == "parameter"}
    known = found | {i for i, v in enumerate(graph.values) if v.kind in {"buffer", "constant"}}
    known -= set(graph.inputs)
    for node in graph.nodes:
        read = [i for _, i in node.refs]
        if read and all(i in known for i in read) and any(i in found for i in read):
            found.update(node.outputs)
            known.update(node.outputs)
    return found


def _layer(node: Node, output: int, signals: Signals, weighted: set[int]) -> Layer:
    name = _NAMES.get(node.op, node.op)
    if node.op in _PRODUCTS:
        name = "linear" if any(i in weighted for _, i in node.refs) else "matmul"
    grad = signals.grads.get(output)
    value = signals.graph.values[output]
    return Layer(node.module, name, value.shape, predicted=signal(signals.values[output], grad))


def signal(x: Abstract, grad: Abstract | None = None) -> Signal:
    """The record of one tensor."""
    return Signal(
        act_rms=math.sqrt(max(x.second_moment, 0.0)),
        act_mean=x.average_mean,
        correlation=correlation(x),
        grad_rms=None if grad is None else math.sqrt(max(grad.second_moment, 0.0)),
        error_bar=math.sqrt(max(x.noise, 0.0)) / 2,
    )


def correlation(x: Abstract) -> float | None:
    """E x_a . x_b / E |x_a|^2 over samples a != b along dim 0; None with fewer than two, or all zero."""
    if not x.dims or not x.dims[0]:
        return None
    own = x.axes([0])
    n = strata.size(x.dims[0])
    second = x.second_moment
    weights = [
        strata.pairs(atom) / sum(atom) ** 2 if axis in own else strata.same(atom)
        for axis, atom in enumerate(x.atoms)
    ]
    both = average(x.q, weights)
    apart = (both * n - second) / (n - 1)
    return float(np.clip(apart / second, -1.0, 1.0)) if second > 0 else None


def joined(report: SignalReport, found: Predicted) -> SignalReport:
    """A measured report with what was predicted for the same ops.

    Ops meet by module, name and size, in order; what a leaf module returns meets in any case.
    """
    waiting: dict[tuple[str, str, int], deque[Signal | None]] = {}
    for layer in found.layers:
        waiting.setdefault(_identity(layer), deque()).append(layer.predicted)
    layers = []
    for layer in report.layers:
        same = waiting.get(_identity(layer))
        layers.append(replace(layer, predicted=same.popleft() if same else None))
    returned = dict(found.outputs)
    for name, index in report.outputs:
        if layers[index].predicted is None and name in returned:
            predicted_there = found.layers[returned[name]].predicted
            layers[index] = replace(layers[index], predicted=predicted_there)
    return replace(report, layers=tuple(layers))


def _identity(layer: Layer) -> tuple[str, str, int]:
    return layer.name, layer.op, math.prod(layer.shape)
