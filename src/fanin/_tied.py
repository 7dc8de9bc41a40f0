"""Tables that are output layers too: one std for two wishes.

Rows that are looked up should be of order one, and so should logits, whose rms is sqrt(d) g s: s
the table's std, g the scale of the norm before the head, d the width. Where both cannot be had, s
and g share what is missing, and what is added to the rows (positions, types) shrinks with them.

Tied: Press & Wolf 2017, "Using the output embedding to improve language models".
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ._graph import Node
from ._plan import InitPlan
from ._predict import TABLES, VIEWS
from ._solve import HEAD, SMALLEST, Solution
from ._structure import NORMS, Structure

_ON = VIEWS | {"dropout"}


@dataclass(frozen=True)
class Tied:
    """A table that is an output layer too.

    Args:
        table: its FQN.
        beside: FQNs of what is added to its rows: other tables and bare parameters.
        scale: FQN of the scale of the norm before the head; empty where there is none.
    """

    table: str
    beside: tuple[str, ...]
    scale: str


def tied_tables(structure: Structure) -> list[Tied]:
    """Every table of the graph that a head multiplies with."""
    graph, found = structure.graph, {}
    for head in structure.heads:
        for p in head.weights:
            rows = [
                node.outputs[0]
                for node in graph.nodes
                if node.op in TABLES
                and any(p in structure.weights.get(i, ()) for _, i in node.refs)
            ]
            if rows:
                beside = tuple(dict.fromkeys(n for i in rows for n in _beside(structure, i)))
                scale = _scale(structure, graph.nodes[head.node])
                found[p] = Tied(graph.values[p].name, beside, scale)
    return list(found.values())


def _beside(structure: Structure, row: int) -> Iterator[str]:
    """Names of the parameters that are added to looked-up rows before anything else is done."""
    graph, readers = structure.graph, structure.readers
    front = [row]
    while front:
        i = front.pop()
        for node in (graph.nodes[r] for r in readers.get(i, [])):
            others = [j for _, j in node.refs if j != i]
            if node.op in _ON:
                front += node.outputs
            elif node.op == "add" and len(others) == 1:
                own = _table_of(structure, others[0])
                if own:
                    yield from own
                    front += node.outputs


def _table_of(structure: Structure, index: int) -> list[str]:
    """The table whose rows a value is, or the bare parameter that it is."""
    graph = structure.graph
    while (maker := structure.maker.get(index)) is not None and graph.nodes[maker].op in _ON:
        index = graph.nodes[maker].refs[0][1]
    read = [index]
    if maker is not None and graph.nodes[maker].op in TABLES:
        read = [i for _, i in graph.nodes[maker].refs]
    return [graph.values[p].name for i in read for p in structure.weights.get(i, ())]


def _scale(structure: Structure, head: Node) -> str:
    graph = structure.graph
    signal = next((i for _, i in head.refs if i not in structure.weights), None)
    while signal is not None and (maker := structure.maker.get(signal)) is not None:
        node = graph.nodes[maker]
        if node.op in NORMS:
            owners = structure.weights.get(getattr(node.args.get("weight"), "index", -1), ())
        elif node.op == "mul":
            owners = tuple(p for _, i in node.refs for p in structure.weights.get(i, ()))
        elif node.op in _ON:
            signal = node.refs[0][1]
            continue
        else:
            return ""
        return graph.values[owners[0]].name if len(owners) == 1 else ""
    return ""


def balanced(
    plan: InitPlan, tables: list[Tied], solution: Solution, fixed: Collection[str]
) -> Solution:
    """Factors for tied tables, what is added to their rows, and the norms before their heads.

    Args:
        plan: before scaling.
        tables: from `tied_tables`.
        solution: of the plan as it is: what each head asks for.
        fixed: FQNs that may not be scaled.
    """
    found = Solution()
    for tied in tables:
        std = plan[tied.table].std
        if tied.table in fixed or not std > 0:
            continue
        asked = std * solution.factors.get(tied.table, 1.0)
        s, g = min(asked, 1.0), 1.0
        free = tied.scale and tied.scale not in fixed and abs(plan[tied.scale].distribution.mean) > 0
        if asked < SMALLEST and free:
            s = g = min(SMALLEST, math.sqrt(asked / HEAD))
        why = f"rows of rms {s:.3g}, and logits of {HEAD * s * g / asked:.3g} where it is the output layer"
        found.put(tied.table, s / std, why)
        if g != 1.0:
            found.put(tied.scale, g, "scale before a tied output layer, so that its rows need not be smaller")
        for name in tied.beside:
            own = plan[name].std
            if name not in fixed and own > s:
                found.put(name, s / own, f"added to rows of rms {s:.3g}")
    return found
