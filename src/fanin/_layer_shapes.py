"""Shapes and dtypes of the results of layers: products, convolutions, pooling, recurrences.

See `_shapes`. Where arguments do not fit together, torch's kernel is asked, for its error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ._shapes import Spec, broadcast, shape_of

# products -----------------------------------------------------------------------------------------


@shape_of("linear")
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Spec:
    sizes, rows = x.shape, weight.shape
    if sizes[-1] != rows[-1] or x.dtype is not weight.dtype:
        raise NotImplementedError
    return (*sizes[:-1], *rows[:-1]), x.dtype


@shape_of("matmul", "bmm", "mm")
def _matmul(a: Tensor, b: Tensor) -> Spec:
    left, right = a.shape, b.shape
    if len(left) < 2 or len(right) < 2 or left[-1] != right[-2] or a.dtype is not b.dtype:
        raise NotImplementedError
    lead = left[:-2] if left[:-2] == right[:-2] else broadcast(tuple(left[:-2]), tuple(right[:-2]))
    return (*lead, left[-2], right[-1]), a.dtype


@shape_of("addmm", "baddbmm")
def _addmm(x: Tensor, a: Tensor, b: Tensor, **_: Any) -> Spec:
    if a.shape[-1] != b.shape[-2] or not a.dtype is b.dtype is x.dtype:
        raise NotImplementedError
    return (*a.shape[:-1], b.shape[-1]), a.dtype


@shape_of("_grouped_mm")
def _grouped_mm(x: Tensor, w: Tensor, offs: Any = None, *_: Any, **__: Any) -> Spec:
    if x.dim() == 2 and w.dim() == 2:
        return (offs.shape[0], x.shape[0], w.shape[1]), x.dtype
    if x.dim() == 3 and w.dim() == 2:
        return (x.shape[1], w.shape[1]), x.dtype
    return (*x.shape[:-1], w.shape[-1]), x.dtype


def _each(value: Any, axes: int) -> Sequence[int]:
    if isinstance(value, int):
        return (value,) * axes
    return value if len(value) == axes else (value[0],) * axes


@shape_of("conv1d", "conv2d", "conv3d")
def _conv(x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0,
          dilation: Any = 1, groups: int = 1) -> Spec:  # fmt: skip
    kernel = weight.shape[2:]
    n = len(kernel)
    sizes = x.shape
    if sizes[-n - 1] != weight.shape[1] * groups or x.dtype is not weight.dtype:
        raise NotImplementedError
    steps, spread = _each(stride, n), _each(dilation, n)
    if padding == "same":
        space = list(sizes[-n:])
    else:
        pads = (0,) * n if padding == "valid" else _each(padding, n)
        space = [
            (i + 2 * p - d * (k - 1) - 1) // s + 1
            for i, p, d, k, s in zip(sizes[-n:], pads, spread, kernel, steps, strict=True)
        ]
    if min(space) < 1:
        raise NotImplementedError
    return (*sizes[: -n - 1], weight.shape[0], *space), x.dtype


@shape_of("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0,
                    output_padding: Any = 0, groups: int = 1, dilation: Any = 1) -> Spec:  # fmt: skip
    kernel = weight.shape[2:]
    n = len(kernel)
    if x.shape[-n - 1] != weight.shape[0] or x.dtype is not weight.dtype:
        raise NotImplementedError
    space = [
        (i - 1) * s - 2 * p + d * (k - 1) + more + 1
        for i, s, p, d, k, more in zip(
            x.shape[-n:], _each(stride, n), _each(padding, n), _each(dilation, n), kernel,
            _each(output_padding, n), strict=True,
        )
    ]  # fmt: skip
    return (*x.shape[: -n - 1], weight.shape[1] * groups, *space), x.dtype


@shape_of("scaled_dot_product_attention")
def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Spec:
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise NotImplementedError
    return (*q.shape[:-1], v.shape[-1]), q.dtype


@shape_of("layer_norm", "rms_norm")
def _norm(x: Tensor, shape: Sequence[int], *_: Any, **__: Any) -> Spec:
    if tuple(x.shape[x.dim() - len(shape) :]) != tuple(shape):
        raise NotImplementedError
    return x.shape, x.dtype


@shape_of("batch_norm", "instance_norm")
def _batch_norm(x: Tensor, *statistics: Any) -> Spec:
    if any(isinstance(s, Tensor) and s.shape[0] != x.shape[1] for s in statistics[:4]):
        raise NotImplementedError
    return x.shape, x.dtype


@shape_of("group_norm")
def _group_norm(x: Tensor, groups: int, weight: Tensor | None = None, *_: Any) -> Spec:
    if x.shape[1] % groups or (weight is not None and weight.shape[0] != x.shape[1]):
        raise NotImplementedError
    return x.shape, x.dtype


@shape_of("embedding")
def _embedding(weight: Tensor, indices: Tensor, *_: Any, **__: Any) -> Spec:
    return (*indices.shape, *weight.shape[1:]), weight.dtype


@shape_of("index_select")
def _index_select(x: Tensor, dim: int, index: Tensor) -> Spec:
    shape = list(x.shape)
    shape[dim] = index.numel()
    return shape, x.dtype


@shape_of("index")
def _index(x: Tensor, indices: Sequence[Tensor | None]) -> Spec:
    at = [i for i, index in enumerate(indices) if index is not None]
    picked: tuple[int, ...] = ()
    for i in at:
        index = indices[i]
        if index is None or index.dtype in (torch.bool, torch.uint8):
            raise NotImplementedError
        picked = broadcast(picked, tuple(index.shape))
    rest = [n for i, n in enumerate(x.shape) if i not in at]
    together = at[-1] - at[0] == len(at) - 1
    place = at[0] if together else 0
    return (*rest[:place], *picked, *rest[place:]), x.dtype


@shape_of("embedding_bag")
def _embedding_bag(weight: Tensor, indices: Tensor, offsets: Tensor, *given: Any,
                   **_: Any) -> list[Spec]:  # fmt: skip
    last = given[4] if len(given) > 4 else False
    bags = offsets.shape[0] - bool(last)
    none = ((0,), torch.int64)
    return [((bags, weight.shape[1]), weight.dtype), none, none, none]


@shape_of("gather")
def _gather(x: Tensor, dim: int, index: Tensor, **_: Any) -> Spec:
    return index.shape, x.dtype


@lru_cache(maxsize=4096)
def _subscripts(equation: str, shapes: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """The shape of an einsum's result."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    size: dict[str, int] = {}
    dots: tuple[int, ...] = ()
    for word, shape in zip(left.split(","), shapes, strict=True):
        before, found, after = word.partition("...")
        extra = len(shape) - len(before) - len(after)
        letters = zip(
            before + after, shape[: len(before)] + shape[len(before) + extra :], strict=True
        )
        for letter, n in letters:
            size[letter] = n if size.get(letter, 1) == 1 else size[letter]
        if found:
            dots = broadcast(dots, shape[len(before) : len(before) + extra])
    if not arrow:
        once = sorted(c for c in size if left.count(c) == 1)
        return (*dots, *(size[c] for c in once))
    before, found, after = right.partition("...")
    middle = dots if found else ()
    return (*(size[c] for c in before), *middle, *(size[c] for c in after))


