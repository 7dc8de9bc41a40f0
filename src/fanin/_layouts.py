"""What each tensor of an nn.Module is: its role, its fans, its slices, and torch's default for it.

A registry from module type to one small function. To teach fanin a module of your own, write
such a function and register it with `register_module`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ._errors import InvalidValueError, ModelError, UncoveredParameterError, closest, one_of
from ._facts import PartInfo
from ._fans import CONVENTIONS, Fan, Layout, exact_fan, shape_fan
from .distributions import Constant, Distribution, Normal, Uniform


@dataclass(frozen=True)
class Spec:
    """One tensor of a module.

    Args:
        role: one of `_facts.ROLES`.
        fan: exact fans; None where the notion does not apply (a bias).
        parts: slices with roles and fans of their own.
        default: what today's PyTorch fills it with.
        groups: of a grouped convolution.
        nonlinearity: the function that the module itself applies to this tensor's product.
    """

    role: str
    fan: Fan | None = None
    parts: tuple[PartInfo, ...] = ()
    default: Distribution | None = None
    groups: int = 1
    nonlinearity: str | None = None


Describe = Callable[[nn.Module], Mapping[str, Spec]]
_MODULES: dict[type | str, Describe] = {}
_D = TypeVar("_D", bound=Callable[..., Mapping[str, Spec]])


def register_module(*types: type | str) -> Callable[[_D], _D]:
    """Say what the parameters of your module types are, so that plans and `fan_of` know them.

    The decorated function takes the module and returns a dict from parameter name to
    `fanin.Spec`. A type may be named by its dotted path, so that it need not be imported.
    The most derived registered type of a module wins.

    Example:
        >>> import fanin
        >>> from torch import nn, empty
        >>> class Scale(nn.Module):
        ...     def __init__(self, n):
        ...         super().__init__()
        ...         self.gamma = nn.Parameter(empty(n))
        >>> @fanin.register_module(Scale)
        ... def scale(module):
        ...     return {"gamma": fanin.Spec("norm")}
        >>> fanin.plan(nn.Sequential(nn.Linear(4, 4), Scale(4)))["1.gamma"].distribution
        Constant(value=1.0)
    """

    def add(describe: _D) -> _D:
        for kind in types:
            _MODULES[kind] = describe
        return describe

    return add


def specs_of(module: nn.Module) -> Mapping[str, Spec]:
    """Specs of ``module``'s tensors by (possibly dotted) name; empty for an unknown type."""
    for kind in type(module).__mro__:
        describe = _MODULES.get(kind) or _MODULES.get(f"{kind.__module__}.{kind.__qualname__}")
        if describe is not None:
            return describe(module)
    return _norm_by_name(module)


def fan_of(
    module: nn.Module, name: str = "weight", convention: str = "exact"
) -> Fan | dict[str, Fan]:
    """Fans of one weight of a module; for packed weights a dict with a `Fan` per slice.

    ``exact`` counts what a unit really sums: a convolution ``C_in/groups * prod(kernel)``, with
    the reach thinned by stride; a transposed convolution the mirror image; packed q, k, v and RNN
    gates per slice; an embedding 1; a bilinear form ``in1 * in2``. ``torch`` is what
    ``torch.nn.init`` computes from the shape alone.

    Args:
        module: any module that fanin knows, see `register_module`.
        name: parameter name; dotted for a child's (``out_proj.weight``).
        convention: ``exact`` or ``torch``.

    Returns:
        A `Fan`, or a dict such as ``{"q": Fan, "k": Fan, "v": Fan}``.

    Raises:
        InvalidValueError: no such parameter, one without fans, or an unknown convention.
        ModelError: the parameter is lazy and has no shape yet.

    Example:
        >>> from torch import nn
        >>> fan_of(nn.ConvTranspose2d(512, 8, 4, stride=2))
        Fan(fan_in=2048.0, fan_out=128.0)
        >>> fan_of(nn.ConvTranspose2d(512, 8, 4, stride=2), convention="torch")
        Fan(fan_in=128.0, fan_out=8192.0)

    Source: Glorot & Bengio 2010; He et al. 2015 section 2.2.
    """
    one_of("convention", convention, CONVENTIONS)
    tensor = tensor_of(module, name)
    if convention == "torch":
        return shape_fan(tuple(tensor.shape))
    owner, leaf = _owner(module, name)
    spec = specs_of(module).get(name) or specs_of(owner).get(leaf)
    if spec is None:
        raise UncoveredParameterError(
            f"{type(module).__name__}.{name} has shape {list(tensor.shape)}, but fanin does not know "
            "what its axes mean. Use convention='torch' for the fans of the shape, or register the "
            "module type with @fanin.register_module."
        )
    fans = {p.name: p.fan for p in spec.parts if p.fan is not None}
    if fans and len(fans) == len(spec.parts):
        return fans
    if spec.fan is None:
        raise InvalidValueError(f"{type(module).__name__}.{name} is a {spec.role}: it has no fans.")
    return spec.fan


