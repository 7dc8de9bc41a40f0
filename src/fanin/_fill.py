"""Distribution -> tensor: the only module that writes values into tensors.

A value depends on (seed, key, row, column) alone, so that order, strides, sharding, threads and
device change nothing. docs/engine.md states the law.

Axes: R rows (dim 0), C columns (the remaining dims, flattened).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy

from . import _rng as rng
from ._distribution import Distribution, Elementwise
from ._errors import InvalidValueError, ModelError
from ._rng import Stream
from ._shards import Index, Shard, index_of
from .distributions import (
    BoundedNormal,
    Constant,
    DeltaOrthogonal,
    Dirac,
    Identity,
    Normal,
    Orthogonal,
    Sparse,
    TruncatedNormal,
    Uniform,
)

CHUNK = 2**16  # elements drawn at a time: the engine's temporaries stay in the cache

Array = npt.NDArray
Sampler = Callable[[slice, slice], Array]


@dataclass(frozen=True, eq=False)
class Target:
    """Where draws go: what a drawer may know of the tensor.

    Args:
        shard: the part of the tensor that lives here.
        dtype: of the tensor.
        stream: seed and name.
    """

    shard: Shard
    dtype: torch.dtype
    stream: Stream

    @property
    def real(self) -> type:
        """The float that values are drawn in."""
        return np.float64 if self.dtype in (torch.float64, torch.complex128) else np.float32

    def at(self, r: slice, c: slice) -> tuple[Array, Array]:
        """The indices of a block of the shard in the whole tensor."""
        return _vector(self.shard.rows[r]), _vector(self.shard.columns[c])


DRAWERS: dict[type[Distribution], Callable[[Any, Target], Sampler]] = {}


def fill_(tensor: Tensor, distribution: Distribution, *, key: str, seed: int = 0) -> Tensor:
    """Fill ``tensor`` in place with draws from ``distribution``, a pure function of key and seed.

    Element (row, column) gets f(seed, key, row, column), with row the index along dim 0 and column
    the flat index in the other dims (a 1-D tensor is one row). fp32 and fp64 are specified to the
    bit; bf16, fp16 and float8 are the fp32 value rounded once. torch's generators are not touched.

    Args:
        tensor: real or complex floating point, any shape, strides and device; a DTensor gets the
            part that lives here, without communication.
        distribution: what to draw, from `fanin.distributions`. A complex Normal has its std spread
            over both parts, as in torch.
        key: names the stream; normally the parameter's fully qualified name.
        seed: in [0, 2^64).

    Returns:
        ``tensor``.

    Raises:
        InvalidValueError: a key, seed, shape or dtype that does not fit. Nothing was written.
        ModelError: a tensor that cannot be written: meta, lazy, expanded. Nothing was written.

    >>> from fanin.distributions import Normal
    >>> fill_(torch.empty(3), Normal(0.02), key="head.bias", seed=1)
    tensor([0., 0., 0.])

    Source: docs/engine.md; Salmon et al. 2011 (Philox), Box & Muller 1958.
    """
    stream = Stream(key, seed)
    check_fillable(tensor, distribution)
    write(tensor, distribution, stream)
    return tensor


def check_fillable(tensor: Tensor, distribution: Distribution) -> None:
    """Raise what `fill_` would raise for this pair, writing nothing.

    Raises:
        InvalidValueError: not a tensor or distribution; a shape or dtype that does not fit.
        ModelError: a tensor that holds no numbers, or one number for several elements.
    """
    _check_arguments(tensor, distribution)
    if _has_no_numbers(tensor):
        raise ModelError(
            f"a tensor on the {tensor.device.type} device (or a fake one) holds no numbers to write. "
            "Allocate it first, e.g. with module.to_empty(device='cpu')."
        )
    if not (tensor.is_floating_point() or tensor.is_complex()):
        raise InvalidValueError(
            f"weights are real or complex floating point; got dtype {tensor.dtype}. "
            "Convert it, e.g. with tensor.float(), or leave this tensor out."
        )
    _sampler(distribution, tensor, Stream(""))


def write(tensor: Tensor, distribution: Distribution, stream: Stream) -> None:
    """What `fill_` does once key and seed are a stream; a meta or fake tensor is left as it is.

    Integer tensors are written where the values are fixed: Constant, Identity, Dirac.

    Raises:
        InvalidValueError: as `fill_`.
        ModelError: as `fill_`, but for meta tensors.
    """
    _check_arguments(tensor, distribution)
    if _has_no_numbers(tensor):
        return
    shard, sample = _sampler(distribution, tensor, stream)
    # What exceeds the dtype becomes inf, as in torch, without a warning.
    with (
        torch.inference_mode(mode=tensor.is_inference()),
        torch.no_grad(),
        np.errstate(over="ignore"),
    ):
        # .data leaves the version counter alone: however many pieces, a write is one version.
        local = shard.local.data
        if isinstance(distribution, Constant):
            local.fill_(distribution.value)
        else:
            for piece, r, c in _pieces(local, shard):
                piece.copy_(torch.from_numpy(sample(r, c)).reshape(piece.shape))
        if not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)


def _check_arguments(tensor: Tensor, distribution: Distribution) -> None:
    if not isinstance(tensor, Tensor):
        raise InvalidValueError(f"fill_ writes into a torch.Tensor; got {type(tensor).__name__}.")
    if type(distribution) not in DRAWERS:
        known = ", ".join(kind.__name__ for kind in DRAWERS)
        raise InvalidValueError(
            f"distribution must be one of {known} from fanin.distributions; got {distribution!r}."
        )
    if is_lazy(tensor):
        raise ModelError(
            "a lazy parameter has no shape yet, so it cannot be filled. Run the model once on an example input first."
        )
    if tensor.layout is not torch.strided:
        raise ModelError(
            f"fill_ writes dense tensors; got layout {tensor.layout}. Fill tensor.to_dense()."
        )
    if not isinstance(distribution, Elementwise):
        distribution.std_for(tuple(tensor.shape))  # raises if the shape does not fit
    if any(
        step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)
    ):
        raise ModelError(
            f"an expanded tensor keeps one number for several elements; got shape {tuple(tensor.shape)} "
            f"with strides {tensor.stride()}. Fill the tensor that it was expanded from, or a clone()."
        )


def _has_no_numbers(tensor: Tensor) -> bool:
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def _sampler(distribution: Distribution, tensor: Tensor, stream: Stream) -> tuple[Shard, Sampler]:
    shard = index_of(tensor)
    return shard, DRAWERS[type(distribution)](distribution, Target(shard, tensor.dtype, stream))


def _pieces(local: Tensor, shard: Shard) -> Iterator[tuple[Tensor, slice, slice]]:
    """Views of about CHUNK elements that cover ``local``, and where they lie in the shard's grid."""
    n_rows, n_columns = len(shard.rows), len(shard.columns)
    if not local.numel():
        return
    if local.dim() < 2:
        grid = local.view(1) if local.dim() == 0 else local
        grid = grid[None]
    elif local.dim() > 2 and local[0].is_contiguous():
        grid = local.view(n_rows, n_columns)
    else:
        grid = local
    height = max(1, CHUNK // n_columns)
    width = CHUNK if grid.dim() == 2 else n_columns
    for r in (slice(k, k + height) for k in range(0, n_rows, height)):
        for c in (slice(k, k + width) for k in range(0, n_columns, width)):
            yield (grid[r, c] if grid.dim() == 2 else grid[r]), r, c


def _vector(index: Index) -> Array:
    return np.arange(index.start, index.stop, index.step) if isinstance(index, range) else index


def drawer(
    kind: type[Distribution],
) -> Callable[[Callable[[Any, Target], Sampler]], Callable[[Any, Target], Sampler]]:
    """Register how a distribution is drawn: (distribution, target) -> sampler of blocks.

    The drawer checks what the distribution asks of the target and computes nothing costly; the
    sampler gives the values of a block of the shard, in ``target.real`` or its complex.
    """

    def register(draw: Callable[[Any, Target], Sampler]) -> Callable[[Any, Target], Sampler]:
        DRAWERS[kind] = draw
        return draw

    return register


@drawer(Constant)
def _constant(law: Constant, target: Target) -> Sampler:
    def sample(r: slice, c: slice) -> Array:
        rows, columns = target.at(r, c)
        return np.full((rows.size, columns.size), law.value, target.real)

    return sample


@drawer(Normal)
def _normal(law: Normal, target: Target) -> Sampler:
    _check_random(law, target.dtype, law.std, law.mean)

    def sample(r: slice, c: slice) -> Array:
        rows, columns = target.at(r, c)
        if not target.dtype.is_complex:
            return rng.normal(target.stream, rows, columns, law.std, law.mean, target.real)
        value = _complex_normal(target.stream, rows, columns, law.std, target.real)
        value.real += target.real(law.mean)
        return value

    return sample


def _complex_normal(stream: Stream, rows: Array, columns: Array, std: float, real: type) -> Array:
    """Both parts of std ``std`` / sqrt 2; those of column c are drawn as columns 2 c and 2 c + 1."""
    planes = np.stack([2 * columns, 2 * columns + 1], axis=1).reshape(-1)
    parts = rng.normal(stream, rows, planes, std / math.sqrt(2.0), 0.0, real)
    return parts.view(np.complex128 if real is np.float64 else np.complex64)


@drawer(Uniform)
def _uniform(law: Uniform, target: Target) -> Sampler:
    _check_random(law, target.dtype, law.low, law.high, complex_too=False)
    return lambda r, c: rng.uniform(target.stream, *target.at(r, c), law.low, law.high, target.real)


@drawer(TruncatedNormal)
def _truncated_normal(law: TruncatedNormal, target: Target) -> Sampler:
    _check_random(law, target.dtype, law.sigma, law.mean, complex_too=False)
    return lambda r, c: rng.truncated_normal(
        target.stream, *target.at(r, c), law.sigma, law.cut, law.mean, target.real
    )


@drawer(BoundedNormal)
def _bounded_normal(law: BoundedNormal, target: Target) -> Sampler:
    _check_random(law, target.dtype, law.mu, law.sigma, complex_too=False)
    least, greatest = inward(law.low, law.high, target.dtype)
    if least > greatest and law.low < law.high:
        raise InvalidValueError(
            f"no {target.dtype} number lies within [{law.low!r}, {law.high!r}]. Widen the bounds or use a finer dtype."
        )

    def sample(r: slice, c: slice) -> Array:
        args = law.mu, law.sigma, law.low, law.high
        value = rng.bounded_normal(target.stream, *target.at(r, c), *args, target.real)
        # Between bounds that the dtype can hold, rounding to it stays between them.
        return (
            value if least > greatest else np.clip(value, target.real(least), target.real(greatest))
        )

    return sample


@drawer(Orthogonal)
def _orthogonal(law: Orthogonal, target: Target) -> Sampler:
    _check_random(law, target.dtype, law.gain)
    shape = target.shard.shape
    matrix = _haar(target, shape[0], math.prod(shape[1:]))

    def sample(r: slice, c: slice) -> Array:
        return _rounded(matrix()[np.ix_(*target.at(r, c))] * law.gain, target.real)

    return sample


@drawer(DeltaOrthogonal)
def _delta_orthogonal(law: DeltaOrthogonal, target: Target) -> Sampler:
    _check_random(law, target.dtype, law.gain)
    shape = target.shard.shape
    matrix = _haar(target, shape[0], shape[1])

    def sample(r: slice, c: slice) -> Array:
        rows, columns = target.at(r, c)
        channel, tap = np.divmod(columns, math.prod(shape[2:]))
        value = matrix()[np.ix_(rows, channel)] * law.gain
        return _rounded(np.where(tap == _centre(shape[2:]), value, 0.0), target.real)

    return sample


def _haar(target: Target, rows: int, columns: int) -> Callable[[], Array]:
    """The whole semi-orthogonal matrix, when it is first asked for; wide ones by transposition."""

    def normals(i: Array, j: Array) -> Array:
        if target.dtype.is_complex:
            return _complex_normal(target.stream, i, j, 1.0, np.float64)
        return rng.normal(target.stream, i, j, 1.0, 0.0, np.float64)

    @cache
    def matrix() -> Array:
        tall = rng.haar(max(rows, columns), min(rows, columns), normals)
        return tall if rows >= columns else tall.T

    return matrix


def _rounded(value: Array, real: type) -> Array:
    if np.isrealobj(value):
        return value.astype(real)
    return value.astype(np.complex128 if real is np.float64 else np.complex64)


@drawer(Identity)
def _identity(law: Identity, target: Target) -> Sampler:
    def sample(r: slice, c: slice) -> Array:
        rows, columns = target.at(r, c)
        return np.where(rows[:, None] == columns, law.gain, 0.0).astype(target.real)

    return sample


@drawer(Dirac)
def _dirac(law: Dirac, target: Target) -> Sampler:
    shape = target.shard.shape
    taps, centre = math.prod(shape[2:]), _centre(shape[2:])

    def sample(r: slice, c: slice) -> Array:
        rows, columns = target.at(r, c)
        channel = rows % max(shape[0] // law.groups, 1)
        return np.where(columns == (channel * taps + centre)[:, None], law.gain, 0.0).astype(
            target.real
        )

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
        return rng.thresholds(masks, target.shard.shape[0], _vector(target.shard.columns), zeros)

    def sample(r: slice, c: slice) -> Array:
        kept = rng.ranked(masks, *target.at(r, c)) >= thresholds()[c]
        value = values(r, c)
        return np.where(kept, value, value.dtype.type(0))

    return sample


def _check_random(
    law: Distribution, dtype: torch.dtype, *numbers: float, complex_too: bool = True
) -> None:
    """The dtype must be able to hold what is drawn; ``numbers`` are the law's finite parameters."""
    if not (dtype.is_floating_point or dtype.is_complex):
        raise InvalidValueError(
            f"{law} needs a floating point tensor; got dtype {dtype}. Convert it, e.g. with tensor.float()."
        )
    if dtype.is_complex and not complex_too:
        raise InvalidValueError(
            f"{law} is a law of real numbers; got dtype {dtype}. Use Normal, or fill torch.view_as_real(tensor)."
        )
    top = torch.finfo(dtype).max
    if any(abs(number) > top for number in numbers):
        raise InvalidValueError(
            f"{law} exceeds {top:.4g}, the largest {dtype} number. Use a wider dtype or smaller parameters."
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
    nearest = torch.tensor(x, dtype=torch.float64).to(dtype)
    value = float(nearest)
    if value >= x:
        return value
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    # A step towards +inf makes the bits of a negative number smaller, those of a positive one larger.
    bits = nearest.view(integer) + (-1 if value < 0 else 1)
    return float(bits.view(dtype))
