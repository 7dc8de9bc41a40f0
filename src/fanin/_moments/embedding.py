"""Tables of vectors read by token: embeddings, bags of them, one-hot vectors.

Two positions read the same row with the probability that their tokens are equal, counted on the real
tokens pair class by pair class (`indexing`), or 1/V for unknown ones. A row's gradient adds up over
all positions that read it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import strata
from .domain import Abstract, aligned, constant, limited, measured, merge_dim, scaled, uniform
from .indexing import coincidence, given_back, taken
from .registry import backward, forward
from .strata import Array, Index

MOST_READ = 1 << 20  # numbers of a known table read by known tokens
Shapes = list[tuple[int, ...]]


def _rows(weight: Abstract) -> tuple[Abstract, Abstract]:
    """E w w' within one row of a table, and between two rows; without the axis of rows."""
    weight = uniform(merge_dim(weight, 0), [0])
    dims = weight.dims[1:]
    if not weight.dims[0]:
        return Abstract(dims, weight.mean, weight.q), Abstract(dims, weight.mean, weight.q)
    mean = np.asarray(weight.mean[0])
    return (
        Abstract(dims, mean, np.asarray(weight.q[0]), noise=weight.noise),
        Abstract(dims, mean, np.asarray(weight.q[1]), noise=weight.noise),
    )


# positions that count for more or less ------------------------------------------------------------


class Shares(NamedTuple):
    """How much positions count, as moments over pairs of them.

    Args:
        equal: E u u' [their tokens are equal], on the axes of the tokens.
        every: E u u'.
    """

    equal: Abstract
    every: Abstract


def shares(tokens: npt.NDArray, counts: Array) -> Shares:
    """`Shares` of known tokens with known weights: padding counts 0."""
    every = measured(counts)
    equal = every.with_(q=_equal(tokens, counts), known=None)
    return Shares(equal, every.with_(known=None))


def _equal(tokens: npt.NDArray, counts: Array) -> Array:
    """Mean over pairs of places of u u' where tokens agree: sums by token within every set of axes."""
    keep = [n for n in tokens.shape if n > 1]
    tokens, counts = tokens.reshape(keep), counts.reshape(keep)
    _, values = np.unique(tokens, return_inverse=True)
    values = values.reshape(keep)
    q = np.empty((2,) * len(keep))
    for which in product((0, 1), repeat=len(keep)):
        key = values
        for axis, (n, differs) in enumerate(zip(keep, which, strict=True)):
            if not differs:
                shape = [1] * len(keep)
                shape[axis] = n
                key = key + (int(key.max()) + 1) * np.arange(n).reshape(shape)
                key = np.unique(key, return_inverse=True)[1].reshape(keep)
        sums = np.bincount(key.ravel(), counts.ravel())
        together = math.prod(n for n, differs in zip(keep, which, strict=True) if differs)
        q[which] = np.square(sums).sum() / (counts.size * together)
    for axis, n in enumerate(keep):
        alike, both = np.take(q, [0], axis), np.take(q, [1], axis)
        q = np.concatenate([alike, (both - alike / n) / (1 - 1 / n)], axis)
    return q


def _counting(
    weight: Abstract, indices: Abstract, padding_idx: int | None, by_frequency: bool
) -> Shares | None:
    """Weights of positions where they are not all 1: padding reads zeros, frequent tokens learn less."""
    tokens = indices.known
    if tokens is None or tokens.size == 0:
        return None
    tokens = tokens.astype(np.int64) % max(weight.shape[0], 1)
    counts = np.ones(tokens.shape)
    if by_frequency:
        _, values, often = np.unique(tokens, return_inverse=True, return_counts=True)
        counts = 1.0 / often[values].reshape(tokens.shape)
    if padding_idx is not None and padding_idx >= 0:
        counts = np.where(tokens == padding_idx, 0.0, counts)
    return None if (counts == 1.0).all() else shares(tokens, counts)


