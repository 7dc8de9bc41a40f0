"""Linear maps and products of tensors: everything that is a sum of products.

For independent a and b, E[y y'] of y = sum_k a_k b_k is the sum over pairs (k, k') of q_a q_b, the
classes of k weighed by their pairs: exact for any width. Gradients are the same contractions with the
gradient in the output's place; that of a weight runs over samples and positions with their
correlations, so that coherent tokens add up as n^2, not n.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from .domain import Abstract, added, contracted, limited, reshaped, scaled, summed
from .labels import Labels, inner_labels, kron_labels, matmul_labels, outer_labels, tensordot_labels
from .registry import backward, forward
from .tilt import Image, Logits, logits, with_echo, with_tilt
from .width import fluctuation

# two operands -------------------------------------------------------------------------------------


def product(a: Abstract, b: Abstract, labels: Labels) -> Abstract:
    """A contraction of independent tensors; `noise` grows by what |a|^2 and |b|^2 fluctuate.

    The contracted numbers' own squares vary from draw to draw by (E x^4 / (E x^2)^2 - 1) / n and the
    result's second moment with them: 2/n for Gaussian numbers, 5/n for rectified ones. Source: Hanin &
    Nica 2018, "Products of many large random matrices and gradients in deep neural networks".
    """
    of_a, of_b, out = labels
    y = contracted(a, of_a, b, of_b, out)
    y.noise = a.noise + b.noise + fluctuation(a) + fluctuation(b)
    return y


def factors_of(
    grad: Abstract, a: Abstract, b: Abstract, labels: Labels
) -> tuple[Abstract, Abstract]:
    """Gradients of both operands: dL/da = grad b and dL/db = grad a over what each lacks."""
    of_a, of_b, out = labels
    return (
        collected(product(grad, b, (out, of_b, of_a)), a.shape),
        collected(product(grad, a, (out, of_a, of_b)), b.shape),
    )


def collected(grad: Abstract, shape: Sequence[int]) -> Abstract:
    """The gradient of a tensor that was broadcast from ``shape``: summed over the copies."""
    shape = tuple(shape)
    if grad.shape == shape:
        return grad
    extra = len(grad.dims) - len(shape)
    grad = summed(grad, range(extra)) if extra else grad
    wide = [d for d, (n, m) in enumerate(zip(grad.shape, shape, strict=True)) if m == 1 < n]
    return summed(grad, wide, keep=True) if wide else grad


def biased(y: Abstract, bias: Abstract | None, dim: int = -1) -> Abstract:
    """Y + bias, a vector along one axis."""
    if bias is None or not bias.q.any():
        return y
    after = len(y.dims) - 1 - dim % len(y.dims)
    return limited(added(y, bias.with_(dims=bias.dims + ((),) * after, known=None, chain=None)))


@lru_cache(maxsize=64)
def linear_labels(rank: int, rows: bool) -> Labels:
    """x: batch, c; w: o, c or c; y: batch, o or batch."""
    batch = tuple(f"b{i}" for i in range(rank - 1))
    return (*batch, "c"), ("o", "c") if rows else ("c",), (*batch, "o") if rows else batch


@forward("linear")
def linear(x: Abstract, weight: Abstract, bias: Abstract | None = None) -> Abstract:
    """Y = x W^T + b: n q_x q_w at the same input, n (n - 1) at different ones.

    Its source is an `Image` of x: attention learns from it that keys and values share their tokens.
    """
    labels = linear_labels(len(x.dims), len(weight.dims) > 1)
    y = biased(product(x, weight, labels), bias, len(x.dims) - 1)
    y.source = Image(x)
    return y


@backward("linear")
def linear_backward(
    grad: Abstract,
    x: Abstract,
    weight: Abstract,
    output: Abstract,
    bias: Abstract | None = None,
) -> dict[str, Abstract]:
    """dL/dx = g W; dL/dW = g^T x over all samples and positions; dL/db = the sum of g.

    Where the output is keys, g follows x (`tilt`).
    """
    labels = linear_labels(len(x.dims), len(weight.dims) > 1)
    gx, gw = factors_of(grad, x, weight, labels)
    found = {"x": gx, "weight": with_echo(gw, output)}
    if bias is not None:
        found["bias"] = collected(grad, bias.shape)
    return found


_SECOND = ("other", "mat2", "vec", "vec2", "tensor", "y")


def _second(given: dict[str, Any]) -> tuple[str, Abstract]:
    name = next(name for name in _SECOND if isinstance(given.get(name), Abstract))
    return name, given[name]


def _pair_labels(op: str, a: Abstract, b: Abstract) -> Labels:
    ranks = len(a.dims), len(b.dims)
    if op in {"outer", "ger"}:
        return outer_labels()
    if op == "inner":
        return inner_labels(*ranks)
    return matmul_labels(*ranks)


@forward("matmul", "mm", "bmm", "mv", "dot", "vdot", "outer", "ger", "inner", "linalg_matmul")
def matmul(**given: Any) -> Abstract:
    """A sum over the inner axis, batch axes broadcast; what queries tilt in attention comes on top."""
    a, (_, b) = given["x"], _second(given)
    y = product(a, b, _pair_labels(given["op"], a, b))
    if isinstance(a.source, Logits):
        return with_tilt(y, a, b, a.source)
    y.source = logits(a, b, turned=True)
    return y


@backward("matmul", "mm", "bmm", "mv", "dot", "vdot", "outer", "ger", "inner", "linalg_matmul")
def matmul_backward(**given: Any) -> dict[str, Abstract]:
    """Each factor's gradient is the output's times the other factor, summed over broadcast copies."""
    a, (name, b) = given["x"], _second(given)
    ga, gb = factors_of(given["grad"], a, b, _pair_labels(given["op"], a, b))
    return {"x": ga, name: gb}


# a product and something added --------------------------------------------------------------------

_FACTORS = {
    "addmm": ("mat1", "mat2"),
    "addmv": ("mat", "vec"),
    "addr": ("vec1", "vec2"),
    "baddbmm": ("batch1", "batch2"),
    "addbmm": ("batch1", "batch2"),
}


def _added_labels(op: str, a: Abstract, b: Abstract) -> Labels:
    if op == "addr":
        return outer_labels()
    of_a, of_b, out = matmul_labels(len(a.dims), len(b.dims))
    return of_a, of_b, tuple(x for x in out if op != "addbmm" or x != "b0")


@forward(*_FACTORS)
def addmm(**given: Any) -> Abstract:
    """Beta x + alpha a b; addbmm sums over the batch too."""
    op, (a, b) = given["op"], (given[name] for name in _FACTORS[given["op"]])
    y = product(a, b, _added_labels(op, a, b))
    alpha, beta = float(given.get("alpha", 1)), float(given.get("beta", 1))
    return limited(added(y, given["x"], alpha, beta)) if beta else scaled(y, alpha).plain()


@backward(*_FACTORS)
def addmm_backward(**given: Any) -> dict[str, Abstract]:
    """dL/dx = beta g, dL/da = alpha g b, dL/db = alpha a g."""
    op, grad, names = given["op"], given["grad"], _FACTORS[given["op"]]
    a, b = (given[name] for name in names)
    alpha, beta = float(given.get("alpha", 1)), float(given.get("beta", 1))
    ga, gb = factors_of(scaled(grad, alpha).plain(), a, b, _added_labels(op, a, b))
    own = collected(scaled(grad, beta).plain(), given["x"].shape)
    return {"x": own, names[0]: ga, names[1]: gb}


# other products of two ----------------------------------------------------------------------------


@forward("kron")
def kron(x: Abstract, other: Abstract) -> Abstract:
    """Every element of one times every element of the other, blocks within blocks."""
    y = product(x, other, kron_labels(len(x.dims), len(other.dims)))
    return reshaped(y, _kron_shape(x, other))


@backward("kron")
def kron_backward(grad: Abstract, x: Abstract, other: Abstract) -> dict[str, Abstract]:
    """Each factor's gradient: the blocks times the other factor, summed."""
    labels = kron_labels(len(x.dims), len(other.dims))
    sizes = dict(zip((*labels[0], *labels[1]), (*x.shape, *other.shape), strict=True))
    blocks = reshaped(grad, [sizes[label] for label in labels[2]])
    gx, gother = factors_of(blocks, x, other, labels)
    return {"x": gx, "other": gother}