@shape_of("einsum")
def _einsum(equation: str, tensors: Sequence[Tensor], **_: Any) -> Spec:
    return _subscripts(equation, tuple(tuple(t.shape) for t in tensors)), tensors[0].dtype


# pooling ------------------------------------------------------------------------------------------


@shape_of("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def _adaptive(x: Tensor, output_size: Sequence[int]) -> Spec:
    return (*x.shape[: -len(output_size)], *output_size), x.dtype


def _windows(x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool,
             axes: int) -> list[int]:  # fmt: skip
    ks, ps, ds = _each(kernel, axes), _each(padding, axes), _each(dilation, axes)
    steps = _each(stride, axes) if stride not in (None, [], ()) else ks
    shape = []
    for n, k, s, p, d in zip(x.shape[-axes:], ks, steps, ps, ds, strict=True):
        free = n + 2 * p - d * (k - 1) - 1
        count = (math.ceil(free / s) if ceil else free // s) + 1
        if ceil and (count - 1) * s >= n + p:
            count -= 1
        shape.append(count)
    return [*x.shape[:-axes], *shape]


@shape_of("max_pool1d", "max_pool2d", "max_pool3d")
def _max_pool(x: Tensor, kernel_size: Sequence[int], stride: Any = None, padding: Any = 0,
              dilation: Any = 1, ceil_mode: bool = False) -> Spec:  # fmt: skip
    return _windows(x, kernel_size, stride, padding, dilation, ceil_mode, len(kernel_size)), x.dtype


@shape_of("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _avg_pool(x: Tensor, kernel_size: Sequence[int], stride: Any = None, padding: Any = 0,
              ceil_mode: bool = False, *_: Any, **__: Any) -> Spec:  # fmt: skip
    return _windows(x, kernel_size, stride, padding, 1, ceil_mode, len(kernel_size)), x.dtype


# resampling ---------------------------------------------------------------------------------------


@shape_of("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d",
          "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d",
          "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d",
          "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")  # fmt: skip
def _upsample(x: Tensor, size: Sequence[int] | None = None, *given: Any, **named: Any) -> Spec:
    if size is None:
        size = named.get("output_size")
    if size is None:
        listed = [g for g in (*given, named.get("scale_factors")) if isinstance(g, (list, tuple))]
        size = [int(n * f) for n, f in zip(x.shape[2:], listed[0], strict=True)]
    return (*x.shape[:2], *size), x.dtype


@shape_of("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def _grid_sampler(x: Tensor, grid: Tensor, *_: Any) -> Spec:
    return (*x.shape[:2], *grid.shape[1:-1]), x.dtype


@shape_of("im2col")
def _im2col(x: Tensor, kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> Spec:
    windows = _windows(x, kernel_size, stride, padding, dilation, ceil=False, axes=2)
    lead = x.shape[:-3]
    return (*lead, x.shape[-3] * math.prod(kernel_size), math.prod(windows[-2:])), x.dtype


@shape_of("col2im")
def _col2im(x: Tensor, output_size: Sequence[int], kernel_size: Sequence[int], *_: Any) -> Spec:
    return (*x.shape[:-2], x.shape[-2] // math.prod(kernel_size), *output_size), x.dtype


# recurrences --------------------------------------------------------------------------------------


@shape_of("lstm_cell")
def _lstm_cell(x: Tensor, hx: Sequence[Tensor], *_: Any) -> list[Spec]:
    return [(hx[0].shape, x.dtype), (hx[1].shape, x.dtype)]


@shape_of("gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def _cell(x: Tensor, hx: Tensor, *_: Any) -> Spec:
    return hx.shape, x.dtype


def _packed(given: Sequence[Any]) -> bool:
    """Whether the arguments are those of the ``.data`` overloads: data, batch sizes, states."""
    return isinstance(given[1], Tensor) and isinstance(given[3], (list, tuple))


@shape_of("lstm")
def _lstm(*given: Any) -> list[Spec]:
    x, packed = given[0], isinstance(given[1], Tensor)
    h, c = given[2] if packed else given[1]
    twice = 2 if given[8 if packed else 7] is True else 1
    return [((*x.shape[:-1], h.shape[-1] * twice), x.dtype), (h.shape, x.dtype), (c.shape, x.dtype)]


@shape_of("gru", "rnn_tanh", "rnn_relu")
def _rnn(*given: Any) -> list[Spec]:
    x, packed = given[0], _packed(given)
    h = given[2] if packed else given[1]
    twice = 2 if given[8 if packed else 7] is True else 1
    return [((*x.shape[:-1], h.shape[-1] * twice), x.dtype), (h.shape, x.dtype)]
