"""Distribution -> tensor: the only module that writes values into tensors.

A value depends on (seed, key, row, column) alone, so that order, strides, sharding, threads and
device change nothing. docs/engine.md states the law.

Axes: R rows (dim 0), C columns (the remaining dims, flattened).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import increment_version
from torch.nn.parameter import Parameter, is_lazy

from ._distribution import Distribution, Elementwise
from ._drawers import DRAWERS, Drawn, Same, Sampler, Target
from ._errors import InvalidValueError, ModelError
from ._rng import Memory, Stream, gpu
from ._rng.backend import SERIAL_BELOW, Write, pack_place, pack_words
from ._shards import Held, Shard, index_of, shards_of
from .distributions import BoundedNormal, Constant, Normal, TruncatedNormal, Uniform

# What kernels can write, where the tensor lies.
IN_PLACE = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
CHUNK = (
    12 * 2**10
)  # elements drawn at a time: the engine's temporaries stay below 1 MiB, in the cache


def fill_(
    tensor: Tensor, distribution: Distribution, *, key: str, seed: int = 0, held: Held | None = None
) -> Tensor:
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
        held: which elements of a larger tensor this one holds, `fanin.IndexVectors` or
            `fanin.FlatRange`; a DTensor knows by itself.

    Returns:
        ``tensor``.

    Raises:
        InvalidValueError: a key, seed, shape or dtype that does not fit. Nothing was written.
        ModelError: a tensor that cannot be written: meta, lazy, expanded. Nothing was written.

    >>> from fanin.distributions import Normal
    >>> fill_(torch.empty(3), Normal(0.02), key="head.bias", seed=1)
    tensor([0.0141, 0.0245, 0.0110])

    Source: docs/engine.md; Salmon et al. 2011 (Philox), Box & Muller 1958.
    """
    if held is not None:
        prepared_shards(tensor, shards_of(tensor, held), distribution, key=key, seed=seed)()
        return tensor
    known = recall(tensor, distribution)
    place = None if known is None else place_of(tensor, known)
    if known is None or place is None:
        _write(tensor, distribution, *_fillable(tensor, distribution, Stream(key, seed)))
    else:
        write_known(tensor, known, place, _words(key, seed))
    return tensor


def prepared(
    tensor: Tensor, distribution: Distribution, *, key: str, seed: int
) -> Callable[[], object]:
    """Check all that `fill_` would check, writing nothing; what is returned does the rest.

    Raises:
        InvalidValueError: as `fill_`.
        ModelError: as `fill_`.
    """
    known = recall(tensor, distribution)
    place = None if known is None else place_of(tensor, known)
    if known is None or place is None:
        _fillable(tensor, distribution, Stream(key, seed))
        return partial(fill_, tensor, distribution, key=key, seed=seed)
    return partial(write_known, tensor, known, place, _words(key, seed))


def prepared_shards(
    tensor: Tensor,
    shards: Sequence[Shard],
    distribution: Distribution,
    *,
    key: str,
    seed: int,
    empty: bool = False,
) -> Callable[[], object]:
    """The same for the parts of ``tensor`` that ``shards`` are: DTensors, their slices, ranges.

    Each gets its elements of a whole of the shards' shape. A matrix-wide law draws that whole,
    once, and keeps what is here.

    Args:
        tensor: whose parts they are.
        shards: views of its local memory; none writes nothing.
        distribution: of the whole.
        key: see `fill_`.
        seed: see `fill_`.
        empty: allow a meta tensor, for the sake of the checks: what is returned must not be called.

    Raises:
        InvalidValueError: as `fill_`.
        ModelError: as `fill_`.
    """
    for shard in shards[:1]:
        _check_arguments(tensor, distribution, shard.shape)
    if not empty:
        _check_has_numbers(tensor)
    _check_fractions(tensor)
    stream = Stream(key, seed)
    memo: dict[str, Any] = {}
    draw = DRAWERS[type(distribution)]
    samplers = [draw(distribution, Target(s, tensor.dtype, stream, memo)) for s in shards]

    def write_all() -> None:
        for shard, sample in zip(shards, samplers, strict=True):
            _write(tensor, distribution, shard, sample)

    return write_all


