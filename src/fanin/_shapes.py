"""Shapes and dtypes of the results of common ops, without torch's kernels.

torch's own shape functions for the meta device are Python and take milliseconds for some ops; these
take microseconds. A function gets the op's arguments as the op got them, and returns (shape, dtype)
or a list of them. `NotImplementedError` sends the op to torch's kernel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from typing import Any

import torch
from torch import Tensor

Spec = tuple[Sequence[int], torch.dtype]
Shape = Callable[..., Spec | list[Spec]]

SHAPES: dict[str, Shape] = {}


def shape_of(*names: str) -> Callable[[Shape], Shape]:
    """Register the shape function of ops."""

    def register(function: Shape) -> Shape:
        SHAPES.update(dict.fromkeys(names, function))
        return function

    return register


# dtypes -------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _promoted(*kinds: Any) -> torch.dtype:
    """torch's result type; a kind is (dtype, has axes) of a tensor or the type of a number."""
    examples = [
        torch.empty((1,) * kind[1], dtype=kind[0], device="cpu") if type(kind) is tuple else kind(1)
        for kind in kinds
    ]
    pairs = [torch.result_type(a, b) for a, b in itertools.combinations(examples, 2)]
    return reduce(torch.promote_types, pairs) if pairs else examples[0].dtype


def _kind(value: Any) -> Any:
    return (value.dtype, value.dim() > 0) if isinstance(value, Tensor) else type(value)


def promoted(*values: Any) -> torch.dtype:
    """The dtype of an elementwise op's result."""
    return _promoted(*map(_kind, values))


