"""Rules of ops that move numbers about: pixels and channels, mirrors, shifts, turns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import maps
from .domain import Abstract, permuted, reshaped
from .registry import backward, forward
from .views import inverse, swapped

# channels and pixels ------------------------------------------------------------------------------


def _pixels(shape: tuple[int, ...], r: int) -> tuple[list[int], list[int]]:
    """(..., c r r, h, w) as (..., c, r, r, h, w), and the order (..., c, h, r, w, r)."""
    *batch, c, h, w = shape
    k = len(batch)
    return [*batch, c // (r * r), r, r, h, w], [*range(k), k, k + 3, k + 1, k + 4, k + 2]


@forward("pixel_shuffle")
def pixel_shuffle(x: Abstract, upscale_factor: int, shapes: Sequence[tuple[int, ...]]) -> Abstract:
    """Channels dealt out to squares of pixels."""
    split, order = _pixels(x.shape, upscale_factor)
    return reshaped(permuted(reshaped(x, split), order), shapes[0])


@backward("pixel_shuffle")
def pixel_shuffle_back(grad: Abstract, x: Abstract, upscale_factor: int) -> dict[str, Any]:
    """Pixels gathered again."""
    return {"x": pixel_unshuffle(grad, upscale_factor, [x.shape])}


@forward("pixel_unshuffle")
def pixel_unshuffle(
    x: Abstract, downscale_factor: int, shapes: Sequence[tuple[int, ...]]
) -> Abstract:
    """Squares of pixels gathered as channels."""
    split, order = _pixels(shapes[0], downscale_factor)
    turned = reshaped(x, [split[d] for d in order])
    return reshaped(permuted(turned, inverse(order)), shapes[0])


@backward("pixel_unshuffle")
def pixel_unshuffle_back(grad: Abstract, x: Abstract, downscale_factor: int) -> dict[str, Any]:
    """Channels dealt out again."""
    return {"x": pixel_shuffle(grad, downscale_factor, [x.shape])}


@forward("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(x: Abstract, groups: int) -> Abstract:
    """Channels (g, c / g) read as (c / g, g)."""
    n, c, *rest = x.shape
    split = reshaped(x, (n, groups, c // groups, *rest))
    return reshaped(permuted(split, [0, 2, 1, *range(3, 3 + len(rest))]), x.shape)


@backward("channel_shuffle", "native_channel_shuffle")
def channel_shuffle_back(grad: Abstract, groups: int) -> dict[str, Any]:
    """Read the other way round."""
    return {"x": channel_shuffle(grad, grad.shape[1] // groups)}


# shifts and mirrors -------------------------------------------------------------------------------


def _mirrored(x: Abstract, dim: int) -> Abstract:
    """One axis reversed: every atom's segments are."""
    q, mean = x.q, x.mean
    for axis in x.axes([dim]):
        s = mean.shape[axis]
        if s > 1:
            back = np.arange(s)[::-1]
            rows = np.concatenate([back, s + (back[:, None] * s + back[None]).ravel()])
            q, mean = q.take(rows, axis), mean.take(back, axis)
    dims = (*x.dims[:dim], tuple(atom[::-1] for atom in x.dims[dim]), *x.dims[dim + 1 :])
    known = None if x.known is None else np.flip(x.known, dim)
    return Abstract(dims, mean, q, known=known, noise=x.noise)


@forward("flip", "fliplr", "flipud")
def flip(x: Abstract, op: str = "flip", dims: Sequence[int] = ()) -> Abstract:
    """Axes reversed; ``flipud`` the first, ``fliplr`` the second."""
    for d in {"fliplr": (1,), "flipud": (0,)}.get(op, dims):
        x = _mirrored(x, d % len(x.dims))
    return x


@backward("flip", "fliplr", "flipud")
def flip_back(grad: Abstract, op: str = "flip", dims: Sequence[int] = ()) -> dict[str, Any]:
    """Reversed again."""
    return {"x": flip(grad, op, dims)}


def _rolled(x: Abstract, shift: int, dim: int) -> Abstract:
    """One axis shifted round: pairs keep their distance, but not which factor tells them apart."""
    n, here = x.shape[dim], x.dims[dim]
    if shift % n == 0:
        return x
    known = None if x.known is None else np.roll(x.known, shift, dim)
    if len(here) == 1 and len(here[0]) == 1:
        return x.plain().with_(known=known)
    linear = maps.shifting(n, shift)
    new = None if len(here) == 1 else (tuple((sum(atom),) for atom in here),)
    return maps.mapped(x, dim, linear, new).with_(known=known)


@forward("roll")
def roll(x: Abstract, shifts: int | Sequence[int], dims: int | Sequence[int] = ()) -> Abstract:
    """Axes shifted round; without ``dims`` the flattened tensor."""
    shifts = [shifts] if isinstance(shifts, int) else list(shifts)
    dims = [dims] if isinstance(dims, int) else list(dims)
    if not dims:
        return reshaped(_rolled(reshaped(x, (math.prod(x.shape),)), shifts[0], 0), x.shape)
    for shift, d in zip(shifts, dims, strict=True):
        x = _rolled(x, shift, d % len(x.dims))
    return x


@backward("roll")
def roll_back(
    grad: Abstract, shifts: int | Sequence[int], dims: int | Sequence[int] = ()
) -> dict[str, Any]:
    """Shifted back."""
    back = [-shifts] if isinstance(shifts, int) else [-shift for shift in shifts]
    return {"x": roll(grad, back, dims)}


@forward("rot90")
def rot90(x: Abstract, k: int = 1, dims: Sequence[int] = (0, 1)) -> Abstract:
    """Quarter turns from the first axis of ``dims`` towards the second."""
    first, second = (d % len(x.dims) for d in dims)
    for _ in range(k % 4):
        x = permuted(_mirrored(x, second), swapped(len(x.dims), first, second))
    return x


@backward("rot90")
def rot90_back(grad: Abstract, k: int = 1, dims: Sequence[int] = (0, 1)) -> dict[str, Any]:
    """Turned back."""
    return {"x": rot90(grad, -k, dims)}
