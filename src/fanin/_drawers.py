"""Distribution -> sampler: how each kind of distribution is drawn, block by block.

A new distribution is one function here, registered with `drawer`.

Axes: R rows (dim 0), C columns (the remaining dims, flattened).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from . import _rng as rng
from ._distribution import Distribution
from ._errors import InvalidValueError
from ._rng import Elements, Stream
from ._shards import Index, Shard, vector
from .distributions import (
    BoundedNormal,
    Constant,
    DeltaOrthogonal,
    Dirac,
    Identity,
    Kept,
    LooksLinear,
    Normal,
    Orthogonal,
    Sparse,
    TruncatedNormal,
    Uniform,
)

Array = npt.NDArray
Sampler = Callable[[slice, slice], Array]

_COMPLEX: dict[type, type] = {np.float32: np.complex64, np.float64: np.complex128}


@dataclass(frozen=True, eq=False)
class Target:
    """Where draws go: what a drawer may know of the tensor.

    Args:
        shard: the part of the tensor that lives here.
        dtype: of the tensor.
        stream: seed and name.
        memo: what the shards of one tensor share, so that a whole matrix is drawn once.
    """

    shard: Shard
    dtype: torch.dtype
    stream: Stream
    memo: dict[str, Array] = field(default_factory=dict)

    @property
    def real(self) -> type:
        """The float that values are drawn in."""
        return np.float64 if self.dtype in (torch.float64, torch.complex128) else np.float32

    def at(self, r: slice, c: slice) -> Elements:
        """Which elements of the whole tensor a block of the shard is."""
        return Elements(self.stream, vector(self.shard.rows[r]), vector(self.shard.columns[c]))


@dataclass(frozen=True, eq=False)
class Drawn:
    """A sampler of an elementwise law, which may also be written straight into memory.

    Args:
        target: where draws go.
        draw: the law.
    """

    target: Target
    draw: rng.Draw

    def __call__(self, r: slice, c: slice) -> Array:
        """The values of a block of the shard."""
        return self.draw(self.target.at(r, c))


@dataclass(frozen=True, eq=False)
class Same:
    """A sampler of one number, which torch may also write itself.

    Args:
        target: where it goes.
        value: the number.
    """

    target: Target
    value: float

    def __call__(self, r: slice, c: slice) -> Array:
        """The number for each element of a block of the shard."""
        shard = self.target.shard
        # A double, so that integers come out whole.
        return np.full((len(shard.rows[r]), len(shard.columns[c])), self.value)


Drawer = Callable[[Any, Target], Sampler]
DRAWERS: dict[type[Distribution], Drawer] = {}


def drawer(
    kind: type[Distribution],
) -> Callable[[Drawer], Drawer]:
    """Register how a distribution is drawn: (distribution, target) -> sampler of blocks.

    The drawer checks what the distribution asks of the target and computes nothing costly; the
    sampler gives the values of a block of the shard, in ``target.real`` or its complex.
    """

    def register(draw: Drawer) -> Drawer:
        DRAWERS[kind] = draw
        return draw

    return register


@drawer(Constant)
def _constant(law: Constant, target: Target) -> Sampler:
    if target.dtype.is_floating_point or target.dtype.is_complex:
        _check_holds(law, target.dtype, law.value)
    return Same(target, law.value)


@drawer(Normal)
def _normal(law: Normal, target: Target) -> Sampler:
    _check_random(law, target.dtype, law.std, law.mean)
    if not target.dtype.is_complex:
        return Drawn(target, rng.laws.normal(law.std, law.mean, target.real))

    def sample(r: slice, c: slice) -> Array:
        value = _complex_normal(target.at(r, c), law.std, target.real)
        value.real += target.real(law.mean)
        return value

    return sample


def _complex_normal(block: Elements, std: float, real: type) -> Array:
    """Both parts of std ``std`` / sqrt 2; those of column c are drawn as columns 2 c and 2 c + 1."""
    planes = np.stack([2 * block.columns, 2 * block.columns + 1], axis=1).reshape(-1)
    parts = Elements(block.stream, block.rows, planes)
    return rng.laws.normal(std / math.sqrt(2.0), 0.0, real)(parts).view(_COMPLEX[real])


@drawer(Uniform)
def _uniform(law: Uniform, target: Target) -> Sampler:
    _check_random(law, target.dtype, law.low, law.high, complex_too=False)
    return Drawn(target, rng.laws.uniform(law.low, law.high, target.real))


@drawer(TruncatedNormal)
def _truncated_normal(law: TruncatedNormal, target: Target) -> Sampler:
    _check_random(law, target.dtype, law.sigma, law.mean, complex_too=False)
    draw = rng.laws.truncated_normal(law.sigma, law.cut, law.mean, target.real)
    return Drawn(target, draw)


@drawer(BoundedNormal)
def _bounded_normal(law: BoundedNormal, target: Target) -> Sampler:
    _check_random(law, target.dtype, law.mu, law.sigma, complex_too=False)
    least, greatest = inward(law.low, law.high, target.dtype)
    if least > greatest and law.low < law.high:
        raise InvalidValueError(
            f"no {target.dtype} number lies within [{law.low!r}, {law.high!r}]. "
            "Widen the bounds or use a finer dtype."
        )
    within = least, greatest
    bounds = law.low, law.high
    return Drawn(target, rng.laws.bounded_normal(law.mu, law.sigma, bounds, within, target.real))


@drawer(Orthogonal)
def _orthogonal(law: Orthogonal, target: Target) -> Sampler:
    _check_random(law, target.dtype, law.gain)
    shape, shard = target.shard.shape, target.shard
    matrix = _haar(law, target, shape[0], math.prod(shape[1:]))

    def sample(r: slice, c: slice) -> Array:
        rows, columns = _selector(shard.rows[r]), _selector(shard.columns[c])
        return matrix()[rows][:, columns]

    return sample


@drawer(DeltaOrthogonal)
def _delta_orthogonal(law: DeltaOrthogonal, target: Target) -> Sampler:
    _check_random(law, target.dtype, law.gain)
    shape = target.shard.shape
    matrix = _haar(law, target, shape[0], shape[1])

    def sample(r: slice, c: slice) -> Array:
        block = target.at(r, c)
        channel, tap = np.divmod(block.columns, math.prod(shape[2:]))
        here = np.flatnonzero(tap == _centre(shape[2:]))
        value = np.zeros((block.rows.size, block.columns.size), matrix().dtype)
        value[:, here] = matrix()[np.ix_(block.rows, channel[here])]
        return value

    return sample


@drawer(LooksLinear)
def _looks_linear(law: LooksLinear, target: Target) -> Sampler:
    _check_random(law, target.dtype, law.gain)
    shape = target.shard.shape
    rows, channels, *kernel = law.block_of(shape)
    taps = math.prod(kernel)
    matrix = _haar(law, target, rows, channels if law.centre else channels * taps)

    def sample(r: slice, c: slice) -> Array:
        block = target.at(r, c)
        lower, i = np.divmod(block.rows, max(rows, 1))
        channel, tap = np.divmod(block.columns, taps)
        right, channel = np.divmod(channel, max(channels, 1))
        here = np.arange(tap.size)
        if law.centre:
            here = np.flatnonzero(tap == _centre(shape[2:]))
        value = np.zeros((i.size, tap.size), matrix().dtype)
        j = channel[here] if law.centre else channel * taps + tap
        value[:, here] = matrix()[np.ix_(i, j)] * np.where(lower[:, None] == right[here], 1, -1)
        return value

    return sample


def _haar(
    law: Orthogonal | DeltaOrthogonal | LooksLinear, target: Target, rows: int, columns: int
) -> Callable[[], Array]:
    """All of the scaled semi-orthogonal matrix, once it is asked for; wide ones by transposition."""
    dtype = _COMPLEX[target.real] if target.dtype.is_complex else target.real

    def normals(i: Array, j: Array) -> Array:
        if target.dtype.is_complex:
            return _complex_normal(Elements(target.stream, i, j), 1.0, np.float64)
        return rng.laws.normal(1.0, 0.0, np.float64)(Elements(target.stream, i, j))

    def matrix() -> Array:
        if "haar" in target.memo:
            return target.memo["haar"]
        tall = rng.haar(
            max(rows, columns),
            min(rows, columns),
            normals,
            dtype,
            gain=law.gain,
            reproducible=law.reproducible,
            threads=torch.get_num_threads(),
        )
        # torch transposes by tiles, numpy element by element.
        whole = torch.from_numpy(tall if rows >= columns else tall.T).contiguous().numpy()
        return target.memo.setdefault("haar", whole)

    return matrix


def _selector(index: Index) -> slice | Array:
    """What picks these rows or columns of an array, without a copy where they are evenly spaced."""
    return slice(index.start, index.stop, index.step) if isinstance(index, range) else index


@drawer(Identity)
def _identity(law: Identity, target: Target) -> Sampler:
    def sample(r: slice, c: slice) -> Array:
        block = target.at(r, c)
        return np.where(block.rows[:, None] == block.columns, law.gain, 0.0).astype(target.real)

    return sample


@drawer(Dirac)
def _dirac(law: Dirac, target: Target) -> Sampler:
    shape = target.shard.shape
    taps, centre = math.prod(shape[2:]), _centre(shape[2:])

    def sample(r: slice, c: slice) -> Array:
        block = target.at(r, c)
        channel = block.rows % max(shape[0] // law.groups, 1)
        hit = block.columns == (channel * taps + centre)[:, None]
        return np.where(hit, law.gain, 0.0).astype(target.real)

    return sample


def _centre(kernel: tuple[int, ...]) -> int:
    """The flat index of tap k // 2 on every axis."""
    flat = 0
    for k in kernel:
        flat = flat * k + k // 2
    return flat


