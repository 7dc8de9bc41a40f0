"""What is known of a model, as plain records. No torch.

`_roles` (and later the graph) writes them; `_recipes` and the schemes read them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ._activations import Nonlinearity
from ._fans import Fan
from .distributions import Distribution

# Roles: what a parameter is for. A scheme is a table of rows by role.
WEIGHT_ROLES = (
    "linear",  # a dense layer between other layers
    "conv",
    "conv_transpose",
    "bilinear",
    "q",
    "k",
    "v",
    "qkv",  # q, k and v packed in one tensor
    "attn_out",  # projects attention back to the residual stream
    "ffn_in",
    "ffn_gate",
    "ffn_out",  # projects the feed-forward back to the residual stream
    "rnn_in",
    "rnn_hidden",
    "rnn_proj",
    "head",  # the last layer, whose outputs are logits or predictions
)
TABLE_ROLES = ("embed", "pos")
SCALAR_ROLES = ("bias", "rnn_bias", "norm", "norm_bias", "slope", "attn_bias")
FREE_ROLE = "free"  # a bare nn.Parameter: only the graph shows what it is for
USAGES = ("weight", "table", "added", "scale", "unused", "other")
ROLES = (*WEIGHT_ROLES, *TABLE_ROLES, *SCALAR_ROLES, FREE_ROLE)
RESIDUAL_ROLES = ("attn_out", "ffn_out")  # these write into the residual stream


@dataclass(frozen=True)
class PartInfo:
    """One slice of a packed parameter: rows ``start:stop`` along ``dim``.

    Args:
        name: ``q``, ``k``, ``v``; ``i``, ``f``, ``g``, ``o``; ``r``, ``z``, ``n``; ``padding``.
        role: as for a parameter of its own.
        fan: the slice's own fans.
    """

    name: str
    dim: int
    start: int
    stop: int
    role: str
    fan: Fan | None = None


class Mirror(NamedTuple):
    """How a weight can start in mirror images (`fanin.distributions.LooksLinear`).

    Args:
        outputs: its outputs can be z and -z.
        inputs: its inputs are f(z) and f(-z).
        slope: c of that f, f(z) - f(-z) = c z.
    """

    outputs: bool = False
    inputs: bool = False
    slope: float = 1.0


@dataclass(frozen=True)
class ParamInfo:
    """One parameter (or one parametrized tensor) of a model.

    Args:
        name: canonical FQN; of a tie, the first name.
        shape: logical shape, unsharded.
        dtype: as torch prints it without the prefix: ``float32``.
        role: one of `ROLES`.
        module: FQN of the module that owns it (empty for the root).
        kind: that module's class name.
        fan: exact fans; None where the notion does not apply.
        torch_fan: what torch.nn.init computes from the shape; None below 2 dimensions.
        groups: of a grouped convolution; 1 for anything else.
        parts: slices that are initialised on their own.
        aliases: the other names of a tie.
        alias_roles: the roles that the tensor has under those names.
        activation: the function applied to the layer's output; for a bias, to its layer's;
            None if none follows or it is not known.
        evidence: how that was found, as words for the plan's reasons.
        factor: number that the layer's output is multiplied by before that function.
        mirror: how it can start in mirror images; None where it cannot or that is not known.
        default: what today's PyTorch fills it with, None if unknown.
        through: names behind a parametrization, written through it; empty otherwise.
        usage: of a bare nn.Parameter, what the graph does with it: one of `USAGES`; empty if unknown.
        present: of a bare nn.Parameter with real values, what they are; None if unknown.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: str
    module: str
    kind: str
    fan: Fan | None = None
    torch_fan: Fan | None = None
    groups: int = 1
    parts: tuple[PartInfo, ...] = ()
    aliases: tuple[str, ...] = ()
    alias_roles: tuple[str, ...] = ()
    activation: Nonlinearity | None = None
    evidence: str = ""
    factor: float = 1.0
    mirror: Mirror | None = None
    default: Distribution | None = None
    through: tuple[str, ...] = ()
    usage: str = ""
    present: Distribution | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What the schemes may ask about the whole model.

    Args:
        params: one record per parameter, in registration order.
        layers: weight layers that signal passes through, one after the other.
        branches: residual branches found by role (attention and feed-forward outputs).
        normalised: a normalisation layer stands between the weight layers.
        recurrent: it contains a recurrent layer.
        traced: nonlinearities were followed along one run of the model; else by module order.
        notes: sentences for the head of the plan.
    """

    params: tuple[ParamInfo, ...]
    layers: int = 0
    branches: int = 0
    normalised: bool = False
    recurrent: bool = False
    traced: bool = False
    notes: tuple[str, ...] = field(default=())