def _read(weight: Abstract, counted: Shares) -> Abstract:
    """E u u' x x': the same row where tokens agree, two rows where they do not."""
    same, apart = _rows(weight)
    rank = len(counted.equal.dims)
    same, apart = (Abstract((*((),) * rank, *x.dims), x.mean, x.q) for x in (same, apart))
    more = ((),) * len(same.dims[rank:])
    equal, every = (Abstract((*x.dims, *more), x.mean, x.q) for x in counted)
    equal, every, same, apart = aligned([equal, every, same, apart])
    q = equal.q * same.q + (every.q - equal.q) * apart.q
    return limited(Abstract(equal.dims, every.mean * same.mean, q, noise=weight.noise))


def _added_up(grad: Abstract, counted: Shares, rows: int) -> Abstract:
    """The gradient of the table: u g summed over equal tokens, for one row and for two."""
    rank = len(counted.equal.dims)
    more = ((),) * (len(grad.dims) - rank)
    equal, every = (Abstract((*x.dims, *more), x.mean, x.q) for x in counted)
    equal, every, g = aligned([equal, every, grad.plain()])
    axes = g.axes(range(rank))
    tables = [g.q * equal.q, g.q * (every.q - equal.q)]
    mean = g.mean * every.mean
    for axis in reversed(axes):
        atom = g.atoms[axis]
        tables = [np.tensordot(strata.pairs(atom), t, (0, axis)) for t in tables]
        mean = np.tensordot(np.array(atom, float), mean, (0, axis))
    dims = (strata.whole(rows), *g.dims[rank:])
    if rows == 1:
        return Abstract(dims, mean, tables[0], noise=grad.noise)
    q = np.stack([tables[0] / rows, tables[1] / (rows * (rows - 1))])
    return limited(Abstract(dims, np.asarray(mean)[None] / rows, q, noise=grad.noise))


# one row a token ----------------------------------------------------------------------------------


@forward("embedding")
def embedding(weight: Abstract, indices: Abstract, padding_idx: int = -1) -> Abstract:
    """Rows of a table; that of the padding token is zero, as nn.Embedding leaves it."""
    table, tokens = weight.known, indices.known
    if (
        table is not None
        and tokens is not None
        and tokens.size * math.prod(table.shape[1:]) <= MOST_READ
    ):
        return measured(table[tokens.astype(np.int64)])
    counted = _counting(weight, indices, padding_idx, by_frequency=False)
    return taken(weight.plain(), 0, indices) if counted is None else _read(weight, counted)


@backward("embedding")
def embedding_backward(
    grad: Abstract,
    weight: Abstract,
    indices: Abstract,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
) -> dict[str, Abstract]:
    """Every row's gradient adds up over the positions that read it, padding excepted."""
    counted = _counting(weight, indices, padding_idx, scale_grad_by_freq)
    if counted is None:
        return {"weight": given_back(grad.plain(), 0, indices, [weight.shape[0]])}
    return {"weight": _added_up(grad, counted, weight.shape[0])}


@forward("embedding_renorm")
def embedding_renorm(
    x: Abstract, indices: Abstract, max_norm: float, norm_type: float = 2.0
) -> Abstract:
    """Rows longer than ``max_norm`` shortened to it, norms taken for (d E|x|^p)^(1/p), x Gaussian."""
    del indices
    d, p = math.prod(x.shape[1:]), float(norm_type)
    absolute = 2 ** (p / 2) * math.gamma((p + 1) / 2) / math.sqrt(math.pi)
    norm = math.sqrt(x.second_moment) * (d * absolute) ** (1 / p)
    return scaled(x, min(1.0, max_norm / norm) if norm > 0 else 1.0).plain()


@backward("embedding_renorm")
def embedding_renorm_backward(grad: Abstract) -> dict[str, Abstract]:
    """The table is shortened outside of autograd: its gradient passes."""
    return {"x": grad}


@forward("one_hot")
def one_hot(x: Abstract, shapes: Shapes) -> Abstract:
    """1 at the token: 1/V on average; pairs agree as tokens do."""
    classes = shapes[0][-1]
    if x.known is not None and x.known.size * classes <= MOST_READ:
        return measured((x.known[..., None] == np.arange(classes)).astype(np.int64))
    p = coincidence(x, classes)
    if classes == 1:
        return p.with_(dims=(*p.dims, ()))
    q = np.stack([p.q / classes, (1 - p.q) / (classes * (classes - 1))], -1)
    return Abstract((*p.dims, strata.whole(classes)), p.mean[..., None] / classes, q)


