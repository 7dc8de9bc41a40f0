"""Which function is applied to each layer's output, in order: along one run, or by module order.

This follows tensors through reshapes, norms, dropout, pooling and sums up to the first
nonlinearity. It is no analysis of the graph: it knows nothing of scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ._activations import Nonlinearity
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
        mine = tuple(dict.fromkeys(weights[id(p)] for p in _direct_parameters(module) if id(p) in weights))
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
    return None if found.name in ("linear", "identity") else found
