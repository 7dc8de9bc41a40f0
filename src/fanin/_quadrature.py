"""Gaussian expectations: E[g(sqrt(q) z)] and E[f(u) f(v)], by Gauss-Legendre panels.

A panel never straddles a kink: a node on one side of a jump says nothing of the other, and a
rule that ignores this is wrong in the third digit (chi of ReLU .954 in place of .994). Panels
that their halves contradict are halved again, so that sharp steps and unknown kinks cost
evaluations, not digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ._errors import InvalidValueError

Array = NDArray[np.float64]
Function = Callable[[Array], Array]

ORDER = 20  # nodes a panel: exact for polynomials of degree 39
REACH = 38.5  # exp(-38.5^2 / 2) is the last normal double: what lies beyond cannot be weighed
DEPTH = 60  # halvings of one panel, down to a width of 1e-17
# Panels that may be open at once: more than kinks and steps ask for. A function whose rounding is
# coarser than the tolerance (one that works in float32, say) ends here.
CROWD, CROWD_PAIR = 4000, 100
BLOCK = 1 << 19  # values of a pair's inner integrals held at once, 4 MiB
TOLERANCE = 1e-14  # of a panel against its halves, relative to the whole integral

# Breakpoints in units of z follow the weight; those in units of x = sqrt(q) z follow the
# function, whose features (steps, exponentials) lie at |x| of order one whatever q is.
_Z = np.array([0.0, 0.7, 1.5, 2.5, 3.5, 5.0, 7.0, 9.5, 13.0, 18.0, 25.0, REACH])
_X = np.array([0.0, 0.1, 0.5, 1.2, 2.0, 3.0, 6.0, 12.0, 24.0])
# Two variables: 1e-12 of E f^2 is promised, and beyond 9 there is 1e-19 of the weight.
_Z_PAIR = np.array([0.0, 1.1, 2.3, 3.8, 6.0, 9.0])
_STEP = np.array([-9.0, -3.0, -1.0, 0.0, 1.0, 3.0, 9.0])  # around a smoothed kink, in its own std


@lru_cache(maxsize=1)
def _rule() -> tuple[Array, Array]:
    """Nodes on (0, 1) and their weights."""
    nodes, weights = np.polynomial.legendre.leggauss(ORDER)
    return (nodes + 1) / 2, weights / 2


def _weight(z: Array) -> Array:
    return np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def _panel_sums(integrand: Function, left: Array, right: Array) -> tuple[Array, float]:
    """The rule on each panel [left, right], and the integral of |integrand| over all of them."""
    nodes, weights = _rule()
    width = right - left
    z = left[:, None] + width[:, None] * nodes
    values = integrand(z.ravel()).reshape(z.shape)
    return width * (values @ weights), float(width @ (np.abs(values) @ weights))


def _integral(
    integrand: Function, edges: Array, *, floor: float = 0.0, crowd: int = CROWD
) -> float:
    """Integral over the panels between ``edges``, halving each one that its halves contradict.

    ``floor`` bounds from below the size against which an error counts.
    """
    left, right = edges[:-1], edges[1:]
    coarse, size = _panel_sums(integrand, left, right)
    total, size = 0.0, max(size, floor)
    for _ in range(DEPTH):
        if not 0 < len(left) <= crowd:
            break
        middle = (left + right) / 2
        left, right = np.concatenate([left, middle]), np.concatenate([middle, right])
        fine, fine_size = _panel_sums(integrand, left, right)
        paired = fine.reshape(2, -1).sum(axis=0)
        size = max(size, fine_size)
        agree = np.abs(paired - coarse) <= TOLERANCE * size
        total += float(paired[agree].sum())
        again = np.tile(~agree, 2)
        left, right, coarse = left[again], right[again], fine[again]
    return total + float(coarse.sum())


def _features(scale: float, kinks: Array) -> Array:
    """The x to split at: the kinks, and where a function of x may turn within a panel of z."""
    return np.concatenate([-_X, _X, kinks]) if scale > 1.2 else kinks


def _edges(scale: float, kinks: Sequence[float] | Array, grid: Array) -> Array:
    """Panel edges on +-grid for a function of ``scale * z`` with ``kinks`` in x."""
    inner = np.abs(_features(scale, np.asarray(kinks, dtype=float))) / scale
    points = np.concatenate([grid, inner[inner < grid[-1]]])
    return np.unique(np.concatenate([-points, points]))


def expectation(g: Function, q: float = 1.0, kinks: Sequence[float] = ()) -> float:
    r"""E[g(u)] for u ~ N(0, q).

    .. math:: \int g(\sqrt q\, z)\, e^{-z^2/2} / \sqrt{2\pi}\; dz

    Args:
        g: elementwise, float64 to float64.
        q: a variance, > 0.
        kinks: where g or one of its first derivatives jumps, in units of u.

    Returns:
        The expectation, to about 1e-13 of E|g|.

    Raises:
        InvalidValueError: the integral is not a finite number.

    >>> round(expectation(lambda u: np.maximum(u, 0.0) ** 2, 4.0, (0.0,)), 12)
    2.0
    """
    scale = math.sqrt(q)
    with np.errstate(over="ignore", invalid="ignore"):
        value = _integral(lambda z: g(scale * z) * _weight(z), _edges(scale, kinks, _Z))
    if not math.isfinite(value):
        raise InvalidValueError(
            f"the function has no finite expectation under N(0, {q:g}); got {value}. "
            "It must be finite for every finite input, and grow slower than exp(x^2 / 2q)."
        )
    return value


def _smoothed(f: Function, shift: Array, spread: float, kinks: Array) -> Array:
    """E[f(shift + spread * w)] for w ~ N(0, 1), for each entry of ``shift``: panels per entry."""
    base = np.concatenate([-_Z_PAIR[:0:-1], _Z_PAIR])
    features = _features(spread, kinks)
    rows = max(1, BLOCK // (ORDER * (len(base) + len(features))))
    nodes, weights = _rule()

    def block(some: Array) -> Array:
        cuts = np.clip((features - some[:, None]) / spread, base[0], base[-1])
        edges = np.concatenate([np.broadcast_to(base, (len(some), len(base))), cuts], axis=1)
        edges.sort(axis=1)
        left, width = edges[:, :-1, None], np.diff(edges, axis=1)[:, :, None]
        w = left + width * nodes
        values = f((some[:, None, None] + spread * w).ravel()).reshape(w.shape)
        return np.asarray(np.einsum("ijk,ijk,k->i", values, _weight(w) * width, weights))

    return np.concatenate([block(shift[i : i + rows]) for i in range(0, len(shift), rows)])


def pair_expectation(f: Function, q: float, c: float, kinks: Sequence[float] = ()) -> float:
    r"""E[f(u) f(v)] for u, v ~ N(0, q) with correlation c.

    With ``u = sqrt(q |c|) z + sqrt(q (1 - |c|)) w`` and ``v`` alike (``-z`` if c < 0) but with its
    own ``w``, the two are independent given z, so the expectation is that of ``h(z) h(+-z)``
    where ``h`` is f smoothed over w.

    Args:
        f: elementwise, float64 to float64.
        q: the common variance, > 0.
        c: correlation in [-1, 1].
        kinks: where f or one of its first derivatives jumps, in units of u.

    Returns:
        The expectation, to about 1e-12 of E f^2. (A function that still oscillates at
        |u| > 24 with a period below sqrt(q) would need more nodes than are spent.)

    >>> round(pair_expectation(np.sin, 1.0, 0.5), 12), round(math.exp(-1) * math.sinh(0.5), 12)
    (0.191700249782, 0.191700249782)
    """
    if abs(c) == 1.0:
        return expectation(lambda u: f(u) * f(c * u), q, kinks)
    points = np.asarray(kinks, dtype=float)
    if c == 0.0:
        return expectation(f, q, kinks) ** 2
    shared, own = math.sqrt(q * abs(c)), math.sqrt(q * (1 - abs(c)))
    sign = math.copysign(1.0, c)

    def product(z: Array) -> Array:
        h = _smoothed(f, shared * z, own, points)
        return h * h if sign > 0 else h * _smoothed(f, -shared * z, own, points)

    size = expectation(lambda u: np.square(f(u)), q, kinks)
    # near c = 1 a kink of f is a narrow step of h, which the nodes of a wide panel would not see
    steps = np.add.outer(points, own * _STEP).ravel() if own < 0.1 * shared else points
    edges = _edges(shared, steps, _Z_PAIR)
    return _integral(lambda z: product(z) * _weight(z), edges, floor=size, crowd=CROWD_PAIR)


def root(fn: Callable[[float], float], low: float, high: float) -> float:
    """Where ``fn``, of opposite signs at ``low`` and ``high``, is zero; Ridders' method.

    Source: C. Ridders, IEEE Trans. Circuits Syst. 26 (1979) 979.

    >>> round(root(lambda x: x * x - 2, 0.0, 2.0), 12)
    1.414213562373
    """
    at_low, at_high = fn(low), fn(high)
    best = low if abs(at_low) < abs(at_high) else high
    for _ in range(100):
        if at_low == 0.0 or at_high == 0.0 or abs(high - low) <= 4e-16 * max(abs(low), abs(high)):
            break
        middle = (low + high) / 2
        at_middle = fn(middle)
        bend = math.sqrt(at_middle * at_middle - at_low * at_high)
        if bend == 0.0:
            return middle
        new = middle + (middle - low) * math.copysign(1.0, at_low - at_high) * at_middle / bend
        at_new = fn(new)
        if abs(new - best) <= 4e-16 * abs(new):
            return new
        best = new
        points = sorted([(low, at_low), (middle, at_middle), (new, at_new), (high, at_high)])
        for (a, fa), (b, fb) in pairwise(points):
            if (fa > 0) != (fb > 0):
                low, at_low, high, at_high = a, fa, b, fb
                break
    return low if at_low == 0.0 else high if at_high == 0.0 else best


# kinks of a function that no table knows -----------------------------------------------------


def probe_grid() -> Array:
    """Points on +-10^4, close near 0 and never on a round number, where kinks like to lie."""
    return 0.2 * np.sinh(np.linspace(-11.513, 11.517, 2050))


def jumps(g: Function) -> tuple[float, ...]:
    """Where g jumps: each interval is halved towards its larger change until the change stays.

    >>> jumps(lambda x: np.where(x > 0.3, 1.0, 0.0))
    (0.3,)
    """
    edges = probe_grid()
    at_edges = g(edges)
    left, right, at_left, at_right = edges[:-1], edges[1:], at_edges[:-1], at_edges[1:]
    for _ in range(64):
        change = np.abs(at_right - at_left)
        keep = change > 1e-5 * (1 + np.maximum(np.abs(at_left), np.abs(at_right)))
        left, right, at_left, at_right = left[keep], right[keep], at_left[keep], at_right[keep]
        if not left.size:
            break
        middle = (left + right) / 2
        at_middle = g(middle)
        goes_left = np.abs(at_middle - at_left) > np.abs(at_right - at_middle)
        left = np.where(goes_left, left, middle)
        at_left = np.where(goes_left, at_left, at_middle)
        right = np.where(goes_left, middle, right)
        at_right = np.where(goes_left, at_middle, at_right)
    return tuple(_rounded(float(k), 12) for k in right)


def bends(g: Function) -> tuple[float, ...]:
    """Where g' jumps, to about 1e-5: enough, since a panel misplaced by e costs e^3 there.

    >>> bends(lambda x: np.abs(x - 0.25))
    (0.25,)
    """
    edges = probe_grid()
    left, width = edges[:-1], np.diff(edges)
    while left.size and width.max() > 1e-5:
        starts = np.stack([left, left + width / 4, left + width / 2])
        at_starts, middle = g(starts), g(starts + width / 4)
        second = np.abs(at_starts - 2 * middle + g(starts + width / 2))
        best = second.argmax(axis=0)[None]
        bend, size = (np.take_along_axis(v, best, axis=0)[0] for v in (second, np.abs(middle)))
        left, width = np.take_along_axis(starts, best, axis=0)[0], width / 2
        keep = bend > 0.02 * width * (1 + size)
        left, width = left[keep], width[keep]
    return tuple(_rounded(float(k), 5) for k in left + width / 2)


def _rounded(x: float, digits: int) -> float:
    """The short decimal that was surely meant, if x is one to within rounding."""
    short = round(x, digits)
    return short if abs(short - x) <= 10.0**-digits * max(1.0, abs(x)) else x