def _fillable(tensor: Tensor, distribution: Distribution, stream: Stream) -> tuple[Shard, Sampler]:
    _check_arguments(tensor, distribution)
    _check_has_numbers(tensor)
    _check_fractions(tensor)
    return _sampler(distribution, tensor, stream)


def _check_has_numbers(tensor: Tensor) -> None:
    if _has_no_numbers(tensor):
        raise ModelError(
            f"a tensor on the {tensor.device.type} device (or a fake one) holds no numbers to write. "
            "Allocate it first: plan.materialize_(model), or module.to_empty(device='cpu')."
        )


def _check_fractions(tensor: Tensor) -> None:
    if not _holds_fractions(tensor.dtype):
        raise InvalidValueError(
            f"weights are real or complex floating point; got dtype {tensor.dtype}. "
            "Convert it, e.g. with tensor.float(), or leave this tensor out."
        )


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
    _write(tensor, distribution, *_sampler(distribution, tensor, stream))


def _write(tensor: Tensor, distribution: Distribution, shard: Shard, sample: Sampler) -> None:
    # .data leaves the version counter alone: however many pieces, a write is one version.
    local = shard.local.data
    if not (isinstance(sample, Drawn) and _written_in_place(local, shard, sample)):
        # What exceeds the dtype becomes inf, as in torch, without a warning.
        with (
            torch.inference_mode(mode=tensor.is_inference()),
            torch.no_grad(),
            np.errstate(over="ignore"),
        ):
            if isinstance(sample, Same) and _holds_fractions(local.dtype):
                local.fill_(sample.value)
            else:
                for piece, r, c in _pieces(local, shard):
                    piece.copy_(torch.from_numpy(sample(r, c)).reshape(piece.shape))
    if type(tensor) in _PLAIN and local.is_cpu and not gpu.reaches(local):
        _remember(distribution, local.dtype, sample)
    if not tensor.is_inference():
        increment_version(tensor)


# The short way: what was written before and is plain needs no further checks. A small tensor takes
# microseconds so, where the long way takes a hundred.


class Known(NamedTuple):
    """A law that has filled a tensor of this dtype before.

    Args:
        write: its kernel; None for a constant.
        numbers: its numbers, packed for the kernel.
        itemsize: bytes of a number of the dtype.
        value: the constant.
    """

    write: Write | None
    numbers: bytes
    itemsize: int
    value: float = 0.0


_known: dict[tuple[type, bytes, torch.dtype], Known] = {}
_KNOWN_AT_MOST = 4096
_PLAIN = (Tensor, Parameter)
_NUMBERS = {float, int}

# Arguments by their bits: 0.0 and -0.0 are equal, but draw different zeros.
_pack = {count: Struct(f"{count}d").pack for count in (1, 2, 3, 4)}
_pack1, _pack2, _pack3, _pack4 = _pack.values()
_arguments: dict[type, Callable[[Any], bytes]] = {
    Constant: lambda law: _pack1(law.value),
    Normal: lambda law: _pack2(law.std, law.mean),
    Uniform: lambda law: _pack2(law.low, law.high),
    TruncatedNormal: lambda law: _pack3(law.sigma, law.cut, law.mean),
    BoundedNormal: lambda law: _pack4(law.mu, law.sigma, law.low, law.high),
}


def recall(tensor: Tensor, distribution: Distribution) -> Known | None:
    """What is known of filling tensors like this one, but for its layout."""
    kind = type(distribution)
    if type(tensor) not in _PLAIN or kind not in _arguments:
        return None
    return _known.get((kind, _arguments[kind](distribution), tensor.dtype))


