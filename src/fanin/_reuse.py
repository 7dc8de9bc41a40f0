"""How much the gradients of a parameter that is used several times have in common.

A loop, a shared layer or a tied matrix sums its uses' gradients. With s_u the second moment of use u's
and two cosines of each pair of uses,

    E (sum_u dW_u)^2 = sum_u s_u + sum_(u != v) sqrt(s_u s_v) cos(g_u, g_v) cos(x_u, x_v),

g the gradients of what the uses make, x what they read; a bias reads a constant. In such a graph a value
that several nodes read sums their gradients likewise, |sum_u sqrt(s_u) g_u|^2. Cosines come from `Lineage`:
every value as a unit vector over labels, such that values with a label in common share that part. A fresh
matrix maps labels to others, the same matrix to the same others, sums add up, functions of each element keep
labels beside their mean. What is left out: a value and its function count as one, and so does a signal
before and after views; slopes of activations are shared by half (`STEADY`), gates are 1/2 (`GATE`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from ._graph import Graph, Node
from ._moments.domain import Abstract, scaled

Lineage = dict[int, float]  # label -> component

KEPT = 32  # labels of a value; the rest are one of its own
CROSSED = 8  # labels of each factor of a product of two signals
PRODUCTS = frozenset((
    "addbmm", "addmm", "addmv", "baddbmm", "bmm", "conv1d", "conv2d", "conv3d", "conv_transpose1d",
    "conv_transpose2d", "conv_transpose3d", "convolution", "dot", "einsum", "gru_cell", "linear", "lstm_cell",
    "matmul", "mm", "mv", "rnn_relu_cell", "rnn_tanh_cell", "scaled_dot_product_attention", "tensordot",
))  # fmt: skip
SUMS = frozenset(("add", "cat", "concat", "stack", "sub"))
PICKS = frozenset((
    "chunk", "narrow", "select", "slice", "split", "split_with_sizes", "tensor_split", "unbind",
    "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes",
))  # fmt: skip
JOINS = frozenset(("cat", "concat", "stack"))
# (E f')^2 / E f'^2 at N(0, 1): how much of a slope two independent inputs share.
STEADY = {"relu": 0.5, "gelu": 0.548, "silu": 0.66, "leaky_relu": 0.5, "relu6": 0.5}
_LOOKUPS = frozenset(("embedding", "gather", "index", "index_select"))
CARRIES = {"gru_cell": 0, "lstm_cell": 1}  # which state a cell hands on, times a gate
GATE = 0.5  # E of that gate
_READS = {"w_ih": "x", "w_hh": "hx"}
_BIASES = frozenset(("bias", "b_ih", "b_hh"))
_BIAS, _MEAN, _OWN, _BACK = range(4)  # kinds of labels


def unit(x: Mapping[int, float], own: int) -> Lineage:
    """A vector of length 1, of its `KEPT` largest components; the others' length goes to ``own``."""
    found = dict(x)
    if len(found) > KEPT:
        order = sorted(found, key=lambda k: -abs(found[k]))
        rest = math.sqrt(sum(found[k] ** 2 for k in order[KEPT:]))
        found = {k: found[k] for k in order[:KEPT]}
        found[own] = found.get(own, 0.0) + rest
    length = math.sqrt(sum(a * a for a in found.values()))
    return {k: a / length for k, a in found.items()} if length > 0 else {}


def mixed(parts: Iterable[tuple[float, Mapping[int, float]]], own: int) -> Lineage:
    """The direction of a sum of parts, each of a length and a direction."""
    total: dict[int, float] = {}
    for length, x in parts:
        for k, a in x.items():
            total[k] = total.get(k, 0.0) + length * a
    return unit(total, own)


def cosine(a: Mapping[int, float], b: Mapping[int, float]) -> float:
    """Of two directions."""
    if len(b) < len(a):
        a, b = b, a
    return sum(x * b.get(k, 0.0) for k, x in a.items())


def relabelled(x: Mapping[int, float], *key: int) -> Lineage:
    """The image under a map that ``key`` names."""
    return {hash((*key, k)): a for k, a in x.items()}


def crossed(a: Mapping[int, float], b: Mapping[int, float], own: int, *key: int) -> Lineage:
    """A product of two signals."""
    tops = [sorted(x.items(), key=lambda t: -abs(t[1]))[:CROSSED] for x in (a, b)]
    return unit({hash((*key, i, j)): p * q for i, p in tops[0] for j, q in tops[1]}, own)


