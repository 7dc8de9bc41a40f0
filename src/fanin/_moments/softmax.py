"""Softmax over Gaussian logits, masked or not: attention's weights, and their transposes."""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate

import numpy as np

from . import strata
from .concentration import effective, freedom, log_sum_covariance, log_sum_mean, retention, tilt
from .domain import Abstract, aligned, fitted, limited, merge_dim, multiplied, scaled, uniform
from .masks import Flat, Pattern, flat, packed, pattern, strata_of
from .registry import backward, forward
from .strata import Array, Dims


class Rows:
    """Logits as a matrix: classes of row pairs x classes of key pairs.

    Args:
        dims: of the logits.
        dim: their key axis.
        outer: the axes of the tensor whose classes come last among the rows'.
    """

    def __init__(self, dims: Dims, dim: int, outer: tuple[int, ...]) -> None:
        inner = [d for d in range(len(dims)) if d != dim and d not in outer]
        starts = [0, *accumulate(map(len, dims))]
        atoms = [atom for d in dims for atom in d]
        self.order = [a for d in (*inner, *outer, dim) for a in range(starts[d], starts[d + 1])]
        split = len(self.order) - len(dims[dim])
        self.rows = flat(tuple(atoms[a] for a in self.order[:split]))
        self.keys = flat(tuple(atoms[a] for a in self.order[split:]))
        self.alike = flat(tuple(atom for d in inner for atom in dims[d]))
        self.shape = [len(strata.pairs(atoms[a])) for a in self.order]
        self.segments = [len(atoms[a]) for a in self.order]
        self.back = np.argsort(self.order)

    def table(self, q: Array) -> Array:
        """``q`` as a matrix."""
        return q.transpose(self.order).reshape(self.rows.pairs.size, self.keys.pairs.size)

    def means(self, mean: Array) -> Array:
        """``mean`` as (segments of rows) x (segments of keys)."""
        return mean.transpose(self.order).reshape(self.rows.sizes.size, self.keys.sizes.size)

    def tensor(self, table: Array) -> Array:
        """The matrix as a table of the tensor's classes; the inverse of `table`."""
        return table.reshape(self.shape).transpose(self.back)

    def mean_tensor(self, means: Array) -> Array:
        """The inverse of `means`."""
        return means.reshape(self.segments).transpose(self.back)

    def per_row(self, values: Array) -> Array:
        """One number a class of rows, of the shape of ``q``."""
        wide = np.broadcast_to(values[:, None], (values.size, self.keys.pairs.size))
        return self.tensor(np.ascontiguousarray(wide))

    def without_keys(self, z: Abstract, dim: int, keep: bool, means: Array, q: Array) -> Abstract:
        """A tensor without the key axis, of numbers by segments and by classes of rows."""
        first = [slice(None)] * z.q.ndim
        for axis in z.axes([dim]):
            first[axis] = 0  # type: ignore[call-overload]
        wide = np.broadcast_to(means[:, None], (means.size, self.keys.sizes.size))
        mean = self.mean_tensor(np.ascontiguousarray(wide))[tuple(first)]
        table = self.per_row(q)[tuple(first)]
        dims = (*z.dims[:dim], *(((),) if keep else ()), *z.dims[dim + 1 :])
        return Abstract(dims, mean, table)


@lru_cache(maxsize=1024)
def rows_of(dims: Dims, dim: int, outer: tuple[int, ...] = ()) -> Rows:
    """`Rows`, made once for logits on these axes."""
    return Rows(dims, dim, outer)


def attention_weights(z: Abstract, dim: int = -1) -> Abstract:
    """A = softmax(z): E A and E A A', masked entries of ``z.allowed`` left out.

    E[A_ij A_i'j'] is E[W W'] exp(t (cov - cov of different keys)), W the row-normalised mask,
    made to sum to one over the keys of both rows; t is such that iid logits of any variance get
    their exact E sum A^2 (`concentration`). Causal masks split the rows into segments.

    Args:
        z: logits.
        dim: the axis that sums to one.
    """
    dim %= len(z.dims)
    if strata.size(z.dims[dim]) == 1:
        return Abstract(z.dims, np.ones_like(z.mean), np.ones_like(z.q))
    z, rows, given = _laid_out(z, dim)
    mass, first, spread, _ = _tilted(rows, z, given)
    q = mass / (mass @ rows.keys.pairs)[:, None]
    out = Abstract(z.dims, rows.mean_tensor(first), rows.tensor(q))
    kept = limited(out)
    if kept is out:
        out.note = ("softmax", z.dims, rows.per_row(retention(*spread)))
    return kept


