"""Which layers of a plain stack can start in mirror images (`LooksLinear`), by the graph.

A layer puts out mirror images, z and -z, if a function with f(x) - f(-x) = c x follows, and if all
that reads f's output are layers that take differences of the two halves: dense ones and ungrouped
convolutions, with nothing but pooling by averages, dropout and flattening between, which keep the
halves apart.

Source: Balduzzi et al. 2017, "The shattered gradients problem", section 5.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ._activations import Nonlinearity
from ._facts import Mirror
from ._graph import Graph, Node
from ._structure import Structure, Use

_KEEPS = frozenset(
    ("dropout", "feature_dropout", "mean", "contiguous", "clone", "flatten", "view", "reshape", "_unsafe_view",
     "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
     "adaptive_avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "squeeze", "alias")
)  # fmt: skip
_CONVOLUTIONS = frozenset(("conv1d", "conv2d", "conv3d"))
_X = np.array([0.2, 0.9, 2.1, 4.0, 15.0])


def slope(f: Nonlinearity) -> float:
    """C > 0 where f(x) - f(-x) = c x and f is not odd itself, else 0.

    >>> from fanin._nonlinearity import as_nonlinearity
    >>> [round(slope(as_nonlinearity(n)), 3) for n in ("relu", "silu", "softplus", "tanh", "elu")]
    [1.0, 1.0, 1.0, 0.0, 0.0]
    """
    if f.odd or f.gated:
        return 0.0
    ratio = (f.f(_X) - f.f(-_X)) / _X
    alike = np.ptp(ratio) <= 1e-9 * np.abs(ratio).max()
    return float(ratio[0]) if alike and ratio[0] > 0 else 0.0


def mirrors(structure: Structure, after: Mapping[str, Nonlinearity]) -> dict[str, Mirror]:
    """Weight's name in the graph -> how it can be mirrored; those that cannot are missing.

    Args:
        structure: of the graph.
        after: weight's name in the graph -> the nonlinearity that follows.
    """
    graph = structure.graph
    makers: dict[int, tuple[str, float]] = {}
    for use in structure.uses:
        name = _weight(graph, structure, use)
        c = slope(after[name]) if name in after else 0.0
        if name and c and graph.values[use.weights[0]].shape[0] % 2 == 0:
            makers[use.node] = (name, c)
    takers = _takers(structure, set(makers))
    found: dict[str, Mirror] = {}
    for maker, nodes in takers.items():
        name, c = makers[maker]
        found[name] = replaced(found.get(name), outputs=True)
        for node in nodes:
            taker = _weight(graph, structure, structure.use_at[node])
            found[taker] = replaced(found.get(taker), inputs=True, slope=c)
    return found


def replaced(mirror: Mirror | None, **changes: bool | float) -> Mirror:
    """With other fields; of nothing, a fresh one."""
    return (mirror or Mirror())._replace(**changes)  # type: ignore[arg-type]


def _weight(graph: Graph, structure: Structure, use: Use) -> str:
    """The name of a use's one weight, if it is a dense layer or an ungrouped convolution used once."""
    node = graph.nodes[use.node]
    plain = node.op == "linear" or (node.op in _CONVOLUTIONS and node.args.get("groups", 1) == 1)
    if not plain or len(use.weights) != 1:
        return ""
    index = use.weights[0]
    whole = any(i == index for _, i in node.refs)  # not a view of it, nor computed from it
    once = sum(index in other.weights for other in structure.uses) == 1
    return graph.values[index].name if whole and once else ""


def _takers(structure: Structure, makers: set[int]) -> dict[int, list[int]]:
    """Use -> the uses that read its nonlinearity's output, where nothing else does."""
    graph, readers = structure.graph, structure.readers
    found: dict[int, list[int]] = {}
    for maker in sorted(makers):
        node = graph.nodes[maker]
        axis = 1 if node.op in _CONVOLUTIONS else -1
        read = readers.get(node.outputs[0], [])
        front = [(o, axis) for r in read for o in graph.nodes[r].outputs]
        taken: list[int] = []
        good = len(read) == 1 and not set(graph.outputs) & {*node.outputs}
        while front and good:
            value, axis = front.pop()
            good = value not in graph.outputs and bool(readers.get(value))
            for r in readers.get(value, []):
                if r in structure.use_at:
                    good = good and _takes(structure, r, value, axis)
                    taken.append(r)
                    continue
                kept = _axis_after(graph, graph.nodes[r], value, axis)
                good = good and kept is not None
                if kept is not None:
                    front += [(o, kept) for o in graph.nodes[r].outputs]
        if good and taken:
            found[maker] = taken
    return found


def _takes(structure: Structure, position: int, value: int, axis: int) -> bool:
    graph, node = structure.graph, structure.graph.nodes[position]
    own = 1 if node.op in _CONVOLUTIONS else -1
    reads = next((i for _, i in node.refs if i not in structure.weights), None)
    at = axis if axis >= 0 else len(graph.values[value].shape) - 1
    wanted = own if own >= 0 else len(graph.values[value].shape) - 1
    return (
        reads == value
        and at == wanted
        and bool(_weight(graph, structure, structure.use_at[position]))
    )


def _axis_after(graph: Graph, node: Node, value: int, axis: int) -> int | None:
    """Where the channels are behind an op that keeps their halves apart; None behind others."""
    before, behind = graph.values[value].shape, graph.values[node.outputs[0]].shape
    if node.op not in _KEEPS or len(node.refs) != 1 or not behind:
        return None
    if axis == -1:
        return -1 if behind[-1] == before[-1] else None
    if behind[0] != before[0] or len(behind) < 2:
        return None
    if behind[1] == before[1]:
        return 1 if len(behind) > 2 else -1
    return -1 if len(behind) == 2 and behind[1] % before[1] == 0 else None
