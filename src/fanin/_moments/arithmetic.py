"""Sums, products and other functions of two tensors or a tensor and a number; dropout; gates.

Operands are independent unless they are functions of one tensor, or one of them is a statistic of
the other's rows (`algebra`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeGuard

import numpy as np

from .._activations import nonlinearity
from .algebra import gradient_scaled, plus, product_gradients, through, times, unbroadcast
from .bivariate import Function2, joint, through_either
from .domain import (
    Abstract,
    aligned,
    concatenated,
    cut,
    full,
    mean_over,
    merge_dim,
    multiplied,
    uniform,
)
from .elementary import root
from .gaussian import pointwise
from .kin import Operand, certain
from .masks import additive, in_blocks
from .notes import Larger, Reduction, linear, note_of
from .registry import backward, forward
from .rows import with_mean
from .strata import Array

Gradients = dict[str, Abstract]


def returned(**gradients: tuple[Operand | None, Abstract | None]) -> Gradients:
    """Gradients summed to the shapes of the tensors they belong to; numbers get none."""
    return {
        name: unbroadcast(grad, x.shape)
        for name, (x, grad) in gradients.items()
        if isinstance(x, Abstract) and grad is not None
    }


# sums ---------------------------------------------------------------------------------------------


@forward("add", "_unsafe_add")
def add(x: Operand, other: Operand, alpha: float = 1.0) -> Abstract:
    """x + alpha y; a known mask of large negative numbers marks what is allowed instead."""
    return plus(_bounded(x, 1.0), _bounded(other, float(alpha)), 1.0, float(alpha))


def _bounded(x: Operand, sign: float) -> Operand:
    return additive(x, sign) if isinstance(x, Abstract) else x


@backward("add", "_unsafe_add")
def add_backward(grad: Abstract, x: Operand, other: Operand, alpha: float = 1.0) -> Gradients:
    """g and alpha g, summed over what was broadcast."""
    return returned(x=(x, grad), other=(other, gradient_scaled(grad, float(alpha))))


@forward("sub", "subtract")
def sub(x: Operand, other: Operand, alpha: float = 1.0) -> Abstract:
    """x - alpha y; x - max(x, y) = -max(y - x, 0), as in a softmax that is summed up step by step."""
    note = note_of(other, Larger) if isinstance(other, Abstract) and alpha == 1 else None
    rest = note.other(x) if note is not None and isinstance(x, Abstract) else None
    if rest is not None:
        return pointwise(plus(rest, x, 1.0, -1.0).plain(), _lacking)
    return add(x, other, -float(alpha))


def _lacking(z: Array) -> Array:
    return -np.maximum(z, 0.0)


@backward("sub", "subtract")
def sub_backward(grad: Abstract, x: Operand, other: Operand, alpha: float = 1.0) -> Gradients:
    """g and -alpha g."""
    return add_backward(grad, x, other, -float(alpha))


@forward("rsub")
def rsub(x: Abstract, other: Operand, alpha: float = 1.0) -> Abstract:
    """y - alpha x."""
    return add(other, x, -float(alpha))


@backward("rsub")
def rsub_backward(grad: Abstract, x: Abstract, other: Operand, alpha: float = 1.0) -> Gradients:
    """-alpha g and g."""
    return returned(x=(x, gradient_scaled(grad, -float(alpha))), other=(other, grad))


# products -----------------------------------------------------------------------------------------


@forward("mul", "multiply")
def mul(x: Operand, other: Operand) -> Abstract:
    """x y: second moments multiply; by a known mask block by block."""
    return times(*_in_blocks(x, other))


def _in_blocks(x: Operand, other: Operand) -> tuple[Operand, Operand]:
    if isinstance(x, Abstract) and isinstance(other, Abstract):
        return (x, in_blocks(other)) if x.known is None else (in_blocks(x), other)
    return x, other


@backward("mul", "multiply")
def mul_backward(grad: Abstract, x: Operand, other: Operand) -> Gradients:
    """g y and g x; of a norm written out, `algebra.product_gradients`."""
    x, other = _in_blocks(x, other)
    if isinstance(x, Abstract) and isinstance(other, Abstract):
        to_x, to_other = product_gradients(grad, x, other)
        return returned(x=(x, to_x), other=(other, to_other))
    return returned(x=(x, _by(grad, other)), other=(other, _by(grad, x)))


def _by(grad: Abstract, x: Operand) -> Abstract:
    return through(grad, x) if isinstance(x, Abstract) else gradient_scaled(grad, float(x))


def inverse(x: Operand) -> Operand:
    """1 / x."""
    return root(x, "reciprocal") if isinstance(x, Abstract) else 1.0 / float(x)


@forward("div", "divide", "true_divide")
def div(x: Operand, other: Operand, rounding_mode: str | None = None) -> Abstract:
    """x / y, rounded down or towards zero where asked."""
    if rounding_mode is not None:
        return joint(x, other, _floor_divided if rounding_mode == "floor" else _cut_off)
    return times(x, inverse(other))


@backward("div", "divide", "true_divide")
def div_backward(
    grad: Abstract, x: Operand, other: Operand, output: Abstract, rounding_mode: str | None = None
) -> Gradients:
    """g / y and -g x / y^2; nothing through a rounding; `_to_shares` where y is the sum of x."""
    if rounding_mode is not None:
        return {}
    over = inverse(other)
    dims = _summed_along(x, other)
    if dims and isinstance(x, Abstract):
        return returned(x=(x, _by(_to_shares(grad, output, dims), over)))
    if not isinstance(other, Abstract) or not isinstance(over, Abstract):
        return returned(x=(x, _by(grad, over)))
    if isinstance(x, Abstract):
        to_x, to_level = product_gradients(grad, x, over)
        if to_x is None or to_level is None:
            return returned(x=(x, to_x))
    slope = through(grad, times(output, over))
    return returned(x=(x, _by(grad, over)), other=(other, gradient_scaled(slope, -1.0)))


def _summed_along(x: Operand, total: Operand) -> list[int]:
    """The axes of which ``total`` is the sum of x, kept with length 1."""
    note = note_of(total, Reduction) if isinstance(total, Abstract) else None
    if note is None or not isinstance(x, Abstract) or note.of is not x or note.centred:
        return []
    assert isinstance(total, Abstract)
    if len(total.dims) != len(x.dims) or linear(note.f) != (note.count, 0.0):
        return []
    return [d for d, (n, m) in enumerate(zip(x.shape, total.shape, strict=True)) if m == 1 < n]


def _to_shares(grad: Abstract, shares: Abstract, dims: Sequence[int]) -> Abstract:
    """g_i - sum_k g_k p_k of shares p that sum to 1, as a softmax's gradient has it.

    With E p = 1/n: G - 2 mean_k G + sum_kl G_kl E p_k p_l.
    """
    g, p = aligned([grad.plain(), shares.plain()])
    n = math.prod(g.shape[d] for d in dims)
    centred = with_mean(g, dims, 1.0, -1.0)
    met = mean_over(Abstract(g.dims, g.mean, g.q * (n * n * p.q - 1.0)), dims)
    return Abstract(g.dims, centred.mean, centred.q + met, noise=grad.noise)


@forward("addcmul")
def addcmul(x: Abstract, tensor1: Abstract, tensor2: Abstract, value: float = 1.0) -> Abstract:
    """x + value t1 t2."""
    return plus(x, times(tensor1, tensor2), 1.0, float(value))


@backward("addcmul")
def addcmul_backward(
    grad: Abstract, x: Abstract, tensor1: Abstract, tensor2: Abstract, value: float = 1.0
) -> Gradients:
    """g, value g t2, value g t1."""
    inner = gradient_scaled(grad, float(value))
    return returned(
        x=(x, grad), tensor1=(tensor1, _by(inner, tensor2)), tensor2=(tensor2, _by(inner, tensor1))
    )


@forward("addcdiv")
def addcdiv(x: Abstract, tensor1: Abstract, tensor2: Abstract, value: float = 1.0) -> Abstract:
    """x + value t1 / t2."""
    return plus(x, div(tensor1, tensor2), 1.0, float(value))


@backward("addcdiv")
def addcdiv_backward(
    grad: Abstract, x: Abstract, tensor1: Abstract, tensor2: Abstract, value: float = 1.0
) -> Gradients:
    """g; those of t1 / t2 times value."""
    inner = div_backward(
        gradient_scaled(grad, float(value)), tensor1, tensor2, div(tensor1, tensor2)
    )
    return {**returned(x=(x, grad)), "tensor1": inner["x"], "tensor2": inner["other"]}


@forward("lerp")
def lerp(x: Abstract, end: Abstract, weight: Operand) -> Abstract:
    """(1 - w) x + w end; exact also where w is a tensor independent of both."""
    if not isinstance(weight, Abstract):
        return plus(x, end, 1.0 - float(weight), float(weight))
    return mixed(weight, end, x)


def mixed(w: Abstract, a: Operand, b: Operand) -> Abstract:
    """w a + (1 - w) b: of one tensor's functions exact; else E w (1 - w') links the two terms."""
    rest = plus(1.0, w, 1.0, -1.0)
    first, second = times(w, a), times(rest, b)
    out = plus(first, second)
    if out.chain is not None:
        return out
    # Cov(w, 1 - w') links the terms, which a sum of independent ones lacks; segments averaged.
    linked = -2 * _level(a) * _level(b)
    if not linked:
        return out
    wide, spread = aligned([out, Abstract(w.dims, w.mean, w.q - w.outer())])
    return Abstract(wide.dims, wide.mean, wide.q + linked * spread.q, noise=out.noise)


def _level(x: Operand) -> float:
    return x.average_mean if isinstance(x, Abstract) else float(x)


@backward("lerp")
def lerp_backward(grad: Abstract, x: Abstract, end: Abstract, weight: Operand) -> Gradients:
    """(1 - w) g, w g, g (end - x)."""
    if not isinstance(weight, Abstract):
        w = float(weight)
        return returned(x=(x, gradient_scaled(grad, 1 - w)), end=(end, gradient_scaled(grad, w)))
    rest = plus(1.0, weight, 1.0, -1.0)
    return returned(
        x=(x, _by(grad, rest)), end=(end, _by(grad, weight)),
        weight=(weight, _by(grad, plus(end, x, 1.0, -1.0))),
    )  # fmt: skip


# other functions of two ---------------------------------------------------------------------------


def _floor_divided(a: Array, b: Array) -> Array:
    return np.floor(a / _off_zero(b))


def _cut_off(a: Array, b: Array) -> Array:
    return np.trunc(a / _off_zero(b))


def _off_zero(b: Array) -> Array:
    return np.where(np.abs(b) < 1e-6, 1e-6, b)


def _none(a: Array, b: Array) -> Array:
    return np.zeros(np.broadcast_shapes(a.shape, b.shape))


def _one(a: Array, b: Array) -> Array:
    return np.ones(np.broadcast_shapes(a.shape, b.shape))


def _share(a: Array, b: Array) -> Array:
    return 1 / (1 + np.exp(np.clip(b - a, -60, 60)))


def _share2(a: Array, b: Array) -> Array:
    return 1 / (1 + np.exp2(np.clip(b - a, -60, 60)))


# op -> (f, df/da, df/db)
BINARY: dict[str, tuple[Function2, Function2, Function2]] = {
    "maximum": (np.maximum, lambda a, b: (a > b).astype(float), lambda a, b: (a <= b).astype(float)),
    "minimum": (np.minimum, lambda a, b: (a < b).astype(float), lambda a, b: (a >= b).astype(float)),
    "fmod": (lambda a, b: np.fmod(a, _off_zero(b)), _one, lambda a, b: -_cut_off(a, b)),
    "remainder": (lambda a, b: np.mod(a, _off_zero(b)), _one, lambda a, b: -_floor_divided(a, b)),
    "floor_divide": (_floor_divided, _none, _none),
    "atan2": (
        np.arctan2,
        lambda a, b: b / np.maximum(a * a + b * b, 1e-4),
        lambda a, b: -a / np.maximum(a * a + b * b, 1e-4),
    ),
    "hypot": (
        np.hypot,
        lambda a, b: a / np.maximum(np.hypot(a, b), 1e-12),
        lambda a, b: b / np.maximum(np.hypot(a, b), 1e-12),
    ),
    "logaddexp": (np.logaddexp, _share, lambda a, b: _share(b, a)),
    "logaddexp2": (np.logaddexp2, _share2, lambda a, b: _share2(b, a)),
    "xlogy": (
        lambda a, b: a * np.log(np.maximum(b, 1e-6)),
        lambda a, b: np.log(np.maximum(b, 1e-6)) + 0 * a,
        lambda a, b: a / np.maximum(b, 1e-6),
    ),
    "copysign": (np.copysign, lambda a, b: np.sign(a) * np.sign(b), _none),
}  # fmt: skip
for _name, _same in (("fmax", "maximum"), ("fmin", "minimum"), ("special_xlogy", "xlogy"), ("arctan2", "atan2")):  # fmt: skip
    BINARY[_name] = BINARY[_same]


@forward(*BINARY)
def binary(op: str, x: Operand, other: Operand) -> Abstract:
    """f(x, y) by quadrature in both arguments."""
    out = joint(x, other, BINARY[op][0])
    if op in ("maximum", "fmax") and _varies(x) and _varies(other):
        return out.with_(note=(Larger((x, other)),))
    return out


def _varies(x: Operand) -> TypeGuard[Abstract]:
    return isinstance(x, Abstract) and x.known is None and certain(x) is None


@backward(*BINARY)
def binary_backward(op: str, grad: Abstract, x: Operand, other: Operand) -> Gradients:
    """g df/dx and g df/dy."""
    _, to_x, to_other = BINARY[op]
    return returned(
        x=(x, through_either(grad, x, other, to_x)),
        other=(other, through_either(grad, x, other, to_other)),
    )


# gates and dropout --------------------------------------------------------------------------------


def halves(x: Abstract, dim: int) -> tuple[Abstract, Abstract]:
    """The two halves of an axis."""
    n = x.shape[dim]
    return cut(x, dim, 0, n // 2).with_(chain=None), cut(x, dim, n // 2, n).with_(chain=None)


def _gate(x: Abstract, dim: int) -> tuple[Abstract, Abstract, float]:
    """An axis's halves a and b, and their covariance at one position, segments averaged."""
    a, b = halves(x, dim)
    wide = uniform(merge_dim(x.plain(), dim))
    own = [0] * wide.q.ndim
    own[wide.axes([dim])[0]] = 1
    return a, b, float(wide.q[tuple(own)]) - wide.average_mean**2