@drawer(Sparse)
def _sparse(law: Sparse, target: Target) -> Sampler:
    _check_random(law, target.dtype, law.sigma)
    zeros = law.zeros_of(target.shard.shape[0])
    masks = target.stream.child("mask")
    values = _normal(Normal(law.sigma), target)

    @cache
    def thresholds() -> Array:
        return rng.thresholds(masks, target.shard.shape[0], vector(target.shard.columns), zeros)

    def sample(r: slice, c: slice) -> Array:
        kept = rng.ranked(replace(target.at(r, c), stream=masks)) >= thresholds()[c]
        value = values(r, c)
        return np.where(kept, value, value.dtype.type(0))

    return sample


@drawer(Kept)
def _kept(law: Kept, target: Target) -> Sampler:
    raise InvalidValueError(
        f"{law} draws nothing: it says that {target.stream.key!r} keeps its values. "
        "Use it in a plan, or fill with a distribution such as Normal(0.02)."
    )


def _check_random(
    law: Distribution, dtype: torch.dtype, *numbers: float, complex_too: bool = True
) -> None:
    """Random values need a floating point dtype that holds the law's parameters, ``numbers``."""
    if not (dtype.is_floating_point or dtype.is_complex):
        raise InvalidValueError(
            f"{law} needs a floating point tensor; got dtype {dtype}. "
            "Convert it, e.g. with tensor.float()."
        )
    if dtype.is_complex and not complex_too:
        raise InvalidValueError(
            f"{law} is a law of real numbers; got dtype {dtype}. "
            "Use Normal, or fill torch.view_as_real(tensor)."
        )
    _check_holds(law, dtype, *numbers)


def _check_holds(law: Distribution, dtype: torch.dtype, *numbers: float) -> None:
    top = torch.finfo(dtype).max
    if any(abs(number) > top for number in numbers):
        raise InvalidValueError(
            f"{law} exceeds {top:.4g}, the largest {dtype} number. "
            "Use a wider dtype or smaller parameters."
        )


def inward(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """The least and the greatest number of ``dtype`` within [low, high]; infinite ends stay.

    >>> inward(-0.1, 0.1, torch.bfloat16)
    (-0.099609375, 0.099609375)
    """
    top = torch.finfo(dtype).max
    least = low if math.isinf(low) else _ceiling(max(low, -top), dtype)
    greatest = high if math.isinf(high) else -_ceiling(max(-high, -top), dtype)
    return least, greatest


def _ceiling(x: float, dtype: torch.dtype) -> float:
    """The least number of ``dtype`` that is >= x, by its bits: sign and magnitude."""
    nearest = torch.tensor(x, dtype=torch.float64, device="cpu").to(dtype)
    value = float(nearest)
    if value >= x:
        return value
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    # A step towards +inf makes the bits of a negative number smaller, those of a positive one larger.
    bits = nearest.view(integer) + (-1 if value < 0 else 1)
    return float(bits.view(dtype))