def real(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a function of real numbers gives its result."""
    if dtype.is_floating_point or dtype.is_complex:
        return dtype
    return torch.get_default_dtype()


@lru_cache(maxsize=65536)
def broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """The common shape of two tensors."""
    if len(a) < len(b):
        a, b = b, a
    out = list(a)
    for i, n in enumerate(b, len(a) - len(b)):
        if out[i] == 1:
            out[i] = n
        elif n not in (1, out[i]):
            raise RuntimeError(f"shapes {list(a)} and {list(b)} cannot be broadcast together")
    return tuple(out)


# elementwise --------------------------------------------------------------------------------------


@shape_of("relu", "neg", "clone", "hardtanh", "relu6", "square", "positive", "clamp_min",
          "clamp_max", "ceil", "floor", "round", "trunc", "sign", "threshold", "leaky_relu", "elu",
          "celu", "selu", "gelu", "silu", "mish", "hardswish", "hardsigmoid", "softplus",
          "hardshrink", "softshrink", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout",
          "masked_fill", "tril", "triu", "flip", "roll", "nan_to_num", "rrelu", "prelu",
          "bitwise_not", "renorm", "masked_scatter", "index_copy", "index_add",
          "index_fill", "index_put", "scatter", "scatter_add", "scatter_reduce", "select_scatter",
          "slice_scatter", "log_sigmoid", "logit", "fill", "zero",
          "bernoulli", "normal", "uniform", "exponential")  # fmt: skip
def _same(x: Tensor, *_: Any, **__: Any) -> Spec:
    return x.shape, x.dtype


@shape_of("exp", "log", "sigmoid", "tanh", "sqrt", "rsqrt", "sin", "cos", "tan", "erf", "erfc",
          "erfinv", "reciprocal", "log1p", "log2", "log10", "expm1", "exp2", "sinh", "cosh", "atan",
          "asin", "acos", "asinh", "acosh", "atanh", "lgamma", "digamma")  # fmt: skip
def _real(x: Tensor) -> Spec:
    return x.shape, real(x.dtype)


@shape_of("add", "sub", "mul", "rsub", "maximum", "minimum", "fmod", "remainder",
          "bitwise_and", "bitwise_or", "bitwise_xor", "floor_divide")  # fmt: skip
def _binary(a: Any, b: Any, **_: Any) -> Spec:
    if not isinstance(b, Tensor):
        return a.shape, (
            a.dtype if type(b) is float and a.dtype.is_floating_point else promoted(a, b)
        )
    if not isinstance(a, Tensor):
        return b.shape, promoted(a, b)
    sizes, others = a.shape, b.shape
    if a.dtype is b.dtype:
        return (sizes if sizes == others else broadcast(tuple(sizes), tuple(others))), a.dtype
    return (sizes if sizes == others else broadcast(tuple(sizes), tuple(others))), promoted(a, b)


@shape_of("pow")
def _pow(a: Any, b: Any) -> Spec:
    return _binary(a, b)


@shape_of("abs")
def _abs(x: Tensor) -> Spec:
    return x.shape, x.dtype.to_real() if x.is_complex() else x.dtype


@shape_of("div")
def _div(a: Any, b: Any, *, rounding_mode: str | None = None) -> Spec:
    shape, dtype = _binary(a, b)
    return shape, (real(dtype) if rounding_mode is None else dtype)


@shape_of("atan2")
def _binary_real(a: Any, b: Any) -> Spec:
    shape, dtype = _binary(a, b)
    return shape, real(dtype)


@shape_of("eq", "ne", "lt", "gt", "le", "ge", "logical_and", "logical_or", "logical_xor", "isclose")
def _compare(a: Any, b: Any, *_: Any, **__: Any) -> Spec:
    return _binary(a, b)[0], torch.bool


@shape_of("logical_not", "isnan", "isinf", "isfinite", "signbit", "isposinf", "isneginf")
def _truth(x: Tensor) -> Spec:
    return x.shape, torch.bool


@shape_of("clamp")
def _clamp(x: Tensor, least: Any = None, most: Any = None, **named: Any) -> Spec:
    bounds = [b for b in (least, most, *named.values()) if b is not None]
    shape = tuple(x.shape)
    for b in bounds:
        if isinstance(b, Tensor):
            shape = broadcast(shape, tuple(b.shape))
    return shape, promoted(x, *bounds)


@shape_of("where")
def _where(condition: Tensor, *given: Any, **named: Any) -> Spec:
    values = (*given, *named.values())
    if len(values) != 2:
        raise NotImplementedError
    shape = tuple(condition.shape)
    for v in values:
        if isinstance(v, Tensor):
            shape = broadcast(shape, tuple(v.shape))
    return shape, promoted(*values)


@shape_of("addcmul", "addcdiv")
def _addcmul(x: Tensor, a: Tensor, b: Tensor, **_: Any) -> Spec:
    shape = broadcast(tuple(x.shape), broadcast(tuple(a.shape), tuple(b.shape)))
    return shape, promoted(x, a, b)


@shape_of("lerp")
def _lerp(x: Tensor, end: Tensor, weight: Any) -> Spec:
    shape = broadcast(tuple(x.shape), tuple(end.shape))
    if isinstance(weight, Tensor):
        shape = broadcast(shape, tuple(weight.shape))
    return shape, x.dtype


@shape_of("softmax", "log_softmax")
def _softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None, *_: Any) -> Spec:
    return x.shape, (dtype if isinstance(dtype, torch.dtype) else real(x.dtype))


@shape_of("glu")
def _glu(x: Tensor, dim: int = -1) -> Spec:
    shape = list(x.shape)
    shape[dim] //= 2
    return shape, x.dtype


@shape_of("type_as")
def _type_as(x: Tensor, other: Tensor) -> Spec:
    return x.shape, other.dtype


@shape_of("outer", "ger")
def _outer(a: Tensor, b: Tensor) -> Spec:
    return (a.shape[0], b.shape[0]), promoted(a, b)


@shape_of("_weight_norm")
def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Spec:
    return v.shape, v.dtype


@shape_of("complex")
def _complex(a: Tensor, b: Tensor) -> Spec:
    kind = {torch.float32: torch.complex64, torch.float64: torch.complex128}[a.dtype]
    return broadcast(tuple(a.shape), tuple(b.shape)), kind


# factories ----------------------------------------------------------------------------------------


@shape_of("rand", "randn")
def _drawn(size: Sequence[int], *, dtype: torch.dtype | None = None, **_: Any) -> Spec:
    return size, dtype or torch.get_default_dtype()


@shape_of("rand_like", "randn_like")
def _drawn_like(x: Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> Spec:
    return x.shape, dtype or x.dtype


# joins --------------------------------------------------------------------------------------------


@shape_of("cat")
def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Spec:
    parts = [t for t in tensors if t.dim() != 1 or t.shape[0]] or list(tensors)
    shapes = [list(t.shape) for t in parts]
    shape = shapes[0]
    total = sum(s[dim] for s in shapes)
    for other in shapes:
        other[dim] = total
    if any(other != shape for other in shapes):
        raise NotImplementedError
    dtype = parts[0].dtype
    same = all(t.dtype is dtype for t in tensors)
    return shape, (dtype if same else promoted(*tensors))


@shape_of("stack")
def _stack(tensors: Sequence[Tensor], dim: int = 0) -> Spec:
    shape = list(tensors[0].shape)
    shape.insert(dim if dim >= 0 else dim + len(shape) + 1, len(tensors))
    dtype = tensors[0].dtype
    same = all(t.dtype is dtype for t in tensors)
    return shape, (dtype if same else promoted(*tensors))


@shape_of("repeat")
def _repeat(x: Tensor, repeats: Sequence[int]) -> Spec:
    lead = len(repeats) - x.dim()
    sizes = (1,) * lead + tuple(x.shape)
    return [n * r for n, r in zip(sizes, repeats, strict=True)], x.dtype


@shape_of("pad", "constant_pad_nd")
def _pad(x: Tensor, pad: Sequence[int], *_: Any) -> Spec:
    shape = list(x.shape)
    for i in range(len(pad) // 2):
        shape[-1 - i] += pad[2 * i] + pad[2 * i + 1]
    return shape, x.dtype


# reductions ---------------------------------------------------------------------------------------


def reduced(x: Tensor, dim: Any, keepdim: bool) -> list[int]:
    """The shape after a reduction over ``dim``: one axis, several, or all."""
    shape = list(x.shape)
    if dim is None or (not isinstance(dim, int) and not len(dim)):
        return [1] * len(shape) if keepdim else []
    axes = {d % len(shape) for d in ((dim,) if isinstance(dim, int) else dim)} if shape else set()
    if keepdim:
        return [1 if i in axes else n for i, n in enumerate(shape)]
    return [n for i, n in enumerate(shape) if i not in axes]


@shape_of("mean", "nanmean")
def _mean(x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Spec:
    return reduced(x, dim, keepdim), dtype or x.dtype


@shape_of("sum", "nansum")
def _sum(x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Spec:
    plain = x.dtype if x.dtype.is_floating_point or x.dtype.is_complex else torch.int64
    return reduced(x, dim, keepdim), dtype or plain


@shape_of("amax", "amin")
def _extreme(x: Tensor, dim: Any = (), keepdim: bool = False) -> Spec:
    return reduced(x, dim, keepdim), x.dtype


@shape_of("logsumexp")
def _logsumexp(x: Tensor, dim: Any, keepdim: bool = False) -> Spec:
    return reduced(x, dim, keepdim), real(x.dtype)


@shape_of("all", "any")
def _all(x: Tensor, dim: Any = None, keepdim: bool = False) -> Spec:
    return reduced(x, dim, keepdim), torch.bool


@shape_of("cumsum", "cumprod")
def _cumulative(x: Tensor, dim: int, *, dtype: Any = None) -> Spec:
    return x.shape, _sum(x, dtype=dtype)[1]


@shape_of("var", "std")
def _var(x: Tensor, dim: Any = None, unbiased: Any = None, keepdim: bool = False, **_: Any) -> Spec:
    return reduced(x, None if isinstance(dim, bool) else dim, keepdim), x.dtype


@shape_of("linalg_vector_norm")
def _norm(x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *,  # noqa: A002
          dtype: Any = None) -> Spec:  # fmt: skip
    if x.is_complex():
        raise NotImplementedError
    return reduced(x, dim, keepdim), dtype or x.dtype


@shape_of("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
def _loss(x: Tensor, target: Tensor, reduction: int = 1, *_: Any) -> Spec:
    shape = () if reduction else broadcast(tuple(x.shape), tuple(target.shape))
    return shape, promoted(x, target)
