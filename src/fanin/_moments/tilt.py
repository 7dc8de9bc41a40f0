"""What attention adds where keys and values are images of the same tensor.

Let k_j = W_k x_j and v_j = W_v x_j. The logits of query i are u_i . x_j, so its weights tilt the tokens
towards u_i: sum_j A_ij x_j moves by (1 - P) C u_i on average, C the covariance of tokens within a
sequence and P = sum_j A_ij^2 (Stein's lemma). W_v takes that to the output, where no average over keys
makes it small:

    E[y y'] gains (1 - P)(1 - P') K V / n,

K the variance of a row's logits, V that of values within a sequence, n how many independent numbers x_j
has. For one stream of cosine r, width d and logit variance (1 - r) s^4 this is (1 - r)^2 s^4 (1 - P) / d.

Backward, the gradient of key j is sum_i A_ij q_i (v_j - sum_k A_ik v_k) . g_i: linear in x_j. So W_k's
gradient sum_ij q_i (dL/dz_ij x_j)' sums a product that has a mean: sum_j dL/dz_ij x_j is (1 - P) C W_v' g_i
beside what independent x_j give, C^2 |W_v' g_i|^2 P. Its second moment is

    1 + (1 - P) / (n P)

times that of independent factors, 1 + T / n for T tokens that are attended to evenly.

`Abstract.source` says which tensors share what: `contract.linear` writes it, `inherited` passes it on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import strata
from .domain import (
    Abstract,
    added,
    contracted,
    limited,
    multiplied,
    once,
    permuted,
    reshaped,
    uniform,
    weighed,
)
from .strata import Array, Dim


@dataclass(eq=False, slots=True)
class Image:
    """What a fresh linear map of ``of`` along one axis makes.

    Args:
        of: the tensor that is mapped.
        channels: its axis; where it is the second, all after it are positions.
        echo: what the map's gradient has, as a second moment, over that of a gradient that is
            independent of ``of``; an attention that reads it as keys writes it (`echoed`).
    """

    of: Abstract
    channels: int = -1
    echo: float = 1.0


@dataclass(frozen=True, eq=False, slots=True)
class Logits:
    """Products of queries and keys, times ``scale``."""

    query: Abstract
    key: Abstract
    scale: float = 1.0


# Ops whose result is a combination, with fixed coefficients, of parts of what they read.
KEEPS = frozenset((
    "_safe_softmax", "_softmax", "_to_copy", "_unsafe_view", "add", "alias", "as_strided", "cat", "chunk",
    "clone", "concat", "constant_pad_nd", "contiguous", "detach", "div", "dropout", "expand", "flatten",
    "flip", "index_select", "layer_norm", "masked_fill", "movedim", "mul", "narrow", "neg", "pad",
    "permute", "repeat", "repeat_interleave", "reshape", "rms_norm", "roll", "select", "slice", "softmax",
    "split", "split_with_sizes", "squeeze", "stack", "sub", "t", "to", "transpose", "true_divide",
    "type_as", "unbind", "unflatten", "unsafe_chunk", "unsafe_split", "unsqueeze", "view", "view_as",
    "where",
))  # fmt: skip


def inherited(
    op: str, sources: Sequence[Image | Logits | None], other: Any = None
) -> Image | Logits | None:
    """The source of an op's result: what all computed tensors that it reads have in common.

    Args:
        op: its name.
        sources: of those tensors; parameters and constants are coefficients.
        other: the op's second argument, where it is a number.
    """
    first = sources[0] if sources and op in KEEPS else None
    if first is None or any(_stem(x) is not _stem(first) for x in sources[1:]):
        return None
    if isinstance(first, Logits) and isinstance(other, (int, float)):
        if op == "mul":
            return replace(first, scale=first.scale * other)
        if op in {"div", "true_divide"}:
            return replace(first, scale=first.scale / other)
    return first


def _stem(source: Image | Logits | None) -> Abstract | None:
    return source.of if isinstance(source, Image) else source.key if source is not None else None


def logits(query: Abstract, key: Abstract, *, turned: bool) -> Logits | None:
    """The source of q k^T where k is an image; ``turned`` where k comes as (channels, positions)."""
    if not isinstance(key.source, Image) or len(key.dims) < 2:
        return None
    if turned:
        order = [*range(len(key.dims) - 2), len(key.dims) - 1, len(key.dims) - 2]
        key = permuted(key, order).with_(source=key.source)
    return Logits(query, key)


def with_tilt(out: Abstract, weights: Abstract, value: Abstract, source: Logits | None) -> Abstract:
    """An attention's output with the part that follows its queries.

    Args:
        out: weights times values, (batch..., queries, channels).
        weights: (batch..., queries, keys).
        value: (batch..., keys, channels).
        source: of the logits.
    """
    if (
        source is None
        or not share_tokens(source.key, value)
        or len(source.query.dims) != len(out.dims)
    ):
        return out
    part = aimed(source.query, source.key, value, source.scale)
    rest = unspent(weights)
    image, read = source.key.source, value.source
    if isinstance(image, Image) and image is not read:
        image.echo = echoed(rest.average_mean, image)
    return limited(_plus(out, multiplied(part, rest)))


def echoed(rest: float, image: Image) -> float:
    """1 + (1 - P) / (n P): a key matrix's gradient over that of keys independent of the values.

    Args:
        rest: 1 - P, P = sum_j A_j^2 the average over queries.
        image: the keys.
    """
    return 1.0 + rest / (max(1.0 - rest, 1e-9) * independent_numbers(image.of, image.channels))


def with_echo(grad: Abstract, output: Abstract) -> Abstract:
    """A linear map's weight gradient, times the `Image.echo` of its output."""
    echo = output.source.echo if isinstance(output.source, Image) else 1.0
    return grad if echo == 1.0 else grad.with_(mean=grad.mean * math.sqrt(echo), q=grad.q * echo)


