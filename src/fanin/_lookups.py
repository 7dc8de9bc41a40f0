"""Tables of rows: how large beside what is added to them, and where they are output layers too.

Tokens say more than positions, which are all alike from sample to sample: what is added to a
token's row gets at most `BESIDE` of its size. A table that is an output layer too has two wishes:
rows of order one, and logits of order one, whose rms is sqrt(d) g s, s the table's std, g the scale
of the norm before the head, d the width. Where both cannot be had, s and g share what is missing.

Tied: Press & Wolf 2017, "Using the output embedding to improve language models".
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ._graph import Node, Value
from ._plan import InitPlan
from ._predict import TABLES, VIEWS
from ._solve import HEAD, SMALLEST, Solution
from ._structure import NORMS, Structure

BESIDE = 0.3
_ON = VIEWS | {"dropout"}


@dataclass(frozen=True)
class Lookup:
    """A table that the model's inputs select rows of.

    Args:
        table: its FQN.
        beside: FQN of another table or bare parameter that is added to its rows -> what the rows
            are multiplied by before.
        tied: whether it is the weight of a head as well.
        scale: FQN of the scale of the norm before that head; empty where there is none.
    """

    table: str
    beside: Mapping[str, float]
    tied: bool
    scale: str


def lookups(structure: Structure) -> list[Lookup]:
    """Every table of the graph that is looked up by more than positions."""
    graph, found = structure.graph, dict[int, Lookup]()
    heads = {p: graph.nodes[head.node] for head in structure.heads for p in head.weights}
    for node in graph.nodes:
        read = [i for _, i in node.refs]
        tables = [p for i in read for p in structure.weights.get(i, ())]
        if node.op not in TABLES or not tables or any(_is_position(graph.values[i]) for i in read):
            continue
        p, name = tables[0], graph.values[tables[0]].name
        known = found[p].beside if p in found else {}
        scale = _scale(structure, heads[p]) if p in heads else ""
        beside = {**known, **dict(_beside(structure, node.outputs[0]))}
        found[p] = Lookup(name, beside, p in heads, scale)
    return list(found.values())


def _is_position(value: Value) -> bool:
    """Whether indices are the same for every sample, and count evenly."""
    if value.floating or value.data is None or value.data.ndim == 0:
        return False
    rows = value.data.reshape(-1, value.shape[-1])
    steps = np.diff(rows[0])
    return (
        bool((rows == rows[0]).all())
        and (len(rows) > 1 or len(steps) > 0)
        and len(set(steps.tolist())) < 2
    )


def _beside(structure: Structure, row: int) -> Iterator[tuple[str, float]]:
    """What is added to looked-up rows before anything else is done, and their factor by then."""
    graph, readers = structure.graph, structure.readers
    front = [(row, 1.0)]
    while front:
        i, factor = front.pop()
        for node in (graph.nodes[r] for r in readers.get(i, [])):
            others = [j for _, j in node.refs if j != i]
            times = node.args.get("other")
            if node.op in _ON:
                front += [(o, factor) for o in node.outputs]
            elif node.op == "mul" and isinstance(times, int | float):
                front += [(o, factor * times) for o in node.outputs]
            elif node.op == "add" and len(others) == 1 and (own := _rows(structure, others[0])):
                yield from ((name, factor) for name in own)
                front += [(o, factor) for o in node.outputs]


def _rows(structure: Structure, index: int) -> list[str]:
    """The table whose rows a value is, or the bare parameter that it is."""
    graph = structure.graph
    index = structure.root(index)
    maker = structure.maker.get(index)
    read = [index]
    if maker is not None and graph.nodes[maker].op in TABLES:
        read = [i for _, i in graph.nodes[maker].refs]
        if not any(_is_position(graph.values[i]) for i in read):
            return []
    return [graph.values[p].name for i in read for p in structure.weights.get(i, ())]


def _scale(structure: Structure, head: Node) -> str:
    """The one parameter that scales a head's input."""
    graph = structure.graph
    signal = next((i for _, i in head.refs if i not in structure.weights), None)
    maker = None if signal is None else structure.maker.get(structure.root(signal))
    if maker is None:
        return ""
    node = graph.nodes[maker]
    owners: tuple[int, ...] = ()
    if node.op in NORMS:
        owners = structure.weights.get(getattr(node.args.get("weight"), "index", -1), ())
    elif node.op == "mul":
        owners = tuple(p for _, i in node.refs for p in structure.weights.get(i, ()))
    return graph.values[owners[0]].name if len(owners) == 1 else ""


def balanced(
    plan: InitPlan, found: list[Lookup], solution: Solution, fixed: Collection[str]
) -> Solution:
    """Factors for tables, what is added to their rows, and the norms before tied heads.

    Args:
        plan: before scaling.
        found: from `lookups`.
        solution: of the plan as it is: what each head asks for.
        fixed: FQNs that may not be scaled.
    """
    made = Solution()
    for lookup in found:
        std = plan[lookup.table].std
        if lookup.table in fixed or not std > 0:
            continue
        s = std
        if lookup.tied:
            s = _tied(plan, lookup, std * solution.factors.get(lookup.table, 1.0), fixed, made)
        for name, factor in lookup.beside.items():
            own, most = plan[name].std, max(BESIDE * s * factor, SMALLEST)
            if name not in fixed and own > most:
                made.put(name, most / own, f"added to rows of rms {s * factor:.3g}")
    return made


def _tied(
    plan: InitPlan, lookup: Lookup, asked: float, fixed: Collection[str], made: Solution
) -> float:
    """Std of a tied table whose head asks for ``asked``."""
    s, g = min(asked, 1.0), 1.0
    free = lookup.scale not in {"", *fixed} and plan[lookup.scale].distribution.mean != 0
    if asked < SMALLEST and free:
        s = g = min(SMALLEST, math.sqrt(asked / HEAD))
        made.put(lookup.scale, g, "before a tied output layer, whose rows need not be smaller then")
    logits = HEAD * s * g / asked
    why = f"rows of rms {s:.3g}, and logits of {logits:.3g} where it is the output layer"
    made.put(lookup.table, s / plan[lookup.table].std, why)
    return s
