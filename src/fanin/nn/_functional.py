"""Functions: attention, softmax, SiLU, cross-entropy, and a module called with given weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from einops import einsum, reduce
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from .._errors import InvalidValueError, closest
from . import _exporting
from ._base import names_of, under_own_names

Drop = Callable[[Tensor], Tensor]


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x), also known as swish; any shape.

    Source: Hendrycks & Gimpel 2016; Elfwing et al. 2017.

    Example:
        >>> import torch
        >>> silu(torch.tensor([0.0, 1.0]))
        tensor([0.0000, 0.7311])
    """
    return F.silu(x)


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """exp(x_i - max x) / sum_j exp(x_j - max x) along ``dim``: no overflow at any size.

    A row that is -inf throughout gives zeros.

    Example:
        >>> import torch
        >>> softmax(torch.tensor([1000.0, 1000.0]))
        tensor([0.5000, 0.5000])
    """
    top = x.amax(dim, keepdim=True).detach()
    weights = torch.exp(x - torch.where(top.isneginf(), 0.0, top))
    total = weights.sum(dim, keepdim=True)
    return weights / torch.where(total == 0, 1.0, total)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over all leading axes of logsumexp(o) - o[target].

    Args:
        logits: (..., vocabulary), unnormalised.
        targets: (...), int64 class indices.

    Raises:
        InvalidValueError: shapes that do not belong together.

    Example:
        >>> import torch
        >>> round(float(cross_entropy(torch.zeros(2, 3, 10), torch.zeros(2, 3, dtype=torch.int64))), 4)
        2.3026
    """
    if logits.shape[:-1] != targets.shape:
        raise InvalidValueError(
            f"logits of shape {list(logits.shape)} want targets of shape {list(logits.shape[:-1])}, "
            f"got {list(targets.shape)}."
        )
    chosen = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    losses = torch.logsumexp(logits, -1) - chosen
    return reduce(losses, "... -> ", "mean")


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    *,
    scale: float | None = None,
    dropout: Drop | None = None,
    need_weights: bool = False,
) -> Any:
    """softmax(q k^T / sqrt(d) + mask) v.

    Args:
        q: (..., T, d).
        k: (..., S, d). With an axis of heads before S, k and v may have fewer heads than q, by a
            whole factor: grouped queries share them.
        v: (..., S, dv).
        mask: broadcasts against (..., T, S). Bool: True = attend. Float: added to the logits.
            A row that attends to nothing gives zeros, and finite gradients.
        causal: query i attends to keys up to i + S - T: the last query sees all.
        scale: of the logits; 1/sqrt(d) if None.
        dropout: applied to the weights.
        need_weights: also return them, (..., T, S), as they are before dropout.

    Returns:
        (..., T, dv), and the weights if asked for; they are not computed otherwise.

    Raises:
        InvalidValueError: shapes that do not belong together, a mask of integers.

    Source: Vaswani et al. 2017, equation 1; Ainslie et al. 2023 for grouped queries.

    Example:
        >>> import torch
        >>> q, k, v = torch.zeros(2, 3, 8), torch.zeros(2, 5, 8), torch.ones(2, 5, 4)
        >>> attention(q, k, v).shape
        torch.Size([2, 3, 4])
        >>> float(attention(q, k, v, mask=torch.zeros(3, 5, dtype=torch.bool)).sum())
        0.0
    """
    _check(q, k, v, mask)
    mask = None if mask is None else torch.atleast_2d(mask)
    if dropout is not None or need_weights:
        return _written_out(q, k, v, mask, causal, scale, dropout, need_weights)
    groups = q.dim() > 2 and q.shape[-3] != k.shape[-3]
    if _exporting.active():
        return _exporting.attention(q, k, v, mask, causal=causal, scale=scale, groups=groups)
    if causal and (mask is not None or q.shape[-2] != k.shape[-2]):
        mask, causal = with_causal(mask, q.shape[-2], k.shape[-2], q.device), False
    return F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=groups
    )


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    fits = q.dim() == k.dim() == v.dim() >= 2 and q.shape[-1] == k.shape[-1]
    fits = fits and k.shape[:-1] == v.shape[:-1]
    if fits and q.shape[:-2] != k.shape[:-2]:
        heads, shared = (q.shape[-3], k.shape[-3]) if q.dim() > 2 else (1, 1)
        fits = q.shape[:-3] == k.shape[:-3] and shared > 0 and heads % shared == 0
    if not fits:
        raise InvalidValueError(
            "attention wants q (..., T, d), k (..., S, d), v (..., S, dv) with the same leading axes, heads of "
            f"q a multiple of those of k; got {list(q.shape)}, {list(k.shape)}, {list(v.shape)}."
        )
    if mask is not None and mask.dtype != torch.bool and not mask.is_floating_point():
        raise InvalidValueError(
            f"mask must be bool (True = attend) or float (added to the logits), got {mask.dtype}. "
            "For 0/1 integers pass mask.bool()."
        )


def with_causal(mask: Tensor | None, queries: int, keys: int, device: torch.device) -> Tensor:
    """``mask`` and, where it lets pass, only keys up to the query's own position."""
    seen = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    if mask is None:
        return seen
    return mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -torch.inf)