def _laid_out(z: Abstract, dim: int) -> tuple[Abstract, Rows, Pattern]:
    """The logits on axes that tell the mask's segments apart, as a matrix, and the mask."""
    allowed = z.allowed
    if allowed is None or allowed.all():
        rows = rows_of(z.dims, dim)
        n = float(rows.keys.sizes.sum())
        even = np.full((rows.rows.sizes.size, rows.keys.sizes.size), 1 / n)
        return z, rows, Pattern(np.full((1, 1), 1 / n**2), even, np.full(rows.rows.sizes.size, n))
    mask, outer = packed(allowed, len(z.dims), dim, strata.size(z.dims[dim]))
    for d in (*outer, dim):
        z = merge_dim(z, d)
    dims = list(z.dims)
    for d, atom in zip(outer, strata_of(mask), strict=True):
        dims[d] = (strata.union(dims[d][0], atom),)
    z = fitted(z, tuple(dims))
    rows = rows_of(z.dims, dim, tuple(outer))
    seen = pattern(mask, tuple(z.dims[d][0] for d in outer), z.dims[dim][0])
    return z, rows, _repeated(seen, rows.alike.pairs.size, rows.alike.sizes.size)


@lru_cache(maxsize=256)
def _repeated(seen: Pattern, classes: int, segments: int) -> Pattern:
    """The same mask in every row of the other axes."""
    return Pattern(
        np.tile(seen.pairs, (classes, 1)),
        np.tile(seen.single, (segments, 1)),
        np.tile(seen.counts, segments),
    )


def _tilted(
    rows: Rows, z: Abstract, given: Pattern
) -> tuple[Array, Array, tuple[Array, Array, Array, Array], Array]:
    """E[W W'] tilted by the logits, E A, and by class of rows (n, v, shared covariance, freedom) and
    the covariance of different keys.
    """
    covariance = rows.table(z.q - z.outer())
    first, density = given.single, given.pairs
    row, key = rows.rows, rows.keys
    if key.sizes.size > 1:
        push = _push(rows, covariance, rows.means(z.mean), given)
        first = first * push
        first = first / (first @ key.sizes)[:, None]
        density = density * push[row.left][:, key.left] * push[row.right][:, key.right]
    shared, apart = _shared(covariance, density * key.pairs, key)
    own = np.maximum(shared[row.own], 0.0)
    n = np.sqrt(given.counts[row.left] * given.counts[row.right])
    v = np.sqrt(own[row.left] * own[row.right])
    least = freedom(n, v)
    at = effective(n, v, shared, least)
    slope = np.where(
        np.abs(shared) > 1e-12, at * tilt(n, np.abs(at)) / np.where(shared == 0, 1.0, shared), 0.0
    )
    weight = np.exp(np.clip(slope[:, None] * (covariance - apart[:, None]), -80.0, 80.0))
    return density * weight, first, (n, v, shared, least), apart


def _push(rows: Rows, covariance: Array, mean: Array, given: Pattern) -> Array:
    """exp(mean + variance / 2) of the logits of each segment of keys, over the row's largest."""
    key = rows.keys
    within = covariance[rows.rows.own]
    shared, apart = _shared(
        within, given.pairs[rows.rows.own if given.pairs.shape[0] > 1 else [0]] * key.pairs, key
    )
    own = within[:, key.own] - apart[:, None]
    height = mean + tilt(given.counts, np.maximum(shared, 0.0))[:, None] * np.maximum(own, 0.0) / 2
    return np.asarray(np.exp(np.clip(height - height.max(axis=1, keepdims=True), -80.0, 0.0)))


