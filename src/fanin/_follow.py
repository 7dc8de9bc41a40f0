"""Which function is applied to each layer's output, in order: along one run, or by module order.

This follows tensors through reshapes, norms, dropout, pooling and sums up to the first
nonlinearity. It is no analysis of the graph: it knows nothing of scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ._activations import Nonlinearity
from ._activations import names as known_nonlinearities
from ._errors import InvalidValueError
from ._inputs import as_inputs
from ._layouts import specs_of
from ._nonlinearity import as_nonlinearity
from ._preserve import preserved
from ._record import Op, Recorder


@dataclass(frozen=True)
class Followed:
    """What was seen.

    Args:
        after: weight name -> the nonlinearity applied to its layer's output.
        order: weight names in the order in which signal passes them.
        residual: weights whose output is added to a stream that goes around them.
        branches: how many such sums there are.
        traced: seen along a run; else inferred from module order.
        evidence: how, in words.
        notes: for the head of the plan.
    """

    after: Mapping[str, Nonlinearity] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    residual: frozenset[str] = frozenset()
    branches: int = 0
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


# along one run -------------------------------------------------------------------------------

# Ops that hand a layer's output on to the function that follows it. Views are not even reported.
_PASS_OPS = frozenset(
    ("add", "sub", "mul", "div", "neg", "cat", "stack", "layer_norm", "batch_norm", "group_norm", "instance_norm",
     "rms_norm", "dropout", "mean", "constant_pad_nd", "masked_fill", "index", "index_select", "roll", "addcmul")
)  # fmt: skip
_PASS_PREFIXES = (
    "max_pool",
    "avg_pool",
    "adaptive_",
    "upsample_",
    "reflection_pad",
    "replication_pad",
    "pixel_",
)
# Where an op keeps the parameters of the nonlinearity: positions in args, in our table's order.
_PARAMETERS = {
    "leaky_relu": (1,),
    "celu": (1,),
    "elu": (1,),
    "hardtanh": (1, 2),
    "softplus": (1, 2),
    "threshold": (1, 2),
    "hardshrink": (1,),
    "softshrink": (1,),
}


class _Point(NamedTuple):
    """What is known of one op's result.

    Args:
        waiting: weights whose layer's output this still is, up to rescaling.
        depth: weights passed on the longest way here.
        shape: of the result.
        gate: weights whose output went through the sigmoid that made this.
    """

    waiting: frozenset[str] = frozenset()
    depth: int = 0
    shape: tuple[int, ...] = ()
    gate: frozenset[str] = frozenset()


class _Trail:
    """Walks the recorded ops in execution order; one method a kind of op."""

    def __init__(self, model: nn.Module, weights: Mapping[str, str]) -> None:
        self.after: dict[str, Nonlinearity] = {}
        self.order: list[str] = []
        self.residual: set[str] = set()
        self.branches = 0
        self._weights = weights
        self._points: dict[int, _Point] = {}
        leaves = {n: m for n, m in model.named_modules() if n and not any(m.children())}
        self._activations = {n: a for n, m in leaves.items() if (a := activation_of(m)) is not None}

    def on_op(self, op: Op) -> None:
        """Take one record; the names of the weights it reads decide what it is."""
        sources = [self._points.get(s, _Point()) for s in op.sources]
        point = self._next(op, sources)
        self._points[op.index] = point._replace(shape=tuple(op.output.shape))

    def _next(self, op: Op, sources: list[_Point]) -> _Point:
        depth = max((s.depth for s in sources), default=0)
        waiting = frozenset().union(*(s.waiting for s in sources))
        layer = [self._weights[n] for n in op.params if n in self._weights]
        activation = self._activations.get(op.module) or _activation_of_op(op)
        if layer:
            self.order += [n for n in dict.fromkeys(layer) if n not in self.order]
            return _Point(frozenset(layer), depth + 1)
        if activation is not None:
            for name in waiting:
                self.after.setdefault(name, activation)
            return _Point(
                depth=depth, gate=waiting if activation.name == "sigmoid" else frozenset()
            )
        if op.op == "mul" and len(sources) > 1:
            return self._product(sources, depth)
        if op.op == "add" and len(sources) > 1:
            return self._sum(op, sources, depth, waiting)
        passes = op.op in _PASS_OPS or op.op.startswith(_PASS_PREFIXES)
        return _Point(waiting if passes else frozenset(), depth)

    def _product(self, sources: list[_Point], depth: int) -> _Point:
        """X * sigmoid(x) is silu; any other product of two signals ends the trail."""
        for s in sources:
            others = frozenset().union(*(o.waiting for o in sources if o is not s))
            if s.gate and s.gate == others:
                self.after |= dict.fromkeys(s.gate, as_nonlinearity("silu"))
        return _Point(depth=depth)

    def _sum(self, op: Op, sources: list[_Point], depth: int, waiting: frozenset[str]) -> _Point:
        """Two results of one shape, one of them deeper: the deeper one is a residual branch."""
        deep = max(sources, key=lambda s: s.depth)
        same_shape = all(s.shape in ((), tuple(op.output.shape)) for s in sources)
        if same_shape and deep.waiting and min(s.depth for s in sources) < deep.depth:
            self.residual |= deep.waiting
            self.branches += 1
        return _Point(waiting, depth)


def _activation_of_op(op: Op) -> Nonlinearity | None:
    """The nonlinearity that a functional call computes, with its parameters."""
    name = op.op
    if name == "clamp" and op.args[1:2] == (0,) and len(op.args) == 2:
        name = "relu"
    if name not in known_nonlinearities() or name in _NOTHING:
        return None
    if name == "gelu":
        return as_nonlinearity("gelu", op.kwargs.get("approximate", "none"))
    given = tuple(op.args[i] for i in _PARAMETERS.get(name, ()) if i < len(op.args))
    return as_nonlinearity(name, given or None)


def follow_run(model: nn.Module, example_inputs: Any, weights: Mapping[int, str]) -> Followed:
    """Run ``model`` once without gradients, leaving it bit-equal, and follow every tensor.

    Raises:
        Exception: whatever the model raises.
    """
    inputs = as_inputs(example_inputs)
    args, kwargs = tree_map_only(Tensor, lambda t: t.detach().clone(), (inputs.args, inputs.kwargs))
    trail = _Trail(
        model, {n: weights[id(p)] for n, p in model.named_parameters() if id(p) in weights}
    )
    with torch.no_grad(), Recorder(model, trail.on_op, (args, kwargs)), preserved(model):
        model(*args, **kwargs)
    return Followed(
        trail.after,
        tuple(trail.order),
        frozenset(trail.residual),
        trail.branches,
        traced=True,
        evidence="seen in one run",
    )