def recall_arguments(tensor: Tensor, kind: type, arguments: list[Any]) -> Known | None:
    """The same for the distribution that ``kind(*arguments)`` would be."""
    plain = type(tensor) in _PLAIN and _NUMBERS.issuperset(map(type, arguments))
    if not plain or kind not in _arguments:
        return None
    return _known.get((kind, _pack[len(arguments)](*arguments), tensor.dtype))


def place_of(tensor: Tensor, known: Known) -> bytes | None:
    """A plain tensor's part of the kernel's job, if it lies in one piece and needs but one thread."""
    try:
        if not tensor.is_cpu or not tensor.is_contiguous() or tensor.is_neg():
            return None
        if known.write is None and tensor.is_inference():
            return None  # torch writes these in inference mode alone
        shape = tensor.shape
        rows = shape[0] if len(shape) > 1 else 1
        columns = shape[-1] if 0 < len(shape) < 3 else math.prod(shape[1:])
        count = rows * columns
        if not count or (count >= SERIAL_BELOW and torch.get_num_threads() > 1):
            return None
        address, size = tensor.data_ptr(), known.itemsize
    except RuntimeError:  # sparse, nested and torch.func's tensors have no memory of this kind
        return None
    return pack_place(address, columns * size, size, columns, 0, 0, rows, 0, 0, columns)


def write_known(tensor: Tensor, known: Known, place: bytes, words: bytes) -> None:
    """Fill a tensor by what `recall` and `place_of` gave; ``words``, packed, are the stream's."""
    if known.write is None:
        tensor.detach().fill_(known.value)  # which counts as a version of ``tensor`` too
    else:
        known.write(place + words + known.numbers)
        increment_version(tensor)


def _remember(distribution: Distribution, dtype: torch.dtype, sample: Sampler) -> None:
    if isinstance(sample, Same) and _holds_fractions(dtype):
        known = Known(None, b"", dtype.itemsize, sample.value)
    elif isinstance(sample, Drawn) and (write := sample.draw.loaded(IN_PLACE.get(dtype))):
        known = Known(write, sample.draw.packed, dtype.itemsize)
    else:
        return
    if len(_known) >= _KNOWN_AT_MOST:
        _known.clear()
    _known[type(distribution), _arguments[type(distribution)](distribution), dtype] = known


@lru_cache(maxsize=4096, typed=True)  # typed: True is no seed
def _words(key: str, seed: int) -> bytes:
    return pack_words(*Stream(key, seed).words)


def write_constant(tensor: Tensor, value: complex | None = None) -> None:
    """Torch's own fill, open to torch.compile: any number, dtype, layout and subclass.

    Without a value it is torch's own zero, which sparse tensors have too.
    """
    with torch.no_grad():
        tensor.zero_() if value is None else tensor.fill_(value)


def _check_arguments(
    tensor: Tensor, distribution: Distribution, shape: Sequence[int] | None = None
) -> None:
    if not isinstance(tensor, Tensor):
        raise InvalidValueError(f"fill_ writes into a torch.Tensor; got {type(tensor).__name__}.")
    if type(distribution) not in DRAWERS:
        known = ", ".join(kind.__name__ for kind in DRAWERS)
        raise InvalidValueError(
            f"distribution must be one of {known} from fanin.distributions; got {distribution!r}."
        )
    if is_lazy(tensor):
        raise ModelError(
            "a lazy parameter has no shape yet, so it cannot be filled. "
            "Run the model once on an example input first."
        )
    if tensor.layout is not torch.strided:
        raise ModelError(
            f"fill_ writes dense tensors; got layout {tensor.layout}. Fill tensor.to_dense()."
        )
    if not isinstance(distribution, Elementwise):
        distribution.std_for(
            tuple(tensor.shape if shape is None else shape)
        )  # raises if the shape does not fit
    steps = zip(tensor.stride(), tensor.shape, strict=True)
    if not tensor.is_contiguous() and any(step == 0 and size > 1 for step, size in steps):
        raise ModelError(
            f"an expanded tensor keeps one number for several elements; got shape "
            f"{tuple(tensor.shape)} with strides {tensor.stride()}. "
            "Fill the tensor that it was expanded from, or a clone()."
        )


