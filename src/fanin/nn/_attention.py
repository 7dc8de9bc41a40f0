"""Multi-head attention, with the variants that transformers use, and its cache for decoding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from .._errors import InvalidValueError, one_of
from .._layouts import Spec, register_module
from ._base import Block, divides, head_size, moved, positive
from ._basic import Linear, RMSNorm, projection
from ._dropout import Dropout
from ._functional import attention
from ._padding import Padding, checked
from ._positions import RotaryEmbedding

_ALIASES = {"o_proj.": "output_proj.", "out_proj.": "output_proj.", "c_proj.": "output_proj.",
            "proj.": "output_proj.", "wq.": "q_proj.", "wk.": "k_proj.", "wv.": "v_proj.",
            "wo.": "output_proj.", "q_proj_weight": "q_proj.weight",
            "k_proj_weight": "k_proj.weight", "v_proj_weight": "v_proj.weight"}  # fmt: skip
_TURNED = ("q_proj", "k_proj", "q_norm", "k_norm")
_PACKED = ("in_proj_{}", "qkv.{}", "c_attn.{}", "Wqkv.{}")


@dataclass
class KVCache:
    """Keys and values of the tokens that a layer has seen, for decoding one token after the other.

    Args:
        max_len: memory for so many tokens is taken at once; grown step by step if None.

    Example:
        >>> import torch
        >>> from fanin.nn import MultiHeadAttention
        >>> layer, cache = MultiHeadAttention(8, 2, causal=True), KVCache()
        >>> x = torch.randn(1, 3, 8)
        >>> steps = [layer(x[:, t : t + 1], cache=cache) for t in range(3)]
        >>> torch.allclose(torch.cat(steps, 1), layer(x), atol=1e-6), cache.length
        (True, 3)
    """

    max_len: int | None = None
    length: int = 0
    k: Tensor | None = field(default=None, repr=False)
    v: Tensor | None = field(default=None, repr=False)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Remember k and v, (..., heads, T, d), and return all that there are.

        Raises:
            InvalidValueError: more tokens than ``max_len``, or another batch than before.
        """
        stop = self.length + k.shape[-2]
        if self.max_len is not None and stop > self.max_len:
            raise InvalidValueError(
                f"the cache holds max_len={self.max_len} tokens, {stop} are asked for."
            )
        self.k, all_k = self._written(self.k, k, stop)
        self.v, all_v = self._written(self.v, v, stop)
        self.length = stop
        return all_k, all_v

    def _written(self, old: Tensor | None, new: Tensor, stop: int) -> tuple[Tensor, Tensor]:
        """(memory, the part of it that is in use)."""
        if old is not None and (old.shape[:-2], old.shape[-1]) != (new.shape[:-2], new.shape[-1]):
            raise InvalidValueError(
                f"the cache holds keys of shape {list(old.shape)}, got {list(new.shape)}; "
                "use a new cache for a new batch."
            )
        if self.max_len is None or new.requires_grad:
            used = new if old is None else torch.cat((old[..., : self.length, :], new), -2)
            return used, used
        if old is None or old.shape[-2] < self.max_len:
            begun = old
            old = new.new_empty(*new.shape[:-2], self.max_len, new.shape[-1])
            if begun is not None:
                old[..., : self.length, :] = begun
        old[..., self.length : stop, :] = new
        return old, old[..., :stop, :]


