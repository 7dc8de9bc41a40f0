"""A tensor and what is computed from itself: its rows' statistics, averages of its neighbourhoods.

Their sums and products are exact where independent tensors' would not be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from .domain import (
    Abstract,
    Function,
    added,
    aligned,
    fitted,
    multiplied,
    over_pairs,
    scaled,
    shifted,
    weighed,
)
from .notes import (
    Centred,
    Filtered,
    Mapped,
    Reduction,
    View,
    centred_reduction,
    concerns,
    linear,
    note_of,
    origin,
    relations,
    square,
    statistic,
    unchained,
)  # fmt: skip
from .rows import levelled, paired, with_mean
from .softmax import attention_weights
from .strata import Array, Dims

Operand = Abstract | float

_STEP = 1e-4  # of a logarithm, for elasticities


def certain(x: Abstract) -> float | None:
    """The number that x is everywhere, if it is one without doubt."""
    if x.mean.size != 1:
        return None
    value = float(x.mean.item(0))
    square = value * value
    if x.q.item(0) != square or x.q.item(-1) != square:
        return None
    return value if (x.q == square).all() else None


def covers(x: Abstract, y: Abstract) -> bool:
    """Whether broadcasting with y leaves x's shape alone."""
    own, other = x.shape, y.shape
    return len(other) <= len(own) and all(
        n in (1, m) for n, m in zip(reversed(other), reversed(own), strict=False)
    )


def straight(x: Abstract, factor: float, offset: float) -> Abstract:
    """factor x + offset; x itself where nothing changes, so that it is still recognised."""
    x = x if factor == 1.0 else scaled(x, factor)
    return x if offset == 0.0 else shifted(x, offset)


def count_of(x: Abstract, dims: Sequence[int]) -> int:
    return math.prod(x.shape[d] for d in dims)


def _axes(x: Abstract, t: Abstract, count: int) -> list[int] | None:
    """Axes of x over which t, or what t is a view of, is a mean of ``count`` elements."""
    while True:
        shape = (1,) * (len(x.dims) - len(t.dims)) + t.shape
        if len(shape) == len(x.dims):
            dims = [d for d, (n, m) in enumerate(zip(x.shape, shape, strict=True)) if m == 1 < n]
            if count_of(x, dims) == count and covers(x, t):
                return dims
        view = note_of(unchained(t)[0], View)
        if view is None:
            return None
        t = view.of


def with_own_mean(a: Abstract, b: Abstract, sa: float, sb: float) -> Abstract | None:
    """a + b where b is linear in a's mean over the axes along which it is broadcast."""
    found = statistic(b)
    if found is None or not concerns(found[0], a) or found[0].centred:
        return None
    note, _, g = found
    base, f = unchained(a)
    lines = linear(f), linear(note.f), linear(g)
    dims = _axes(a, b, note.count)
    if dims is None or any(line is None for line in lines):
        return None
    (slope, offset), (inner, shift), (outer, lift) = lines  # type: ignore[misc]
    own, mean = sa * slope, sb * outer * inner
    out = with_mean(base, dims, own, mean)
    if abs(own + mean) <= 1e-9 * abs(own):
        out = with_mean(base, dims, 1.0, -1.0)
        out.note = (Centred(base, note.count),)
        out = straight(out, own, 0.0)
    return straight(out, 1.0, sa * offset + sb * (outer * shift + lift))


def with_own_image(a: Abstract, b: Abstract, sa: float, sb: float) -> Abstract | None:
    """a + b where b is linear in a, as averages of its neighbourhoods are: E[a b'] is known."""
    (base, f), (image, g) = unchained(a), unchained(b)
    notes = relations(image)
    note = next((n for n in notes if origin(n.of) is origin(base)), None)
    if note is None or a.shape != b.shape:
        return None
    x, y = aligned([base.plain(), image.plain()])
    lines = linear(f), linear(g)
    if None in lines or y.dims != image.dims:
        return None
    (slope, offset), (factor, shift) = lines  # type: ignore[misc]
    own, other = sa * slope, sb * factor
    cross = note.cross()
    q = own * own * x.q + other * other * y.q + 2 * own * other * cross
    out = Abstract(y.dims, own * x.mean + other * y.mean, q, noise=max(a.noise, b.noise))
    out.note = (
        Mapped(base, lambda: own * x.q + other * cross),
        *_further(base, notes, own, other, y.dims),
    )
    return straight(out, 1.0, sa * offset + sb * shift)


