"""Transformer blocks and encoders."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .._errors import InvalidValueError, one_of
from . import _exporting
from ._attention import KVCache, MultiHeadAttention
from ._base import Block, head_size, moved, positive
from ._basic import norm as make_norm
from ._dropout import Dropout
from ._feedforward import feed_forward
from ._padding import Padding, checked
from ._positions import LearnedPositions, RotaryEmbedding, SinusoidalPositions

PLACES = ("pre", "post")
NORMS = ("layer", "rms")
FEED_FORWARDS = ("mlp", "swiglu")
POSITIONS = ("sinusoidal", "learned", "rope")
UNPAD = ("auto", True, False)
WORTH_UNPADDING = 0.05  # of the tokens are padding: gathering the others costs less than that

_ALIASES = {"self_attn.": "attn.", "attention.": "attn.", "mlp.": "ffn.", "feed_forward.": "ffn.",
            "linear1.": "ffn.linear1.", "linear2.": "ffn.linear2.",
            "norm1.": "ln1.", "norm2.": "ln2.", "ln_1.": "ln1.", "ln_2.": "ln2.",
            "input_layernorm.": "ln1.", "post_attention_layernorm.": "ln2."}  # fmt: skip


class TransformerBlock(Block):
    """Self-attention, then a feed-forward network, each added to the stream.

    (..., T, d_model) -> (..., T, d_model). With norm="pre" x + f(norm(x)), with "post" norm(x + f(x)).

    Args:
        d_model: size of the stream.
        num_heads: of the attention.
        d_ff: size inside the feed-forward; 4 d_model, or 8/3 d_model for swiglu, if None.
        norm: ``pre`` or ``post``: where the norms stand.
        norm_layer: ``layer`` or ``rms``.
        ffn: ``mlp`` or ``swiglu``.
        activation: of the mlp: ``relu``, ``gelu``, ``gelu_tanh``, ``silu``.
        bias: in projections and in layer norms.
        dropout: of attention weights, of the feed-forward's hidden features, and of what either adds.
        kv_heads, head_dim, rope, qk_norm, causal: see `MultiHeadAttention`.
        eps: of the norms.
        device, dtype: as in torch.nn.

    Raises:
        InvalidValueError: sizes that do not fit together, an unknown name.

    Source: Vaswani et al. 2017; Xiong et al. 2020 for the place of norms.

    Example:
        >>> import torch
        >>> TransformerBlock(64, 4)(torch.randn(2, 10, 64)).shape
        torch.Size([2, 10, 64])
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        d_ff: int | None = None,
        norm: Literal["pre", "post"] = "pre",
        norm_layer: Literal["layer", "rms"] = "layer",
        ffn: Literal["mlp", "swiglu"] = "mlp",
        activation: str = "gelu",
        bias: bool = True,
        dropout: float = 0.0,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        rope: RotaryEmbedding | None = None,
        qk_norm: str | bool | None = None,
        causal: bool = False,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm = one_of("norm", norm, PLACES)
        one_of("norm_layer", norm_layer, NORMS)
        one_of("ffn", ffn, FEED_FORWARDS)
        common: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        self.ln1 = make_norm(norm_layer, d_model, eps=eps, **common)
        self.attn = MultiHeadAttention(
            d_model,
            num_heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rope=rope,
            qk_norm=qk_norm,
            causal=causal,
            dropout=dropout,
            **common,
        )
        self.ln2 = make_norm(norm_layer, d_model, eps=eps, **common)
        self.ffn = feed_forward(ffn, d_model, d_ff, activation, dropout=dropout, **common)
        self.dropout1, self.dropout2 = Dropout(dropout), Dropout(dropout)

    @classmethod
    def llama(
        cls,
        d_model: int,
        num_heads: int,
        *,
        d_ff: int | None = None,
        max_len: int = 2048,
        rope_theta: float = 10000.0,
        rope_layout: Literal["interleaved", "half"] = "interleaved",
        **other: Any,
    ) -> TransformerBlock:
        """Pre-norm RMSNorm, causal attention with rotary positions, SwiGLU, no biases.

        Source: Touvron et al. 2023, section 2.2; CS336, assignment 1.

        Example:
            >>> sorted(TransformerBlock.llama(64, 4, max_len=32).state_dict())[-3:]
            ['ffn.w3.weight', 'ln1.weight', 'ln2.weight']
        """
        size = head_size(d_model, num_heads, other.get("head_dim"))
        rope = RotaryEmbedding(size, rope_theta, max_len, rope_layout)
        kind: dict[str, Any] = {"norm_layer": "rms", "ffn": "swiglu", "bias": False, "causal": True}
        return cls(d_model, num_heads, d_ff=d_ff, rope=rope, **(kind | other))

    @classmethod
    def gpt2(cls, d_model: int, num_heads: int, **other: Any) -> TransformerBlock:
        """Pre-norm LayerNorm, causal attention, an MLP with tanh-GELU.

        Source: Radford et al. 2019, section 2.3.
        """
        kind: dict[str, Any] = {"activation": "gelu_tanh", "causal": True}
        return cls(d_model, num_heads, **(kind | other))

    @classmethod
    def bert(cls, d_model: int, num_heads: int, **other: Any) -> TransformerBlock:
        """Post-norm LayerNorm (eps 1e-12), attention both ways, an MLP with GELU.

        Source: Devlin et al. 2019, section 3.
        """
        kind: dict[str, Any] = {"norm": "post", "eps": 1e-12}
        return cls(d_model, num_heads, **(kind | other))

    @classmethod
    def vit(cls, d_model: int, num_heads: int, **other: Any) -> TransformerBlock:
        """Pre-norm LayerNorm (eps 1e-6), attention both ways, an MLP with GELU.

        Source: Dosovitskiy et al. 2021, equations 2 and 3.
        """
        return cls(d_model, num_heads, **({"eps": 1e-6} | other))

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        padding: Padding | None = None,
    ) -> Tensor:
        """One layer; see `MultiHeadAttention.forward` for the arguments."""

        def attend(x: Tensor) -> Tensor:
            y = self.attn(
                x,
                mask=mask,
                key_padding_mask=key_padding_mask,
                positions=positions,
                cache=cache,
                padding=padding,
            )
            return self.dropout1(y)

        if self.norm == "pre":
            x = x + attend(self.ln1(x))
            return x + self.dropout2(self.ffn(self.ln2(x)))
        x = self.ln1(x + attend(x))
        return self.ln2(x + self.dropout2(self.ffn(x)))

    def renamed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of torch.nn.TransformerEncoderLayer, Llama and GPT-2."""
        return moved(weights, _ALIASES)


class TransformerEncoder(Block):
    """A stack of blocks over a sequence, with positions before and, in pre-norm, a norm after.

    (..., T, d_model) -> (..., T, d_model). Outputs at padded positions are zero, whether training or
    not; what is computed at the others does not depend on ``unpad``.

    Args:
        d_model: size of the stream.
        num_heads: of the attention.
        num_layers: how many blocks; no two start alike.
        d_ff: size inside the feed-forwards.
        norm: ``pre`` or ``post``.
        norm_layer: ``layer`` or ``rms``.
        activation: ``relu``, ``gelu``, ``gelu_tanh``, ``silu``, or ``swiglu`` for the gated kind.
        positions: ``sinusoidal``, ``learned``, ``rope`` or None.
        dropout: see `TransformerBlock`; positions are followed by it too.
        unpad: leave padded tokens out of everything but the attention itself, when a padding mask is
            given: True, False, or ``auto``: where it pays, and not while compiling or exporting.
        max_len: of learned and rotary positions.
        final_norm: a norm at the end; None: in pre-norm.
        bias, eps, kv_heads, qk_norm, causal, device, dtype: see `TransformerBlock`.
        checkpoint: recompute each block's inside in the backward pass instead of keeping it.
        init: the scheme that `reset_parameters` follows.

    Raises:
        InvalidValueError: sizes that do not fit together, an unknown name.

    Source: Vaswani et al. 2017, section 3.1.

    Example:
        >>> import torch
        >>> encoder = TransformerEncoder(64, 4, num_layers=2, positions="sinusoidal")
        >>> padded = torch.tensor([[False, False, False], [False, True, True]])
        >>> encoder(torch.randn(2, 3, 64), key_padding_mask=padded)[1, 1:].abs().max().item()
        0.0
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        num_layers: int,
        d_ff: int | None = None,
        norm: Literal["pre", "post"] = "pre",
        norm_layer: Literal["layer", "rms"] = "layer",
        activation: str = "gelu",
        positions: str | None = None,
        dropout: float = 0.0,
        unpad: Literal["auto"] | bool = "auto",
        max_len: int = 5000,
        final_norm: bool | None = None,
        bias: bool = True,
        eps: float = 1e-5,
        kv_heads: int | None = None,
        qk_norm: str | bool | None = None,
        causal: bool = False,
        checkpoint: bool = False,
        init: str = "cs336",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        positive(num_layers=num_layers, max_len=max_len)
        size = head_size(d_model, num_heads)
        if unpad not in UNPAD:
            raise InvalidValueError(f"unpad must be 'auto', True or False, got {unpad!r}.")
        self.d_model, self.unpad, self.checkpoint, self.init = d_model, unpad, checkpoint, init
        common: dict[str, Any] = {"device": device, "dtype": dtype}
        rope = RotaryEmbedding(size, max_len=max_len) if positions == "rope" else None
        self.positions = _positions(positions, d_model, max_len, common)
        gated = activation == "swiglu"
        self.layers = nn.ModuleList(
            TransformerBlock(
                d_model,
                num_heads,
                d_ff=d_ff,
                norm=norm,
                norm_layer=norm_layer,
                ffn="swiglu" if gated else "mlp",
                activation="silu" if gated else activation,
                bias=bias,
                dropout=dropout,
                kv_heads=kv_heads,
                rope=rope,
                qk_norm=qk_norm,
                causal=causal,
                eps=eps,
                **common,
            )
            for _ in range(num_layers)
        )
        last = norm == "pre" if final_norm is None else final_norm
        self.ln_final = (
            make_norm(norm_layer, d_model, eps=eps, bias=bias, **common) if last else None
        )
        self.dropout = Dropout(dropout if self.positions is not None else 0.0)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Encode.

        Args:
            x: (..., T, d_model).
            mask: broadcasts against (..., T, T); bool (True = attend) or float (added).
            key_padding_mask: (..., T), bool; True = padding, as in torch.nn.
            positions: int64, broadcasts against (..., T): where the tokens stand; 0, 1, ... if None.
        """
        if self.positions is not None:
            x = self.dropout(self.positions(x, positions))
        if key_padding_mask is None:
            return self._final(self._run(x, mask=mask, positions=positions))
        padded = checked(key_padding_mask, tuple(x.shape[:-1]))
        if not self._unpads(padded):
            y = self._run(x, mask=mask, key_padding_mask=padded, positions=positions)
            return self._final(y).masked_fill(padded.unsqueeze(-1), 0.0)
        shape = x.shape
        x, padded = x.reshape(-1, *shape[-2:]), padded.reshape(-1, shape[-2])
        padding = Padding.of(padded)
        y = self._run(padding.pack(x), mask=_flat(mask, shape), key_padding_mask=padded,
                      positions=_flat_positions(positions, shape), padding=padding)  # fmt: skip
        return padding.unpack(self._final(y)).reshape(shape)

    def _run(self, x: Tensor, **how: Any) -> Tensor:
        for layer in self.layers:
            x = run_layer(layer, x, recompute=self.checkpoint, **how)
        return x

    def _final(self, x: Tensor) -> Tensor:
        return x if self.ln_final is None else self.ln_final(x)

    def _unpads(self, padded: Tensor) -> bool:
        if torch.compiler.is_compiling() or _exporting.active() or padded.is_meta:
            return False
        if self.unpad == "auto":
            return float(padded.float().mean()) >= WORTH_UNPADDING
        return bool(self.unpad)

    def renamed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """torch's name of the final norm."""
        return moved(weights, {"norm.": "ln_final."})


def run_layer(layer: nn.Module, x: Tensor, *, recompute: bool, **how: Any) -> Tensor:
    """``layer(x)``, its inside kept for the backward pass or computed again in it."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, x, use_reentrant=False, **how)
    return layer(x, **how)


def _positions(
    kind: str | None, d_model: int, max_len: int, common: dict[str, Any]
) -> nn.Module | None:
    if kind is None or one_of("positions", kind, POSITIONS) == "rope":
        return None
    if kind == "learned":
        return LearnedPositions(d_model, max_len, **common)
    return SinusoidalPositions(d_model, max_len)


def _flat(mask: Tensor | None, shape: torch.Size) -> Tensor | None:
    """A mask over (..., T, T) or (..., heads, T, T) with the leading axes of x, none or more, made one."""
    if mask is None or mask.dim() <= 2:
        return mask
    own = mask.shape[-3:] if mask.dim() > len(shape) else mask.shape[-2:]
    return mask.expand(*shape[:-2], *own).reshape(-1, *own)


def _flat_positions(positions: Tensor | None, shape: torch.Size) -> Tensor | None:
    if positions is None or positions.dim() == 1 or len(shape) == 3:
        return positions
    return positions.expand(shape[:-1]).reshape(-1, shape[-2])
