"""Sums and products of tensors that may share ancestors, and gradients that meet again.

Functions of one tensor compose (`domain.Abstract.chain`): ``x * sigmoid(x)`` is one function of x.
A tensor meets its own row's mean, mean square or variance (`notes.Reduction`): the sum is exact, the
product is a norm. Everything else is taken as independent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .domain import Abstract, Function, added, multiplied, scaled, summed
from .gaussian import pointwise
from .kin import (
    Operand,
    as_variance,
    by_own_statistic,
    certain,
    count_of,
    covers,
    norm_of,
    straight,
    with_own_filter,
    with_own_image,
    with_own_mean,
)
from .notes import (
    Factored,
    identity,
    linear,
    note_of,
    reduced,
    unchained,
)  # fmt: skip
from .rows import centred, freedom, levelled_backward
from .strata import Array

# sums ---------------------------------------------------------------------------------------------


def plus(a: Operand, b: Operand, sa: float = 1.0, sb: float = 1.0) -> Abstract:
    """sa a + sb b, broadcast; either may be a number.

    Exact for functions of one tensor, and for x with its own mean over some axes.
    """
    return _permitting(_sum(a, b, sa, sb), a, b)


def _permitting(out: Abstract, *terms: Operand) -> Abstract:
    """``out``, with what all terms allow."""
    masks = [x.allowed for x in terms if isinstance(x, Abstract) and x.allowed is not None]
    if not masks or (len(masks) == 1 and out.allowed is masks[0]):
        return out
    allowed = masks[0]
    for mask in masks[1:]:
        allowed = allowed & mask
    return out.with_(allowed=allowed, chain=out.chain or (out, identity))


def _sum(a: Operand, b: Operand, sa: float, sb: float) -> Abstract:
    if not isinstance(a, Abstract):
        assert isinstance(b, Abstract)
        a, b, sa, sb = b, a, sb, sa
    if not isinstance(b, Abstract):
        return straight(a, sa, sb * float(b))
    for x, y, sx, sy in ((a, b, sa, sb), (b, a, sb, sa)):
        value = certain(y)
        if value is not None and covers(x, y):
            return straight(x, sx, sy * value)
    (base, f), (other, g) = unchained(a), unchained(b)
    if base is other:
        return pointwise(base, lambda z: sa * f(z) + sb * g(z))
    for x, y, sx, sy in ((a, b, sa, sb), (b, a, sb, sa)):
        found = (
            with_own_mean(x, y, sx, sy)
            or as_variance(x, y, sx, sy)
            or with_own_image(x, y, sx, sy)
            or with_own_filter(x, y, sx, sy)
        )
        if found is not None:
            return found
    return added(a, b, sa, sb)


# products -----------------------------------------------------------------------------------------


def times(a: Operand, b: Operand) -> Abstract:
    """a b, broadcast; either may be a number.

    Exact for functions of one tensor; x times a function of its own row's statistic is a norm.
    """
    if not isinstance(a, Abstract):
        assert isinstance(b, Abstract)
        a, b = b, a
    if not isinstance(b, Abstract):
        return straight(a, float(b), 0.0)
    for x, y in ((a, b), (b, a)):
        value = certain(y)
        if value is not None and covers(x, y):
            return straight(x, value, 0.0)
    (base, f), (other, g) = unchained(a), unchained(b)
    if base is other:
        return _permitting(pointwise(base, lambda z: f(z) * g(z)), a, b)
    for x, y in ((a, b), (b, a)):
        found = by_own_statistic(x, y)
        if found is not None:
            return found
    return multiplied(a, b)


def weighted_mean(x: Abstract, other: Abstract) -> Abstract:
    """n / d = sum w v / sum w: E[n n'] / E[d d'], E[v v'] weighed as the numerator weighs it.

    Exact for one term, where both carry the same E[w w'], and in the limit of many, where the sum of
    weights is certain; never more than the largest E[v^2] if v does not depend on w.
    """
    return multiplied(x.plain(), _level(other))


def weighted_mean_backward(
    grad: Abstract, x: Abstract, other: Abstract, output: Abstract
) -> dict[str, Abstract]:
    """g / d and -g (n / d) / d, as `weighted_mean` divides."""
    to_x = multiplied(grad, _level(other))
    to_other = scaled(multiplied(to_x, output), -1.0)
    return {"x": unbroadcast(to_x, x.shape), "other": unbroadcast(to_other, other.shape)}


def _level(x: Abstract) -> Abstract:
    """1 / x with 1 / E[x x'] for E[1 / x x']."""

    def inverse(table: Array) -> Array:
        return np.divide(1.0, table, out=np.zeros_like(table, dtype=float), where=table > 0)

    return Abstract(x.dims, inverse(x.mean), inverse(x.q), noise=x.noise)


def product_gradients(
    grad: Abstract, x: Abstract, t: Abstract
) -> tuple[Abstract | None, Abstract | None]:
    """Gradients of x and t in x t; a norm's goes to x alone, the way through its level included."""
    for first, second in ((x, t), (t, x)):
        norm = norm_of(first, second)
        if norm is None:
            continue
        out, scale = norm.product()
        line = linear(unchained(first)[1])
        slope = line[0] if line else 1.0
        free = freedom(centred(norm.base.plain(), norm.dims), norm.dims)
        back = levelled_backward(grad, out, scale, norm.dims, share=norm.share, free=free)
        back = scaled(back, 1 / slope).plain() if slope != 1.0 else back
        return (back, None) if first is x else (None, back)
    return through(grad, t), through(grad, x)


# gradients ----------------------------------------------------------------------------------------


def through(grad: Abstract, x: Abstract, slope: Function | None = None) -> Abstract:
    """Grad slope(x): the chain rule at one op; by x itself where no slope is given.

    The gradient remembers of what tensor it is a function (`notes.Factored`), so that those of one
    tensor that arrive along several paths are summed before they are squared.
    """
    base, h = unchained(x)
    if grad.shape != base.shape and slope is None:
        return multiplied(grad, x)
    source, same, inner = _resolved(grad)
    f: Function = h if slope is None else (slope if h is identity else lambda z: slope(h(z)))
    if same is base or (same is None and source is not grad):
        outer = f
        f = lambda z: inner(z) * outer(z)  # noqa: E731 - a closure over this path alone
    elif slope is None:
        return multiplied(grad, x).with_(note=(Factored(grad, base, h),))
    else:
        source = grad
    return _factored(source, base, f)


def _factored(source: Abstract, base: Abstract, f: Function) -> Abstract:
    out = multiplied(source, pointwise(base, f).plain())
    out.note = (Factored(source, base, f),)
    return out


def gradient_scaled(grad: Abstract, factor: float) -> Abstract:
    """factor grad; what it is a function of is kept."""
    if factor == 1.0:
        return grad
    note = note_of(grad, Factored)
    if note is None:
        return scaled(grad, factor)
    f = note.f
    out = scaled(grad, factor)
    out.note = (Factored(note.source, note.base, lambda z: factor * f(z)),)
    return out


def accumulated(a: Abstract, b: Abstract) -> Abstract:
    """The sum of two gradients of one tensor: exact where both are one gradient times functions of
    one tensor, or where one is the mean of the other; independent otherwise.
    """
    (source, base, f), (other, same, g) = _resolved(a), _resolved(b)
    if source is other and (base is same or base is None or same is None):
        common = same if base is None else base
        if common is not None:
            return _factored(source, common, lambda z: f(z) + g(z))
    return plus(a, b)


def _resolved(grad: Abstract) -> tuple[Abstract, Abstract | None, Function]:
    """(s, b, f) with grad = s f(b); b is None for a number."""
    note = note_of(grad, Factored)
    if note is not None:
        return note.source, note.base, note.f
    base, f = unchained(grad)
    line = linear(f)
    if line is None or line[1]:
        return grad, None, np.ones_like
    slope = line[0]
    return base, None, lambda z: np.full_like(z, slope)


def unbroadcast(grad: Abstract, shape: Sequence[int]) -> Abstract:
    """The gradient of a tensor of that shape which was broadcast: summed over what was added."""
    if grad.shape == tuple(shape):
        return grad
    extra = len(grad.dims) - len(shape)
    gone = [
        *range(extra),
        *(extra + d for d, n in enumerate(shape) if n == 1 and grad.shape[extra + d] > 1),
    ]
    if not gone:
        return Abstract(grad.dims[extra:], grad.mean, grad.q, noise=grad.noise)
    total = summed(grad, gone, keep=True)
    out = Abstract(total.dims[extra:], total.mean, total.q, noise=grad.noise)
    return reduced(out, grad, count_of(grad, gone), float(count_of(grad, gone)))