# bags ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bags:
    """Tokens by bag, and what sums over one bag, or over two, are made of.

    Args:
        count: bags.
        own: mean over bags of sum u^2.
        equal: mean over bags of sum over pairs of different places with equal tokens of u u'.
        apart: the same with different tokens.
        equal_across: mean over pairs of bags of sum over equal tokens of u u'.
        apart_across: the same with different tokens.
        total: mean over bags of sum u.
        size: mean number of tokens in a bag.
    """

    count: int
    own: float
    equal: float
    apart: float
    equal_across: float
    apart_across: float
    total: float
    size: float


def bags_of(given: dict[str, Any]) -> Bags:
    """From an op's arguments; unknown tokens are drawn evenly, unknown offsets make equal bags."""
    weight, indices, offsets = given["weight"], given["indices"], given["offsets"]
    rows, places = weight.shape[0], math.prod(indices.shape)
    last = bool(given.get("include_last_offset", False))
    count = max(offsets.shape[0] - int(last), 1)
    if indices.known is not None:
        tokens = indices.known.reshape(-1).astype(np.int64) % rows
    else:
        tokens = np.random.default_rng(0).integers(0, rows, places)
    if offsets.known is not None:
        starts = offsets.known.reshape(-1).astype(np.int64)[:count]
    else:
        starts = np.arange(count) * places // count
    owner = np.searchsorted(starts, np.arange(places), side="right") - 1
    padding = given.get("padding_idx")
    kept = np.ones(places) if padding is None or padding < 0 else (tokens != padding).astype(float)
    sizes = np.bincount(owner, kept, count)
    if given.get("mode", 0) == 1:
        kept = kept / np.maximum(sizes, 1.0)[owner]
    return _summed_bags(tokens, owner, kept, count, float(sizes.mean()))


def _summed_bags(tokens: Index, owner: Index, u: Array, count: int, size: float) -> Bags:
    _, cell = np.unique(owner * (int(tokens.max(initial=0)) + 1) + tokens, return_inverse=True)
    own = float(np.square(u).sum())
    in_cells = float(np.square(np.bincount(cell, u)).sum())
    in_bags = np.bincount(owner, u, count)
    by_token = float(np.square(np.bincount(tokens, u)).sum())
    squares = float(np.square(in_bags).sum())
    pairs = max(count * (count - 1), 1)
    total = float(in_bags.sum())
    return Bags(
        count, own / count, (in_cells - own) / count, (squares - in_cells) / count,
        (by_token - in_cells) / pairs, (total * total - squares - by_token + in_cells) / pairs,
        total / count, size,
    )  # fmt: skip


def _weighing(weights: Abstract | None) -> tuple[float, float, float]:
    """E s^2, E s s' and E s of what each token of a bag is multiplied by."""
    if weights is None:
        return 1.0, 1.0, 1.0
    x = uniform(merge_dim(weights, 0))
    return float(x.q.item(0)), float(x.q.reshape(-1)[-1]), x.average_mean


_BAGS = ("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")


@forward(*_BAGS)
def embedding_bag(**given: Any) -> list[Abstract]:
    """Sums, means or maxima of the rows of each bag; bags share rows as far as they share tokens."""
    bags = bags_of(given)
    same, apart = _rows(given["weight"])
    if given.get("mode", 0) == 2:
        own, across, mean = _largest(bags, same, apart)
    else:
        square, cross, single = _weighing(given.get("per_sample_weights"))
        own = (bags.own * square + bags.equal * cross) * same.q + bags.apart * cross * apart.q
        across = cross * (bags.equal_across * same.q + bags.apart_across * apart.q)
        mean = bags.total * single * same.mean
    dims = (strata.whole(bags.count), *same.dims)
    tables = (own, mean) if bags.count == 1 else (np.stack([own, across]), mean[None])
    rest = [constant(shape, 0.0) for shape in given["shapes"][1:]]
    return [Abstract(dims, tables[1], tables[0], noise=given["weight"].noise), *rest]


