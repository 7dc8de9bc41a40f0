"""The blocks of `fanin.nn` from the papers' formulas, in float64 numpy, one head and one row at a time.

No torch, and none of the package: weights come as a mapping of names to arrays. Written for being
right at a glance, not for speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, expit

Array = NDArray[np.float64]
Weights = Mapping[str, Any]


def exact(state: Mapping[str, Any]) -> dict[str, Array]:
    """A state dict as float64 arrays."""
    return {name: np.asarray(value.double(), np.float64) for name, value in state.items()}


def part(w: Weights, name: str) -> dict[str, Array]:
    """The weights of the submodule ``name``."""
    return {k[len(name) + 1 :]: v for k, v in w.items() if k.startswith(name + ".")}


def linear(w: Weights, x: Array) -> Array:
    return x @ w["weight"].T + w.get("bias", 0.0)


def embedding(w: Weights, ids: NDArray[np.int64]) -> Array:
    one_hot = np.eye(len(w["weight"]))[ids]
    return one_hot @ w["weight"]


def rms_norm(w: Weights, x: Array, eps: float = 1e-5) -> Array:
    """Zhang & Sennrich 2019, equation 4."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w["weight"]


def layer_norm(w: Weights, x: Array, eps: float = 1e-5) -> Array:
    """Ba, Kiros & Hinton 2016, equation 4."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * w["weight"] + w.get(
        "bias", 0.0
    )


NORMS = {"rms": rms_norm, "layer": layer_norm}

ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0.0),
    "gelu": lambda x: x * 0.5 * (1.0 + erf(x / np.sqrt(2.0))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x * expit(x),
}


def feed_forward(w: Weights, x: Array, activation: str = "gelu") -> Array:
    return linear(part(w, "w2"), ACTIVATIONS[activation](linear(part(w, "w1"), x)))


def swiglu(w: Weights, x: Array) -> Array:
    """Shazeer 2020, equation 6."""
    gate = linear(part(w, "w1"), x)
    return linear(part(w, "w2"), gate * expit(gate) * linear(part(w, "w3"), x))


def sinusoids(positions: NDArray[np.int64], d: int, base: float = 10000.0) -> Array:
    """Vaswani et al. 2017, section 3.5: PE(pos, 2i) = sin(pos / base^(2i/d)), PE(pos, 2i+1) = cos(...)."""
    table = np.empty((*positions.shape, d))
    for column in range(d):
        angle = positions / base ** (2 * (column // 2) / d)
        table[..., column] = np.cos(angle) if column % 2 else np.sin(angle)
    return table


def rotation(position: int, d: int, theta: float, layout: str) -> Array:
    """Su et al. 2021, equation 15: the d x d matrix that turns a vector at ``position``."""
    matrix = np.zeros((d, d))
    for i in range(d // 2):
        a, b = (2 * i, 2 * i + 1) if layout == "interleaved" else (i, i + d // 2)
        angle = position * theta ** (-2 * i / d)
        matrix[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)  # fmt: skip
    return matrix


@dataclass(frozen=True)
class Rope:
    """Rotary positions."""

    theta: float = 10000.0
    layout: str = "interleaved"

    def __call__(self, x: Array, positions: NDArray[np.int64] | None = None) -> Array:
        """Turn x (..., T, d); positions broadcast against (..., T)."""
        where = np.arange(x.shape[-2]) if positions is None else positions
        where = np.broadcast_to(where, x.shape[:-1])
        turned = np.empty_like(x)
        for index in np.ndindex(*x.shape[:-1]):
            turned[index] = rotation(int(where[index]), x.shape[-1], self.theta, self.layout) @ x[index]  # fmt: skip
        return turned


def softmax(x: Array) -> Array:
    """Along the last axis; a row of -inf gives zeros."""
    top = x.max(-1, keepdims=True)
    e = np.exp(x - np.where(np.isneginf(top), 0.0, top))
    total = e.sum(-1, keepdims=True)
    return np.divide(e, total, out=np.zeros_like(e), where=total > 0)


def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: NDArray[Any] | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Array, Array]:
    """Vaswani et al. 2017, equation 1, for (..., T, d), with a mask that broadcasts against (..., T, S)."""
    t, s = q.shape[-2], k.shape[-2]
    logits = q @ np.swapaxes(k, -1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        logits = logits + (np.where(mask, 0.0, -np.inf) if mask.dtype == bool else mask)
    if causal:
        future = np.arange(s)[None, :] > np.arange(t)[:, None] + s - t
        logits = np.where(future, -np.inf, logits)
    weights = softmax(logits)
    return weights @ v, weights


@dataclass(frozen=True)
class Attention:
    """Multi-head attention; Vaswani et al. 2017, section 3.2.2, with the variants of `MultiHeadAttention`."""

    heads: int
    kv_heads: int | None = None
    rope: Rope | None = None
    qk_norm: bool = False
    causal: bool = False

    def __call__(
        self,
        w: Weights,
        x: Array,
        keys: Array | None = None,
        values: Array | None = None,
        *,
        mask: NDArray[Any] | None = None,
        padding: NDArray[np.bool_] | None = None,
        positions: NDArray[np.int64] | None = None,
    ) -> tuple[Array, Array]:
        """Outputs like x, and weights (..., heads, T, S)."""
        keys_at = positions if keys is None else None
        keys = x if keys is None else keys
        values = keys if values is None else values
        q, k, v = (linear(part(w, f"{n}_proj"), y) for n, y in (("q", x), ("k", keys), ("v", values)))  # fmt: skip
        d, shared = q.shape[-1] // self.heads, self.kv_heads or self.heads
        outputs, weights = [], []
        for h in range(self.heads):
            g = h // (self.heads // shared)
            qh, kh, vh = q[..., h * d : (h + 1) * d], k[..., g * d : (g + 1) * d], v[..., g * d : (g + 1) * d]  # fmt: skip
            if self.qk_norm:
                qh, kh = rms_norm(part(w, "q_norm"), qh), rms_norm(part(w, "k_norm"), kh)
            if self.rope is not None:
                qh, kh = self.rope(qh, positions), self.rope(kh, keys_at)
            y, p = attention(qh, kh, vh, self.mask_of_head(h, mask, padding, x.ndim), self.causal)
            outputs.append(y)
            weights.append(p)
        joined = linear(part(w, "output_proj"), np.concatenate(outputs, -1))
        return joined, np.stack(weights, -3)

    @staticmethod
    def mask_of_head(
        h: int, mask: NDArray[Any] | None, padding: NDArray[np.bool_] | None, dims: int
    ) -> NDArray[Any] | None:
        """One float mask (..., T, S): a mask with more axes than x has one for each head, or for all."""
        logits = np.zeros(())
        if mask is not None:
            if mask.ndim > dims:
                mask = mask[..., h if mask.shape[-3] > 1 else 0, :, :]
            logits = np.where(mask, 0.0, -np.inf) if mask.dtype == bool else mask
        if padding is not None:
            logits = logits + np.where(padding, -np.inf, 0.0)[..., None, :]
        return logits


@dataclass(frozen=True)
class Block:
    """One layer; Vaswani et al. 2017, section 3.1 (post), Xiong et al. 2020 (pre)."""

    attention: Attention
    norm: str = "pre"
    norm_layer: str = "layer"
    ffn: str = "gelu"
    eps: float = 1e-5

    def __call__(self, w: Weights, x: Array, **how: Any) -> Array:
        def ln(n: int, y: Array) -> Array:
            return NORMS[self.norm_layer](part(w, f"ln{n}"), y, self.eps)

        def attend(y: Array) -> Array:
            return self.attention(part(w, "attn"), y, **how)[0]

        def feed(y: Array) -> Array:
            inner = part(w, "ffn")
            return swiglu(inner, y) if self.ffn == "swiglu" else feed_forward(inner, y, self.ffn)

        if self.norm == "pre":
            x = x + attend(ln(1, x))
            return x + feed(ln(2, x))
        x = ln(1, x + attend(x))
        return ln(2, x + feed(x))


@dataclass(frozen=True)
class Encoder:
    """A stack of blocks; outputs at padded positions are zero."""

    block: Block
    layers: int
    positions: str | None = None
    final: bool = True

    def __call__(
        self,
        w: Weights,
        x: Array,
        *,
        mask: NDArray[Any] | None = None,
        padding: NDArray[np.bool_] | None = None,
        positions: NDArray[np.int64] | None = None,
    ) -> Array:
        at = np.arange(x.shape[-2]) if positions is None else positions
        if self.positions == "sinusoidal":
            x = x + sinusoids(at, x.shape[-1])
        elif self.positions == "learned":
            x = x + embedding(part(w, "positions"), at)
        for i in range(self.layers):
            x = self.block(part(w, f"layers.{i}"), x, mask=mask, padding=padding, positions=positions)  # fmt: skip
        if self.final:
            x = NORMS[self.block.norm_layer](part(w, "ln_final"), x, self.block.eps)
        return x if padding is None else np.where(padding[..., None], 0.0, x)


@dataclass(frozen=True)
class LanguageModel:
    """Token ids to logits; Radford et al. 2019, Touvron et al. 2023."""

    block: Block
    layers: int
    learned: bool = False

    def __call__(
        self,
        w: Weights,
        ids: NDArray[np.int64],
        *,
        mask: NDArray[Any] | None = None,
        padding: NDArray[np.bool_] | None = None,
        positions: NDArray[np.int64] | None = None,
    ) -> Array:
        x = embedding(part(w, "token_embeddings"), ids)
        if self.learned:
            at = np.arange(ids.shape[-1]) if positions is None else positions
            x = x + embedding(part(w, "positions"), at)
        for i in range(self.layers):
            x = self.block(part(w, f"layers.{i}"), x, mask=mask, padding=padding, positions=positions)  # fmt: skip
        x = NORMS[self.block.norm_layer](part(w, "ln_final"), x, self.block.eps)
        return linear(part(w, "lm_head"), x)
