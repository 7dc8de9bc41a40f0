"""What is known of a tensor before it is computed: E[x] and E[x x'], by which indices differ.

For a tensor with atoms 1..k (`strata`), ``mean[i_1, ..., i_k]`` is E[x] at a position in those
segments, and ``q[c_1, ..., c_k]`` is E[x x'] over pairs of positions whose indices on atom a are in
class c_a. One segment everywhere gives 2^k numbers: q[0, 0, ...] is the second moment, q[1, 1, ...]
the product of two elements that share no index. Products of independent tensors multiply q, sums
over an axis weigh its classes by their pairs, and views only rearrange them.

Expectations are over draws of the weights and the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from . import alignment, rearrangement, strata
from .drawing import draw
from .strata import Array, Atom, Dims

Function = Callable[[Array], Array]

MAX_ATOMS = 9
MAX_NUMBERS = 1 << 15
MAX_SEGMENTS = 10  # of one atom
MAX_PARTS = 32  # joined at once
MAX_COPIED = 1 << 20  # elements of known numbers that a view may copy


class Abstract:
    """A tensor by its first and second moments.

    Args:
        dims: per axis its atoms.
        mean: E[x], one axis an atom, its segments.
        q: E[x x'], one axis an atom, its classes.
        chain: (b, f) where x = f(b) element by element, so that x and other functions of b meet
            as one function; b has the same ``dims``.
        known: the numbers themselves, where they are known.
        allowed: for attention logits, which of them are not masked out; broadcasts to the shape.
        noise: variance of ln E[x^2] over draws of weights of this width.
        note: what a rule wants a later rule to know: (rule's word, ...).
        source: the product of which its elements are fixed combinations (`tilt`).
    """

    __slots__ = ("allowed", "chain", "dims", "known", "mean", "noise", "note", "q", "source")

    def __init__(
        self,
        dims: Dims,
        mean: Array,
        q: Array,
        chain: tuple[Abstract, Function] | None = None,
        known: npt.NDArray | None = None,
        allowed: npt.NDArray[np.bool_] | None = None,
        noise: float = 0.0,
        note: tuple[Any, ...] | None = None,
        source: Any = None,
    ) -> None:
        self.dims, self.mean, self.q = dims, mean, q
        self.chain, self.known, self.allowed = chain, known, allowed
        self.noise, self.note, self.source = noise, note, source

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return strata.lengths(self.dims)

    @property
    def atoms(self) -> list[Atom]:
        """Of all axes, in order."""
        return [atom for dim in self.dims for atom in dim]

    def axes(self, dims: Iterable[int]) -> list[int]:
        """Which axes of ``q`` and ``mean`` belong to the tensor's axes ``dims``."""
        starts = [0, *accumulate(map(len, self.dims))]
        return [a for d in dims for a in range(starts[d], starts[d + 1])]

    @property
    def second_moment(self) -> float:
        """E[x^2], averaged over all positions."""
        if self.uniform:
            return float(self.q.item(0))
        return _averaged(self.q, strata.same, self.atoms)

    @property
    def average_mean(self) -> float:
        """E[x], averaged over all positions."""
        return _averaged(self.mean, strata.shares, self.atoms)

    @property
    def squared_mean(self) -> float:
        """E[(mean of the whole tensor)^2], its own elements' spread taken out."""
        return _averaged(self.q, over_pairs, self.atoms)

    @property
    def variance(self) -> float:
        """Of the elements of one drawn tensor about its own mean, expected."""
        return max(0.0, self.second_moment - self.squared_mean)

    @property
    def uniform(self) -> bool:
        """Whether no atom has more than one segment."""
        return self.mean.size == 1

    def outer(self) -> Array:
        """E[x] E[x'] by class, of the shape of ``q``."""
        if self.uniform:
            return np.full(self.q.shape, float(self.mean.reshape(())) ** 2)
        return self.lifted(strata.left) * self.lifted(strata.right)

    def lifted(self, side: Callable[[Atom], npt.NDArray[np.intp]]) -> Array:
        """E[x] of the first or the second index of each class: ``strata.left`` or ``right``."""
        if self.uniform:
            return np.full(self.q.shape, float(self.mean.reshape(())))
        return self.mean.reshape(-1)[_lift(tuple(self.atoms), side)]

    def plain(self) -> Abstract:
        """The moments alone: no chain, known numbers, mask or note."""
        return Abstract(self.dims, self.mean, self.q, noise=self.noise)

    def with_(self, **changes: Any) -> Abstract:
        """A copy with other attributes."""
        copy = Abstract(
            self.dims, self.mean, self.q, self.chain, self.known, self.allowed, self.noise,
            self.note, self.source,
        )  # fmt: skip
        for name, value in changes.items():
            setattr(copy, name, value)
        return copy

    def __repr__(self) -> str:
        return f"Abstract({list(self.shape)}, mean {self.average_mean:.4g}, rms {math.sqrt(max(self.second_moment, 0.0)):.4g})"


def average(table: Array, weights: Sequence[Array]) -> float:
    """The table's mean, every axis with its own weights."""
    if table.size == 1:
        return float(table.reshape(()))
    for w in weights:
        table = np.tensordot(w, table, (0, 0))
    return float(table)


def _averaged(table: Array, of: Callable[[Atom], Array], atoms: list[Atom]) -> float:
    if table.size == 1:
        return float(table.item(0))
    return float(table.reshape(-1) @ joint_weights(of, tuple(atoms)))


@lru_cache(maxsize=4096)
def joint_weights(of: Callable[[Atom], Array], atoms: tuple[Atom, ...]) -> Array:
    out = np.ones(())
    for atom in atoms:
        out = np.multiply.outer(out, of(atom))
    return out.reshape(-1)


@lru_cache(maxsize=4096)
def _lift(atoms: tuple[Atom, ...], side: Callable[[Atom], strata.Index]) -> strata.Index:
    """Class -> flat index of the segments of its first or second index."""
    flat = np.arange(math.prod(map(len, atoms))).reshape(tuple(map(len, atoms)))
    return flat[np.ix_(*(side(atom) for atom in atoms))]


@lru_cache(maxsize=65536)
def over_pairs(atom: Atom) -> Array:
    """Weights of the classes in an average over pairs of indices."""
    return strata.pairs(atom) / sum(atom) ** 2


def along(table: Array, axis: int, matrix: Array) -> Array:
    """``matrix`` applied to one axis of the table."""
    return np.moveaxis(np.tensordot(matrix, table, (1, axis)), 0, axis)


# making them --------------------------------------------------------------------------------------


def full(shape: Sequence[int], second_moment: float, mean: float = 0.0) -> Abstract:
    """Independent elements that are alike.

    >>> full((4, 8), 2.0)
    Abstract([4, 8], mean 0, rms 1.414)
    """
    dims = tuple(strata.whole(int(n)) for n in shape)
    k = sum(map(len, dims))
    q = np.full((2,) * k, mean * mean)
    q[(0,) * k] = second_moment
    return Abstract(dims, np.full((1,) * k, float(mean)), q)


def constant(shape: Sequence[int], value: float) -> Abstract:
    """The same number everywhere."""
    return full(shape, value * value, value)


def measured(array: npt.NDArray, *, limit: int = 1 << 21) -> Abstract:
    """The moments of given numbers: pairs of indices are averaged over the array.

    Args:
        array: any shape; of more than ``limit`` elements only a corner is read.
        limit: elements.
    """
    x = np.asarray(array)
    known = x
    if x.size == 0:
        return Abstract(((),) * x.ndim, np.zeros(()), np.zeros(()), known=known)
    x = _corner(x, limit).astype(np.complex128 if np.iscomplexobj(x) else np.float64)
    dims = tuple(strata.whole(n) for n in array.shape)
    x = x.squeeze()
    allowed = None
    if not np.isfinite(x).all():
        allowed = np.isfinite(known)
        x = np.where(np.isfinite(x), x, 0.0)
    q = np.empty((2,) * x.ndim)
    for which in np.ndindex(q.shape):
        part = x.mean(axis=tuple(a for a in range(x.ndim) if which[a]))
        q[which] = (part * part.conj()).real.mean()
    for axis, n in enumerate(x.shape):
        # From the mean over all pairs to the mean over pairs of different indices.
        alike, both = np.take(q, [0], axis), np.take(q, [1], axis)
        q = np.concatenate([alike, (both - alike / n) / (1 - 1 / n)], axis)
    mean = np.full((1,) * x.ndim, float(x.mean().real))
    return Abstract(dims, mean, q, known=known, allowed=allowed)


def _corner(x: npt.NDArray, limit: int) -> npt.NDArray:
    while x.size > limit:
        axis = int(np.argmax(x.shape))
        keep = max(64, x.shape[axis] * limit // x.size)
        x = x.take(range(min(keep, x.shape[axis])), axis)
    return x


# axes ---------------------------------------------------------------------------------------------


def fitted(x: Abstract, dims: Dims) -> Abstract:
    """``x`` on axes of which its own are coarser, or of length 1: the same moments, written out."""
    if x.dims == dims:
        return x
    q, mean = alignment.fit(x.dims, dims).wide(x.q, x.mean)
    return Abstract(dims, mean, q, noise=x.noise)


def merge_dim(x: Abstract, dim: int) -> Abstract:
    """One atom on an axis; segments of all but its first atom are averaged out.

    ``chain``, ``known``, ``allowed`` and ``note`` stay: the numbers are the same.
    """
    atoms = x.dims[dim]
    if len(atoms) < 2:
        return x
    axis = x.axes([dim])[0]
    q, mean = x.q, x.mean
    while len(atoms) > 1:
        a, b, *rest = atoms
        if len(b) > 1:
            b, matrix, means = strata.coarsening(b, (len(b),))
            q, mean = along(q, axis + 1, matrix), along(mean, axis + 1, means)
        a, matrix, means = strata.merged(a, b)
        q = q.reshape(*q.shape[:axis], -1, *q.shape[axis + 2 :])
        q = along(q, axis, matrix)
        mean = mean.reshape(*mean.shape[:axis], -1, *mean.shape[axis + 2 :])
        atoms = (a, *rest)
    dims = (*x.dims[:dim], atoms, *x.dims[dim + 1 :])
    return x.with_(dims=dims, q=q, mean=mean, chain=None)


def coarsen(x: Abstract, axis: int, groups: tuple[int, ...] | None = None) -> Abstract:
    """Neighbouring segments of one atom averaged together; all of them by default.

    Args:
        x: the tensor.
        axis: of ``q``: which atom.
        groups: how many segments go together, in order.
    """
    atom = x.atoms[axis]
    if len(atom) == 1:
        return x
    coarse, matrix, means = strata.coarsening(atom, groups or (len(atom),))
    dims, position = [], 0
    for dim in x.dims:
        dims.append(tuple(coarse if position + i == axis else a for i, a in enumerate(dim)))
        position += len(dim)
    return x.with_(
        dims=tuple(dims), q=along(x.q, axis, matrix), mean=along(x.mean, axis, means), chain=None
    )


def uniform(x: Abstract, dims: Iterable[int] | None = None) -> Abstract:
    """No segments on the axes ``dims``, all of them by default."""
    for axis in x.axes(range(len(x.dims)) if dims is None else dims):
        x = coarsen(x, axis)
    return x


def limited(x: Abstract) -> Abstract:
    """Within the budget of atoms and numbers: small atoms merged, then like segments averaged."""
    if (
        x.q.ndim <= MAX_ATOMS
        and x.q.size <= MAX_NUMBERS
        and max(x.mean.shape, default=0) <= MAX_SEGMENTS
    ):
        return x
    while x.q.ndim > MAX_ATOMS:
        dim = max(range(len(x.dims)), key=lambda d: len(x.dims[d]))
        if len(x.dims[dim]) < 2:
            break
        x = merge_dim(x, dim)
    for axis in range(x.q.ndim):
        while x.mean.shape[axis] > MAX_SEGMENTS:
            x = _closer(x, axis, x.mean.shape[axis] - MAX_SEGMENTS)
    while x.q.size > MAX_NUMBERS:
        axis = int(np.argmax(x.mean.shape))
        if x.mean.shape[axis] == 1:
            break
        x = _closer(x, axis, max(1, x.mean.shape[axis] // 4))
    return x


def _closer(x: Abstract, axis: int, excess: int = 1) -> Abstract:
    """Neighbouring segments that are most alike averaged two by two, at most ``excess`` pairs."""
    atom = x.atoms[axis]
    table = np.moveaxis(x.q, axis, 0)[: len(atom)].reshape(len(atom), -1)
    change = np.abs(np.diff(table, axis=0)).max(axis=1) * np.minimum(atom[:-1], atom[1:])
    pairs: set[int] = set()
    for k in np.argsort(change).tolist():
        if len(pairs) < excess and not {k - 1, k + 1} & pairs:
            pairs.add(k)
    starts = [k for k in range(len(atom)) if k - 1 not in pairs]
    return coarsen(x, axis, tuple(2 if k in pairs else 1 for k in starts))


def tidy(x: Abstract, tolerance: float = 1e-6, axes: Iterable[int] | None = None) -> Abstract:
    """Neighbouring segments joined where nothing tells them apart, on all atoms or on ``axes``."""
    for axis in range(x.q.ndim) if axes is None else axes:
        s = x.mean.shape[axis]
        if s == 1:
            continue
        scale = tolerance * max(float(x.q.max()), -float(x.q.min()))
        lines = x.q.swapaxes(0, axis)
        same = lines[:s].reshape(s, -1)
        if not (np.abs(same[1:] - same[:-1]).max(axis=1) <= scale).any():
            continue
        blocks = lines[s:].reshape(s, s, *lines.shape[1:])
        means = x.mean.swapaxes(0, axis)
        groups = [1]
        for k in range(1, s):
            near = (
                np.abs(same[k] - same[k - 1]).max() <= scale
                and np.abs(means[k] - means[k - 1]).max() <= math.sqrt(tolerance * scale)
                and _alike_outside(blocks, k, scale)
                and np.abs(blocks[k, k - 1] - _inside(blocks, x.atoms[axis], k)).max() <= scale
            )
            groups = [*groups[:-1], groups[-1] + 1] if near else [*groups, 1]
        if len(groups) < s:
            x = coarsen(x, axis, tuple(groups))
    return x


def _alike_outside(blocks: Array, k: int, scale: float) -> bool:
    """Whether segments k and k - 1 have the same pairs with every other segment."""
    difference = np.abs(blocks[k] - blocks[k - 1])
    difference[[k - 1, k]] = 0.0
    return float(difference.max()) <= scale


def _inside(blocks: Array, atom: Atom, k: int) -> Array:
    """Pairs within segment k or k - 1, whichever has any."""
    if atom[k] > 1 and atom[k - 1] > 1 and not np.allclose(blocks[k, k], blocks[k - 1, k - 1]):
        return np.full(blocks[k, k].shape, np.inf)
    inner = k if atom[k] > 1 else k - 1
    return blocks[inner, inner] if atom[inner] > 1 else blocks[k, k - 1]


def aligned(xs: Sequence[Abstract], but: int | None = None) -> list[Abstract]:
    """Tensors on common axes, as broadcasting has it; axis ``but`` (of equal ranks) left alone."""
    plan = alignment.common(tuple(x.dims for x in xs), but)
    out = []
    for x, merges, dims in zip(xs, plan.merges, plan.target, strict=True):
        own = _merged(_padded(x, len(dims)), merges)
        fit = fitted(own, dims)
        if x.allowed is not None and fit is not own:
            fit.allowed = x.allowed
        out.append(fit)
    return out


def _padded(x: Abstract, rank: int) -> Abstract:
    if len(x.dims) == rank:
        return x
    return x.with_(dims=((),) * (rank - len(x.dims)) + x.dims)


def _merged(x: Abstract, dims: tuple[int, ...]) -> Abstract:
    for d in dims:
        x = merge_dim(x, d)
    return x


def _met(a: Abstract, b: Abstract) -> tuple[Dims, tuple[Array, Array], tuple[Array, Array]]:
    """Common axes, and both tensors' (q, mean) on them, that broadcast against each other."""
    plan = alignment.common((a.dims, b.dims))
    dims = plan.target[0]
    x, y = (
        _merged(_padded(x, len(dims)), merges)
        for x, merges in zip((a, b), plan.merges, strict=True)
    )
    return (
        dims,
        alignment.fit(x.dims, dims).narrow(x.q, x.mean),
        alignment.fit(y.dims, dims).narrow(y.q, y.mean),
    )


# sums and products --------------------------------------------------------------------------------


def added(a: Abstract, b: Abstract, sa: float = 1.0, sb: float = 1.0) -> Abstract:
    """sa a + sb b of independent tensors, broadcast.

    q = sa^2 q_a + sb^2 q_b + sa sb (E a E b' + E b E a').
    """
    dims, (qa, ma), (qb, mb) = _met(a, b)
    qa, qb = (sa * sa) * qa, (sb * sb) * qb
    q = qa + qb
    if a.mean.any() and b.mean.any():
        q = q + (sa * sb) * _cross(dims, ma, mb)
    noise = 0.0
    if a.noise or b.noise:
        parts = (sa * sa * a.second_moment, a.noise), (sb * sb * b.second_moment, b.noise)
        noise = _mixed_noise(*parts)
    return Abstract(dims, sa * ma + sb * mb, q, allowed=_both_allowed(a, b), noise=noise)


def _cross(dims: Dims, a: Array, b: Array) -> Array | float:
    """E a E b' + E b E a' by class."""
    if a.size == 1 and b.size == 1:
        return 2.0 * a.item(0) * b.item(0)
    a, b = np.broadcast_arrays(a, b)
    a, b = a.reshape(-1), b.reshape(-1)
    atoms = tuple(atom for dim in dims for atom in dim)
    i, j = _lift(atoms, strata.left), _lift(atoms, strata.right)
    return a[i] * b[j] + b[i] * a[j]


def _mixed_noise(*parts: tuple[float, float]) -> float:
    total = sum(p for p, _ in parts)
    if not total > 0 or not math.isfinite(total):
        return max(n for _, n in parts)
    return sum((p / total) ** 2 * n for p, n in parts)


def _both_allowed(a: Abstract, b: Abstract) -> npt.NDArray[np.bool_] | None:
    if a.allowed is None or b.allowed is None:
        return b.allowed if a.allowed is None else a.allowed
    return a.allowed & b.allowed


def multiplied(a: Abstract, b: Abstract) -> Abstract:
    """a b of independent tensors, broadcast: q = q_a q_b."""
    dims, (qa, ma), (qb, mb) = _met(a, b)
    allowed = _both_allowed(a, b)
    return Abstract(dims, ma * mb, qa * qb, allowed=allowed, noise=a.noise + b.noise)


def scaled(x: Abstract, factor: float) -> Abstract:
    """factor x; its chain is kept."""
    base, f = x.chain or (x, _identity)
    return Abstract(
        x.dims,
        x.mean * factor,
        x.q * (factor * factor),
        chain=(base, lambda z: factor * f(z)),
        allowed=x.allowed,
        noise=x.noise,
    )


def shifted(x: Abstract, offset: float) -> Abstract:
    """x + offset; its chain is kept."""
    base, f = x.chain or (x, _identity)
    q = x.q + offset * (x.lifted(strata.left) + x.lifted(strata.right)) + offset * offset
    return Abstract(
        x.dims,
        x.mean + offset,
        q,
        chain=(base, lambda z: f(z) + offset),
        allowed=x.allowed,
        noise=x.noise,
    )


def _identity(z: Array) -> Array:
    return z


def summed(x: Abstract, dims: Iterable[int], *, keep: bool = False) -> Abstract:
    """The sum over the axes ``dims``: classes weigh as many pairs as they have."""
    gone = {d % len(x.dims) for d in dims} if x.dims else set()
    plan = alignment.reduction(x.dims, tuple(sorted(gone)), keep)
    return Abstract(plan.dims, plan.mean.of(x.mean), plan.q.of(x.q), noise=x.noise)


def averaged(x: Abstract, dims: Iterable[int], *, keep: bool = False) -> Abstract:
    """The mean over the axes ``dims``."""
    dims = sorted(set(dims))
    n = math.prod(strata.size(x.dims[d]) for d in dims)
    total = summed(x, dims, keep=keep)
    return Abstract(total.dims, total.mean / n, total.q / (n * n), noise=x.noise)


def mean_over(x: Abstract, dims: Iterable[int]) -> Array:
    """E[m m'] by class, m the mean over the axes ``dims``; of the shape of ``q``."""
    q = x.q
    for axis in x.axes(dims):
        q = np.expand_dims(np.tensordot(over_pairs(x.atoms[axis]), q, (0, axis)), axis)
    return np.broadcast_to(q, x.q.shape)


def contracted(
    a: Abstract, of_a: Sequence[str], b: Abstract, of_b: Sequence[str], out: Sequence[str]
) -> Abstract:
    """A product of independent tensors summed over the labels that ``out`` lacks, as einsum.

    Args:
        a: a tensor.
        of_a: a label an axis, none twice.
        b: another.
        of_b: its labels.
        out: labels of the result.
    """
    plan = alignment.contraction(a.dims, tuple(of_a), b.dims, tuple(of_b), tuple(out))
    x, y = _merged(a, plan.merges[0]), _merged(b, plan.merges[1])
    if x.dims != plan.target[0]:
        x = fitted(x, plan.target[0])
    if y.dims != plan.target[1]:
        y = fitted(y, plan.target[1])
    q = plan.q.product(x.q, y.q)
    if x.mean.size == 1 and y.mean.size == 1:
        mean = np.full((1,) * q.ndim, x.mean.item(0) * y.mean.item(0) * plan.terms)
    else:
        mean = plan.mean.product(x.mean, y.mean)
    return limited(Abstract(plan.dims, mean, q, noise=a.noise + b.noise))


# views --------------------------------------------------------------------------------------------


def permuted(x: Abstract, order: Sequence[int]) -> Abstract:
    """Axes in another order."""
    order = tuple(order)
    if order == tuple(range(len(x.dims))):
        return x
    dims, axes = _moved(x.dims, order)
    return Abstract(
        dims,
        x.mean.transpose(axes),
        x.q.transpose(axes),
        known=None if x.known is None else x.known.transpose(order),
        allowed=None if x.allowed is None else _ranked(x.allowed, len(order)).transpose(order),
        noise=x.noise,
    )


@lru_cache(maxsize=65536)
def _moved(dims: Dims, order: tuple[int, ...]) -> tuple[Dims, tuple[int, ...]]:
    starts = np.cumsum([0, *map(len, dims)])
    axes = tuple(int(a) for d in order for a in range(starts[d], starts[d + 1]))
    return tuple(dims[d] for d in order), axes


def _ranked(array: npt.NDArray, rank: int) -> npt.NDArray:
    """With axes of length 1 in front, as broadcasting has it."""
    return array if array.ndim >= rank else array.reshape((1,) * (rank - array.ndim) + array.shape)


def reshaped(x: Abstract, shape: Sequence[int]) -> Abstract:
    """The same elements on other axes; atoms are split where the new axes cut through them."""
    shape = tuple(map(int, shape))
    if shape == x.shape:
        return x
    blocks, coarse, finer, dims = rearrangement.reshaping(x.dims, shape)
    mean, q = x.mean, x.q
    if coarse != blocks or finer != coarse:
        one = _coarsened(Abstract(blocks, mean, q), coarse)
        one = fitted(one, finer)
        mean, q = one.mean, one.q
    return limited(
        Abstract(
            dims, mean, q,
            known=_as_shape(x.known, shape),
            allowed=_as_shape(x.allowed, shape),
            noise=x.noise,
        )
    )  # fmt: skip


def _coarsened(x: Abstract, dims: Dims) -> Abstract:
    """``x`` on coarser axes: segments averaged out, or all atoms merged into one."""
    for d, dim in enumerate(dims):
        if x.dims[d] != dim:
            x = x if len(dim) == len(x.dims[d]) else merge_dim(x, d)
            x = uniform(x, [d])
    return x


def _as_shape(array: npt.NDArray | None, shape: tuple[int, ...]) -> npt.NDArray | None:
    """Reshaped; None where it has other elements, or many that would be copied."""
    if array is None or array.size != math.prod(shape):
        return None
    if array.size > MAX_COPIED and not array.flags.c_contiguous:
        return None
    return array.reshape(shape)


def expanded(x: Abstract, shape: Sequence[int]) -> Abstract:
    """Broadcast to ``shape``."""
    shape = tuple(map(int, shape))
    if shape == x.shape:
        return x
    dims, wide = rearrangement.expansion(x.dims, shape)
    q, mean = alignment.fit(dims, wide).wide(x.q, x.mean)
    known = None if x.known is None else np.broadcast_to(x.known, shape)
    allowed = None if x.allowed is None else np.broadcast_to(x.allowed, shape)
    return Abstract(wide, mean, q, known=known, allowed=allowed, noise=x.noise)


def cut(x: Abstract, dim: int, start: int, stop: int, step: int = 1) -> Abstract:
    """``x[start:stop:step]`` on one axis."""
    n = x.shape[dim]
    if (start, stop, step) == (0, n, 1):
        return x
    index = (slice(None),) * dim + (slice(start, stop, step),)
    known = x.known[index] if x.known is not None else None
    allowed = None if x.allowed is None else _ranked(x.allowed, len(x.dims))
    if allowed is not None and allowed.shape[dim] == n:
        allowed = allowed[index]
    fit, picks = rearrangement.cutting(x.dims[dim], start, stop, step)
    if fit != x.dims[dim]:
        finer = len(fit) > len(x.dims[dim])
        x = fitted(x, (*x.dims[:dim], fit, *x.dims[dim + 1 :])) if finer else merge_dim(x, dim)
    q, mean = x.q, x.mean
    axis = sum(map(len, x.dims[:dim]))
    new: list[Atom] = []
    for atom, pick in zip(fit, picks, strict=True):
        if pick is None:
            new.append(atom)
            axis += 1
        elif sum(pick.atom) == 1:
            q, mean = q.take(pick.rows[0], axis), mean.take(pick.kept[0], axis)
        else:
            q, mean = q.take(pick.rows, axis), mean.take(pick.kept, axis)
            new.append(pick.atom)
            axis += 1
    dims = (*x.dims[:dim], tuple(new), *x.dims[dim + 1 :])
    return Abstract(dims, mean, q, known=known, allowed=allowed, noise=x.noise)


def resized(x: Abstract, dim: int, n: int) -> Abstract:
    """An axis of another length with the same statistics, segments averaged out."""
    if strata.size(x.dims[dim]) == n:
        return x
    x = uniform(merge_dim(x, dim), [dim]).plain()
    axis = sum(map(len, x.dims[:dim]))
    old, new = x.dims[dim], strata.whole(n)
    dims = (*x.dims[:dim], new, *x.dims[dim + 1 :])
    if old and not new:
        mean, q = np.asarray(x.mean.take(0, axis)), np.asarray(x.q.take(0, axis))
        return Abstract(dims, mean, q, noise=x.noise)
    if new and not old:
        return fitted(x, dims)
    return Abstract(dims, x.mean, x.q, noise=x.noise)


def concatenated(xs: Sequence[Abstract], dim: int) -> Abstract:
    """Tensors side by side on one axis, each a segment or more; independent of each other."""
    xs = [x for x in xs if x.known is None or x.known.size]
    while len(xs) > MAX_PARTS:
        xs = [concatenated(xs[i : i + MAX_PARTS], dim) for i in range(0, len(xs), MAX_PARTS)]
    if len(xs) == 1:
        return xs[0]
    known = _joined([x.known for x in xs], dim)
    allowed = _joined([x.allowed for x in xs], dim)
    parts = _side_by_side(xs, dim)
    axis = sum(map(len, parts[0].dims[:dim]))
    out = _alike(parts, dim, axis) or limited(tidy(_beside(parts, dim, axis), axes=[axis]))
    noise = _mixed_noise(*((x.second_moment * math.prod(x.shape), x.noise) for x in xs))
    return Abstract(out.dims, out.mean, out.q, known=known, allowed=allowed, noise=noise)


def _alike(parts: Sequence[Abstract], dim: int, axis: int) -> Abstract | None:
    """The whole where every part is one segment and nothing tells two of them apart."""
    first, *rest = parts
    if first.mean.shape[axis] > 1:
        return None
    for x in rest:
        if x.q.shape != first.q.shape or x.mean.shape != first.mean.shape:
            return None
        if not ((x.q == first.q).all() and (x.mean == first.mean).all()):
            return None
    lines, between = first.q.swapaxes(0, axis), first.outer().swapaxes(0, axis)[1]
    lengths = [sum(x.atoms[axis]) for x in parts]
    if max(lengths) > 1 and np.abs(lines[1] - between).max() > 1e-9 * np.abs(lines[0]).max():
        return None
    head = ((sum(lengths),), *first.dims[dim][1:])
    q = np.stack([lines[0], between]).swapaxes(0, axis)
    return Abstract((*first.dims[:dim], head, *first.dims[dim + 1 :]), first.mean, q)


def _beside(parts: Sequence[Abstract], dim: int, axis: int) -> Abstract:
    """Each part's own pairs in its own classes, products of means between them."""
    counts = tuple(x.mean.shape[axis] for x in parts)
    dims, rows, classes = rearrangement.joining(tuple(x.dims for x in parts), dim, counts)
    mean = np.concatenate([x.mean for x in parts], axis)
    shape = [*parts[0].q.shape]
    shape[axis] = classes
    out = Abstract(dims, mean, np.zeros(shape))
    if mean.any():
        out.q = out.outer()
    lines = out.q.swapaxes(0, axis)
    for x, own in zip(parts, rows, strict=True):
        lines[own] = x.q.swapaxes(0, axis)
    return out


def _side_by_side(xs: Sequence[Abstract], dim: int) -> list[Abstract]:
    """On common axes, and on axis ``dim`` with one first atom each and the same others."""
    tail = rearrangement.common_tail(tuple(x.dims[dim] for x in xs))
    parts = []
    for x in xs:
        head = rearrangement.with_tail(x.dims[dim], tail)
        one = x if head is not None else merge_dim(x, dim)
        head = head or one.dims[dim] or ((1,),)
        parts.append(fitted(one, (*x.dims[:dim], head, *x.dims[dim + 1 :])))
    while sum(len(x.dims[dim][0]) for x in parts) > max(MAX_PARTS, len(parts)):
        most = max(range(len(parts)), key=lambda k: len(parts[k].dims[dim][0]))
        count = len(parts[most].dims[dim][0])
        parts[most] = _closer(parts[most], parts[most].axes([dim])[0], max(1, count // 2))
    rest = {(*x.dims[:dim], *x.dims[dim + 1 :]) for x in parts}
    return parts if len(rest) == 1 else aligned(parts, but=dim)


def _joined(arrays: Sequence[npt.NDArray | None], dim: int) -> npt.NDArray | None:
    if any(array is None for array in arrays):
        return None
    try:
        return np.concatenate(arrays, dim)  # type: ignore[arg-type]
    except ValueError:
        return None


# drawing ------------------------------------------------------------------------------------------


def drawn(x: Abstract, rng: np.random.Generator) -> Array:
    """A Gaussian tensor with these moments: what a rule's Monte Carlo test feeds the real op."""
    return draw(tuple(x.atoms), x.mean, x.q - x.outer(), rng).reshape(x.shape)
