"""Quotients that are weighted means: sum_i w_i v_i / sum_i w_i with w >= 0, however the sums are made.

Numerator and denominator share their weights, so the quotient has the size of the v; as a product
of two independent tensors it would be far larger, because 1 / sum w is large where sum w is small.
Linear attention, attention over edges and recurrences of decayed sums divide in this way.

Both expressions are walked at once: the numerator must be what the denominator is, with a factor v at
each weight.
"""

from __future__ import annotations

from typing import Any

from ._graph import Graph, Node, Ref

_POSITIVE = frozenset(("exp", "exp2", "sigmoid", "softmax", "_softmax", "softplus", "relu", "abs", "square", "sqrt", "rsqrt"))  # fmt: skip
_RESHAPED = frozenset(
    ("view", "reshape", "expand", "unsqueeze", "squeeze", "permute", "transpose", "clone", "to", "_to_copy", "contiguous")
)  # fmt: skip
# Linear in their first argument, and, of those that add, in the second one that holds numbers.
_LINEAR = _RESHAPED | {"select", "slice", "index_select", "index", "flip", "sum", "mean", "cumsum"}
_SUMS = {"add": "other", "index_add": "source", "scatter_add": "src"}
_SIZES = frozenset(("size", "shape", "implicit"))  # of a view: one of (n, 1) may meet one of (n, d)


def weighted_means(graph: Graph) -> frozenset[int]:
    """Indices of the values that are weighted means."""
    walk = _Walk(graph)
    return frozenset(n.outputs[0] for n in graph.nodes if n.op in {"div", "true_divide"} and walk.is_mean(n))  # fmt: skip


class _Walk:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.maker = {v: node for node in graph.nodes for v in node.outputs}
        self._known: dict[tuple[str, int, int], bool] = {}

    def is_mean(self, node: Node) -> bool:
        top, bottom = node.args.get("x"), node.args.get("other")
        if (
            not isinstance(top, Ref)
            or not isinstance(bottom, Ref)
            or node.args.get("rounding_mode")
        ):
            return False
        return self.weighted(top.index, self._floored(bottom.index))

    def _floored(self, index: int) -> int:
        """Behind ``clamp(x, min)`` and ``x + eps``, x."""
        node = self.maker.get(index)
        if node is None or not isinstance(node.args.get("x"), Ref):
            return index
        floor = node.op in {"clamp", "clamp_min"} and node.args.get("max") is None
        slack = node.op == "add" and isinstance(node.args.get("other"), float)
        return node.args["x"].index if floor or slack else index

    def weighted(self, top: int, bottom: int) -> bool:
        """Whether ``top`` is ``bottom`` with a factor at each of its weights."""
        return self._once("weighted", top, bottom, self._weighted)

    def _weighted(self, top: int, bottom: int) -> bool:
        if self._zero(top) and self._zero(bottom):
            return True
        a, b = self.maker.get(top), self.maker.get(bottom)
        if a is not None and a.op == "mul" and self._carries(a, bottom, b):
            return True
        if a is None or b is None or a.op != b.op:
            return False
        if a.op in {"mul", "div"} and isinstance(a.args["other"], float) and a.args["other"] > 0:
            return self._pairs(a, b, ("x",)) and self._same_rest(a, b, ["x"])
        if a.op in _SUMS:
            ways = [_SUMS[a.op], "x"]
            both = self._pairs(a, b, ("x", _SUMS[a.op]))
            if a.op == "add" and not both:
                both = self._pairs(a, b, ("x", "other"), ("other", "x"))
            return both and a.args.get("alpha", 1) > 0 and self._same_rest(a, b, ways)
        if a.op in _LINEAR:
            return self._pairs(a, b, ("x",)) and self._same_rest(a, b, ["x"])
        return False

    def _carries(self, a: Node, bottom: int, b: Node | None) -> bool:
        """w v over w, or c t over c b where t is weighted as b is."""
        factors = [i for _, i in a.refs]
        if len(factors) != 2:
            return False
        if self.positive(bottom) and any(self.alike(i, bottom) for i in factors):
            return True
        others = [i for _, i in b.refs] if b is not None and b.op == "mul" else []
        return len(others) == 2 and any(
            self.alike(c, d) and self.positive(c) and self.weighted(t, u)
            for c, t in (factors, factors[::-1])
            for d, u in (others, others[::-1])
        )

    def _pairs(
        self, a: Node, b: Node, names: tuple[str, ...], others: tuple[str, ...] = ()
    ) -> bool:
        pairs = [
            (a.args.get(n), b.args.get(m)) for n, m in zip(names, others or names, strict=True)
        ]
        return all(
            isinstance(x, Ref) and isinstance(y, Ref) and self.weighted(x.index, y.index)
            for x, y in pairs
        )

    def _same_rest(self, a: Node, b: Node, but: list[str]) -> bool:
        skip = {*but, *(_SIZES if a.op in _RESHAPED else ())}
        return all(self._equal(a.args[n], b.args.get(n)) for n in a.args.keys() - skip)

    def alike(self, a: int, b: int) -> bool:
        """Whether two values are the same, computed once or twice."""
        return a == b or self._once("alike", a, b, self._alike)

    def _alike(self, a: int, b: int) -> bool:
        one, two = self.maker.get(a), self.maker.get(b)
        if one is None or two is None or one.op != two.op or one.op not in _LINEAR | _POSITIVE:
            return False
        return one.args.keys() == two.args.keys() and self._same_rest(one, two, [])

    def _equal(self, x: Any, y: Any) -> bool:
        if isinstance(x, Ref):
            return isinstance(y, Ref) and self.alike(x.index, y.index)
        if isinstance(x, (list, tuple)) and isinstance(y, (list, tuple)):
            return len(x) == len(y) and all(map(self._equal, x, y))
        return bool(x == y)

    def positive(self, index: int) -> bool:
        """Whether a value is nowhere negative, by the ops that make it."""
        return self._once("positive", index, index, lambda i, _: self._positive(i))

    def _positive(self, index: int) -> bool:
        data, node = self.graph.values[index].data, self.maker.get(index)
        if data is not None:
            return bool((data >= 0).all())
        if node is None:
            return False
        if node.op in _POSITIVE:
            return True
        read = [i for _, i in node.refs]
        if node.op in _LINEAR:
            return self.positive(read[0])
        sums = node.op in {"add", "mul", "maximum"} and len(read) == 2
        return sums and all(map(self.positive, read))

    def _zero(self, index: int) -> bool:
        data = self.graph.values[index].data
        return data is not None and not data.any()

    def _once(self, what: str, a: int, b: int, find: Any) -> bool:
        key = (what, a, b)
        if key not in self._known:
            self._known[key] = False
            self._known[key] = find(a, b)
        return self._known[key]