class Uses:
    """The uses of a graph's parameters, followed backward.

    Args:
        graph: a model's run.
        values: value's index -> its moments.
        behind: value's index -> the parameters that alone it is made of.
        shared: parameters that several nodes read, lookups aside.
    """

    def __init__(self, graph: Graph, values: Mapping[int, Abstract]) -> None:
        self.graph, self.values = graph, values
        self.behind: dict[int, frozenset[int]] = {}
        self.shared = self._shared()
        self.forth: dict[int, Lineage] = {}
        self.back: dict[int, dict[int, float]] = {}
        self.sizes: dict[int, float] = {}
        self.seen: dict[int, list[tuple[float, Lineage, Lineage | None]]] = {}
        if self.shared:
            self._follow()

    def _shared(self) -> frozenset[int]:
        values, counts = self.graph.values, Counter[int]()
        self.behind = {i: frozenset((i,)) for i, v in enumerate(values) if v.kind == "parameter"}
        for node in self.graph.nodes:
            read = [i for _, i in node.refs]
            known = [self.behind[i] for i in read if i in self.behind]
            if not known:
                continue
            if len(known) == len(read):
                self.behind.update(dict.fromkeys(node.outputs, frozenset().union(*known)))
            elif node.op not in _LOOKUPS:
                counts.update(frozenset().union(*known))
        return frozenset(i for i, n in counts.items() if n > 1)

    # forward --------------------------------------------------------------------------------------

    def _length(self, index: int) -> float:
        return math.sqrt(max(self.values[index].second_moment, 0.0))

    def _signals(self, node: Node) -> list[tuple[str, int]]:
        """The tensors that it reads beside parameters."""
        values = self.graph.values
        return [(k, i) for k, i in node.refs if i not in self.behind and values[i].floating]

    def _weights(self, node: Node) -> int:
        """One number for the weights that it reads, biases aside."""
        weights = [i for k, i in node.refs if i in self.behind and not self._is_bias(node, k)]
        return hash(tuple(sorted(p for i in weights for p in self.behind[i])))

    @staticmethod
    def _is_bias(node: Node, name: str) -> bool:
        return name in _BIASES or node.op in SUMS or (node.op.startswith("add") and name == "x")

    def _follow(self) -> None:
        for index, value in enumerate(self.graph.values):
            if value.kind != "computed" and value.floating:
                self.forth[index] = {hash((_OWN, index)): 1.0}
        for node in self.graph.nodes:
            for output in node.outputs:
                if output not in self.behind:
                    self.forth[output] = self._made(node, output)

    def _made(self, node: Node, output: int) -> Lineage:
        own = hash((_OWN, output))
        read = [i for _, i in (node.refs if node.op in SUMS else self._signals(node))]
        parts = [(self._length(i), self.forth.get(i, {})) for i in read]
        if node.op in _LOOKUPS or not parts:
            return {own: 1.0}
        if node.op in SUMS:
            return mixed(parts, own)
        if node.op in PRODUCTS:
            return self._product(node, output, [x for _, x in parts])
        if node.op in PICKS:
            return relabelled(parts[0][1], picked(node), node.outputs.index(output))
        if node.op == "mul" and len(parts) == 2:
            return crossed(parts[0][1], parts[1][1], own, hash(node.op))
        return self._function(output, parts[0][1])

    def _product(self, node: Node, output: int, parts: list[Lineage]) -> Lineage:
        own, weights = hash((_OWN, output)), self._weights(node)
        if node.op == "scaled_dot_product_attention":
            return relabelled(parts[-1], len(parts))
        if len(parts) == 2 and not weights_of(node, self.behind):
            return crossed(parts[0], parts[1], own, 1)
        share = 1 / math.sqrt(len(parts))
        images = [(share, relabelled(x, weights, k)) for k, x in enumerate(parts)]
        made = mixed(images, own)
        bias = sum(
            self.values[i].second_moment
            for k, i in node.refs
            if i in self.behind and self._is_bias(node, k)
        )
        carried = self._carried(node)
        if carried is not None:
            return self._gated(output, carried, made)
        total = max(self.values[output].second_moment, bias)
        if not bias > 0:
            return made
        label = {hash((_BIAS, weights)): 1.0}
        return mixed([(math.sqrt(total - bias), made), (math.sqrt(bias), label)], own)

    def _gated(self, output: int, state: int, new: Lineage) -> Lineage:
        """A gated memory: part of the state before, the rest new."""
        kept = min(GATE * self._length(state), self._length(output))
        rest = math.sqrt(max(self._length(output) ** 2 - kept * kept, 0.0))
        return mixed([(kept, self.forth.get(state, {})), (rest, new)], hash((_OWN, output)))

    def _carried(self, node: Node) -> int | None:
        """The state that the cell hands on."""
        place = CARRIES.get(node.op)
        return None if place is None else [i for k, i in node.refs if k == "hx"][place]

    def _function(self, output: int, x: Lineage) -> Lineage:
        """A function of each element: its mean is the same for all."""
        y = self.values[output]
        mean = min(y.average_mean**2, y.second_moment)
        if not mean > 1e-6 * y.second_moment:
            return x
        rest = math.sqrt(y.second_moment - mean)
        common = {hash((_MEAN, 0)): 1.0}
        return mixed([(rest, x), (math.sqrt(mean), common)], hash((_OWN, output)))

    # backward -------------------------------------------------------------------------------------

    def start(self, seeds: Iterable[int]) -> None:
        """Gradients that start at these values."""
        for index in seeds:
            self.back[index] = {hash((_BACK, index)): 1.0}

    def see(self, node: Node, index: int, share: Abstract) -> None:
        """One node's share of the gradient of a value that it read."""
        if not self.shared:
            return
        outputs = [(1.0, self.back[o]) for o in node.outputs if o in self.back]
        g = mixed(outputs, hash((_BACK, node.outputs[0])))
        name = next((k for k, i in node.refs if i == index), "")
        size = max(share.second_moment, 0.0)
        if index in self.behind:
            if node.outputs[0] not in self.behind:
                self._use(node, name, index, g, size)
            return
        total = self.back.setdefault(index, {})
        self.sizes[index] = self.sizes.get(index, 0.0) + size
        for k, a in self._passed(node, index, g).items():
            total[k] = total.get(k, 0.0) + math.sqrt(size) * a

    def _passed(self, node: Node, index: int, g: Lineage) -> Lineage:
        others = [i for _, i in self._signals(node) if i != index]
        place = next((k for k, (_, i) in enumerate(node.refs) if i == index), -1)
        if place < 0:  # past a chain of elementwise functions
            return g
        if index == self._carried(node):
            return g
        if node.op in JOINS or node.op in PICKS:
            return relabelled(g, _BACK, picked(node), place)
        if node.op in STEADY:
            own, share = hash((_BACK, index)), STEADY[node.op]
            turned = crossed(g, self.forth.get(index, {}), own, _BACK)
            return mixed([(math.sqrt(share), g), (math.sqrt(1 - share), turned)], own)
        if node.op in PRODUCTS and weights_of(node, self.behind):
            return relabelled(g, _BACK, self._weights(node), place)
        if others and (node.op in PRODUCTS or node.op == "mul"):
            other = self.forth.get(others[-1], {})
            return crossed(g, other, hash((_BACK, index)), place)
        return g

    def _use(self, node: Node, name: str, index: int, g: Lineage, size: float) -> None:
        read: Lineage | None = None
        if not self._is_bias(node, name):
            signals = self._signals(node)
            named = [i for k, i in signals if k == _READS.get(name, k)]
            read = self.forth.get(named[0], {}) if named else None
            if node.op in _LOOKUPS:
                read = {}
        for parameter in self.behind[index] & self.shared:
            self.seen.setdefault(parameter, []).append((size, g, read))

    def gain(self, index: int) -> float:
        """What the shares of a value's gradient have in common: its second moment over their sum."""
        total = self.sizes.get(index, 0.0)
        if not total > 0 or index not in self.back:
            return 1.0
        return max(sum(a * a for a in self.back[index].values()) / total, 1.0)

    def settle(self, grads: dict[int, Abstract]) -> None:
        """Multiply each shared parameter's gradient by what its uses have in common."""
        for parameter, uses in self.seen.items():
            if len(uses) > 1 and parameter in grads:
                gain = 1.0 + together(uses)
                grads[parameter] = scaled(grads[parameter], math.sqrt(gain)).plain()


def picked(node: Node) -> int:
    """One number for the part of a tensor that an op reads."""
    numbers = [(k, v) for k, v in node.args.items() if isinstance(v, (int, tuple))]
    return hash(
        tuple(
            (k, v)
            for k, v in numbers
            if not isinstance(v, tuple) or all(isinstance(n, int) for n in v)
        )
    )


def weights_of(node: Node, behind: Mapping[int, frozenset[int]]) -> bool:
    """Whether it reads parameters."""
    return any(i in behind for _, i in node.refs)


def together(uses: list[tuple[float, Lineage, Lineage | None]]) -> float:
    """The sum over pairs of uses of the module's formula, over that of second moments."""
    total = sum(size for size, _, _ in uses)
    cross = 0.0
    for k, (size, g, x) in enumerate(uses):
        for other, h, y in uses[:k]:
            if size > 0 and other > 0:
                met = 1.0 if x is None or y is None else cosine(x, y)
                cross += 2 * math.sqrt(size * other) * max(cosine(g, h), 0.0) * max(met, 0.0)
    return cross / total if total > 0 else 0.0
