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
from functools import lru_cache, wraps
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from . import alignment, strata
from .drawing import draw
from .lines import Function
from .strata import Array, Atom, Dims

R = TypeVar("R")


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
        made: what was computed of it alone (`once`).
    """

    __slots__ = (
        "allowed", "chain", "dims", "known", "made", "mean", "noise", "note", "q", "source",
    )  # fmt: skip

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
        self.made: dict[Any, Any] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return strata.lengths(self.dims)

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """Of all axes, in order."""
        return strata.flattened(self.dims)

    def axes(self, dims: Iterable[int]) -> tuple[int, ...]:
        """Which axes of ``q`` and ``mean`` belong to the tensor's axes ``dims``."""
        return strata.places(self.dims, tuple(dims))

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
        return self.mean.reshape(-1)[lift(self.atoms, side)]

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


def once(function: Callable[..., R]) -> Callable[..., R]:
    """A function of a tensor and hashable arguments, computed once for each tensor.

    A norm's backward rule needs what its forward rule made.
    """

    @wraps(function)
    def kept(x: Abstract, *args: Any) -> R:
        if x.made is None:
            x.made = {}
        key = (function, args)
        if key not in x.made:
            x.made[key] = function(x, *args)
        return cast("R", x.made[key])

    return kept


def average(table: Array, weights: Sequence[Array]) -> float:
    """The table's mean, every axis with its own weights."""
    if table.size == 1:
        return float(table.reshape(()))
    for w in weights:
        table = np.tensordot(w, table, (0, 0))
    return float(table)


def _averaged(table: Array, of: Callable[[Atom], Array], atoms: tuple[Atom, ...]) -> float:
    if table.size == 1:
        return float(table.item(0))
    return float(table.reshape(-1) @ joint_weights(of, atoms))


@lru_cache(maxsize=4096)
def joint_weights(of: Callable[[Atom], Array], atoms: tuple[Atom, ...]) -> Array:
    out = np.ones(())
    for atom in atoms:
        out = np.multiply.outer(out, of(atom))
    return out.reshape(-1)


@lru_cache(maxsize=4096)
def lift(atoms: tuple[Atom, ...], side: Callable[[Atom], strata.Index]) -> strata.Index:
    """Class -> flat index of the segments of its first or second index."""
    flat = np.arange(math.prod(map(len, atoms))).reshape(tuple(map(len, atoms)))
    return flat[np.ix_(*(side(atom) for atom in atoms))]


@lru_cache(maxsize=65536)
def over_pairs(atom: Atom) -> Array:
    """Weights of the classes in an average over pairs of indices."""
    return strata.pairs(atom) / sum(atom) ** 2


def along(table: Array, axis: int, matrix: Array) -> Array:
    """``matrix`` applied to one axis of the table."""
    return np.matmul(table.swapaxes(axis, -1), matrix.T).swapaxes(axis, -1)


def weighed(
    table: Array, atoms: Iterable[Atom], axes: Iterable[int], of: Callable[[Atom], Array]
) -> Array:
    """The average over some axes of the table, which stay with length 1; ``of`` gives the weights."""
    return alignment.weighing(tuple(atoms), tuple(axes), of).of(table)


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
    q = _squared_means(x)
    for axis, n in enumerate(x.shape):
        # From the mean over all pairs to the mean over pairs of different indices.
        alike, both = np.take(q, [0], axis), np.take(q, [1], axis)
        q = np.concatenate([alike, (both - alike / n) / (1 - 1 / n)], axis)
    mean = np.full((1,) * x.ndim, float(x.mean().real))
    return Abstract(dims, mean, q, known=known, allowed=allowed)


def _squared_means(x: npt.NDArray) -> Array:
    """The mean of |m|^2, m the mean over the axes whose index is 1: of the shape (2, 2, ...).

    Each axis is averaged out of all that those before it left; short axes come first, so that sums
    run over long lines of memory.
    """
    order = np.argsort(x.shape, kind="stable")
    left = [np.ascontiguousarray(x.transpose(order))]
    for axis in range(x.ndim):
        left = [part for m in left for part in (m, m.mean(axis=axis, keepdims=True))]
    q = np.array([(m * m.conj()).real.mean() for m in left])
    return q.reshape((2,) * x.ndim).transpose(np.argsort(order))


def _corner(x: npt.NDArray, limit: int) -> npt.NDArray:
    while x.size > limit:
        axis = int(np.argmax(x.shape))
        keep = max(64, x.shape[axis] * limit // x.size)
        x = x.take(range(min(keep, x.shape[axis])), axis)
    return x


def drawn(x: Abstract, rng: np.random.Generator) -> Array:
    """A Gaussian tensor with these moments: what a rule's Monte Carlo test feeds the real op."""
    return draw(x.atoms, x.mean, x.q - x.outer(), rng).reshape(x.shape)
