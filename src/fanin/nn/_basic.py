"""Linear, Embedding, RMSNorm: torch's modules, started by fanin."""

from __future__ import annotations

from math import sqrt

import torch
from torch import nn

from .._fans import Fan
from .._layouts import Spec
from ..distributions import Uniform
from ._base import Block, positive


class Linear(Block, nn.Linear):
    """y = x W^T (+ b): (..., d_in) -> (..., d_out).

    ``weight`` (d_out, d_in) starts as N(0, 2/(d_in + d_out)) cut at 3 sigma, the bias at 0.

    Args:
        d_in: size of the last axis of the input.
        d_out: of the output.
        bias: none by default.
        device, dtype: as in torch.nn.

    Raises:
        InvalidValueError: sizes that are no positive integers.

    Source: Stanford CS336, assignment 1, section 3.4.2; Glorot & Bengio 2010.

    Example:
        >>> import torch
        >>> Linear(3, 5)(torch.zeros(2, 7, 3)).shape
        torch.Size([2, 7, 5])
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        bias: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        positive(d_in=d_in, d_out=d_out)
        super().__init__(d_in, d_out, bias=bias, device=device, dtype=dtype)


class Embedding(Block, nn.Embedding):
    """Row ``ids`` of a table: int64 (...) -> (..., d_model).

    ``weight`` (num_embeddings, d_model) starts as N(0, 1) cut at 3 sigma.

    Args:
        num_embeddings: how many ids there are.
        d_model: length of a row.
        padding_idx: a row that starts at zero and gets no gradient.
        device, dtype: as in torch.nn.

    Raises:
        InvalidValueError: sizes that are no positive integers.

    Source: Stanford CS336, assignment 1, section 3.4.3.

    Example:
        >>> import torch
        >>> Embedding(10, 4)(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 4])
    """

    def __init__(
        self,
        num_embeddings: int,
        d_model: int,
        padding_idx: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        positive(num_embeddings=num_embeddings, d_model=d_model)
        super().__init__(num_embeddings, d_model, padding_idx, device=device, dtype=dtype)


class RMSNorm(Block, nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in float32 at least.

    ``weight`` (d_model,) starts at 1.

    Args:
        d_model: size of the last axis.
        eps: added to the mean square.
        device, dtype: as in torch.nn.

    Raises:
        InvalidValueError: a size that is no positive integer.

    Source: Zhang & Sennrich 2019, equation 4.

    Example:
        >>> import torch
        >>> RMSNorm(4)(torch.full((4,), 3.0)).detach().round()
        tensor([1., 1., 1., 1.])
    """

    def __init__(
        self,
        d_model: int,
        eps: float = 1e-5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        positive(d_model=d_model)
        super().__init__(d_model, eps=eps, device=device, dtype=dtype)


class LayerNorm(Block, nn.LayerNorm):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis.

    Args:
        d_model: size of the last axis.
        eps: added to the variance.
        bias: whether there is one.
        device, dtype: as in torch.nn.

    Raises:
        InvalidValueError: a size that is no positive integer.

    Source: Ba, Kiros & Hinton 2016.

    Example:
        >>> import torch
        >>> LayerNorm(2)(torch.tensor([1.0, 3.0])).detach().round()
        tensor([-1.,  1.])
    """

    def __init__(
        self,
        d_model: int,
        eps: float = 1e-5,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        positive(d_model=d_model)
        super().__init__(d_model, eps=eps, bias=bias, device=device, dtype=dtype)


def norm(
    kind: str,
    d_model: int,
    *,
    eps: float = 1e-5,
    bias: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """``kind`` "layer" or "rms"."""
    if kind == "rms":
        return RMSNorm(d_model, eps, device=device, dtype=dtype)
    return LayerNorm(d_model, eps, bias, device=device, dtype=dtype)


def projection(layer: nn.Linear, role: str, nonlinearity: str | None = None) -> Spec:
    """The weight of a linear layer with a role; torch's default is that of any nn.Linear.

    >>> projection(Linear(4, 2), "q").role
    'q'
    """
    bound = 1 / sqrt(layer.in_features)
    return Spec(
        role,
        Fan(layer.in_features, layer.out_features),
        default=Uniform(-bound, bound),
        nonlinearity=nonlinearity,
    )
