"""Products of any number of tensors summed over shared labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import strata
from .contract import biased, collected, product
from .domain import Abstract, expanded, merge_dim, permuted, reshaped, summed, uniform
from .labels import Label, parsed, summed_early
from .registry import backward, forward

# any number of operands ---------------------------------------------------------------------------


def einsum_of(xs: Sequence[Abstract], of: Sequence[Label], out: Label) -> Abstract:
    """The product of independent tensors, from left to right; labels are summed as soon as they may be."""
    y, labels = _without_repeats(xs[0], of[0])
    for i in range(1, len(xs)):
        x, own = _without_repeats(xs[i], of[i])
        kept = summed_early(of, out, i)
        y, labels = product(y, x, (labels, own, kept)), kept
    gone = [d for d, label in enumerate(labels) if label not in out]
    y = summed(y, gone) if gone else y
    labels = tuple(label for label in labels if label in out)
    return permuted(y, [labels.index(label) for label in out])


def einsum_grads(
    grad: Abstract, xs: Sequence[Abstract], of: Sequence[Label], out: Label
) -> list[Abstract]:
    """Each operand's gradient: the output's times all others, copied along what it alone summed."""
    found = []
    for i, x in enumerate(xs):
        own = tuple(dict.fromkeys(of[i]))
        others = [j for j in range(len(xs)) if j != i]
        terms = [out, *(of[j] for j in others)]
        there = tuple(label for label in own if any(label in term for term in terms))
        g = einsum_of([grad, *(xs[j] for j in others)], terms, there)
        sizes = dict(zip(of[i], x.shape, strict=True))
        whole = [1 if label not in there else g.shape[there.index(label)] for label in own]
        g = reshaped(g, whole)
        g = expanded(
            g, [sizes[label] if n == 1 else n for label, n in zip(own, whole, strict=True)]
        )
        g = collected(g, [sizes[label] for label in own])
        found.append(_repeated(g, own, of[i]))
    return found


def _without_repeats(x: Abstract, labels: Label) -> tuple[Abstract, Label]:
    """The diagonal wherever a label stands twice."""
    while len(set(labels)) < len(labels):
        second = next(d for d, label in enumerate(labels) if label in labels[:d])
        first = labels.index(labels[second])
        x = diagonal(x, first, second)
        labels = (*labels[:second], *labels[second + 1 :])
    return x, labels


def diagonal(x: Abstract, first: int, second: int) -> Abstract:
    """``x[..., i, ..., i, ...]`` on axis ``first``: indices that differ on one axis do so on both."""
    rest = [d for d in range(len(x.dims)) if d not in {first, second}]
    x = permuted(merge_dim(merge_dim(x, first), second), [first, second, *rest]).plain()
    if x.dims[0]:
        x = uniform(x, [0, 1])
        q, mean = (np.moveaxis(t.diagonal(axis1=0, axis2=1), -1, 0) for t in (x.q, x.mean))
        x = x.with_(dims=x.dims[1:], q=q, mean=mean)
    else:
        x = x.with_(dims=x.dims[1:])
    places = [first, *rest]
    return permuted(x, [places.index(d) for d in sorted(places)])


def _repeated(grad: Abstract, own: Label, labels: Label) -> Abstract:
    """The gradient of a tensor of which ``grad`` is of the diagonal; zero beside it."""
    for d, label in enumerate(labels):
        if label in labels[:d]:
            grad = _on_diagonal(grad, own.index(label), d)
            own = (*own[:d], label, *own[d:])
    return grad


def _on_diagonal(x: Abstract, first: int, new: int) -> Abstract:
    """A tensor that is ``x`` where axis ``new`` equals axis ``first``, else zero.

    Of n^2 positions n are filled: (same, same) 1/n, one of both different never, (different,
    different) 1/(n (n - 1)) of the pairs.
    """
    rest = [d for d in range(len(x.dims)) if d != first]
    x = uniform(permuted(merge_dim(x, first), [first, *rest]), [0]).plain()
    n = strata.size(x.dims[0])
    dims = (x.dims[0], *x.dims)
    if n > 1:
        q = np.zeros((2, *x.q.shape))
        q[0, 0], q[1, 1] = x.q[0] / n, x.q[1] / (n * (n - 1))
        x = Abstract(dims, x.mean[None] / n, q, noise=x.noise)
    else:
        x = x.with_(dims=dims)
    places = [new, first, *(d + (d >= new) for d in rest)]
    return permuted(x, [places.index(d) for d in sorted(places)])


@forward("einsum")
def einsum(equation: str, tensors: Sequence[Abstract]) -> Abstract:
    """A sum of products, operands taken from left to right."""
    of, out = parsed(equation, tuple(len(x.dims) for x in tensors))
    return einsum_of(tensors, of, out)


@backward("einsum")
def einsum_backward(
    grad: Abstract, equation: str, tensors: Sequence[Abstract]
) -> dict[str, list[Abstract]]:
    """Each operand's gradient is the einsum of the output's with all the others."""
    of, out = parsed(equation, tuple(len(x.dims) for x in tensors))
    return {"tensors": einsum_grads(grad, tensors, of, out)}


# ops that are einsums -----------------------------------------------------------------------------


def _chain_labels(xs: Sequence[Abstract]) -> tuple[list[Label], Label]:
    """Of a product of matrices of which the first and the last may be vectors."""
    of = [(f"m{i}", f"m{i + 1}") for i in range(len(xs))]
    of[0] = of[0][-len(xs[0].dims) :]  # type: ignore[assignment]
    of[-1] = of[-1][: len(xs[-1].dims)]  # type: ignore[assignment]
    ends = {"m0", f"m{len(xs)}"}
    return list(of), tuple(x for term in (of[0], of[-1]) for x in term if x in ends)


@forward("linalg_multi_dot", "chain_matmul")
def multi_dot(tensors: Sequence[Abstract] = (), matrices: Sequence[Abstract] = ()) -> Abstract:
    """A product of several matrices."""
    xs = tensors or matrices
    return einsum_of(xs, *_chain_labels(xs))


@backward("linalg_multi_dot", "chain_matmul")
def multi_dot_backward(
    grad: Abstract, tensors: Sequence[Abstract] = (), matrices: Sequence[Abstract] = ()
) -> dict[str, list[Abstract]]:
    """Of each factor: the transposed product of those left of it, g, and of those right of it."""
    xs = tensors or matrices
    return {"tensors" if tensors else "matrices": einsum_grads(grad, xs, *_chain_labels(xs))}


def _bilinear_labels(rank: int) -> tuple[list[Label], Label]:
    batch = tuple(f"b{i}" for i in range(rank - 1))
    return [(*batch, "i"), ("o", "i", "j"), (*batch, "j")], (*batch, "o")


@forward("bilinear")
def bilinear(
    input1: Abstract, input2: Abstract, weight: Abstract, bias: Abstract | None = None
) -> Abstract:
    """y_o = sum_ij x_i W_oij x'_j + b_o."""
    y = einsum_of([input1, weight, input2], *_bilinear_labels(len(input1.dims)))
    return biased(y, bias)


@backward("bilinear")
def bilinear_backward(
    grad: Abstract,
    input1: Abstract,
    input2: Abstract,
    weight: Abstract,
    bias: Abstract | None = None,
) -> dict[str, Abstract]:
    """Each factor's gradient is the output's times the other two."""
    of, out = _bilinear_labels(len(input1.dims))
    grads = einsum_grads(grad, [input1, weight, input2], of, out)
    found = dict(zip(("input1", "weight", "input2"), grads, strict=True))
    return found if bias is None else {**found, "bias": collected(grad, bias.shape)}