class MultiHeadAttention(Block):
    """Attention in several heads, whose outputs are joined by a last projection.

    (..., T, d_model) -> (..., T, d_model), with any leading axes. Queries come from ``x``; keys and
    values from ``context``, or from ``x`` too.

    Args:
        d_model: size of x and of the output.
        num_heads: heads of queries.
        kv_heads: heads of keys and values, a divisor of num_heads: grouped queries, or with 1
            multi-query attention; num_heads if None.
        head_dim: size of a head; d_model / num_heads if None.
        kdim: size of the context that keys are made of; d_model if None.
        vdim: of that for values; kdim if None.
        bias: in the projections.
        dropout: probability of dropping an attention weight.
        rope: a `RotaryEmbedding` of head_dim, applied to queries and keys.
        qk_norm: ``rms`` or True: queries and keys are normalised per head before they meet.
        causal: a token attends to itself and what came before.
        device, dtype: as in torch.nn.

    Raises:
        InvalidValueError: sizes that do not fit together; at the call, masks that do not fit.

    Source: Vaswani et al. 2017, section 3.2.2; Ainslie et al. 2023 (grouped queries); Henry et al.
    2020 (norms of queries and keys).

    Example:
        >>> import torch
        >>> layer = MultiHeadAttention(64, 8, kv_heads=2, causal=True)
        >>> layer(torch.randn(2, 10, 64)).shape
        torch.Size([2, 10, 64])
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        kdim: int | None = None,
        vdim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        rope: RotaryEmbedding | None = None,
        qk_norm: str | bool | None = None,
        causal: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        positive(kv_heads=kv_heads, kdim=kdim, vdim=vdim)
        self.head_dim = head_size(d_model, num_heads, head_dim)
        self.d_model, self.num_heads = d_model, num_heads
        self.kv_heads = kv_heads or num_heads
        divides("kv_heads", self.kv_heads, "num_heads", num_heads)
        self.kdim = kdim or d_model
        self.vdim = vdim or self.kdim
        self.causal = causal
        if rope is not None and rope.d != self.head_dim:
            raise InvalidValueError(
                f"rope must turn vectors of head_dim={self.head_dim}, this one turns {rope.d}."
            )
        common: dict[str, Any] = {"device": device, "dtype": dtype}
        inner, shared = num_heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = Linear(d_model, inner, bias, **common)
        self.k_proj = Linear(self.kdim, shared, bias, **common)
        self.v_proj = Linear(self.vdim, shared, bias, **common)
        self.output_proj = Linear(inner, d_model, bias, **common)
        self.q_norm = self.k_norm = None
        if qk_norm not in (None, False):
            one_of("qk_norm", "rms" if qk_norm is True else qk_norm, ("rms",))
            self.q_norm = RMSNorm(self.head_dim, **common)
            self.k_norm = RMSNorm(self.head_dim, **common)
        self.rope = rope
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        context: Tensor | tuple[Tensor, Tensor] | None = None,
        *,
        mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        need_weights: bool = False,
        padding: Padding | None = None,
    ) -> Any:
        """Attend.

        Args:
            x: (..., T, d_model).
            context: (..., S, kdim), or a pair of what keys and what values are made of; x if None.
            mask: broadcasts against (..., T, S), shared by the heads; or against (..., heads, T, S),
                with one axis more than x. Bool: True = attend. Float: added to the logits.
            key_padding_mask: (..., S), bool; True = ignore this key, as in torch.nn.
            positions: int64, broadcasts against (..., T): where the tokens stand, for rope; where the
                cache ends, 0 without one, if None.
            cache: keys and values of tokens seen before; those of x are added to it.
            need_weights: also return the attention weights, (..., heads, T, S).
            padding: x holds the real tokens of a padded batch only, (N, d_model).

        Returns:
            Like x; with ``need_weights`` a pair.
        """
        if cache is not None and context is not None:
            raise InvalidValueError("a cache is for attention of x to itself; got a context too.")
        source = (x, x) if context is None else context
        keys, values = source if isinstance(source, tuple) else (source, source)
        q, k, v = self.q_proj(x), self.k_proj(keys), self.v_proj(values)
        if padding is not None:
            q, k, v = padding.unpack(q), padding.unpack(k), padding.unpack(v)
        q = rearrange(q, "... t (h d) -> ... h t d", h=self.num_heads)
        k = rearrange(k, "... s (h d) -> ... h s d", h=self.kv_heads)
        v = rearrange(v, "... s (h d) -> ... h s d", h=self.kv_heads)
        q, k = self._placed(q, k, positions, cache, crossed=context is not None)
        if cache is not None:
            k, v = cache.append(k, v)
        y: Any = attention(
            q,
            k,
            v,
            self._whole_mask(mask, key_padding_mask, q, k),
            self.causal,
            dropout=self.dropout if self.training and self.dropout.p else None,
            need_weights=need_weights,
        )
        y, weights = y if need_weights else (y, None)
        y = rearrange(y, "... h t d -> ... t (h d)")
        y = self.output_proj(y if padding is None else padding.pack(y))
        return (y, weights) if need_weights else y

    def _placed(
        self,
        q: Tensor,
        k: Tensor,
        positions: Tensor | None,
        cache: KVCache | None,
        *,
        crossed: bool,
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys, normalised and turned to where they stand."""
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is None:
            return q, k
        if positions is None and cache is not None:
            positions = torch.arange(cache.length, cache.length + q.shape[-2], device=q.device)
        if positions is not None and positions.dim() > 1:
            positions = rearrange(positions, "... t -> ... 1 t")
        return self.rope(q, positions), self.rope(k, None if crossed else positions)

    def _whole_mask(
        self, mask: Tensor | None, padded: Tensor | None, q: Tensor, k: Tensor
    ) -> Tensor | None:
        """One mask that broadcasts against (..., heads, T, S); True = attend."""
        if mask is not None and mask.dim() < q.dim() and mask.dim() > 2:
            mask = rearrange(mask, "... t s -> ... 1 t s")
        if padded is None:
            return mask
        keep = ~checked(padded, (*k.shape[:-3], k.shape[-2]))
        keep = rearrange(keep, "... s -> ... 1 1 s")
        if mask is None:
            return keep
        return mask & keep if mask.dtype == torch.bool else mask.masked_fill(~keep, -torch.inf)

    def renamed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of torch (in_proj_weight, out_proj), transformers, timm (qkv) and GPT-2 (c_attn)."""
        new = {
            n: t for n, t in weights.items() if n not in ("bias", "masked_bias")
        }  # GPT-2's masks
        if "o_proj.weight" in new and self.rope is not None and self.rope.layout == "interleaved":
            new = {n: self._interleaved(t) if n[:6] in _TURNED else t for n, t in new.items()}
        packed = next((f for f in _PACKED if f.format("weight") in new), None)
        if packed is not None:
            rows = self.q_proj.out_features + 2 * self.k_proj.out_features
            turned = new[packed.format("weight")].shape[0] != rows
            for leaf in ("weight", "bias"):
                if (whole := new.pop(packed.format(leaf), None)) is not None:
                    new |= self._cut(whole.mT if turned and leaf == "weight" else whole, leaf)
            if turned and "c_proj.weight" in new:
                new["c_proj.weight"] = new["c_proj.weight"].mT
        elif "in_proj_bias" in new:
            new |= self._cut(new.pop("in_proj_bias"), "bias")
        return moved(new, _ALIASES)

    def _interleaved(self, rows: Tensor) -> Tensor:
        """Rows whose pairs are (i, i + d/2) within a head, as transformers has them, as pairs (2i, 2i+1)."""
        return rearrange(rows, "(h two d) ... -> (h d two) ...", two=2, d=self.head_dim // 2)

    def _cut(self, packed: Tensor, leaf: str) -> dict[str, Tensor]:
        q, kv = self.q_proj.out_features, self.k_proj.out_features
        parts = packed.split((q, kv, kv))
        return {f"{n}_proj.{leaf}": p for n, p in zip("qkv", parts, strict=True)}

    def extra_repr(self) -> str:
        grouped = f", kv_heads={self.kv_heads}" if self.kv_heads != self.num_heads else ""
        return f"{self.d_model}, {self.num_heads}{grouped}" + ", causal" * self.causal


@register_module(MultiHeadAttention)
def _attention(m: MultiHeadAttention) -> dict[str, Spec]:
    return {
        "q_proj.weight": projection(m.q_proj, "q"),
        "k_proj.weight": projection(m.k_proj, "k"),
        "v_proj.weight": projection(m.v_proj, "v"),
        "output_proj.weight": projection(m.output_proj, "attn_out"),
    }
