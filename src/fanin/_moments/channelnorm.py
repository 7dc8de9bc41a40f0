"""Norms with one weight and bias a channel: batch, instance and group norm (see `norm`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .algebra import plus, times
from .arithmetic import Gradients
from .domain import Abstract, averaged, constant, full, measured, once, reshaped
from .elementary import floor_of
from .gaussian import pointwise
from .images import regrouped, restored
from .kin import certain
from .norm import affine, standardised, to_affine
from .registry import backward, forward


def per_channel(weight: Abstract | None, rank: int) -> Abstract | None:
    """A vector over axis 1 as it broadcasts to a tensor of that rank."""
    return None if weight is None else _per_channel(weight, rank)


@once
def _per_channel(weight: Abstract, rank: int) -> Abstract:
    return Abstract((*weight.dims, *((),) * (rank - 2)), weight.mean, weight.q, noise=weight.noise)


# batch and instance norm --------------------------------------------------------------------------


@once
def _inverse_root(variance: Abstract, eps: float) -> Abstract:
    value = certain(variance)
    if value is not None:  # as it starts, and a number hides no function of x
        return constant(variance.shape, 1 / float(np.sqrt(value + eps)))
    if variance.known is not None:
        return measured(1 / np.sqrt(variance.known + eps)).plain()
    low = floor_of(variance)
    return pointwise(variance, lambda z: 1 / np.sqrt(np.maximum(z, low) + eps)).plain()


@once
def _by_running(x: Abstract, mean: Abstract, scale: Abstract) -> Abstract:
    return times(plus(x, mean, 1.0, -1.0), scale)


class Channels(NamedTuple):
    """A norm with one weight and bias a channel.

    Args:
        dims: over which it normalises; None where running statistics take their place.
        shift: the running mean, as it broadcasts.
        scale: 1 / sqrt(running variance + eps), as it broadcasts.
        eps: is added to variances.
    """

    dims: list[int] | None
    shift: Abstract | None
    scale: Abstract | None
    eps: float

    @classmethod
    def of(
        cls, x: Abstract, dims: list[int] | None, mean: Abstract | None,
        variance: Abstract | None, eps: float,
    ) -> Channels:  # fmt: skip
        """By ``dims``, or by running statistics where those are None and there are any."""
        if dims is not None or mean is None or variance is None:
            over = [d for d in range(len(x.dims)) if d != 1] if dims is None else dims
            return cls(over, None, None, eps)
        inverse = per_channel(_inverse_root(variance, eps), len(x.dims))
        return cls(None, per_channel(mean, len(x.dims)), inverse, eps)

    def normal(self, x: Abstract) -> Abstract:
        """What is multiplied by the weight."""
        if self.dims is not None:
            return standardised(x, self.dims, self.eps).out
        assert self.shift is not None
        assert self.scale is not None
        return _by_running(x, self.shift, self.scale)

    def forward(self, x: Abstract, weight: Abstract | None, bias: Abstract | None) -> Abstract:
        """w x^ + b."""
        rank = len(x.dims)
        return affine(self.normal(x), per_channel(weight, rank), per_channel(bias, rank))

    def backward(
        self, grad: Abstract, x: Abstract, weight: Abstract | None, bias: Abstract | None
    ) -> Gradients:
        """`Standardised.backward` of g w, or g w times the scale; sums of g x^ and of g."""
        rank = len(x.dims)
        w = per_channel(weight, rank)
        inner = grad if w is None else times(grad, w)
        if self.dims is not None:
            made = standardised(x, self.dims, self.eps)
            return {"x": made.backward(inner), **to_affine(grad, made.out, weight, bias, rank - 2)}
        assert self.scale is not None
        found = to_affine(grad, self.normal(x), weight, bias, rank - 2)
        return {"x": times(inner, self.scale), **found}


_BATCH_NORMS = (
    "native_batch_norm", "_native_batch_norm_legit", "_batch_norm_impl_index", "cudnn_batch_norm",
    "miopen_batch_norm", "_native_batch_norm_legit_no_training", "_batch_norm_with_update",
)  # fmt: skip


def _batch(
    x: Abstract,
    training: bool,
    mean: Abstract | None,
    variance: Abstract | None,
    eps: float,
) -> Channels:
    dims = [d for d in range(len(x.dims)) if d != 1] if training else None
    return Channels.of(x, dims, mean, variance, eps)


@forward("batch_norm")
def batch_norm(
    x: Abstract, *, weight: Abstract | None = None, bias: Abstract | None = None,
    running_mean: Abstract | None = None, running_var: Abstract | None = None,
    training: bool = False, eps: float = 1e-5,
) -> Abstract:  # fmt: skip
    """In training over all axes but the channels', of this batch alone; else by the running stats."""
    return _batch(x, training, running_mean, running_var, eps).forward(x, weight, bias)