def _shared(covariance: Array, mass: Array, key: Flat) -> tuple[Array, Array]:
    """Mean covariance of one key's logits less that of different keys', and the latter."""
    of_same, of_rest = (mass @ key.split).T
    total = np.maximum(of_same + of_rest, 1e-300)
    alike, apart = ((mass * covariance) @ key.split).T
    alike, apart = alike / np.maximum(of_same, 1e-300), apart / np.maximum(of_rest, 1e-300)
    alike = np.where(of_same > 1e-12 * total, alike, apart)
    apart = np.where(of_rest > 1e-12 * total, apart, alike)
    return alike - apart, apart


def attention_weights_backward(weights: Abstract, grad: Abstract, dim: int = -1) -> Abstract:
    """g_z = A (g - sum_k A_k g_k): its rows sum to exactly zero.

    E[A A'] times the moments of g with E[A A']-weighted means over both rows' keys taken out, times
    `concentration.retention`.

    Args:
        weights: what `attention_weights` gave.
        grad: gradient of the weights.
        dim: the axis that sums to one.
    """
    dim %= len(weights.dims)
    if strata.size(weights.dims[dim]) == 1:
        return scaled(grad, 0.0).plain()
    a, g = aligned([weights.plain(), grad.plain()])
    if len(a.dims[dim]) > 1 and not (a.uniform and g.uniform):
        a, g = merge_dim(a, dim), merge_dim(g, dim)
    rows = rows_of(a.dims, dim)
    table = _centred(rows.table(a.q), rows.table(g.q), rows.keys)
    q = rows.tensor(table) * _retained(weights, a.dims)
    return Abstract(a.dims, np.zeros_like(a.mean), q, noise=grad.noise)


def _retained(weights: Abstract, dims: Dims) -> Array | float:
    note = weights.note
    if not note or note[0] != "softmax":
        return 1.0
    if note[1] == dims:
        return np.asarray(note[2])
    wide = Abstract(note[1], np.ones([len(a) for d in note[1] for a in d]), note[2])
    try:
        return fitted(wide, dims).q
    except (IndexError, ValueError):
        return float(note[2].reshape(-1)[0])


def _centred(weights: Array, grads: Array, key: Flat) -> Array:
    """weights * (grads - u_left - w_right), u and w such that every key's row and column sum to 0."""
    mass = weights * key.pairs
    s = key.sizes.size
    if s == 1:
        total = mass.sum(axis=1, keepdims=True)
        mean = (mass * grads).sum(axis=1, keepdims=True) / np.where(total == 0, 1.0, total)
        return weights * (grads - mean)
    blocks = (mass @ key.blocks).reshape(-1, s, s)
    sides = np.concatenate([mass, mass * grads]) @ key.sides
    (of_rows, target), (of_columns, rest) = (x.reshape(2, -1, s) for x in np.split(sides, 2, 1))
    # A constant may move between u and w: the floor pins it without moving the sums.
    largest = np.maximum.reduce(np.abs(sides[: len(mass)]), axis=1)
    floor = (1e-13 * largest + 1e-300)[:, None]
    of_rows = of_rows + floor
    shares = blocks / of_rows[:, :, None]
    matrix = -np.matmul(blocks.transpose(0, 2, 1), shares)
    matrix[:, np.arange(s), np.arange(s)] += of_columns + floor
    rest = rest - np.matmul(target[:, None], shares)[:, 0]
    w = np.linalg.solve(matrix, rest[..., None])[..., 0]
    u = (target - np.matmul(blocks, w[..., None])[..., 0]) / of_rows
    return np.asarray(weights * (grads - np.concatenate([u, w], axis=1) @ key.sides.T))


# rules --------------------------------------------------------------------------------------------


@forward("softmax", "_softmax", "_safe_softmax", "special_softmax")
def softmax(x: Abstract, dim: int) -> Abstract:
    """exp(x) / sum exp(x) along ``dim``: `attention_weights`."""
    return attention_weights(x, dim)


@backward("softmax", "_softmax", "_safe_softmax", "special_softmax")
def softmax_backward(grad: Abstract, output: Abstract, dim: int) -> dict[str, Abstract]:
    """A (g - sum A g): `attention_weights_backward`."""
    return {"x": attention_weights_backward(output, grad, dim)}