def tensor_of(module: nn.Module, name: str) -> Tensor:
    """The tensor that ``module`` computes with under ``name``, with a shape.

    Raises:
        InvalidValueError: there is none; the message lists what there is.
        ModelError: it is lazy.
    """
    owner, leaf = _owner(module, name)
    tensor = getattr(owner, leaf, None)
    if not isinstance(tensor, Tensor):
        known = list(dict.fromkeys([*specs_of(module), *(n for n, _ in module.named_parameters())]))
        raise InvalidValueError(
            f"{type(module).__name__} has no parameter {name!r}; it has {', '.join(known) or 'none'}."
            f"{closest(name, known)}"
        )
    if is_lazy(tensor):
        raise ModelError(
            f"{type(module).__name__}.{name} is lazy and has no shape yet. "
            "Run the model once on an example batch first, then ask again."
        )
    return tensor


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    try:
        return (module.get_submodule(path) if path else module), leaf
    except AttributeError:
        return module, name


def _norm_by_name(module: nn.Module) -> Mapping[str, Spec]:
    """A class called ...Norm... whose parameters are all vectors is a norm, whoever wrote it."""
    own = dict(module.named_parameters(recurse=False))
    if (
        "norm" not in type(module).__name__.lower()
        or not own
        or any(p.dim() != 1 for p in own.values())
    ):
        return {}
    return _norm(module)


# torch.nn -------------------------------------------------------------------------------------


def _uniform(bound: float) -> Distribution:
    return Uniform(-bound, bound) if bound > 0 else Constant(0.0)


def _affine(weight: Tensor, layout: Layout, role: str) -> dict[str, Spec]:
    """Weight and bias of a linear or convolution layer, with torch's kaiming_uniform(a=sqrt 5)."""
    fan_in = shape_fan(tuple(weight.shape)).fan_in
    default = _uniform(1 / math.sqrt(fan_in) if fan_in else 0.0)
    spec = Spec(role, exact_fan(layout), default=default, groups=layout.groups)
    return {"weight": spec, "bias": Spec("bias", default=default)}


@register_module(nn.Linear)
def _linear(m: nn.Linear) -> dict[str, Spec]:
    return _affine(m.weight, Layout(m.in_features, m.out_features), "linear")


@register_module("transformers.pytorch_utils.Conv1D")
def _conv1d_of_gpt2(m: nn.Module) -> dict[str, Spec]:
    inputs, outputs = m.get_parameter("weight").shape
    return {
        "weight": Spec("linear", Fan(inputs, outputs), default=Normal(0.02)),
        "bias": Spec("bias", default=Constant(0.0)),
    }


@register_module(nn.modules.conv._ConvNd)  # noqa: SLF001 - torch's own base of all convolutions
def _conv(m: nn.Conv2d) -> dict[str, Spec]:
    layout = Layout(
        m.in_channels, m.out_channels, tuple(m.kernel_size), tuple(m.stride), m.groups, m.transposed
    )
    return _affine(m.weight, layout, "conv_transpose" if m.transposed else "conv")


@register_module(nn.Bilinear)
def _bilinear(m: nn.Bilinear) -> dict[str, Spec]:
    default = _uniform(1 / math.sqrt(m.in1_features))
    fan = Fan(m.in1_features * m.in2_features, m.out_features * m.in2_features)
    return {"weight": Spec("bilinear", fan, default=default), "bias": Spec("bias", default=default)}


@register_module(nn.Embedding, nn.EmbeddingBag)
def _embedding(m: nn.Embedding) -> dict[str, Spec]:
    pad = m.padding_idx
    parts = () if pad is None else (PartInfo("padding", 0, pad, pad + 1, "padding"),)
    return {"weight": Spec("embed", Fan(1, m.embedding_dim), parts, default=Normal(1.0))}