@forward("glu")
def glu(x: Abstract, dim: int = -1) -> Abstract:
    """a sigmoid(b), of an axis's halves a and b; E of it is E a E sigmoid + Cov(a, b) E sigmoid'."""
    a, b, covariance = _gate(x, dim % len(x.dims))
    gate = nonlinearity("sigmoid")
    out = multiplied(a, pointwise(b, gate.f).plain())
    shift = covariance * pointwise(b, gate.df).average_mean
    if abs(shift) <= 1e-9 * math.sqrt(max(out.second_moment, 1e-300)):
        return out
    return plus(out, shift)


@backward("glu")
def glu_backward(grad: Abstract, x: Abstract, dim: int = -1) -> Gradients:
    """g sigmoid(b) side by side with g a sigmoid'(b), correlated across them through g alone."""
    dim %= len(x.dims)
    a, b = halves(x, dim)
    gate = nonlinearity("sigmoid")
    left = multiplied(grad.plain(), pointwise(b, gate.f).plain())
    right = multiplied(grad.plain(), multiplied(a.plain(), pointwise(b, gate.df).plain()))
    return {"x": concatenated([left, right], dim)}


def kept(shape: tuple[int, ...], p: float, groups: int) -> Abstract:
    """The factors of dropout: 1 / (1 - p) with probability 1 - p, alike beyond the first axes."""
    alike = shape[:groups] + (1,) * (len(shape) - groups)
    return full(alike, 1 / (1 - p) if p < 1 else 0.0, 1.0 if p < 1 else 0.0)