def share_tokens(key: Abstract, value: Abstract) -> bool:
    """Whether keys and values are images of one tensor."""
    a, b = key.source, value.source
    return isinstance(a, Image) and isinstance(b, Image) and a.of is b.of


def aimed(rows: Abstract, met: Abstract, read: Abstract, scale: float) -> Abstract:
    """Cov over tokens of (rows . met_j, read_j), squared: a tensor of (batch..., rows, channels of read).

    Args:
        rows: (batch..., rows, channels): queries, or gradients of outputs.
        met: (batch..., positions, channels): keys, or values.
        read: (batch..., positions, channels): values, or keys.
        scale: of the products.
    """
    source = read.source
    assert isinstance(source, Image)
    own, dim = within(met), met.dims[-1]
    labels = tuple(map(str, range(len(rows.dims))))
    kernel = Abstract((dim,), np.zeros(_ones(dim)), own)
    push = contracted(rows.plain(), labels, kernel, labels[-1:], labels[:-1])
    width = independent_numbers(source.of, source.channels)
    table = np.asarray(within(read) * (scale * scale / width))
    channels = Abstract((read.dims[-1],), np.zeros(_ones(read.dims[-1])), table)
    column = Abstract((*push.dims, ()), np.zeros_like(push.mean), push.q)
    return multiplied(column, channels)


def _ones(dim: Dim) -> tuple[int, ...]:
    return tuple(len(atom) for atom in dim)


def _plus(out: Abstract, part: Abstract) -> Abstract:
    whole = added(out, part)
    whole.noise, whole.note, whole.source = out.noise, out.note, out.source
    return whole


@once
def within(x: Abstract) -> Array:
    """E x x' less that of different positions of one sequence, by class of the last axis."""
    batch = x.axes(range(len(x.dims) - 2))
    shape = x.q.shape[len(batch) :]
    table = weighed(x.q, x.atoms, batch, strata.same).reshape(shape)
    positions = range(len(x.dims[-2]))
    if not positions:
        return np.zeros(shape)
    atoms = x.atoms[len(batch) :]
    alike, apart = (
        weighed(table, atoms, positions, which) for which in (strata.same, strata.different)
    )
    return (alike - apart).reshape(shape[len(positions) :])


@once
def independent_numbers(x: Abstract, channels: int = -1) -> float:
    """(sum of variances)^2 / (sum of squared covariances) of the channels of one position."""
    x = uniform(x)
    if channels == 1:
        x = reshaped(x, (*x.shape[:2], math.prod(x.shape[2:])))
        x = permuted(x, (0, 2, 1))
    if len(x.dims) < 2:
        return float(strata.size(x.dims[-1]))
    covariance = within(x)
    first = float(covariance.item(0))
    if not first > 0:
        return float(strata.size(x.dims[-1]))
    squares = np.square(covariance / first)
    for atom in reversed(x.dims[-1]):
        squares = squares @ strata.pairs(atom)
    return float(strata.size(x.dims[-1])) ** 2 / float(squares)


def unspent(weights: Abstract) -> Abstract:
    """1 - sum_j A_j^2, a column: (batch..., queries, 1)."""
    dims = weights.dims[:-1]
    rows = sum(map(len, dims))
    own = weights.q[tuple(map(slice, weights.mean.shape))]
    for atom in reversed(weights.dims[-1]):
        own = own @ np.array(atom, float)
    left = np.clip(1.0 - own, 0.0, 1.0).reshape(weights.mean.shape[:rows])
    column = Abstract((*dims, ()), left, np.empty(weights.q.shape[:rows]))
    column.q = column.outer().copy()
    column.q[tuple(map(slice, left.shape))] = left
    return column
