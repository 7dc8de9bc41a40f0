"""How a tensor goes with its own images: pool(x) - x, x + norm(x), and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from . import strata
from .domain import Abstract, multiplied, reshaped
from .maps import Linear, carried, crossing, joined, transfer
from .notes import Mapped, relations
from .rows import centred
from .strata import Array, Dims

Axes = Sequence[tuple[int, Linear]]


def imaged(out: Abstract, x: Abstract, axes: Axes) -> Abstract:
    """``out``, with the note that these maps made it of ``x``; nothing where a length changed."""
    if out.shape != x.shape or not axes:
        return out
    made = [Mapped(x, _crossed(x, lambda: x.q, axes, out.dims))]
    made += [Mapped(r.of, _crossed(x, r.cross, axes, out.dims)) for r in relations(x)]
    return out.with_(note=tuple(made))


def _crossed(
    x: Abstract, table: Callable[[], Array], axes: Axes, dims: Dims
) -> Callable[[], Array]:
    def cross() -> Array:
        y = Abstract(x.dims, x.mean, table())
        for dim, linear in axes:
            y, old = joined(y, dim, 1)
            new = dims[dim]
            means = transfer(linear, old, new)[1]
            y = carried(y, dim, crossing(linear, old, new), means, (new,))
        return y.q

    return cross


def normed(
    out: Abstract, x: Abstract, scale: Abstract, dims: Sequence[int], *, centre: bool
) -> Abstract:
    """``out``, with the note that it is ``x``, or what x is linear in, times its rows' ``scale``.

    Args:
        out: the result.
        x: a tensor, or a gradient that is scaled alike.
        scale: one over the rows' level.
        dims: a row's axes.
        centre: whether rows' means are taken out.
    """

    def of(table: Callable[[], Array]) -> Callable[[], Array]:
        def cross() -> Array:
            y = Abstract(x.dims, x.mean, table())
            c = centred(y, dims) if centre else y
            mean = (scale.lifted(strata.left) + scale.lifted(strata.right)) / 2
            return multiplied(c, Abstract(scale.dims, scale.mean, np.asarray(mean))).q

        return cross

    if out.dims != x.dims:
        return out
    made = [Mapped(x, of(lambda: x.q)), *(Mapped(r.of, of(r.cross)) for r in relations(x))]
    return out.with_(note=tuple(made))


def regrouped(x: Abstract, shape: Sequence[int]) -> Abstract:
    """``x`` on other axes; what it is linear in is noted there too."""
    out = reshaped(x.plain(), shape)
    made = [Mapped(r.of, _on(x.dims, x.mean, r.cross, shape)) for r in relations(x)]
    return out.with_(note=tuple(made)) if made else out


def restored(wide: Abstract, inner: Abstract, x: Abstract) -> Abstract:
    """``wide`` on the axes of ``x``, of which ``inner`` is x regrouped; its notes told of x.

    Args:
        wide: linear in ``inner``, on the same axes.
        inner: ``x`` on other axes.
        x: the tensor.
    """
    out = reshaped(wide.plain(), x.shape)
    if out.dims != x.dims:
        return out
    made = [
        Mapped(x if r.of is inner else r.of, _on(wide.dims, wide.mean, r.cross, x.shape))
        for r in relations(wide)
    ]
    return out.with_(note=tuple(made))


def _on(
    dims: Dims, mean: Array, cross: Callable[[], Array], shape: Sequence[int]
) -> Callable[[], Array]:
    return lambda: reshaped(Abstract(dims, mean, cross()), shape).q
