"""Attention: softmax(scale q k^T + mask) v, forward and backward.

Logits are a contraction of queries and keys, the weights come from `softmax.attention_weights`, the
output is a contraction over keys of weights and values, all with their segments: under a causal mask
early queries average few keys. What keys and values share comes on top (`tilt`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from . import strata
from .arithmetic import kept
from .contract import collected
from .domain import (
    Abstract,
    added,
    constant,
    contracted,
    fitted,
    limited,
    multiplied,
    reshaped,
    scaled,
)
from .labels import Label
from .masks import Identity, additive, packed
from .notes import note_of
from .registry import backward, forward
from .softmax import attention_weights, attention_weights_backward
from .strata import Atom, Dims
from .tilt import Logits, aimed, share_tokens, unspent, with_tilt

RUNS = 3  # of keys that a mask tells apart


@dataclass(frozen=True, eq=False, slots=True)
class Heads:
    """Query, key and value of one attention on common axes.

    Args:
        query, key, value: (batch..., positions, channels); where several query heads in a row share
            one key head, batch ends in (key heads, query heads of each), the latter 1 in key and value.
        groups: (key heads, query heads of each), none where each query head has its own.
    """

    query: Abstract
    key: Abstract
    value: Abstract
    groups: tuple[int, int] | None

    @property
    def batch(self) -> Label:
        """Labels of the batch axes."""
        return tuple(f"b{i}" for i in range(len(self.query.dims) - 2))

    def labels(self, a: str, b: str, out: str) -> tuple[Label, Label, Label]:
        """Of two operands and a result, each named by its last two axes."""
        batch = self.batch
        return (*batch, *a), (*batch, *b), (*batch, *out)

    def product(self, a: Abstract, b: Abstract, names: tuple[str, str, str]) -> Abstract:
        """A contraction within each head."""
        of_a, of_b, out = self.labels(*names)
        return contracted(a, of_a, b, of_b, out)

    def joined(self, x: Abstract) -> Abstract:
        """All query heads on one axis."""
        if self.groups is None:
            return x
        d = len(x.dims) - 4
        return x.with_(dims=(*x.dims[:d], x.dims[d] + x.dims[d + 1], *x.dims[d + 2 :]))

    def split(self, x: Abstract) -> Abstract:
        """The inverse of `joined`."""
        if self.groups is None:
            return x
        shape = x.shape
        return reshaped(x, (*shape[:-3], *self.groups, *shape[-2:]))

    def together(self, x: Abstract, shape: tuple[int, ...]) -> Abstract:
        """The gradient of a key or value of that shape: summed over the query heads that it serves."""
        if self.groups is not None:
            shape = (*shape[:-2], 1, *shape[-2:])
        x = collected(x, shape)
        return x if self.groups is None else x.with_(dims=(*x.dims[:-3], *x.dims[-2:]))


def heads_of(query: Abstract, key: Abstract, value: Abstract, grouped: bool) -> Heads:
    """Queries on axes of their own for the heads that share a key head, where ``grouped``."""
    if not grouped or len(query.dims) < 3 or query.shape[-3] == key.shape[-3]:
        return Heads(query.plain(), _bare(key), _bare(value), None)
    if key.shape[-3] != value.shape[-3]:
        raise NotImplementedError("keys and values with different numbers of heads are sampled")
    groups = key.shape[-3], query.shape[-3] // key.shape[-3]
    query = reshaped(query.plain(), (*query.shape[:-3], *groups, *query.shape[-2:]))
    key, value = (_bare(x, (*x.dims[:-2], (), *x.dims[-2:])) for x in (key, value))
    return Heads(query, key, value, groups)


def _bare(x: Abstract, dims: Dims | None = None) -> Abstract:
    return Abstract(dims or x.dims, x.mean, x.q, noise=x.noise, source=x.source)


@dataclass(frozen=True, eq=False, slots=True)
class Attended:
    """What an attention's output remembers for its gradient.

    Args:
        heads: its operands.
        weights: softmax of the logits.
        dropped: the same after dropout.
        scale: of the logits.
    """

    heads: Heads
    weights: Abstract
    dropped: Abstract
    scale: float


@lru_cache(maxsize=64)
def causal(queries: int, keys: int) -> npt.NDArray[np.bool_]:
    """Key j may be read by query i where j <= i."""
    return np.tril(np.ones((queries, keys), bool))


def masked(z: Abstract, mask: Abstract | None, is_causal: bool) -> Abstract:
    """Logits with what they may attend to: a boolean mask, large negative numbers, or a bias added."""
    if is_causal:
        return z.with_(allowed=causal(*z.shape[-2:]))
    if mask is None:
        return z
    if mask.known is not None and mask.known.dtype == bool:
        return z.with_(allowed=mask.known)
    return limited(added(z, additive(mask, 1.0)))


def _keys_apart(z: Abstract, value: Abstract) -> Abstract:
    """Logits whose keys are told apart where a mask reads them unevenly, or where values differ."""
    if z.allowed is None or len(z.dims[-1]) != 1 or len(value.dims[-2]) != 1:
        return z
    keys = strata.union(z.dims[-1][0], value.dims[-2][0])
    keys = strata.union(keys, _uneven(Identity(z.allowed), len(z.dims), strata.size(z.dims[-1])))
    return limited(fitted(z, (*z.dims[:-1], (keys,))).with_(allowed=z.allowed))


@lru_cache(maxsize=64)
def _uneven(mask: Identity, rank: int, keys: int) -> Atom:
    """At most `RUNS` runs of keys that are read about equally often, within a factor 4.

    Of a causal mask the first 1/16, 3/16 and the rest.
    """
    small, rows = packed(mask.array, rank, rank - 1, keys)
    if not rows:
        return (keys,)
    shares = small.mask / small.mask.sum(axis=-1, keepdims=True)
    profile = np.maximum(shares.reshape(-1, keys).mean(axis=0), 1e-12)
    level = np.minimum(np.floor(np.log(profile.max() / profile) / math.log(4.0)), RUNS - 1)
    cuts = np.flatnonzero(np.diff(level)) + 1
    runs = np.diff([0, *cuts.tolist(), keys])
    return tuple(runs.tolist()) if len(runs) <= RUNS else (keys,)


def attended(
    query: Abstract,
    key: Abstract,
    value: Abstract,
    mask: Abstract | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    grouped: bool = False,
    dropout: float = 0.0,
) -> Abstract:
    """The output, and in its note what the gradient needs."""
    heads = heads_of(query, key, value, grouped)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    z = heads.joined(heads.product(heads.query, heads.key, ("ie", "je", "ij")))
    z = masked(scaled(z, scale).with_(chain=None), mask, is_causal)
    weights = attention_weights(_keys_apart(z, heads.value), -1)
    weights.noise = 0.0
    dropped = weights
    if dropout > 0:
        dropped = multiplied(weights, kept(weights.shape, dropout, len(weights.dims)))
    out = heads.product(heads.split(dropped), heads.value, ("ij", "jd", "id"))
    if share_tokens(heads.key, heads.value):
        source = Logits(heads.query, heads.key, scale)
        out = with_tilt(out, heads.split(weights), heads.value, source)
    out = heads.joined(out)
    out.noise = value.noise
    out.note = (Attended(heads, weights, dropped, scale),)
    return out


def attended_backward(
    grad: Abstract, made: Attended, shapes: tuple[tuple[int, ...], ...]
) -> tuple[Abstract, Abstract, Abstract, Abstract]:
    """Gradients of query, key, value and of the logits before their scale.

    dL/dv = A^T g; dL/dA = g v^T; dL/dz through the softmax; dL/dq = scale dL/dz k.
    """
    heads, scale = made.heads, made.scale
    g = heads.split(grad.plain())
    gv = heads.product(heads.split(made.dropped), g, ("ij", "id", "jd"))
    ga = heads.joined(heads.product(g, heads.value, ("id", "jd", "ij")))
    if made.dropped is not made.weights:
        share = made.dropped.q.item(0) / max(made.weights.q.item(0), 1e-300)
        ga = multiplied(ga, kept(ga.shape, 1 - 1 / max(share, 1.0), len(ga.dims)))
    gz = attention_weights_backward(made.weights, ga, -1)
    inner = scaled(heads.split(gz), scale).plain()
    gq = heads.product(inner, heads.key, ("ij", "je", "ie"))
    if share_tokens(heads.key, heads.value):
        part = aimed(g, heads.value, heads.key, scale)
        gq = limited(added(gq, multiplied(part, unspent(heads.split(made.weights)))))
    gq = heads.joined(gq)
    gk = heads.product(inner, heads.query, ("ij", "ie", "je"))
    _, of_key, of_value = shapes
    return gq, heads.together(gk, of_key), heads.together(gv, of_value), gz


# rules --------------------------------------------------------------------------------------------

_FUSED = (
    "_scaled_dot_product_attention_math", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_fused_attention_overrideable",
)  # fmt: skip


def _options(given: dict[str, Any]) -> dict[str, Any]:
    mask = given.get("attn_mask")
    return {
        "mask": given.get("attn_bias") if mask is None else mask,
        "is_causal": bool(given.get("is_causal", False)),
        "scale": given.get("scale"),
        "grouped": bool(given.get("enable_gqa", False)),
        "dropout": float(given.get("dropout_p", 0.0)),
    }


@forward("scaled_dot_product_attention", *_FUSED)
def sdpa(**given: Any) -> Abstract | list[Abstract]:
    """softmax(scale q k^T + mask) v: `attended`. What fused kernels return beside it has no signal."""
    out = attended(given["query"], given["key"], given["value"], **_options(given))
    rest = [constant(shape, 0.0) for shape in given["shapes"][1:]]
    return [out, *rest] if given["op"] in _FUSED else out


@backward("scaled_dot_product_attention", *_FUSED)
def sdpa_backward(**given: Any) -> dict[str, Abstract]:
    """`attended_backward`, and the gradient of a mask that is added."""
    names = ("query", "key", "value")
    query, key, value = (given[name] for name in names)
    made = note_of(given["output"], Attended)
    if made is None:
        made = note_of(attended(query, key, value, **_options(given)), Attended)
    assert made is not None
    *grads, gz = attended_backward(given["grad"], made, (query.shape, key.shape, value.shape))
    found = dict(zip(names, grads, strict=True))
    for name in ("attn_mask", "attn_bias"):
        mask = given.get(name)
        if mask is not None and mask.known is None:
            found[name] = collected(gz, mask.shape)
    return found