def with_own_filter(a: Abstract, b: Abstract, sa: float, sb: float) -> Abstract | None:
    """a + relu(b) where b is a with every channel filtered on its own, and a >= 0.

    A channel that is large in a is large in b. Let a = s u, s the channel's size, the same at all its
    positions p, and b of variance proportional to s^2 given a; then for f(z) = |z| f(+-1)

        E[a_p f(b_p')] = sqrt(E[a_p a_p']) E f(b),

    b taken as Gaussian. It is E a E f(b) where channels are alike (s certain), and as large as
    sqrt(E a^2) E f(b) where a is constant in each channel.
    """
    base, f = unchained(b)
    note = note_of(base, Filtered)
    if note is None or note.of is not a or a.dims != b.dims or not a.uniform:
        return None
    if not _homogeneous(f) or not _positive(a):
        return None
    out = added(a, b, sa, sb)
    together = weighed(a.q, a.atoms, a.axes(range(2, len(a.dims))), over_pairs)
    excess = (np.sqrt(np.maximum(together, 0.0)) - a.average_mean) * b.average_mean
    for axis in a.axes([1]):  # of one channel alone
        excess = excess * np.array([1.0, 0.0]).reshape([-1 if i == axis else 1 for i in range(a.q.ndim)])  # fmt: skip
    return out.with_(q=out.q + 2 * sa * sb * excess)


def _homogeneous(f: Function) -> bool:
    """Whether f(c z) = c f(z) for c > 0, and f is no straight line."""
    z = np.array([-4.0, -2.0, -1.0, 1.0, 2.0, 4.0])
    with np.errstate(all="ignore"):
        at = np.asarray(f(z), float)
    return (
        bool(np.allclose(2 * at[[2, 1, 3, 4]], at[[1, 0, 4, 5]], rtol=1e-6)) and linear(f) is None
    )


def _positive(x: Abstract) -> bool:
    """Whether x is a function that is nowhere negative."""
    with np.errstate(all="ignore"):
        at = np.asarray(unchained(x)[1](np.linspace(-4.0, 4.0, 17)), float)
    return bool((at >= 0).all())


def _further(
    base: Abstract, notes: Sequence[Mapped], own: float, other: float, dims: Dims
) -> list[Mapped]:
    """What a sum of ``base`` and its image is of tensors in which both are linear."""
    found = []
    for near in relations(base):
        far = next((n for n in notes if n.of is near.of), None)
        if far is not None:
            found.append(Mapped(near.of, partial(_crossed, base, near, far, (own, other), dims)))
    return found


def _crossed(
    base: Abstract, near: Mapped, far: Mapped, factors: tuple[float, float], dims: Dims
) -> Array:
    own, other = factors
    return own * fitted(Abstract(base.dims, base.mean, near.cross()), dims).q + other * far.cross()


def as_variance(a: Abstract, b: Abstract, sa: float, sb: float) -> Abstract | None:
    """E[x^2] - E[x]^2 of one row."""
    first, second = statistic(a), statistic(b)
    if first is None or second is None or a.shape != b.shape:
        return None
    (of_square, _, f), (of_mean, _, g) = first, second
    factor, line, outer, power = square(of_square.f), linear(of_mean.f), linear(f), square(g)
    if factor is None or line is None or outer is None or power is None or line[1] or outer[1]:
        return None
    if of_square.of is not of_mean.of or of_square.count != of_mean.count:
        return None
    total = sa * outer[0] * factor
    if not math.isclose(total, -sb * power * line[0] ** 2, rel_tol=1e-9):
        return None
    return centred_reduction(added(a, b, sa, sb), of_square.of, of_square.count, total)


