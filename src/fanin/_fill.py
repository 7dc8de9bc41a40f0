"""Distribution -> tensor: the only module that writes values into tensors.

A value depends on (seed, key, row, column) alone, so that order, strides, sharding, threads and
device change nothing. docs/engine.md states the law.

Axes: R rows (dim 0), C columns (the remaining dims, flattened).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import is_lazy

from ._distribution import Distribution, Elementwise
from ._drawers import DRAWERS, Drawn, Sampler, Target
from ._errors import InvalidValueError, ModelError
from ._rng import Memory, Stream
from ._shards import Shard, index_of

# What kernels can write, where the tensor lies.
IN_PLACE = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
CHUNK = 2**16  # elements drawn at a time: the engine's temporaries stay in the cache


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
    tensor([0.0141, 0.0245, 0.0110])

    Source: docs/engine.md; Salmon et al. 2011 (Philox), Box & Muller 1958.
    """
    _write(tensor, *_fillable(tensor, distribution, Stream(key, seed)))
    return tensor


def check_fillable(tensor: Tensor, distribution: Distribution) -> None:
    """Raise what `fill_` would raise for this pair, writing nothing.

    Raises:
        InvalidValueError: not a tensor or distribution; a shape or dtype that does not fit.
        ModelError: a tensor that holds no numbers, or one number for several elements.
    """
    _fillable(tensor, distribution, Stream(""))


def _fillable(tensor: Tensor, distribution: Distribution, stream: Stream) -> tuple[Shard, Sampler]:
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
    return _sampler(distribution, tensor, stream)


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
    _write(tensor, *_sampler(distribution, tensor, stream))


def _write(tensor: Tensor, shard: Shard, sample: Sampler) -> None:
    # .data leaves the version counter alone: however many pieces, a write is one version.
    local = shard.local.data
    if not (isinstance(sample, Drawn) and _written_in_place(local, shard, sample)):
        # What exceeds the dtype becomes inf, as in torch, without a warning.
        with (
            torch.inference_mode(mode=tensor.is_inference()),
            torch.no_grad(),
            np.errstate(over="ignore"),
        ):
            for piece, r, c in _pieces(local, shard):
                piece.copy_(torch.from_numpy(sample(r, c)).reshape(piece.shape))
    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)


def write_constant(tensor: Tensor, value: complex | None = None) -> None:
    """Torch's own fill, open to torch.compile: any number, dtype, layout and subclass.

    Without a value it is torch's own zero, which sparse tensors have too.
    """
    with torch.no_grad():
        tensor.zero_() if value is None else tensor.fill_(value)


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
            "a lazy parameter has no shape yet, so it cannot be filled. "
            "Run the model once on an example input first."
        )
    if tensor.layout is not torch.strided:
        raise ModelError(
            f"fill_ writes dense tensors; got layout {tensor.layout}. Fill tensor.to_dense()."
        )
    if not isinstance(distribution, Elementwise):
        distribution.std_for(tuple(tensor.shape))  # raises if the shape does not fit
    steps = zip(tensor.stride(), tensor.shape, strict=True)
    if not tensor.is_contiguous() and any(step == 0 and size > 1 for step, size in steps):
        raise ModelError(
            f"an expanded tensor keeps one number for several elements; got shape "
            f"{tuple(tensor.shape)} with strides {tensor.stride()}. "
            "Fill the tensor that it was expanded from, or a clone()."
        )


def _has_no_numbers(tensor: Tensor) -> bool:
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def _sampler(distribution: Distribution, tensor: Tensor, stream: Stream) -> tuple[Shard, Sampler]:
    shard = index_of(tensor)
    return shard, DRAWERS[type(distribution)](distribution, Target(shard, tensor.dtype, stream))


def _written_in_place(local: Tensor, shard: Shard, sample: Drawn) -> bool:
    """Whether a kernel could, and did, write all values into the tensor's own memory."""
    dtype, stride = IN_PLACE.get(local.dtype), _row_stride(local)
    plain = type(local) is Tensor and local.is_cpu and not local.is_neg()
    if dtype is None or stride is None or not plain or not local.numel():
        return False
    try:
        address = local.data_ptr()
    except RuntimeError:  # torch.func's wrappers have no memory of their own
        return False
    memory = Memory(address, stride * local.itemsize, dtype, local.itemsize)
    threads = torch.get_num_threads()
    stream = sample.target.stream
    return sample.draw.into(memory, stream, shard.rows, shard.columns, threads=threads)


def _row_stride(local: Tensor) -> int | None:
    """Elements from row to row, if the elements of a row lie side by side in memory."""
    if local.dim() < 2:
        return 0 if local.numel() < 2 or local.stride(0) == 1 else None
    side = 1
    for size, step in zip(reversed(local.shape[1:]), reversed(local.stride()[1:]), strict=True):
        if size != 1 and step != side:
            return None
        side *= size
    return local.stride(0)


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
