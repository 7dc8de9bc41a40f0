"""What blocks do otherwise while `export_onnx` traces them, so that every runtime agrees.

ONNX's attention gives the mean of v, not zeros, for a query that attends to nothing, and
onnxruntime's `Attention` does not broadcast a mask along queries: both are written out here.
From opset 23 there are operators for attention and rotary embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

NATIVE = 23  # first opset with Attention, RotaryEmbedding and RMSNormalization


class _State:
    """What is being exported."""

    opset: int | None = None


@contextmanager
def exporting(opset: int) -> Iterator[None]:
    """Blocks that run inside are being traced for ``opset``."""
    before, _State.opset = _State.opset, opset
    try:
        yield
    finally:
        _State.opset = before


def active() -> bool:
    """Whether an export is being traced."""
    return _State.opset is not None


def native() -> bool:
    """Whether it is for an opset that has operators for what transformers do."""
    return _State.opset is not None and _State.opset >= NATIVE


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    causal: bool,
    scale: float | None,
    groups: bool,
) -> Tensor:
    """As `functional.attention`, in operators whose meaning all runtimes share."""
    # Half a second to import, for exports alone.
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # noqa: PLC0415

    queries, keys = q.shape[-2], k.shape[-2]
    # With fewer queries than keys, operators do not agree on which of them is the last.
    if mask is None and (not causal or statically_known_true(queries == keys)):
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=scale, enable_gqa=groups
        )
    if causal:
        last = torch.arange(queries, device=q.device).unsqueeze(-1) + (keys - queries)
        seen = torch.arange(keys, device=q.device) <= last
        mask = seen if mask is None else mask
        mask = mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -torch.inf)
    assert mask is not None
    some = (mask if mask.dtype == torch.bool else ~mask.isneginf()).any(-1, keepdim=True)
    whole = mask.expand(*mask.shape[:-2], queries, keys)
    y = F.scaled_dot_product_attention(q, k, v, whole, scale=scale, enable_gqa=groups)
    return torch.where(some, y, torch.zeros((), dtype=y.dtype, device=y.device))


def rotary(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None, *, interleaved: bool
) -> Tensor:
    """ONNX's RotaryEmbedding of x (B, heads, T, d); tables (max_len, d/2)."""
    length = x.shape[-2]
    if positions is None:
        positions = torch.arange(length, device=x.device)
    positions = positions.reshape(-1, length).expand(x.shape[0], length)
    return torch.onnx.ops.rotary_embedding(x, cos, sin, positions, interleaved=interleaved)
