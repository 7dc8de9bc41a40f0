"""Convolutions: products of a kernel and the unfolded input, summed over channels and taps.

y[o, p] = sum_{c, k} w[o, c, k] x[c, s p + d k - pad]. Which taps fall outside, and which inputs two
outputs share, is counted exactly (`taps`), so that zero padding lowers the second moment by the mean
fraction of valid taps, and overlapping windows correlate as they do. A transposed convolution is the
same with the map of positions turned round, and so is the gradient of either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .contract import biased
from .domain import (
    Abstract,
    coarsen,
    contracted,
    cut,
    merge_dim,
    once,
    permuted,
    reshaped,
    summed,
    uniform,
)
from .labels import Label
from .notes import Filtered
from .registry import backward, forward
from .taps import MOST_SEGMENTS, Taps, unfolding
from .tilt import Image, with_echo
from .width import fluctuation

Sizes = Sequence[int] | int


class Geometry(NamedTuple):
    """A convolution without its numbers: its spatial axes, groups, direction."""

    axes: tuple[Taps, ...]
    groups: int
    transposed: bool

    @property
    def turned(self) -> tuple[Taps, ...]:
        """The axes of the gradient: outputs read, inputs written."""
        return tuple(
            t._replace(size=t.out, out=t.size, transposed=not t.transposed) for t in self.axes
        )


@lru_cache(maxsize=4096)
def geometry(
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    given: tuple[tuple[int, ...], tuple[int, ...] | str, tuple[int, ...], tuple[int, ...]],
    groups: int,
    transposed: bool,
) -> Geometry:
    """Output sizes and the taps of every axis.

    Args:
        sizes: of the input's spatial axes.
        kernel: of the weight's.
        given: stride, padding, dilation, output padding; one number stands for all axes.
        groups: of channels.
        transposed: whether inputs write through the kernel instead of outputs reading through it.
    """
    rank = len(sizes)
    stride, dilation, extra = (_each(given[i], rank) for i in (0, 2, 3))  # type: ignore[arg-type]
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if isinstance(given[1], str):
        before = [r // 2 if given[1] == "same" else 0 for r in reach]
        total = reach if given[1] == "same" else [0] * rank
    else:
        before = list(_each(given[1], rank))
        total = [2 * p for p in before]
    axes = []
    for i, n in enumerate(sizes):
        if transposed:
            out = (n - 1) * stride[i] - total[i] + reach[i] + extra[i] + 1
        else:
            out = (n + total[i] - reach[i] - 1) // stride[i] + 1
        axes.append(Taps(n, out, kernel[i], stride[i], before[i], dilation[i], transposed))
    return Geometry(tuple(axes), groups, transposed)


def _each(values: tuple[int, ...], rank: int) -> tuple[int, ...]:
    return values * rank if len(values) == 1 else values


def _tuple(given: Any) -> Any:
    if isinstance(given, (str, tuple)):
        return given
    return tuple(given) if isinstance(given, list) else (int(given),)


def geometry_of(given: dict[str, Any]) -> Geometry:
    """From an op's arguments."""
    op, x, weight = given["op"], given["x"], given["weight"]
    rank = len(weight.dims) - 2
    transposed = bool(given.get("transposed", "transpose" in op))
    options = (given.get("stride", 1), given.get("padding", 0), given.get("dilation", 1),
               given.get("output_padding", 0) if transposed else 0)  # fmt: skip
    return geometry(
        x.shape[len(x.dims) - rank :],
        weight.shape[2:],
        tuple(map(_tuple, options)),
        int(given.get("groups", 1)),
        transposed,
    )


# the unfolded tensor ------------------------------------------------------------------------------


def unfolded(x: Abstract, first: int, axes: Sequence[Taps]) -> Abstract:
    """X' with every axis from ``first`` on replaced by (output positions, taps)."""
    for d in range(first, first + len(axes)):
        x = _few_segments(merge_dim(x, d), d)
    lead = sum(map(len, x.dims[:first]))
    q, mean, dims = x.q, x.mean, list(x.dims[:first])
    at = lead
    for dim, taps in zip(x.dims[first:], axes, strict=True):
        plan = unfolding(dim, taps)
        if not plan.same:
            q = _applied(q, at, len(dim), plan.pairs, plan.shape)
            mean = _applied(mean, at, len(dim), plan.singles, plan.segments)
        at += len(plan.shape)
        dims += [plan.positions, plan.taps]
    dims += x.dims[first + len(axes) :]
    return Abstract(tuple(dims), mean, q, noise=x.noise)