@forward("softmin")
def softmin(x: Abstract, dim: int) -> Abstract:
    """softmax(-x)."""
    return attention_weights(scaled(x, -1.0), dim)


@backward("softmin")
def softmin_backward(grad: Abstract, output: Abstract, dim: int) -> dict[str, Abstract]:
    """-A (g - sum A g): the sign leaves second moments alone."""
    return {"x": attention_weights_backward(output, grad, dim)}


def _log_sum(x: Abstract, dim: int) -> tuple[Abstract, Rows, Array, Array, Array]:
    """The logits laid out, and by class of rows E ln S less the logits' mean, Cov(ln S, ln S') less
    the different keys' covariance, and that.
    """
    z, rows, given = _laid_out(x, dim)
    _, _, (n, v, shared, _), apart = _tilted(rows, z, given)
    own = rows.rows.own
    height = log_sum_mean(n[own], v[own])
    return z, rows, height, log_sum_covariance(n, v, shared), np.stack([apart, shared / n])


@forward("logsumexp", "special_logsumexp")
def logsumexp(x: Abstract, dim: int | list[int], keepdim: bool = False) -> Abstract:
    """Ln sum exp(x): its mean and covariances by `concentration`."""
    one = _single(dim, len(x.dims))
    z, rows, height, covariance, (apart, _) = _log_sum(x, one)
    level = rows.means(z.mean) @ rows.keys.sizes / rows.keys.sizes.sum() + height
    outer = level[rows.rows.left] * level[rows.rows.right]
    return rows.without_keys(z, one, keepdim, level, apart + covariance + outer)


def _single(dim: int | list[int], rank: int) -> int:
    if isinstance(dim, int):
        return dim % rank
    if len(dim) != 1:
        raise NotImplementedError("logsumexp over several axes")
    return dim[0] % rank


@backward("logsumexp", "special_logsumexp")
def logsumexp_backward(grad: Abstract, x: Abstract, dim: int | list[int]) -> dict[str, Abstract]:
    """g softmax(x)."""
    one = _single(dim, len(x.dims))
    if len(grad.dims) < len(x.dims):
        grad = Abstract((*grad.dims[:one], (), *grad.dims[one:]), grad.mean, grad.q)
    return {"x": multiplied(grad.plain(), attention_weights(x, one).plain())}


@forward("log_softmax", "_log_softmax", "special_log_softmax")
def log_softmax(x: Abstract, dim: int) -> Abstract:
    """x - ln sum exp(x): the covariance of x with the sum is that with its mean over the keys."""
    dim %= len(x.dims)
    z, rows, height, covariance, (apart, shared) = _log_sum(x, dim)
    table = rows.table(z.q - z.outer()) + (covariance - apart - 2 * shared)[:, None]
    level = rows.means(z.mean) @ rows.keys.sizes / rows.keys.sizes.sum() + height
    means = rows.means(z.mean) - level[:, None]
    left = means[rows.rows.left][:, rows.keys.left]
    right = means[rows.rows.right][:, rows.keys.right]
    q = rows.tensor(table + left * right)
    return Abstract(z.dims, rows.mean_tensor(means), q, allowed=x.allowed)


@backward("log_softmax", "_log_softmax", "special_log_softmax")
def log_softmax_backward(grad: Abstract, x: Abstract, dim: int) -> dict[str, Abstract]:
    """g - A sum g, with A = softmax(x): R = E[g sum g'] gives G - 2 R / n + E[A A'] n R."""
    dim %= len(x.dims)
    a, g = aligned([attention_weights(x, dim).plain(), grad.plain()])
    a, g = uniform(a, [dim]), uniform(g, [dim])
    rows = rows_of(g.dims, dim)
    table, n = rows.table(g.q), rows.keys.sizes.sum()
    total = table @ rows.keys.pairs / n
    back = table + (rows.table(a.q) * n - 2 / n) * total[:, None]
    return {"x": Abstract(g.dims, np.zeros_like(g.mean), rows.tensor(back), noise=g.noise)}