def _has_no_numbers(tensor: Tensor) -> bool:
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def _holds_fractions(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _sampler(distribution: Distribution, tensor: Tensor, stream: Stream) -> tuple[Shard, Sampler]:
    shard = index_of(tensor)
    return shard, DRAWERS[type(distribution)](distribution, Target(shard, tensor.dtype, stream))


def _written_in_place(local: Tensor, shard: Shard, sample: Drawn) -> bool:
    """Whether a kernel could, and did, write all values into the tensor's own memory."""
    memory = _memory(local)
    if memory is None:
        return False
    draw, stream = sample.draw, sample.target.stream
    if gpu.reaches(local):
        return gpu.into(local, memory, draw, stream, rows=shard.rows, columns=shard.columns)
    threads = torch.get_num_threads()
    return draw.into(memory, stream, shard.rows, shard.columns, threads=threads)


def _memory(local: Tensor) -> Memory | None:
    """Where the numbers of a tensor lie, if kernels can write there."""
    dtype = IN_PLACE.get(local.dtype)
    here = local.is_cpu or gpu.reaches(local)
    plain = type(local) is Tensor and here and not local.is_neg()
    if dtype is None or not plain or not local.numel():
        return None
    steps = _steps(local)
    if steps is None:
        return None
    try:
        address = local.data_ptr()
    except RuntimeError:  # torch.func's wrappers have no memory of their own
        return None
    size = local.itemsize
    stride = local.stride(0) if local.dim() > 1 else 0
    step, run, run_step = steps
    return Memory(address, stride * size, dtype, size, step * size, run, run_step * size)


def _steps(local: Tensor) -> tuple[int, int, int] | None:
    """(elements from column to column, columns in a run or 0 for all, elements from run to run)."""
    first = 1 if local.dim() > 1 else 0
    levels: list[tuple[int, int]] = []  # (how many, elements apart), inner ones first
    for size, step in zip(local.shape[first:][::-1], local.stride()[first:][::-1], strict=True):
        if levels and step == levels[-1][0] * levels[-1][1]:
            levels[-1] = levels[-1][0] * size, levels[-1][1]
        elif size != 1:
            levels.append((size, step))
    if len(levels) > 2:
        return None
    (run, step), (_, run_step) = [*levels, (1, 1), (0, 0)][:2] if levels else [(1, 1), (0, 0)]
    return step, run if len(levels) == 2 else 0, run_step


def _pieces(local: Tensor, shard: Shard) -> Iterator[tuple[Tensor, slice, slice]]:
    """Views of at most CHUNK numbers that cover ``local``, and where they lie in the shard's grid."""
    rows, columns = len(shard.rows), len(shard.columns)
    if not local.numel():
        return
    grid = local if local.dim() > 1 else local.reshape(1, -1) if local.dim() == 0 else local[None]
    most = CHUNK // 2 if local.is_complex() else CHUNK
    height = most // columns
    if height:
        for k in range(0, rows, height):
            r = slice(k, min(k + height, rows))
            yield grid[r], r, slice(0, columns)
        return
    for k in range(rows):
        for piece, c in _cut(grid[k], 0, most):
            yield piece, slice(k, k + 1), c


def _cut(row: Tensor, first: int, most: int) -> Iterator[tuple[Tensor, slice]]:
    """Views of at most ``most`` elements that cover a part of a row, and which columns they are."""
    inner = math.prod(row.shape[1:])
    if inner > most:
        for i in range(len(row)):
            yield from _cut(row[i], first + i * inner, most)
        return
    for i in range(0, len(row), most // inner):
        piece = row[i : i + most // inner]
        start = first + i * inner
        yield piece, slice(start, start + piece.numel())