def _written_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    dropout: Drop | None,
    need_weights: bool,
) -> Any:
    """The formula step by step, for when the weights themselves are wanted or thinned out."""
    if q.dim() > 2 and q.shape[-3] != k.shape[-3]:
        groups = q.shape[-3] // k.shape[-3]
        k, v = k.repeat_interleave(groups, -3), v.repeat_interleave(groups, -3)
    q = q * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    logits = einsum(q, k, "... t d, ... s d -> ... t s")
    if causal:
        mask = with_causal(mask, q.shape[-2], k.shape[-2], q.device)
    weights = _masked_softmax(logits, mask)
    y = einsum(dropout(weights) if dropout else weights, v, "... t s, ... s d -> ... t d")
    return (y, weights) if need_weights else y


def _masked_softmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the keys that the mask lets pass; zeros, and zero gradients, where there are none."""
    if mask is None:
        return torch.softmax(logits, -1)
    allowed = mask if mask.dtype == torch.bool else ~mask.isneginf()
    logits = logits if mask.dtype == torch.bool else logits + mask.masked_fill(~allowed, 0.0)
    some = allowed.any(-1, keepdim=True)
    weights = torch.softmax(logits.masked_fill(~allowed & some, -torch.inf), -1)
    return weights.masked_fill(~some, 0.0)


def call(module: nn.Module, weights: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """What ``module`` would return if its parameters were ``weights``.

    The module is not changed, and may have been built on the meta device: its own parameters are
    never looked at, its own buffers are where ``weights`` has none.

    Args:
        module: any nn.Module.
        weights: a tensor for every parameter, by its name; blocks of `fanin.nn` also understand
            the names of torch.nn and of transformers.
        args, kwargs: passed to the module.

    Raises:
        InvalidValueError: names of parameters that are missing, or that the module does not have.

    Example:
        >>> import torch
        >>> from fanin.nn import Linear
        >>> call(Linear(2, 1, device="meta"), {"weight": torch.ones(1, 2)}, torch.ones(3, 2)).shape
        torch.Size([3, 1])
    """
    given = under_own_names(module, weights)
    wanted = dict(module.named_parameters(remove_duplicate=False))
    known = {*wanted, *dict(module.named_buffers())}
    if strange := given.keys() - known:
        raise InvalidValueError(
            f"{type(module).__name__} has no {names_of(strange)}.{closest(min(strange), known)}"
        )
    tied = {id(p): given[n] for n, p in wanted.items() if n in given}
    if missing := {n for n, p in wanted.items() if id(p) not in tied}:
        raise InvalidValueError(f"no weights for {names_of(missing)} of {type(module).__name__}.")
    whole = {n: tied[id(p)] for n, p in wanted.items()} | given
    return functional_call(module, whole, args, kwargs, tie_weights=False)