def _kron_shape(a: Abstract, b: Abstract) -> list[int]:
    rank = max(len(a.dims), len(b.dims))
    padded = [(1,) * (rank - len(x.dims)) + x.shape for x in (a, b)]
    return [p * q for p, q in zip(*padded, strict=True)]


def _dot_labels(x: Abstract, other: Abstract, a: Sequence[int], b: Sequence[int]) -> Labels:
    ranks = len(x.dims), len(other.dims)
    of_a, of_b = (tuple(d % rank for d in dims) for dims, rank in zip((a, b), ranks, strict=True))
    return tensordot_labels(*ranks, of_a, of_b)


@forward("tensordot")
def tensordot(
    x: Abstract, other: Abstract, dims_self: Sequence[int], dims_other: Sequence[int]
) -> Abstract:
    """A sum over pairs of axes."""
    return product(x, other, _dot_labels(x, other, dims_self, dims_other))


@backward("tensordot")
def tensordot_backward(
    grad: Abstract,
    x: Abstract,
    other: Abstract,
    dims_self: Sequence[int],
    dims_other: Sequence[int],
) -> dict[str, Abstract]:
    """Each factor's gradient is the output's times the other factor."""
    gx, gother = factors_of(grad, x, other, _dot_labels(x, other, dims_self, dims_other))
    return {"x": gx, "other": gother}


def _vecdot_labels(x: Abstract, y: Abstract, dim: int) -> Labels:
    rank = max(len(x.dims), len(y.dims))
    names = tuple(f"b{i}" for i in range(rank))
    gone = names[dim % rank]
    return (
        names[rank - len(x.dims) :],
        names[rank - len(y.dims) :],
        tuple(name for name in names if name != gone),
    )


@forward("linalg_vecdot")
def vecdot(x: Abstract, y: Abstract, dim: int = -1) -> Abstract:
    """Sum of x y over one axis, the others broadcast."""
    return product(x, y, _vecdot_labels(x, y, dim))


@backward("linalg_vecdot")
def vecdot_backward(grad: Abstract, x: Abstract, y: Abstract, dim: int = -1) -> dict[str, Abstract]:
    """Each factor's gradient is the output's times the other factor."""
    gx, gy = factors_of(grad, x, y, _vecdot_labels(x, y, dim))
    return {"x": gx, "y": gy}