@backward("batch_norm", *_BATCH_NORMS)
def batch_norm_backward(
    grad: Abstract, x: Abstract, *, weight: Abstract | None = None, bias: Abstract | None = None,
    running_mean: Abstract | None = None, running_var: Abstract | None = None,
    training: bool = False, eps: float = 1e-5,
) -> Gradients:  # fmt: skip
    """`Channels.backward`."""
    return _batch(x, training, running_mean, running_var, eps).backward(grad, x, weight, bias)


@forward(*_BATCH_NORMS)
def batch_norms(
    x: Abstract, *, shapes: Sequence[Sequence[int]], weight: Abstract | None = None,
    bias: Abstract | None = None, running_mean: Abstract | None = None,
    running_var: Abstract | None = None, training: bool = False, eps: float = 1e-5,
) -> list[Abstract]:  # fmt: skip
    """`batch_norm`, and what its own backward op reads: the batch's mean and inverse std."""
    out = _batch(x, training, running_mean, running_var, eps).forward(x, weight, bias)
    m = averaged(x, range(len(x.dims)))
    spread = max(x.second_moment - float(m.q), 0.0) + eps
    stats = [(float(m.q), float(m.mean)), (1 / spread, spread**-0.5), (0.0, 0.0), (0.0, 0.0)]
    return [
        out,
        *(full(shape, *moments) for shape, moments in zip(shapes[1:], stats, strict=False)),
    ]


def _instance(
    x: Abstract,
    own: bool,
    mean: Abstract | None,
    variance: Abstract | None,
    eps: float,
) -> Channels:
    return Channels.of(x, list(range(2, len(x.dims))) if own else None, mean, variance, eps)


@forward("instance_norm")
def instance_norm(
    x: Abstract, *, weight: Abstract | None, bias: Abstract | None, running_mean: Abstract | None,
    running_var: Abstract | None, use_input_stats: bool, eps: float,
) -> Abstract:  # fmt: skip
    """Over each channel's own positions, or by the running stats."""
    return _instance(x, use_input_stats, running_mean, running_var, eps).forward(x, weight, bias)


@backward("instance_norm")
def instance_norm_backward(
    grad: Abstract, x: Abstract, *, weight: Abstract | None, bias: Abstract | None,
    running_mean: Abstract | None, running_var: Abstract | None, use_input_stats: bool, eps: float,
) -> Gradients:  # fmt: skip
    """`Channels.backward`."""
    kind = _instance(x, use_input_stats, running_mean, running_var, eps)
    return kind.backward(grad, x, weight, bias)


# group and weight norm ----------------------------------------------------------------------------


def _grouped(x: Abstract, groups: int) -> tuple[Abstract, list[int]]:
    shape = x.shape
    wide = regrouped(x, (shape[0], groups, shape[1] // groups, *shape[2:]))
    return wide, list(range(2, len(shape) + 1))


@forward("group_norm")
def group_norm(
    x: Abstract, *, num_groups: int, weight: Abstract | None = None, bias: Abstract | None = None,
    eps: float = 1e-5,
) -> Abstract:  # fmt: skip
    """Over the channels of a group and all positions (Wu & He 2018)."""
    wide, dims = _grouped(x, num_groups)
    normal = restored(standardised(wide, dims, eps).out, wide, x)
    return affine(normal, per_channel(weight, len(x.dims)), per_channel(bias, len(x.dims)))


@backward("group_norm")
def group_norm_backward(
    grad: Abstract, x: Abstract, *, num_groups: int, weight: Abstract | None = None,
    bias: Abstract | None = None, eps: float = 1e-5,
) -> Gradients:  # fmt: skip
    """`Standardised.backward` of g w over each group."""
    rank = len(x.dims)
    w = per_channel(weight, rank)
    inner = grad if w is None else times(grad, w)
    wide, dims = _grouped(x, num_groups)
    made = standardised(wide, dims, eps)
    normal = restored(made.out, wide, x)
    g, _ = _grouped(inner, num_groups)
    back = restored(made.backward(g), g, inner)
    return {"x": back, **to_affine(grad, normal, weight, bias, rank - 2)}


@forward("native_group_norm")
def native_group_norm(
    x: Abstract, *, shapes: Sequence[Sequence[int]], weight: Abstract | None, bias: Abstract | None,
    group: int, eps: float,
) -> list[Abstract]:  # fmt: skip
    """The norm, and each group's mean and inverse std."""
    wide, dims = _grouped(x, group)
    out = group_norm(x, num_groups=group, weight=weight, bias=bias, eps=eps)
    scale = reshaped(standardised(wide, dims, eps).scale, (x.shape[0], group))
    return [out, averaged(wide, dims), scale][: len(shapes)]


@backward("native_group_norm")
def native_group_norm_backward(
    grad: Abstract,
    x: Abstract,
    *,
    weight: Abstract | None,
    bias: Abstract | None,
    group: int,
    eps: float,
) -> Gradients:
    """As `group_norm`."""
    return group_norm_backward(grad, x, num_groups=group, weight=weight, bias=bias, eps=eps)
