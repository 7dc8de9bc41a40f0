"""Moments of sequences, time by time: E[y_t y_s] for the same or another sample and unit.

A recurrent layer reuses its weights, so what it computes at two times is correlated through them even
where inputs are not. Everything here is an array over (t, s, same or other sample, same or other unit).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from . import strata
from .domain import Abstract, limited, merge_dim, tidy, uniform
from .notes import note_of
from .strata import Array, Atom, Dim, Dims, Index

Function = Callable[[Array], Array]

LONGEST = 48  # steps that are followed; later ones repeat the last
TERMS = 15
_Z = np.linspace(-7.5, 7.5, 181)
_W = np.exp(-_Z * _Z / 2)
_W /= _W.sum()


def _hermite() -> Array:
    rows = [np.ones_like(_Z), _Z]
    for k in range(1, TERMS - 1):
        rows.append((_Z * rows[k] - k**0.5 * rows[k - 1]) / (k + 1) ** 0.5)
    return np.stack(rows, axis=1) * _W[:, None]


_WEIGHTED = _hermite()


class Response:
    """E f(a_t) f(a_s) of a Gaussian sequence, filled step by step (Mehler's series)."""

    def __init__(self, f: Function, steps: int) -> None:
        self.f = f
        self.c = np.zeros((steps, TERMS))
        self.rest = np.zeros(steps)

    def see(self, t: int, mean: float, std: float) -> None:
        """The distribution at time t."""
        values = self.f(mean + std * _Z)
        self.c[t] = values @ _WEIGHTED
        self.rest[t] = max(float((values * values) @ _W) - float(self.c[t] @ self.c[t]), 0.0)

    def see_all(self, mean: Array, std: Array) -> Response:
        """The distributions at all times."""
        values = self.f(mean[:, None] + std[:, None] * _Z)
        self.c = values @ _WEIGHTED
        self.rest = np.maximum((values * values) @ _W - (self.c * self.c).sum(axis=1), 0.0)
        return self

    @property
    def mean(self) -> Array:
        """E f(a_t)."""
        return self.c[:, 0]

    def row(self, t: int, powers: Array) -> Array:
        """E f(a_t) f(a_s) for s = 0..t, by the powers of their correlations (s, sample, unit, degree)."""
        out = _series(self.c[: t + 1] * self.c[t], powers)
        out[t, 0, 0] += self.rest[t]
        return out

    def table(self, powers: Array) -> Array:
        """E f(a_t) f(a_s) for all pairs of times."""
        out = _series(self.c[:, None] * self.c[None], powers)
        steps = np.arange(len(self.c))
        out[steps, steps, 0, 0] += self.rest
        return out


def _series(c: Array, powers: Array) -> Array:
    """Sum of c_k r^k; c has its terms last, the powers two more axes before them."""
    shape = powers.shape
    flat = powers.reshape(*shape[:-3], -1, TERMS) @ c[..., None]
    return np.asarray(flat.reshape(shape[:-1]))


def powers(q: Array, outer: Array, scale: Array) -> Array:
    """r^0, r^1, ... of r = (q - outer) / scale, one more axis at the end; r is 0 where scale is."""
    out = np.empty((*q.shape, TERMS))
    out[..., 0] = 1.0
    r = q - outer[..., None, None]
    r /= np.where(scale > 1e-150, scale, np.inf)[..., None, None]
    np.minimum(np.maximum(r, -1.0, out=r), 1.0, out=r)
    out[..., 1:] = r[..., None]
    np.multiply.accumulate(out, axis=-1, out=out)
    return out


def mirrored(q: Array, t: int, row: Array) -> None:
    """Write E y_t y_s for s = 0..t, and its mirror image."""
    q[t, : t + 1] = row
    q[: t + 1, t] = row


# to and from tensors ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Timed:
    """A note on what is known by time, which the tensor's own axes have in bins or not at all.

    Args:
        q: E x_t x_s, (times, times, same or other sample, same or other unit).
        mean: E x_t.
    """

    q: Array
    mean: Array


def beside(parts: Sequence[Timed], units: int) -> Timed:
    """Of several tensors' units together, which are independent of each other but for their means."""
    q = np.mean([t.q for t in parts], axis=0)
    mean = np.mean([t.mean for t in parts], axis=0)
    cross = np.mean([np.outer(s.mean, t.mean) for s in parts for t in parts if s is not t], axis=0)
    share = (units - 1) / (units * len(parts) - 1)
    q[..., 1] = share * q[..., 1] + (1 - share) * cross[..., None]
    return Timed(q, mean)


def unrolled(x: Abstract, steps: int) -> tuple[Array, Array]:
    """(E x_t x_s, E x_t) of a tensor (time, batch, units) over the first ``steps`` times."""
    for d in range(3):
        x = merge_dim(x, d)
    longer = steps < strata.size(x.dims[0])
    x = uniform(x, range(3) if longer else (1, 2))
    table = x.q
    for axis, dim in enumerate(x.dims):
        if not dim:
            table = np.repeat(np.expand_dims(table, axis), 2, axis)
    atom: Atom = x.dims[0][0] if x.dims[0] else (1,)
    owner = np.repeat(np.arange(len(atom)), atom)[:steps]
    times = strata.classes(owner[:, None], owner[None], np.eye(steps, dtype=bool), len(atom))
    return table[times], x.mean.reshape(-1)[owner]


def tensor(q: Array, mean: Array, times: Dim, batch: int, units: int) -> Abstract:
    """A tensor (time, batch, units) of a table whose first axis has the classes of ``times``."""
    dims: Dims = (times, strata.whole(batch), strata.whole(units))
    mean = mean.reshape(-1, 1, 1)
    for axis in (2, 1):
        if not dims[axis]:
            q, mean = q.take([0], axis).squeeze(axis), mean.squeeze(axis)
    if not times:
        q, mean = q.take([0], 0).squeeze(0), mean.squeeze(0)
    return Abstract(dims, mean, q)


def frame(q: Array, mean: float, batch: int, units: int) -> Abstract:
    """One time of a sequence, (1, batch, units)."""
    return tensor(q[None], np.array([mean]), (), batch, units)


def bins(length: int) -> Atom:
    """Times that are told apart: the first, the second, the next two, four, and the rest."""
    cuts = [c for c in (1, 2, 4, 8) if c < length]
    return tuple(np.diff([0, *cuts, length]).tolist())


def stand_ins(t: Index, s: Index, steps: int) -> tuple[Index, Index]:
    """The pair of steps that stands for each pair of times.

    Times beyond the last step repeat it, and what came up to half of all steps before it; farther
    apart they count as that far.
    """
    late, early = np.maximum(t, s), np.minimum(t, s)
    beyond = np.maximum(late - (steps - 1), 0)
    moved = np.maximum(early - beyond, np.minimum(early, steps // 2))
    late = late - beyond
    early = np.minimum(np.where(beyond > 0, moved, early), late)
    return np.where(t >= s, late, early), np.where(t >= s, early, late)


def sampled(start: int, n: int, most: int = 64) -> Index:
    """Positions evenly within a range."""
    count = min(n, most)
    return start + ((np.arange(count) + 0.5) * n / count).astype(np.intp)


@lru_cache(maxsize=64)
def _averages(length: int, steps: int) -> tuple[Atom, Array, Array]:
    """`bins`, and what steps and pairs of steps count for in the mean over each bin and pair of bins."""
    atom = bins(length)
    starts = np.cumsum([0, *atom[:-1]]).tolist()
    spans = [sampled(i, n) for i, n in zip(starts, atom, strict=True)]
    own = np.zeros((len(atom), steps))
    for k, a in enumerate(spans):
        np.add.at(own[k], stand_ins(a, a, steps)[0], 1 / len(a))
    pairs = np.zeros((len(atom) + len(atom) ** 2, steps, steps))
    pairs[: len(atom), np.arange(steps), np.arange(steps)] = own
    for k, (a, b) in enumerate(product(spans, repeat=2), len(atom)):
        t, s = stand_ins(*np.meshgrid(a, b, indexing="ij"), steps)
        apart = np.not_equal.outer(a, b)
        np.add.at(pairs[k], (t[apart], s[apart]), 1 / max(apart.sum(), 1))
    return atom, own, pairs.reshape(len(pairs), -1)


@lru_cache(maxsize=64)
def _represented(length: int, steps: int) -> Array:
    """How many pairs of times each pair of steps stands for."""
    if length <= steps:
        return np.ones((steps, steps))
    at = sampled(0, length, 512)
    t, s = stand_ins(*np.meshgrid(at, at, indexing="ij"), steps)
    apart = 1.0 - np.eye(len(at))
    weight = apart * (length * (length - 1) / apart.sum()) + np.eye(len(at)) * (length / len(at))
    times = np.zeros((steps, steps))
    np.add.at(times, (t, s), weight)
    return times


@dataclass(frozen=True)
class Grid:
    """Sequences of one length."""

    length: int
    batch: int

    @property
    def steps(self) -> int:
        """How many are followed."""
        return min(self.length, LONGEST)

    def read(self, x: Abstract, *, backwards: bool = False) -> tuple[Array, Array]:
        """(E x_t x_s, E x_t) of a tensor (time, batch, units), or from the end."""
        timed = note_of(x, Timed)
        if timed is not None and len(timed.mean) == self.length:
            q, mean = timed.q, timed.mean
        else:
            q, mean = unrolled(x, self.steps)
        return (q[::-1, ::-1].copy(), mean[::-1].copy()) if backwards else (q, mean)

    def write(self, q: Array, mean: Array, units: int, *, backwards: bool) -> Abstract:
        """A tensor (time, batch, units) of moments over pairs of steps, its times in `bins`.

        Bins are fine at the start alone; a gradient that enters at the end needs `Timed`.
        """
        timed = Timed(q[::-1, ::-1], mean[::-1]) if backwards else Timed(q, mean)
        atom, own, pairs = _averages(self.length, self.steps)
        means, tables = own @ mean, (pairs @ q.reshape(-1, 4)).reshape(-1, 2, 2)
        if backwards:
            atom, means, tables = _reversed(atom, means, tables)
        out = tensor(tables, means, (atom,) if self.length > 1 else (), self.batch, units)
        out = limited(tidy(out, 1e-3, [0])) if self.length > 1 else out
        if self.length == self.steps:
            out.note = (timed,)
        return out

    def last(self, q: Array, mean: Array, units: int) -> Abstract:
        """The last step's tensor, (1, batch, units)."""
        return frame(q[-1, -1], float(mean[-1]), self.batch, units)

    def counts(self) -> Array:
        """How many pairs of (time, sample) each pair of steps stands for, (t, s, same sample or not)."""
        times = _represented(self.length, self.steps)
        return times[..., None] * np.array([self.batch, self.batch * (self.batch - 1.0)])


@dataclass(frozen=True)
class Ragged:
    """Packed sequences: how many are still running at each time."""

    sizes: tuple[int, ...]

    @property
    def steps(self) -> int:
        """How many are followed."""
        return min(len(self.sizes), LONGEST)

    def read(self, x: Abstract, *, backwards: bool = False) -> tuple[Array, Array]:
        """(E x_t x_s, E x_t) of a tensor (places, units).

        Places that nothing is noted of are all alike.
        """
        timed = note_of(x, Timed)
        if timed is not None and len(timed.mean) == len(self.sizes):
            return self._turned(timed.q, timed.mean) if backwards else (timed.q, timed.mean)
        x = uniform(merge_dim(merge_dim(x, 0), 1))
        q = x.q
        for axis, dim in enumerate(x.dims):
            if not dim:
                q = np.repeat(np.expand_dims(q, axis), 2, axis)
        table = np.broadcast_to(q[1], (self.steps, self.steps, 2, 2)).copy()
        at = np.arange(self.steps)
        table[at, at, 0] = q[0]
        return table, np.full(self.steps, x.average_mean)

    def write(self, q: Array, mean: Array, units: int, *, backwards: bool) -> Abstract:
        """A tensor (places, units)."""
        counts, total = self.counts(), float(sum(self.sizes))
        steps = np.arange(self.steps)
        own = counts[steps, steps, 0]
        alike = (own[:, None] * q[steps, steps, 0]).sum(axis=0) / own.sum()
        every = np.einsum("tsb,tsbu->u", counts, q)
        apart = (every - total * alike) / max(total * (total - 1.0), 1.0)
        center = float((own * mean).sum() / own.sum())
        place = strata.whole(int(total))
        out = tensor(np.stack([alike, apart])[:, None], np.array([center]), place, 1, units)
        out = out.with_(dims=(out.dims[0], out.dims[2]))
        if len(self.sizes) == self.steps:
            out.note = (Timed(*(self._turned(q, mean) if backwards else (q, mean))),)
        return out

    def _turned(self, q: Array, mean: Array) -> tuple[Array, Array]:
        """From times to steps from each sequence's own end, or back."""
        few = sampled(0, self.sizes[0], 16)
        lengths = (np.array(self.sizes)[:, None] > few).sum(axis=0)
        at = lengths[:, None] - 1 - np.arange(self.steps)
        runs, at = (at >= 0).astype(float), np.maximum(at, 0)
        one = np.einsum("it,is->ts", runs, runs)
        own = np.einsum("it,is,itsu->tsu", runs, runs, q[at[:, :, None], at[:, None, :], 0])
        every = np.zeros_like(own)
        for i, j in product(range(len(few)), repeat=2):
            if i != j or len(few) == 1:
                both = runs[i][:, None] * runs[j][None]
                every += both[..., None] * q[at[i][:, None], at[j][None], 1]
        ran = runs.sum(axis=0)
        pairs = np.outer(ran, ran) - (one if len(few) > 1 else 0.0)
        out = np.stack(
            [own / np.maximum(one, 1.0)[..., None], every / np.maximum(pairs, 1.0)[..., None]],
            axis=2,
        )
        return out, (runs * mean[at]).sum(axis=0) / np.maximum(ran, 1.0)

    def padded(self, q: Array, mean: Array, length: int, value: float) -> tuple[Array, Array]:
        """Moments over all samples and times, ``value`` where a sequence is over."""
        batch, steps = self.sizes[0], min(length, LONGEST)
        sizes = np.array([*self.sizes, *(0,) * length][:steps], float)
        late = np.minimum(np.arange(steps), len(mean) - 1)
        q, mean = q[late[:, None], late[None]], mean[late]
        runs = sizes / batch
        same = np.minimum.outer(sizes, sizes) / batch
        other = (np.outer(sizes, sizes) - same * batch) / max(batch * (batch - 1.0), 1.0)
        both = np.stack([same, other], axis=-1)
        out = both[..., None] * q
        if value:
            one = (runs * mean)[:, None, None] - both * mean[:, None, None]
            none = 1.0 - runs[:, None, None] - runs[None, :, None] + both
            out = out + (value * (one + one.swapaxes(0, 1)) + value * value * none)[..., None]
        return out, runs * mean + (1.0 - runs) * value

    def last(self, q: Array, mean: Array, units: int) -> Abstract:
        """Each sequence's own last step, (1, batch, units)."""
        ends = np.array([sum(n > i for n in self.sizes) for i in range(self.sizes[0])]) - 1
        ends = np.minimum(ends, self.steps - 1)
        pairs = q[ends[:, None], ends[None]]
        own = np.eye(len(ends), dtype=bool)
        apart = pairs[~own][:, 1].mean(axis=0) if len(ends) > 1 else pairs[0, 0, 1]
        table = np.stack([pairs[own][:, 0].mean(axis=0), apart])
        return frame(table, float(mean[ends].mean()), len(ends), units)

    def counts(self) -> Array:
        """As `Grid.counts`: at two times as many sequences are the same as still run at the later."""
        sizes = np.array(self.sizes, float)
        t, s = np.meshgrid(np.arange(sizes.size), np.arange(sizes.size), indexing="ij")
        same = np.minimum(sizes[t], sizes[s])
        both = np.stack([same, sizes[t] * sizes[s] - same], -1)
        if sizes.size == self.steps:
            return both
        t, s = stand_ins(t, s, self.steps)
        out = np.zeros((self.steps, self.steps, 2))
        np.add.at(out, (t, s), both)
        return out


def _reversed(atom: Atom, mean: Array, table: Array) -> tuple[Atom, Array, Array]:
    """Times from end to start."""
    s = len(atom)
    turned = np.arange(s)[::-1]
    rows = np.concatenate([turned, s + (turned[:, None] * s + turned[None]).ravel()])
    return atom[::-1], mean[turned], table[rows]
