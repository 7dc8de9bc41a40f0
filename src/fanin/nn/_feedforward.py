"""Feed-forward networks: two layers with a nonlinearity between, and the gated SwiGLU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._errors import one_of
from .._layouts import Spec, register_module
from ._base import Block, moved, positive
from ._basic import Linear, projection
from ._dropout import Dropout

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}
_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "gelu": torch.ops.aten.gelu_,
    "gelu_tanh": lambda x: torch.ops.aten.gelu_(x, approximate="tanh"),
    "silu": lambda x: F.silu(x, inplace=True),
}
_ALIASES = {"linear1.": "w1.", "linear2.": "w2.", "c_fc.": "w1.", "c_proj.": "w2.",
            "fc1.": "w1.", "fc2.": "w2."}  # fmt: skip
_GATED = {"gate_proj.": "w1.", "down_proj.": "w2.", "up_proj.": "w3."}


class FeedForward(Block):
    """w2(f(w1(x))): (..., d_model) -> (..., d_ff) -> (..., d_model).

    Args:
        d_model: size of input and output.
        d_ff: size between; 4 d_model if None.
        activation: ``relu``, ``gelu``, ``gelu_tanh`` or ``silu``.
        bias: in both layers.
        dropout: probability of dropping an element after the activation.
        device, dtype: as in torch.nn.

    Raises:
        InvalidValueError: sizes that are no positive integers, an unknown activation.

    Source: Vaswani et al. 2017, equation 2.

    Example:
        >>> import torch
        >>> FeedForward(8)(torch.zeros(2, 8)).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int | None = None,
        *,
        activation: str = "gelu",
        bias: bool = True,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        positive(d_model=d_model, d_ff=d_ff)
        self.activation = one_of("activation", activation, ACTIVATIONS)
        d_ff = d_ff or 4 * d_model
        self.w1 = Linear(d_model, d_ff, bias, device=device, dtype=dtype)
        self.w2 = Linear(d_ff, d_model, bias, device=device, dtype=dtype)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        functions = _IN_PLACE if _unseen(self.w1) else ACTIVATIONS
        return self.w2(self.dropout(functions[self.activation](self.w1(x))))

    def renamed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """torch's linear1 and linear2; GPT-2's c_fc and c_proj, transposed if they are; fc1, fc2."""
        first = weights.get("c_fc.weight")
        if first is not None and first.shape != self.w1.weight.shape:
            turned = ("c_fc.weight", "c_proj.weight")
            weights = {n: t.mT if n in turned else t for n, t in weights.items()}
        return moved(weights, _ALIASES)


def _unseen(layer: nn.Module) -> bool:
    """Whether nobody else can hold what ``layer`` returns, so that it may be overwritten.

    Memory for a new hidden layer costs three times what GELU itself does.
    """
    return (
        not torch.is_grad_enabled()
        and type(layer) is Linear
        and not (layer._forward_hooks or layer._forward_pre_hooks)  # noqa: SLF001 - they have no other name
        and not nn.modules.module._has_any_global_hook()  # noqa: SLF001
        and not torch.compiler.is_compiling()
    )


class SwiGLU(Block):
    """w2(silu(w1(x)) * w3(x)): a gate decides how much of each hidden feature passes.

    Args:
        d_model: size of input and output.
        d_ff: size between; 8/3 d_model rounded to a multiple of 64 if None, which holds as many
            weights as `FeedForward` with 4 d_model.
        bias: in all three layers.
        dropout: probability of dropping an element before w2.
        device, dtype: as in torch.nn.

    Raises:
        InvalidValueError: sizes that are no positive integers.

    Source: Shazeer 2020, equation 6.

    Example:
        >>> import torch
        >>> ffn = SwiGLU(512)
        >>> ffn.w1.out_features, ffn(torch.zeros(2, 512)).shape
        (1344, torch.Size([2, 512]))
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int | None = None,
        *,
        bias: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        positive(d_model=d_model, d_ff=d_ff)
        d_ff = d_ff or max(64, 64 * round(8 / 3 * d_model / 64))
        self.w1 = Linear(d_model, d_ff, bias, device=device, dtype=dtype)
        self.w2 = Linear(d_ff, d_model, bias, device=device, dtype=dtype)
        self.w3 = Linear(d_model, d_ff, bias, device=device, dtype=dtype)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.dropout(F.silu(self.w1(x)) * self.w3(x)))

    def renamed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Llama's gate_proj, up_proj and down_proj."""
        return moved(weights, _GATED)


@register_module(FeedForward)
def _feed_forward(m: FeedForward) -> dict[str, Spec]:
    return {
        "w1.weight": projection(m.w1, "ffn_in", m.activation.replace("_tanh", "")),
        "w2.weight": projection(m.w2, "ffn_out"),
    }


@register_module(SwiGLU)
def _swiglu(m: SwiGLU) -> dict[str, Spec]:
    return {
        "w1.weight": projection(m.w1, "ffn_gate", "silu"),
        "w3.weight": projection(m.w3, "ffn_in"),
        "w2.weight": projection(m.w2, "ffn_out"),
    }


def feed_forward(
    kind: str, d_model: int, d_ff: int | None, activation: str, **common: object
) -> nn.Module:
    """``kind`` "mlp" or "swiglu"."""
    if kind == "swiglu":
        return SwiGLU(d_model, d_ff, **common)  # type: ignore[arg-type]
    return FeedForward(d_model, d_ff, activation=activation, **common)  # type: ignore[arg-type]