class Norm(NamedTuple):
    """A product x t that divides x by its own rows' level: base slope g(level).

    Args:
        base: of which x is a multiple.
        dims: a row's axes.
        g: from the mean square of base to the factor on base.
        common: whether rows may share a part.
        share: -2 d ln g / d ln level.
    """

    base: Abstract
    dims: list[int]
    g: Function
    common: bool
    share: float

    def product(self) -> tuple[Abstract, Abstract]:
        """x t, and t times the slope of x."""
        out, scale = levelled(self.base, self.dims, self.g, common=self.common)
        if abs(self.share - 1.0) < 0.2:
            out.noise = 0.0
        return out, scale


def norm_of(x: Abstract, t: Abstract) -> Norm | None:
    found = statistic(t)
    if found is None or not concerns(found[0], x):
        return None
    note, s, g = found
    base, f = unchained(x)
    dims = _axes(x, t, note.count)
    factor, line = square(note.f), linear(f)
    if dims is None or factor is None or line is None or line[1]:
        return None
    slope = line[0]
    return Norm(
        base, dims, lambda v: slope * g(factor * v), not note.centred, -2 * _elasticity(s, g)
    )


def by_own_statistic(x: Abstract, t: Abstract) -> Abstract | None:
    """x t where t is a function of a mean over x's rows: a norm, or as if that mean were certain."""
    found = statistic(t)
    if found is None or not concerns(found[0], x):
        return None
    note, s, g = found
    norm = norm_of(x, t)
    if norm is not None:
        return norm.product()[0]
    dims = _axes(x, t, note.count)
    if dims is not None and len(dims) == 1 and _is_softmax(x, note, s, g):
        return attention_weights(unchained(x)[0].with_(allowed=x.allowed), dims[0])
    values = _at_expectation(t, s, g)
    return multiplied(x, Abstract(t.dims, values, np.broadcast_to(paired(values, t), t.q.shape)))


def _at_expectation(t: Abstract, s: Abstract, g: Function) -> Array:
    """g(E s) on the axes of t, which shows it perhaps through a view."""
    with np.errstate(all="ignore"):
        values = np.asarray(np.broadcast_to(g(s.mean), s.mean.shape), float)
    if s.dims == t.dims:
        return values
    center = float(np.abs(t.mean).mean())
    return np.asarray(t.mean * (float(np.abs(values).mean()) / center if center else 1.0))


def _elasticity(s: Abstract, g: Function) -> float:
    """d ln g / d ln s at E s."""
    level = s.average_mean
    with np.errstate(all="ignore"):
        low, high = np.abs(g(level * np.exp(np.array([-_STEP, _STEP]))))
        rate = math.log(high / low) / (2 * _STEP) if low > 0 and high > 0 else math.nan
    return rate if math.isfinite(rate) else 0.0


def _is_softmax(x: Abstract, note: Reduction, s: Abstract, g: Function) -> bool:
    """Whether x / s is exp(z) / sum exp(z)."""
    at = np.array([0.0, 1.0, -2.0, 0.5])
    base, f = unchained(x)
    with np.errstate(all="ignore"):
        top, bottom = f(at), note.f(at)
        inverse = g(s.average_mean * np.array([0.5, 1.0, 2.0])) * [0.5, 1.0, 2.0] * s.average_mean
    return bool(
        base is note.of
        and np.allclose(top, top[0] * np.exp(at), rtol=1e-6)
        and np.allclose(bottom, bottom[0] * np.exp(at), rtol=1e-6)
        and np.allclose(inverse, inverse[0], rtol=1e-6)
        and np.isclose(top[0] * inverse[0] * note.count, bottom[0], rtol=1e-6)
    )