def _few_segments(x: Abstract, dim: int) -> Abstract:
    """Segments beyond the budget averaged out, those at the end first."""
    if not x.dims[dim] or len(x.dims[dim][0]) <= MOST_SEGMENTS:
        return x
    s = len(x.dims[dim][0])
    groups = (1,) * (MOST_SEGMENTS - 1) + (s - MOST_SEGMENTS + 1,)
    return coarsen(x, x.axes([dim])[0], groups)


def _applied(
    table: np.ndarray, axis: int, count: int, matrix: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """A matrix on ``count`` (one or no) axes of a table, which become ``shape``."""
    lead, tail = table.shape[:axis], table.shape[axis + count :]
    flat = table.reshape(math.prod(lead), matrix.shape[1], math.prod(tail))
    return (matrix @ flat).reshape(*lead, *shape, *tail)


# rules --------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _labels(rank: int, channels: str) -> tuple[Label, Label, Label]:
    """Of (batch, groups, a channel, positions), the same with taps, and (groups, o, c, taps)."""
    plain = ("b", "g", channels, *(f"p{i}" for i in range(rank)))
    pairs = tuple(x for i in range(rank) for x in (f"p{i}", f"k{i}"))
    return plain, ("b", "g", channels, *pairs), tuple(f"k{i}" for i in range(rank))


def _grouped(x: Abstract, dim: int, groups: int) -> Abstract:
    """Axis ``dim`` as (groups, channels of each)."""
    if groups == 1:
        return x.with_(
            dims=(*x.dims[:dim], (), *x.dims[dim:]), chain=None, known=None, allowed=None
        )
    shape = x.shape
    return reshaped(x, (*shape[:dim], groups, shape[dim] // groups, *shape[dim + 1 :]))


def _joined(x: Abstract, dim: int) -> Abstract:
    """Axes ``dim`` and the next as one."""
    dims = (*x.dims[:dim], x.dims[dim] + x.dims[dim + 1], *x.dims[dim + 2 :])
    return x.with_(dims=dims)


@once
def _read(x: Abstract, rank: int, groups: int, axes: tuple[Taps, ...]) -> Abstract:
    """The input as (batch, groups, channels, (positions, taps)...)."""
    return unfolded(_grouped(_batched(x, rank), 1, groups), 3, axes)


@once
def _kernel(weight: Abstract, shape: Geometry) -> tuple[Abstract, Geometry]:
    """The weight as (groups, first, second, taps) with taps alike; outer taps of zeros left away."""
    axes = list(shape.axes)
    for i, t in enumerate(axes):
        weight = merge_dim(weight, i + 2)
        start, stop = _used(weight, i + 2)
        weight = cut(weight, i + 2, start, stop)
        axes[i] = t._replace(kernel=stop - start, pad=t.pad - t.dilation * start)
    weight = _grouped(uniform(weight, range(2, len(weight.dims))), 0, shape.groups)
    return weight, shape._replace(axes=tuple(axes))


def _used(weight: Abstract, dim: int) -> tuple[int, int]:
    """From which tap of an axis to which there is anything but zeros."""
    atom = weight.dims[dim][0] if weight.dims[dim] else (1,)
    if len(atom) == 1:
        return 0, sum(atom)
    sizes = np.moveaxis(weight.q, weight.axes([dim])[0], 0)[: len(atom)].reshape(len(atom), -1)
    used = np.flatnonzero(sizes.any(axis=1))
    if not used.size:
        return 0, 1
    return sum(atom[: used[0]]), sum(atom[: used[-1] + 1])


def _batched(x: Abstract, rank: int) -> Abstract:
    return x if len(x.dims) == rank + 2 else x.with_(dims=((), *x.dims), chain=None, known=None)


def convolved(x: Abstract, weight: Abstract, bias: Abstract | None, shape: Geometry) -> Abstract:
    """The convolution of independent tensors."""
    rank = len(shape.axes)
    single = len(x.dims) == rank + 1
    kernel, shape = _kernel(weight, shape)
    wide = _read(x, rank, shape.groups, shape.axes)
    _, of_x, taps = _labels(rank, "c")
    of_w = ("g", "c", "o", *taps) if shape.transposed else ("g", "o", "c", *taps)
    y = contracted(wide, of_x, kernel, of_w, _labels(rank, "o")[0])
    y.noise = x.noise + weight.noise + fluctuation(x) + fluctuation(weight)
    y = biased(_joined(y, 1), bias, 1)
    return y.with_(dims=y.dims[1:]) if single else y


def convolved_backward(
    grad: Abstract, x: Abstract, weight: Abstract, bias: Abstract | None, shape: Geometry
) -> dict[str, Abstract]:
    """dL/dx convolves g the other way; dL/dw sums g x' over samples and positions; dL/db sums g."""
    rank = len(shape.axes)
    single = len(x.dims) == rank + 1
    grad = _grouped(_batched(grad, rank), 1, shape.groups)
    plain, spread, taps = _labels(rank, "o")
    of_w = ("g", "c", "o", *taps) if shape.transposed else ("g", "o", "c", *taps)
    kernel, inner = _kernel(weight, shape)
    gx = contracted(unfolded(grad, 3, inner.turned), spread, kernel, of_w, _labels(rank, "c")[0])
    gx.noise = grad.noise + weight.noise + fluctuation(grad)
    gx = _joined(gx, 1)
    wide = _read(x, rank, shape.groups, shape.axes)
    gw = _joined(contracted(grad, plain, wide, _labels(rank, "c")[1], of_w), 0)
    found = {"x": gx.with_(dims=gx.dims[1:]) if single else gx, "weight": gw}
    if bias is not None:
        found["bias"] = _joined(summed(grad, [0, *range(3, rank + 3)]), 0)
    return found


_OPS = tuple(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))


@forward(*_OPS, "convolution", "_convolution")
def conv(**given: Any) -> Abstract:
    """n_c n_k (fraction of valid taps) q_w q_x, and what different channels and taps add."""
    shape = geometry_of(given)
    y = convolved(given["x"], given["weight"], given.get("bias"), shape)
    if shape.groups == 1 and all(t.kernel == t.stride == 1 for t in shape.axes) and len(y.dims) > 2:
        y.source = Image(given["x"], 1)
    if _channelwise(shape, y, given["x"], given["weight"]):
        y.note = (Filtered(given["x"]),)
    return y


def _channelwise(shape: Geometry, y: Abstract, x: Abstract, weight: Abstract) -> bool:
    """Whether every channel is filtered on its own, by weights of mean 0, and keeps its size."""
    alone = len(y.dims) == len(weight.dims) and shape.groups == x.shape[1]
    return alone and y.shape == x.shape and not weight.mean.any()


@backward(*_OPS, "convolution", "_convolution")
def conv_backward(**given: Any) -> dict[str, Abstract]:
    """The convolution turned round; for the weight a sum over samples and positions."""
    shape = geometry_of(given)
    found = convolved_backward(given["grad"], given["x"], given["weight"], given.get("bias"), shape)
    return {**found, "weight": with_echo(found["weight"], given["output"])}


_TO_CHANNELS, _FROM_CHANNELS = (1, 2, 0), (2, 0, 1)  # time, batch, channel <-> batch, channel, time


def _tbc(x: Abstract, weight: Abstract, pad: int) -> tuple[Abstract, Abstract, Geometry]:
    x, weight = permuted(x, _TO_CHANNELS), permuted(weight, (2, 1, 0))
    shape = geometry(x.shape[2:], weight.shape[2:], ((1,), (int(pad),), (1,), (0,)), 1, False)
    return x, weight, shape


@forward("conv_tbc")
def conv_tbc(x: Abstract, weight: Abstract, bias: Abstract, pad: int = 0) -> Abstract:
    """A one-dimensional convolution of (time, batch, channel)."""
    turned, kernel, shape = _tbc(x, weight, pad)
    return permuted(convolved(turned, kernel, bias, shape), _FROM_CHANNELS)


@backward("conv_tbc")
def conv_tbc_backward(
    grad: Abstract, x: Abstract, weight: Abstract, bias: Abstract, pad: int = 0
) -> dict[str, Abstract]:
    """As `conv_backward`, axes in their order."""
    turned, kernel, shape = _tbc(x, weight, pad)
    found = convolved_backward(permuted(grad, _TO_CHANNELS), turned, kernel, bias, shape)
    return {
        "x": permuted(found["x"], _FROM_CHANNELS),
        "weight": permuted(found["weight"], (2, 1, 0)),
        "bias": found["bias"],
    }
