"""A language model of transformer blocks, and how it writes text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._errors import InvalidValueError, one_of
from .._layouts import Spec, register_module
from ._attention import KVCache
from ._base import Block, evaluated, head_size, moved, positive
from ._basic import Embedding, Linear, projection
from ._basic import norm as make_norm
from ._dropout import Dropout
from ._positions import LearnedPositions, RotaryEmbedding
from ._transformer import NORMS, TransformerBlock, run_layer

_ALIASES = {"embed_tokens.": "token_embeddings.", "wte.": "token_embeddings.",
            "wpe.": "positions.", "h.": "layers.", "norm.": "ln_final.", "ln_f.": "ln_final."}  # fmt: skip
_PREFIXES = ("model.", "transformer.")


class TransformerLM(Block):
    """Token ids in, logits over the next token out: int64 (..., T) -> (..., T, vocab_size).

    As it comes: pre-norm RMSNorm, causal attention with rotary positions, SwiGLU, no biases, an output
    layer of its own, as in Llama and CS336. `gpt2` makes the other classic.

    Args:
        vocab_size: how many tokens there are.
        context_length: most tokens that the model sees at once.
        d_model: size of the stream.
        num_layers: how many blocks; no two start alike.
        num_heads: of the attention.
        d_ff: size inside the feed-forwards; 8/3 d_model rounded to 64 (swiglu), 4 d_model (mlp) if None.
        rope_theta: base of the rotary positions.
        rope_layout: ``interleaved``, or ``half`` as in transformers; see `RotaryEmbedding`.
        positions: ``rope``, ``learned`` or None.
        tie: the output layer is the table of embeddings.
        norm_layer, ffn, activation, bias, dropout, kv_heads, head_dim, qk_norm, eps, device, dtype: see
            `TransformerBlock`.
        checkpoint: recompute each block's inside in the backward pass instead of keeping it.
        init: the scheme that `reset_parameters` follows.

    Raises:
        InvalidValueError: sizes that do not fit together, an unknown name; at the call, too long a text.

    Source: CS336, assignment 1, section 3.5; Touvron et al. 2023.

    Example:
        >>> import torch
        >>> model = TransformerLM(100, 16, 64, num_layers=2, num_heads=4)
        >>> model(torch.zeros(2, 5, dtype=torch.int64)).shape
        torch.Size([2, 5, 100])
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        d_model: int,
        num_layers: int,
        num_heads: int,
        *,
        d_ff: int | None = None,
        rope_theta: float = 10000.0,
        rope_layout: Literal["interleaved", "half"] = "interleaved",
        positions: Literal["rope", "learned"] | None = "rope",
        tie: bool = False,
        norm_layer: Literal["layer", "rms"] = "rms",
        ffn: Literal["mlp", "swiglu"] = "swiglu",
        activation: str = "gelu",
        bias: bool = False,
        dropout: float = 0.0,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        qk_norm: str | bool | None = None,
        eps: float = 1e-5,
        checkpoint: bool = False,
        init: str = "cs336",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        positive(vocab_size=vocab_size, context_length=context_length, d_model=d_model)
        positive(num_layers=num_layers)
        size = head_size(d_model, num_heads, head_dim)
        one_of("norm_layer", norm_layer, NORMS)
        self.context_length, self.checkpoint, self.init = context_length, checkpoint, init
        self.tie = tie
        common: dict[str, Any] = {"device": device, "dtype": dtype}
        self.token_embeddings = Embedding(vocab_size, d_model, **common)
        rope = self.positions = None
        if positions is not None and one_of("positions", positions, ("rope", "learned")) == "rope":
            rope = RotaryEmbedding(size, rope_theta, context_length, rope_layout)
        elif positions == "learned":
            self.positions = LearnedPositions(d_model, context_length, **common)
        self.rope = rope
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerBlock(
                d_model,
                num_heads,
                d_ff=d_ff,
                norm_layer=norm_layer,
                ffn=ffn,
                activation=activation,
                bias=bias,
                dropout=dropout,
                kv_heads=kv_heads,
                head_dim=head_dim,
                rope=rope,
                qk_norm=qk_norm,
                causal=True,
                eps=eps,
                **common,
            )
            for _ in range(num_layers)
        )
        self.ln_final = make_norm(norm_layer, d_model, eps=eps, bias=bias, **common)
        self.lm_head = Linear(d_model, vocab_size, **common)
        self._tied()
        self.register_load_state_dict_post_hook(_tied_again)

    @classmethod
    def gpt2(
        cls, vocab_size: int, context_length: int, d_model: int, num_layers: int, num_heads: int, **other: Any
    ) -> TransformerLM:  # fmt: skip
        """Learned positions, LayerNorm, tanh-GELU, biases, tied output layer, started as GPT-2.

        Source: Radford et al. 2019.

        Example:
            >>> TransformerLM.gpt2(100, 16, 64, 2, 4).lm_head.weight.std().item() < 0.021
            True
        """
        kind: dict[str, Any] = {
            "positions": "learned",
            "norm_layer": "layer",
            "ffn": "mlp",
            "activation": "gelu_tanh",
            "bias": True,
            "tie": True,
            "init": "gpt2",
        }
        return cls(vocab_size, context_length, d_model, num_layers, num_heads, **(kind | other))

    def forward(
        self,
        ids: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        cache: Sequence[KVCache] | None = None,
    ) -> Tensor:
        """Logits of the token after each of ``ids``.

        Args:
            ids: int64, (..., T).
            positions: int64, broadcasts against (..., T); after what the cache holds if None.
            mask: see `MultiHeadAttention.forward`; causal in any case.
            key_padding_mask: (..., T), bool; True = padding.
            cache: from `make_cache`; what it holds comes before ``ids``.
        """
        start = cache[0].length if cache else 0
        if start + ids.shape[-1] > self.context_length:
            raise InvalidValueError(
                f"{start + ids.shape[-1]} tokens are more than context_length={self.context_length}."
            )
        if positions is None and start:
            positions = torch.arange(start, start + ids.shape[-1], device=ids.device)
        x = self.token_embeddings(ids)
        if self.positions is not None:
            x = self.positions(x, positions)
        x = self.dropout(x)
        how: dict[str, Any] = {
            "mask": mask,
            "key_padding_mask": key_padding_mask,
            "positions": positions,
        }
        for i, layer in enumerate(self.layers):
            own = cache[i] if cache else None
            x = run_layer(layer, x, recompute=self.checkpoint and own is None, cache=own, **how)
        return self.lm_head(self.ln_final(x))

    def _tied(self) -> None:
        if self.tie:
            self.lm_head.weight = self.token_embeddings.weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """As torch does it, but `to_empty` leaves tied weights tied."""
        super()._apply(fn, recurse)
        self._tied()
        return self

    def make_cache(self, max_len: int | None = None) -> list[KVCache]:
        """An empty cache for every layer, with room for ``max_len`` tokens (all by default)."""
        return [KVCache(max_len or self.context_length) for _ in self.layers]

    @torch.no_grad()
    def generate(
        self,
        ids: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue ``ids``, one sampled token after the other, with a cache of keys and values.

        Beyond ``context_length`` the model sees the last that fit.

        Args:
            ids: int64, (..., T), T at least 1.
            max_new_tokens: how many to add.
            temperature: logits are divided by it; 0 takes the likeliest token.
            top_k: sample among so many of the likeliest only.
            top_p: sample among the likeliest that together have this probability.
            stop: token after which a text is complete; it is repeated until all texts are.
            generator: torch's default one if None.

        Returns:
            (..., T + new), the prompt included.

        Raises:
            InvalidValueError: values out of range.

        Example:
            >>> import torch
            >>> model = TransformerLM(10, 8, 64, num_layers=1, num_heads=4)
            >>> model.generate(torch.tensor([[1, 2]]), 3, temperature=0).shape
            torch.Size([1, 5])
        """
        _check_sampling(ids, max_new_tokens, temperature, top_k, top_p)
        choose = partial(
            sample, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator
        )
        with evaluated(self):
            return self._continued(ids, max_new_tokens, stop, choose)

    def _continued(
        self, ids: Tensor, count: int, stop: int | None, choose: Callable[[Tensor], Tensor]
    ) -> Tensor:
        room = min(self.context_length, ids.shape[-1] + count)
        cache, new = self.make_cache(room), ids[..., -self.context_length :]
        done = torch.zeros(ids.shape[:-1], dtype=torch.bool, device=ids.device)
        for _ in range(count):
            if cache[0].length + new.shape[-1] > self.context_length:
                cache, new = self.make_cache(room), ids[..., -self.context_length :]
            logits = self(new, cache=cache)[..., -1, :]
            new = choose(logits).unsqueeze(-1)
            if stop is not None:
                new = torch.where(done.unsqueeze(-1), stop, new)
                done = done | (new.squeeze(-1) == stop)
            ids = torch.cat((ids, new), -1)
            if stop is not None and bool(done.all()):
                break
        return ids

    def renamed(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of transformers' Llama and GPT-2; a tied output layer may be missing."""
        new = {_without(_PREFIXES, n): t for n, t in weights.items() if "rotary_emb" not in n}
        new = moved(new, _ALIASES)
        head, table = "lm_head.weight", "token_embeddings.weight"
        if self.tie and table in new:
            new.setdefault(head, new[table])
        return new


def _tied_again(module: nn.Module, _: Any) -> None:
    """Hook after loading, which may have put new tensors in place."""
    assert isinstance(module, TransformerLM)
    module._tied()  # noqa: SLF001 - of this file's own class


def _without(prefixes: tuple[str, ...], name: str) -> str:
    return next((name[len(p) :] for p in prefixes if name.startswith(p)), name)


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One token per row of logits (..., vocabulary) -> (...); see `TransformerLM.generate`."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None:
        ordered, order = logits.sort(-1, descending=True)
        shares = F.softmax(ordered, -1)
        before = shares.cumsum(-1) - shares
        ordered = ordered.masked_fill(before >= top_p, -torch.inf)
        logits = logits.scatter(-1, order, ordered)
    weights = F.softmax(logits, -1)
    drawn = torch.multinomial(weights.reshape(-1, weights.shape[-1]), 1, generator=generator)
    return drawn.reshape(weights.shape[:-1])


def _check_sampling(
    ids: Tensor, count: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    problem = None
    if ids.dim() < 1 or not ids.shape[-1]:
        problem = f"ids must hold at least one token, got shape {list(ids.shape)}"
    elif count < 0:
        problem = f"max_new_tokens must be at least 0, got {count}"
    elif not temperature >= 0:
        problem = f"temperature must be at least 0, got {temperature}"
    elif top_k is not None and top_k < 1:
        problem = f"top_k must be at least 1, got {top_k}"
    elif top_p is not None and not 0 < top_p <= 1:
        problem = f"top_p must lie in (0, 1], got {top_p}"
    if problem:
        raise InvalidValueError(f"{problem}.")


@register_module(TransformerLM)
def _language_model(m: TransformerLM) -> dict[str, Spec]:
    return {"lm_head.weight": projection(m.lm_head, "head")}
