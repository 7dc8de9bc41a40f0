"""Which function is applied to each layer's output, in order: along the graph, or by module order.

This follows tensors through reshapes, norms, dropout, pooling and sums up to the first
nonlinearity. It knows nothing of scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

from ._activations import Nonlinearity
from ._activations import names as known_nonlinearities
from ._errors import InvalidValueError
from ._facts import Mirror
from ._graph import Node
from ._layouts import specs_of
from ._mirrors import mirrors
from ._nonlinearity import as_nonlinearity
from ._predict import TABLES, VIEWS
from ._structure import CONTRACTIONS, NORMS, RECURRENT, Structure


@dataclass(frozen=True)
class Followed:
    """What was seen.

    Args:
        after: weight name -> the nonlinearity applied to its layer's output.
        order: weight names in the order in which signal passes them.
        residual: weights whose output is added to a stream that goes around them.
        branches: how many such sums there are.
        factors: weight name -> number that its output is multiplied by before the nonlinearity.
        mirrors: weight name -> how it can start in mirror images.
        traced: seen in the graph; else inferred from module order.
        evidence: how, in words.
        notes: for the head of the plan.
    """

    after: Mapping[str, Nonlinearity] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    residual: frozenset[str] = frozenset()
    branches: int = 0
    factors: Mapping[str, float] = field(default_factory=dict)
    mirrors: Mapping[str, Mirror] = field(default_factory=dict)
    traced: bool = False
    evidence: str = ""
    notes: tuple[str, ...] = ()

    @staticmethod
    def named(name: str) -> Nonlinearity | None:
        """The known nonlinearity of that name, or None."""
        try:
            return as_nonlinearity(name)
        except InvalidValueError:
            return None


_NOTHING = ("linear", "identity")

# by module order -----------------------------------------------------------------------------

_PASS_MODULES = (
    nn.modules.batchnorm._NormBase,  # noqa: SLF001 - torch's base of batch and instance norms
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.dropout._DropoutNd,  # noqa: SLF001 - torch's base of all dropouts
    nn.modules.pooling._AvgPoolNd,  # noqa: SLF001
    nn.modules.pooling._MaxPoolNd,  # noqa: SLF001
    nn.modules.pooling._AdaptiveAvgPoolNd,  # noqa: SLF001
    nn.modules.pooling._AdaptiveMaxPoolNd,  # noqa: SLF001
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
    nn.Upsample,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
)


def follow_modules(model: nn.Module, weights: Mapping[int, str]) -> Followed:
    """Read the leaves in registration order, as nn.Sequential would run them."""
    after: dict[str, Nonlinearity] = {}
    order: list[str] = []
    waiting: tuple[str, ...] = ()
    for module in model.modules():
        mine = tuple(
            dict.fromkeys(weights[id(p)] for p in _direct_parameters(module) if id(p) in weights)
        )
        if mine:
            order += [n for n in mine if n not in order]
            waiting = mine
        elif not any(module.children()) and not isinstance(module, _PASS_MODULES):
            activation = activation_of(module)
            if activation is not None:
                after |= dict.fromkeys(waiting, activation)
            waiting = ()
    return Followed(after, tuple(order), evidence="by module order; the graph was not analysed")


def _direct_parameters(module: nn.Module) -> Iterable[Tensor]:
    yield from module.parameters(recurse=False)
    for name, child in module.named_children():
        if name == "parametrizations":
            yield from child.parameters()


def activation_of(module: nn.Module) -> Nonlinearity | None:
    """The elementwise nonlinearity that a leaf module computes, or None."""
    if specs_of(module) and not isinstance(module, nn.PReLU):
        return None
    try:
        found = as_nonlinearity(module)
    except (InvalidValueError, NotImplementedError, TypeError, RuntimeError):
        return None
    return None if found.name in _NOTHING else found


# along the graph -----------------------------------------------------------------------------

# Ops that hand a layer's output on to the function that follows it.
_PASS_OPS = VIEWS | frozenset(
    ("add", "sub", "rsub", "mul", "div", "neg", "cat", "stack", "layer_norm", "batch_norm", "group_norm", "instance_norm",
     "rms_norm", "dropout", "feature_dropout", "alpha_dropout", "mean", "pad", "constant_pad_nd", "masked_fill",
     "index", "index_select", "roll", "flip", "addcmul", "pixel_shuffle", "pixel_unshuffle")
)  # fmt: skip
_PASS_PREFIXES = ("max_pool", "avg_pool", "adaptive_", "upsample_", "reflection_pad", "replication_pad")  # fmt: skip
# The parameters of the nonlinearity among an op's arguments, in our table's order.
_PARAMETERS = {
    "leaky_relu": ("negative_slope",),
    "celu": ("alpha",),
    "elu": ("alpha",),
    "hardtanh": ("min_val", "max_val"),
    "softplus": ("beta", "threshold"),
    "threshold": ("threshold", "value"),
    "hardshrink": ("lambd",),
    "softshrink": ("lambd",),
}


class _Point(NamedTuple):
    """What is known of one value.

    Args:
        waiting: weights whose layer's output this still is, up to rescaling.
        gate: weights whose output went through the sigmoid that made this.
        factor: number that this is multiplied by since then.
    """

    waiting: frozenset[str] = frozenset()
    gate: frozenset[str] = frozenset()
    factor: float = 1.0


class _Trail:
    """Walks the nodes in execution order; one method a kind of op."""

    def __init__(self, model: nn.Module, structure: Structure, weights: Mapping[str, str]) -> None:
        self.after: dict[str, Nonlinearity] = {}
        self.order: list[str] = []
        self.factors: dict[str, float] = {}
        self._structure, self._weights = structure, weights
        self._points: dict[int, _Point] = {}
        leaves = {n: m for n, m in model.named_modules() if n and not any(m.children())}
        self._activations = {n: a for n, m in leaves.items() if (a := activation_of(m)) is not None}

    def on_node(self, node: Node) -> None:
        """Take one node; the weights that it reads decide what it is."""
        structure = self._structure
        sources = [
            self._points.get(i, _Point()) for _, i in node.refs if i not in structure.weights
        ]
        if sources:
            point = self._next(node, sources)
            self._points |= dict.fromkeys(node.outputs, point)

    def layer(self, node: Node) -> list[str]:
        """Names of the weights that a product reads."""
        if node.op not in CONTRACTIONS | RECURRENT | TABLES:
            return []
        structure = self._structure
        owners = [p for _, i in node.refs for p in structure.weights.get(i, ())]
        names = [structure.graph.values[p].name for p in owners]
        return list(dict.fromkeys(self._weights[n] for n in names if n in self._weights))

    def _next(self, node: Node, sources: list[_Point]) -> _Point:
        waiting = frozenset().union(*(s.waiting for s in sources))
        layer = self.layer(node)
        if layer:
            self.order += [n for n in layer if n not in self.order]
            return _Point(frozenset(layer))
        activation = self._activations.get(node.module) or _activation_of_node(node)
        if activation is not None and node.op not in VIEWS:
            factor = sources[0].factor if len(sources) == 1 else 1.0
            for name in waiting - self.after.keys():
                self.after[name] = activation
                if abs(factor) != 1.0 and factor:
                    self.factors[name] = abs(factor)
            return _Point(gate=waiting if activation.name == "sigmoid" else frozenset())
        if node.op == "mul" and len(sources) > 1:
            return self._product(sources)
        passes = node.op in _PASS_OPS or node.op.startswith(_PASS_PREFIXES)
        scales = len(sources) == 1 and node.op not in NORMS
        factor = sources[0].factor * _constant(node) if scales else 1.0
        return _Point(waiting, factor=factor) if passes else _Point()

    def _product(self, sources: list[_Point]) -> _Point:
        """X * sigmoid(x) is silu; any other product of two signals ends the trail."""
        for s in sources:
            others = frozenset().union(*(o.waiting for o in sources if o is not s))
            if s.gate and s.gate == others:
                self.after |= dict.fromkeys(s.gate, as_nonlinearity("silu"))
        return _Point()


def _constant(node: Node) -> float:
    """The number that a node multiplies a tensor by."""
    other = node.args.get("other")
    if (
        node.op not in {"mul", "div"}
        or isinstance(other, bool)
        or not isinstance(other, int | float)
    ):
        return 1.0
    return float(other) if node.op == "mul" else 1.0 / other if other else 1.0


def _activation_of_node(node: Node) -> Nonlinearity | None:
    """The nonlinearity that a functional call computes, with its parameters."""
    name, args = node.op, node.args
    if name in {"clamp", "clamp_min"} and args.get("min") == 0 and args.get("max") is None:
        name = "relu"
    if name == "hardtanh" and (args.get("min_val"), args.get("max_val")) == (0, 6):
        name = "relu6"
    if name not in known_nonlinearities() or name in _NOTHING:
        return None
    if name == "gelu":
        return as_nonlinearity("gelu", args.get("approximate", "none"))
    given = tuple(args[n] for n in _PARAMETERS.get(name, ()) if n in args)
    return as_nonlinearity(name, given or None)


def _mirrors(
    structure: Structure, after: Mapping[str, Nonlinearity], weights: Mapping[str, str]
) -> dict[str, Mirror]:
    """As `mirrors`, by the names that weights have in plans."""
    own = {n: after[w] for n, w in weights.items() if w in after and n == w}
    return mirrors(structure, own)


def follow_graph(model: nn.Module, structure: Structure, weights: Mapping[str, str]) -> Followed:
    """Follow every tensor through the graph of ``model``.

    Args:
        model: whose leaf modules may be nonlinearities.
        structure: of its graph.
        weights: FQN of a parameter -> name of the weight that it is, or stands behind.
    """
    trail = _Trail(model, structure, weights)
    for node in structure.graph.nodes:
        trail.on_node(node)
    tails = [use for branch in structure.branches for use in branch.tails]
    residual = frozenset(
        name for use in tails for name in trail.layer(structure.graph.nodes[use.node])
    )
    return Followed(
        trail.after,
        tuple(trail.order),
        residual,
        sum(bool(b.tails) or b.normalised == "within" for b in structure.branches),
        trail.factors,
        _mirrors(structure, trail.after, weights),
        traced=True,
        evidence="seen in the graph",
    )