@lru_cache(maxsize=256)
def largest_of(n: float) -> tuple[float, float]:
    """Mean and variance of the largest of n standard normals, by their distribution on a grid.

    >>> [round(v, 3) for v in largest_of(4.0)]
    [1.029, 0.492]
    """
    z = np.linspace(-9.0, 9.0, 3601)
    below = np.cumsum(np.exp(-z * z / 2))
    mass = np.diff((below / below[-1]) ** max(n, 1.0), prepend=0.0)
    mean = float(mass @ z)
    return mean, float(mass @ (z * z)) - mean * mean


def _largest(bags: Bags, same: Abstract, apart: Abstract) -> tuple[Array, Array, Array]:
    """Of n rows that share a part and are independent beyond it; the part of a row that wins is its."""
    shift, spread = largest_of(bags.size)
    common = apart.q - apart.outer()
    own = np.maximum(same.q - apart.q, 0.0)
    alike = float(own.item(0))
    center = same.mean + shift * math.sqrt(alike)
    outer = Abstract(same.dims, center, same.q).outer()
    within = outer + common + spread * own
    return within, outer + common, center


@backward(*_BAGS)
def embedding_bag_backward(**given: Any) -> dict[str, Abstract]:
    """Each bag's gradient goes to all its rows, or the largest's; rows add up over bags."""
    grad, bags, rows = given["grad"].plain(), bags_of(given), given["weight"].shape[0]
    square, cross, single = _weighing(given.get("per_sample_weights"))
    same, apart = _rows(grad)
    n = bags.count
    if given.get("mode", 0) == 2:
        # A channel's winner is one row of its bag: two channels seldom have the same.
        won = same.q / max(bags.size, 1.0)
        won.reshape(-1)[0] *= bags.size
        shared = bags.equal_across / max(bags.size, 1.0) ** 2
        equal, every = n * won + n * (n - 1) * shared * apart.q, n * same.q + n * (n - 1) * apart.q
        mean = n * same.mean
    else:
        equal = n * (bags.own * square + bags.equal * cross) * same.q
        equal = equal + n * (n - 1) * bags.equal_across * cross * apart.q
        every = n * (bags.own * square + (bags.equal + bags.apart) * cross) * same.q
        every = every + n * (n - 1) * (bags.equal_across + bags.apart_across) * cross * apart.q
        mean = n * bags.total * single * same.mean
    dims = (strata.whole(rows), *same.dims)
    if rows == 1:
        table = Abstract(dims, mean, equal)
    else:
        q = np.stack([equal / rows, (every - equal) / (rows * (rows - 1))])
        table = Abstract(dims, mean[None] / rows, q, noise=grad.noise)
    found = {"weight": table}
    if given.get("per_sample_weights") is not None:
        found["per_sample_weights"] = _of_weights(given, bags, grad)
    return found


def _of_weights(given: dict[str, Any], bags: Bags, grad: Abstract) -> Abstract:
    """dL/ds_i = g_bag . w_i: pairs within a bag share its gradient, those of one token the row."""
    weight = given["weight"]
    rows, between = _rows(weight)
    own, across = _rows(grad)
    alike, other = (
        (_dot(own, rows), _dot(own, between)),
        (_dot(across, rows), _dot(across, between)),
    )
    places = math.prod(given["indices"].shape)
    pairs = max(places * (places - 1), 1)
    n = bags.count
    total = n * (bags.equal * alike[0] + bags.apart * alike[1])
    total += n * (n - 1) * (bags.equal_across * other[0] + bags.apart_across * other[1])
    q = np.array([alike[0], total / pairs])
    dim = strata.whole(places)
    mean = float(own.mean.reshape(-1)[0] * rows.mean.reshape(-1)[0]) * weight.shape[1]
    return (
        Abstract((dim,), np.full((1,), mean), q) if dim else Abstract(((),), np.asarray(mean), q[0])
    )


def _dot(a: Abstract, b: Abstract) -> float:
    """Sum over pairs of channels of the product of two tables."""
    x, y = aligned([a, b])
    table = x.q * y.q
    for atom in reversed(x.atoms):
        table = table @ strata.pairs(atom)
    return float(table)
