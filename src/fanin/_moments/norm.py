"""Norms: layer, RMS, batch, group, instance and weight norm, forward and backward.

Over n elements with centre c = x - mean(x) and v = E mean(c^2),

    q_out = (q - E m m') / sqrt((v + eps) (v' + eps)),

exact within a row for any n, since a row's own mean and mean square are exactly what is divided
out; each stratum of rows has its own v, segments along the normalised axes share one. Pairs of rows
lose a factor 1 - (1 - rho^2) / (2n) (`rows.dissimilarity`).
Source of the backward rule: Ba, Kiros & Hinton 2016; the gradient loses its components along 1 and x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .algebra import plus, times, unbroadcast
from .arithmetic import Gradients
from .domain import Abstract, averaged, constant, multiplied, once, scaled
from .images import normed
from .registry import backward, forward
from .rows import centred, freedom, levelled, levelled_backward

SMALLEST = 1.1920929e-07  # float32's epsilon, rms_norm's default


class Standardised(NamedTuple):
    """A tensor without its rows' means and levels.

    Args:
        out: (x - m) / sqrt(v + eps).
        scale: 1 / sqrt(v + eps).
        x: the tensor.
        dims: a row's axes.
        eps: is added to the level.
        centre: whether rows' means are taken out.
    """

    out: Abstract
    scale: Abstract
    x: Abstract
    dims: Sequence[int]
    eps: float
    centre: bool

    def backward(self, grad: Abstract) -> Abstract:
        """(g - mean g - x^ mean(g x^)) / sqrt(v + eps): `rows.levelled_backward`."""
        g = centred(grad.plain(), self.dims) if self.centre else grad
        share = max(0.0, 1 - self.eps * self.scale.second_moment)
        free = freedom(self.out if self.centre else centred(self.x.plain(), self.dims), self.dims)
        back = levelled_backward(g, self.out, self.scale, self.dims, share=share, free=free)
        return normed(back, grad, self.scale, self.dims, centre=self.centre)


def standardised(
    x: Abstract, dims: Sequence[int], eps: float, *, centre: bool = True
) -> Standardised:
    """(x - m) / sqrt(v + eps) over the axes ``dims``."""
    return _standardised(x, tuple(dims), eps, centre)


@once
def _standardised(x: Abstract, dims: tuple[int, ...], eps: float, centre: bool) -> Standardised:
    c = centred(x, dims) if centre else x.plain()
    out, scale = levelled(
        c, dims, lambda v: 1 / np.sqrt(np.maximum(v + eps, 1e-300)), common=not centre
    )
    out.noise = x.noise * min(1.0, eps * scale.second_moment) ** 2
    out = normed(out, x, scale, dims, centre=centre)
    return Standardised(out, scale, x, dims, eps, centre)


def affine(x: Abstract, weight: Abstract | None, bias: Abstract | None) -> Abstract:
    """w x + b."""
    out = x if weight is None else times(x, weight)
    return out if bias is None else plus(out, bias)


def to_affine(
    grad: Abstract, normal: Abstract, weight: Abstract | None, bias: Abstract | None, rank: int
) -> Gradients:
    """Gradients of w and b, which broadcast with ``rank`` axes to the right of their own."""
    found = {}
    for name, x in (("weight", weight), ("bias", bias)):
        if x is not None:
            g = grad if name == "bias" else multiplied(grad.plain(), normal.plain())
            total = unbroadcast(g, (*x.shape, *(1,) * rank))
            found[name] = Abstract(
                total.dims[: len(x.dims)], total.mean, total.q, noise=total.noise
            )
    return found


# layer and RMS norm -------------------------------------------------------------------------------


def _last(x: Abstract, normalized_shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(range(len(x.dims) - len(normalized_shape), len(x.dims)))


@forward("layer_norm")
def layer_norm(
    x: Abstract, *, normalized_shape: Sequence[int], weight: Abstract | None = None,
    bias: Abstract | None = None, eps: float = 1e-5,
) -> Abstract:  # fmt: skip
    """(x - mean) / sqrt(var + eps) over the last axes, times w, plus b."""
    return affine(standardised(x, _last(x, normalized_shape), eps).out, weight, bias)


@backward("layer_norm", "native_layer_norm")
def layer_norm_backward(
    grad: Abstract, x: Abstract, *, normalized_shape: Sequence[int], weight: Abstract | None = None,
    bias: Abstract | None = None, eps: float = 1e-5,
) -> Gradients:  # fmt: skip
    """`Standardised.backward` of g w; sums of g x^ and of g."""
    dims = _last(x, normalized_shape)
    inner = grad if weight is None else times(grad, weight)
    made = standardised(x, dims, eps)
    return {"x": made.backward(inner), **to_affine(grad, made.out, weight, bias, 0)}


@forward("native_layer_norm")
def native_layer_norm(
    x: Abstract, *, normalized_shape: Sequence[int], weight: Abstract | None = None,
    bias: Abstract | None = None, eps: float = 1e-5,
) -> list[Abstract]:  # fmt: skip
    """The norm, the mean and the inverse root of the variance."""
    dims = _last(x, normalized_shape)
    mean = averaged(x, dims, keep=True)
    made = standardised(x, dims, eps)
    return [affine(made.out, weight, bias), mean, made.scale]


@forward("rms_norm")
def rms_norm(
    x: Abstract,
    normalized_shape: Sequence[int],
    weight: Abstract | None = None,
    eps: float | None = None,
) -> Abstract:
    """x / sqrt(mean(x^2) + eps) over the last axes, times w (Zhang & Sennrich 2019)."""
    dims = _last(x, normalized_shape)
    eps = SMALLEST if eps is None else eps
    return affine(standardised(x, dims, eps, centre=False).out, weight, None)


@backward("rms_norm", "_fused_rms_norm")
def rms_norm_backward(
    grad: Abstract, x: Abstract, *, normalized_shape: Sequence[int], weight: Abstract | None = None,
    eps: float | None = None,
) -> Gradients:  # fmt: skip
    """`Standardised.backward` of g w without the mean; the sum of g x^."""
    dims = _last(x, normalized_shape)
    eps = SMALLEST if eps is None else eps
    inner = grad if weight is None else times(grad, weight)
    made = standardised(x, dims, eps, centre=False)
    return {"x": made.backward(inner), **to_affine(grad, made.out, weight, None, 0)}


@forward("_fused_rms_norm")
def fused_rms_norm(
    x: Abstract,
    normalized_shape: Sequence[int],
    weight: Abstract | None = None,
    eps: float | None = None,
) -> list[Abstract]:
    """The norm and the inverse root of the mean square."""
    small = SMALLEST if eps is None else eps
    made = standardised(x, _last(x, normalized_shape), small, centre=False)
    return [affine(made.out, weight, None), made.scale]


# weight norm --------------------------------------------------------------------------------------


def _all_but(v: Abstract, dim: int) -> tuple[int, ...]:
    rank = len(v.dims)
    return tuple(d for d in range(rank) if dim == -1 or d != dim % rank)


@forward("_weight_norm")
def weight_norm(v: Abstract, g: Abstract, dim: int = 0) -> Abstract:
    """g v / |v|, |v| over all axes but ``dim`` (Salimans & Kingma 2016)."""
    dims = _all_but(v, dim)
    n = math.prod(v.shape[d] for d in dims)
    return times(scaled(standardised(v, dims, 0.0, centre=False).out, n**-0.5), g)


@forward("_weight_norm_interface")
def weight_norm_interface(
    v: Abstract, g: Abstract, shapes: Sequence[Sequence[int]], dim: int = 0
) -> list[Abstract]:
    """The weight and |v|."""
    total = v.second_moment * math.prod(v.shape[d] for d in _all_but(v, dim))
    return [weight_norm(v, g, dim), *(constant(tuple(s), math.sqrt(total)) for s in shapes[1:])]


@backward("_weight_norm", "_weight_norm_interface")
def weight_norm_backward(grad: Abstract, v: Abstract, g: Abstract, dim: int = 0) -> Gradients:
    """For v the part of grad g across v, over |v|; for g the sum of grad v / |v|."""
    dims = _all_but(v, dim)
    n = math.prod(v.shape[d] for d in dims)
    made = standardised(v, dims, 0.0, centre=False)
    direction = scaled(made.out, n**-0.5)
    inner = scaled(multiplied(grad.plain(), g.plain()), n**-0.5)
    return {
        "v": made.backward(inner),
        "g": unbroadcast(multiplied(grad.plain(), direction.plain()), g.shape),
    }
