"""What a model computes, as data: values, the ops that make them, the modules that ran them.

A graph is in execution order and free of side effects: an in-place op yields a new value, and a
write into a view yields a new value of the viewed tensor as well. Parameters keep their FQNs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy.typing as npt

Kind = Literal["parameter", "buffer", "input", "constant", "computed"]


@dataclass(frozen=True, slots=True)
class Ref:
    """A value as an argument of an op: its index in `Graph.values`."""

    index: int


@dataclass(frozen=True, eq=False, slots=True)
class Value:
    """One tensor.

    Args:
        shape: its sizes.
        dtype: torch's name without the prefix: ``float32``, ``int64``, ``bool``.
        kind: where it comes from. A constant depends on no parameter and no floating input, so that
            its numbers are known: masks, positions, rotary tables, token ids.
        name: FQN of a parameter or buffer (of a tied one, its first name), name of an input.
        data: the numbers of a constant or an input, where they are few enough to keep; of shape
            ``shape``.
    """

    shape: tuple[int, ...]
    dtype: str
    kind: Kind = "computed"
    name: str = ""
    data: npt.NDArray | None = None

    @property
    def floating(self) -> bool:
        """Whether it holds real or complex numbers rather than indices or truth values."""
        return "float" in self.dtype or "complex" in self.dtype


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One op.

    Args:
        op: ATen's name without overload and trailing underscore: ``linear``, ``layer_norm``.
        args: every argument by its name in ATen's schema, defaults included; ``self`` and ``input``
            are both called ``x``. Tensors are `Ref`s, lists of them lists of `Ref`s.
        outputs: indices of the values that it makes.
        module: FQN of the innermost module that ran it; empty for the model itself.
    """

    op: str
    args: Mapping[str, Any]
    outputs: tuple[int, ...]
    module: str = ""

    @property
    def refs(self) -> list[tuple[str, int]]:
        """(argument's name, value's index) of each tensor that it reads, lists flattened."""
        return [
            (name, item.index)
            for name, given in self.args.items()
            for item in (given if isinstance(given, (list, tuple)) else (given,))
            if isinstance(item, Ref)
        ]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module.

    Args:
        module: its FQN; of a shared module, the first name.
        kind: its class name.
        start: index of the first node that it ran.
        stop: index after the last one.
        output: index of its first floating output's value; None where there is none.
        leaf: whether the module has no children.
    """

    module: str
    kind: str
    start: int
    stop: int
    output: int | None
    leaf: bool


@dataclass(frozen=True, eq=False)
class Graph:
    """A model's run.

    Args:
        values: all tensors.
        nodes: ops in execution order.
        calls: calls of modules in the order in which they returned.
        inputs: indices of the model's input values.
        outputs: indices of its output values, in the order of its nested output.
        parameters: FQN -> value's index, every name of a tied parameter included. Parameters that
            no op reads are missing here and listed in ``unused``.
        unused: FQNs of the parameters that this run did not read.
        notes: what was sampled or assumed: ``topk: 4 routings sampled``.
    """

    values: tuple[Value, ...]
    nodes: tuple[Node, ...]
    calls: tuple[Call, ...] = ()
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    parameters: Mapping[str, int] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def readers(self) -> dict[int, list[int]]:
        """Value's index -> indices of the nodes that read it."""
        found: dict[int, list[int]] = {}
        for position, node in enumerate(self.nodes):
            for _, index in node.refs:
                found.setdefault(index, []).append(position)
        return found

    def leaves(self) -> Iterator[Call]:
        """Calls of modules without children that return real numbers."""
        return (call for call in self.calls if call.leaf and call.output is not None)