_FEATURES = ("feature_dropout", "feature_alpha_dropout")
_ALPHA = ("alpha_dropout", "feature_alpha_dropout")
_ALPHA_DROPPED = -1.7580993408473766  # -SELU's scale times its alpha


def _mask(op: str, x: Abstract, p: float) -> Abstract:
    return kept(x.shape, p, 2 if op in _FEATURES else len(x.dims))


@forward("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def dropout(op: str, x: Abstract, p: float, train: bool = True) -> Abstract:
    """E x^2 / (1 - p), means and pairs kept; alpha dropout: a (m x + (1 - m) c) + b keeps N(0, 1)."""
    if not train or p == 0:
        return x
    if op not in _ALPHA or p >= 1:
        return multiplied(x.plain(), _mask(op, x, p))
    keep, c = 1 - p, _ALPHA_DROPPED
    a = (keep * (1 + p * c * c)) ** -0.5
    mask = _mask(op, x, p)
    survives = Abstract(mask.dims, mask.mean * keep, mask.q * keep * keep)
    return plus(mixed(survives, x.plain(), c), -a * c * p, a, 1.0)


@backward("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def dropout_backward(
    op: str, grad: Abstract, x: Abstract, p: float, train: bool = True
) -> Gradients:
    """g times the same mask."""
    if not train or p == 0:
        return {"x": grad}
    scale = 1.0
    if op in _ALPHA and p < 1:
        scale = (1 - p) * ((1 - p) * (1 + p * _ALPHA_DROPPED**2)) ** -0.5
    return {"x": plus(multiplied(grad.plain(), _mask(op, x, p)), 0.0, scale)}


@forward("native_dropout")
def native_dropout(x: Abstract, p: float, train: bool | None) -> list[Abstract]:
    """Dropout and its mask."""
    active = p if train is None or train else 0.0
    return [dropout("dropout", x, active, active > 0), full(x.shape, 1 - active, 1 - active)]


@backward("native_dropout")
def native_dropout_backward(grad: Abstract, x: Abstract, p: float, train: bool | None) -> Gradients:
    """g times the mask."""
    return dropout_backward("dropout", grad, x, p, train is None or bool(train))
