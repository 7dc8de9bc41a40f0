"""What a graph is made of: layers in order, residual branches, attention logits, heads.

Nothing goes by names or roles: a residual sum is a sum of a tensor with something computed from it,
a head is a product with weights that nothing but views and biases separates from the output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

from ._graph import Graph, Node
from ._predict import TABLES, VIEWS

CONTRACTIONS = frozenset(
    ("linear", "addmm", "mm", "bmm", "matmul", "baddbmm", "einsum", "bilinear", "_grouped_mm", "mv", "addmv", "tensordot",
     "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution")
)  # fmt: skip
RECURRENT = frozenset(
    (
        "lstm",
        "gru",
        "rnn_tanh",
        "rnn_relu",
        "lstm_cell",
        "gru_cell",
        "rnn_tanh_cell",
        "rnn_relu_cell",
    )
)
NORMS = frozenset(("layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm", "native_layer_norm", "_fused_rms_norm"))  # fmt: skip
# They hand a signal on up to its scale: a residual branch ends, and an attention logit begins, before them.
_SCALES = frozenset(("mul", "div", "dropout", "add", "sub", "neg", "feature_dropout", "alpha_dropout", "masked_fill",
                     "cat", "stack", "index", "index_add", "scatter_add", "index_put", "index_select", "roll", "flip",
                     "mean", "sum", "pad", "constant_pad_nd", "bernoulli", "where"))  # fmt: skip


_REDUCTIONS = frozenset(
    ("mean", "sum", "var", "std", "var_mean", "norm", "linalg_vector_norm", "linalg_norm")
)
_OF_A_SCALE = _REDUCTIONS | VIEWS | {
    "rsqrt", "sqrt", "reciprocal", "pow", "add", "square", "mul", "clamp", "clamp_min", "maximum", "div", "sub"
}  # fmt: skip


_ADDITIONS = frozenset(
    (
        "add",
        "sub",
        "cat",
        "stack",
        "where",
        "index_put",
        "view_write",
        "copy",
        "expand",
        "masked_fill",
    )
)
_PRODUCTS_OF_ELEMENTS = frozenset(("mul", "div", "addcmul", "lerp"))


@dataclass(frozen=True)
class Use:
    """One product of a signal with weights.

    Args:
        node: its index.
        weights: indices of the parameters behind the weight, one as a rule.
        output: index of the value that it makes.
    """

    node: int
    weights: tuple[int, ...]
    output: int


@dataclass(frozen=True)
class Branch:
    """A residual sum.

    Args:
        node: index of the sum.
        skip: index of the value that goes around.
        branch: index of the value that is added to it.
        tails: products with weights whose outputs are added, up to scale.
        stream: number of the residual stream that it belongs to.
        normalised: where a norm holds the scale: "before" the branch, "within" at its end, "after" the
            sum, or "" nowhere.
        projected: the skip itself passes through weights.
        scaled: a learned scale multiplies the branch before the sum.
    """

    node: int
    skip: int
    branch: int
    tails: tuple[Use, ...]
    stream: int
    normalised: str
    projected: bool
    scaled: bool = False


def idle(node: Node) -> bool:
    """Whether it is a batch norm in eval mode: a fixed linear map."""
    return node.op == "batch_norm" and not node.args.get("training")


class Structure:
    """Facts about one graph, found once and kept.

    Args:
        graph: from `_capture`.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.maker = {v: i for i, node in enumerate(graph.nodes) for v in node.outputs}
        self.weights = self._weights()
        self._walk()

    def _weights(self) -> dict[int, tuple[int, ...]]:
        """Value -> the parameters that it is computed from, where from nothing else but constants."""
        graph = self.graph
        fixed = {i for i, v in enumerate(graph.values) if v.kind in {"buffer", "constant"}}
        fixed -= set(graph.inputs)
        found: dict[int, tuple[int, ...]] = {
            i: (i,) for i, v in enumerate(graph.values) if v.kind == "parameter"
        }
        for node in graph.nodes:
            read = [i for _, i in node.refs]
            if node.op not in TABLES and read and all(i in found or i in fixed for i in read):
                owners = tuple(dict.fromkeys(p for i in read for p in found.get(i, ())))
                if owners:
                    found |= dict.fromkeys(node.outputs, owners)
                else:
                    fixed.update(node.outputs)
        return found

    def _walk(self) -> None:
        """Depth in products with weights, and ancestors as bits, of every value."""
        self.depth = dict.fromkeys(self.graph.inputs, 0)
        self.ancestors = dict.fromkeys(self.graph.inputs, 0)
        self.uses: list[Use] = []
        for position, node in enumerate(self.graph.nodes):
            signal = [i for _, i in node.refs if i not in self.weights]
            own = tuple(dict.fromkeys(p for _, i in node.refs for p in self.weights.get(i, ())))
            depth = max((self.depth.get(i, 0) for i in signal), default=0)
            if signal and own and node.op in CONTRACTIONS | RECURRENT:
                depth += 1
                self.uses.append(Use(position, self._matrices(own), node.outputs[0]))
            bits = 0
            for i in signal:
                bits |= self.ancestors.get(i, 0) | 1 << i
            for v in node.outputs:
                if v not in self.weights:
                    self.depth[v], self.ancestors[v] = depth, bits

    def _matrices(self, own: tuple[int, ...]) -> tuple[int, ...]:
        """Of the parameters that a product reads, those that are weights and not biases."""
        matrices = tuple(p for p in own if len(self.graph.values[p].shape) > 1)
        return matrices or own

    def scalable(self, use: Use, fixed: Collection[str]) -> list[str]:
        """Names of a product's weights that may be scaled; none of a weight that a network makes."""
        if len(use.weights) > 1 and not self._assembled(use):
            return []
        names = [self.graph.values[p].name for p in use.weights]
        return [n for n in names if n not in fixed]

    def _assembled(self, use: Use) -> bool:
        """Whether a product's weights are its parameters side by side, and not computed from them."""
        graph = self.graph
        front = [i for _, i in graph.nodes[use.node].refs if i in self.weights]
        while front:
            i = front.pop()
            maker = self.maker.get(i)
            if maker is None:
                continue
            if graph.nodes[maker].op not in VIEWS | {"cat", "stack"}:
                return False
            front += [j for _, j in graph.nodes[maker].refs]
        return True

    @cached_property
    def use_at(self) -> dict[int, Use]:
        """Node's index -> its use."""
        return {use.node: use for use in self.uses}

    def usage(self, index: int) -> str:
        """What the graph does with a parameter: one of `_facts.USAGES`."""
        readers = [
            r for i, own in self.weights.items() if index in own for r in self.readers.get(i, [])
        ]
        ops = {
            self.graph.nodes[r].op
            for r in readers
            if self.graph.nodes[r].outputs[0] not in self.weights
        }
        uses = {use.node for use in self.uses if index in use.weights}
        if not ops:
            return "unused"
        if uses:
            return "weight"
        for usage, kinds in (
            ("table", TABLES),
            ("added", _ADDITIONS),
            ("scale", _PRODUCTS_OF_ELEMENTS),
        ):
            if ops & kinds:
                return usage
        return "other"

    # norms -----------------------------------------------------------------------------------

    @cached_property
    def norms(self) -> dict[int, int]:
        """Index of each node that normalises -> the value that it normalises, written out ones too."""
        found = {}
        for position, node in enumerate(self.graph.nodes):
            signal = [i for _, i in node.refs if i not in self.weights]
            if node.op in NORMS and signal:
                found[position] = self.root(signal[0])
            elif node.op in {"mul", "div"} and len(signal) == 2:
                for x, scale in (signal, signal[::-1]):
                    if self._scale_of(scale, {self.root(x), self._centred(x)}):
                        found[position] = self._centred(x)
        return found

    def _normalises(self, position: int) -> bool:
        return position in self.norms and not idle(self.graph.nodes[position])

    def _scale_of(self, index: int, roots: set[int]) -> bool:
        """Whether a value is a root mean square, a deviation or the like of ``roots``, or its inverse."""
        front, reduced = [index], False
        for _ in range(24):
            if not front:
                return False
            i = front.pop()
            if reduced and self.root(i) in roots:
                return True
            maker = self.maker.get(i)
            node = None if maker is None else self.graph.nodes[maker]
            if node is not None and node.op in _OF_A_SCALE:
                reduced = reduced or node.op in _REDUCTIONS
                front += [j for _, j in node.refs if j not in self.weights]
        return False

    def _centred(self, index: int) -> int:
        """Behind x - mean(x), x."""
        root = self.root(index)
        maker = self.maker.get(root)
        if maker is None or self.graph.nodes[maker].op != "sub":
            return root
        return self.root(next(i for _, i in self.graph.nodes[maker].refs))

    # residual branches -----------------------------------------------------------------------

    @cached_property
    def branches(self) -> tuple[Branch, ...]:
        """Residual sums in execution order."""
        found: list[Branch] = []
        streams: dict[int, int] = {}  # value that a sum made, or what it is handed on as -> stream
        for position, node in enumerate(self.graph.nodes):
            pair = self._residual(node)
            if pair is None:
                continue
            skip, branch, projected = pair
            tails, origin = tuple(self.tails(branch)), self.origin(skip)
            norm = self._normalised(node, skip, origin, branch)
            if not tails and norm != "within":
                continue
            stream = streams.get(origin, len(set(streams.values())))
            streams[node.outputs[0]] = stream
            scaled = self._scaled(branch)
            found.append(Branch(position, skip, branch, tails, stream, norm, projected, scaled))
        return tuple(found)

    @cached_property
    def lengths(self) -> Counter[int]:
        """Stream's number -> how many branches it has."""
        return Counter(b.stream for b in self.branches)

    def _residual(self, node: Node) -> tuple[int, int, bool] | None:
        """(skip, branch, whether the skip passes weights) if the node is a residual sum."""
        if node.op not in {"add", "sub"}:
            return None
        read = [i for _, i in node.refs if i not in self.weights and i in self.depth]
        values = self.graph.values
        shape = values[node.outputs[0]].shape
        if len(read) != 2 or any(values[i].shape != shape for i in read):
            return None
        skip, branch = sorted(read, key=lambda i: self.depth[i])
        if self.depth[skip] == self.depth[branch]:
            return None
        root = self.root(skip)
        if self.ancestors[branch] >> root & 1:
            return skip, branch, False
        common = self.ancestors[branch] & (self.ancestors.get(skip, 0) | 1 << skip)
        nearest = common.bit_length() - 1
        if nearest < 0 or (self.depth.get(nearest, 0) == 0 and nearest not in self.depth):
            return None
        return skip, branch, True

    def root(self, index: int) -> int:
        """The value that this one is a view of."""
        while True:
            maker = self.maker.get(index)
            if maker is None or self.graph.nodes[maker].op not in VIEWS | {"dropout"}:
                return index
            read = [i for _, i in self.graph.nodes[maker].refs]
            if not read:
                return index
            index = read[0]

    def origin(self, index: int, *, past_norms: bool = True) -> int:
        """The sum or product that a value comes from: past views, norms and pointwise functions."""
        while True:
            maker = self.maker.get(index)
            if maker is None:
                return index
            node = self.graph.nodes[maker]
            if not past_norms and self._normalises(maker):
                return index
            read = [i for _, i in node.refs if i not in self.weights and i in self.depth]
            sums = node.op in {"add", "sub"} and len(read) == 2
            if sums or node.op in CONTRACTIONS | RECURRENT | TABLES or len(read) != 1:
                return index
            index = read[0]

    def _normalised(self, node: Node, skip: int, origin: int, branch: int) -> str:
        for i in self._back(branch, _SCALES | VIEWS):
            if self.maker.get(i) in self.norms:
                return "within"
        around = self.ancestors.get(skip, 0) | 1 << skip
        for position, normed in self.norms.items():
            made = self.graph.nodes[position].outputs[0]
            own = self.ancestors[branch] >> made & 1 and not around >> made & 1
            if own and (self.origin(normed) == origin or around >> normed & 1):
                return "before"
        readers = self.readers.get(node.outputs[0], [])
        return "after" if readers and all(self._normed_next(r) for r in readers) else ""

    def _scaled(self, branch: int) -> bool:
        """Whether a branch ends in a product with a bare parameter."""
        makers = (self.maker.get(i) for i in self._back(branch, _SCALES | VIEWS))
        return any(
            m is not None
            and m not in self.norms
            and self.graph.nodes[m].op in {"mul", "div"}
            and any(i in self.weights for _, i in self.graph.nodes[m].refs)
            for m in makers
        )

    def _normed_next(self, position: int) -> bool:
        node = self.graph.nodes[position]
        if position in self.norms:
            return True
        if node.op not in VIEWS | {"dropout"}:
            return False
        readers = self.readers.get(node.outputs[0], [])
        return bool(readers) and all(self._normed_next(r) for r in readers)

    @cached_property
    def readers(self) -> dict[int, list[int]]:
        """As `Graph.readers`."""
        return self.graph.readers()

    def tails(self, index: int) -> Iterator[Use]:
        """Products with weights that a value comes from with nothing nonlinear between."""
        seen: set[int] = set()
        for i in self._back(index, _SCALES | VIEWS):
            maker = self.maker.get(i)
            if maker in self.use_at and maker not in seen:
                seen.add(maker)
                yield self.use_at[maker]

    def _back(
        self, index: int, through: frozenset[str], *, past_norms: bool = False
    ) -> Iterator[int]:
        """Values from ``index`` backwards, up to the first op that is not in ``through``."""
        front, seen = [index], {index}
        while front:
            i = front.pop()
            yield i
            maker = self.maker.get(i)
            if maker is None or maker in self.use_at:
                continue
            node = self.graph.nodes[maker]
            if not idle(node) and (
                node.op not in through or (maker in self.norms and not past_norms)
            ):
                continue
            for j in self._signals_of(node):
                if j not in seen:
                    seen.add(j)
                    front.append(j)

    def _signals_of(self, node: Node) -> list[int]:
        """What a node reads but weights; of two factors the deeper one, the other is its gate."""
        read = [i for _, i in node.refs if i in self.depth and self.graph.values[i].floating]
        if node.op in {"mul", "div"} and len(read) == 2:
            return [max(read, key=lambda i: self.depth.get(i, 0))]
        return read

    # attention and heads ---------------------------------------------------------------------

    @cached_property
    def logits(self) -> tuple[tuple[tuple[Use, ...], tuple[Use, ...], int], ...]:
        """(uses behind the queries, uses behind the keys, node of the attention) per attention."""
        through = _SCALES | VIEWS | NORMS | {"rsqrt", "pow", "cos", "sin"}
        found = []
        for position, node in enumerate(self.graph.nodes):
            if node.op == "scaled_dot_product_attention":
                sides = [node.args["query"].index, node.args["key"].index]
            elif node.op in {"matmul", "bmm", "baddbmm", "einsum"} and position not in self.use_at:
                if not self._softmax_follows(node.outputs[0]):
                    continue
                sides = [i for _, i in node.refs if i not in self.weights][-2:]
            else:
                continue
            if len(sides) == 2:
                q, k = (tuple(self._first_uses(side, through)) for side in sides)
                found.append((q, k, position))
        return tuple(found)

    def _softmax_follows(self, index: int) -> bool:
        front = [index]
        for _ in range(24):
            if not front:
                return False
            for r in self.readers.get(front.pop(0), []):
                node = self.graph.nodes[r]
                if node.op in {"softmax", "_softmax", "_safe_softmax"}:
                    return True
                if node.op in _SCALES | VIEWS | {"clamp", "tanh", "maximum"}:
                    front += node.outputs
        return False

    def _first_uses(self, index: int, through: frozenset[str]) -> Iterator[Use]:
        for i in self._back(index, through, past_norms=True):
            maker = self.maker.get(i)
            if maker in self.use_at:
                yield self.use_at[maker]

    @cached_property
    def heads(self) -> tuple[Use, ...]:
        """Products with weights that make the model's outputs."""
        found: dict[int, Use] = {}
        for output in self.graph.outputs:
            if self.graph.values[output].floating:
                found |= {use.node: use for use in self.tails(output)}
        return tuple(found.values())

    @cached_property
    def has_norms(self) -> bool:
        """Whether anything on the signal is normalised."""
        return bool(self.norms)