@register_module(
    nn.modules.batchnorm._NormBase,  # noqa: SLF001 - torch's own base of batch and instance norms
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
def _norm(_: nn.Module) -> dict[str, Spec]:
    one, zero = Constant(1.0), Constant(0.0)
    scale, shift = Spec("norm", Fan(1, 1), default=one), Spec("norm_bias", default=zero)
    return {
        "weight": scale,
        "scale": scale,
        "gamma": scale,
        "g": scale,
        "bias": shift,
        "beta": shift,
        "b": shift,
    }


@register_module(nn.PReLU)
def _prelu(_: nn.PReLU) -> dict[str, Spec]:
    return {"weight": Spec("slope", Fan(1, 1), default=Constant(0.25))}


def _gates(letters: str, rows: int, role: str, fan: Fan | None) -> tuple[PartInfo, ...]:
    return tuple(PartInfo(g, 0, i * rows, (i + 1) * rows, role, fan) for i, g in enumerate(letters))


def _recurrent(letters: str, inputs: int, hidden: int, state: int, suffix: str) -> dict[str, Spec]:
    """The four tensors of one recurrent layer; ``state`` is what the recurrence feeds back."""
    default = _uniform(1 / math.sqrt(hidden) if hidden else 0.0)
    into, back = Fan(inputs, hidden), Fan(state, hidden)

    def gates(role: str, fan: Fan | None = None) -> tuple[PartInfo, ...]:
        return _gates(letters, hidden, role, fan) if letters else ()

    return {
        f"weight_ih{suffix}": Spec("rnn_in", into, gates("rnn_in", into), default),
        f"weight_hh{suffix}": Spec("rnn_hidden", back, gates("rnn_hidden", back), default),
        f"bias_ih{suffix}": Spec("rnn_bias", None, gates("rnn_bias"), default),
        f"bias_hh{suffix}": Spec("rnn_bias", None, gates("rnn_bias"), default),
        f"weight_hr{suffix}": Spec("rnn_proj", Fan(hidden, state), (), default),
    }


_LETTERS = {"LSTM": "ifgo", "GRU": "rzn", "RNN_TANH": "", "RNN_RELU": ""}


@register_module(nn.RNNBase)
def _rnn(m: nn.RNNBase) -> dict[str, Spec]:
    specs: dict[str, Spec] = {}
    both = 2 if m.bidirectional else 1
    state = m.proj_size or m.hidden_size
    for layer in range(m.num_layers):
        inputs = m.input_size if layer == 0 else state * both
        for suffix in (f"_l{layer}", f"_l{layer}_reverse")[:both]:
            specs |= _recurrent(_LETTERS[m.mode], inputs, m.hidden_size, state, suffix)
    return specs


@register_module(nn.RNNCellBase)
def _rnn_cell(m: nn.RNNCellBase) -> dict[str, Spec]:
    letters = {nn.LSTMCell: "ifgo", nn.GRUCell: "rzn"}
    gates = next((g for kind, g in letters.items() if isinstance(m, kind)), "")
    return _recurrent(gates, m.input_size, m.hidden_size, m.hidden_size, "")


@register_module(nn.MultiheadAttention)
def _attention(m: nn.MultiheadAttention) -> dict[str, Spec]:
    d, kdim, vdim = m.embed_dim, m.kdim, m.vdim
    fans = {"q": Fan(d, d), "k": Fan(kdim, d), "v": Fan(vdim, d)}
    zero = Constant(0.0)
    parts = tuple(PartInfo(n, 0, i * d, (i + 1) * d, n, fans[n]) for i, n in enumerate("qkv"))
    specs = {
        "in_proj_weight": Spec("qkv", Fan(d, d), parts, _xavier_uniform((3 * d, d))),
        "in_proj_bias": Spec("bias", default=zero),
        "bias_k": Spec("attn_bias", Fan(d, d), default=Normal(1 / math.sqrt(d))),
        "bias_v": Spec("attn_bias", Fan(d, d), default=Normal(1 / math.sqrt(d))),
        "out_proj.bias": Spec("bias", default=zero),
    }
    for n, fan in fans.items():
        specs[f"{n}_proj_weight"] = Spec(n, fan, default=_xavier_uniform((d, int(fan.fan_in))))
    specs["out_proj.weight"] = replace(_linear(m.out_proj)["weight"], role="attn_out")
    return specs


def _xavier_uniform(shape: tuple[int, ...]) -> Distribution:
    fan = shape_fan(shape)
    return _uniform(math.sqrt(6 / (fan.fan_in + fan.fan_out)))


@register_module(nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
def _transformer_layer(m: nn.TransformerEncoderLayer) -> dict[str, Spec]:
    act = getattr(m.activation, "__name__", type(m.activation).__name__).lower()
    return {
        "linear1.weight": replace(_linear(m.linear1)["weight"], role="ffn_in", nonlinearity=act),
        "linear2.weight": replace(_linear(m.linear2)["weight"], role="ffn_out"),
    }


@register_module(nn.Transformer)
def _transformer(m: nn.Transformer) -> dict[str, Spec]:
    """nn.Transformer redraws every matrix below it: xavier_uniform on the packed shape."""
    specs: dict[str, Spec] = {}
    for path, child in m.named_modules():
        prefix = f"{path}." if path and child is not m else ""
        inner = {} if child is m else {f"{prefix}{n}": s for n, s in specs_of(child).items()}
        specs = {**inner, **specs}
    shapes = {n: tuple(p.shape) for n, p in m.named_parameters()}
    return {
        n: replace(s, default=_xavier_uniform(shapes[n]))
        if n in shapes and len(shapes[n]) > 1
        else s
        for n, s in specs.items()
    }
